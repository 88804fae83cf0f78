"""The default configs of runc, podman, docker and ctr: under knarr-runtime a process sees what it sees under runc.

On this machine's kernel as root and as an ordinary user, and under user-mode Linux with cgroup v2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import comparison
import pytest

import knarr

sys.path.insert(0, str(Path(__file__).parents[1] / "uml"))
import uml

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-compare-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def check(source: str, scratch: Path, knarr_runtime: str, *, rootless: bool) -> None:
    try:
        config = comparison.config_of(source, scratch, rootless=rootless)
        peers = {
            "peer": [comparison.need("runc"), "--root", f"{scratch}/r"],
            "knarr": [knarr_runtime, "--root", f"{scratch}/k"],
        }
        seen = comparison.compare(config, scratch, peers, cgroups=not rootless)
    except comparison.CannotCompare as error:
        pytest.skip(str(error))
    found = comparison.differences(seen["knarr"], seen["peer"])
    assert sum(map(len, seen["knarr"].values())) > 100, "the probe saw nothing"
    assert comparison.unexpected(found) == []


@pytest.mark.parametrize("source", comparison.SOURCES)
def test_as_root(source: str, scratch: Path, knarr_runtime: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: containers with their own cgroups")
    check(source, scratch, knarr_runtime, rootless=False)


def test_as_an_ordinary_user(scratch: Path, knarr_runtime: str) -> None:
    """runc spec --rootless; as root the test runs itself again as nobody."""
    if os.geteuid() != 0:
        check("runc", scratch, knarr_runtime, rootless=True)
        return
    try:
        comparison.need("runc")
        comparison.busybox()
    except comparison.CannotCompare as error:
        pytest.skip(str(error))
    home = scratch / "nobody"
    (home / "run").mkdir(parents=True)
    shutil.copytree(HERE, home / "compare")
    for path in (home, home / "run"):
        os.chown(path, 65534, 65534)
    (home / "run").chmod(0o700)
    demoted = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "TMPDIR": "/tmp",
    }
    python = sys.executable
    reach = subprocess.run([*demoted, knarr_runtime, "--version"], capture_output=True, env=environment, check=False)
    if reach.returncode:
        # The Python of the tests is in root's home: the same package, copied, under the system's Python.
        python = "/usr/bin/python3"
        if subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
            pytest.skip(f"no Python of 3.11 or later that an ordinary user can reach (not {sys.executable})")
        shutil.copytree(Path(knarr.__file__).parent, home / "site/knarr")
        launcher = home / "knarr-runtime"
        launcher.write_text(f'#!/bin/sh\nexec {python} -I -S {home}/site/knarr/cli/runtime_launch.py "$@"\n')
        launcher.chmod(0o755)
        knarr_runtime = str(launcher)
    words = ["--knarr", knarr_runtime, "--source", "runc", "--rootless"]
    done = comparison.run(*demoted, python, str(home / "compare/comparison.py"), *words, env=environment, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| runc |" in done.stdout
    assert "skipped" not in done.stdout


def test_on_cgroup_v2(knarr_runtime: str) -> None:
    if shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("runc is not installed")
    script = str(HERE / "comparison.py")
    words = ["--knarr", knarr_runtime, "--source", "runc", "--source", "ctr"]
    try:
        done = uml.run([sys.executable, script, *words], cwd="/", timeout=240)
    except uml.NoUml as error:
        pytest.skip(str(error))
    assert done.stdout.count(" without a reason") == 2, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr

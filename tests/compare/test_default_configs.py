"""The default configs of runc, podman, docker and ctr: under knarr-runtime a process sees what it sees under runc.

On this machine's kernel as root and as an ordinary user, and under user-mode Linux with cgroup v2.
"""

from __future__ import annotations

import os
import shutil
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
    import subprocess
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
DOCUMENTS = HERE.parent / "spec/documents"


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
    """runc spec --rootless; as root the comparison runs itself again as nobody."""
    if os.geteuid() != 0:
        check("runc", scratch, knarr_runtime, rootless=True)
        return
    try:
        comparison.need("runc")
        comparison.busybox()
    except comparison.CannotCompare as error:
        pytest.skip(str(error))
    judge(comparison.run(sys.executable, str(HERE / "comparison.py"), *nobody(knarr_runtime)), 1)


def nobody(knarr_runtime: str) -> list[str]:
    """The words that have the comparison run as an ordinary user."""
    return ["--knarr", knarr_runtime, "--source", "runc", "--as-nobody", str(Path(knarr.__file__).parent)]


def judge(done: subprocess.CompletedProcess[str], configs: int) -> None:
    """All these configs were compared and nothing differs without a reason."""
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.removeprefix("skipped: ").strip())
    assert done.stdout.count(" without a reason") == configs, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("who", ["root", "nobody"])
def test_on_cgroup_v2(who: str, knarr_runtime: str) -> None:
    """Under another kernel, where the engines cannot run: with configs they wrote elsewhere."""
    if shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("runc is not installed")
    written = [str(DOCUMENTS / f"config-{tool}.json") for tool in ("docker-default", "podman-default")]
    words = ["--knarr", knarr_runtime, "--source", "runc", "--source", "ctr"]
    words += [word for file in written for word in ("--config", file)]
    if who == "nobody":
        words = nobody(knarr_runtime)
    try:
        done = uml.run([sys.executable, str(HERE / "comparison.py"), *words], cwd="/", timeout=240)
    except uml.NoUml as error:
        pytest.skip(str(error))
    judge(done, 1 if who == "nobody" else 4)

"""checkpoint and restore where they cannot be: no CRIU, a CRIU that cannot work here, options that make no sense.

Where CRIU works, tests/vm/test_checkpoint.py takes over.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--parent-path", "/abs"], "must be relative"),
        (["--parent-path", "missing"], "is not a directory"),
        (["--page-server", "host"], "is not ADDRESS:PORT"),
        (["--page-server", ":1"], "is not ADDRESS:PORT"),
        (["--page-server", "host:99999"], "is not ADDRESS:PORT"),
        (["--empty-ns", "pid"], "'pid' is not network"),
        (["--status-fd", "99"], "descriptor 99: bad file descriptor"),
        (["--status-fd", "0"], "cannot be written to"),
    ],
)
def test_options_that_make_no_sense(ours: Runtime, tmp_path: Path, words: list[str], says: str) -> None:
    done = ours("checkpoint", "--image-path", str(tmp_path / "images"), *words, "x")
    assert done.returncode == 1
    assert says in done.stderr


@needs_busybox
@needs_root
def test_a_container_goes_on_when_criu_cannot_work(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """By a criu that answers nothing, as Debian's 3.17 does under kernels that are newer than it."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "criu").write_text("#!/bin/sh\nexit 1\n")
    (fake / "criu").chmod(0o755)
    id = ours.new_id()
    ours.ok("run", "-d", "-b", bundle.write("sleep", "1000"), id)
    env = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}"}
    done = ours("checkpoint", "--image-path", str(tmp_path / "images"), id, env=env)
    assert done.returncode == 1
    assert f"checkpoint container {id}: CRIU: CRIU ended without an answer" in done.stderr
    assert "criu check" in done.stderr
    assert ours.state(id)["status"] == "running"
    again = ours.new_id()
    done = ours("restore", "-d", "-b", str(bundle.path), "--image-path", str(tmp_path / "images"), again, env=env)
    assert done.returncode == 1
    assert f"restore container {again}: CRIU: CRIU ended without an answer" in done.stderr
    assert not (ours.root / again).exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    # The same by its path.
    for program, says in (
        (f"{fake}/criu", "CRIU ended without an answer"),
        (f"{fake}/none", f"start {fake}/none: no such file"),
    ):
        done = ours("--criu", program, "checkpoint", "--image-path", str(tmp_path / "images"), id)
        assert done.returncode == 1
        assert says in done.stderr
    done = ours("checkpoint", "--network-lock", "x", "--image-path", str(tmp_path / "images"), id)
    assert "option --network-lock: 'x' is not iptables, nftables or skip" in done.stderr


@needs_root
def test_no_checkpoint_there(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    done = ours("restore", "-b", bundle.write("true"), "--image-path", str(tmp_path / "none"), "x")
    assert done.returncode == 1
    assert f"open directory {tmp_path}/none: no such file or directory" in done.stderr
    (tmp_path / "empty").mkdir()
    done = ours("restore", "-b", bundle.write("true"), "--image-path", str(tmp_path / "empty"), "x")
    assert done.returncode == 1
    assert "descriptors.json" in done.stderr


@needs_busybox
@needs_root
def test_without_criu(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    if any(os.access(f"{folder}/criu", os.X_OK) for folder in ("/usr/sbin", "/sbin")):
        hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh"]
    else:
        hidden = []
    id = ours.new_id()
    ours.ok("run", "-d", "-b", bundle.write("sleep", "1000"), id)
    command = [*hidden, *ours.command, "checkpoint", "--image-path", str(tmp_path / "images"), id]
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert f"checkpoint container {id} is not supported: the program criu is not installed" in done.stderr

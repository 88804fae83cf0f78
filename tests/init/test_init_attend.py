"""The init keeps a program for as long as another process lives, and is outlived by nothing."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from initlaunch import NEWPID, ROOT_ONLY

from knarr.plan.ops import NO_SLOT, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initlaunch import Launcher, Run

LIFE, READY = 0, 1


@pytest.fixture
def life() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process and its pidfd."""
    with subprocess.Popen(["sleep", "100"]) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            yield process, pidfd
        finally:
            os.close(pidfd)
            process.kill()


def attend(launcher: Launcher, life: int, script: str, ready: int = -1, *before: Op) -> Run:
    words = ["/bin/sh", "/bin/sh", "-c", script, "PATH=/bin:/usr/bin"]
    op = Op("attend", [LIFE, NO_SLOT if ready < 0 else READY, 3], words)
    return launcher.start([*before, op], slots=[life, *([ready] if ready >= 0 else [])])


def test_it_ends_with_the_process(launcher: Launcher, life: tuple[subprocess.Popen[bytes], int]) -> None:
    process, pidfd = life
    run = attend(launcher, pidfd, "sleep 100")
    assert run.receive() is None  # its creator is told that all is done
    process.kill()
    assert run.wait().code == 0


def test_its_code_is_the_programs(launcher: Launcher, life: tuple[subprocess.Popen[bytes], int]) -> None:
    assert attend(launcher, life[1], "exit 7").wait().code == 7
    assert attend(launcher, life[1], "kill -9 $$").wait().code == 137
    op = Op("attend", [LIFE, NO_SLOT, 1], ["/missing", "missing"])
    assert launcher.start([op], slots=[life[1]]).wait().code == 127


def test_a_daemon_is_told_of_and_goes_on(launcher: Launcher, life: tuple[subprocess.Popen[bytes], int]) -> None:
    ours, theirs = os.pipe()
    process, pidfd = life
    run = attend(launcher, pidfd, "sleep 0.2 & exit 0", theirs)
    os.close(theirs)
    assert os.read(ours, 10) == b"1"
    assert os.read(ours, 10) == b""  # nobody holds the other end any more
    os.close(ours)
    time.sleep(0.4)
    assert Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    process.kill()
    assert run.wait().code == 0


def test_it_holds_nothing_else(launcher: Launcher, life: tuple[subprocess.Popen[bytes], int]) -> None:
    process, pidfd = life
    run = attend(launcher, pidfd, "sleep 100")
    assert run.receive() is None
    own = Path(f"/proc/{run.pid}")
    links = {fd.name: os.readlink(fd) for fd in (own / "fd").iterdir()}
    assert set(links) == {"0", "2"}
    assert all("pidfd" in link for link in links.values()), links
    assert os.readlink(own / "cwd") == "/"
    process.kill()
    run.wait()


@ROOT_ONLY
def test_killed_it_takes_all_along(
    launcher: Launcher, life: tuple[subprocess.Popen[bytes], int], tmp_path: Path
) -> None:
    """As process 1 of a pid namespace."""
    script = f"setsid sleep 100 & setsid sh -c 'sleep 101 & wait' & touch {tmp_path}/there; wait"
    run = attend(launcher, life[1], script, -1, Op("clone", [NEWPID, NO_SLOT]))
    while run.receive() is not None:
        pass
    pid = run.child
    assert pid
    until = time.monotonic() + 10
    while not (tmp_path / "there").exists() and time.monotonic() < until:
        time.sleep(0.02)
    space = os.readlink(f"/proc/{pid}/ns/pid_for_children")
    assert len(members(space)) >= 4
    os.kill(pid, 9)
    while len(members(space)) > 1 and time.monotonic() < until:
        time.sleep(0.02)
    assert members(space) == [str(pid)]  # a zombie, until its parent asks


def members(space: str) -> list[str]:
    """The processes of a pid namespace."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == space:
                found.append(name)
        except OSError:
            pass  # it has ended
    return found

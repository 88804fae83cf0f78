"""The init stands for a process that runs elsewhere: signals go out, an exit code comes in."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knarr.plan.ops import NO_SLOT, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initlaunch import Launcher, Run

SIGNAL, EXIT = 1, 2
STAND = Op("stand", [0, NO_SLOT])


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def stand(launcher: Launcher, theirs: socket.socket, *before: Op) -> Run:
    run = launcher.start([*before, STAND], slots=[theirs.fileno()])
    theirs.close()
    assert run.receive() is None  # its creator is told that all is done
    return run


def test_an_exit_code(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    ours.send(struct.pack("<II", EXIT, 7))
    assert run.wait().code == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGWINCH, signal.SIGRTMIN])
def test_a_signal(launcher: Launcher, ends: tuple[socket.socket, socket.socket], number: int) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    os.kill(run.pid, number)
    assert struct.unpack("<II", ours.recv(100)) == (SIGNAL, number)
    ours.close()
    assert run.wait().code == 137


def test_the_end_of_the_connection_is_its_end(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    ours.close()
    assert run.wait().code == 137


def test_what_is_no_exit_code(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    ours.send(struct.pack("<II", 3, 0))
    assert run.wait().code == 137


def test_it_holds_nothing_but_the_connection(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    own = Path(f"/proc/{run.pid}")
    links = {fd.name: os.readlink(fd) for fd in (own / "fd").iterdir()}
    assert set(links) == {"0", "1"}
    assert links["0"].startswith("socket:")
    assert links["1"] == "anon_inode:[signalfd]"
    assert os.readlink(own / "cwd") == "/"
    ours.close()
    run.wait()


def test_signals_that_nobody_takes_do_not_hold_it_up(
    launcher: Launcher, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    run = stand(launcher, theirs)
    for _ in range(3000):
        os.kill(run.pid, signal.SIGUSR1)
    ours.send(struct.pack("<II", EXIT, 3))
    assert run.wait().code == 3


def test_its_terminal(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    master, other = os.openpty()
    run = launcher.start([Op("setsid"), Op("stand", [0, 1])], slots=[theirs.fileno(), other])
    theirs.close()
    assert run.receive() is None
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    assert struct.unpack("<II", ours.recv(100)) == (SIGNAL, signal.SIGWINCH)
    ours.close()
    run.wait()
    os.close(master)
    os.close(other)


def test_without_a_connection(launcher: Launcher) -> None:
    launcher.run([STAND]).refused(0, errno.EBADF)


def test_what_is_no_terminal(launcher: Launcher, ends: tuple[socket.socket, socket.socket]) -> None:
    _, theirs = ends
    run = launcher.start([Op("stand", [0, 0])], slots=[theirs.fileno()])
    run.finish().refused(0, errno.ENOTTY)

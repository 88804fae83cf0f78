"""The process that stands on the host for a further process in a guest: signals go in, its exit code comes out (cold).

Descriptors: 3 the connection to the monitor, 4 the other end of its terminal, if it has one. When this process is
killed, the monitor sees the end of the connection and kills the one in the guest.
"""

from __future__ import annotations

import _signal as signal  # the module of that name makes enums of it: 4 ms
import os
from _socket import socket
from fcntl import ioctl
from select import POLLIN, poll
from struct import unpack

from knarr.base import fastjson
from knarr.base.errors import KnarrError

_TIOCGWINSZ, _TIOCSCTTY = 0x5413, 0x540E
_TERMINAL = 4
_KILLED = 137


def noted(_number: int, _frame: object) -> None:
    """A handler for signals that the wakeup descriptor tells of."""


def catch_signals() -> int:
    """Catch all that can be passed on; the descriptor that tells their numbers, a byte each."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}:
        signal.signal(number, noted)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return reading


def window(terminal: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    rows, columns, _, _ = unpack("HHHH", ioctl(terminal, _TIOCGWINSZ, bytes(8)))
    return rows, columns


def main(has_terminal: bool) -> None:  # noqa: FBT001  # from a command line
    """Stand until the process has ended; never returns."""
    monitor = socket(fileno=3)
    signals = catch_signals()
    if has_terminal:
        ioctl(_TERMINAL, _TIOCSCTTY, 0)
        _pass_on(monitor, signal.SIGWINCH, has_terminal=True)  # it may have got its size before we could hear of it
    poller = poll()
    poller.register(3, POLLIN)
    poller.register(signals, POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == signals:
                for number in os.read(signals, 512):
                    _pass_on(monitor, number, has_terminal=has_terminal)
            else:
                os._exit(_code(monitor.recv(4096)))


def _pass_on(monitor: socket, number: int, *, has_terminal: bool) -> None:
    if number != signal.SIGWINCH:
        message = {"do": "signal", "number": number}
    elif has_terminal:
        rows, columns = window(_TERMINAL)
        message = {"do": "resize", "rows": rows, "columns": columns}
    else:
        return
    try:
        monitor.send(fastjson.dumps(message))
    except OSError:
        pass  # its end is read next


def _code(packet: bytes) -> int:
    """The exit code in the monitor's last word; as killed when it ended without one."""
    try:
        return int(fastjson.loads(packet, "the monitor's word", limit=4096)["exit"]) & 0xFF
    except (KnarrError, KeyError, TypeError, ValueError):
        return _KILLED

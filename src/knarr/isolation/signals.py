"""Signals of the monitor's own process, to be passed on to the container in the guest (cold)."""

from __future__ import annotations

import _signal as signal  # the module of that name makes enums of it: 4 ms
import os


def _noted(_number: int, _frame: object) -> None:
    """A handler for signals that the wakeup descriptor tells of."""


def catch_signals() -> int:
    """Catch all that can be passed on; the descriptor that tells their numbers, a byte each."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}:
        signal.signal(number, _noted)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return reading

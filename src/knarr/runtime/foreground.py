"""Stay with a process in the foreground: pass signals on, copy its terminal, return its exit code (hot).

For the main thread of a command only: it takes over the signal handlers of the process.
"""

from __future__ import annotations

import _signal
import posix
from _socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll

from knarr.base.errors import InitError, KnarrError
from knarr.kernel import tty
from knarr.kernel.process import reap, signal_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from knarr.runtime.notify import Notify

SIGCHLD = 17
SIGWINCH = 28
# Not passed on: what cannot be caught, faults of our own, SIGPIPE, SIGCHLD, SIGURG (23, Go programs are full of it),
# job control by our own terminal (21, 22), file size (25: Python ignores it), 32 and 33 (glibc's own).
_OWN = frozenset((4, 5, 7, 8, 9, 11, 13, 17, 19, 21, 22, 23, 25, 31, 32, 33))
ENDING = (1, 2, 3, 15)
"""SIGHUP, SIGINT, SIGQUIT, SIGTERM: those that end a command which has not come to its container's start."""
_LATER = tuple(number for number in range(1, 65) if number not in _OWN and number not in ENDING)


def _noted(_number: int, _frame: object) -> None:
    """Python's wakeup descriptor tells which signal it was."""


class Signals:
    """Signals as bytes on a descriptor, ``fd``, until the end of the ``with``; nothing else happens because of them.

    First only those of ENDING. Others wait for ``catch_all``: they are meant for the program, which may run already.
    """

    __slots__ = ("_writer", "fd")

    def __init__(self) -> None:
        self.fd, self._writer = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _LATER)
        self.catch(ENDING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _LATER)
        _signal.set_wakeup_fd(-1)
        posix.close(self.fd)
        posix.close(self._writer)

    def catch(self, numbers: tuple[int, ...]) -> None:
        """Catch these too, except what the caller of this program had ignored (nohup)."""
        for number in numbers:
            if number not in _OWN and _signal.getsignal(number) is not _signal.SIG_IGN:
                _signal.signal(number, _noted)

    def catch_all(self) -> None:
        """Catch everything that can be passed on."""
        self.catch(_LATER)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _LATER)

    def catch_children(self) -> None:
        """Take note of the end of children."""
        _signal.signal(SIGCHLD, _noted)

    def read(self) -> bytes:
        """The numbers of the signals that came, one byte each."""
        try:
            return posix.read(self.fd, 512)
        except BlockingIOError:
            return b""


class Terminal:
    """A terminal of our own making for the container: hand over ``slot``, then ``master()`` is our end of it."""

    __slots__ = ("_ours", "_theirs", "fd")

    def __init__(self) -> None:
        self._ours: socket
        self._theirs: socket
        self._ours, self._theirs = socketpair(AF_UNIX, SOCK_STREAM, 0)
        self.fd = -1

    @property
    def slot(self) -> int:
        """The descriptor over which the init sends the master."""
        return self._theirs.fileno()

    def master(self) -> int:
        """Receive the master, once the program runs. Raises InitError when none came."""
        self._theirs.close()
        try:
            self.fd = tty.receive_fd(self._ours)
        except OSError as error:
            raise InitError("/process/terminal", "receive the terminal", error.errno or 0) from None
        if self.fd < 0:
            raise InitError("/process/terminal", "receive the terminal", 0, why="none was sent")
        posix.set_blocking(self.fd, False)
        size = tty.window_size(0)
        if size is not None and size != bytes(8):
            tty.resize(self.fd, size)
        return self.fd

    def close(self) -> None:
        """Close all that is open."""
        self._ours.close()
        self._theirs.close()
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1


def adopt_orphans() -> None:
    """Become the parent of processes whose own has ended (PR_SET_CHILD_SUBREAPER, prctl(2)). Raises KernelError."""
    from knarr.kernel.ffi import syscall  # only for containers without a pid namespace

    syscall("prctl", 36, 1)


def attend(pidfd: int, signals: Signals, master: int = -1, *, orphans_of: int = 0, notify: Notify | None = None) -> int:
    """Stay until the process ends: signals go to it, with ``master`` the terminal is copied to our 0 and 1.

    ``orphans_of``: the process's pid, when other children may end, too, that we adopted. ``notify`` is passed on
    meanwhile. Returns the exit code, 128 + signal when one ended it. Our own terminal is raw meanwhile and restored.
    """
    signals.catch_all()
    if orphans_of:
        signals.catch_children()
    if master < 0:
        _loop(pidfd, signals, -1, orphans_of, notify)
    else:
        settings = tty.make_raw(0)
        try:
            _loop(pidfd, signals, master, orphans_of, notify)
        finally:
            if settings is not None:
                tty.restore(0, settings)
    code = reap(pidfd)
    return 255 if code is None else code


def _reap_orphans(main: int) -> None:
    """Take note of the end of adopted children; ``main`` is left to who waits for it."""
    try:
        look = posix.WEXITED | posix.WNOHANG | posix.WNOWAIT
        while (found := posix.waitid(posix.P_ALL, 0, look)) and found.si_pid != main:
            posix.waitpid(found.si_pid, 0)
    except ChildProcessError:
        pass


def _loop(pidfd: int, signals: Signals, master: int, orphans_of: int, notify: Notify | None) -> None:
    poller = poll()
    poller.register(pidfd, POLLIN)
    poller.register(signals.fd, POLLIN)
    if notify is not None:
        poller.register(notify.fileno(), POLLIN)
    pending = b""  # typed, not yet taken by the container; nothing more is read from the user meanwhile
    typing = master >= 0
    if master >= 0:
        poller.register(master, POLLIN)
        poller.register(0, POLLIN)
    while True:
        ready = dict(poller.poll())
        if signals.fd in ready:
            numbers = signals.read()
            if orphans_of and SIGCHLD in numbers:
                _reap_orphans(orphans_of)
            _pass_on(numbers, pidfd, master)
        if notify is not None and notify.fileno() in ready:
            notify.step()
        if master in ready:
            if ready[master] & POLLOUT and pending:
                pending = _type(master, pending)
                if not pending:
                    poller.modify(master, POLLIN)
                    poller.register(0, POLLIN)
                    typing = True
            if ready[master] & (POLLIN | POLLHUP | POLLERR) and not _copy(master, 1):
                poller.unregister(master)  # nobody has the other end open any more
                if typing:
                    poller.unregister(0)
                master, typing = -1, False
        if 0 in ready and typing:
            try:
                typed = posix.read(0, 65536)
            except OSError:
                typed = b""
            pending = _type(master, typed)
            if not typed or pending:
                poller.unregister(0)
                typing = False
            if pending:
                poller.modify(master, POLLIN | POLLOUT)
        if pidfd in ready:
            while master >= 0 and _copy(master, 1):
                pass
            return


def _pass_on(numbers: bytes, pidfd: int, master: int) -> None:
    for number in numbers:
        if number == SIGCHLD:
            continue
        if number == SIGWINCH and master >= 0:
            size = tty.window_size(0)
            if size is not None:
                tty.resize(master, size)
            continue
        try:
            signal_pid(pidfd, number)
        except KnarrError:
            pass  # a set-uid program of another user: its signals are its own affair


def _type(master: int, data: bytes) -> bytes:
    """Write to the terminal what it takes; returns the rest."""
    try:
        return data[posix.write(master, data) :] if data else b""
    except BlockingIOError:
        return data
    except OSError:
        return b""  # the other end is closed


def _copy(source: int, target: int) -> bool:
    """Copy what is there; False when there is nothing (more)."""
    try:
        data = posix.read(source, 65536)
    except OSError:
        return False  # EAGAIN: nothing now; EIO: the other end is closed
    view: Any = memoryview(data)
    try:
        while view:
            view = view[posix.write(target, view) :]
    except OSError:
        pass  # our reader went away; the container goes on
    return bool(data)

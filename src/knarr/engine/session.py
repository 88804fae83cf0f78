"""A process while it starts and runs: its control socket, its pipes and its end, without a loop of its own.

Sans-io, so that one machine serves both drivers: ``run_to_end`` below (poll(2), any thread) and the asyncio twin
(``add_reader``). ``wanted()`` says which descriptors to watch, ``handle()`` takes what is ready and never blocks,
except that writing to our own standard output may wait for whoever reads it.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EIO, EPIPE
from select import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, poll
from time import monotonic

from knarr.base.errors import KnarrError
from knarr.kernel.process import signal_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from knarr.runtime.create import Process

    class Pump(Protocol):
        """One descriptor of a stream. ``events`` 0: leave it alone for now; ``fd`` -1: it is finished."""

        fd: int
        events: int

        def ready(self) -> None: ...

        def close(self) -> None: ...


_CHUNK = 1 << 16
READABLE = POLLIN | POLLHUP | POLLERR | POLLNVAL


class Capture:
    """Collects what comes out of a pipe: the first ``limit`` bytes (None: all); the rest is read and dropped."""

    __slots__ = ("_parts", "events", "fd", "limit", "size", "truncated")

    def __init__(self, fd: int, limit: int | None = None) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.events = POLLIN
        self.limit = limit
        self.size = 0
        self.truncated = False
        self._parts: list[bytes] = []

    def ready(self) -> None:
        data = _read(self.fd)
        if data is None:
            return
        if not data:
            self.close()
            return
        if self.limit is not None and self.size + len(data) > self.limit:
            data = data[: self.limit - self.size]
            self.truncated = True
        if data:
            self._parts.append(data)
            self.size += len(data)

    def value(self) -> bytes:
        """All that was kept."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class Relay:
    """Copies what comes out of a pipe or terminal to a descriptor of ours, which stays open.

    ``typed`` is the other direction of the same terminal: it ends with this one.
    """

    __slots__ = ("_target", "_typed", "events", "fd")

    def __init__(self, fd: int, target: int, typed: Typed | None = None) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.events = POLLIN
        self._target = target
        self._typed = typed

    def ready(self) -> None:
        data = _read(self.fd)
        if data is None:
            return
        if not data:
            self.close()
            return
        view = memoryview(data)
        try:
            while view and self._target >= 0:
                view = view[os.write(self._target, view) :]
        except BlockingIOError:
            # Our output is a non-blocking terminal shared with others: wait for it.
            _wait_writable(self._target)
            _write_all(self._target, view)
        except OSError:
            self._target = -1  # our reader went away; the container goes on

    def close(self) -> None:
        if self.fd >= 0:
            if self._typed is not None:
                self._typed.close()
            fd, self.fd = self.fd, -1
            os.close(fd)


class Feed:
    """Writes bytes into a pipe as it takes them, then closes it."""

    __slots__ = ("_left", "events", "fd")

    def __init__(self, fd: int, data: bytes | memoryview) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.events = POLLOUT
        self._left = memoryview(data)
        if not self._left:
            self.close()

    def ready(self) -> None:
        try:
            self._left = self._left[os.write(self.fd, self._left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = self._left[:0]  # it does not want to read on
        if not self._left:
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class Typed:
    """Our own standard input, passed on to ``target`` (a pipe, closed at the end, or a terminal's master).

    ``full`` holds what the target did not take yet; nothing more is read meanwhile.
    """

    __slots__ = ("_pipe", "_target", "events", "fd", "full")

    def __init__(self, target: int, *, pipe: bool, fd: int = 0) -> None:
        self.fd = fd
        self.events = POLLIN
        self.full = b""
        self._target = target
        self._pipe = pipe
        os.set_blocking(target, False)

    def ready(self) -> None:
        data = _read(self.fd)
        if data is None:
            return
        if not data:
            self.close()
            return
        self.full += data
        self.flush()

    def flush(self) -> None:
        """Hand on what is held; called again when the target can take more."""
        try:
            while self.full:
                self.full = self.full[os.write(self._target, self.full) :]
        except BlockingIOError:
            pass
        except OSError:
            self.full = b""
            self.close()
            return
        self.events = 0 if self.full else POLLIN

    def close(self) -> None:
        """Stop reading; our own descriptor stays open, the pipe's other end learns of it."""
        if self.fd >= 0:
            self.fd = -1
            if self._pipe:
                os.close(self._target)

    @property
    def target(self) -> int:
        """The descriptor to watch for room while ``full`` is not empty."""
        return self._target


def _read(fd: int) -> bytes | None:
    """What is there; b"" at the end, None when there is nothing now."""
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        if error.errno == EAGAIN:
            return None
        if error.errno in (EIO, EPIPE):  # the last process let the terminal go
            return b""
        raise


def _wait_writable(fd: int) -> None:
    poller = poll()
    poller.register(fd, POLLOUT)
    poller.poll()


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait_writable(fd)
        except OSError:
            return


class Session:
    """One process from its launch to its end.

    ``process`` is what ``runtime.create.begin`` or ``runtime.exec.begin_exec`` returned; ``started`` is called once,
    when the program runs. ``exit_code`` is set at the end. After an error from ``handle`` call ``abort``.
    """

    __slots__ = ("_started", "control", "exit_code", "process", "pumps", "started_at")

    def __init__(self, process: Process, pumps: Sequence[Pump], started: Callable[[], None]) -> None:
        self.process = process
        self.pumps = list(pumps)
        self.exit_code: int | None = None
        self.started_at = 0.0
        self.control = process.launch.fileno() if process.launch else -1
        self._started = started

    @property
    def done(self) -> bool:
        """Whether the process has ended and all it wrote was read."""
        return self.exit_code is not None and not self.pumps

    @property
    def launching(self) -> bool:
        """Whether the program does not run yet."""
        return self.control >= 0

    def wanted(self) -> dict[int, int]:
        """Descriptor -> poll events to wait for."""
        want = {pump.fd: pump.events for pump in self.pumps if pump.events}
        for pump in self.pumps:
            if isinstance(pump, Typed) and pump.full:
                want[pump.target] = want.get(pump.target, 0) | POLLOUT
        if self.control >= 0:
            want[self.control] = POLLIN
        elif self.exit_code is None:
            want[self.process.pidfd] = POLLIN
        return want

    def handle(self, ready: dict[int, int]) -> None:
        """Do what can be done with the descriptors that are ready. Raises what went wrong while starting."""
        if self.control >= 0:
            launch = self.process.launch
            if self.control in ready and launch is not None and launch.step():
                self.control = -1
                self.started_at = monotonic()
                self._started()
        for pump in self.pumps:
            if pump.fd in ready and ready[pump.fd] & (pump.events | POLLHUP | POLLERR):
                pump.ready()
            if isinstance(pump, Typed) and pump.full and ready.get(pump.target, 0) & (POLLOUT | POLLERR | POLLHUP):
                pump.flush()
        if self.control < 0 and self.exit_code is None and self.process.pidfd in ready:
            self._ended()
        self.pumps = [pump for pump in self.pumps if pump.fd >= 0]

    def _ended(self) -> None:
        """The process is gone. What it wrote is in the pipes; whoever else holds them open is not waited for."""
        self.exit_code = self.process.wait()
        for pump in self.pumps:
            if isinstance(pump, (Capture, Relay)):
                while pump.fd >= 0 and _readable(pump.fd):
                    pump.ready()
            pump.close()

    def signal(self, number: int) -> bool:
        """Send a signal to the process; False when there is none (any more)."""
        if self.exit_code is not None or self.process.pidfd < 0:
            return False
        return signal_pid(self.process.pidfd, number)

    def close(self) -> None:
        """Close the pipes."""
        for pump in self.pumps:
            pump.close()
        self.pumps = []


def _readable(fd: int) -> bool:
    poller = poll()
    poller.register(fd, POLLIN)
    return bool(poller.poll(0))


def run_to_end(
    session: Session, *, deadline: float | None = None, extra: dict[int, Callable[[], None]] | None = None
) -> bool:
    """Drive a session with poll(2) until it is done; False when ``deadline`` (time.monotonic()) passed first.

    ``extra`` are further descriptors to watch for reading and what to call. Raises what ``Session.handle`` raises.
    """
    poller = poll()
    watched: dict[int, int] = {}
    for fd in extra or ():
        poller.register(fd, POLLIN)
    while not session.done:
        want = session.wanted()
        if want != watched:
            for fd in watched:
                if fd not in want:
                    _forget(poller, fd)
            for fd, events in want.items():
                if watched.get(fd) != events:
                    poller.register(fd, events)
            watched = want
        left = None if deadline is None else max(deadline - monotonic(), 0.0)
        ready = dict(poller.poll(None if left is None else left * 1000))
        if not ready:
            if left == 0.0:
                return False
            continue
        if extra:
            for fd, function in extra.items():
                if fd in ready:
                    function()
        session.handle(ready)
    return True


def _forget(poller: poll, fd: int) -> None:
    try:
        poller.unregister(fd)
    except KeyError:
        pass


def pipe() -> tuple[int, int]:
    """A pipe (reader, writer), closed on exec. Raises KnarrError when there are no descriptors left."""
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise KnarrError(f"cannot make a pipe: {os.strerror(error.errno or 0).lower()}") from None

"""A process in a guest and what stands for it on the host: its streams, its control socket, its terminal (cold)."""

from __future__ import annotations

import os
from errno import EAGAIN, EINTR
from fcntl import ioctl
from select import POLLERR, POLLHUP, POLLIN, POLLOUT
from struct import unpack, unpack_from
from time import monotonic

from knarr.isolation import frames
from knarr.runtime.launch import SYNC, SYNC_READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from knarr.isolation.guest import Guest, Work

    Watched = tuple[int, int, Callable[[int], None]]

_PACKET = 256 << 10
_SIGWINCH, _TIOCGWINSZ = 28, 0x5413
_PIPE = 4096
"""PIPE_BUF: what poll(2) promises to find room when it calls a pipe writable. The descriptors may be shared with others
and are left blocking as they are."""


class Relay:
    """Copies between one process's frames and descriptors of the host, which become its own.

    ``streams``: stdin, stdout and stderr; with a terminal the first two are its other end and stderr is -1.
    """

    __slots__ = (
        *("_closed", "_control", "_ending", "_going", "_guest", "_ready", "_streams", "_waiting"),
        *("ended", "terminal", "work"),
    )

    def __init__(self, guest: Guest, streams: tuple[int, int, int], control: socket | None, *, terminal: bool) -> None:
        self._guest = guest
        self._streams = list(streams)
        self._control = control
        self._ending = False
        self._ready = False  # its init has said so,
        self._going = False  # and was let go
        self._closed: set[int] = set()
        self._waiting = {frames.STDOUT: bytearray(), frames.STDERR: bytearray()}
        self.ended = 0.0  # when its process did, by time.monotonic()
        self.terminal = terminal
        self.work: Work

    def attend(self, work: Work) -> None:
        """Take on the process."""
        self.work = work
        work.on_data = self._output
        work.on_control = self.tell
        work.on_control_end = self._control_ended
        work.on_end = self._note_end

    def connect(self, control: socket) -> None:
        """Go on with another control socket: the process is started."""
        self._close_control()
        self._control = control
        self._guest.connect(self.work)

    # -- the control socket --------------------------------------------------------------------------------------------

    def tell(self, packet: bytes) -> None:
        """Pass on a packet of its control socket."""
        kind, _, value, _ = unpack_from("<IIiI", packet)
        self._ready |= (kind, value) == (SYNC, SYNC_READY)
        if self._control is not None:
            try:
                self._control.send(packet)
            except OSError:
                self._close_control()

    def lost(self) -> None:
        """Its guest is gone. Who let its init go is told that it runs: this may be the program's own doing."""
        if self._going:
            self._close_control()

    def _control_ended(self) -> None:
        self._close_control()

    def _note_end(self) -> None:
        if self.work.status is not None and not self.ended:
            self.ended = monotonic()

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _from_host(self, _: int) -> None:
        if self._control is None:
            return
        try:
            packet = self._control.recv(_PACKET)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return
            packet = b""
        if packet:
            self._going |= self._ready
            self._guest.control(self.work, packet)
        else:  # whoever made it is gone before it was set up
            self._close_control()
            self._guest.send(frames.SIGNAL, self.work.id, 9)

    # -- streams -------------------------------------------------------------------------------------------------------

    def _output(self, stream: int, data: bytes) -> None:
        if stream not in self._closed:
            self._waiting[stream] += data

    def _write(self, stream: int) -> Callable[[int], None]:
        def write(_: int) -> None:
            waiting = self._waiting[stream]
            try:
                count = os.write(self._streams[stream], memoryview(waiting)[:_PIPE])
            except OSError as error:
                if error.errno in (EAGAIN, EINTR):
                    return
                self._closed.add(stream)
                self._guest.refuse(self.work, stream)
                waiting.clear()
                return
            del waiting[:count]
            self._guest.took(self.work, stream, count)

        return write

    def _read(self, events: int) -> None:
        room = self.work.window
        try:
            data = os.read(self._streams[0], room) if events & (POLLIN | POLLHUP | POLLERR) else b""
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return
            data = b""  # EIO: the master of the terminal is closed
        if data:
            self._guest.input(self.work, data)
        else:
            self._ending = True
            if self.terminal:
                self._guest.refuse(self.work, frames.STDOUT)  # hangs up
            else:
                self._guest.end_input(self.work)

    def watch(self) -> list[Watched]:
        """What to poll now, and who handles it."""
        found: list[Watched] = []
        if self._control is not None:
            found.append((self._control.fileno(), POLLIN, self._from_host))
        work = self.work
        if work.reads and work.window > 0 and not self._ending and work.spawned:
            found.append((self._streams[0], POLLIN, self._read))
        for stream, waiting in self._waiting.items():
            if waiting:
                found.append((self._streams[stream], POLLOUT, self._write(stream)))
        return found

    def signal(self, number: int) -> None:
        """What stands for the process got a signal; SIGWINCH says that its terminal has another size."""
        if number != _SIGWINCH:
            self._guest.send(frames.SIGNAL, self.work.id, number)
        elif self.terminal:
            rows, columns, _, _ = unpack("HHHH", ioctl(self._streams[0], _TIOCGWINSZ, bytes(8)))
            self._guest.send(frames.RESIZE, self.work.id, rows << 16 | columns)

    def fit_terminal(self) -> None:
        """Its terminal may have got its size before we could hear of it."""
        self.signal(_SIGWINCH)

    @property
    def flushed(self) -> bool:
        """Whether all output there was has been passed on."""
        return not any(self._waiting.values())

    @property
    def code(self) -> int:
        """Its exit code, 128 + signal when a signal ended it."""
        status = self.work.status or 0
        return 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF

    def close(self) -> None:
        """Close its descriptors but our own stdio; who still writes in the guest gets SIGPIPE."""
        self._close_control()
        for stream in self.work.open:
            self._guest.refuse(self.work, stream)
        self._closed |= set(self._waiting)
        for fd in set(self._streams):
            if fd > 2:
                os.close(fd)

"""The host's end of a guest's channel: asks, answers, and streams, with nothing believed that the guest says (cold).

One object, no threads, no blocking: whoever owns it polls ``fileno()``, calls ``receive()`` and ``flush()``. The guest
may send anything at any time; what does not answer a question, overruns a window, speaks of a process that is not
there or comes after its end, ends it: SafetyViolation.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EINTR
from select import POLLIN, POLLOUT, poll
from time import monotonic

from knarr.base.errors import InitError, Interrupted, SafetyViolation
from knarr.isolation import frames
from knarr.isolation.frames import Decoder, Frame, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_READ = 256 << 10


class Work:
    """A process in the guest as the host knows it. The owner sets what it wants to hear of.

    ``window``: how many bytes of input may be sent; ``open``: streams of the guest's that have not ended.
    """

    __slots__ = (
        *("credit", "id", "on_control", "on_control_end", "on_data", "on_end", "on_window", "open", "status"),
        *("controlled", "reads", "spawned", "stdin", "terminal", "window"),
    )

    def __init__(self, id: int, *, terminal: bool, stdin: bool) -> None:
        self.id = id
        self.terminal = terminal
        self.stdin = stdin
        self.window = frames.WINDOW_BYTES if stdin or terminal else 0
        self.reads = stdin or terminal  # it may still be sent input
        self.open = {frames.STDOUT} if terminal else {frames.STDOUT, frames.STDERR}
        self.credit = dict.fromkeys(self.open, frames.WINDOW_BYTES)  # what it may still send
        self.status: int | None = None  # as wait(2) gives it
        self.controlled = True  # its control socket is open
        self.spawned = False
        self.on_control: Callable[[bytes], None] = _nothing
        self.on_control_end: Callable[[], None] = _nothing
        self.on_data: Callable[[int, bytes], None] = _nothing
        self.on_window: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing  # status known, or a stream ended

    @property
    def over(self) -> bool:
        """Whether nothing more can come of it."""
        return self.status is not None and not self.open and not self.controlled


def _nothing(*_: object) -> None:
    pass


class Guest:
    """A guest by its channel, a non-blocking descriptor that stays the caller's; the rest as in Booting."""

    __slots__ = (
        *("_at", "_decoder", "_fd", "_next", "_out", "_ring", "_under_way", "_waiting", "_window", "_works"),
        *("bound", "controllers", "machine", "release"),
    )

    def __init__(self, fd: int, window: int = 0, ring: int = -1) -> None:
        self._fd = fd
        self._window = window
        self._ring = ring
        self._at = 0  # where in the ring the next piece goes
        self._under_way = 0
        self._decoder = Decoder()
        self._out = bytearray()
        self._next = 1
        self._waiting: dict[int, Callable[[int, bytes], None]] = {}
        self._works: dict[int, Work] = {}
        self.bound = -1  # a connection without whose other end nothing is waited for
        self.release = ""  # of its kernel; empty until it said hello
        self.machine = ""
        self.controllers: tuple[str, ...] = ()

    def fileno(self) -> int:
        """The channel."""
        return self._fd

    def events(self) -> int:
        """What to poll it for."""
        return POLLIN | POLLOUT if self._out and self._room() else POLLIN

    def _room(self) -> int:
        """How many bytes may be sent now."""
        return self._window - self._under_way if self._window else _READ

    # -- asking --------------------------------------------------------------------------------------------------------

    def send(self, kind: int, id: int = 0, value: int = 0, payload: bytes = b"") -> None:
        """Queue a frame and send what the channel takes."""
        self._out += encode(kind, id, value, payload)
        self.flush()

    def request(self, kind: int, value: int, payload: bytes, done: Callable[[int, bytes], None]) -> None:
        """Ask; ``done(errno, bytes)`` is called with the answer."""
        id = self._number()
        self._waiting[id] = done
        self.send(kind, id, value, payload)

    def call(self, kind: int, value: int, payload: bytes, deadline: float) -> tuple[int, bytes]:
        """Ask and wait for the answer until ``deadline`` (time.monotonic()). Raises InitError, SafetyViolation."""
        answers: list[tuple[int, bytes]] = []
        self.request(kind, value, payload, lambda *answer: answers.append(answer))
        self.wait(lambda: bool(answers), deadline)
        return answers[0]

    def wait(self, reached: Callable[[], bool], deadline: float) -> None:
        """Go on until ``reached()``. Raises InitError when that takes too long or the guest is gone, Interrupted."""
        poller = poll()
        if self.bound >= 0:
            poller.register(self.bound, 0)  # its end, and nothing else
        while not reached():
            poller.register(self._fd, self.events())
            left = deadline - monotonic()
            ready = poller.poll(left * 1000) if left > 0 else []
            if not ready:
                raise InitError("", "wait for the guest", 0, why="it does not answer")
            if any(fd == self.bound for fd, _ in ready):
                raise Interrupted("nobody waits for the guest any more")
            self.flush()
            self.receive()

    def plan(self, plan: bytes, *, terminal: bool, stdin: bool) -> Work:
        """Give the guest a plan, for ``spawn``."""
        work = Work(self._number(), terminal=terminal, stdin=stdin)
        self._works[work.id] = work
        for at in range(0, len(plan), frames.PACKET_LIMIT):
            self._out += encode(frames.PLAN, work.id, 0, plan[at : at + frames.PACKET_LIMIT])
        return work

    def spawn(self, work: Work, slots: bytes, done: Callable[[int], None]) -> None:
        """Have the guest carry out a plan it was given; ``done(errno)``: 0 when its first stage was made."""

        def answered(error: int, _: bytes) -> None:
            work.spawned = error == 0
            if error:
                del self._works[work.id]
            done(error)

        self._waiting[work.id] = answered
        flags = (frames.SPAWN_TERMINAL if work.terminal else 0) | (frames.SPAWN_STDIN if work.stdin else 0)
        self.send(frames.SPAWN, work.id, flags, slots)

    def control(self, work: Work, packet: bytes) -> None:
        """Pass a packet on to its control socket. One that is too long for any init is dropped."""
        if len(packet) <= frames.PACKET_LIMIT:
            self.send(frames.CONTROL, work.id, 0, packet)

    def input(self, work: Work, data: bytes) -> None:
        """Send input; not more than ``work.window``."""
        work.window -= len(data)
        self.send(frames.DATA, work.id, frames.STDIN, data)

    def end_input(self, work: Work) -> None:
        """No more input comes."""
        if work.reads:
            work.reads = False
            self.send(frames.CLOSE, work.id, frames.STDIN)

    def took(self, work: Work, stream: int, count: int) -> None:
        """So many bytes of an output were passed on: as many more may come."""
        if stream in work.open:
            work.credit[stream] += count
            self.send(frames.WINDOW, work.id, count << 2 | stream)

    def refuse(self, work: Work, stream: int) -> None:
        """Nobody reads this output any more: its writers get SIGPIPE."""
        if stream in work.open:
            self.send(frames.CLOSE, work.id, stream)

    def _number(self) -> int:
        id = self._next
        self._next += 1
        return id

    # -- hearing -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what the channel takes now. Raises InitError when the guest is gone."""
        while self._out and (room := self._room()):
            try:
                if self._ring < 0:
                    sent = taken = os.write(self._fd, self._out[:room])
                else:
                    sent, taken = self._put(room)
            except OSError as error:
                if error.errno in (EAGAIN, EINTR):
                    return
                raise _gone() from None
            del self._out[:sent]
            self._under_way += taken

    def _put(self, room: int) -> tuple[int, int]:
        """Send by the ring: bytes of the piece, and of the ring that it takes. Raises OSError."""
        piece = self._out[: min(room, frames.RING_PIECE, frames.RING_BYTES - self._at)]
        try:
            os.pwrite(self._ring, piece, self._at)
        except OSError as error:
            raise InitError("", "write what is for the guest", error.errno or 0) from None
        os.write(self._fd, len(piece).to_bytes(4, "little"))  # on a socket all or nothing
        taken = -(-len(piece) // frames.SECTOR) * frames.SECTOR
        self._at = (self._at + taken) % frames.RING_BYTES
        return len(piece), taken

    def receive(self) -> None:
        """Handle what has come. Raises InitError when the guest is gone, SafetyViolation."""
        try:
            data = os.read(self._fd, _READ)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return
            raise _gone() from None
        if not data:
            raise _gone()
        for frame in self._decoder.feed(data):
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind == frames.HELLO:
            self._hello(frame)
        elif not self.release:
            raise _broken(frame, "it has not said hello")
        elif frame.kind == frames.TOOK:
            if frame.value > self._under_way:
                raise _broken(frame, "it is more than was sent")
            self._under_way -= frame.value
            self.flush()
        elif frame.kind == frames.REPLY:
            done = self._waiting.pop(frame.id, None)
            if done is None:
                raise _broken(frame, "it was not asked")
            done(frame.value & 0xFFF, frame.payload)
        else:
            work = self._works.get(frame.id)
            if work is None or not work.spawned:
                raise _broken(frame, "there is no such process")
            self._of_work(work, frame)
            if work.over:
                del self._works[work.id]

    def _hello(self, frame: Frame) -> None:
        words = frame.payload.decode("ascii", "replace").split("\0")
        if self.release or len(words) < 3 or not words[0]:
            raise _broken(frame, "it is no greeting")
        if frame.value != frames.PROTOCOL:
            raise _broken(frame, f"it speaks version {frame.value} of the protocol, not {frames.PROTOCOL}")
        self.release, self.machine, self.controllers = words[0], words[1], tuple(words[2].split())

    def _of_work(self, work: Work, frame: Frame) -> None:
        if frame.kind == frames.DATA:
            if work.credit.get(frame.value, 0) < len(frame.payload) or frame.value not in work.open:
                raise _broken(frame, "it is more than was asked for")
            work.credit[frame.value] -= len(frame.payload)
            work.on_data(frame.value, frame.payload)
        elif frame.kind == frames.CLOSE:
            if frame.value == frames.STDIN:
                work.reads = False
                work.on_window()
            elif frame.value in work.open:
                work.open.remove(frame.value)
                work.on_end()
            else:
                raise _broken(frame, "it has ended before")
        elif frame.kind == frames.WINDOW:
            if frame.value & 3 or work.window + (frame.value >> 2) > frames.WINDOW_BYTES:
                raise _broken(frame, "it is more than was sent")
            work.window += frame.value >> 2
            work.on_window()
        elif frame.kind == frames.CONTROL:
            if not work.controlled or len(frame.payload) < 16:
                raise _broken(frame, "its control socket is closed")
            work.on_control(frame.payload)
        elif frame.kind == frames.CONTROL_END:
            work.controlled = False
            work.on_control_end()
        else:
            if work.status is not None:
                raise _broken(frame, "it has ended before")
            work.status = frame.value & 0xFFFF
            work.on_end()

    def connect(self, work: Work) -> None:
        """Begin the second half of a process that waits for its start: its control socket is open again."""
        work.controlled = True
        self.send(frames.CONNECT, work.id)


def _gone() -> InitError:
    return InitError("", "talk to the guest", 0, why="it is gone")


def _broken(frame: Frame, why: str) -> SafetyViolation:
    return SafetyViolation("a frame of the guest, of kind", f"{frame.kind} for {frame.id}", why)

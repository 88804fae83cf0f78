"""The process that stands on the host for a container in a guest (cold).

It boots the guest, has the container made in it, copies its streams, passes signals on and ends with its exit code;
when it is killed, the guest ends too. All that is known about the container was decided by whoever created it: this
program gets a list of requests and a plan, and knows neither config.json nor paths of the state.

Descriptors: 0, 1, 2 the container's; 3 the control socket of its creator; 4 and 5 memfds with the set-up (JSON) and the
plan; then, as the set-up says, a listening socket for further requests, the one of ``start``, that of the console. A
monitor that waited with a guest (waiting.py) gets them later.
"""

from __future__ import annotations

import _signal as signal  # the module of that name makes enums of it: 4 ms
import os
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket
from errno import EAGAIN, EINTR
from fcntl import ioctl
from select import POLLIN, poll
from struct import pack, unpack, unpack_from
from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import InitError, Interrupted, KnarrError, SafetyViolation
from knarr.isolation import frames
from knarr.isolation.guest import Guest
from knarr.isolation.kinds import UPPER, Booting, Settings, Share, boot
from knarr.isolation.relay import Relay
from knarr.isolation.signals import catch_signals
from knarr.kernel.passed import descriptors
from knarr.kernel.process import ended, reap, signal_pid
from knarr.runtime.launch import SYNC, SYNC_READY
from knarr.runtime.monitored import FAILED, OUT_OF_MEMORY, PAUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.isolation.network import Joining
    from knarr.isolation.relay import Watched
    from knarr.isolation.watchers import Watchers

CONTROL, SETUP, PLAN, FIRST_OF_MORE = 3, 4, 5, 6
STAND_EXIT = 2  # stand.c
GUEST_LOST = 137
"""Exit code when the guest is gone: as if all its processes had been killed."""
REASON = "reason"
"""In the container's directory: a sentence, when the guest ended before the container did."""
_REASON_BYTES = 4096
_DRAIN = 5.0
"""Seconds that output may still come from the guest after the container's first process ended."""
_LINGER = 0.3
"""Seconds that output of a further process may come after its end, when others still hold its streams."""
_END = 3.0
"""Seconds the guest may take to write out its files and end."""
_HEARS = 5.0
"""Seconds the guest may take to tell the end of a container that was killed."""
_CONSOLE = 8 << 10
LIMIT = 32 << 20
_MESSAGE = 256 << 10
_TIOCSCTTY = 0x540E


def main() -> None:
    """Be the monitor; never returns."""
    setup = fastjson.loads(content(SETUP), "set-up", limit=LIMIT)
    more = iter(range(FIRST_OF_MORE, FIRST_OF_MORE + 3))
    ends = Ends(socket(fileno=CONTROL), PLAN, socket(fileno=next(more)))
    ends.start = socket(fileno=next(more)) if setup["start"] else None
    ends.console = socket(fileno=next(more)) if setup["console"] else None
    for each in (ends.control, ends.listener, ends.start, ends.console):
        if each is not None:
            os.set_inheritable(each.fileno(), False)
    os._exit(stay(setup, ends, _booted))


def _booted(settings: Settings) -> tuple[Booting, Guest]:
    """A guest that boots, and its channel."""
    booting = boot(settings)
    return booting, Guest(booting.channel, booting.window, booting.ring)


def stay(setup: dict[str, Any], ends: Ends, begin: Callable[[Settings], tuple[Booting, Guest]]) -> int:
    """Be the monitor of a container until it has ended; its exit code."""
    try:
        return Monitor(setup, ends, begin).run()
    except Interrupted:
        pass  # as if this process had been killed
    except KnarrError as error:
        _report(ends.control, error)
        _leave_reason(setup["place"], str(error))
    except BaseException as error:  # noqa: BLE001  # whatever it is, the creator shall hear of it
        _report(ends.control, InitError("", "stand for the container", 0, why=repr(error)))
        _leave_reason(setup["place"], f"a mistake in knarr: {error!r}")
    return GUEST_LOST


def _leave_reason(place: str, text: str) -> None:
    """Beside the container's record: why it ended without its program's doing."""
    try:
        with open(f"{place}/{REASON}", "a", encoding="utf-8", errors="replace") as file:
            file.write(("; " if file.tell() else "") + text[:_REASON_BYTES])
    except OSError:
        pass  # it is being removed


def _report(control: socket, error: KnarrError) -> None:
    """Tell the creator, if it is still there."""
    facts = {
        "pointer": getattr(error, "pointer", ""),
        "doing": getattr(error, "doing", ""),
        "why": getattr(error, "why", "") or ("" if getattr(error, "number", 0) else error.sentence()),
        "hint": error.hint,
    }
    detail = fastjson.dumps(facts)[:8000]
    try:
        control.send(pack("<IIiI", 3, FAILED, getattr(error, "number", 0) or 0, len(detail)) + detail)
    except OSError:
        pass


def tell_code(stand: socket, code: int) -> None:
    """The exit code, to what stands for the container."""
    try:
        stand.send(pack("<II", STAND_EXIT, code))
    except OSError:
        pass  # it was killed, or was told before


def content(fd: int) -> bytes:
    """All of a memfd, which is closed."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    os.close(fd)
    return data


class Ends:
    """What a monitor is given of the outside: its creator's socket, the plan (a memfd), where requests come in.

    ``streams`` are the container's; ``root`` its root, -1 where the monitor sees it itself. ``stand`` is the connection
    to what stands for its first process, which knarr-init does (stand.c), None where the monitor itself does.
    """

    __slots__ = ("console", "control", "listener", "plan", "root", "stand", "start", "streams")

    def __init__(self, control: socket, plan: int, listener: socket) -> None:
        self.control = control
        self.plan = plan
        self.listener = listener
        self.start: socket | None = None
        self.console: socket | None = None
        self.stand: socket | None = None
        self.streams: tuple[int, int, int] = (0, 1, 2)
        self.root = -1


class Monitor:
    """One guest with its container; ``begin`` boots it or has it."""

    def __init__(self, setup: dict[str, Any], ends: Ends, begin: Callable[[Settings], tuple[Booting, Guest]]) -> None:
        self._setup = setup
        self._ends = ends
        self._begin = begin
        self._listener = ends.listener
        self._start = ends.start
        self._listener.setblocking(False)
        self._first: Relay
        self._guests_of: dict[socket, Relay | None] = {}
        self._stands: set[socket] = set()  # of those, the ones of what stands for a further process
        self._lingering: list[Relay] = []  # nobody waits for their process any more
        self._said = bytearray()  # the last its kernel said
        self._booting: Booting
        self._guest: Guest
        self._network: Joining
        self._held = b""  # a packet of the container's init, which waits for cgroups and network
        self._checks = False  # for the network
        self._watchers: Watchers
        self._killed = 0.0  # by when it must have ended, once it was killed
        self._signals = catch_signals() if ends.stand is None else -1

    def run(self) -> int:
        """Boot, set up, stay until the container ended; its exit code. Raises KnarrError."""
        settings = self._setup["settings"]
        for name in ("shares", "drivers"):
            settings[name] = tuple(Share(*share) for share in settings[name])
        self._booting, self._guest = self._begin(Settings(**settings))
        try:
            from knarr.isolation.network import Joining  # loaded while the guest boots
            from knarr.isolation.watchers import Watchers

            self._network = Joining(self._guest, self._booting.nics, self._setup)
            self._watchers = Watchers(self._guest, self._setup["group"])
            try:
                self._boot()
                self._spawn(self._first, self._setup["slots"])
                if self._booting.joined is not None:
                    self._booting.joined()
                self._attend()
            except KnarrError as error:
                error.hint = error.hint or self._last_words()
                raise
            self._tell_of_memory()
            self._keep_writes()
            if self._setup["flush"] or self._setup["unmount"]:
                self._power_off()  # without, there is nothing it could have to write out
            signal_pid(self._booting.pidfd, signal.SIGKILL)
            self._tell_code()
            return self._first.code
        finally:
            signal_pid(self._booting.pidfd, signal.SIGKILL)
            ended(self._booting.pidfd, 10.0)
            reap(self._booting.pidfd, wait=False)

    def _tell_code(self) -> None:
        """To what stands before us: who waits for that may go on while the guest's memory is given back."""
        if self._ends.stand is not None:
            tell_code(self._ends.stand, self._first.code)

    def _last_words(self) -> str:
        self._hear()
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return "its kernel said: " + " / ".join(line.strip() for line in lines[-6:]) if lines else ""

    def _hear(self, _: int = 0) -> None:
        """Keep the end of what the guest's kernel says."""
        try:
            while self._booting.console >= 0 and (data := os.read(self._booting.console, _CONSOLE)):
                self._said += data
                del self._said[:-_CONSOLE]
        except OSError:
            pass  # nothing more now

    # -- making --------------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        self._guest.wait(lambda: bool(self._guest.release), monotonic() + self._booting.patience)
        lacking = [name for name in self._setup["controllers"] if name not in self._guest.controllers]
        if lacking:
            raise InitError("/linux/resources", "limit in the guest", 0, why=f"its kernel lacks {', '.join(lacking)}")
        failed: list[InitError] = []
        left = 0

        def answered(step: dict[str, Any]) -> Any:
            def check(error: int, _: bytes) -> None:
                nonlocal left
                left -= 1
                if error and error not in step["fine"]:
                    failed.append(InitError(step["pointer"], step["doing"], error))

            return check

        def ask(steps: list[dict[str, Any]]) -> None:
            nonlocal left
            for step in steps:
                left += 1
                self._guest.request(step["kind"], step["value"], bytes.fromhex(step["payload"]), answered(step))

        # All at once: the guest answers in order, and a step after one that failed does no harm.
        ask(self._setup["before_shares"])
        self._plan_first()
        if self._booting.shown is not None:
            self._booting.shown()
        ask(self._setup["steps"])
        self._guest.wait(lambda: left == 0, monotonic() + self._booting.patience)
        if failed:
            raise failed[0]

    def _plan_first(self) -> None:
        """Give the guest the container's plan."""
        setup = self._setup
        streams = self._ends.streams
        if self._ends.console is not None:
            terminal = make_terminal(self._ends.console, setup["size"])
            ioctl(terminal, _TIOCSCTTY, 0)
            self._ends.console.close()
            streams = (terminal, terminal, -1)
            _leave_stdio()
        self._first = Relay(self._guest, streams, self._ends.control, terminal=setup["terminal"])
        self._give(self._first, content(self._ends.plan), stdin=_has_input(streams[0]))

    def _of_first(self, packet: bytes) -> None:
        self._checks = self._network.hear(packet)
        kind, _, value, _ = unpack_from("<IIiI", packet)
        if self._checks or (kind == SYNC and value == SYNC_READY):
            self._held = packet  # it is dealt with where the guest can be asked something
        else:
            self._first.tell(packet)

    def _let_go(self) -> None:
        """All is ready but what has taken its time meanwhile; nothing foreign has run yet."""
        if self._booting.settled is not None:
            self._booting.settled()
        if self._checks:
            self._network.check()
        held, self._held = self._held, b""
        self._first.tell(held)

    def _give(self, relay: Relay, plan: bytes, *, stdin: bool) -> None:
        relay.attend(self._guest.plan(plan, terminal=relay.terminal, stdin=stdin))
        if relay is self._first:
            relay.work.on_control = self._of_first

    def _spawn(self, relay: Relay, slots: list[list[Any]]) -> None:
        errors: list[int] = []
        encoded = b"".join(frames.slot(kind, number, path) for kind, number, path in slots)
        self._guest.spawn(relay.work, encoded, errors.append)
        self._guest.wait(lambda: bool(errors), monotonic() + 10.0)
        if errors[0]:
            raise InitError("", "start a process in the guest", errors[0])

    # -- staying -------------------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        try:
            self._loop()
        except KnarrError:
            self._first.lost()
            raise

    def _loop(self) -> None:
        first, drained = self._first, None
        while True:
            if self._held:
                self._let_go()
            if first.work.status is not None:
                drained = drained or monotonic() + _DRAIN
                if first.flushed and (not first.work.open or monotonic() > drained):
                    return
            elif self._killed and monotonic() > self._killed:
                raise InitError("", "kill the container", 0, why="its guest does not answer")
            watched = self._watched()
            poller = poll()  # anew each time: they are few, and change all the time
            events: dict[int, int] = {}
            for fd, wanted, _ in watched:
                events[fd] = events.get(fd, 0) | wanted
            for fd, wanted in events.items():
                poller.register(fd, wanted)
            waits = (
                drained is not None
                or bool(self._killed)
                or any(each and each.work.status is not None for each in self._guests_of.values())
            )
            ready = dict(poller.poll(100 if waits else self._watchers.wait()))
            self._watchers.look()
            for fd, wanted, handle in watched:
                got = ready.get(fd, 0)
                if got & (wanted | 0x18):  # POLLERR, POLLHUP
                    handle(got)

    def _watched(self) -> list[Watched]:
        watched: list[Watched] = [
            (self._guest.fileno(), self._guest.events(), self._frames),
            (self._listener.fileno(), POLLIN, self._accept),
        ]
        if self._ends.stand is None:
            watched.append((self._signals, POLLIN, self._signalled))
        else:
            watched.append((self._ends.stand.fileno(), POLLIN, self._told))
        if self._booting.console >= 0 and not ended(self._booting.pidfd, 0):
            watched.append((self._booting.console, POLLIN, self._hear))
        if self._start is not None:
            watched.append((self._start.fileno(), POLLIN, self._started))
        watched += self._first.watch()
        for relay in list(self._lingering):
            watched += relay.watch()
            if relay.flushed and (not relay.work.open or relay.work.status is None):
                relay.close()
                self._lingering.remove(relay)
        for connection, standing in list(self._guests_of.items()):
            if standing is not None:
                watched += standing.watch()
                self._tell_end(connection, standing)
        watched += [(connection.fileno(), POLLIN, self._asked_by(connection)) for connection in self._guests_of]
        return watched

    def _frames(self, _: int) -> None:
        self._guest.flush()
        self._guest.receive()

    def _signalled(self, _: int) -> None:
        for number in os.read(self._signals, 512):
            self._first.signal(number)

    def _told(self, _: int) -> None:
        """What stands for the container got a signal, or was killed."""
        data = self._ends.stand.recv(64) if self._ends.stand is not None else b""
        if len(data) != 8:
            raise Interrupted("what stands for the container was killed")
        self._first.signal(unpack("<II", data)[1])

    def _started(self, _: int) -> None:
        """``start`` has connected: from here on it hears and says what the creator did."""
        if self._start is not None:
            connection = _accept(self._start)
            if connection is not None:
                self._start.close()
                self._start = None
                try:
                    self._network.join()
                except KnarrError as error:
                    connection.settimeout(_END)
                    _heard(connection)
                    _report(connection, error)
                    raise
                self._first.connect(connection)

    # -- further requests ----------------------------------------------------------------------------------------------

    def _accept(self, _: int) -> None:
        connection = _accept(self._listener)
        if connection is not None:
            connection.setblocking(False)
            self._guests_of[connection] = None

    def _asked_by(self, connection: socket) -> Callable[[int], None]:
        return lambda _: self._asked(connection)

    def _asked(self, connection: socket) -> None:
        try:
            data, rights, _, _ = connection.recvmsg(_MESSAGE, CMSG_SPACE(8 * 4), MSG_CMSG_CLOEXEC)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return
            data, rights = b"", []
        given = descriptors(rights)
        relay = self._guests_of[connection]
        if not data:
            self._forget(connection)
        elif connection not in self._stands:
            self._do(connection, fastjson.loads(data, "a request", limit=_MESSAGE), given)
        elif relay is not None and len(data) == 8:  # what stands for a further process got a signal
            relay.signal(unpack("<II", data)[1])

    def _do(self, connection: socket, message: dict[str, Any], given: list[int]) -> None:
        do = message["do"]
        if do == "spawn" and len(given) == 6:
            self._exec(message, given)
        elif do == "signal" and "all" not in message:
            self._guest.send(frames.SIGNAL, self._first.work.id, message["number"])
        elif do == "end":
            self._kill(connection)
        elif do == "watch":
            self._watchers.add(connection)
        else:
            self._answer(connection, message)

    def _kill(self, connection: socket) -> None:
        """End the container; a guest that does not hear of it within some seconds is ended with it."""
        self._guest.send(frames.SIGNAL, self._first.work.id, signal.SIGKILL)
        self._killed = self._killed or monotonic() + _HEARS
        try:
            connection.send(fastjson.dumps({}))
        except OSError:
            pass  # it does not wait any more

    def _answer(self, connection: socket, message: dict[str, Any]) -> None:
        """A question about the container. That the guest does not answer it is no reason to end."""
        from knarr.isolation.answers import answer  # only when somebody asks

        try:
            reply = answer(self._guest, self._first.work.id, self._setup["group"], message)
            if message["do"] in ("pause", "resume"):
                self._mark_paused(paused=message["do"] == "pause")
        except SafetyViolation:
            raise
        except KnarrError as error:
            reply = {"error": str(error)}
        try:
            connection.send(fastjson.dumps(reply))
        except OSError:
            pass  # it does not wait any more, or the answer is too long for a packet

    def _mark_paused(self, *, paused: bool) -> None:
        """The file by which the state is known."""
        place = f"{self._setup['place']}/{PAUSED}"
        if paused:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif os.path.exists(place):
            os.unlink(place)

    def _exec(self, message: dict[str, Any], given: list[int]) -> None:
        plan, control, stand, *streams = given
        owned, connection = socket(fileno=control), socket(fileno=stand)
        connection.setblocking(False)
        relay = Relay(self._guest, (streams[0], streams[1], streams[2]), owned, terminal=message["terminal"])
        try:
            slots = [[kind, self._first.work.id, path] for kind, _, path in message["slots"]]
            self._give(relay, content(plan), stdin=_has_input(streams[0]))
            self._spawn(relay, slots)
        except InitError as error:
            _report(owned, error)
            relay.close()
            connection.close()
            return
        relay.fit_terminal()
        self._stands.add(connection)
        self._guests_of[connection] = relay

    def _tell_end(self, connection: socket, relay: Relay) -> None:
        """A further process has ended: tell, once all it said was passed on; what it left behind may say more."""
        if relay.work.status is None or not relay.flushed:
            return
        if relay.work.open and monotonic() < relay.ended + _LINGER:
            return
        tell_code(connection, relay.code)
        self._guests_of[connection] = None
        self._lingering.append(relay)

    def _forget(self, connection: socket) -> None:
        """Whoever stood for a further process is gone: so is the process."""
        relay = self._guests_of.pop(connection, None)
        self._stands.discard(connection)
        self._watchers.forget(connection)
        connection.close()
        if relay is not None:
            self._guest.send(frames.SIGNAL, relay.work.id, 9)
            self._lingering.append(relay)

    def _tell_of_memory(self) -> None:
        """Leave a word when processes were killed because the container had no memory left."""
        kills = self._watchers.last()
        if kills:
            _leave_reason(self._setup["place"], f"{OUT_OF_MEMORY}: {kills} of its processes were killed")

    def _keep_writes(self) -> None:
        """Bring what was written to the root into the root on the host, where it is to stay."""
        if not self._setup["keep"]:
            return
        try:
            _, data = self._guest.call(frames.LOOK, 0, frames.texts(UPPER), monotonic() + _END)
            if not data:
                return  # nothing was written
            from knarr.isolation.changes import keep  # 20 ms: only where something is kept
            from knarr.isolation.taking import opened

            root = self._ends.root if self._ends.root >= 0 else opened(self._setup["settings"]["shares"][0].source)
            notes = keep(self._guest, UPPER, root, self._setup["keep"])
        except KnarrError as error:
            notes = (f"what it wrote to its root could not be kept whole: {error}",)
        if notes:
            _leave_reason(self._setup["place"], "; ".join(notes))

    # -- the end -------------------------------------------------------------------------------------------------------

    def _power_off(self) -> None:
        """Have the guest write out its files and end; what it does not do in time is not waited for."""
        deadline = monotonic() + _END
        place = self._setup["unmount"]
        try:
            if place:  # a disk: its file system is to be clean
                self._guest.request(frames.UNMOUNT, 0, frames.texts(place), lambda *_: None)
            self._guest.send(frames.END)
            while not ended(self._booting.pidfd, 0.001) and monotonic() < deadline:
                self._guest.flush()
                self._guest.receive()
        except KnarrError:
            ended(self._booting.pidfd, max(deadline - monotonic(), 0.0))


def _accept(listener: socket) -> socket | None:
    try:
        # what socket.accept calls; the socket module itself is not hot
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
    except OSError:
        return None
    return socket(AF_UNIX, SOCK_SEQPACKET, 0, fd)


def _leave_stdio() -> None:
    """Let go of our 0, 1, 2: with a terminal they are the creator's, who waits for the end of what he reads."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _heard(connection: socket) -> None:
    """Take what was said last: closed with something unread, the other side would not read our answer (unix(7))."""
    try:
        connection.recv(_MESSAGE)
    except OSError:
        pass  # it is gone, or says nothing


def _has_input(fd: int) -> bool:
    """Whether there is anything to read: not of the null device."""
    facts = os.fstat(fd)
    return facts.st_rdev != os.makedev(1, 3)


def make_terminal(console: socket | int, size: list[int]) -> int:
    """Make a terminal, send its master over the socket; the other end, raw."""
    from knarr.kernel import tty  # cold: only for a terminal

    master, other = os.openpty()
    try:
        tty.make_raw(other)
        if any(size):
            tty.resize(master, pack("HHHH", size[0], size[1], 0, 0))
        to = socket(fileno=os.dup(console if isinstance(console, int) else console.fileno()))
        to.sendmsg([b"/dev/ptmx"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", master))])
    except OSError as error:
        raise InitError("/process/terminal", "make a terminal", error.errno or 0) from None
    finally:
        os.close(master)
    return other

"""The keeper of templates: boots guests, holds them, hands them out (cold). template.py has what it is for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fcntl import ioctl
from select import POLLHUP, POLLIN, poll
from socket import AF_UNIX, SCM_RIGHTS, SO_PEERCRED, SOCK_SEQPACKET, SOL_SOCKET, socket
from struct import pack, unpack
from termios import FIONREAD
from time import monotonic, sleep
from typing import TYPE_CHECKING

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, TimedOut, UsageError
from knarr.isolation import kinds
from knarr.isolation.python import python_command
from knarr.isolation.template import MESSAGE, PATIENCE, SOCKET, Shape, connect, status, words_of
from knarr.kernel.process import ended, reap, signal_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MOST_GUESTS = 16
MOST_MEMORY = 4 << 30
"""Bytes that all waiting guests together may have, each counted with all it could use."""
_SETTLE = 0.2
"""Seconds after one was taken before another is booted: the container that took it shall have the processors."""
_LISTENING = "listening"
_ENVIRONMENT = (
    *("KNARR_UML", "KNARR_QEMU", "KNARR_VIRTIOFSD", "KNARR_KERNELS", "KNARR_CACHE", "XDG_CACHE_HOME"),
    *("XDG_RUNTIME_DIR", "HOME", "LC_ALL", "TMPDIR"),
)
IDLE = 1800.0
"""Seconds after which a keeper ends when none was taken."""


def shape_of(kind: str, memory: int, cpus: int) -> Shape:
    """The shape of guest that containers with ``memory`` bytes and ``cpus`` processors of their own take."""
    return Shape(kind, memory + kinds.overhead(kind), cpus)


def begin(place: str, idle: float) -> None:
    """Start a keeper as a process of its own and wait until it listens. Raises FileError, KnarrError when it fails."""
    started = subprocess.Popen(
        python_command("keeper", repr(place), repr(idle)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **{k: v for k, v in os.environ.items() if k in _ENVIRONMENT}},
    )
    line = ""
    if started.stderr is not None:
        with started.stderr as said:
            line = said.readline(4096).decode("utf-8", "replace").strip()
    started.returncode = 0  # it is not waited for: init is its parent once we have ended
    if line != _LISTENING:
        raise KnarrError(f"the keeper of templates does not start: {line or 'it ended without a word'}")


def wait_ready(shape: Shape, place: str) -> None:
    """Block until every guest of a shape that the keeper was asked for is ready. Raises KnarrError when one fails."""
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        answer = status(place)
        if answer["failed"]:
            raise KnarrError(f"a guest does not boot: {answer['failed'][0]}")
        mine = [guest["state"] for guest in answer["guests"] if _shape(guest) == shape]
        if answer["lacking"] == 0 and "booting" not in mine:
            return
        sleep(0.02)
    raise TimedOut("the boot of a template", PATIENCE)


def main(place: str, idle: float) -> None:
    """Be the keeper; returns when it was stopped."""
    try:
        keeper = Keeper(place, lambda shape: _boot(shape, place), idle)
    except KnarrError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))  # by way of the end of run()
    os.write(2, f"{_LISTENING}\n".encode())
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
    keeper.run()


def _boot(shape: Shape, place: str) -> tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]:
    """Begin a guest that will be shown its files later."""
    begun = kinds.boot(
        kinds.Settings(
            kind=shape.kind,
            memory=shape.memory,
            cpus=shape.cpus,
            shares=None,
            initramfs=f"{place}/initramfs",
            found=kinds.find(shape.kind, {}),
            filters=f"{place}/.seccomp",
        )
    )
    return begun.pid, begun.pidfd, begun.channel, begun.console, begun.helpers, begun.nics


class _Guest:
    """A guest of the keeper's; ``taker`` is the connection of who took it."""

    __slots__ = ("channel", "console", "helpers", "nics", "pid", "pidfd", "ready", "shape", "since", "taker")

    def __init__(
        self,
        shape: Shape,
        pid: int,
        pidfd: int,
        channel: int,
        console: int,
        helpers: tuple[int, ...] = (),
        nics: tuple[int, ...] = (),
    ) -> None:
        self.shape = shape
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.console = console
        self.helpers = helpers
        self.nics = nics
        self.ready = False
        self.since = monotonic()
        self.taker: socket | None = None

    @property
    def waits(self) -> bool:
        return self.taker is None

    def hand_over(self, taker: socket) -> bool:
        """Send the descriptors; False when nobody is there any more."""
        handed = (self.pidfd, self.channel, self.console, *self.nics)
        rights = [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(handed)}i", *handed))]
        try:
            taker.sendmsg([fastjson.dumps({"pid": self.pid, "helpers": list(self.helpers)})], rights)
        except OSError:
            return False
        self.taker = taker
        for fd in handed[1:]:
            os.close(fd)
        self.channel = self.console = -1
        self.nics = ()
        return True

    def end(self) -> None:
        signal_pid(self.pidfd, 9)
        ended(self.pidfd, 10.0)
        reap(self.pidfd, wait=False)
        for pid in self.helpers:
            os.kill(pid, 9)  # our child, not reaped yet
            os.waitpid(pid, 0)
        for fd in (self.pidfd, self.channel, self.console, *self.nics):
            if fd >= 0:
                os.close(fd)
        if self.taker is not None:
            self.taker.close()


class Keeper:
    """The process that holds templates. ``launch(shape)`` begins a guest: what ``_Guest`` takes."""

    def __init__(self, place: str, launch: Callable[[Shape], tuple[Any, ...]], idle: float = IDLE) -> None:
        self._launch = launch
        self._idle = idle
        self._wanted: dict[Shape, int] = {}
        self._guests: list[_Guest] = []
        self._clients: list[socket] = []
        self._failed: dict[Shape, str] = {}
        self._stopping = False
        self._used = monotonic()
        self._given = 0.0
        self._path = f"{place}/{SOCKET}"
        self._listener = _listen(place, self._path)

    def run(self) -> None:
        """Serve until stopped, or idle for too long."""
        try:
            while not self._over():
                self._refill()
                self._serve(self._timeout())
        finally:
            for guest in self._guests:
                guest.end()
            for client in self._clients:
                client.close()
            self._unlisten()

    def _over(self) -> bool:
        if not self._stopping and monotonic() - self._used > self._idle:
            self._stop()
        return self._stopping and not self._guests

    def _stop(self) -> None:
        self._stopping = True
        self._unlisten()
        self._drop(guest for guest in self._guests if guest.waits)

    def _unlisten(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.close()
            os.unlink(self._path)

    def _timeout(self) -> float:
        return max(0.0, self._used + self._idle - monotonic()) + 0.05 if not self._stopping else PATIENCE

    def _drop(self, guests: Iterable[_Guest]) -> None:
        for guest in list(guests):
            if guest in self._guests:  # its end and its taker's may be heard of at one time
                self._guests.remove(guest)
                guest.end()

    def _refill(self) -> None:
        """Begin one guest that is wanted, so that who asks does not wait for all of them."""
        for shape in self._lacking()[:1] if self._settles() <= 0 else ():
            try:
                self._guests.append(_Guest(shape, *self._launch(shape)))
            except KnarrError as error:
                self._give_up(shape, str(error))

    def _give_up(self, shape: Shape, why: str) -> None:
        """Boot no more of a shape: they would fail again, at once and for ever."""
        self._failed[shape] = why
        self._wanted[shape] = 0

    def _settles(self) -> float:
        return self._given + _SETTLE - monotonic()

    def _lacking(self) -> list[Shape]:
        """The shapes of which there are less than wanted."""
        have = [guest.shape for guest in self._guests if guest.waits]
        return [] if self._stopping else [shape for shape, count in self._wanted.items() if have.count(shape) < count]

    def _serve(self, timeout: float) -> None:
        poller = poll()
        handlers: dict[int, Callable[[], None]] = {}

        def watch(fd: int, handler: Callable[[], None]) -> None:
            poller.register(fd, POLLIN | POLLHUP)
            handlers[fd] = handler

        if not self._stopping:
            watch(self._listener.fileno(), self._accept)
        for client in self._clients:
            watch(client.fileno(), lambda client=client: self._answer(client))  # type: ignore[misc]
        for guest in self._guests:
            watch(guest.pidfd, lambda guest=guest: self._ended(guest))  # type: ignore[misc]
            if guest.taker is not None:
                watch(guest.taker.fileno(), lambda guest=guest: self._drop([guest]))  # type: ignore[misc]
            elif not guest.ready:
                watch(guest.channel, lambda guest=guest: self._note_ready(guest))  # type: ignore[misc]
        for fd, _ in poller.poll(1000 * (max(self._settles(), 0.0) if self._lacking() else timeout)):
            handlers[fd]()

    def _note_ready(self, guest: _Guest) -> None:
        # Its greeting is there, and left for whoever takes it; at the end of one that died there is nothing.
        if guest in self._guests:
            guest.ready = int.from_bytes(ioctl(guest.channel, FIONREAD, bytes(4)), sys.byteorder) > 0

    def _ended(self, guest: _Guest) -> None:
        if guest in self._guests and not guest.ready:
            self._give_up(guest.shape, "it ended before it said hello")
        self._drop([guest])

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = unpack("iii", client.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
        if uid != os.geteuid():
            client.close()
            return
        client.settimeout(0)
        self._clients.append(client)

    def _answer(self, client: socket) -> None:
        self._clients.remove(client)
        given = False
        try:
            data = client.recv(MESSAGE)
            request = fastjson.loads(data, "request") if data else {}
            if request["do"] == "take":
                given = self._give(client, _shape(request["shape"]))
            if not given:
                client.send(fastjson.dumps(self._do(request)))
        except (OSError, KnarrError, KeyError, TypeError, ValueError):
            pass  # whoever it was, it is gone or is none of ours
        finally:
            if not given:
                client.close()

    def _give(self, client: socket, shape: Shape) -> bool:
        self._used = monotonic()
        waiting = [guest for guest in self._guests if guest.waits and guest.ready and guest.shape == shape]
        if not waiting or not waiting[0].hand_over(client):
            return False
        self._given = monotonic()
        return True

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "take":
            return {"none": True}
        if request["do"] == "list":
            listed = [_listed(guest) for guest in self._guests]
            return {"guests": listed, "failed": sorted(set(self._failed.values())), "lacking": len(self._lacking())}
        if request["do"] == "keep":
            return self._keep(_shape(request["shape"]), int(request["count"]))
        if request["do"] == "stop":
            self._stop()
            return {}
        return {"error": "it does not know that request"}

    def _keep(self, shape: Shape, count: int) -> dict[str, Any]:
        wanted = {**self._wanted, shape: count}
        if sum(wanted.values()) > MOST_GUESTS:
            return {"error": f"it holds {MOST_GUESTS} guests at most"}
        if sum(each.memory * number for each, number in wanted.items()) > MOST_MEMORY:
            return {"error": f"its guests may have {MOST_MEMORY >> 20} MiB altogether at most"}
        self._used = monotonic()
        self._wanted = wanted
        self._failed.pop(shape, None)
        spare = [guest for guest in self._guests if guest.waits and guest.shape == shape][count:]
        self._drop(spare)
        return {}


def _shape(words: dict[str, Any]) -> Shape:
    return Shape(str(words["kind"]), int(words["memory"]), int(words["cpus"]))


def _listed(guest: _Guest) -> dict[str, Any]:
    state = "taken" if not guest.waits else "ready" if guest.ready else "booting"
    facts = {"state": state, "pid": guest.pid, "seconds": round(monotonic() - guest.since, 1)}
    return {**words_of(guest.shape), **facts}


def _listen(place: str, path: str) -> socket:
    """The keeper's socket. Raises FileError, UsageError when another keeper has it."""
    listener = socket(AF_UNIX, SOCK_SEQPACKET, 0)
    try:
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            facts = os.lstat(place)
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise UsageError(f"{place} is not a directory of one's own") from None
        other = connect(place)
        if other is not None:
            other.close()
            raise UsageError("there is a keeper of templates already")
        if os.path.lexists(path):
            os.unlink(path)  # of one that was killed
        listener.bind(path)
        listener.listen(16)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise FileError("listen at", path, error.errno or 0) from None
    except BaseException:
        listener.close()
        raise
    return listener

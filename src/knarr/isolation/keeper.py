"""The keeper of templates: has guests booted, holds them, hands them out (cold). template.py has what it is for.

Each guest is the child of a process that the keeper forks for it (waiting.py); what the keeper knows are that process's
pidfd and a connection to it. On that it is told that the guest is ready, and passes on the connection of who takes it.
"""

from __future__ import annotations

import os
import signal
import sys
from select import POLLHUP, POLLIN, poll
from socket import AF_UNIX, SCM_RIGHTS, SO_PEERCRED, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair
from struct import pack, unpack
from time import monotonic, sleep
from typing import TYPE_CHECKING

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, TimedOut, UsageError
from knarr.isolation import kinds, waiting
from knarr.isolation.keeping import LISTENING
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
IDLE = 1800.0
"""Seconds after which a keeper ends when none was taken."""


def shape_of(kind: str, memory: int, cpus: int) -> Shape:
    """The shape of guest that containers with ``memory`` bytes and ``cpus`` processors of their own take."""
    return Shape(kind, memory + kinds.overhead(kind), cpus)


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
        keeper = Keeper(place, lambda shape: _begin(shape, place), idle)
    except KnarrError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)
    for name in os.listdir(place):
        if name.startswith(waiting.INITRAMFS):
            os.unlink(f"{place}/{name}")  # of a boot that was killed
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))  # by way of the end of run()
    os.write(2, f"{LISTENING}\n".encode())
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
    keeper.run()


def _begin(shape: Shape, place: str) -> tuple[int, socket]:
    """Fork the process that boots a guest and waits with it; its pid, and a connection to it."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        waiting.main(theirs, keeper, shape, place)
    theirs.close()
    return pid, ours


class _Guest:
    """A guest with its monitor, a child of the keeper's."""

    __slots__ = ("connection", "pid", "pidfd", "ready", "shape", "since", "waits")

    def __init__(self, shape: Shape, pid: int, connection: socket) -> None:
        self.shape = shape
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        connection.setblocking(False)
        self.connection = connection
        self.ready = False
        self.waits = True
        self.since = monotonic()

    def hand_over(self, taker: socket) -> bool:
        """Give it the connection of who takes it; False when it is not there any more."""
        try:
            self.connection.sendmsg([b"take"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", taker.fileno()))])
        except OSError:
            return False
        self.connection.close()
        self.waits = False
        return True

    def end(self) -> None:
        """End it, if it waits, and forget it."""
        if self.waits:
            signal_pid(self.pidfd, 9)
            ended(self.pidfd, 10.0)
        self.connection.close()
        reap(self.pidfd, wait=False)
        os.close(self.pidfd)


class Keeper:
    """The process that holds templates. ``launch(shape)`` begins a guest: the pid of a child, a connection to it."""

    def __init__(self, place: str, launch: Callable[[Shape], tuple[int, socket]], idle: float = IDLE) -> None:
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
            if not guest.ready:
                watch(guest.connection.fileno(), lambda guest=guest: self._hear(guest))  # type: ignore[misc]
        for fd, _ in poller.poll(1000 * (max(self._settles(), 0.0) if self._lacking() else timeout)):
            handlers[fd]()

    def _hear(self, guest: _Guest) -> None:
        """What it says of its boot; at its end it says nothing."""
        try:
            word = fastjson.loads(guest.connection.recv(MESSAGE) or b"{}", "a guest's word")
        except (OSError, KnarrError):
            return
        guest.ready = word.get("ready") is True
        if "failed" in word:
            self._give_up(guest.shape, str(word["failed"]))

    def _ended(self, guest: _Guest) -> None:
        if guest in self._guests and not guest.ready:
            self._hear(guest)  # it may have said why
            if self._wanted.get(guest.shape):
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
        try:
            data = client.recv(MESSAGE)
            request = fastjson.loads(data, "request") if data else {}
            # Who takes a guest is answered by its monitor.
            if request["do"] != "take" or not self._give(client, _shape(request["shape"])):
                client.send(fastjson.dumps(self._do(request)))
        except (OSError, KnarrError, KeyError, TypeError, ValueError):
            pass  # whoever it was, it is gone or is none of ours
        finally:
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

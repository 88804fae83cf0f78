"""Templates: guests that have booted and wait for their container, so that it starts at once (hot).

A keeper, one process for each user, holds them: each guest with a process of its own that will be the container's
monitor (waiting.py). To whoever makes a container it hands one out, as a connection to that process. A guest is used
once and never knew another container. It ends with its monitor; one that waits ends with the keeper, too. How many are
kept, for how much memory altogether and for how long is bounded.
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SO_PEERCRED, SOCK_SEQPACKET, SOL_SOCKET, socket
from errno import ECONNREFUSED, ENOENT
from sys import byteorder

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, UsageError
from knarr.base.paths import variable
from knarr.base.record import Record
from knarr.kernel.passed import descriptors
from knarr.runtime.record import default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "keeper"
MESSAGE = 64 << 10
PATIENCE = 20.0


HANDED = ("control", "setup", "plan", "listener", "stand", "stdin", "stdout", "stderr", "start")
"""The descriptors a monitor is given with its container, in this order; the last only where it waits for a start."""


class Shape(Record):
    """What a template is for: containers whose guest has this memory (bytes) and this many processors."""

    kind: str
    memory: int
    cpus: int = 1


class Taken(Record):
    """A guest with its monitor (waiting.py), taken: the ``connection`` to that, and ``found`` as in Settings.

    ``space`` is a descriptor of the user namespace it is in.
    """

    connection: socket
    found: dict[str, Any]
    space: int

    def let_go(self) -> None:
        """Close what there is of it; its monitor ends, if it has not been told of a container."""
        self.connection.close()
        posix.close(self.space)


def folder() -> str:
    """Where the keeper's socket is: one for each user, whatever a runtime's state root, or KNARR_TEMPLATES."""
    return variable("KNARR_TEMPLATES") or f"{default_root()}/.templates"


def take(shape: Shape, place: str) -> Taken | None:
    """A waiting guest of that shape, from the keeper whose folder is ``place``; None when there is none."""
    try:
        connection = connect(place)
    except UsageError:
        return None  # it boots one of its own
    if connection is None:
        return None
    given: list[int] = []
    try:
        found = _ask(connection, {"do": "take", "shape": words_of(shape)}, given).get("found")
    except KnarrError:
        found = None
    if found is None or len(given) != 1:
        connection.close()
        for fd in given:
            posix.close(fd)
        return None
    connection.settimeout(None)
    return Taken(connection, found, given[0])


def kept(place: str) -> list[dict[str, Any]] | None:
    """What the keeper holds, a dict for each guest: kind, memory, cpus, state, pid, seconds; None without a keeper."""
    answer = _once(place, {"do": "list"})
    return None if answer is None else list(answer["guests"])


def status(place: str) -> dict[str, Any]:
    """The same, with what is ``lacking`` and the errors of those that ``failed``. Raises UsageError without one."""
    answer = _once(place, {"do": "list"})
    if answer is None:
        raise UsageError("there is no keeper of templates")
    return answer


def keep(shape: Shape, count: int, place: str) -> bool:
    """Have the keeper hold ``count`` guests of a shape; False without a keeper. Raises UsageError beyond its bounds."""
    return _once(place, {"do": "keep", "shape": words_of(shape), "count": count}) is not None


def stop(place: str) -> bool:
    """End the keeper: its waiting guests now, itself when the last one that was taken has ended; False without one."""
    return _once(place, {"do": "stop"}) is not None


def words_of(shape: Shape) -> dict[str, Any]:
    """A shape as it goes over the socket."""
    return {"kind": shape.kind, "memory": shape.memory, "cpus": shape.cpus}


def connect(place: str) -> socket | None:
    """A connection to the keeper; None when there is none. Raises FileError, UsageError for another user's."""
    connection = socket(AF_UNIX, SOCK_SEQPACKET, 0)
    try:
        connection.settimeout(PATIENCE)
        connection.connect(f"{place}/{SOCKET}")
    except OSError as error:
        connection.close()
        if error.errno in (ENOENT, ECONNREFUSED):
            return None
        raise FileError("connect to", f"{place}/{SOCKET}", error.errno or 0) from None
    # Whoever has it gets containers with their files: it must not be somebody who made the directory before us.
    uid = int.from_bytes(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], byteorder)
    if uid != posix.geteuid():
        connection.close()
        raise UsageError(f"the keeper of templates at {place} is another user's")
    return connection


def _ask(connection: socket, request: dict[str, Any], given: list[int] | None = None) -> dict[str, Any]:
    """The answer; the descriptors that come with it go to ``given``."""
    try:
        connection.send(fastjson.dumps(request))
        if given is None:
            data = connection.recv(MESSAGE)
        else:
            data, rights, _, _ = connection.recvmsg(MESSAGE, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
            given += descriptors(rights)
    except OSError as error:
        raise FileError("ask", "the keeper of templates", error.errno or 0) from None
    answer: dict[str, Any] = fastjson.loads(data, "the keeper's answer") if data else {"error": "it is ending"}
    if "error" in answer:
        raise UsageError(f"the keeper of templates refuses: {answer['error']}")
    return answer


def _once(place: str, request: dict[str, Any]) -> dict[str, Any] | None:
    connection = connect(place)
    if connection is None:
        return None
    try:
        return _ask(connection, request)
    finally:
        connection.close()

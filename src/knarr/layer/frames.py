"""The frames between helper.py and worker.py: four bytes of length (little endian), then so many bytes.

Requests and answers are one JSON frame each. After an ``apply`` request the tar stream follows in frames, ended
by an empty one, or by ABORT when the parent gives up. Errors travel as class name and facts.
"""

from __future__ import annotations

import fcntl
import os

from knarr.base import errors
from knarr.base.errors import Interrupted, KnarrError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ABORT = 0xFFFFFFFF
_LIMIT = 1 << 26
_F_SETPIPE_SZ = 1031  # fcntl has it from Python 3.10 on, but not on every build

# class -> its facts, in the order its constructor takes them
_FACTS = {
    "FormatError": ("what", "where", "why"),
    "FileError": ("doing", "path", "number"),
    "Unsupported": ("feature", "why"),
    "SafetyViolation": ("what", "path", "why"),
    "KernelError": ("call", "operand", "errno"),
    "Interrupted": ("message",),
}
_HINTED = ("FileError", "Unsupported", "KernelError", "Interrupted")


def widen(fd: int) -> None:
    """Ask for a pipe of a megabyte, so that the two sides seldom wait for each other."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # a user may have too many pipe pages already; it only costs time


def send(fd: int, data: bytes | memoryview) -> None:
    """Write one frame; raises OSError."""
    _all(fd, len(data).to_bytes(4, "little"))
    if data:
        _all(fd, data)


def abort(fd: int) -> None:
    """End a stream before its end; fine if nobody listens any more."""
    try:
        _all(fd, ABORT.to_bytes(4, "little"))
    except BrokenPipeError:
        pass


def _all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> bytes | None:
    """Read one frame; None at the end, also when the other side died in the middle. Raises Interrupted on ABORT."""
    head = exactly(fd, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    if size == ABORT:
        raise Interrupted("unpacking was stopped")
    if size > _LIMIT:
        raise KnarrError(f"the unpacking helper sent a frame of {size} bytes")
    return exactly(fd, size)


def exactly(fd: int, size: int) -> bytes | None:
    """Read so many bytes; None if there are fewer."""
    data = os.read(fd, size) if size else b""
    if len(data) == size:
        return data
    parts = [data]
    got = len(data)
    while got < size:
        data = os.read(fd, size - got)
        if not data:
            return None
        got += len(data)
        parts.append(data)
    return b"".join(parts)


def told(error: KnarrError) -> dict[str, Any]:
    """An error as a frame can carry it."""
    for kind in type(error).__mro__:
        if kind.__name__ in _FACTS:
            facts = [getattr(error, name) for name in _FACTS[kind.__name__]]
            return {"class": kind.__name__, "facts": facts, "hint": error.hint}
    return {"class": "KnarrError", "facts": [error.sentence()], "hint": error.hint}


def rebuilt(record: dict[str, Any]) -> KnarrError:
    """The error that ``told`` described."""
    name = record["class"]
    kind = getattr(errors, name) if name in _FACTS else KnarrError
    made: KnarrError = kind(*record["facts"], hint=record["hint"]) if name in _HINTED else kind(*record["facts"])
    return made

"""The process that applies layers as root of a user namespace, for helper.py; run as ``python -I -S``.

One thread and nothing else loaded, as unshare(2) with CLONE_NEWUSER wants it. It gets plain tar bytes on its
standard input, answers on its standard output, and ends when its parent does.
"""

from __future__ import annotations

import os
import signal

from knarr.base import fastjson
from knarr.base.errors import Interrupted, KnarrError
from knarr.kernel.userns import CLONE_NEWUSER, IdMap, unshare
from knarr.layer import frames
from knarr.layer.unpack import Direct, remove_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_IN, _OUT = 0, 1


class _Frames:
    """The stream that follows an ``apply`` request."""

    def __init__(self) -> None:
        self.ended = False
        self._held = b""

    def read(self, size: int, /) -> bytes:
        if not self._held and not self.ended:
            try:
                data = frames.receive(_IN)
            except Interrupted:
                self.ended = True
                raise
            if data is None:
                self.ended = True
                raise Interrupted("unpacking was stopped: the parent is gone")
            self._held = data
            self.ended = not data
        if size >= len(self._held):
            part, self._held = self._held, b""
        else:
            part, self._held = self._held[:size], self._held[size:]
        return part

    def close(self) -> None:
        """Read what is left, so that the next frame is a request again."""
        self._held = b""
        while not self.ended:
            try:
                data = frames.receive(_IN)
            except Interrupted:
                data = b""
            self.ended = not data


def _apply(request: dict[str, Any]) -> dict[str, Any]:
    stream = _Frames()
    ids = IdMap(
        tuple(tuple(row) for row in request["uids"]), tuple(tuple(row) for row in request["gids"]), request["squash"]
    )
    below = request["below"]
    try:
        done = Direct(ids).apply(
            stream,
            request["root"],
            mode=request["mode"],
            userxattr=request["userxattr"],
            below=None if below is None else lambda: below,
            fresh=request["fresh"],
            what=request["what"],
        )
    except KnarrError as error:
        _say({"error": frames.told(error)})  # before the rest is read: the parent watches for it and stops
        stream.close()
        return {}
    return {"entries": done.entries, "size": done.size, "warnings": list(done.warnings), "opaque": done.opaque}


class _Out:
    """The stream that comes before an answer, in frames of some size."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size >= 1 << 20:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            frames.send(_OUT, b"".join(self._parts))
        self._parts.clear()
        self._size = 0


def _stream(request: dict[str, Any]) -> dict[str, Any]:
    """Record or pack a directory: the bytes first, then an empty frame; the answer or error comes after it."""
    direct, out = Direct(None), _Out()
    answer: dict[str, Any] = {}
    try:
        if request["do"] == "record":
            out.write(direct.record(request["root"]))
        else:
            known = _whole() if request["known"] else None
            masks = [bytes.fromhex(path) for path in request["masks"]]
            done = direct.pack(request["root"], out, known=known, masks=masks, latest=request["latest"])
            answer = {"made": done.made, "hidden": done.hidden, "notes": list(done.notes)}
        out.flush()
    except KnarrError as error:
        answer = {"error": frames.told(error)}
    frames.send(_OUT, b"")
    return answer


def _whole() -> bytes:
    """All of a stream of frames."""
    parts = []
    while data := frames.receive(_IN):
        parts.append(data)
    return b"".join(parts)


def _start() -> None:
    """Become root of the namespace, now that its maps are written."""
    try:
        os.setgroups([])
    except PermissionError:
        pass  # denied with a map of one id; then the caller's groups stay, unmapped
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0o022)


def _say(answer: dict[str, Any]) -> None:
    frames.send(_OUT, fastjson.dumps(answer))


def main() -> None:
    """Serve requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what to do
    try:
        try:
            unshare(CLONE_NEWUSER)
        except KnarrError as error:
            _say({"error": frames.told(error)})
            return
        _say({})
        while True:
            try:
                data = frames.receive(_IN)
            except Interrupted:
                continue  # an abort that crossed our answer
            if data is None:
                return
            request: dict[str, Any] = fastjson.loads(data, "the request")
            try:
                answer: dict[str, Any] = {}
                if request["do"] == "start":
                    _start()
                elif request["do"] == "apply":
                    answer = _apply(request)
                    if not answer:
                        continue
                elif request["do"] in ("record", "pack"):
                    answer = _stream(request)
                else:
                    remove_path(request["path"])
            except KnarrError as error:
                answer = {"error": frames.told(error)}
            _say(answer)
    except BrokenPipeError:
        return

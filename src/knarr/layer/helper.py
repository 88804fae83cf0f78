"""The parent's half of unpacking in a user namespace, for ordinary users.

Files of an image belong to many ids; only the root of a user namespace may make such files. So a fresh Python
(never a fork of this one, which may have threads) makes the namespace, gets its id maps written from here, and
applies the plain tar bytes that this process decompresses and verifies: two processes, two cores.
user_namespaces(7); docs/security.md I8. The other half, and the frames between them, are in worker.py.
"""

from __future__ import annotations

import os
import select
import sys
from errno import EPIPE

from knarr.base import errors, fastjson
from knarr.base.errors import KnarrError, Unsupported
from knarr.kernel.userns import IdMap, write_maps
from knarr.layer import frames
from knarr.layer.apply import Applied
from knarr.layer.scan import Packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.layer.apply import Mode
    from knarr.layer.tarwriter import Writable

_CHUNK = 1 << 20
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from knarr.layer.worker import main; main()"


class Helper:
    """A process that is root of a user namespace with the map ``ids``. Raises Unsupported where that cannot be."""

    parallel = False

    def __init__(self, ids: IdMap) -> None:
        import subprocess  # only ordinary users come here, once per unpacking

        self.ids = ids
        if not sys.executable:
            raise Unsupported("unpacking without root", "this program does not say which Python runs it")
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self._process = subprocess.Popen(  # our own interpreter, constant arguments
            [sys.executable, "-I", "-S", "-c", _BOOT, source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            bufsize=0,
        )
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:  # pipes were asked for
            raise Unsupported("unpacking without root", "no pipes to the helper")
        self._to = to.fileno()
        self._from = back.fileno()
        frames.widen(self._to)
        try:
            self._answer()  # the namespace is there
            write_maps(self._process.pid, ids)
            self._ask({"do": "start"})
        except BaseException as error:
            self.close()
            if isinstance(error, errors.KernelError):
                why = f"{error.call} {error.operand}: {error.strerror}".lower()
                raise Unsupported("making a user namespace", why, hint="see user_namespaces(7)") from None
            raise

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(fastjson.dumps(request))
        return self._answer()

    def _send(self, data: bytes | memoryview) -> None:
        try:
            frames.send(self._to, data)
        except OSError as error:
            if error.errno != EPIPE:
                raise
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        data = frames.receive(self._from)
        if data is None:
            raise self._died()
        answer: dict[str, Any] = fastjson.loads(data, "the unpacking helper's answer")
        if "error" in answer:
            raise frames.rebuilt(answer["error"])
        return answer

    def _died(self) -> KnarrError:
        """The helper ended without an answer: killed, out of memory, or a fault of ours."""
        process = self._process
        said = process.stderr.read(4096).decode("utf-8", "replace").strip() if process.stderr else ""
        code = process.wait()
        why = f"signal {-code}" if code < 0 else f"exit status {code}"
        last = said.splitlines()[-1] if said else ""
        return KnarrError(f"the unpacking helper ended unexpectedly: {why}{f', {last}' if last else ''}")

    def apply(
        self,
        stream: Readable,
        root: str,
        *,
        mode: Mode,
        userxattr: bool,
        below: Callable[[], list[str]] | None,
        fresh: bool,
        what: str,
    ) -> Applied:
        """Apply a layer to the directory ``root``; as Direct.apply."""
        inside = self.ids.seen_inside()
        self._send(
            fastjson.dumps(
                {
                    "do": "apply",
                    "root": os.path.abspath(root),
                    "mode": mode,
                    "userxattr": userxattr,
                    "below": None if below is None else [os.path.abspath(path) for path in below()],
                    "fresh": fresh,
                    "what": what,
                    "uids": [list(row) for row in inside.uids],
                    "gids": [list(row) for row in inside.gids],
                    "squash": inside.squash,
                }
            )
        )
        try:
            self._feed(stream)
        except BaseException:
            frames.abort(self._to)
            try:
                self._answer()
            except KnarrError:
                pass  # that it was stopped, as we told it; the first error counts
            raise
        answer = self._answer()
        return Applied(answer["entries"], answer["size"], tuple(answer["warnings"]), answer["opaque"])

    def _feed(self, stream: Readable) -> None:
        """Pass the stream on. An answer before its end can only be a refusal: then the rest need not be read."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        while data := stream.read(_CHUNK):
            if poll.poll(0):
                frames.abort(self._to)
                return
            self._send(data)
        self._send(b"")

    def record(self, root: str) -> bytes:
        """What everything below a directory looks like now, to the namespace's root; as Direct.record."""
        parts: list[bytes] = []
        self._send(fastjson.dumps({"do": "record", "root": os.path.abspath(root)}))
        self._take(parts.append)
        return b"".join(parts)

    def pack(
        self, root: str, out: Writable, *, known: bytes | None, masks: Sequence[bytes], latest: int | None
    ) -> Packed:
        """Write a directory as a tar; as Direct.pack."""
        request: dict[str, Any] = {
            "do": "pack",
            "root": os.path.abspath(root),
            "known": known is not None,
            "masks": [path.hex() for path in masks],
            "latest": latest,
        }
        self._send(fastjson.dumps(request))
        if known is not None:
            for start in range(0, len(known), _CHUNK):
                self._send(known[start : start + _CHUNK])
            self._send(b"")
        answer = self._take(out.write)
        return Packed(answer["made"], answer["hidden"], tuple(answer["notes"]))

    def _take(self, put: Callable[[bytes], object]) -> dict[str, Any]:
        """Take the stream that comes before an answer, and the answer."""
        while data := frames.receive(self._from):
            put(data)
        if data is None:
            raise self._died()
        return self._answer()

    def remove(self, path: str) -> None:
        """Remove a tree, also one owned by mapped ids; fine if it is not there."""
        self._ask({"do": "remove", "path": os.path.abspath(path)})

    def close(self) -> None:
        """End the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()  # it ends with its standard input
        if process.stderr is not None:
            process.stderr.close()

"""Compressing layers (cold): the same bytes every time, with digest, diffID and sizes counted on the way.

gzip without a level is ISA-L's level 2: ten times as fast as zlib's 6, a tenth larger. Its output is the same on
all x86-64 processors since 2008 (SSE 4.2; compared under emulation), its level 3's is not. gzip with a level is zlib's.
gzip headers carry neither time nor name (RFC 1952).
"""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.base.record import Record
from knarr.content.digest import hasher
from knarr.content.stopping import current
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from knarr.spec.image import Descriptor

    class Writable(Protocol):
        """Where bytes go."""

        def write(self, data: bytes | memoryview, /) -> object: ...


_ISAL_LEVEL = 2
_FEED = 1 << 20
_ZSTD_LEVEL = 3
_LEVELS = {"gzip": (1, 9), "zstd": (1, 19)}  # above 19 zstd wants windows that readers refuse
_TYPES = {"": mediatypes.LAYER, "gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}
_DOCKER_TYPES = {
    "": mediatypes.DOCKER_LAYER,
    "gzip": mediatypes.DOCKER_LAYER_GZIP,
    "zstd": mediatypes.DOCKER_LAYER_ZSTD,
}


class Compression(Record):
    """How to compress: ``kind`` is "", gzip or zstd; ``level`` 0 is the usual one.

    ``table``: each file apart, with a table of contents, so that parts can be read: eStargz, or zstd:chunked.
    """

    kind: str = "gzip"
    level: int = 0
    table: bool = False

    def media_type(self, *, docker: bool = False) -> str:
        """The media type of a layer that is compressed so."""
        return (_DOCKER_TYPES if docker else _TYPES)[self.kind]


def parse_compression(text: str, *, tables: bool = False) -> Compression:
    """Read ``gzip``, ``gzip:9``, ``zstd``, ``zstd:19`` or ``none``; raises UsageError.

    With ``tables`` also ``estargz`` and ``zstd:chunked``, and a level behind them.
    """
    for name, kind in (("estargz", "gzip"), ("zstd:chunked", "zstd")):
        if text == name or text.startswith(f"{name}:"):
            if not tables:
                hint = f"make it, then: knarr image copy --compress {name} IMAGE IMAGE"
                raise UsageError(f"a single new layer is not written as {name}", hint=hint)
            return parse_compression(kind + text[len(name) :]).replace(table=True)  # type: ignore[no-any-return]
    kind, colon, level = text.partition(":")
    if kind == "none" and not colon:
        return Compression("")
    if kind not in _LEVELS:
        known = "gzip, gzip:9, zstd, zstd:19 or none" + (", estargz, zstd:chunked" if tables else "")
        raise UsageError(f"compression {text!r} is not known", hint=f"as {known}")
    if not colon:
        return Compression(kind)
    low, high = _LEVELS[kind]
    if not level.isascii() or not level.isdigit() or len(level) > 2 or not low <= int(level) <= high:
        raise UsageError(f"compression level {level!r} is not one of {kind}'s", hint=f"from {low} to {high}")
    return Compression(kind, int(level))


class LayerWriter:
    """Takes plain bytes, writes them compressed to ``out``; ``close`` ends the stream and leaves ``out`` open."""

    def __init__(self, out: Writable, how: Compression) -> None:
        self.how = how
        self.plain_size = 0
        self.size = 0
        self._out = out
        self._plain = hasher("sha256")
        self._packed = hasher("sha256")
        self._coder = coder_of(how)
        self._stop = current()

    def write(self, data: bytes | memoryview, /) -> None:
        """Take plain bytes."""
        if self._stop is not None:
            self._stop.check()
        self._plain.update(data)
        self.plain_size += len(data)
        self._put(self._coder.compress(data) if self._coder is not None else bytes(data))

    def _put(self, data: bytes) -> None:
        if data:
            if self._coder is not None:
                self._packed.update(data)
            self.size += len(data)
            self._out.write(data)

    def close(self) -> None:
        """Write what ends the stream; call once."""
        if self._coder is not None:
            self._put(self._coder.flush())

    @property
    def diff_id(self) -> str:
        """The digest of the plain bytes."""
        return f"sha256:{self._plain.hexdigest()}"

    def descriptor(self, *, docker: bool = False) -> Descriptor:
        """The layer's descriptor, once closed."""
        made = self._packed if self._coder is not None else self._plain
        return {
            "mediaType": self.how.media_type(docker=docker),
            "digest": f"sha256:{made.hexdigest()}",
            "size": self.size,
        }


def coder_of(how: Compression) -> Any:
    """An object with ``compress`` and ``flush``, for one stream; None for no compression."""
    return coders_of(how)() if how.kind else None


def coders_of(how: Compression) -> Callable[[], Any]:
    """What gives objects with ``compress`` and ``flush``, each for one stream, and one used at a time."""
    if how.kind == "zstd":
        import zstandard

        # The frame names no size, for that is not known yet; the checksum is what `zstd` writes by itself too.
        # One for all of them: what it needs is more than most files are.
        return zstandard.ZstdCompressor(level=how.level or _ZSTD_LEVEL, write_checksum=True).compressobj
    if how.level:
        import zlib

        return lambda: zlib.compressobj(how.level, zlib.DEFLATED, 31)
    from isal import isal_zlib

    return lambda: _Even(isal_zlib.compressobj(_ISAL_LEVEL, wbits=31))


class _Even:
    """Feeds a coder the same number of bytes each time: what ISA-L makes of them depends on how they come.

    zlib and libzstd fill a buffer of their own first, and so make the same of any pieces.
    """

    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self._held: list[bytes | memoryview] = []
        self._size = 0

    def compress(self, data: bytes | memoryview) -> bytes:
        if len(data) == _FEED and not self._size:
            return self._coder.compress(data)  # type: ignore[no-any-return]
        made = []
        view = memoryview(data)
        while len(view) >= _FEED - self._size:
            cut = _FEED - self._size
            made.append(self._coder.compress(b"".join([*self._held, view[:cut]])))
            view = view[cut:]
            self._held, self._size = [], 0
        if view:
            self._held.append(bytes(view))
            self._size += len(view)
        return b"".join(made)

    def flush(self) -> bytes:
        made: bytes = self._coder.compress(b"".join(self._held)) if self._size else b""
        self._held, self._size = [], 0
        return made + self._coder.flush()  # type: ignore[no-any-return]

"""Layers that can be read in part: eStargz and zstd:chunked. The table first, then only what a file is made of.

Both are ordinary layers, gzip or zstd, whose files are compressed apart. The manifest, itself verified, has the
digest of the table among the layer's annotations, the table has those of the files; so each byte is verified that is
given out. Not verified is that the tar says the same as its table: who unpacks the layer reads the tar.
"""

from __future__ import annotations

import bisect
import io

from knarr.base.errors import DigestMismatch, FormatError
from knarr.content.compress import compression_of, decompressor, members
from knarr.content.digest import Digest, hasher, sha256_of, usable
from knarr.layer.tarball import Reader
from knarr.layer.toc import TOC_LIMIT, parse_toc
from knarr.spec import mediatypes
from knarr.spec.mediatypes import ESTARGZ_DIGEST, OLD_ZSTD_DIGEST, OLD_ZSTD_PLACE, ZSTD_DIGEST, ZSTD_PLACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.content.compress import Members
    from knarr.content.verify import Readable
    from knarr.layer.tarball import Entry
    from knarr.layer.toc import Toc

    Ranges = Callable[[int, int], Readable | None]
    """Opens ``size`` bytes from ``start`` on, not verified; None where the place gives no ranges."""

TOC_NAME = b"stargz.index.json"
FOOTER = 51
"""Bytes of eStargz's footer: an empty gzip member with the table's offset in its extra field."""
_FOOTER_HEAD = b"\x1f\x8b\x08\x04"
_STEP = 1 << 18


class LayerIndex:
    """The table of one layer, and its files' contents on request. ``entries`` are the tar's, in order."""

    def __init__(self, toc: Toc, kind: str, ranges: Ranges, what: str, own: bytes = b"") -> None:
        self.entries: list[Entry] = toc.entries
        self.what = what
        self._toc = toc
        self._kind = kind
        self._ranges = ranges
        self._own = own  # eStargz's table is itself a file of the layer, the last

    def read(self, number: int, limit: int) -> bytes:
        """The content of entry ``number`` (the first is 0), verified; b"" for one of more than ``limit`` bytes.

        Raises FormatError, DigestMismatch, and what the ranges raise.
        """
        entry = self.entries[number]
        if self._own and number == len(self.entries) - 1:
            return self._own
        content = self._toc.contents.get(number)
        if content is None or entry.size > limit:
            return b""
        first, last = content.pieces[0], content.pieces[-1]
        stop = self._toc.starts[bisect.bisect_right(self._toc.starts, last.offset)]
        what = f"entry {number} of {self.what}"
        stream = self._ranges(first.offset, stop - first.offset)
        if stream is None:
            raise FormatError(self.what, "", "ranges of it can no longer be had")
        try:
            plain = members(stream, self._kind, what)
            _take(plain, first.inner, what)
            whole = hasher("sha256")
            parts = []
            for piece in content.pieces:
                data = _take(plain, piece.length, what)
                if piece.digest:
                    _same(data, piece.digest, what)
                whole.update(data)
                parts.append(data)
        finally:
            stream.close()
        if content.digest and f"sha256:{whole.hexdigest()}" != content.digest:
            raise DigestMismatch(what, Digest(content.digest), f"sha256:{whole.hexdigest()}")
        return b"".join(parts)


def _same(data: bytes, digest: str, what: str) -> None:
    got = sha256_of(data)
    if got != digest:
        raise DigestMismatch(what, Digest(digest), got)


def _take(plain: Members, size: int, what: str) -> bytes:
    """Exactly so many plain bytes; raises FormatError at an early end."""
    parts = []
    while size:
        data = plain.read(min(size, _STEP))
        if not data:
            raise FormatError(what, "", f"it ends {size} bytes too early")
        size -= len(data)
        parts.append(data)
    return b"".join(parts)


def open_index(annotations: dict[str, str], media_type: str, size: int, ranges: Ranges, what: str) -> LayerIndex | None:
    """The index of a layer by its descriptor's annotations; None when it has none that can be used.

    That is: no annotation, no ranges to be had, a table that is too large, or that leaves a file without a digest. One
    that is there and wrong is an error: DigestMismatch, FormatError, SpecError.
    """
    if media_type in mediatypes.FOREIGN_LAYERS:
        return None
    kind = compression_of(media_type)
    if kind == "zstd":
        for digest, place in ((ZSTD_DIGEST, ZSTD_PLACE), (OLD_ZSTD_DIGEST, OLD_ZSTD_PLACE)):
            if digest in annotations and place in annotations:
                return _zstd(annotations[digest], annotations[place], size, ranges, what)
    if kind == "gzip" and ESTARGZ_DIGEST in annotations:
        return _estargz(annotations, size, ranges, what)
    return None


def _bytes(ranges: Ranges, start: int, size: int, what: str) -> bytes | None:
    """Bytes of the blob, all of them or None for none; raises FormatError when there are fewer."""
    stream = ranges(start, size)
    if stream is None:
        return None
    parts = []
    left = size
    try:
        while left and (data := stream.read(min(left, 1 << 20))):
            left -= len(data)
            parts.append(data)
    finally:
        stream.close()
    if left:
        raise FormatError(what, f"byte {start + size - left}", "it ends too early")
    return b"".join(parts)


def _zstd(digest: str, place: str, size: int, ranges: Ranges, what: str) -> LayerIndex | None:
    """containers-storage's: the table is compressed in a skippable frame, at a place the annotation names."""
    table = f"table of contents of {what}"
    numbers = _numbers(place, 4)
    if numbers is None:
        raise FormatError(what, ZSTD_PLACE, "must be four numbers, as 1:2:3:1")
    start, length, plain, version = numbers
    if version != 1 or length > TOC_LIMIT or plain > TOC_LIMIT:
        return None
    if start + length > size or not length:
        raise FormatError(what, ZSTD_PLACE, f"lies outside of the layer's {size} bytes")
    data = _bytes(ranges, start, length, what)
    if data is None:
        return None
    want = usable(digest)
    made = hasher(want.algorithm)
    made.update(data)
    if f"{want.algorithm}:{made.hexdigest()}" != want:
        raise DigestMismatch(table, want, f"{want.algorithm}:{made.hexdigest()}")
    text = decompressor(io.BytesIO(data), mediatypes.LAYER_ZSTD, limit=plain, what=table).readall()
    toc = parse_toc(text, start - 8, table)  # 8: the skippable frame's head
    return LayerIndex(toc, "zstd", ranges, what) if toc.whole else None


def _estargz(annotations: dict[str, str], size: int, ranges: Ranges, what: str) -> LayerIndex | None:
    """stargz-snapshotter's: the footer says where the last member begins, a tar entry of the table."""
    table = f"table of contents of {what}"
    if size <= FOOTER:
        return None
    footer = _bytes(ranges, size - FOOTER, FOOTER, what)
    if footer is None:
        return None
    start = toc_offset(footer)
    if start is None:  # the table is elsewhere ("external TOC"), or it is stargz's first form
        return None
    if not 0 < start < size - FOOTER:
        raise FormatError(what, "footer", f"the table of contents cannot begin at byte {start} of {size}")
    if size - FOOTER - start > TOC_LIMIT:
        return None
    data = _bytes(ranges, start, size - FOOTER - start, what)
    if data is None:
        return None
    # The rest of the tar: the table's entry and the zeros that end it.
    reader = Reader(
        decompressor(io.BytesIO(data), mediatypes.LAYER_GZIP, limit=TOC_LIMIT + _STEP, what=table), what=table
    )
    entry = reader.next()
    if entry is None or entry.name != TOC_NAME:
        raise FormatError(what, f"byte {start}", f"there is no {TOC_NAME.decode()}")
    if entry.size > TOC_LIMIT:
        return None
    text = b"".join(bytes(part) for part in reader.chunks())
    if reader.next() is not None:
        raise FormatError(table, "", "another entry follows it")
    want = usable(annotations[ESTARGZ_DIGEST])
    made = hasher(want.algorithm)
    made.update(text)
    if f"{want.algorithm}:{made.hexdigest()}" != want:
        raise DigestMismatch(table, want, f"{want.algorithm}:{made.hexdigest()}")
    toc = parse_toc(text, start, table)
    if not toc.whole:
        return None
    toc.entries.append(entry)
    return LayerIndex(toc, "gzip", ranges, what, text)


def toc_offset(footer: bytes) -> int | None:
    """Where eStargz's table begins, by the last 51 bytes of the blob; None when they are not its footer."""
    field = footer[12:38]
    if not footer.startswith(_FOOTER_HEAD) or footer[10:12] != b"\x1a\x00" or field[:4] != b"SG\x16\x00":
        return None
    digits, mark = field[4:20], field[20:]
    if mark != b"STARGZ" or any(digit not in b"0123456789abcdef" for digit in digits):
        return None
    return int(digits, 16)


def _numbers(text: Any, count: int) -> list[int] | None:
    """Decimal numbers between colons."""
    parts = text.split(":") if isinstance(text, str) else []
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return None
    return [int(part) for part in parts]

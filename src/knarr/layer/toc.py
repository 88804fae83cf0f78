"""Tables of contents of layers that can be read in part: eStargz's and zstd:chunked's JSON, checked; pure.

stargz-snapshotter, docs/estargz.md; containers-storage, pkg/chunked. Both list the tar's entries with, for each
file, where in the blob the compressed members (frames) begin that hold its content, and digests of the pieces. A table
is a stranger's words: every number is bounded here, and nothing is believed of content but its digest.
"""

from __future__ import annotations

import binascii
import re

from knarr.base import fastjson
from knarr.base.errors import FormatError
from knarr.base.record import Record
from knarr.layer.model import MOST_ENTRIES
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, HARDLINK, NAME_LIMIT, SYMLINK, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TOC_LIMIT = 64 << 20
"""Most bytes of a table, decompressed: that of 150,000 files or more. A layer with a larger one is read whole."""
_FILE_LIMIT = 1 << 38  # as tarball.py has it
_INNER_LIMIT = 64 << 20  # bytes before a piece in its member, which have to be decompressed for nothing
_ID_LIMIT = 1 << 31
_KINDS = {"reg": FILE, "dir": DIR, "symlink": SYMLINK, "hardlink": HARDLINK, "char": CHAR, "block": BLOCK, "fifo": FIFO}
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Piece(Record):
    """Part of a file: ``length`` plain bytes that begin ``inner`` bytes into what the member at ``offset`` holds."""

    offset: int
    inner: int
    length: int
    digest: str


class Content(Record):
    """A file's content: its pieces in order, and the digest of all of it ("" when the table has none)."""

    pieces: tuple[Piece, ...]
    digest: str


class Toc(Record):
    """What a table says: the tar's entries in order, and by their place (the first is 0) the files' contents.

    ``starts`` are the offsets at which something begins, in order, the table's own the last. ``whole``: every file
    can be read by it and verified.
    """

    entries: list[Entry]
    contents: dict[int, Content]
    starts: list[int]
    whole: bool


def parse_toc(data: bytes, end: int, what: str) -> Toc:
    """Read a table, given where it begins in the blob (``end``: all members lie before that).

    Raises SpecError for what is no JSON, FormatError with a JSON pointer for what makes no sense.
    """
    document = fastjson.loads(data, what, limit=TOC_LIMIT)
    if type(document) is not dict or type(document.get("entries")) is not list:
        raise FormatError(what, "/entries", "must be an array")
    if document.get("version") != 1 or type(document["version"]) is not int:
        raise FormatError(what, "/version", "must be 1")
    if len(document["entries"]) > MOST_ENTRIES:
        raise FormatError(what, "/entries", f"has {len(document['entries'])} items, at most {MOST_ENTRIES} are read")
    return _Parser(what, end).parse(document["entries"])


class _Parser:
    """One table being read."""

    def __init__(self, what: str, end: int) -> None:
        self.what = what
        self.end = end
        self.at = 0

    def fail(self, member: str, why: str) -> FormatError:
        return FormatError(self.what, f"/entries/{self.at}{fastjson.pointer_token(member) if member else ''}", why)

    def parse(self, items: list[Any]) -> Toc:
        entries: list[Entry] = []
        contents: dict[int, Content] = {}
        starts = {self.end}
        whole = True
        at = 0
        while at < len(items):
            self.at = at
            entry = self.entry(items[at])
            parts = [items[at]]
            at += 1
            while at < len(items) and type(items[at]) is dict and items[at].get("type") == "chunk":
                parts.append(items[at])
                at += 1
            if entry.kind == FILE and entry.size:
                content = self.content(entry, parts)
                starts.update(piece.offset for piece in content.pieces)
                whole = whole and (bool(content.digest) or all(piece.digest for piece in content.pieces))
                contents[len(entries)] = content
            elif len(parts) > 1:
                raise self.fail("", "chunks follow what has no content")
            entries.append(entry)
        return Toc(entries, contents, sorted(starts), whole)

    def number(self, item: dict[str, Any], member: str, limit: int) -> int:
        value = item.get(member, 0)
        if type(value) is not int or not 0 <= value < limit:
            raise self.fail(member, f"must be a whole number from 0 to {limit - 1}")
        return value

    def text(self, item: dict[str, Any], member: str, limit: int = NAME_LIMIT) -> bytes:
        value = item.get(member, "")
        raw = value.encode() if type(value) is str else None
        if raw is None or len(raw) > limit or b"\0" in raw:
            raise self.fail(member, f"must be text of at most {limit} bytes without a NUL")
        return raw

    def digest(self, item: dict[str, Any], member: str) -> str:
        value = item.get(member, "")
        if value and (type(value) is not str or _DIGEST.fullmatch(value) is None):
            raise self.fail(member, "must be a sha256 digest")
        return str(value)

    def entry(self, item: Any) -> Entry:
        """The header of one entry, as the tar has it."""
        kind = _KINDS.get(item["type"]) if type(item) is dict and type(item.get("type")) is str else None
        if kind is None:
            raise self.fail("type", f"must be one of {', '.join(_KINDS)}")
        entry = Entry()
        entry.kind = kind
        entry.name = self.text(item, "name")
        if not entry.name:
            raise self.fail("name", "is missing")
        entry.mode = self.number(item, "mode", 1 << 32) & 0o7777
        entry.uid = self.number(item, "uid", _ID_LIMIT)
        entry.gid = self.number(item, "gid", _ID_LIMIT)
        entry.mtime = self.time(item)
        entry.xattrs = self.xattrs(item)
        if kind == FILE:
            entry.size = self.number(item, "size", _FILE_LIMIT)
        elif kind in (SYMLINK, HARDLINK):
            entry.link = self.text(item, "linkName")
        elif kind in (CHAR, BLOCK):
            entry.device = self.number(item, "devMajor", _ID_LIMIT), self.number(item, "devMinor", _ID_LIMIT)
        return entry

    def time(self, item: dict[str, Any]) -> int:
        """Nanoseconds since 1970 of an RFC 3339 time, 0 when there is none."""
        import calendar

        value = item.get("modtime", "")
        if value in ("", None):
            return 0
        found = _TIME.fullmatch(value) if type(value) is str else None
        if found is None:
            raise self.fail("modtime", "is no time as RFC 3339 writes it")
        year, month, day, hour, minute, second = map(int, found.groups()[:6])
        if not year or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
            raise self.fail("modtime", "is no day there is")
        if hour > 23 or minute > 59 or second > 60:
            raise self.fail("modtime", "is no time of day")
        seconds = calendar.timegm((year, month, day, hour, minute, second))
        if found[8]:
            away = int(found[9]) * 3600 + int(found[10]) * 60
            seconds += away if found[8] == "-" else -away
        return seconds * 1_000_000_000 + int((found[7] or "").ljust(9, "0"))

    def xattrs(self, item: dict[str, Any]) -> dict[bytes, bytes] | None:
        given = item.get("xattrs")
        if not given:
            return None
        if type(given) is not dict or len(given) > 1000:
            raise self.fail("xattrs", "must be an object of at most 1000 attributes")
        found = {}
        for name, text in given.items():
            try:
                value = binascii.a2b_base64(text, strict_mode=True) if text else b""
            except (ValueError, TypeError):
                raise self.fail("xattrs", f"{name[:60]!r} is no base64") from None
            if len(value) > 1 << 16 or not 0 < len(name.encode()) <= 255 or "\0" in name:
                raise self.fail("xattrs", f"{name[:60]!r} is longer than an attribute can be")
            found[name.encode()] = value
        return found

    def content(self, entry: Entry, parts: list[dict[str, Any]]) -> Content:
        """The pieces of a file: they follow each other without a gap, here and in the blob."""
        pieces: list[Piece] = []
        covered = 0
        for number, part in enumerate(parts):
            if number:
                self.at += 1
                if self.text(part, "name") != entry.name:
                    raise self.fail("name", "is not the file's whose chunk it is")
            if self.number(part, "chunkOffset", _FILE_LIMIT) != covered:
                raise self.fail("chunkOffset", f"must be {covered}: the chunks of a file follow each other")
            offset = self.number(part, "offset", self.end)
            if pieces and offset < pieces[-1].offset:
                raise self.fail("offset", "lies before that of the chunk before it")
            inner = self.number(part, "innerOffset", _INNER_LIMIT)
            left = entry.size - covered
            length = self.number(part, "chunkSize", _FILE_LIMIT) or left
            if length > left or not length:
                raise self.fail("chunkSize", f"goes past the file's end: {left} bytes are left")
            digest = self.digest(part, "chunkDigest")
            pieces.append(Piece(offset, inner, length, digest))
            covered += length
        if covered != entry.size:
            raise self.fail("", f"the chunks have {covered} bytes of the file's {entry.size}")
        return Content(tuple(pieces), self.digest(parts[0], "digest"))

"""Where the members of an archive lie in its file: names, offsets and sizes, nothing else.

For image archives (oci-archive, docker-archive), whose members are read in place. Nothing is ever extracted, so
a name is only a key to look up: it cannot lead anywhere. ustar, PAX and GNU headers; bounded (docs/security.md I10).
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError, FormatError
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MEMBER_LIMIT = 200_000
HEADER_LIMIT = 1 << 20  # a PAX or long-name header
_BLOCK = 512
_ZEROS = bytes(_BLOCK)


class Member(Record):
    """One member: ``kind`` is file, link (symbolic), or other; ``target`` where a link points."""

    kind: str
    offset: int
    size: int
    target: str = ""


class _Pending:
    """What extension headers said about the next member."""

    __slots__ = ("link", "name", "seen", "size", "sparse")

    def __init__(self) -> None:
        self.name: str | None = None
        self.link: str | None = None
        self.size: int | None = None
        self.sparse = False
        self.seen = False


class TarIndex:
    """The members of one archive by name, a leading ``./`` taken off."""

    def __init__(self, members: Mapping[str, Member], twice: frozenset[str], path: str) -> None:
        self._members = members
        self._twice = twice
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def get(self, name: str) -> Member | None:
        """Return the member of that name, None when there is none; raises FormatError when there are two."""
        if name in self._twice:
            raise FormatError(self._path, name, "is in the archive twice")
        return self._members.get(name)


def index_tar(fd: int, path: str) -> TarIndex:
    """Read the headers of the archive open at ``fd``; ``path`` is for errors. Raises FormatError, FileError."""
    try:
        total = os.fstat(fd).st_size
    except OSError as error:
        raise FileError("read", path, error.errno or 0) from None
    members: dict[str, Member] = {}
    twice: set[str] = set()
    pending = _Pending()
    at = 0
    count = 0
    while at < total:
        head = _read(fd, at, _BLOCK, path)
        if head == _ZEROS:
            after = _read(fd, at + _BLOCK, _BLOCK, path)
            if after and after != _ZEROS:
                raise FormatError(path, f"offset {at}", "a block of zeros stands between members")
            break
        if len(head) < _BLOCK:
            raise FormatError(path, f"offset {at}", "it ends in the middle of a header")
        _check(head, at, path)
        count += 1
        if count > MEMBER_LIMIT:
            raise FormatError(path, "", f"it has more than {MEMBER_LIMIT} members")
        kind = head[156:157]
        size = _number(head[124:136], at, path)
        start = at + _BLOCK
        if kind in b"xgLK":
            if size > HEADER_LIMIT:
                raise FormatError(path, f"offset {at}", f"an extension header of {size} bytes, at most {HEADER_LIMIT}")
            data = _read(fd, start, size, path)
            if len(data) < size:
                raise FormatError(path, f"offset {at}", "it ends in the middle of an extension header")
            _extend(pending, kind, data, at, path)
        else:
            if pending.size is not None:
                size = pending.size
            if kind in b"12346" and pending.size is None:
                size = 0  # links and devices carry no data, whatever the field says
            member, name = _member(head, kind, start, size, pending)
            if start + size > total:
                raise FormatError(path, name, f"it ends after {total - start} of {size} bytes")
            if name in members:
                twice.add(name)
            members[name] = member
            pending = _Pending()
        at = start + -(-size // _BLOCK) * _BLOCK
    if pending.seen:
        raise FormatError(path, "", "it ends after an extension header, before its member")
    if not members:
        raise FormatError(path, "", "it is not a tar archive, or an empty one")
    return TarIndex(members, frozenset(twice), path)


def _read(fd: int, at: int, size: int, path: str) -> bytes:
    try:
        return os.pread(fd, size, at)
    except OSError as error:
        raise FileError("read", path, error.errno or 0) from None


def _check(head: bytes, at: int, path: str) -> None:
    """Check the header's checksum: bytes as unsigned or, as some old tars did, signed."""
    want = _number(head[148:156], at, path)
    plain = head[:148] + b" " * 8 + head[156:]
    if sum(plain) != want and sum(byte - 256 if byte > 127 else byte for byte in plain) != want:
        where = "" if at == 0 else f"offset {at}"
        raise FormatError(path, where, "it is not a tar archive" if at == 0 else "a header's checksum is wrong")


def _number(field: bytes, at: int, path: str) -> int:
    """Read a number: octal, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40 or value >= 1 << 62:
            raise FormatError(path, f"offset {at}", "a number in a header is negative or too large")
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        where = "" if at == 0 else f"offset {at}"
        raise FormatError(path, where, "it is not a tar archive" if at == 0 else "a header has a bad number")
    return int(digits, 8)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _member(head: bytes, kind: bytes, start: int, size: int, pending: _Pending) -> tuple[Member, str]:
    if pending.name is not None:
        name = pending.name
    else:
        name = _text(head[:100])
        if head[257:263] == b"ustar\0" and head[345]:
            name = f"{_text(head[345:500])}/{name}"
    while name.startswith("./"):
        name = name[2:]
    if kind in b"0\x007" and not pending.sparse and not name.endswith("/"):
        return Member("file", start, size), name
    if kind == b"2":
        target = pending.link if pending.link is not None else _text(head[157:257])
        return Member("link", start, size, target), name
    return Member("other", start, size), name.rstrip("/")


def _extend(pending: _Pending, kind: bytes, data: bytes, at: int, path: str) -> None:
    if kind == b"g":
        for key, _ in _records(data, at, path):
            if key in {"path", "linkpath", "size"} or key.startswith("GNU.sparse."):
                raise FormatError(path, f"offset {at}", f"a global header sets {key}")
        return
    pending.seen = True
    if kind == b"L":
        pending.name = _text(data)
    elif kind == b"K":
        pending.link = _text(data)
    else:
        for key, value in _records(data, at, path):
            if key == "path":
                pending.name = value
            elif key == "linkpath":
                pending.link = value
            elif key == "size":
                if not value.isascii() or not value.isdigit() or len(value) > 18:
                    raise FormatError(path, f"offset {at}", f"a PAX size of {value[:40]!r}")
                pending.size = int(value)
            elif key.startswith("GNU.sparse."):
                pending.sparse = True


def _records(data: bytes, at: int, path: str) -> list[tuple[str, str]]:
    """Read PAX records, ``length key=value`` and a line feed each (pax(1), pax Extended Header)."""
    found = []
    here = 0
    while here < len(data):
        space = data.find(b" ", here, here + 8)
        digits = data[here:space] if space > here else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : here + length]
        key, equals, value = record.partition(b"=")
        if not equals or not key or not value.endswith(b"\n") or here + length > len(data):
            raise FormatError(path, f"offset {at}", "a PAX record is malformed")
        found.append((key.decode("utf-8", "surrogateescape"), value[:-1].decode("utf-8", "surrogateescape")))
        here += length
    return found

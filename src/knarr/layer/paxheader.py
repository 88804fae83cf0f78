"""PAX extended headers: records to facts, strictly. pax(1) of POSIX.1-2017, "pax Extended Header".

A record that is malformed, given twice or empty where a value must be is refused, never skipped: parsers
that shrug it off disagree about what follows (CVE-2025-62518 and its kin).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.base.errors import FormatError

    Fail = Callable[[str], FormatError]

LIMIT = 1 << 20
"""Bytes of one extended header."""

SPARSE_NAME = b"GNU.sparse.name"
_SPARSE = b"GNU.sparse."
_XATTR = b"SCHILY.xattr."
_XATTRS_LIMIT = 1000
_XATTR_NAME_LIMIT = 255  # XATTR_NAME_MAX
_XATTR_VALUE_LIMIT = 65536  # XATTR_SIZE_MAX
_MEANT = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")


class Facts:
    """What a header says about its entry; None where it says nothing."""

    __slots__ = ("gid", "linkpath", "mtime", "path", "size", "sparse", "uid", "xattrs")

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.linkpath: bytes | None = None
        self.size: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.mtime: int | None = None
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: dict[bytes, bytes] = {}


def parse(data: bytes, fail: Fail) -> dict[bytes, bytes]:
    """The records ``length key=value`` of a header. Raises what ``fail`` makes."""
    records: dict[bytes, bytes] = {}
    at, end = 0, len(data)
    pieces: list[bytes] = []  # sparse format 0.0 repeats its keys: offset, length, offset, length …
    while at < end:
        space = data.find(b" ", at, at + 9)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise fail("a PAX record has no length")
        stop = at + int(digits)
        if stop > end or stop < space + 3 or data[stop - 1] != 10:
            raise fail("a PAX record's length is wrong")
        equals = data.find(b"=", space + 1, stop - 1)
        if equals <= space + 1:
            raise fail("a PAX record has no key")
        key = data[space + 1 : equals]
        value = data[equals + 1 : stop - 1]
        at = stop
        if b"\0" in key:
            raise fail("a PAX key holds a NUL")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(pieces) % 2 == 0):
                raise fail("the sparse map is malformed")
            pieces.append(value)
            continue
        if key in records:
            raise fail(f"the PAX record {key.decode('utf-8', 'backslashreplace')} is given twice")
        records[key] = value
    if pieces:
        if b"GNU.sparse.map" in records:
            raise fail("the sparse map is given twice")
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def check_global(data: bytes, fail: Fail) -> None:
    """Refuse a global header that would change what entries are; ``comment`` and the like are ignored."""
    for key in parse(data, fail):
        if key in _MEANT or key.startswith((_XATTR, _SPARSE)):
            raise fail(f"a global PAX header sets {key.decode('utf-8', 'backslashreplace')} for every entry")


def interpret(records: dict[bytes, bytes], fail: Fail) -> Facts:
    """What the records mean. Raises what ``fail`` makes."""
    facts = Facts()
    for key, value in records.items():
        if key == b"path":
            if facts.path is None:  # a sparse file's real name, below, wins
                facts.path = _name(value, fail)
        elif key == b"linkpath":
            facts.linkpath = _name(value, fail)
        elif key == b"mtime":
            if value:
                facts.mtime = _nanoseconds(value, fail)
        elif key == b"size":
            facts.size = decimal(value, "size", fail)
        elif key == b"uid":
            facts.uid = decimal(value, "user id", fail)
        elif key == b"gid":
            facts.gid = decimal(value, "group id", fail)
        elif key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if not name or len(name) > _XATTR_NAME_LIMIT:
                raise fail(f"an extended attribute's name has {len(name)} bytes")
            if len(value) > _XATTR_VALUE_LIMIT:
                raise fail(f"an extended attribute has {len(value)} bytes, at most {_XATTR_VALUE_LIMIT} are possible")
            facts.xattrs[name] = value
            if len(facts.xattrs) > _XATTRS_LIMIT:
                raise fail(f"there are more than {_XATTRS_LIMIT} extended attributes")
        elif key == SPARSE_NAME:
            facts.path = _name(value, fail)
        elif key.startswith(_SPARSE):
            facts.sparse[key[len(_SPARSE) :]] = value
    return facts


def _name(value: bytes, fail: Fail) -> bytes:
    if not value:
        raise fail("a PAX header gives an empty name")
    if b"\0" in value:
        raise fail("a PAX header gives a name with a NUL in it")
    return value


def decimal(text: bytes, name: str, fail: Fail) -> int:
    """A decimal number of at most 63 bits."""
    if not text.isdigit() or len(text) > 19 or int(text) >= 1 << 63:
        raise fail(f"the {name} {text[:30].decode('ascii', 'backslashreplace')!r} is not a number that can be used")
    return int(text)


def _nanoseconds(text: bytes, fail: Fail) -> int:
    """Seconds with an optional fraction, as exact nanoseconds (rounded down)."""
    negative = text.startswith(b"-")
    whole, _point, fraction = (text[1:] if negative else text).partition(b".")
    if not whole.isdigit() or len(whole) > 15 or (fraction and not fraction.isdigit()) or len(fraction) > 60:
        raise fail(f"the modification time {text[:30].decode('ascii', 'backslashreplace')!r} cannot be used")
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")
    if negative:
        value = -value - (1 if fraction[9:].strip(b"0") else 0)
    return value

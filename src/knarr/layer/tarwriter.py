"""Write tar archives that come out the same every time: ustar headers, PAX where those are too small.

No clock, no user names, no order of its own: the caller sorts. pax(1) of POSIX.1-2017; image-spec layer.md.
"""

from __future__ import annotations

import os
from errno import EIO

from knarr.base.errors import FileError
from knarr.layer.tarball import BLOCK, BLOCK_SIZE, CHAR, DIR, FILE, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Writable(Protocol):
        """Where the archive goes."""

        def write(self, data: bytes | memoryview, /) -> object: ...


_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777


def header(entry: Entry) -> bytes:
    """The header blocks of an entry; a file's data follow, padded to whole blocks."""
    records: dict[bytes, bytes] = {}
    name = entry.name
    if entry.kind == DIR and not name.endswith(b"/"):
        name += b"/"
    prefix = b""
    if len(name) > 100:
        prefix, name = _split(name)
        if not name:
            records[b"path"] = entry.name + (b"/" if entry.kind == DIR and not entry.name.endswith(b"/") else b"")
            name = entry.name[:100]
    link = entry.link
    if len(link) > 100:
        records[b"linkpath"] = link
        link = link[:100]
    size = entry.size if entry.kind == FILE else 0
    if size > _OCTAL_11:
        records[b"size"] = b"%d" % size
        size = 0
    uid, gid = entry.uid, entry.gid
    if uid > _OCTAL_7:
        records[b"uid"] = b"%d" % uid
        uid = 0
    if gid > _OCTAL_7:
        records[b"gid"] = b"%d" % gid
        gid = 0
    seconds, rest = divmod(entry.mtime, 1_000_000_000)
    if rest or not 0 <= seconds <= _OCTAL_11:
        records[b"mtime"] = _decimal(entry.mtime)
        seconds = min(max(seconds, 0), _OCTAL_11)
    for key, value in (entry.xattrs or {}).items():
        records[b"SCHILY.xattr." + key] = value
    block = _block(name, prefix, entry, size, uid, gid, seconds, link)
    if not records:
        return block
    if any(not _is_utf8(value) for key, value in records.items() if key in (b"path", b"linkpath")):
        records[b"hdrcharset"] = b"BINARY"
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    extended = Entry()
    extended.mode = 0o644
    first = _block(b"PaxHeaders/" + entry.name.rpartition(b"/")[2][:80], b"", extended, len(body), 0, 0, 0, b"", b"x")
    return first + body + padding(len(body)) + block


def padding(size: int) -> bytes:
    """What fills up ``size`` bytes of content to whole blocks."""
    return bytes(-size % BLOCK_SIZE)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The ustar prefix and name of a long name; empty when it cannot be split."""
    at = name.rfind(b"/", 0, 156)
    while at > 0:
        if 0 < len(name) - at - 1 <= 100:
            return name[:at], name[at + 1 :]
        at = -1 if len(name) - at - 1 > 100 else name.rfind(b"/", 0, at)
    return b"", b""


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return sign + (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(b"%d" % length):
        length = len(body) + len(b"%d" % length)
    return b"%d" % length + body


def _block(
    name: bytes,
    prefix: bytes,
    entry: Entry,
    size: int,
    uid: int,
    gid: int,
    seconds: int,
    link: bytes,
    flag: bytes = b"",
) -> bytes:
    major, minor = entry.device if entry.kind in (CHAR, BLOCK) else (0, 0)
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (entry.mode, uid, gid, size, seconds),
            b"        ",
            flag or b"%d" % entry.kind,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % (major, minor),
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class Writer:
    """Writes entries to ``out``; ``close`` writes the end of the archive and leaves ``out`` open."""

    def __init__(self, out: Writable) -> None:
        self._out = out

    def add(self, entry: Entry, data: bytes = b"") -> None:
        """Write an entry, with a file's content in one piece."""
        entry.size = len(data)
        self._out.write(header(entry) + data + padding(len(data)))

    def add_file(self, entry: Entry, fd: int, path: str) -> None:
        """Write a file of ``entry.size`` bytes from a descriptor; FileError when it has not so many."""
        self._out.write(header(entry))
        left = entry.size
        while left:
            data = os.read(fd, min(left, 1 << 20))
            if not data:
                raise FileError("read", path, EIO, hint="it became shorter while it was read")
            self._out.write(data)
            left -= len(data)
        self._out.write(padding(entry.size))

    def close(self) -> None:
        """Write the two blocks of zeros that end an archive."""
        self._out.write(bytes(2 * BLOCK_SIZE))

"""Writes layers that can be read in part (chunked.py): eStargz and zstd:chunked, out of a plain tar.

zstd:chunked keeps every byte of the tar, and so the diffID; its table of contents and tar-split lie in frames that
decompressors skip. eStargz has two more entries, a landmark in front and the table at the end: its diffID is another
one. Both are reproducible: no clock, no random number.
"""

from __future__ import annotations

import base64

from knarr.base import fastjson
from knarr.base.clock import rfc3339
from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.content.compressor import coders_of
from knarr.content.digest import hasher, sha256_of
from knarr.kernel.heap import trim
from knarr.kernel.path import printable
from knarr.layer.chunked import TOC_NAME
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, Entry, Reader
from knarr.layer.tarsplit import Crc64, TarSplit
from knarr.layer.tarwriter import header, padding
from knarr.spec.mediatypes import (
    ESTARGZ_DIGEST,
    OLD_ZSTD_DIGEST,
    OLD_ZSTD_PLACE,
    ZSTD_DIGEST,
    ZSTD_PLACE,
    ZSTD_TARSPLIT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from knarr.content.compressor import Compression, Writable
    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor

PIECE = 4 << 20
"""Most bytes of a file in one piece; stargz-snapshotter's usual one."""
_LANDMARK = b".no.prefetch.landmark"
_LANDMARKS = (_LANDMARK, b".prefetch.landmark")
_TYPES = {FILE: "reg", DIR: "dir", SYMLINK: "symlink", HARDLINK: "hardlink", CHAR: "char", BLOCK: "block", FIFO: "fifo"}
_SKIPPABLE = b"\x50\x2a\x4d\x18"
_ZSTD_MAGIC = b"GNUlInUx"
_BLOCK_SIZE = 512
_TRIM = 16 << 20
"""After so many bytes what malloc keeps is given back: a coder for each file leaves holes between its blocks."""


class Written(Record):
    """A layer that was written: its descriptor, and the digests of the tar as it came and as it is now."""

    descriptor: Descriptor
    came: str
    diff_id: str


def write_chunked(plain: Readable, out: Writable, how: Compression, what: str) -> Written:
    """Write a tar's bytes to ``out`` as ``how`` says, which has ``table``.

    Raises FormatError for what is no tar, Unsupported for a sparse file or a name that is not UTF-8, and what
    reading and writing raise.
    """
    work: _Writer = _Zstd(plain, out, how, what) if how.kind == "zstd" else _Stargz(plain, out, how, what)
    return work.write()


class _Raw:
    """A stream that keeps what was read until it is taken, and hashes it."""

    def __init__(self, stream: Readable) -> None:
        self.hash = hasher("sha256")
        self._stream = stream
        self._parts: list[bytes] = []
        self._at = 0  # how much of the stream was taken
        self._used = 0  # how much of the first part that is
        self._read = 0  # since memory was given back

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if data:
            self.hash.update(data)
            self._parts.append(data)
            self._read += len(data)
            if self._read >= _TRIM:
                self._read = 0
                trim()
        return data

    def take(self, end: int) -> bytes:
        """The bytes up to ``end`` of the stream that were not taken."""
        return b"".join(self._pieces(end))

    def drop(self, end: int) -> None:
        """As ``take``, of bytes that nobody wants: a file's, which the reader of the tar gives."""
        for _ in self._pieces(end):
            pass

    def _pieces(self, end: int) -> Iterator[memoryview]:
        while self._parts and self._at < end:
            part = self._parts[0]
            step = min(len(part) - self._used, end - self._at)
            piece = memoryview(part)[self._used : self._used + step]
            self._at += step
            self._used += step
            if self._used == len(part):
                del self._parts[0]
                self._used = 0
            yield piece

    def rest(self) -> bytes:
        """Some more bytes of the stream, b"" at its end; what is kept goes first."""
        if not self._parts:
            self.read(1 << 20)
        return self.take(1 << 63)

    def close(self) -> None:
        """It is somebody else's."""


class _Members:
    """Compressed members (frames), one after the other; counted and hashed."""

    def __init__(self, out: Writable, how: Compression) -> None:
        self.size = 0
        self.plain = hasher("sha256")
        self._hash = hasher("sha256")
        self._out = out
        self._new = coders_of(how)
        self._coder: Any = None

    def write(self, data: bytes | memoryview) -> None:
        """Plain bytes into the member that is open, or a new one."""
        if not data:
            return
        if self._coder is None:
            self._coder = self._new()
        self.plain.update(data)
        self.raw(self._coder.compress(data))

    def cut(self) -> int:
        """End the member; where the next one begins."""
        if self._coder is not None:
            self.raw(self._coder.flush())
            self._coder = None
        return self.size

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        if data:
            self._hash.update(data)
            self.size += len(data)
            self._out.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Writer:
    """One layer being written; the two formats differ in what they do beside."""

    def __init__(self, plain: Readable, out: Writable, how: Compression, what: str) -> None:
        self.raw = _Raw(plain)
        self.out = _Members(out, how)
        self.how = how
        self.what = what
        self.entries: list[dict[str, Any]] = []

    def write(self) -> Written:
        self.begin()
        reader = Reader(self.raw, what=self.what)
        pad = 0
        dropped = False
        while (entry := reader.next()) is not None:
            head = self.raw.take(reader.offset)
            self.between(head[:pad], dropped=dropped)
            dropped = self.drops(entry)
            self.between(head[pad:], dropped=dropped)
            if entry.extents is not None:
                hint = "compress it without a table of contents"
                why = f"{printable(entry.name)} in it is a sparse file"
                raise Unsupported(f"a table of contents of {self.what}", why, hint=hint)
            item = None if dropped else self.item(entry, head[-_BLOCK_SIZE:], reader.pax)
            if item is not None:
                self.entries.append(item)
            if entry.size:
                self.content(item, entry, reader)
            pad = -entry.size % _BLOCK_SIZE
        self.end(pad, dropped=dropped)
        notes = self.finish()
        descriptor: Descriptor = {
            "mediaType": self.how.media_type(),
            "digest": self.out.digest,
            "size": self.out.size,
            "annotations": notes,
        }
        return Written(descriptor, f"sha256:{self.raw.hash.hexdigest()}", f"sha256:{self.out.plain.hexdigest()}")

    def begin(self) -> None:
        """What comes before the first entry."""

    def drops(self, entry: Entry) -> bool:
        """Whether an entry is left out."""
        del entry
        return False

    def between(self, data: bytes, *, dropped: bool) -> None:
        """Bytes that are no content."""
        if not dropped:
            self.out.write(data)

    def content(self, item: dict[str, Any] | None, entry: Entry, reader: Reader) -> None:
        """A file's content, in pieces; ``item`` is None for one that is left out."""
        whole = hasher("sha256")
        part = hasher("sha256")
        first, left, done = item, 0, 0
        for data in reader.chunks():
            self.raw.drop(reader.offset)
            if item is None or first is None:
                continue
            self.file_bytes(data)
            whole.update(data)
            at = 0
            while at < len(data):
                if not left:
                    if done:
                        item["chunkDigest"] = f"sha256:{part.hexdigest()}"
                        item = {"type": "chunk", "name": first["name"], "chunkOffset": done}
                        self.entries.append(item)
                    part = hasher("sha256")
                    left = min(PIECE, entry.size - done)
                    item["offset"] = self.out.cut()
                    if entry.size > PIECE and (self.how.kind == "zstd" or done + left < entry.size):
                        item["chunkSize"] = left
                step = min(left, len(data) - at)
                self.out.write(data[at : at + step])
                part.update(data[at : at + step])
                at, left, done = at + step, left - step, done + step
        if item is not None and first is not None:
            item["chunkDigest"] = f"sha256:{part.hexdigest()}"
            first["digest"] = f"sha256:{whole.hexdigest()}"
            self.after(first)

    def file_bytes(self, data: memoryview) -> None:
        """Content as it passes by."""

    def after(self, item: dict[str, Any]) -> None:
        """A file's content was written."""

    def end(self, pad: int, *, dropped: bool) -> None:
        """What follows the last entry: its padding, and what ends the tar."""
        while data := self.raw.rest():
            self.between(data[:pad], dropped=dropped)
            self.between(data[pad:], dropped=False)
            pad -= min(pad, len(data))

    def finish(self) -> dict[str, str]:
        """Write the table; the annotations of the layer."""
        raise NotImplementedError

    def item(self, entry: Entry, block: bytes, pax: dict[bytes, bytes] | None) -> dict[str, Any]:
        """What the table says of an entry: what its header says, literally, for others compare the two."""
        item: dict[str, Any] = {"type": _TYPES[entry.kind], "name": self.text(entry.name)}
        if entry.link:
            item["linkName"] = self.text(entry.link)
        item["mode"] = _mode(block[100:108], entry.mode)
        numbers = {"size": entry.size, "uid": entry.uid, "gid": entry.gid}
        item |= {name: value for name, value in numbers.items() if value}
        item["modtime"] = self.time(entry.mtime)
        if entry.kind in (CHAR, BLOCK):
            item["devMajor"], item["devMinor"] = entry.device
        if entry.xattrs:
            item["xattrs"] = {
                self.text(name): base64.b64encode(value).decode() for name, value in sorted(entry.xattrs.items())
            }
        del pax
        return item

    def time(self, nanoseconds: int) -> str:
        try:
            return rfc3339(nanoseconds)
        except ValueError as error:
            raise Unsupported(f"a table of contents of {self.what}", str(error)) from None

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            hint = "compress it without a table of contents"
            why = f"the name {printable(raw)} in it is not UTF-8, and JSON has no other"
            raise Unsupported(f"a table of contents of {self.what}", why, hint=hint) from None


def _mode(field: bytes, mode: int) -> int:
    """The mode of a header as it stands: some programs put the type's bits into it."""
    digits = field.strip(b" \0")
    return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else mode


class _Zstd(_Writer):
    """zstd:chunked: frames, then the table, a tar-split and a footer in skippable ones."""

    def begin(self) -> None:
        self.split_coder = coders_of(self.how)()
        self.split_bytes: list[bytes] = []
        self.split = TarSplit(self._split_write)
        self.crc = Crc64()

    def _split_write(self, line: bytes) -> None:
        self.split_bytes.append(self.split_coder.compress(line))

    def between(self, data: bytes, *, dropped: bool) -> None:
        del dropped  # nothing is
        self.out.write(data)
        self.split.segment(data)

    def file_bytes(self, data: memoryview) -> None:
        self.crc.update(data)

    def item(self, entry: Entry, block: bytes, pax: dict[bytes, bytes] | None) -> dict[str, Any]:
        item = super().item(entry, block, pax)
        for key, name in ((b"atime", "accesstime"), (b"ctime", "changetime")):
            when = _seconds((pax or {}).get(key, b""))
            if when is not None:
                item[name] = self.time(when)
        if not entry.size:
            self.split.entry(item["name"], 0, b"")
        return item

    def after(self, item: dict[str, Any]) -> None:
        item["endOffset"] = self.out.cut()
        if "chunkSize" not in item:
            del item["chunkDigest"]  # in one piece: the digest says it
        self.split.entry(item["name"], item["size"], self.crc.digest())
        self.crc = Crc64()

    def finish(self) -> dict[str, str]:
        self.out.cut()
        self.split_bytes.append(self.split_coder.flush())
        split = b"".join(self.split_bytes)
        table = fastjson.dumps({"version": 1, "entries": self.entries, "tarSplitDigest": sha256_of(split)})
        coder = coders_of(self.how)()
        packed = coder.compress(table) + coder.flush()
        place = self._skippable(packed)
        split_place = self._skippable(split)
        numbers = (place, len(packed), len(table), 1, split_place, len(split), self.split.size)
        self._skippable(b"".join(number.to_bytes(8, "little") for number in numbers) + _ZSTD_MAGIC)
        digest, where = sha256_of(packed), f"{place}:{len(packed)}:{len(table)}:1"
        return {
            ZSTD_DIGEST: digest,
            ZSTD_PLACE: where,
            OLD_ZSTD_DIGEST: digest,
            OLD_ZSTD_PLACE: where,
            ZSTD_TARSPLIT: f"{split_place}:{len(split)}:{self.split.size}",
        }

    def _skippable(self, data: bytes) -> int:
        """A frame that decompressors skip (RFC 8878, 3.1.2); where its content begins."""
        self.out.raw(_SKIPPABLE + len(data).to_bytes(4, "little"))
        place = self.out.size
        self.out.raw(data)
        return place


def _seconds(text: bytes) -> int | None:
    """Nanoseconds of a PAX time; None for none, or what is not one."""
    whole, _point, rest = text.partition(b".")
    if not whole.isdigit() or len(whole) > 11 or (rest and not rest.isdigit()):
        return None
    return int(whole) * 1_000_000_000 + int(rest[:9].ljust(9, b"0"))


class _Stargz(_Writer):
    """eStargz: a landmark, the entries, and the table as the last entry; the footer says where that begins."""

    def begin(self) -> None:
        entry = Entry()
        entry.name, entry.mode, entry.size = _LANDMARK, 0o644, 1
        self.out.write(header(entry))
        digest = sha256_of(b"\x0f")
        self.entries.append({
            "name": _LANDMARK.decode(), "type": "reg", "size": 1, "mode": 0o644, "offset": self.out.cut(),
            "digest": digest, "chunkDigest": digest,
        })  # fmt: skip
        self.out.write(b"\x0f" + padding(1))

    def drops(self, entry: Entry) -> bool:
        name = entry.name.removeprefix(b"./")  # of an eStargz that was recompressed
        return name == TOC_NAME or name in _LANDMARKS

    def end(self, pad: int, *, dropped: bool) -> None:
        """The padding; the zeros that ended the tar come behind the table."""
        if not dropped:
            self.out.write(bytes(pad))
        while self.raw.rest():
            pass

    def finish(self) -> dict[str, str]:
        table = fastjson.dumps({"version": 1, "entries": self.entries})
        place = self.out.cut()
        entry = Entry()
        entry.name, entry.mode, entry.size = TOC_NAME, 0o444, len(table)
        self.out.write(header(entry) + table + padding(len(table)) + bytes(2 * _BLOCK_SIZE))
        self.out.cut()
        self.out.raw(footer(place))
        return {ESTARGZ_DIGEST: sha256_of(table)}


def footer(place: int) -> bytes:
    """The last 51 bytes of an eStargz: an empty gzip member that has the table's offset in its extra field."""
    extra = b"SG\x16\x00" + b"%016xSTARGZ" % place
    head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + len(extra).to_bytes(2, "little")
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)

"""Plain bytes out of gzip and zstd layers, in this process, bounded and to the last byte.

The media type decides; bytes that say something else are refused (c/storage sniffs instead and so lets a
layer lie about itself). No external program ever runs: not even for xz, which is refused. The stream must
end where its last member or frame ends: zeros may follow gzip (tape padding), nothing may follow zstd.
"""

from __future__ import annotations

import io

from knarr.base.errors import FormatError, Unsupported
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from knarr.content.verify import Readable

    class Members(Protocol):
        """Plain bytes: 1 to ``size`` of them, b"" at the end."""

        def read(self, size: int) -> bytes: ...


INPUT = 1 << 18
"""Compressed bytes read at a time."""

WINDOW_LIMIT = 1 << 27
"""Largest zstd window accepted: 128 MiB, what ``zstd -19`` and ``--long`` ask for at most."""

_HEADER_LIMIT = 1 << 18  # gzip: extra field, name and comment together
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (_ZSTD, "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh91AY&SY", "bzip2"),
)


def sniff(head: bytes) -> str:
    """Say which compression the first bytes of a stream show: gzip, zstd, xz, bzip2, or "" for none of them."""
    if head[257:262] == b"ustar":  # a tar whose first name looks like a magic number is still a tar
        return ""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    if head[:3] == b"BZh" and head[4:10] == b"1AY&SY":
        return "bzip2"
    if len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # zstd: a skippable frame
        return "zstd"
    return ""


def compression_of(media_type: str) -> str:
    """Return how a layer of this media type is compressed: "", "gzip" or "zstd"; raises Unsupported."""
    known = mediatypes.LAYERS.get(media_type)
    if known is not None:
        return known
    if media_type.endswith(mediatypes.ENCRYPTED_SUFFIX):
        raise Unsupported(f"layer media type {media_type[:120]!r}", "the layer is encrypted")
    if media_type.endswith((".xz", "+xz", ".bzip2", "+bzip2")):
        why = "knarr reads gzip, zstd and uncompressed layers"
        raise Unsupported(f"layer media type {media_type[:120]!r}", why, hint="push the image again with gzip or zstd")
    raise Unsupported(f"layer media type {media_type[:120]!r}", "it is not a layer of an image")


def decompressor(stream: Readable, media_type: str, *, limit: int | None = None, what: str = "") -> Decompressor:
    """Return a reader of the plain tar bytes of a layer.

    ``limit`` is the most plain bytes to give out; without it a bomb is bounded by what the reader does with
    the bytes (256 KiB of memory here, and the zstd window). Raises Unsupported for a media type that is no
    layer's or is encrypted, and, while reading, FormatError for bytes that are damaged, end too early, go on
    after the end, exceed the limit or are compressed otherwise than the media type says. Closing closes
    ``stream``.
    """
    kind = compression_of(media_type)
    name = what or "layer"
    source: _Gunzip | _Unzstd | _Plain
    if kind == "gzip":
        source = _Gunzip(stream, name)
    elif kind == "zstd":
        source = _Unzstd(stream, name)
    else:
        source = _Plain(stream, name)
    return Decompressor(source, stream, name, kind, limit)


def members(stream: Readable, kind: str, what: str) -> Members:
    """Return a reader of what some members (frames) in the middle of a layer hold; ``kind`` is gzip or zstd.

    Bounded as a layer's are; what they hold may itself be compressed, for it is a file's content. Reading raises
    FormatError.
    """
    return _Gunzip(stream, what) if kind == "gzip" else _Unzstd(stream, what)


class Decompressor(io.RawIOBase):
    """What ``decompressor`` returns: ``read(n)`` gives 1 to n plain bytes, b"" at the verified end."""

    def __init__(self, source: Any, stream: Readable, what: str, kind: str, limit: int | None) -> None:
        super().__init__()
        self.produced = 0
        """Plain bytes handed out so far."""
        self._source = source
        self._stream = stream
        self._what = what
        self._kind = kind
        self._limit = limit

    def readable(self) -> bool:
        """Say that it can be read (io.RawIOBase asks)."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` plain bytes, everything for -1; raises FormatError."""
        if size is None or size < 0:
            return self.readall()
        if self.closed:
            raise ValueError("read of a closed reader")
        if size == 0:
            return b""
        data: bytes = self._source.read(size)
        if not self.produced and data and self._kind:
            inner = sniff(data)
            if inner:
                raise FormatError(self._what, "", f"it is compressed twice: {inner} inside {self._kind}")
        self.produced += len(data)
        if self._limit is not None and self.produced > self._limit:
            raise FormatError(self._what, "", f"it has more than the {self._limit} bytes allowed once decompressed")
        return data

    def readall(self) -> bytes:
        """Return all plain bytes that remain; for small streams, or with a limit."""
        parts = []
        while part := self.read(INPUT):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` (io.BufferedReader asks); returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close it and the compressed stream under it."""
        if not self.closed:
            super().close()
            self._stream.close()


def _mismatch(what: str, declared: str, head: bytes) -> FormatError:
    found = sniff(head)
    declared = declared or "an uncompressed tar"
    return FormatError(what, "", f"its media type says {declared}, but the bytes are {found or f'not {declared}'}")


def _fill(stream: Readable, wanted: int) -> bytes:
    """Read until there are ``wanted`` bytes or the stream ends."""
    parts = []
    while wanted > 0:
        part = stream.read(INPUT)
        if not part:
            break
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


class _Plain:
    """An uncompressed layer; only looks at how it starts."""

    def __init__(self, stream: Readable, what: str) -> None:
        self._stream = stream
        self._what = what
        self._held = b""
        self._started = False

    def read(self, size: int) -> bytes:
        if not self._started:
            self._held = _fill(self._stream, 512)
            if sniff(self._held):
                raise _mismatch(self._what, "", self._held)
            self._started = True
        if self._held:
            data, self._held = self._held[:size], self._held[size:]
            return data
        return self._stream.read(size)


class _Gunzip:
    """gzip (RFC 1952) through ISA-L: one member after the other.

    The headers are parsed here: the library does not look at the reserved flags, and it loses its place when a
    long extra field is followed by a name. It checks each member's CRC32 and length.
    """

    def __init__(self, stream: Readable, what: str) -> None:
        from isal import igzip_lib

        self._lib: Any = igzip_lib
        self._stream = stream
        self._what = what
        self._held = b""  # compressed bytes not yet given to the library
        self._inflate: Any = None
        self._members = 0
        self._end = False

    def read(self, size: int) -> bytes:
        while not self._end:
            inflate = self._inflate or self._next_member()
            if inflate is None:
                break
            if inflate.needs_input:
                data = self._held or self._stream.read(INPUT)
                self._held = b""
                if not data:
                    raise FormatError(self._what, f"gzip member {self._members}", "the data ends in the middle")
            else:
                data = b""
            try:
                out: bytes = inflate.decompress(data, size)
            except self._lib.IsalError as error:
                why = "the checksum or length at its end is wrong" if "-6" in str(error) else "the data is damaged"
                raise FormatError(self._what, f"gzip member {self._members}", why) from None
            if inflate.eof:
                self._held = inflate.unused_data
                self._inflate = None
            if out:
                return out
        return b""

    def _next_member(self) -> Any:
        """Read a member's header and return what inflates it; None at a proper end of the stream."""
        if len(self._held) < 10:
            self._held += _fill(self._stream, 10 - len(self._held))
        held = self._held
        if self._members and not held.strip(b"\0"):
            self._padding()
            return None
        if not held:
            raise FormatError(self._what, "", "it is empty")
        if not held.startswith(_GZIP):
            if self._members:
                raise FormatError(self._what, "", "something that is not gzip follows the last gzip member")
            raise _mismatch(self._what, "gzip", held + _fill(self._stream, 512))
        where = f"gzip member {self._members + 1}"
        if len(held) < 10:
            raise FormatError(self._what, where, "the header ends in the middle")
        flags = held[3]
        if held[2] != 8:
            raise FormatError(self._what, where, f"the compression method is {held[2]}, only 8 (deflate) is defined")
        if flags & 0xE0:
            raise FormatError(self._what, where, "reserved flags are set")
        at = 10
        if flags & 4:  # FEXTRA
            length = int.from_bytes(self._header(at + 2, where)[at : at + 2], "little")
            at += 2 + length
            self._header(at, where)
        for flag in (8, 16):  # FNAME, FCOMMENT: up to a zero byte
            if flags & flag:
                searched = at
                while (end := self._held.find(b"\0", searched)) < 0:
                    searched = len(self._held)
                    self._header(searched + 1, where)
                at = end + 1
        if flags & 2:  # FHCRC: the low half of the CRC32 of the header
            from zlib import crc32

            held = self._header(at + 2, where)
            if int.from_bytes(held[at : at + 2], "little") != crc32(held[:at]) & 0xFFFF:
                raise FormatError(self._what, where, "the header's checksum is wrong")
            at += 2
        self._held = self._held[at:]
        self._members += 1
        self._inflate = self._lib.IgzipDecompressor(flag=self._lib.DECOMP_GZIP_NO_HDR_VER)
        return self._inflate

    def _header(self, end: int, where: str) -> bytes:
        """Hold at least ``end`` bytes of header and return them all."""
        if end > _HEADER_LIMIT:
            raise FormatError(self._what, where, f"the header is longer than {_HEADER_LIMIT} bytes")
        if len(self._held) < end:
            self._held += _fill(self._stream, end - len(self._held))
            if len(self._held) < end:
                raise FormatError(self._what, where, "the header ends in the middle")
        return self._held

    def _padding(self) -> None:
        """Read the zeros after the last member to the end; anything else among them is refused."""
        while data := self._stream.read(INPUT):
            if data.strip(b"\0"):
                raise FormatError(self._what, "", "something that is not gzip follows the last gzip member")
        self._end = True


class _Unzstd:
    """zstd (RFC 8878) through libzstd; ``_ZstdFrames`` beneath it watches where frames start and end."""

    def __init__(self, stream: Readable, what: str) -> None:
        import zstandard

        self._lib: Any = zstandard
        self._what = what
        self._frames = _ZstdFrames(stream, what)
        context: Any = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
        self._reader = context.stream_reader(self._frames, read_size=INPUT, read_across_frames=True, closefd=False)

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._reader.read(size)
        except self._lib.ZstdError as error:
            self._frames.finish(damaged=True)
            damage = "a checksum is wrong" if "checksum" in str(error) else "the data is damaged"
            raise FormatError(self._what, f"zstd frame {self._frames.number}", damage) from None
        if not data:
            self._frames.finish()
        return data


class _ZstdFrames:
    """Passes zstd bytes on while following frame and block headers.

    libzstd's streaming reader ends quietly when its input ends inside a frame and allocates what the header
    asks for; so the end, the window, the dictionary and what follows a frame are judged here.
    """

    def __init__(self, stream: Readable, what: str) -> None:
        self.number = 0
        """The frame being read, from 1."""
        self._stream = stream
        self._what = what
        self._first = b""  # the bytes it starts with
        self._step = self._magic
        self._need = 4  # bytes of the header that _step wants
        self._held = b""  # a header split between two reads
        self._skip = 0  # content bytes up to the next header
        self._checksum = False
        self._inside = False  # within a frame
        self._single = False  # the frame is one segment: its window is its content size

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if not self._first:
            data += _fill(self._stream, 512 - len(data))
            self._first = data[:512]
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                continue
            take = self._need - len(self._held)
            self._held += data[at : at + take]
            at = min(at + take, end)
            if len(self._held) == self._need:
                head, self._held = self._held, b""
                self._step(head)
        return data

    def finish(self, *, damaged: bool = False) -> None:
        """Raise FormatError unless the stream ended where a frame ended (or, if ``damaged``, for what follows one)."""
        if not self.number and not self._inside and not self._held:
            raise FormatError(self._what, "", "it is empty")
        if self._held and not self._inside and self.number:
            raise FormatError(self._what, "", "something that is not zstd follows the last zstd frame")
        if not damaged and (self._inside or self._skip or self._held):
            raise FormatError(self._what, f"zstd frame {self.number}", "the data ends in the middle")

    def _fail(self, why: str) -> FormatError:
        return FormatError(self._what, f"zstd frame {self.number}", why)

    def _magic(self, head: bytes) -> None:
        if head == _ZSTD:
            self.number += 1
            self._inside = True
            self._step, self._need = self._descriptor, 1
        elif head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
            self._inside = True
            self._step, self._need = self._skippable, 4
        elif self.number:
            raise FormatError(self._what, "", "something that is not zstd follows the last zstd frame")
        else:
            raise _mismatch(self._what, "zstd", self._first)

    def _skippable(self, head: bytes) -> None:
        self._skip = int.from_bytes(head, "little")
        self._inside = False
        self._step, self._need = self._magic, 4

    def _descriptor(self, head: bytes) -> None:
        flags = head[0]
        single = flags >> 5 & 1
        if flags & 8:
            raise self._fail("a reserved bit is set")
        if flags & 3:
            raise self._fail("it needs a dictionary")
        self._checksum = bool(flags & 4)
        content = (single, 2, 4, 8)[flags >> 6]  # bytes of the frame content size
        self._single = bool(single)
        self._step, self._need = self._sizes, content + (0 if single else 1)

    def _sizes(self, head: bytes) -> None:
        if self._single:
            window = int.from_bytes(head, "little") + (256 if len(head) == 2 else 0)
        else:
            base = 1 << (10 + (head[0] >> 3))
            window = base + (base >> 3) * (head[0] & 7)
        if window > WINDOW_LIMIT:
            raise self._fail(f"it needs a window of {window} bytes, at most {WINDOW_LIMIT} are given")
        self._step, self._need = self._block, 3

    def _block(self, head: bytes) -> None:
        value = int.from_bytes(head, "little")
        kind, size = value >> 1 & 3, value >> 3
        if kind == 3:
            raise self._fail("it has a block of the reserved type")
        self._skip = 1 if kind == 1 else size  # a run-length block stores one byte
        if value & 1:  # the last block
            if self._checksum:
                self._skip += 4
            self._inside = False
            self._step, self._need = self._magic, 4

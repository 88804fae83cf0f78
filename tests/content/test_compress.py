"""Decompression: media types decide, everything is bounded, nothing hides after the end (docs/security.md I10)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import resource
import struct
import subprocess
import sys
import time
import zlib

import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from knarr.base.errors import FormatError, KnarrError, Unsupported
from knarr.content.compress import compression_of, decompressor, sniff
from knarr.spec import mediatypes

GZIP, ZSTD, PLAIN = mediatypes.LAYER_GZIP, mediatypes.LAYER_ZSTD, mediatypes.LAYER


class Short(io.BytesIO):
    """Gives at most ``step`` bytes a time."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step if size is None or size < 0 else min(size, self.step))


def plain(data: bytes, media_type: str, *, step: int = 1 << 20, ask: int = 1 << 16) -> bytes:
    reader = decompressor(Short(data, step), media_type)
    parts = []
    while part := reader.read(ask):
        assert len(part) <= ask
        parts.append(part)
    return b"".join(parts)


def zstd(data: bytes, *, checksum: bool = False, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size).compress(data)


SAMPLE = bytes(random.Random(7).choices(b"abcdefgh", k=200_000))
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
BODY = gzip.compress(SAMPLE)[10:]  # deflate data and trailer


@given(data=st.binary(max_size=2000), step=st.integers(1, 700), ask=st.integers(1, 700))
def test_every_compression_gives_the_bytes_back(data: bytes, step: int, ask: int) -> None:
    assume(not sniff(data))
    assert plain(gzip.compress(data), GZIP, step=step, ask=ask) == data
    assert plain(zstd(data), ZSTD, step=step, ask=ask) == data
    assert plain(data, PLAIN, step=step, ask=ask) == data


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_several_members_and_frames(step: int) -> None:
    half = SAMPLE[:1000]
    assert plain(gzip.compress(half) + gzip.compress(b"") + gzip.compress(half), GZIP, step=step) == half * 2
    skip = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 5) + b"12345"
    frames = skip + zstd(half, checksum=True) + skip + zstd(b"") + zstd(half, size=False) + skip
    assert plain(frames, ZSTD, step=step) == half * 2


@pytest.mark.parametrize("step", [1, 777, 1 << 20])
@pytest.mark.parametrize("flags", [4, 8, 16, 4 | 8, 4 | 8 | 16, 4 | 8 | 16 | 2, 1])
def test_long_gzip_header_fields(flags: int, step: int) -> None:
    head = HEADER[:3] + bytes([flags]) + HEADER[4:]
    if flags & 4:
        head += struct.pack("<H", 60_000) + b"x" * 60_000
    if flags & 8:
        head += b"n" * 65_536 + b"\0"
    if flags & 16:
        head += b"c" * 65_536 + b"\0"
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    assert plain(head + BODY, GZIP, step=step) == SAMPLE


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if at >= 0 else flip(data, len(data) + at)


G, Z = HEADER + BODY, zstd(SAMPLE, checksum=True)
DAMAGED = [
    ("gzip checksum", GZIP, flip(G, -8), "checksum or length"),
    ("gzip length", GZIP, flip(G, -1), "checksum or length"),
    ("gzip cut in trailer", GZIP, G[:-3], "ends in the middle"),
    ("gzip cut in data", GZIP, G[:-5000], "ends in the middle"),
    ("gzip cut in header", GZIP, G[:7], "ends in the middle"),
    ("gzip cut in extra", GZIP, HEADER[:3] + b"\x04" + HEADER[4:] + b"\xff\xff123", "ends in the middle"),
    ("gzip bad deflate", GZIP, HEADER + b"\xff" * 1000, "damaged"),
    ("gzip reserved flags", GZIP, HEADER[:3] + b"\x20" + HEADER[4:] + BODY, "reserved flags"),
    ("gzip method", GZIP, HEADER[:2] + b"\x07" + HEADER[3:] + BODY, "method is 7"),
    ("gzip header checksum", GZIP, HEADER[:3] + b"\x02" + HEADER[4:] + b"\x00\x00" + BODY, "header's checksum"),
    ("gzip endless name", GZIP, HEADER[:3] + b"\x08" + HEADER[4:] + b"n" * 400_000, "header is longer"),
    ("gzip garbage after", GZIP, G + b"garbage", "follows the last gzip member"),
    ("gzip garbage after zeros", GZIP, G + b"\0" * 600_000 + b"x", "follows the last gzip member"),
    ("gzip second member cut", GZIP, G + HEADER[:6], "ends in the middle"),
    ("gzip empty", GZIP, b"", "empty"),
    ("gzip twice", GZIP, gzip.compress(G), "compressed twice: gzip inside gzip"),
    ("zstd in gzip", GZIP, gzip.compress(Z), "compressed twice: zstd inside gzip"),
    ("zstd checksum", ZSTD, flip(Z, -1), "checksum"),
    ("zstd cut", ZSTD, Z[:-1], "ends in the middle"),
    ("zstd cut at block", ZSTD, Z[:-5000], "ends in the middle"),
    ("zstd cut in header", ZSTD, Z[:5], "ends in the middle"),
    ("zstd garbage after", ZSTD, Z + b"garbage!", "follows the last zstd frame"),
    ("zstd zeros after", ZSTD, Z + b"\0" * 512, "follows the last zstd frame"),
    ("zstd short garbage after", ZSTD, Z + b"x", "follows the last zstd frame"),
    ("zstd empty", ZSTD, b"", "empty"),
    ("zstd reserved bit", ZSTD, Z[:4] + bytes([Z[4] | 8]) + Z[5:], "reserved bit"),
    ("zstd dictionary", ZSTD, Z[:4] + bytes([Z[4] | 1]) + b"\x07" + Z[5:], "dictionary"),
    ("zstd window 2 GiB", ZSTD, b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00", "window of 2147483648"),
    (
        "zstd one segment of 1 GiB",
        ZSTD,
        b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1 << 30) + b"\x01\x00\x00",
        "window",
    ),
    ("zstd reserved block", ZSTD, b"\x28\xb5\x2f\xfd\x00\x58\x07\x00\x00", "reserved type"),
    ("declared gzip, plain", GZIP, SAMPLE, "media type says gzip, but the bytes are not gzip"),
    ("declared gzip, zstd", GZIP, Z, "the bytes are zstd"),
    ("declared zstd, gzip", ZSTD, G, "the bytes are gzip"),
    ("declared zstd, xz", ZSTD, lzma.compress(SAMPLE), "the bytes are xz"),
    ("declared tar, gzip", PLAIN, G, "says an uncompressed tar, but the bytes are gzip"),
    ("declared tar, zstd", PLAIN, Z, "the bytes are zstd"),
    ("declared tar, xz", PLAIN, lzma.compress(SAMPLE), "the bytes are xz"),
    ("declared tar, bzip2", PLAIN, bz2.compress(SAMPLE), "the bytes are bzip2"),
]


@pytest.mark.parametrize("step", [5, 1 << 20])
@pytest.mark.parametrize(("media_type", "data", "why"), [c[1:] for c in DAMAGED], ids=[c[0] for c in DAMAGED])
def test_damaged_streams_are_refused(media_type: str, data: bytes, why: str, step: int) -> None:
    with pytest.raises(FormatError, match=why):
        plain(data, media_type, step=step)


def test_zeros_may_follow_gzip() -> None:
    assert plain(G + b"\0" * 1_000_000, GZIP) == SAMPLE


def test_a_tar_may_start_like_anything() -> None:
    head = bytearray(b"BZh91AY&SY".ljust(512, b"\0"))
    head[257:262] = b"ustar"
    assert plain(bytes(head), PLAIN) == head


@given(st.sampled_from([G, Z]), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_damage_raises_only_our_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    broken = bytearray(data[:5001])
    for at, value in changes:
        broken[at % len(broken)] = value
    for media_type in (GZIP, ZSTD, PLAIN):
        try:
            out = plain(bytes(broken), media_type)
        except KnarrError:
            continue
        assert len(out) < 1 << 24


@pytest.mark.parametrize(
    ("media_type", "why"),
    [
        (GZIP + "+encrypted", "encrypted"),
        ("application/vnd.docker.image.rootfs.diff.tar.xz", "gzip, zstd and uncompressed"),
        ("application/octet-stream", "not a layer"),
        ("", "not a layer"),
    ],
)
def test_media_types_that_are_no_layers(media_type: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        decompressor(io.BytesIO(b""), media_type)


def test_every_known_layer_type_is_read() -> None:
    for media_type, kind in mediatypes.LAYERS.items():
        data = {"": SAMPLE, "gzip": G, "zstd": Z}[kind]
        assert compression_of(media_type) == kind
        assert plain(data, media_type) == SAMPLE


def test_limit_and_close() -> None:
    stream = io.BytesIO(G)
    reader = decompressor(stream, GZIP, limit=len(SAMPLE) - 1, what="layer sha256:…")
    with pytest.raises(FormatError, match=f"layer sha256:…: it has more than the {len(SAMPLE) - 1} bytes"):
        reader.readall()
    reader.close()
    assert stream.closed
    assert decompressor(io.BytesIO(G), GZIP, limit=len(SAMPLE)).readall() == SAMPLE


BOMBS = """
import io, sys
from knarr.base.errors import FormatError
from knarr.content.compress import decompressor
from knarr.spec import mediatypes
kind, limit = sys.argv[1], 1 << 29
data = sys.stdin.buffer.read()
reader = decompressor(io.BytesIO(data), kind, limit=limit)
count = 0
try:
    while part := reader.read(1 << 18):
        assert len(part) <= 1 << 18
        count += len(part)
except FormatError as error:
    print(error)
status = open("/proc/self/status").read()
print(count, status.partition("VmHWM:")[2].split()[0])  # ru_maxrss would count the parent before exec
"""


@pytest.mark.parametrize("kind", [GZIP, ZSTD])
def test_bombs_cost_little_memory_and_stop_at_the_limit(kind: str) -> None:
    if kind == GZIP:
        member = gzip.compress(bytes(1 << 24), 6)
        data = member * 64  # 1 GiB from 1 MiB
    else:
        # run-length blocks of 128 KiB, four bytes each: 4 GiB from 128 KiB
        block = struct.pack("<I", (131_072 << 3 | 1 << 1))[:3] + b"\0"
        data = b"\x28\xb5\x2f\xfd\x00\x58" + block * 32_768 + b"\x01\0\0"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BOMBS, kind], input=data, capture_output=True, check=True, timeout=60)
    message, numbers = done.stdout.decode().splitlines()
    count, peak = map(int, numbers.split())
    assert "more than the 536870912 bytes allowed" in message
    assert count <= 1 << 29
    assert peak < 64 << 10  # KiB
    assert time.monotonic() - started < 20


def test_no_program_runs_for_xz() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(FormatError):
        plain(lzma.compress(SAMPLE), GZIP)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == before

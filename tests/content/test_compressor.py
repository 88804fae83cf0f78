"""What is compressed is what other programs read back, the same each time, and is counted and hashed rightly."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from knarr.base.errors import UsageError
from knarr.content.compress import decompressor, sniff
from knarr.content.compressor import Compression, LayerWriter, parse_compression

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["none", "gzip", "gzip:1", "gzip:9", "zstd", "zstd:1", "zstd:19"]
DATA = b"".join(random.Random(7).choice([b"ab" * 40, b"xyz", bytes(900)]) for _ in range(20_000))


def packed(data: bytes, kind: str, step: int = 1 << 16) -> tuple[bytes, LayerWriter]:
    out = io.BytesIO()
    writer = LayerWriter(out, parse_compression(kind))
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
    writer.close()
    return out.getvalue(), writer


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    data, writer = packed(DATA, kind)
    descriptor = writer.descriptor()
    assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert descriptor["size"] == len(data)
    assert writer.diff_id == "sha256:" + hashlib.sha256(DATA).hexdigest()
    assert writer.plain_size == len(DATA)
    assert decompressor(io.BytesIO(data), descriptor["mediaType"]).readall() == DATA
    assert packed(DATA, kind)[0] == data


@given(st.binary(max_size=5000), st.sampled_from(KINDS), st.integers(1, 400))
def test_any_bytes(data: bytes, kind: str, step: int) -> None:
    assume(kind != "none" or not sniff(data))  # plain bytes that look packed are no tar, and refused
    made, writer = packed(data, kind, step)
    assert decompressor(io.BytesIO(made), writer.descriptor()["mediaType"]).readall() == data


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_however_they_come(kind: str) -> None:
    """A registry's connection gives pieces of any size; the digest must not depend on them."""
    data = random.Random(3).randbytes(3_300_000) + DATA
    want = packed(data, kind, len(data))[0]
    for step in (1 << 20, 300_000, 4096, (1 << 20) + 1):
        assert packed(data, kind, step)[0] == want, step


def test_other_programs_read_it(tmp_path: Path) -> None:
    assert gzip.decompress(packed(DATA, "gzip")[0]) == DATA
    for kind, program in (("gzip", "gzip"), ("gzip:9", "gzip"), ("zstd", "zstd")):
        path = tmp_path / f"{program}.x"
        path.write_bytes(packed(DATA, kind)[0])
        done = subprocess.run([program, "-dc"], input=path.read_bytes(), capture_output=True, check=True)
        assert done.stdout == DATA


def test_gzip_header_says_nothing() -> None:
    for kind in ("gzip", "gzip:6"):
        head = packed(DATA, kind)[0][:10]
        assert head[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00", kind  # no name, no time


def test_isal_gives_the_bytes_it_gave() -> None:
    # A new version of isal that compresses otherwise is a change of every digest, and should be seen.
    assert hashlib.sha256(packed(DATA, "gzip")[0]).hexdigest()[:16] == "a810b8dbcbc859b3"


@pytest.mark.parametrize("text", ["", "xz", "gzip:", "gzip:0", "gzip:10", "gzip:٣", "zstd:20", "none:1", "gzip:-1"])
def test_what_is_no_compression(text: str) -> None:
    with pytest.raises(UsageError):
        parse_compression(text)


def test_media_types() -> None:
    assert Compression("zstd").media_type() == "application/vnd.oci.image.layer.v1.tar+zstd"
    assert Compression("").media_type(docker=True) == "application/vnd.docker.image.rootfs.diff.tar"

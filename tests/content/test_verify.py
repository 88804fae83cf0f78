"""Verified readers: not a byte past the size, no end without the digest."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import DigestMismatch, FileError, FormatError, InvalidDigest, SizeMismatch
from knarr.content.digest import sha256_of
from knarr.content.verify import FileStream, VerifiedReader, open_regular, read_all, verify_bytes

if TYPE_CHECKING:
    from pathlib import Path


class Dribble(io.BytesIO):
    """Gives at most ``step`` bytes a time and counts what was taken."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step
        self.taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.step if size is None or size < 0 else min(size, self.step))
        self.taken += len(data)
        return data


def drain(reader: VerifiedReader, ask: int, got: list[bytes]) -> None:
    while part := reader.read(ask):
        got.append(part)


@given(data=st.binary(max_size=300), step=st.integers(1, 50), ask=st.integers(1, 400))
def test_right_bytes_pass_whole(data: bytes, step: int, ask: int) -> None:
    reader = VerifiedReader(Dribble(data, step), sha256_of(data), len(data))
    parts = []
    while part := reader.read(ask):
        parts.append(part)
    assert b"".join(parts) == data
    assert reader.read(1) == b""


@given(data=st.binary(min_size=1, max_size=300), cut=st.integers(1, 300), ask=st.integers(1, 400))
def test_an_early_end_is_seen(data: bytes, cut: int, ask: int) -> None:
    short = data[: max(0, len(data) - cut)]
    reader = VerifiedReader(io.BytesIO(short), sha256_of(data), len(data), "the thing")
    got: list[bytes] = []
    with pytest.raises(SizeMismatch, match=f"the thing has {len(short)} bytes, expected {len(data)}"):
        drain(reader, ask, got)
    assert b"".join(got) == short  # all of it may come, but never the end


@given(data=st.binary(max_size=300), extra=st.binary(min_size=1, max_size=50), ask=st.integers(1, 400))
def test_not_a_byte_too_many_is_given_out_or_taken(data: bytes, extra: bytes, ask: int) -> None:
    stream = Dribble(data + extra, 1000)
    reader = VerifiedReader(stream, sha256_of(data), len(data))
    got: list[bytes] = []
    with pytest.raises(SizeMismatch, match="more than"):
        drain(reader, ask, got)
    assert stream.taken == len(data) + 1
    assert len(b"".join(got)) < max(1, len(data))  # the last chunk is held back


@given(data=st.binary(min_size=1, max_size=300), at=st.integers(0, 299), ask=st.integers(1, 400))
def test_a_flipped_bit_never_reaches_the_end(data: bytes, at: int, ask: int) -> None:
    wrong = bytearray(data)
    wrong[at % len(data)] ^= 1
    reader = VerifiedReader(io.BytesIO(bytes(wrong)), sha256_of(data), len(data))
    got: list[bytes] = []
    with pytest.raises(DigestMismatch) as caught:
        drain(reader, ask, got)
    assert len(b"".join(got)) < len(data)
    assert caught.value.got == sha256_of(bytes(wrong))


def test_readinto_and_close() -> None:
    data = os.urandom(70_000)
    stream = io.BytesIO(data)
    with io.BufferedReader(VerifiedReader(stream, sha256_of(data), len(data))) as reader:
        assert reader.read() == data
    assert stream.closed


def test_a_stream_that_gives_more_than_asked() -> None:
    class Rude(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(None if size is None else size + 5)

    with pytest.raises(SizeMismatch):
        VerifiedReader(Rude(b"abcdefgh"), sha256_of(b"abc"), 3).read(10)


def test_unknown_algorithms_cannot_be_read() -> None:
    with pytest.raises(InvalidDigest):
        VerifiedReader(io.BytesIO(b""), "foo:abc", 0)


def test_small_documents() -> None:
    data = b"x" * 100
    assert read_all(io.BytesIO(data), sha256_of(data), 100, 100) == data
    untouched = Dribble(data, 1000)
    with pytest.raises(FormatError, match="it has 100 bytes, at most 99 are read"):
        read_all(untouched, sha256_of(data), 100, 99)
    assert untouched.taken == 0
    assert untouched.closed
    assert verify_bytes(data, sha256_of(data), 100) == sha256_of(data)
    with pytest.raises(SizeMismatch):
        verify_bytes(data, sha256_of(data), 99)
    with pytest.raises(DigestMismatch):
        verify_bytes(data, sha256_of(b""), 100)


def test_file_stream_reads_a_part_and_never_moves_the_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    fd, size = open_regular(str(path))
    assert size == 100
    part, whole = FileStream(fd, "f", 10, 20, own=False), FileStream(fd, "f")
    assert part.read(15) + part.read(15) + part.read(15) == bytes(range(10, 30))
    assert whole.read(1000) == bytes(range(100))
    part.close()
    assert os.pread(fd, 1, 0) == b"\0"
    whole.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("secret")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    for name, why in (
        ("link", "symbolic link"),
        ("fifo", "not a regular file"),
        (".", "is a directory"),
        ("no", "no such"),
    ):
        with pytest.raises(FileError, match=why):
            open_regular(str(tmp_path / name))

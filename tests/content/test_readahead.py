"""Reading ahead and hashing in a second thread: the same bytes, the same errors, no thread left."""

from __future__ import annotations

import hashlib
import io
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.base.errors import FormatError
from knarr.content.readahead import HashAside, ReadAhead


def threads() -> int:
    return sum(thread.name in {"knarr-readahead", "knarr-hash"} for thread in threading.enumerate())


@settings(max_examples=30)
@given(data=st.binary(max_size=3000), chunk=st.integers(1, 500), ask=st.integers(1, 900), depth=st.integers(1, 3))
def test_same_bytes(data: bytes, chunk: int, ask: int, depth: int) -> None:
    stream = io.BytesIO(data)
    with ReadAhead(stream, chunk=chunk, depth=depth) as reader:
        parts = []
        while part := reader.read(ask):
            assert len(part) <= ask
            parts.append(part)
        assert b"".join(parts) == data
        assert reader.read(1) == b""
    assert stream.closed
    assert threads() == 0


def test_buffered_reader_on_top() -> None:
    data = bytes(range(256)) * 1000
    with io.BufferedReader(ReadAhead(io.BytesIO(data), chunk=1000)) as reader:
        assert reader.read(300) == data[:300]
        assert reader.read() == data[300:]


def test_errors_come_after_the_bytes_before_them() -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                raise FormatError("layer", "", "broken")
            return data

    reader = ReadAhead(Breaks(b"abcdef"), chunk=4)
    assert reader.read(100) == b"abcd"
    assert reader.read(100) == b"ef"
    for _ in range(2):
        with pytest.raises(FormatError, match="broken"):
            reader.read(100)
    reader.close()
    assert threads() == 0


def test_it_stays_within_its_depth_and_close_ends_a_waiting_thread() -> None:
    class Counts(io.BytesIO):
        calls = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.calls += 1
            return super().read(size)

    stream = Counts(bytes(1 << 20))
    reader = ReadAhead(stream, chunk=1 << 10, depth=3)
    time.sleep(0.1)
    assert stream.calls == 3
    reader.read(1)
    time.sleep(0.1)
    assert stream.calls == 4
    reader.close()
    assert threads() == 0
    assert stream.closed
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


@settings(max_examples=30)
@given(parts=st.lists(st.binary(max_size=3000), max_size=20), depth=st.integers(1, 3))
def test_the_same_digest(parts: list[bytes], depth: int) -> None:
    aside = HashAside(hashlib.sha256(), depth=depth)
    for part in parts:
        aside.update(part)
    assert aside.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()
    assert threads() == 0


def test_hashing_stays_within_its_depth_and_close_ends_the_thread() -> None:
    going = threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.count = 0

        def update(self, _data: object, /) -> None:
            going.wait(30)
            self.count += 1

    slow = Slow()
    aside = HashAside(slow, depth=3)  # type: ignore[arg-type]  # all that is asked of it here
    done: list[int] = []

    def feed() -> None:
        for number in range(5):
            aside.update(b"x")
            done.append(number)

    feeder = threading.Thread(target=feed)
    feeder.start()
    time.sleep(0.1)
    assert done == [0, 1, 2]
    going.set()
    feeder.join()
    aside.close()
    aside.close()
    assert slow.count == 5
    assert threads() == 0

"""The bytes of a blob on their way out: read piece by piece, again where one was lost, and right or not at all."""

from __future__ import annotations

import io
import random
import threading
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import DigestMismatch, SizeMismatch
from knarr.content.digest import sha256_of
from knarr.content.verify import Resumable
from knarr.registry.outgoing import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.content.part import Source
    from knarr.content.verify import Readable

DATA = random.Random(1).randbytes(5_000_000)


@pytest.fixture
def opened() -> list[int]:
    return []


@pytest.fixture(params=["bytes", "file", "resumable"])
def source(request: pytest.FixtureRequest, opened: list[int]) -> Source:
    def begin(offset: int) -> Readable:
        opened.append(offset)
        return io.BytesIO(DATA[offset:])

    kinds: dict[str, Source] = {"bytes": DATA, "file": lambda: begin(0), "resumable": Resumable(begin)}
    return kinds[request.param]


def out(source: Source, moved: Callable[[int], None] = lambda _count: None) -> Outgoing:
    return Outgoing(source, sha256_of(DATA), len(DATA), moved)


def part(outgoing: Outgoing, start: int, count: int) -> bytes:
    return b"".join(outgoing.piece(start, count))


def consume(pieces: Iterator[bytes], into: bytearray) -> None:
    for piece in pieces:
        into.extend(piece)


def all_pieces(outgoing: Outgoing, size: int) -> Iterator[bytes]:
    for start in range(0, len(DATA), size):
        yield from outgoing.piece(start, size)


@pytest.mark.parametrize("size", [400_000, 1_700_000, 5_000_000])
def test_all_of_it_in_pieces(source: Source, size: int, opened: list[int]) -> None:
    moved: list[int] = []
    outgoing = out(source, moved.append)
    for start in range(0, len(DATA), size):
        count = min(size, len(DATA) - start)
        assert part(outgoing, start, count) == DATA[start : start + count]
    outgoing.close()
    assert sum(moved) == outgoing.sent == len(DATA)
    assert opened in ([], [0])


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("arrived", [0, 300_000, 2_000_000])
def test_a_piece_that_was_lost(source: Source, taken: int, arrived: int, opened: list[int]) -> None:
    moved: list[int] = []
    outgoing = out(source, moved.append)
    part(outgoing, 0, 1_000_000)
    lost = outgoing.piece(1_000_000, 2_000_000)
    for _ in range(taken):
        next(lost)
    begin = 1_000_000 + arrived
    assert part(outgoing, begin, 5_000_000 - begin) == DATA[begin:]
    outgoing.close()
    assert sum(moved) == len(DATA)
    if opened and (taken or arrived):
        assert opened[1:] == ([1_000_000] if isinstance(source, Resumable) else [0])  # not what was fetched once


def test_further_back_than_the_last_piece(source: Source) -> None:
    outgoing = out(source)
    part(outgoing, 0, 3_000_000)
    part(outgoing, 3_000_000, 1_000_000)
    assert part(outgoing, 500_000, 4_500_000) == DATA[500_000:]
    outgoing.close()


def test_what_the_registry_had_before_counts_for_the_digest() -> None:
    wrong = b"x" + DATA[1:]
    outgoing = Outgoing(lambda: io.BytesIO(wrong), sha256_of(DATA), len(DATA), lambda _count: None)
    with pytest.raises(DigestMismatch):
        part(outgoing, 4_000_000, 1_000_000)
    with pytest.raises(DigestMismatch):
        outgoing.piece(5_000_000, 0)
    outgoing.close()


@pytest.mark.parametrize("size", [1_000_000, 5_000_000])
def test_the_end_of_wrong_bytes_is_not_sent(size: int) -> None:
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    outgoing = Outgoing(lambda: io.BytesIO(wrong), sha256_of(DATA), len(DATA), lambda _count: None)
    sent = bytearray()
    with pytest.raises(DigestMismatch):
        consume(all_pieces(outgoing, size), sent)
    outgoing.close()
    assert len(sent) < len(DATA)


@pytest.mark.parametrize("length", [0, 2_000_000, 5_000_001])
def test_another_size(length: int) -> None:
    data = (DATA + b"x")[:length]
    outgoing = Outgoing(lambda: io.BytesIO(data), sha256_of(DATA), len(DATA), lambda _count: None)
    with pytest.raises(SizeMismatch):
        list(all_pieces(outgoing, 1_000_000))
    outgoing.close()


def test_no_thread_stays() -> None:
    before = threading.active_count()
    outgoing = out(lambda: io.BytesIO(DATA))
    next(outgoing.piece(0, 4_000_000))
    outgoing.close()
    assert threading.active_count() == before

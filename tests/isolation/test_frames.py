"""The codec of the guest's frames, and what the host makes of a guest that lies."""

from __future__ import annotations

import re
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import InitError, SafetyViolation
from knarr.isolation import frames
from knarr.isolation.frames import Decoder, Frame
from knarr.isolation.guest import Guest, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = Path(__file__).resolve().parents[2] / "src/knarr/init/guest.h"
HELLO = b"6.1.0\0x86_64\0cpu memory pids\n\0"


def head(kind: int, id: int = 0, value: int = 0, length: int = 0) -> bytes:
    return struct.pack("<IIII", length, kind, id, value)


def frame(kind: int, id: int = 0, value: int = 0, payload: bytes = b"") -> bytes:
    return head(kind, id, value, len(payload)) + payload


def test_the_table_is_the_headers() -> None:
    text = HEADER.read_text()
    numbers = {name: int(number) for name, number in re.findall(r"\b(?:FRAME|SLOT|SPAWN)_?(\w+) = (\d+)", text)}
    assert len(numbers) > 25
    for name, number in numbers.items():
        known = [getattr(frames, each) for each in (name, f"SLOT_{name}", f"SPAWN_{name}") if hasattr(frames, each)]
        assert number in known, name
    limits = {"PROTOCOL": 1, "DATA_LIMIT": 16 << 10, "REPLY_LIMIT": 64 << 10, "WINDOW_BYTES": 64 << 10}
    limits |= {"SECTOR": 512, "RING_PIECE": 32 << 10}
    for name, value in limits.items():
        assert getattr(frames, name) == value
        written = re.search(rf"\b{name} = ([\d* ]+)", text)
        assert written is not None
        first, *more = (int(word) for word in written[1].split("*"))
        assert first * (more[0] if more else 1) == value, name


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(1, 40), max_size=60))
def test_frames_come_out_as_they_went_in_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    sent = [Frame(frames.REPLY, number, 7, payload) for number, payload in enumerate(payloads)]
    data = b"".join(frame(each.kind, each.id, each.value, each.payload) for each in sent)
    decoder, got, at = Decoder(), [], 0
    for cut in [*cuts, len(data)]:
        got += list(decoder.feed(data[at : at + cut]))
        at += cut
    assert got == sent


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        for each in Decoder().feed(data):
            assert len(each.payload) <= frames.REPLY_LIMIT
    except SafetyViolation:
        pass


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (0, 0),
        (frames.SPAWN, 0),
        (99, 4),
        (0xFFFFFFFF, 0),
        (frames.DATA, frames.DATA_LIMIT + 1),
        (frames.REPLY, frames.REPLY_LIMIT + 1),
        (frames.REPLY, 0xFFFFFFFF),
        (frames.EXIT, 1),
        (frames.HELLO, 1 << 20),
        (frames.CONTROL, 64 << 10),
    ],
)
def test_a_kind_or_length_no_guest_of_ours_sends_is_refused_before_its_bytes_come(kind: int, length: int) -> None:
    with pytest.raises(SafetyViolation):
        list(Decoder().feed(head(kind, 1, 0, length)))


class Pair:
    """A Guest and the end of its channel that a hostile guest has."""

    def __init__(self, window: int = 0, ring: int = -1) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self._ours = ours
        self.guest = Guest(ours.fileno(), window, ring)

    def says(self, *data: bytes) -> None:
        self.theirs.sendall(b"".join(data))
        self.guest.receive()

    def work(self, *, terminal: bool = False, stdin: bool = True) -> Work:
        errors: list[int] = []
        work = self.guest.plan(b"plan", terminal=terminal, stdin=stdin)
        self.guest.spawn(work, b"", errors.append)
        self.says(frame(frames.REPLY, work.id))
        assert errors == [0]
        return work

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    made.says(frame(frames.HELLO, 0, 1, HELLO))
    yield made
    made.close()


def test_a_greeting_is_believed_once_and_only_if_it_is_one() -> None:
    for data in (
        frame(frames.REPLY, 1),
        frame(frames.HELLO, 0, 2, HELLO),
        frame(frames.HELLO, 0, 1, b""),
        frame(frames.HELLO, 0, 1, HELLO) * 2,
    ):
        made = Pair()
        with pytest.raises(SafetyViolation):
            made.says(data)
        made.close()


@pytest.mark.parametrize(
    "lie",
    [
        [(frames.REPLY, 77, 0, b"")],  # nobody asked
        [(frames.DATA, 99, 1, b"x")],  # no such process
        [(frames.DATA, 1, 0, b"x")],  # a stream that is not its to write
        [(frames.DATA, 1, 7, b"x")],
        [(frames.DATA, 1, 1, bytes(frames.DATA_LIMIT))] * 5,  # past the window
        [(frames.CLOSE, 1, 1, b""), (frames.DATA, 1, 1, b"x")],  # after its end
        [(frames.CLOSE, 1, 1, b"")] * 2,
        [(frames.CLOSE, 1, 9, b"")],
        [(frames.EXIT, 1, 0, b"")] * 2,
        [(frames.WINDOW, 1, 1 << 2, b"")],  # took input that was never sent
        [(frames.WINDOW, 1, 0xFFFFFFFC, b"")],
        [(frames.CONTROL, 1, 0, b"short")],
        [(frames.CONTROL_END, 1, 0, b""), (frames.CONTROL, 1, 0, bytes(16))],
        [(frames.TOOK, 0, 1 << 20, b"")],
        [(frames.HELLO, 0, 1, HELLO)],
    ],
)
def test_a_guest_that_lies_is_found_out(pair: Pair, lie: list[tuple[int, int, int, bytes]]) -> None:
    work = pair.work()
    assert work.id == 1
    with pytest.raises(SafetyViolation):
        pair.says(*(frame(*each) for each in lie))


def test_nothing_comes_of_a_process_before_it_was_said_to_be_there(pair: Pair) -> None:
    work = pair.guest.plan(b"plan", terminal=False, stdin=False)
    pair.guest.spawn(work, b"", lambda _: None)
    with pytest.raises(SafetyViolation, match="no such process"):
        pair.says(frame(frames.DATA, work.id, frames.STDOUT, b"x"))


def test_what_a_process_does_arrives(pair: Pair) -> None:
    work = pair.work()
    heard: list[object] = []
    work.on_data = lambda stream, data: heard.append((stream, data))
    work.on_control = heard.append
    pair.says(frame(frames.CONTROL, 1, 0, bytes(16)), frame(frames.DATA, 1, 2, b"err"), frame(frames.CONTROL_END, 1))
    pair.says(frame(frames.EXIT, 1, 0x700), frame(frames.CLOSE, 1, 1), frame(frames.CLOSE, 1, 2))
    assert heard == [bytes(16), (2, b"err")]
    assert work.over
    assert work.status == 0x700
    with pytest.raises(SafetyViolation):
        pair.says(frame(frames.EXIT, 1))


def test_no_more_is_under_way_than_the_channel_holds() -> None:
    made = Pair(2048)
    made.says(frame(frames.HELLO, 0, 1, HELLO))
    made.guest.send(frames.WRITE, 5, 0, bytes(10000))
    assert len(made.theirs.recv(100000)) == 2048
    assert made.guest.events() == 1  # it waits for the guest, not for room
    made.says(frame(frames.TOOK, 0, 1500))
    assert len(made.theirs.recv(100000)) == 1500
    made.close()


def test_what_is_sent_by_a_ring_lies_there_piece_by_piece(tmp_path: Path) -> None:
    """Each at a whole sector, none past the ring's end, none over what the guest has not taken yet."""
    path = tmp_path / "ring"
    path.write_bytes(bytes(frames.RING_BYTES))
    with path.open("r+b", buffering=0) as ring:
        made = Pair(frames.RING_BYTES, ring.fileno())
        made.says(frame(frames.HELLO, 0, 1, HELLO))
        sent, got, at = b"", b"", 0
        for length in (1, 600, 100_000, 40_000, 90_000, 7, 120_000):
            made.guest.send(frames.WRITE, 5, 0, bytes([length % 251]) * length)
            sent += frame(frames.WRITE, 5, 0, bytes([length % 251]) * length)
            while True:
                under_way = 0
                made.theirs.setblocking(False)
                try:
                    numbers = made.theirs.recv(1 << 16)
                except BlockingIOError:
                    break
                for (count,) in struct.iter_unpack("<I", numbers):
                    assert 0 < count <= frames.RING_PIECE
                    assert at % frames.SECTOR == 0
                    got += path.read_bytes()[at : at + count]
                    taken = -(-count // frames.SECTOR) * frames.SECTOR
                    at, under_way = at + taken, under_way + taken
                    assert at <= frames.RING_BYTES
                    at %= frames.RING_BYTES
                assert under_way <= frames.RING_BYTES
                made.says(frame(frames.TOOK, 0, under_way))
        assert got == sent
        with pytest.raises(SafetyViolation):
            made.says(frame(frames.TOOK, 0, frames.SECTOR))
        made.close()


def test_a_silent_guest_is_waited_for_so_long_and_a_dead_one_is_noticed(pair: Pair) -> None:
    before = time.monotonic()
    with pytest.raises(InitError, match="does not answer"):
        pair.guest.call(frames.READ, 1, b"/x\0", before + 0.1)
    assert time.monotonic() - before < 2
    pair.theirs.close()
    with pytest.raises(InitError, match="it is gone"):
        pair.guest.receive()


def test_what_goes_to_the_guest_is_bounded() -> None:
    with pytest.raises(ValueError, match="bytes"):
        frames.encode(frames.WRITE, 1, 0, bytes(frames.PACKET_LIMIT + 1))
    with pytest.raises(ValueError, match="NUL"):
        frames.texts("a\0b")
    assert frames.slot(frames.SLOT_DIRECTORY, 5, "/x") == struct.pack("<III", 2, 5, 3) + b"/x\0"

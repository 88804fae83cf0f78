"""Frames with a virtio_net_hdr made fit for a wire: checksums by another way of counting, pieces put together again."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.isolation.segments import HEAD, LONGEST, checksum, plain

MACS = bytes(range(12))
FOUR, SIX = (bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))), (bytes(range(16)), bytes(range(16, 32)))


def words(data: bytes) -> int:
    """The sum word by word, as RFC 1071 has it."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(six: bool, protocol: int, length: int) -> bytes:
    if six:
        return b"".join(SIX) + struct.pack(">II", length, protocol)
    return b"".join(FOUR) + struct.pack(">BBH", 0, protocol, length)


def packet(payload: bytes, size: int, *, six: bool, tcp: bool, flags: int = 0x18, options: bytes = b"") -> bytes:
    """What the kernel hands over: one long frame, with the pseudo header's sum in the checksum's field."""
    protocol = 6 if tcp else 17
    if tcp:
        head = struct.pack(">HHIIBBHHH", 1, 2, 0xFFFFFF00, 7, (20 + len(options)) // 4 << 4, flags, 100, 0, 0) + options
    else:
        head = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0)
    offset = 16 if tcp else 6
    whole = bytearray(head + payload)
    whole[offset : offset + 2] = words(pseudo(six, protocol, len(whole))).to_bytes(2, "big")
    if six:
        network = struct.pack(">IHBB", 6 << 28, len(whole), protocol, 64) + b"".join(SIX)
    else:
        network = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(whole), 0xFFFE, 0x4000, 64, protocol, 0) + b"".join(FOUR)
        network = network[:10] + (0xFFFF - words(network)).to_bytes(2, "big") + network[12:]
    start = 14 + len(network)
    kind = (4 if six else 1) if tcp else 5
    ether = MACS + (b"\x86\xdd" if six else b"\x08\x00")
    return struct.pack("=BBHHHH", 1, kind if size else 0, 0, size, start, offset) + ether + network + whole


def demand_sound(frame: bytes, *, six: bool, tcp: bool) -> bytes:
    """Lengths and checksums as a receiver wants them; returns the transport's part."""
    start = 54 if six else 34
    inner = frame[start:]
    if six:
        assert struct.unpack(">H", frame[18:20]) == (len(inner),)
    else:
        assert struct.unpack(">H", frame[16:18]) == (20 + len(inner),)
        assert words(frame[14:34]) == 0xFFFF
    if not tcp:
        assert struct.unpack(">H", inner[4:6]) == (len(inner),)
    assert words(pseudo(six, 6 if tcp else 17, len(inner)) + inner) == 0xFFFF
    return inner


@given(st.binary(max_size=400))
def test_the_sum_is_that_of_words(data: bytes) -> None:
    assert checksum(data) % 0xFFFF == words(data) % 0xFFFF


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
@given(payload=st.binary(max_size=3000), size=st.integers(48, 1500))
def test_pieces_are_sound_and_make_the_whole(payload: bytes, size: int, six: bool, tcp: bool) -> None:
    whole = packet(payload, size, six=six, tcp=tcp, options=bytes(12) if tcp else b"")
    joined = b""
    for number, piece in enumerate(plain(memoryview(whole))):
        frame = bytes(piece)
        inner = demand_sound(frame, six=six, tcp=tcp)
        if not six:
            assert struct.unpack(">H", frame[18:20]) == ((0xFFFE + number) & 0xFFFF,)
        if tcp:
            assert struct.unpack(">I", inner[4:8]) == ((0xFFFFFF00 + len(joined)) & 0xFFFFFFFF,)
        body = inner[32 if tcp else 8 :]
        assert 0 < len(body) <= size
        joined += body
    assert joined == payload


@pytest.mark.parametrize("six", [False, True])
def test_what_is_longer_than_the_guests_mtu_is_cut(six: bool) -> None:
    """A device of 65520 whose other end is a program: no kernel says that a frame is long."""
    payload = bytes(range(256)) * 20
    whole = packet(payload, 0, six=six, tcp=True, options=bytes(12))
    joined = b""
    for piece in plain(memoryview(bytes(10) + whole[10:])):
        assert len(piece) <= LONGEST
        joined += demand_sound(bytes(piece), six=six, tcp=True)[32:]
    assert joined == payload
    assert plain(memoryview(bytes(10) + packet(payload, 0, six=six, tcp=False)[10:])) == []


def test_what_belongs_to_one_end_of_a_stream_is_told_once() -> None:
    pieces = [bytes(each) for each in plain(memoryview(packet(bytes(300), 100, six=False, tcp=True, flags=0x99)))]
    assert [each[34 + 13] for each in pieces] == [0x90, 0x10, 0x19]  # CWR in the first, FIN and PSH in the last


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
def test_a_checksum_is_completed(six: bool, tcp: bool) -> None:
    (frame,) = plain(memoryview(packet(b"some bytes.", 0, six=six, tcp=tcp)))
    assert demand_sound(bytes(frame), six=six, tcp=tcp).endswith(b"some bytes.")


def test_a_whole_frame_is_left_as_it_is() -> None:
    (frame,) = plain(memoryview(bytes(HEAD) + b"frame"))
    assert bytes(frame) == b"frame"


@given(st.integers(0, 255), st.integers(0, 255), *[st.integers(0, 2000)] * 3, st.binary(max_size=300))
def test_what_does_not_fit_together_is_dropped(
    flags: int, kind: int, size: int, start: int, offset: int, frame: bytes
) -> None:
    head = struct.pack("=BBHHHH", flags, kind, 0, size, start, offset)
    assert len(plain(memoryview(head + frame))) <= 1 + len(frame) // 48


@pytest.mark.parametrize("size", [0, 1, 47])
def test_none_is_cut_to_dust(size: int) -> None:
    whole = bytearray(packet(bytes(60000), 1000, six=False, tcp=True))
    whole[4:6] = size.to_bytes(2, "little")
    assert plain(memoryview(whole)) == []

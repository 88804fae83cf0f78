"""What a guest asks the resolver on the namespace's loopback device: nothing else gets through, answers come whole."""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from knarr.isolation import nic, resolver
from knarr.isolation.resolver import HARDWARE, PACKED, Resolver, answer, question

if TYPE_CHECKING:
    import pytest

GUEST, SOURCE = b"\x02\x42\x0a\x00\x00\x07", bytes((10, 0, 0, 7))


def asked(
    data: bytes = b"which?",
    *,
    to: bytes = HARDWARE,
    kind: int = 0x0800,
    first: int = 0x45,
    fragment: int = 0x4000,
    protocol: int = 17,
    target: bytes = PACKED,
    port: int = 53,
    length: int | None = None,
    size: int | None = None,
) -> bytes:
    size = 8 + len(data) if size is None else size
    length = 28 + len(data) if length is None else length
    head = struct.pack(">BBHHHBBH4s4s", first, 0, length, 1, fragment, 64, protocol, 0, SOURCE, target)
    return to + GUEST + struct.pack(">H", kind) + head + struct.pack(">HHHH", 4000, port, size, 0) + data


def test_a_question_is_one_datagram_to_the_resolver() -> None:
    assert question(asked()) == (SOURCE, 4000, b"which?")
    assert question(asked() + b"padding") == (SOURCE, 4000, b"which?")
    others = [
        *(asked(to=GUEST), asked(kind=0x86DD), asked(first=0x46), asked(fragment=0x2000), asked(fragment=1)),
        *(asked(protocol=6), asked(target=bytes((127, 0, 0, 1))), asked(port=54), asked(length=5000), asked(length=20)),
        *(asked(size=7), asked(size=15), asked(b"x" * 5000), asked()[:41], b""),
    ]
    assert [question(each) for each in others] == [None] * len(others)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_no_frame_makes_it_fail(data: bytes, cut: int) -> None:
    question(data)
    question(asked()[:cut] + data)


@given(st.binary(max_size=4096))
def test_an_answer_comes_whole_however_long(data: bytes) -> None:
    whole, at = b"", 0
    for frame in answer(GUEST, SOURCE, 4000, data, 9):
        assert len(frame) <= 1514
        assert frame[:14] == GUEST + HARDWARE + b"\x08\x00"
        head = struct.unpack(">BBHHHBBH4s4s", frame[14:34])
        assert sum(struct.unpack(">10H", frame[14:34])) % 0xFFFF == 0
        assert (head[2], head[3], head[6], head[8], head[9]) == (len(frame) - 14, 9, 17, PACKED, SOURCE)
        assert (head[4] & 0x1FFF) * 8 == at
        whole += frame[34:]
        at = len(whole)
        last = not head[4] & 0x2000
    assert last
    assert whole == struct.pack(">HHHH", 53, 4000, 8 + len(data), 0) + data


def test_askers_are_bounded_and_get_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(5)
    monkeypatch.setattr(resolver, "ADDRESS", "127.0.0.1")
    monkeypatch.setattr(resolver, "_PORT", server.getsockname()[1])
    ours, theirs = nic.pair()
    poller = select.poll()
    found = Resolver(ours, GUEST, poller)
    port = server.getsockname()[1]
    try:
        for number in range(300):
            frame = bytearray(asked(b"%d" % number, port=port))
            frame[34:36] = (1000 + number).to_bytes(2, "big")
            found.ask(bytes(frame))
            data, who = server.recvfrom(100)
            assert data == b"%d" % number
        assert len(found._askers) == 64
        server.sendto(b"for the last", who)
        ((fd, _),) = poller.poll(5000)
        found.hear(fd)
        with socket.socket(fileno=theirs) as guest:
            frame = bytearray(guest.recv(2000))
        assert frame[36:38] == (1299).to_bytes(2, "big")
        assert frame[42:] == b"for the last"
    finally:
        for each in found._askers.values():
            each.close()
        server.close()
        socket.socket(fileno=ours).close()

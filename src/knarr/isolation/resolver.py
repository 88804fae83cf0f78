"""A resolver on loopback in the container's network namespace, for a guest with a loopback of its own (cold).

Docker's networks with names have one at 127.0.0.11, which listens in the namespace on the host. The guest sends what is
for that address by its device, to a hardware address that only stands for it; such datagrams are sent on from the
namespace, and the answers come back as frames. Frames are the guest's, and believed in nothing: the one place their
content can go to is that resolver.
"""

from __future__ import annotations

import os
from _socket import AF_INET, SOCK_DGRAM, inet_aton, socket
from select import POLLIN
from struct import Struct

from knarr.isolation.segments import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ADDRESS = "127.0.0.11"
HARDWARE = b"\x02kn\x00\x00\x35"  # locally administered
_PORT, _UDP = 53, 17
PACKED = inet_aton(ADDRESS)
"""The same as four bytes."""
_IP, _DATAGRAM = Struct(">BBHHHBBH4s4s"), Struct(">HHHH")
_MOST = 64
"""Askers at a time; the oldest gives way."""
_LONGEST = 4096
_PIECE = 1480  # of a packet in one frame, a multiple of 8


def there() -> bool:
    """Whether one listens in this thread's network namespace."""
    wanted = f"{int.from_bytes(PACKED, 'little'):08X}:"  # proc(5): as the host has it in memory
    with open("/proc/thread-self/net/udp", encoding="ascii") as file:
        return any(line.split()[1].startswith(wanted) for line in file)


def question(frame: bytes) -> tuple[bytes, int, bytes] | None:
    """Address, port and datagram of a frame that asks the resolver; None for anything else. Pure."""
    if len(frame) < 42 or frame[:6] != HARDWARE or frame[12:14] != b"\x08\x00":
        return None
    first, _, length, _, fragment, _, protocol, _, source, target = _IP.unpack_from(frame, 14)
    if (first, fragment & 0x3FFF, protocol, target) != (0x45, 0, _UDP, PACKED) or length > len(frame) - 14:
        return None
    port, to, size, _ = _DATAGRAM.unpack_from(frame, 34)
    if to != _PORT or not 8 <= size <= length - 20 or size > _LONGEST:
        return None
    return source, port, frame[42 : 34 + size]


def answer(hardware: bytes, address: bytes, port: int, data: bytes, number: int) -> Iterator[bytes]:
    """The frames that bring an answer to the guest, more than one where it is long. Pure."""
    whole = _DATAGRAM.pack(_PORT, port, 8 + len(data), 0) + data  # 0: no checksum
    for at in range(0, len(whole), _PIECE):
        piece = whole[at : at + _PIECE]
        more = 0x2000 if at + _PIECE < len(whole) else 0
        fields = [0x45, 0, 20 + len(piece), number & 0xFFFF, at // 8 | more, 64, _UDP, 0, PACKED, address]
        fields[7] = ~checksum(_IP.pack(*fields)) & 0xFFFF
        yield hardware + HARDWARE + b"\x08\x00" + _IP.pack(*fields) + piece


class Resolver:
    """The way to the resolver and back, for one device of the guest's."""

    __slots__ = ("_askers", "_guest", "_hardware", "_number", "_poller")

    def __init__(self, guest: int, hardware: bytes, poller: Any) -> None:
        """``guest``: our end of the device; ``hardware``: its address; its sockets are watched by ``poller``."""
        self._guest = guest
        self._hardware = hardware
        self._poller = poller
        self._askers: dict[tuple[bytes, int], socket] = {}
        self._number = 0

    def ask(self, frame: bytes) -> None:
        """Pass on what a frame asks the resolver."""
        asked = question(frame)
        if asked is None:
            return
        source, port, data = asked
        try:
            asker = self._askers.get((source, port)) or self._new((source, port))
            asker.send(data)
        except OSError:
            pass  # lost, as a datagram may be

    def _new(self, who: tuple[bytes, int]) -> socket:
        if len(self._askers) >= _MOST:
            oldest = self._askers.pop(next(iter(self._askers)))
            self._poller.unregister(oldest.fileno())
            oldest.close()
        made = socket(AF_INET, SOCK_DGRAM, 0)
        made.setblocking(False)
        made.connect((ADDRESS, _PORT))
        self._poller.register(made.fileno(), POLLIN)
        self._askers[who] = made
        return made

    def hear(self, fd: int) -> None:
        """Bring the answers there are at one of its sockets to the guest."""
        for (address, port), asker in self._askers.items():
            if asker.fileno() == fd:
                try:
                    data = asker.recv(_LONGEST)
                except OSError:
                    return  # refused: nobody listens at this moment
                self._number += 1
                for frame in answer(self._hardware, address, port, data, self._number):
                    try:
                        os.write(self._guest, frame)
                    except OSError:
                        return
                return

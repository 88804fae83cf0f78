"""Network devices by rtnetlink: look up, list addresses, move, rename, up and down (cold).

rtnetlink(7), netlink(7). A socket belongs to the network namespace it was made in, whoever uses it later.
"""

from __future__ import annotations

import os
from _socket import AF_NETLINK, SOCK_RAW, socket
from struct import calcsize, pack, unpack_from

from knarr.base.errors import KernelError
from knarr.base.record import Record
from knarr.kernel.ffi import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

UP = 1  # IFF_UP
PERMANENT, NODAD, NOPREFIXROUTE = 0x80, 0x02, 0x200  # IFA_F_*
_CLONE_NEWNET = 0x40000000
_SOL_NETLINK, _EXT_ACK = 270, 11
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_CAPPED, _TLVS = 0x100, 0x200
_ERROR, _DONE = 2, 3
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 16, 18, 20, 22
_LINK, _ADDRESS = "=BxHiII", "=BBBBI"  # struct ifinfomsg, struct ifaddrmsg
_IFNAME, _NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8


class Link(Record):
    """A network device: its index in its namespace, its name, its IFF_ flags."""

    index: int
    name: str
    flags: int


class Address(Record):
    """An address of a device; ``scope`` 0 is global; ``peer`` and ``broadcast`` are empty where there is none."""

    family: int
    prefix: int
    flags: int
    scope: int
    local: bytes
    peer: bytes
    broadcast: bytes


class Rtnetlink:
    """A socket to the devices of one network namespace: that of a descriptor, or the calling thread's."""

    def __init__(self, netns: int = -1) -> None:
        self._sequence = 0
        if netns < 0:
            self._sock = self._open()
            return
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscall("setns", netns, _CLONE_NEWNET, operand="network namespace")
            try:
                self._sock = self._open()
            finally:
                syscall("setns", own, _CLONE_NEWNET, operand="network namespace")
        finally:
            os.close(own)

    @staticmethod
    def _open() -> socket:
        try:
            sock = socket(AF_NETLINK, SOCK_RAW, 0)
            sock.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        except OSError as error:
            raise KernelError("socket", "AF_NETLINK", error.errno or 0) from None
        return sock

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def link(self, name: str) -> Link:
        """The device of this name. Raises KernelError (ENODEV)."""
        body = pack(_LINK, 0, 0, 0, 0, 0) + _attribute(_IFNAME, name.encode() + b"\0")
        (found,) = [link for link in map(_read_link, self._ask(_GETLINK, _ACK, body, name)) if link]
        return found

    def links(self) -> dict[str, Link]:
        """All devices, by name."""
        found = map(_read_link, self._ask(_GETLINK, _DUMP, pack(_LINK, 0, 0, 0, 0, 0), ""))
        return {link.name: link for link in found if link}

    def addresses(self, index: int) -> list[Address]:
        """The addresses of the device with this index."""
        found = self._ask(_GETADDR, _DUMP, pack(_ADDRESS, 0, 0, 0, 0, 0), "")
        return [_read_address(body) for body in found if unpack_from(_ADDRESS, body)[4] == index]

    def add_address(self, index: int, address: Address) -> None:
        """Give a device an address. Raises KernelError."""
        body = pack(_ADDRESS, address.family, address.prefix, 0, address.scope, index)
        body += _attribute(_IFA_LOCAL, address.local) + _attribute(_IFA_ADDRESS, address.peer or address.local)
        if address.broadcast:
            body += _attribute(_IFA_BROADCAST, address.broadcast)
        body += _attribute(_IFA_FLAGS, pack("=I", address.flags & (NODAD | NOPREFIXROUTE)))
        self._ask(_NEWADDR, _ACK, body, "address")

    def set_up(self, link: Link, *, up: bool) -> None:
        """Set a device up or down. Raises KernelError."""
        self._ask(_NEWLINK, _ACK, pack(_LINK, 0, 0, link.index, UP if up else 0, UP), link.name)

    def move(self, link: Link, name: str, netns: int) -> None:
        """Move a device into a namespace under a name, both in one step. Raises KernelError."""
        body = pack(_LINK, 0, 0, link.index, 0, 0) + _attribute(_IFNAME, name.encode() + b"\0")
        self._ask(_NEWLINK, _ACK, body + _attribute(_NET_NS_FD, pack("=I", netns)), link.name)

    def _ask(self, kind: int, flags: int, body: bytes, operand: str) -> list[bytes]:
        """Send a request; the bodies of what came before its end. Raises KernelError, with the kernel's own words."""
        self._sequence += 1
        found: list[bytes] = []
        try:
            self._sock.send(pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, self._sequence, 0) + body)
            while True:
                for sort, marks, sequence, content in _messages(self._sock.recv(1 << 18)):
                    if sequence != self._sequence:
                        continue
                    if sort == _DONE:
                        return found
                    if sort != _ERROR:
                        found.append(content)
                        continue
                    (number,) = unpack_from("=i", content)
                    if number:
                        raise KernelError("rtnetlink", operand, -number, hint=_words(content, marks))
                    return found
        except OSError as error:
            if isinstance(error, KernelError):
                raise
            raise KernelError("rtnetlink", operand, error.errno or 0) from None


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence number, body) of each message."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence, _ = unpack_from("=IHHII", data, at)
        if length < 16:
            return
        yield kind, flags, sequence, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _words(content: bytes, flags: int) -> str:
    """What the kernel says of an error (NLMSGERR_ATTR_MSG)."""
    if not flags & _TLVS:
        return ""
    (length,) = unpack_from("=I", content, 4)
    start = 4 + (16 if flags & _CAPPED else (length + 3) & ~3)
    return _attributes(content[start:]).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")


def _read_link(body: bytes) -> Link | None:
    _, _, index, flags, _ = unpack_from(_LINK, body)
    name = _attributes(body[calcsize(_LINK) :]).get(_IFNAME)
    return None if name is None else Link(index, name.rstrip(b"\0").decode("utf-8", "surrogateescape"), flags)


def _read_address(body: bytes) -> Address:
    family, prefix, flags, scope, _ = unpack_from(_ADDRESS, body)
    found = _attributes(body[calcsize(_ADDRESS) :])
    if _IFA_FLAGS in found:  # the byte has room for the first eight
        (flags,) = unpack_from("=I", found[_IFA_FLAGS])
    peer = found.get(_IFA_ADDRESS, b"")
    return Address(family, prefix, flags, scope, found.get(_IFA_LOCAL, peer), peer, found.get(_IFA_BROADCAST, b""))

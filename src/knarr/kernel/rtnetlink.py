"""Network devices by rtnetlink: look up, list addresses and routes, move, rename, up and down (cold).

rtnetlink(7), netlink(7). A socket belongs to the network namespace it was made in, whoever uses it later. A ``Request``
is what such a socket is asked; the requests are made by pure functions, for this kernel or for another one.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_NETLINK, SOCK_RAW, socket
from errno import EOPNOTSUPP
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
_NEWLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 16, 18, 20, 21, 22, 24, 25, 26
_CREATE = 0x400
_LINK, _ADDRESS = "=BxHiII", "=BBBBI"  # struct ifinfomsg, struct ifaddrmsg
_ROUTE = "=BBBBBBBBI"  # struct rtmsg
_HARDWARE, _IFNAME, _MTU, _LINKINFO, _NET_NS_PID, _AF_SPEC, _NET_NS_FD = 1, 3, 4, 18, 19, 26, 28
_INFO_KIND = 1  # in IFLA_LINKINFO
_ADDR_GEN_MODE, _GEN_NONE = 8, 1  # in IFLA_AF_SPEC of AF_INET6
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 4, 5, 9, 18
_RTA_KEPT = frozenset((1, _RTA_GATEWAY, 6, 7, 8, _RTA_VIA, 20))  # and DST, PRIORITY, PREFSRC, METRICS, PREF
_AF_INET, _AF_INET6 = 2, 10
_INET_CONF, _ROUTE_LOCALNET = 1, 26  # in IFLA_AF_SPEC of AF_INET; IPV4_DEVCONF_ROUTE_LOCALNET
_NEWNEIGH, _PERMANENT_STATE = 28, 0x80  # NUD_PERMANENT
_LOCAL = 255  # RT_TABLE_LOCAL
_UNICAST, _MAIN, _OF_KERNEL, _ONLINK = 1, 254, 2, 4  # RTN_UNICAST, RT_TABLE_MAIN, RTPROT_KERNEL, RTNH_F_ONLINK


class Request(Record):
    """One message to rtnetlink: its type, NLM_F_ flags beside those every request has, and its body."""

    kind: int
    flags: int
    body: bytes


class Link(Record):
    """A network device: its index in its namespace, its name, its IFF_ flags.

    ``hardware`` is its ARPHRD_ number, ``address`` its address there; ``kind`` is what ``ip link add type`` names.
    """

    index: int
    name: str
    flags: int
    hardware: int = 0
    address: bytes = b""
    mtu: int = 0
    kind: str = ""


class Address(Record):
    """An address of a device; ``scope`` 0 is global; ``peer`` and ``broadcast`` are empty where there is none."""

    family: int
    prefix: int
    flags: int
    scope: int
    local: bytes
    peer: bytes
    broadcast: bytes


class Route(Record):
    """A unicast route of the main table that leaves by one device. ``attributes`` are as the kernel gave them."""

    family: int
    prefix: int
    tos: int
    protocol: int
    scope: int
    flags: int
    attributes: tuple[tuple[int, bytes], ...]

    @property
    def through(self) -> bool:
        """Whether it has a gateway, which other routes must lead to."""
        return any(kind in (_RTA_GATEWAY, _RTA_VIA) for kind, _ in self.attributes)


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
        asked = get_link(name)
        (found,) = [link for link in map(read_link, self._ask(asked.kind, asked.flags, asked.body, name)) if link]
        return found

    def links(self) -> dict[str, Link]:
        """All devices, by name."""
        found = map(read_link, self._ask(_GETLINK, _DUMP, pack(_LINK, 0, 0, 0, 0, 0), ""))
        return {link.name: link for link in found if link}

    def addresses(self, index: int) -> list[Address]:
        """The addresses of the device with this index."""
        found = self._ask(_GETADDR, _DUMP, pack(_ADDRESS, 0, 0, 0, 0, 0), "")
        return [_read_address(body) for body in found if unpack_from(_ADDRESS, body)[4] == index]

    def routes(self, index: int) -> list[Route]:
        """The unicast routes of the main table by the device with this index, but for those the kernel makes itself.

        Raises KernelError (EOPNOTSUPP) where one leads over several devices, this one among them.
        """
        found = []
        for body in self._ask(_GETROUTE, _DUMP, pack(_ROUTE, 0, 0, 0, 0, 0, 0, 0, 0, 0), ""):
            family, prefix, source, tos, table, protocol, scope, kind, flags = unpack_from(_ROUTE, body)
            if (table, kind, source) != (_MAIN, _UNICAST, 0) or protocol == _OF_KERNEL:
                continue
            attributes = _attributes(body[calcsize(_ROUTE) :])
            if index in _next_hops(attributes.get(_RTA_MULTIPATH, b"")):
                raise KernelError("rtnetlink", "route over several devices", EOPNOTSUPP)
            if attributes.get(_RTA_OIF) == pack("=I", index):
                kept = tuple((name, value) for name, value in attributes.items() if name in _RTA_KEPT)
                found.append(Route(family, prefix, tos, protocol, scope, flags & _ONLINK, kept))
        return found

    def add_address(self, index: int, address: Address) -> None:
        """Give a device an address. Raises KernelError."""
        self.ask(new_address(index, address), "address")

    def set_up(self, link: Link, *, up: bool) -> None:
        """Set a device up or down. Raises KernelError."""
        self.ask(change_link(link.index, up=up), link.name)

    def move(self, link: Link, name: str, netns: int) -> None:
        """Move a device into a namespace under a name, both in one step. Raises KernelError."""
        body = pack(_LINK, 0, 0, link.index, 0, 0) + _attribute(_IFNAME, name.encode() + b"\0")
        self._ask(_NEWLINK, _ACK, body + _attribute(_NET_NS_FD, pack("=I", netns)), link.name)

    def ask(self, request: Request, operand: str) -> list[bytes]:
        """Send a request; the bodies of the answers. Raises KernelError, about ``operand``."""
        return self._ask(request.kind, request.flags, request.body, operand)

    def _ask(self, kind: int, flags: int, body: bytes, operand: str) -> list[bytes]:
        """Send a request; the bodies of what came before its end. Raises KernelError, with the kernel's own words."""
        self._sequence += 1
        found: list[bytes] = []
        try:
            self._sock.send(message(Request(kind, flags, body), self._sequence))
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


def message(request: Request, sequence: int) -> bytes:
    """A request as it is sent (netlink(7)); pure."""
    head = pack("=IHHII", 16 + len(request.body), request.kind, _REQUEST | request.flags, sequence, 0)
    return head + request.body + bytes(-len(request.body) % 4)


def get_link(name: str) -> Request:
    """Look a device up by its name."""
    body = pack(_LINK, 0, 0, 0, 0, 0) + _attribute(_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0")
    return Request(_GETLINK, _ACK, body)


def change_link(
    index: int,
    *,
    up: bool | None = None,
    name: str = "",
    pid: int = 0,
    address: bytes = b"",
    mtu: int = 0,
    own_addresses: bool = True,
    loopback_routed: bool = False,
) -> Request:
    """Change a device: up or down, its name, hardware address, MTU; move it to the network namespace of ``pid``.

    Without ``own_addresses`` the kernel gives it no IPv6 address of its own making. ``loopback_routed``: 127.0.0.0/8 is
    an address like others there (route_localnet).
    """
    body = pack(_LINK, 0, 0, index, UP if up else 0, 0 if up is None else UP)
    if name:
        body += _attribute(_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0")
    if pid:
        body += _attribute(_NET_NS_PID, pack("=I", pid))
    if address:
        body += _attribute(_HARDWARE, address)
    if mtu:
        body += _attribute(_MTU, pack("=I", mtu))
    if not own_addresses:
        six = _attribute(_AF_INET6, _attribute(_ADDR_GEN_MODE, bytes((_GEN_NONE,))))
        body += _attribute(_AF_SPEC, six)
    if loopback_routed:
        four = _attribute(_AF_INET, _attribute(_INET_CONF, _attribute(_ROUTE_LOCALNET, pack("=I", 1))))
        body += _attribute(_AF_SPEC, four)
    return Request(_NEWLINK, _ACK, body)


def new_neighbour(index: int, address: bytes, hardware: bytes) -> Request:
    """Say for good which hardware address an IPv4 address is at."""
    body = pack("=BxxxiHBB", _AF_INET, index, _PERMANENT_STATE, 0, 0)  # struct ndmsg
    return Request(_NEWNEIGH, _ACK | _CREATE, body + _attribute(1, address) + _attribute(2, hardware))


def new_local_route(index: int, address: bytes) -> Request:
    """Send what is for one IPv4 address by a device, though it may be one of loopback's."""
    body = pack(_ROUTE, _AF_INET, 32, 0, 0, _LOCAL, 4, 253, _UNICAST, 0)  # RTPROT_STATIC, RT_SCOPE_LINK
    return Request(_NEWROUTE, _ACK | _CREATE, body + _attribute(1, address) + _attribute(_RTA_OIF, pack("=I", index)))


def new_address(index: int, address: Address) -> Request:
    """Give a device an address."""
    body = pack(_ADDRESS, address.family, address.prefix, 0, address.scope, index)
    body += _attribute(_IFA_LOCAL, address.local) + _attribute(_IFA_ADDRESS, address.peer or address.local)
    if address.broadcast:
        body += _attribute(_IFA_BROADCAST, address.broadcast)
    body += _attribute(_IFA_FLAGS, pack("=I", address.flags & (NODAD | NOPREFIXROUTE)))
    return Request(_NEWADDR, _ACK, body)


def old_address(index: int, address: Address) -> Request:
    """Take an address from a device, and with it the routes that need it."""
    return Request(_DELADDR, _ACK, new_address(index, address).body)


def old_route(index: int, route: Route) -> Request:
    """Remove such a route."""
    return Request(_DELROUTE, _ACK, new_route(index, route).body)


def new_route(index: int, route: Route) -> Request:
    """Add such a route by the device with this index."""
    head = (route.family, route.prefix, 0, route.tos, _MAIN, route.protocol, route.scope, _UNICAST, route.flags)
    body = pack(_ROUTE, *head) + b"".join(_attribute(kind, value) for kind, value in route.attributes)
    return Request(_NEWROUTE, _ACK | _CREATE, body + _attribute(_RTA_OIF, pack("=I", index)))


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


def _next_hops(data: bytes) -> list[int]:
    """The devices of RTA_MULTIPATH: struct rtnexthop, each with its attributes."""
    found, at = [], 0
    while at + 8 <= len(data):
        length, _, _, index = unpack_from("=HBBi", data, at)
        if length < 8:
            break
        found.append(index)
        at += (length + 3) & ~3
    return found


def read_link(body: bytes) -> Link | None:
    """A device from the body of an answer; None where it has no name. Raises struct.error when it is cut short."""
    _, hardware, index, flags, _ = unpack_from(_LINK, body)
    found = _attributes(body[calcsize(_LINK) :])
    name = found.get(_IFNAME)
    if name is None:
        return None
    return Link(
        index,
        name.rstrip(b"\0").decode("utf-8", "surrogateescape"),
        flags,
        hardware,
        found.get(_HARDWARE, b""),
        int.from_bytes(found.get(_MTU, b""), sys.byteorder),
        _attributes(found.get(_LINKINFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
    )


def _read_address(body: bytes) -> Address:
    family, prefix, flags, scope, _ = unpack_from(_ADDRESS, body)
    found = _attributes(body[calcsize(_ADDRESS) :])
    if _IFA_FLAGS in found:  # the byte has room for the first eight
        (flags,) = unpack_from("=I", found[_IFA_FLAGS])
    peer = found.get(_IFA_ADDRESS, b"")
    return Address(family, prefix, flags, scope, found.get(_IFA_LOCAL, peer), peer, found.get(_IFA_BROADCAST, b""))

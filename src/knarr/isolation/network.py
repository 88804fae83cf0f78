"""The container's network devices, taken over by the guest: what they are, what the guest's are to be (cold).

Whoever makes a container's network (an engine, a plug-in, a hook) fills its network namespace on the host, as for any
container. The monitor, who stands in there, gives each device's names and numbers to a device of the guest, takes them
from the host's, and copies the frames (wire.py).
"""

from __future__ import annotations

import os
from errno import EADDRNOTAVAIL, EAFNOSUPPORT, EINVAL, EOPNOTSUPP, ESRCH
from struct import error as struct_error
from struct import unpack_from
from time import monotonic, sleep

from knarr.base.errors import InitError, KernelError
from knarr.base.record import Record
from knarr.isolation import convert, frames, kinds, resolver
from knarr.isolation.nic import MTU
from knarr.isolation.wire import Wire, begin
from knarr.kernel import rtnetlink
from knarr.kernel.rtnetlink import NODAD, UP, Address, Link, Request, Route, Rtnetlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.isolation.guest import Guest

_ETHERNET = 1  # ARPHRD_ETHER
_AF_INET, _AF_INET6 = 2, 10
_LINK_LOCAL = b"\xfe\x80"
_PATIENCE = 10.0
_MOMENT = 1.0
_PID, _SYNC = 1, 2  # packets of an init's control socket (docs/init.md)
_DOING = "take over the container's network"


class Device(Record):
    """A device of the container's network namespace with all that is taken over."""

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]


class Joining:
    """When the guest gets the container's network, and whether it can.

    That is when all that fills the namespace has been run: before ``start`` goes on, or, where nobody is waited for,
    before the container's init hears that all is ready. Whoever creates a container to start it later hears at its
    creation of what cannot be had.
    """

    def __init__(self, guest: Guest, nics: Sequence[int], setup: dict[str, Any]) -> None:
        """``setup``: as monitor.py has it."""
        self._guest = guest
        self._nics = nics
        self._settings = setup["settings"]
        self._network = setup["network"]
        self._pid = 0
        self._waits = bool(setup["start"])
        self._joined = self._network is None

    def hear(self, packet: bytes) -> bool:
        """Whether this packet of the container's init waits until ``check`` was called."""
        kind, _, value, _ = unpack_from("<IIiI", packet)
        if kind == _PID and not self._pid:
            self._pid = value
        return kind == _SYNC and not self._joined and value == self._network["ready"]

    def check(self) -> None:
        """Everything is ready but the network. Raises InitError."""
        self._look() if self._waits else self.join()

    def join(self) -> None:
        """Take over what there is. Raises InitError, Unsupported, FileError."""
        if self._joined:
            return
        self._joined = True
        devices = self._look()
        if not devices:
            return
        kind, pointer = self._settings["kind"], self._network["pointer"]
        share = len(self._settings["shares"])
        ipv6 = wants_ipv6(devices)
        name, ipv6, steps = kinds.network(kind, self._settings["found"], share, ipv6=ipv6)
        for request in steps:
            error, _ = self._guest.call(*request, monotonic() + _PATIENCE)
            if error:
                raise InitError(pointer, "load the network's drivers in the guest", error)
        take_over(self._guest, devices, self._nics, pid=self._pid, name=name, ipv6=ipv6, pointer=pointer)

    def _look(self) -> list[Device]:
        pointer = self._network["pointer"]
        own = os.stat("/proc/thread-self/ns/net").st_ino
        if own in self._network["host"]:
            why = "it is the host's own, and the guest cannot use the host's network"
            raise InitError(pointer, _DOING, 0, why=why, hint="engines: a bridge, or --network none")
        found = look(most=len(self._nics), pointer=pointer)
        if found and self._network["shared"]:
            # Those who bring the container into being may be in there for a moment yet.
            until = monotonic() + _MOMENT
            own_processes = (os.getpid(), self._network.get("stand", 0))
            while (other := _somebody_else(own, own_processes)) and monotonic() < until:
                sleep(0.01)
            if other:
                why = f"process {other} is in it too, and would be left without"
                raise InitError(pointer, _DOING, 0, why=why)
        return found


def _somebody_else(namespace: int, known: Sequence[int]) -> int:
    """A process that is not ``known`` in the network namespace with this inode number; 0 when none is seen."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in known:
            try:
                if os.stat(f"/proc/{name}/ns/net").st_ino == namespace:
                    return int(name)
            except OSError:
                pass  # it has ended, or is another user's
    return 0


def look(*, most: int, pointer: str) -> list[Device]:
    """The devices of this thread's network namespace that somebody put there.

    ``most``: devices the guest has. Raises InitError, with ``pointer``, for what it cannot have.
    """
    found = []
    try:
        netlink = Rtnetlink()
        try:
            links = netlink.links()
            for name in convert.devices_that_count(list(links)):
                link = links[name]
                why = _unfit(link)
                if why:
                    raise InitError(pointer, f"take over the network device {name}", 0, why=why)
                found.append(Device(link, tuple(netlink.addresses(link.index)), tuple(netlink.routes(link.index))))
        finally:
            netlink.close()
    except KernelError as error:
        raise InitError(pointer, _DOING, error.errno or 0, why=error.sentence()) from None
    if len(found) > most:
        raise InitError(pointer, f"take over {len(found)} network devices", 0, why=f"the guest has {most}")
    return found


def _unfit(link: Link) -> str:
    """Why the frames of a device cannot be the guest's; "" when they can."""
    if link.hardware != _ETHERNET or len(link.address) != 6:
        return "it is no Ethernet device"
    if link.kind == "ipvlan":
        return "an ipvlan device has only what is sent to its own addresses"
    return ""


def wants_ipv6(devices: Sequence[Device]) -> bool:
    """Whether a guest without IPv6 would lack something: an address that others than the neighbours know."""
    return any(
        each.family == _AF_INET6 and not each.local.startswith(_LINK_LOCAL)
        for device in devices
        for each in device.addresses
    )


def requests(device: Device, index: int, *, ipv6: bool, resolves: bool = False) -> list[Request]:
    """What the guest's kernel is asked for its device with that index; pure.

    ``ipv6``: whether it has that. ``resolves``: the resolver of resolver.py is reached by this device.
    """
    link = device.link
    made = [rtnetlink.change_link(index, address=link.address, mtu=min(link.mtu, MTU))]
    made += [rtnetlink.change_link(index, own_addresses=False)] if ipv6 else []
    if not link.flags & UP:
        return made
    made.append(rtnetlink.change_link(index, up=True))
    for address in device.addresses:
        if address.family != _AF_INET6 or ipv6:
            # It was found to be nobody else's before, and is the same machine's as it was.
            flags = address.flags | NODAD if address.family == _AF_INET6 else address.flags
            made.append(rtnetlink.new_address(index, address.replace(flags=flags)))
    kept = [route for route in device.routes if route.family != _AF_INET6 or ipv6]
    made += [rtnetlink.new_route(index, route) for route in sorted(kept, key=lambda route: route.through)]
    if resolves:
        made.append(rtnetlink.change_link(index, loopback_routed=True))
        made.append(rtnetlink.new_local_route(index, resolver.PACKED))
        made.append(rtnetlink.new_neighbour(index, resolver.PACKED, resolver.HARDWARE))
    return made


def take_over(
    guest: Guest, devices: Sequence[Device], nics: Sequence[int], *, pid: int, name: str, ipv6: bool, pointer: str
) -> None:
    """Make the devices the guest's, in the network namespace of its process ``pid``, and copy frames from now on.

    ``nics`` are our ends of the guest's devices, ``name`` is what they are called there at first, without the number.
    Raises InitError with ``pointer``; the devices may be without their addresses then.
    """
    resolving = _resolving(devices)
    try:
        wires = [
            Wire(device.link.name, nic, device.link.address, resolves=device is resolving)
            for device, nic in zip(devices, nics, strict=False)
        ]
        _flush(devices)
    except KernelError as error:
        raise InitError(pointer, _DOING, error.errno or 0, why=error.sentence()) from None
    begin(wires)
    there = f"/proc/{pid}/ns/net"
    for number, device in enumerate(devices):
        wanted = device.link.name
        index = _index(guest, "", f"{name}{number}", pointer)
        _ask(guest, "", [rtnetlink.change_link(index, name=wanted, pid=pid)], f"give the guest {wanted}", pointer)
        index = _index(guest, there, wanted, pointer)
        asked = requests(device, index, ipv6=ipv6, resolves=device is resolving)
        _ask(guest, there, asked, f"set up {wanted} in the guest", pointer)


def _resolving(devices: Sequence[Device]) -> Device | None:
    """The device by which the guest asks a resolver on the namespace's loopback device; None where there is none."""
    if not resolver.there():
        return None
    fit = (each for each in devices if each.link.flags & UP and any(one.family == _AF_INET for one in each.addresses))
    return next(fit, None)


def _flush(devices: Sequence[Device]) -> None:
    """Take addresses and routes from the host's devices, or its kernel would answer for them too."""
    netlink = Rtnetlink()
    try:
        for device in devices:
            index = device.link.index
            asked = [rtnetlink.old_address(index, address) for address in device.addresses]
            asked += [rtnetlink.old_route(index, route) for route in device.routes]
            for request in asked:
                _unless_gone(netlink, request, device.link.name)
            _unless_gone(netlink, rtnetlink.change_link(index, own_addresses=False), device.link.name)
            netlink.set_up(device.link, up=True)
    finally:
        netlink.close()


def _unless_gone(netlink: Rtnetlink, request: Request, name: str) -> None:
    """Ask; what went with something else, or with the whole of IPv6, is well."""
    try:
        netlink.ask(request, name)
    except KernelError as error:
        if error.errno not in (EADDRNOTAVAIL, EAFNOSUPPORT, EOPNOTSUPP, ESRCH):
            raise


def _index(guest: Guest, place: str, name: str, pointer: str) -> int:
    """The index of the guest's device of that name."""
    answer = _ask(guest, place, [rtnetlink.get_link(name)], f"find {name} in the guest", pointer)
    try:
        link = rtnetlink.read_link(answer)
    except struct_error:
        link = None
    if link is None or not 0 < link.index < 1 << 31:
        raise InitError(pointer, f"find {name} in the guest", EINVAL)
    return link.index


def _ask(guest: Guest, place: str, asked: Sequence[Request], doing: str, pointer: str) -> bytes:
    """Have the guest send them in the network namespace of a path; the first answer."""
    payload = b"".join(rtnetlink.message(request, number + 1) for number, request in enumerate(asked))
    error, answer = guest.call(frames.NETLINK, 0, frames.texts(place) + payload, monotonic() + _PATIENCE)
    if error:
        raise InitError(pointer, doing, error)
    return answer

"""The container's network devices, taken over by the guest: what they are, what the guest's are to be (cold).

Whoever makes a container's network (an engine, a plug-in, a hook) fills its network namespace on the host, as for any
container. The monitor, who stands in there, gives each device's names and numbers to a device of the guest, takes them
from the host's, and copies the frames (wire.py).
"""

from __future__ import annotations

import os
from errno import EINVAL
from struct import error as CutShort
from time import monotonic

from knarr.base.errors import InitError, KernelError, Unsupported
from knarr.base.record import Record
from knarr.isolation import convert, frames
from knarr.isolation.nic import MTU
from knarr.isolation.wire import Wire, begin
from knarr.kernel import rtnetlink
from knarr.kernel.rtnetlink import NODAD, UP, Address, Link, Request, Route, Rtnetlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.isolation.guest import Guest

_ETHERNET = 1  # ARPHRD_ETHER
_AF_INET6 = 10
_LINK_LOCAL = b"\xfe\x80"
_PATIENCE = 10.0


class Device(Record):
    """A device of the container's network namespace with all that is taken over."""

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]


def look(host: Sequence[int], *, most: int, kind: str, pointer: str) -> list[Device]:
    """The devices of this thread's network namespace that somebody put there.

    ``host``: inode numbers of network namespaces that are the host's own. ``most``: devices the guest has. Raises
    Unsupported, with ``pointer``, for what it cannot have.
    """
    try:
        own = os.stat("/proc/thread-self/ns/net").st_ino
        netlink = Rtnetlink()
        try:
            links = netlink.links()
            found = []
            for name in convert.devices_that_count(list(links)):
                link = links[name]
                _demand(link, kind, pointer)
                found.append(Device(link, tuple(netlink.addresses(link.index)), tuple(netlink.routes(link.index))))
        finally:
            netlink.close()
    except KernelError as error:
        raise InitError(pointer, "read the container's network", error.errno or 0) from None
    if own in host:
        raise Unsupported(
            f"the host's network in a container with isolation {kind}",
            "the guest has a network of its own",
            pointer=pointer,
            hint="engines: a bridge, or --network none",
        )
    if len(found) > most:
        why = f"the guest has {most}"
        raise Unsupported(f"{len(found)} network devices with isolation {kind}", why, pointer=pointer)
    return found


def _demand(link: Link, kind: str, pointer: str) -> None:
    """Raise Unsupported for a device whose frames cannot be the guest's."""
    if link.hardware != _ETHERNET or len(link.address) != 6:
        why = "it is no Ethernet device"
    elif link.kind == "ipvlan":
        why = "an ipvlan device has only what is sent to its own addresses"
    else:
        return
    raise Unsupported(f"the network device {link.name} with isolation {kind}", why, pointer=pointer)


def wants_ipv6(devices: Sequence[Device]) -> bool:
    """Whether a guest without IPv6 would lack something: an address that others than the neighbours know."""
    return any(
        each.family == _AF_INET6 and not each.local.startswith(_LINK_LOCAL)
        for device in devices
        for each in device.addresses
    )


def requests(device: Device, index: int, *, ipv6: bool) -> list[Request]:
    """What the guest's kernel is asked for its device with that index; pure."""
    link = device.link
    made = [
        rtnetlink.change_link(index, address=link.address, mtu=min(link.mtu, MTU), own_addresses=not ipv6),
        rtnetlink.change_link(index, up=bool(link.flags & UP)),
    ]
    if not link.flags & UP:
        return made
    for address in device.addresses:
        if address.family != _AF_INET6 or ipv6:
            # It was found to be nobody else's before, and is the same machine's as it was.
            flags = address.flags | NODAD if address.family == _AF_INET6 else address.flags
            made.append(rtnetlink.new_address(index, address.replace(flags=flags)))
    kept = [route for route in device.routes if route.family != _AF_INET6 or ipv6]
    return made + [rtnetlink.new_route(index, route) for route in sorted(kept, key=lambda route: route.through)]


def take_over(
    guest: Guest, devices: Sequence[Device], nics: Sequence[int], *, pid: int, name: Callable[[int], str], pointer: str
) -> None:
    """Make the devices the guest's, in the network namespace of its process ``pid``, and copy frames from now on.

    ``nics`` are our ends of the guest's devices, ``name(number)`` is what a device is called there at first. Raises
    InitError with ``pointer``, Unsupported; the devices may be without their addresses then.
    """
    ipv6 = wants_ipv6(devices)
    wires = []
    try:
        for device, nic in zip(devices, nics, strict=False):
            wires.append(Wire(device.link.name, nic))
        _flush(devices)
    except KernelError as error:
        raise InitError(pointer, "take over the container's network", error.errno or 0, why=str(error)) from None
    begin(wires)
    there = f"/proc/{pid}/ns/net"
    for number, device in enumerate(devices):
        wanted = device.link.name
        index = _index(guest, "", name(number), pointer)
        _ask(guest, "", [rtnetlink.change_link(index, name=wanted, pid=pid)], f"give the guest {wanted}", pointer)
        index = _index(guest, there, wanted, pointer)
        _ask(guest, there, requests(device, index, ipv6=ipv6), f"set up {wanted} in the guest", pointer)


def _flush(devices: Sequence[Device]) -> None:
    """Take the addresses from the host's devices, or its kernel would answer for them too."""
    netlink = Rtnetlink()
    try:
        for device in devices:
            for address in device.addresses:
                netlink.remove_address(device.link.index, address)
            netlink.ask(rtnetlink.change_link(device.link.index, up=True, own_addresses=False), device.link.name)
    finally:
        netlink.close()


def _index(guest: Guest, place: str, name: str, pointer: str) -> int:
    """The index of the guest's device of that name."""
    answer = _ask(guest, place, [rtnetlink.get_link(name)], f"find {name} in the guest", pointer)
    try:
        link = rtnetlink.read_link(answer)
    except CutShort:
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

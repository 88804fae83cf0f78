"""Network devices of the host that become the container's: linux.netDevices (cold).

runtime-spec config-linux.md "Network Devices". A device keeps its addresses if they are permanent and global; its
routes are gone, as the kernel has it. Whatever fails, what was moved before is put back.
"""

from __future__ import annotations

import os
from errno import EPERM

from knarr.base.errors import InitError, KernelError
from knarr.base.record import Record
from knarr.kernel.rtnetlink import PERMANENT, UP, Address, Link, Rtnetlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.plan.namespaces import NetDevice


class Moved(Record):
    """A device that was moved, as it was before, and what it is now."""

    before: Link
    after: Link
    addresses: tuple[Address, ...]


class Devices:
    """The devices of one container, until its creation is over: ``put_back`` undoes ``move``."""

    __slots__ = ("_moved", "_netns", "_own")

    def __init__(self, pid: int) -> None:
        """Devices for the network namespace of ``pid``, a child of ours that is not reaped."""
        self._moved: list[Moved] = []
        self._netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def move(self, devices: Iterable[NetDevice]) -> None:
        """Move them all, or none. Raises InitError."""
        here = there = None
        try:
            here, there = Rtnetlink(), Rtnetlink(self._netns)
            for device in devices:
                self._move(device, here, there)
        except BaseException as error:
            try:
                self.put_back()
            except KernelError as trouble:
                error.add_note(f"and while putting network devices back: {trouble}")
            raise
        finally:
            for side in (here, there):
                if side is not None:
                    side.close()

    def _move(self, device: NetDevice, here: Rtnetlink, there: Rtnetlink) -> None:
        try:
            link = here.link(device.name)
            # Read while it is up: the kernel drops IPv6 addresses of a device that goes down.
            addresses = tuple(each for each in here.addresses(link.index) if each.flags & PERMANENT and not each.scope)
            here.set_up(link, up=False)  # before Linux 6.1 one that is up cannot be renamed
            try:
                arrived = _carry(link, device.inside, here, there, self._netns)
            except KernelError:
                if link.name not in here.links():  # it was moved, and then its name was refused
                    _carry(there.link(link.name), link.name, there, here, self._own)
                _furnish(here, link, addresses, up=bool(link.flags & UP))
                raise
            self._moved.append(Moved(link, arrived, addresses))
            _furnish(there, arrived, addresses, up=True)
        except KernelError as error:
            number = error.errno or 0
            why = f"{os.strerror(number).lower()}: {error.hint}" if error.hint else ""
            hint = "moving a device takes CAP_NET_ADMIN" if number == EPERM else ""
            what = f"move network device {device.name} into the container"
            raise InitError(device.pointer, what, number, why=why, hint=hint) from None

    def put_back(self) -> None:
        """Undo: the devices are the runtime's again, with name, addresses and state. Raises KernelError."""
        moved, self._moved = self._moved, []
        if not moved:
            return
        here, there = Rtnetlink(), Rtnetlink(self._netns)
        try:
            for each in reversed(moved):
                there.set_up(each.after, up=False)
                back = _carry(each.after, each.before.name, there, here, self._own)
                _furnish(here, back, each.addresses, up=bool(each.before.flags & UP))
        finally:
            here.close()
            there.close()

    def close(self) -> None:
        """Forget them: they are the container's."""
        if self._netns >= 0:
            os.close(self._netns)
            os.close(self._own)
            self._netns = self._own = -1


def _carry(link: Link, name: str, source: Rtnetlink, target: Rtnetlink, netns: int) -> Link:
    """Move and rename in one step; the device as it has arrived."""
    if "%" not in name:
        source.move(link, name, netns)
        return target.link(name)
    before = {each.index for each in target.links().values()}
    source.move(link, name, netns)  # the kernel puts a free number into the name
    (arrived,) = [each for each in target.links().values() if each.index not in before]
    return arrived


def _furnish(side: Rtnetlink, link: Link, addresses: Iterable[Address], *, up: bool) -> None:
    """Give a device back what the kernel took from it on the way."""
    have = {(each.local, each.prefix) for each in side.addresses(link.index)}
    for address in addresses:
        if (address.local, address.prefix) not in have:
            side.add_address(link.index, address)
    if up:
        side.set_up(link, up=True)

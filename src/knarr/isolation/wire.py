"""The wires between a guest's network devices and those of the container's network namespace (cold).

A thread copies frames both ways between a device's packet socket and the guest's socket. It knows nothing of the guest
but these: a frame either goes through whole or is lost, as on a wire, and neither side is ever waited for.
"""

from __future__ import annotations

import os
from _socket import SO_RCVBUF, SO_SNDBUF, SOCK_RAW, SOL_SOCKET, socket
from _thread import start_new_thread
from errno import EAGAIN, EINTR
from select import POLLIN, poll

from knarr.base.errors import KernelError
from knarr.isolation.resolver import HARDWARE, Resolver
from knarr.isolation.segments import HEAD, plain

_AF_PACKET, _SOL_PACKET, _VNET_HDR, _IGNORE_OUTGOING = 17, 263, 15, 23
_ETH_P_ALL = 3
_BUFFER = 4 << 20
_LONGEST = HEAD + 18 + (1 << 16)
_AT_ONCE = 64
"""Frames of one side before the other one has its turn."""


class Wire:
    """One device's packet socket and the guest's end of it, which becomes the wire's."""

    __slots__ = ("device", "guest", "hardware", "resolves")

    def __init__(self, name: str, guest: int, hardware: bytes = b"", *, resolves: bool = False) -> None:
        """Open the device of this name, in the caller's network namespace. Raises KernelError.

        ``resolves``: the guest, whose ``hardware`` address it is, asks the namespace's resolver by this device.
        """
        self.guest = guest
        self.hardware = hardware
        self.resolves = resolves
        try:
            self.device = socket(_AF_PACKET, SOCK_RAW, 0)
            self.device.setblocking(False)
            self.device.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
            self.device.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)  # Linux 4.20
            self.device.setsockopt(SOL_SOCKET, SO_RCVBUF, _BUFFER)
            self.device.setsockopt(SOL_SOCKET, SO_SNDBUF, _BUFFER)
            self.device.bind((name, _ETH_P_ALL))
        except OSError as error:
            raise KernelError("open a packet socket", name, error.errno or 0) from None


def begin(wires: list[Wire]) -> None:
    """Copy from now on, until this process ends."""
    start_new_thread(_copy, (wires,))


def _copy(wires: list[Wire]) -> None:
    poller = poll()
    into, out = {}, {}
    resolver: Resolver | None = None
    for wire in wires:
        if wire.resolves:
            resolver = Resolver(wire.guest, wire.hardware, poller)
        into[wire.device.fileno()] = wire
        out[wire.guest] = wire
        poller.register(wire.device.fileno(), POLLIN)
        poller.register(wire.guest, POLLIN)
    packet = memoryview(bytearray(_LONGEST))
    frame = memoryview(bytearray(_LONGEST))  # its first bytes stay 0: a virtio_net_hdr that asks for nothing
    while True:
        for fd, _ in poller.poll():
            if fd in into:
                _to_guest(into[fd], packet)
            elif fd in out:
                wire = out[fd]
                if not _from_guest(wire, frame, resolver if wire.resolves else None):
                    poller.unregister(fd)
            elif resolver is not None:
                resolver.hear(fd)


def _to_guest(wire: Wire, packet: memoryview) -> None:
    receive, guest = wire.device.recv_into, wire.guest
    for _ in range(_AT_ONCE):
        try:
            count = receive(packet)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return
            continue  # the device went down, or a kind of long frame the kernel has no name for (EINVAL)
        if count > HEAD:
            for each in plain(packet[:count]):
                try:
                    os.write(guest, each)
                except OSError:
                    break  # the guest does not take it in time


def _from_guest(wire: Wire, frame: memoryview, resolver: Resolver | None) -> bool:
    """False when nothing will come any more."""
    send, guest, body = wire.device.send, wire.guest, frame[HEAD:]
    for _ in range(_AT_ONCE):
        try:
            count = os.readv(guest, [body])
        except OSError as error:
            return error.errno in (EAGAIN, EINTR)
        if resolver is not None and body[:6] == HARDWARE:
            resolver.ask(bytes(body[:count]))
            continue
        try:
            send(frame[: HEAD + count])
        except OSError:
            pass  # too long for the device, too short, or the device has no room or is gone
    return True

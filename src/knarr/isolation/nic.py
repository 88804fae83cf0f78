"""A guest's network devices as sockets: each packet is one Ethernet frame (hot)."""

from __future__ import annotations

from _socket import AF_UNIX, SO_SNDBUF, SOCK_DGRAM, SOL_SOCKET, socketpair

from knarr.base.errors import KernelError

NICS = 4
"""How many a guest boots with: devices cannot come later. Four cost its boot 1 ms."""
MTU = 1500
"""The largest a guest's device can have: user-mode Linux settles its buffers when it boots."""
_QUEUE = 1 << 20
"""Bytes of frames, with the kernel's own data about them, that may wait on a socket."""


def pair() -> tuple[int, int]:
    """Our end of a device and the guest's; neither blocks. Raises KernelError."""
    try:
        ours, theirs = socketpair(AF_UNIX, SOCK_DGRAM, 0)
    except OSError as error:
        raise KernelError("socketpair", "AF_UNIX", error.errno or 0) from None
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(SOL_SOCKET, SO_SNDBUF, _QUEUE)  # the kernel gives what net.core.wmem_max allows
    return ours.detach(), theirs.detach()

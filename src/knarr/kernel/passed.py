"""Descriptors that came with a message over a Unix socket: unix(7), SCM_RIGHTS (hot)."""

from __future__ import annotations

from _socket import SCM_RIGHTS, SOL_SOCKET
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """All of them, in order, from what recvmsg gave beside the data; they are the caller's to close."""
    return [
        int.from_bytes(data[at : at + 4], byteorder)
        for level, kind, data in ancillary
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        for at in range(0, len(data) - 3, 4)
    ]

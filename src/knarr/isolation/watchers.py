"""Who wants to hear of a container's memory running out, and how the monitor hears of it from the guest (cold).

The guest counts (memory.events, cgroup-v2.rst); it is asked once a second for as long as somebody watches.
"""

from __future__ import annotations

from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import KnarrError
from knarr.isolation import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from knarr.isolation.guest import Guest

_EVERY = 1.0
_PATIENCE = 3.0


class Watchers:
    """Connections that are told when processes were killed for want of memory in the guest's cgroup ``group``."""

    __slots__ = ("_asked", "_due", "_group", "_guest", "_watching", "kills")

    def __init__(self, guest: Guest, group: str) -> None:
        self._guest = guest
        self._group = group
        self._watching: dict[socket, int | None] = {}  # and how many there were when it began
        self._asked = False
        self._due = 0.0
        self.kills = 0
        """How many, as the guest said last."""

    def add(self, connection: socket) -> None:
        """Tell this one, from now on; what was before is not news."""
        self._watching[connection] = None
        self._due = 0.0

    def forget(self, connection: socket) -> None:
        """It went away."""
        self._watching.pop(connection, None)

    def wait(self) -> int | None:
        """Milliseconds until ``look`` is wanted; None when nobody watches."""
        return max(0, round((self._due - monotonic()) * 1000)) + 1 if self._watching else None

    def look(self) -> None:
        """Ask the guest, if it is time; the answer comes when it comes."""
        if self._watching and not self._asked and monotonic() >= self._due:
            self._asked = True
            self._due = monotonic() + _EVERY
            self._guest.request(frames.READ, 4096, self._file(), self._answered)

    def last(self) -> int:
        """Ask for the last time and wait for the answer; how many there were."""
        if self._group:
            try:
                self._answered(*self._guest.call(frames.READ, 4096, self._file(), monotonic() + _PATIENCE))
            except KnarrError:
                pass  # it is on its way out anyway
        return self.kills

    def _file(self) -> bytes:
        return frames.texts(f"{self._group}/memory.events")

    def _answered(self, error: int, data: bytes) -> None:
        self._asked = False
        self.kills = max(self.kills, 0 if error else _kills(data))
        for connection, known in self._watching.items():
            if known is not None and known < self.kills:
                try:
                    connection.send(fastjson.dumps({"oom": self.kills - known}))
                except OSError:
                    pass  # it does not read, or is gone
            self._watching[connection] = self.kills


def _kills(data: bytes) -> int:
    for line in data.decode("ascii", "replace").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isascii() and count.isdecimal():
            return int(count[:18])
    return 0

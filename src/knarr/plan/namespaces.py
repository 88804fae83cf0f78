"""Namespaces of config.json -> clone flags, joins and id maps (hot, pure).

runtime-spec config-linux.md "Namespaces", "User namespace mappings"; namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

from knarr.base.fastjson import pointer_token
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_FLAG = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
PROC_NAME = {
    "user": "user",
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "pid": "pid",
    "network": "net",
    "cgroup": "cgroup",
    "time": "time",
}

OVERFLOW_ID = 65534  # what the kernel shows of an id that is not mapped (/proc/sys/kernel/overflowuid)


class Namespaces(Record):
    """``new``: kinds to make; ``joins``: (kind, path, JSON pointer), in the order they must be entered."""

    new: frozenset[str]
    joins: tuple[tuple[str, str, str], ...]

    def own(self, kind: str) -> bool:
        """Whether the container has such a namespace that is not the runtime's."""
        return kind in self.new or any(join[0] == kind for join in self.joins)


class NetDevice(Record):
    """The device ``name`` of the runtime's network namespace becomes ``inside`` in the container's."""

    name: str
    inside: str
    pointer: str


def net_devices(entries: dict[str, dict[str, str]]) -> tuple[NetDevice, ...]:
    """linux.netDevices (runtime-spec config-linux.md "Network Devices")."""
    return tuple(
        NetDevice(name, entry.get("name") or name, f"/linux/netDevices{pointer_token(name)}")
        for name, entry in entries.items()
    )


def plan_namespaces(entries: list[dict[str, str]], *, privileged: bool) -> Namespaces:
    """Sort namespaces into made and joined.

    A privileged caller joins the user namespace last: its power over the others comes from the initial user
    namespace. Anyone else gets the power to join the others only by entering the user namespace first.
    """
    new = frozenset(entry["type"] for entry in entries if not entry.get("path"))
    joins = [
        (entry["type"], entry["path"], f"/linux/namespaces/{position}")
        for position, entry in enumerate(entries)
        if entry.get("path")
    ]
    # The mount namespace comes after the others: their paths belong to the caller's.
    rank = {"mount": 1, "user": 2 if privileged else -1}
    joins.sort(key=lambda join: rank.get(join[0], 0))
    return Namespaces(new, tuple(joins))


def id_map(mappings: list[dict[str, int]]) -> tuple[tuple[int, int, int], ...]:
    """config.json's uidMappings or gidMappings as (inside, outside, count)."""
    return tuple((entry["containerID"], entry["hostID"], entry["size"]) for entry in mappings)


def outside_id(mappings: list[dict[str, int]] | None, number: int) -> int:
    """The id outside of the container's id ``number``; the overflow id where it has none."""
    for first, host, size in id_map(mappings or []):
        if first <= number < first + size:
            return host + number - first
    return OVERFLOW_ID


def shares_pids(config: dict[str, Any]) -> bool:
    """Whether the container has no pid namespace of its own."""
    spaces = (config.get("linux") or {}).get("namespaces") or ()
    return not any(entry["type"] == "pid" and not entry.get("path") for entry in spaces)

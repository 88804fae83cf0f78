"""Devices in a user namespace, where the host's own nodes are bound: they must be what was asked for (cold).

mknod fails there, so the host's node of the same path takes the place; anything else at that path (a directory, another
device) would show the container what nobody asked for.
"""

from __future__ import annotations

import os
import stat

from knarr.base.errors import InitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KINDS = {"c": stat.S_ISCHR, "u": stat.S_ISCHR, "b": stat.S_ISBLK}


def demand_host_nodes(config: dict[str, Any]) -> None:
    """Raise InitError for an entry of linux.devices whose path is something else on the host.

    Where there is nothing, the bind says so.
    """
    for number, entry in enumerate((config.get("linux") or {}).get("devices") or ()):
        is_kind = _KINDS.get(entry["type"])
        path = os.path.join("/", entry["path"])
        try:
            facts = os.stat(path)
        except OSError:
            continue
        wanted = (entry.get("major", 0), entry.get("minor", 0))
        if is_kind is None or (is_kind(facts.st_mode) and (os.major(facts.st_rdev), os.minor(facts.st_rdev)) == wanted):
            continue
        kind = "b" if entry["type"] == "b" else "c"
        device = f"{kind} {wanted[0]}:{wanted[1]}"
        why = f"on the host that is not the device {device}, and in a user namespace none can be made"
        raise InitError(f"/linux/devices/{number}", f"bind {path}", 0, why=why)

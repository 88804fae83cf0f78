"""Device nodes and device rules of a container (hot, pure).

runtime-spec config-linux.md "Devices", "Default Devices", "Allowed Device list".
"""

from __future__ import annotations

import stat

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
ANY = -1

# path, major, minor: what config-linux.md wants in every container
_DEFAULT_NODES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)


class DeviceRule(Record):
    """One line of the device list: type "a" (all), "b" or "c"; -1 stands for any number; access out of "rwm"."""

    allow: bool
    type: str
    major: int
    minor: int
    access: str
    pointer: str = ""


# Always allowed: the default nodes, terminals, and making (not opening) any node, as runc has it.
_DEFAULT_RULES = (
    DeviceRule(True, "c", ANY, ANY, "m"),
    DeviceRule(True, "b", ANY, ANY, "m"),
    *(DeviceRule(True, "c", major, minor, "rwm") for _, major, minor in _DEFAULT_NODES),
    DeviceRule(True, "c", 5, 1, "rwm"),  # console
    DeviceRule(True, "c", 136, ANY, "rwm"),  # pts/*
    DeviceRule(True, "c", 5, 2, "rwm"),  # ptmx
)


def device_nodes(config: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Each node to make, with its JSON pointer: those of linux.devices, and the default ones not named there."""
    nodes: list[tuple[dict[str, Any], str]] = []
    named = set()
    for position, entry in enumerate((config.get("linux") or {}).get("devices") or ()):
        named.add(entry["path"])
        mode = _TYPES[entry["type"]] | (entry.get("fileMode", 0o666) & 0o7777)
        node = {
            "path": entry["path"],
            "kind": entry["type"],
            "mode": mode,
            "major": entry.get("major", 0),
            "minor": entry.get("minor", 0),
            "uid": entry.get("uid", 0),
            "gid": entry.get("gid", 0),
        }
        nodes.append((node, f"/linux/devices/{position}"))
    for path, major, minor in _DEFAULT_NODES:
        if path not in named:
            mode = stat.S_IFCHR | 0o666
            node = {"path": path, "kind": "c", "mode": mode, "major": major, "minor": minor, "uid": 0, "gid": 0}
            nodes.append((node, ""))
    return nodes


def device_rules(resources: dict[str, Any]) -> list[DeviceRule]:
    """The whole list in force, first to last: deny all, what config.json says, what every container has.

    Without any rule of config.json everything but the defaults is denied (GHSA-g54h-m393-cpwq).
    """
    rules = [DeviceRule(False, "a", ANY, ANY, "rwm")]
    for position, entry in enumerate(resources.get("devices") or ()):
        pointer = f"/linux/resources/devices/{position}"
        access = entry.get("access") or "rwm"
        major, minor = entry.get("major", ANY), entry.get("minor", ANY)
        kind = entry.get("type") or "a"
        if kind == "a":
            major = minor = ANY
        rules.append(DeviceRule(bool(entry["allow"]), "c" if kind == "u" else kind, major, minor, access, pointer))
    return rules + list(_DEFAULT_RULES)


def rule_line(rule: DeviceRule) -> str:
    """The line of devices.allow and devices.deny (cgroup-v1/devices.rst)."""
    if rule.type == "a":
        return "a"
    numbers = ["*" if number == ANY else str(number) for number in (rule.major, rule.minor)]
    return f"{rule.type} {numbers[0]}:{numbers[1]} {rule.access}"

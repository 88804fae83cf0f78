"""New limits for a container that is there (hot, pure): what they make of its config.json, and the writes they need.

As in config.json, a number that is 0 was not asked for, because Go's writers put it where nothing was said; but 0 is a
value of ``cpu.burst``, ``cpu.idle`` and a device's rate, and takes an earlier one back.
"""

from __future__ import annotations

from knarr.plan.cgroup import CgroupDirectory, CgroupPlan
from knarr.plan.devices import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupHost
    from knarr.plan.devices import Rule

_ZERO_COUNTS = ("burst", "idle", "swappiness", "checkBeforeUpdate")
# What tells the entries of a list apart: such an entry replaces the one it names, the others stay.
_KEYS = {
    "weightDevice": ("major", "minor"),
    "throttleReadBpsDevice": ("major", "minor"),
    "throttleWriteBpsDevice": ("major", "minor"),
    "throttleReadIOPSDevice": ("major", "minor"),
    "throttleWriteIOPSDevice": ("major", "minor"),
    "hugepageLimits": ("pageSize",),
    "priorities": ("name",),
}


def asked(given: dict[str, Any]) -> dict[str, Any]:
    """The part of validated resources that asks for something: no zeros that mean "not set", no empty sections."""
    result: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            value = asked(value) if name not in ("unified", "rdma") else value
            if not value:
                continue
        elif value is None or value in ("", []) or (value == 0 and name not in _ZERO_COUNTS):
            continue
        result[name] = value
    return result


def merged(old: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """``old`` resources with what ``given`` (see ``asked``) changes; a new value."""
    result = dict(old)
    for name, value in given.items():
        if isinstance(value, dict):
            result[name] = merged(result.get(name) or {}, value)
        elif name in _KEYS:
            result[name] = _upserted(result.get(name) or [], value, _KEYS[name])
        else:
            result[name] = value
    memory = given.get("memory") or {}
    if memory.get("limit") == -1 and "swap" not in memory:
        # No limit of memory with one of memory and swap together cannot be.
        result["memory"]["swap"] = -1
    return result


def _upserted(old: list[dict[str, Any]], given: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in (*old, *given):
        key = tuple(entry.get(name) for name in keys)
        entries[key] = {**entries.get(key, {}), **entry}
    return list(entries.values())


def plan_update(
    config: dict[str, Any], given: dict[str, Any], host: CgroupHost, groups: list[tuple[str, str]], *, devices: bool
) -> tuple[dict[str, Any], CgroupPlan]:
    """(the config.json from now on, the writes into the container's ``groups``, each a mount point and a path).

    ``given`` is what ``asked`` returns. Device rules are written only if they differ from the ones there are: others
    may have added their own to the group meanwhile (GPU hooks do). Raises Unsupported with the JSON pointer.
    """
    linux = config.get("linux") or {}
    old = linux.get("resources") or {}
    resources = merged(old, given)
    changed = {**config, "linux": {**linux, "resources": resources}}
    rules: tuple[Rule, ...] = ()
    if devices and "devices" in given and given["devices"] != old.get("devices"):
        rules = device_rules(changed)
    needed = _needed(given, resources)
    if host.mode == "v2":
        from knarr.plan.cgroup_v2 import v2_writes

        where = CgroupDirectory(host.unified, groups[0][1], host.controllers)
        return changed, CgroupPlan(
            (where,), tuple(v2_writes(needed, where, zeros=True)), rules, host.unified if rules else "", clone_into=True
        )
    from knarr.plan.cgroup_v1 import v1_writes

    controllers = {mount.mountpoint: mount.controllers for mount in host.mounts}
    directories = [CgroupDirectory(mount, path, controllers.get(mount, ())) for mount, path in groups]
    by_program = bool(rules) and not any("devices" in place.controllers for place in directories)
    writes = v1_writes(needed, () if by_program else rules, directories, zeros=True)
    return changed, CgroupPlan(
        tuple(directories), tuple(writes), rules if by_program else (), host.unified if by_program else ""
    )


def _needed(given: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    """What must be written for ``given``: also the other half of what the kernel has in one file or compares."""
    needed = {name: value for name, value in given.items() if name != "devices"}
    for section, names in (("cpu", ("quota", "period")), ("memory", ("limit", "swap"))):
        asked_for = given.get(section) or {}
        if any(name in asked_for for name in names):
            there = resources[section]
            needed[section] = {**asked_for, **{name: there[name] for name in names if there.get(name)}}
    cpu = given.get("cpu") or {}
    if cpu.get("idle") == 0 and resources["cpu"].get("shares"):
        needed["cpu"] = {**needed["cpu"], "shares": resources["cpu"]["shares"]}  # an idle group has lost them
    if "memory" in needed and resources["memory"].get("checkBeforeUpdate"):
        needed["memory"] = {**needed["memory"], "checkBeforeUpdate": True}
    return needed


def before(value: str, text: str) -> str:
    """What to write to undo the writing of ``value`` into a file that said ``text``."""
    device, space, _ = value.partition(" ")
    if not space or ":" not in device:
        return text.strip()
    for line in text.splitlines():
        if line.split(" ")[0] == device:
            return line
    if "=" in value:
        return " ".join([device, *(f"{word.partition('=')[0]}=max" for word in value.split(" ")[1:])])
    return f"{device} 0"

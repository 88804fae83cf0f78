"""linux.intelRdt -> a group of the resctrl file system (hot, pure).

runtime-spec config-linux.md "Intel RDT"; the kernel's Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class RdtPlan(Record):
    """``group``: a directory of resctrl, "" for its top. ``monitor``: a monitoring group in it, "" for none."""

    group: str
    schemata: tuple[tuple[str, str], ...]  # (line, JSON pointer), in order
    make: bool  # a group that is missing is made
    own: bool  # it is the container's alone and goes with it
    monitor: str = ""


def plan_rdt(asked: dict[str, Any] | None, id: str) -> RdtPlan | None:
    """The group a container is to be in; None when nothing is asked for.

    A group with a name of its own (closID) belongs to whoever administers the machine: with schemata it is made if it
    is missing, without it must be there, and it is never removed. Without a name the container's id is one.
    """
    if asked is None:
        return None
    at = "/linux/intelRdt"
    lines = [(asked.get(field) or "", f"{at}/{field}") for field in ("l3CacheSchema", "memBwSchema")]
    lines += [(line, f"{at}/schemata/{number}") for number, line in enumerate(asked.get("schemata") or ())]
    schemata = tuple(pair for pair in lines if pair[0].strip())
    name = asked.get("closID") or ""
    monitor = id if asked.get("enableMonitoring") else ""
    if not name:
        return RdtPlan(id, schemata, True, True, monitor)
    group = "" if name == "/" else name
    return RdtPlan(group, schemata, bool(schemata) and bool(group), False, monitor)


def differing(wanted: str, present: str) -> str:
    """The first part of a line of ``wanted`` that a group's schemata have otherwise; "" when all is as wanted.

    Caches that a line does not name count as wanted; leading zeros and blanks mean nothing.
    """
    have = {name: parts for line in present.splitlines() for name, parts in [_read(line)]}
    name, parts = _read(wanted)
    for cache, value in parts.items():
        if have.get(name, {}).get(cache) != value:
            return f"{name}:{cache}={value}"
    return ""


def _read(line: str) -> tuple[str, dict[str, str]]:
    """``L3:0=00ff;1=f`` as its name and {cache: value}."""
    name, _, rest = line.partition(":")
    parts = {}
    for part in rest.split(";"):
        cache, _, value = part.partition("=")
        if cache.strip():
            parts[cache.strip().lstrip("0") or "0"] = value.strip().lstrip("0").lower() or "0"
    return name.strip(), parts

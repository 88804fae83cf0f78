"""Device nodes and device rules of config.json (hot, pure).

runtime-spec config-linux.md "Devices", "Default Devices" and "Allowed Device list". A rule list means: access is
refused unless the last rule that speaks of it allows it, for reading, writing and mknod each on its own. On cgroup v2
a program says exactly that (device_bpf); v1 knows only a default and exceptions, so what it cannot express is refused.
"""

from __future__ import annotations

import stat

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Key = tuple[str, int, int]

# linux/bpf.h BPF_DEVCG_ACC_*
MKNOD = 1
READ = 2
WRITE = 4
ALL = MKNOD | READ | WRITE
_LETTERS = {"r": READ, "w": WRITE, "m": MKNOD}

_NODES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
# Allowed without a node: console (a bind mount of the terminal), ptmx (a link into devpts) and the terminals of devpts.
_MORE_ALLOWED = ((5, 1), (5, 2), (136, -1))
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class Rule(Record):
    """One device rule. ``kind`` is b, c, or a for all devices; -1 stands for any number; ``access`` are bits above."""

    allow: bool
    kind: str
    major: int
    minor: int
    access: int
    pointer: str = ""


def device_nodes(config: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(node, JSON pointer) for each device the container gets: the default ones, then those of linux.devices.

    A node has ``path``, ``kind`` (c, b or p), ``mode`` with its type bits, ``major``, ``minor``, ``uid`` and ``gid``.
    A device of the config takes the place of the default one at its path. Raises SpecError.
    """
    asked = (config.get("linux") or {}).get("devices") or []
    taken = {device["path"] for device in asked}
    result = [
        (_node(path, "c", stat.S_IFCHR | 0o666, (major, minor), (0, 0)), "")
        for path, major, minor in _NODES
        if path not in taken
    ]
    findings: list[SpecFinding] = []
    for position, device in enumerate(asked):
        pointer = f"/linux/devices/{position}"
        kind = device.get("type")
        if kind not in _TYPES:
            findings.append(SpecFinding(f"{pointer}/type", f"{kind!r} is not one of c, b, u and p"))
            continue
        mode = device.get("fileMode")
        # Some writers put the file type into the mode (podman).
        mode = 0o666 if mode is None else mode & ~stat.S_IFMT(mode)
        if mode & ~0o777:
            findings.append(SpecFinding(f"{pointer}/fileMode", f"{mode:#o} has more than permission bits"))
        numbers = device.get("major"), device.get("minor")
        if kind == "p":
            numbers = 0, 0
        for name, number in zip(("major", "minor"), numbers, strict=True):
            if not isinstance(number, int) or not 0 <= number <= 0xFFFFFFFF:
                findings.append(SpecFinding(f"{pointer}/{name}", f"{number!r} is not a device number"))
        letter = "c" if kind == "u" else kind
        owner = device.get("uid") or 0, device.get("gid") or 0
        result.append((_node(device["path"], letter, _TYPES[kind] | mode, numbers, owner), pointer))
    if findings:
        raise SpecError("config.json", findings)
    return result


def _node(path: str, kind: str, mode: int, numbers: tuple[Any, Any], owner: tuple[int, int]) -> dict[str, Any]:
    return {
        "path": path,
        "kind": kind,
        "mode": mode,
        "major": numbers[0],
        "minor": numbers[1],
        "uid": owner[0],
        "gid": owner[1],
    }


def device_rules(config: dict[str, Any]) -> tuple[Rule, ...]:
    """All rules in their order: refuse everything; linux.resources.devices; the devices every container has.

    Of a device in linux.devices the container may make the node, no more: opening it needs a rule of its own.
    (runc allows mknod of every device, and /dev/net/tun; we do not.) Raises SpecError.
    """
    linux = config.get("linux") or {}
    rules = [Rule(False, "a", -1, -1, ALL)]
    findings: list[SpecFinding] = []
    for position, entry in enumerate((linux.get("resources") or {}).get("devices") or ()):
        rules += _read(entry, f"/linux/resources/devices/{position}", findings)
    if findings:
        raise SpecError("config.json", findings)
    rules += [Rule(True, "c", major, minor, ALL) for _, major, minor in _NODES]
    rules += [Rule(True, "c", major, minor, ALL) for major, minor in _MORE_ALLOWED]
    rules += [
        Rule(True, node["kind"], node["major"], node["minor"], MKNOD, pointer)
        for node, pointer in device_nodes(config)
        if pointer and node["kind"] != "p"
    ]
    return tuple(rules)


def _read(entry: dict[str, Any], pointer: str, findings: list[SpecFinding]) -> list[Rule]:
    kind = entry.get("type") or "a"
    if kind not in ("a", "b", "c"):
        findings.append(SpecFinding(f"{pointer}/type", f"{kind!r} is not one of a, b and c"))
    letters = entry.get("access") or ""
    access = 0
    for letter in letters:
        if letter not in _LETTERS:
            findings.append(SpecFinding(f"{pointer}/access", f"{letters!r} has more than the letters r, w and m"))
            break
        access |= _LETTERS[letter]
    if not letters:
        findings.append(SpecFinding(f"{pointer}/access", "is empty: it must have one of r, w and m"))
    numbers = []
    for name in ("major", "minor"):
        number = entry.get(name)
        if number is not None and not -1 <= number <= 0xFFFFFFFF:
            findings.append(SpecFinding(f"{pointer}/{name}", f"{number} is not a device number"))
        numbers.append(-1 if number is None else number)
    major, minor = numbers
    allow = bool(entry.get("allow"))
    if kind == "a" and not (major == minor == -1 and access == ALL):
        # cgroup v1 would take it for all access to all devices.
        return [Rule(allow, half, major, minor, access, pointer) for half in ("b", "c")]
    return [Rule(allow, kind, major, minor, access, pointer)]


def since_reset(rules: tuple[Rule, ...]) -> tuple[bool, tuple[Rule, ...]]:
    """(what holds for all devices, the rules that come after the last one about all devices)."""
    for position in range(len(rules) - 1, -1, -1):
        if rules[position].kind == "a":
            return rules[position].allow, rules[position + 1 :]
    return False, rules


def v1_writes(rules: tuple[Rule, ...]) -> list[tuple[str, str, str]]:
    """(file, line, JSON pointer) of each write to the devices cgroup of a new group, in order.

    The kernel takes exceptions back only where they are spelled alike, and lets one exception answer for a whole
    access; here a rule takes back whatever it covers, and exceptions that overlap are joined, so that the result means
    what the list says. Raises Unsupported for a rule that takes back a part of a wider exception.
    """
    allowed, later = since_reset(rules)
    exceptions: dict[Key, tuple[int, str]] = {}
    for rule in later:
        key = rule.kind, rule.major, rule.minor
        if rule.allow != allowed:
            exceptions[key] = exceptions.get(key, (0, ""))[0] | rule.access, rule.pointer
            continue
        for other, (access, pointer) in list(exceptions.items()):
            if _meet(key, other) is None or not access & rule.access:
                continue
            if not _covers(key, other):
                raise Unsupported(
                    "a device rule that takes back a part of an earlier, wider one",
                    "cgroup v1 has no way to say it",
                    pointer=rule.pointer,
                    hint="put the narrower rules first, or spell the wider one out",
                )
            exceptions[other] = access & ~rule.access, pointer
    exceptions = {key: value for key, value in exceptions.items() if value[0]}
    if not allowed:
        _join(exceptions)
    name, opposite = ("devices.allow", "devices.deny") if allowed else ("devices.deny", "devices.allow")
    writes = [(name, "a", "/linux/resources/devices")]
    for (kind, major, minor), (access, pointer) in exceptions.items():
        numbers = f"{'*' if major < 0 else major}:{'*' if minor < 0 else minor}"
        letters = "".join(letter for letter, bit in _LETTERS.items() if access & bit)
        writes.append((opposite, f"{kind} {numbers} {letters}", pointer))
    return writes


def _meet(one: Key, other: Key) -> Key | None:
    """The devices that two keys have in common."""
    if one[0] != other[0]:
        return None
    result = []
    for left, right in ((one[1], other[1]), (one[2], other[2])):
        if left >= 0 and right >= 0 and left != right:
            return None
        result.append(max(left, right))
    return one[0], result[0], result[1]


def _covers(wide: Key, narrow: Key) -> bool:
    return _meet(wide, narrow) == narrow


def _join(exceptions: dict[Key, tuple[int, str]]) -> None:
    """Give each device that several exceptions speak of one exception with the access of all of them."""
    growing = True
    while growing:
        growing = False
        for one, (first, pointer) in list(exceptions.items()):
            for other, (second, _) in list(exceptions.items()):
                both = _meet(one, other)
                union = first | second
                if both is None or union in (first, second):  # one exception alone answers for both
                    continue
                held, origin = exceptions.get(both, (0, pointer))
                if held | union != held:
                    exceptions[both] = held | union, origin
                    growing = True

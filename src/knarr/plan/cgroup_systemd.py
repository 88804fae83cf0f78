"""linux.cgroupsPath, linux.resources and annotations for systemd: a scope and its properties (hot, pure).

systemd.scope(5), systemd.resource-control(5), org.freedesktop.systemd1(5). Limits are told twice: as properties, so
that systemd keeps them when it writes its units' settings anew, and, exactly and for what it has no property for, as
files of the group. docs/cgroups.md.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.fastjson import pointer_token
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.devices import Rule

INFINITY = (1 << 64) - 1
PROPERTY = "org.systemd.property."
SUBGROUP = "run.oci.systemd.subgroup"
_FORCE_V1 = "run.oci.systemd.force_cgroup_v1"
_UNIT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\-@")
_UNIT_NAME_MAX = 255
_PATH = "/linux/cgroupsPath"
# What the runtime itself says of the scope; another value would part it from its container.
_OURS = ("Slice", "Delegate", "PIDs", "DefaultDependencies")
_BITS = 8192  # NR_CPUS of the largest kernels
_PERIOD = 100000  # microseconds, the kernel's default


class Property(Record):
    """A property of the unit: D-Bus signature and value. ``since``: the first systemd that knows it."""

    name: str
    signature: str
    value: Any
    since: int = 0


class Scope(Record):
    """The unit to make. ``path`` starts at the manager's own root; ``subgroup`` is a group in it, or empty."""

    name: str
    slice: str
    path: str
    properties: tuple[Property, ...]
    user: bool  # of the user's manager
    v2: bool
    subgroup: str = ""


def plan_scope(config: dict[str, Any], id: str, *, user: bool, v2: bool, rules: tuple[Rule, ...] = ()) -> Scope:
    """Decide on the scope. ``rules`` are the device rules on v1. Raises SpecError and Unsupported with the pointer."""
    linux = config.get("linux") or {}
    annotations = config.get("annotations") or {}
    above, name = scope_name(str(linux.get("cgroupsPath") or ""), id, user=user)
    if _FORCE_V1 in annotations:
        raise Unsupported(
            f"annotation {_FORCE_V1}",
            "knarr uses the cgroups this host has",
            pointer=f"/annotations{pointer_token(_FORCE_V1)}",
        )
    resources = linux.get("resources") or {}
    given = annotation_properties(annotations)
    named = {each.name for each in given}
    made = [
        Property("Description", "s", f"container {id}"),
        Property("Slice", "s", above),
        Property("Delegate", "b", True),
        Property("DefaultDependencies", "b", False),
        # A scope that failed (its container ran out of memory) must not stay and bar the next one of its name.
        Property("CollectMode", "s", "inactive-or-failed"),
        *(Property(f"{kind}Accounting", "b", True) for kind in ("CPU", "Memory", "IO" if v2 else "BlockIO", "Tasks")),
        *(v2_properties(resources) if v2 else v1_properties(resources, rules)),
    ]
    properties = (*(each for each in made if each.name not in named), *given)
    path = f"{slice_path(above)}/{name}"
    return Scope(name, above, path, properties, user, v2, _subgroup(annotations))


def scope_name(path: str, id: str, *, user: bool) -> tuple[str, str]:
    """(slice, unit) of ``slice:prefix:name``, as runc names them: prefix-name.scope. Raises SpecError."""
    above, prefix, name = "", "knarr", "".join(f"\\x{ord(c):02x}" if c == "+" else c for c in id)
    if path:
        parts = path.split(":")
        if len(parts) != 3:
            raise _wrong(_PATH, 'must be "slice:prefix:name" for the systemd cgroup driver')
        above, prefix, name = parts
    if name.endswith(".slice"):
        raise _wrong(_PATH, "names a slice; a container is a scope")
    above = above or ("user.slice" if user else "system.slice")
    slice_path(above)
    unit = f"{prefix}-{name}.scope"
    if not name or len(unit) > _UNIT_NAME_MAX or not _UNIT_CHARACTERS.issuperset(unit):
        raise _wrong(_PATH, f"{unit!r} cannot be the name of a systemd unit")
    return above, unit


def slice_path(name: str) -> str:
    """``a-b.slice`` -> ``/a.slice/a-b.slice``: systemd reads the hierarchy from the name (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem == "-" and name == "-.slice":
        return ""
    parts = stem.split("-")
    if stem == name or not all(parts) or not _UNIT_CHARACTERS.issuperset(name) or len(name) > _UNIT_NAME_MAX:
        raise _wrong(_PATH, f"{name!r} is not the name of a systemd slice")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def _wrong(pointer: str, why: str) -> SpecError:
    return SpecError("config.json", [SpecFinding(pointer, why)])


def _subgroup(annotations: dict[str, str]) -> str:
    given = annotations.get(SUBGROUP, "")
    parts = [part for part in given.split("/") if part]
    if any(part in (".", "..") or len(part) > _UNIT_NAME_MAX or not part.isprintable() for part in parts):
        raise _wrong(f"/annotations{pointer_token(SUBGROUP)}", f"{given!r} is not the name of a group")
    return "/".join(parts)


# -- limits ------------------------------------------------------------------------------------------------------------


def v2_properties(resources: dict[str, Any]) -> list[Property]:
    """linux.resources as properties, as far as systemd has them, on cgroup v2."""
    from knarr.plan.cgroup_v2 import cpu_weight, io_weight

    made = _common(resources)
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit < 0 and not swap:
        swap = -1
    if limit:
        made.append(Property("MemoryMax", "t", _or_infinity(limit)))
    if swap:
        made.append(Property("MemorySwapMax", "t", INFINITY if swap < 0 else swap - max(limit, 0)))
    if memory.get("reservation"):
        made.append(Property("MemoryLow", "t", _or_infinity(memory["reservation"])))
    if cpu.get("idle"):
        made.append(Property("CPUWeight", "t", 0, since=252))
    elif cpu.get("shares"):
        made.append(Property("CPUWeight", "t", cpu_weight(cpu["shares"])))
    for field, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if cpu.get(field):
            made.append(Property(name, "ay", bits(cpu[field])))
    weight = (resources.get("blockIO") or {}).get("weight") or 0
    if weight:
        made.append(Property("IOWeight", "t", io_weight(weight)))
    return made + _unified(resources.get("unified") or {}, {each.name for each in made})


def v1_properties(resources: dict[str, Any], rules: tuple[Rule, ...]) -> list[Property]:
    """The same on cgroup v1; also devices, whose rules systemd would otherwise take back at its next reload."""
    made = _common(resources)
    limit = (resources.get("memory") or {}).get("limit") or 0
    if limit:
        made.append(Property("MemoryLimit", "t", _or_infinity(limit)))
    if (resources.get("cpu") or {}).get("shares"):
        made.append(Property("CPUShares", "t", resources["cpu"]["shares"]))
    if (resources.get("blockIO") or {}).get("weight"):
        made.append(Property("BlockIOWeight", "t", resources["blockIO"]["weight"]))
    return made + _devices(rules)


def _common(resources: dict[str, Any]) -> list[Property]:
    made = []
    pids = (resources.get("pids") or {}).get("limit") or 0
    if pids:
        made.append(Property("TasksMax", "t", _or_infinity(pids)))
    cpu = resources.get("cpu") or {}
    return made + _quota(cpu.get("quota") or 0, cpu.get("period") or 0)


def _quota(quota: int, period: int) -> list[Property]:
    made = []
    if period:
        made.append(Property("CPUQuotaPeriodUSec", "t", period))
    if quota or period:
        value = INFINITY
        if quota > 0:
            # systemd knows whole percents: rounded up, so that the exact value, written as a file, fits below.
            value = -(-quota * 1000000 // (period or _PERIOD) // 10000) * 10000
        made.append(Property("CPUQuotaPerSecUSec", "t", value))
    return made


def _or_infinity(value: int) -> int:
    return INFINITY if value < 0 else value


_UNIFIED = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
    "cpuset.cpus": "AllowedCPUs",
    "cpuset.mems": "AllowedMemoryNodes",
}


def _unified(unified: dict[str, str], there: set[str]) -> list[Property]:
    """linux.resources.unified; it is written last, so it takes the place of the same limit from elsewhere."""
    made: list[Property] = []
    for file, text in unified.items():
        name, value = _UNIFIED.get(file), text.strip()
        if file == "cpu.max":
            quota, _, period = value.partition(" ")
            if (quota == "max" or quota.isdigit()) and (not period or period.isdigit()):
                made += _quota(0 if quota == "max" else int(quota), int(period or _PERIOD))
        elif name in ("AllowedCPUs", "AllowedMemoryNodes") and name not in there:
            made.append(Property(name, "ay", bits(value)))
        elif name and name not in there and (value == "max" or value.isdigit()):
            made.append(Property(name, "t", INFINITY if value == "max" else int(value)))
        # Anything else is for the kernel to take or refuse, when the file is written.
    return made


def bits(ranges: str) -> bytes:
    """``0-2,8`` as the bit mask that AllowedCPUs wants, least byte first. The text was checked, or is the kernel's."""
    mask = 0
    for part in ranges.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit() and (not high or high.isdigit()):
            mask |= sum(1 << number for number in range(int(low), min(int(high or low), _BITS - 1) + 1))
    return mask.to_bytes((mask.bit_length() + 7) // 8 or 1, "little")


def _devices(rules: tuple[Rule, ...]) -> list[Property]:
    """DevicePolicy and DeviceAllow; systemd knows no exceptions from what it allows, the files of the group do."""
    allowed: list[tuple[str, str]] = []
    strict = True
    for rule in rules:
        access = "".join(letter for bit, letter in ((2, "r"), (4, "w"), (1, "m")) if rule.access & bit)
        if rule.kind == "a" and rule.major < 0 and rule.minor < 0:
            allowed, strict = [], not rule.allow
        elif rule.allow:
            for kind in ("block", "char") if rule.kind == "a" else ({"b": "block", "c": "char"}[rule.kind],):
                if rule.major < 0:
                    allowed.append((f"{kind}-*", access))
                elif rule.minor < 0:
                    allowed.append((f"{kind}-{rule.major}", access))
                else:
                    allowed.append((f"/dev/{kind}/{rule.major}:{rule.minor}", access))
    if not strict:
        return [Property("DevicePolicy", "s", "auto"), Property("DeviceAllow", "a(ss)", [])]
    return [Property("DevicePolicy", "s", "strict"), Property("DeviceAllow", "a(ss)", allowed)]


# -- annotations -------------------------------------------------------------------------------------------------------


def annotation_properties(annotations: dict[str, str]) -> tuple[Property, ...]:
    """``org.systemd.property.NAME``: a value in GVariant's text form (runc's docs/systemd.md). Raises SpecError."""
    made = []
    for key, text in annotations.items():
        if not key.startswith(PROPERTY):
            continue
        pointer = f"/annotations{pointer_token(key)}"
        name = key.removeprefix(PROPERTY)
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise _wrong(pointer, "is not the name of a systemd property")
        if name in _OURS:
            raise _wrong(pointer, "is not for an annotation to say: it ties the unit to the container")
        try:
            signature, value = variant(text)
            if name.endswith("Sec") and name[-4:-3].islower():
                # The documentation's names have seconds, D-Bus has microseconds.
                if isinstance(value, (bool, str, list)):
                    raise ValueError("is no number")
                name, signature, value = f"{name[:-3]}USec", "t", int(value * 1000000)
        except ValueError as error:
            raise _wrong(pointer, f"{text!r} {error}") from None
        made.append(Property(name, signature, value))
    return tuple(made)


_NUMBERS = {
    "byte": ("y", 0, 255),
    "int16": ("n", -(1 << 15), (1 << 15) - 1),
    "uint16": ("q", 0, (1 << 16) - 1),
    "int32": ("i", -(1 << 31), (1 << 31) - 1),
    "uint32": ("u", 0, (1 << 32) - 1),
    "int64": ("x", -(1 << 63), (1 << 63) - 1),
    "uint64": ("t", 0, (1 << 64) - 1),
}


def variant(text: str) -> tuple[str, Any]:
    """(D-Bus signature, value) of a boolean, a number, a string or an array of these. Raises ValueError."""
    text = text.strip()
    if text in ("true", "false"):
        return "b", text == "true"
    if text[:1] in ("'", '"'):
        if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1].replace(f"\\{text[0]}", ""):
            raise ValueError("is not a string in quotes")
        return "s", text[1:-1].replace(f"\\{text[0]}", text[0]).replace("\\\\", "\\")
    if text.startswith("[") and text.endswith("]"):
        items = [variant(item) for item in _items(text[1:-1])]
        if not items or any(signature != items[0][0] for signature, _ in items):
            raise ValueError("is not an array of values of one type")
        return f"a{items[0][0]}", [value for _, value in items]
    word, _, rest = text.partition(" ")
    kind, digits = (word, rest.strip()) if word in _NUMBERS else ("int32", text)
    signature, least, most = _NUMBERS[kind]
    try:
        number = int(digits, 0)
    except ValueError:
        if kind == "int32" and "." in digits:
            try:
                return "d", float(digits)
            except ValueError:
                pass
        raise ValueError("is not a value of a systemd property (true, 'text', 3, uint64 5, [...])") from None
    if not least <= number <= most:
        raise ValueError(f"is outside {kind}")
    return signature, number


def _items(text: str) -> list[str]:
    """Split at commas outside quotes."""
    items, quote, start = [], "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[at - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char == ",":
            items.append(text[start:at])
            start = at + 1
    return [*items, text[start:]] if text.strip() else []

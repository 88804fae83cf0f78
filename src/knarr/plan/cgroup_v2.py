"""linux.resources -> files of cgroup v2 (hot, pure): the kernel's cgroup-v2.rst.

config.json speaks v1; the conversions are those runc and crun agree on.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.fastjson import pointer_token
from knarr.plan.cgroup import Write, missing, positive, rdma_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory

    Add = Callable[..., None]

_AT = "/linux/resources"
_THROTTLE = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)
# Files of the group that are no limits: they move, stop or end processes, or hand controllers on.
_NOT_LIMITS = ("procs", "threads", "kill", "freeze", "type", "subtree_control")


def v2_writes(resources: dict[str, Any], where: CgroupDirectory, *, zeros: bool = False) -> list[Write]:
    """All values in the order they must be written. Raises Unsupported or SpecError with the field's pointer.

    ``zeros``: a burst or idle of 0, which a group begins with, is written too, to take an earlier one back.
    """
    made: list[Write] = []

    def add(
        controller: str, pointer: str, *choices: tuple[str, Any], optional: bool = False, not_below: str = ""
    ) -> None:
        if controller not in where.controllers:
            raise missing(controller, pointer)
        texts = tuple((file, str(value)) for file, value in choices)
        made.append(Write(where.mountpoint, texts, pointer, optional, not_below))

    pids = (resources.get("pids") or {}).get("limit") or 0
    if pids:
        add("pids", f"{_AT}/pids/limit", ("pids.max", _or_max(pids)))
    _memory(resources.get("memory") or {}, add)
    _cpu(resources.get("cpu") or {}, add, zeros=zeros)
    _block(resources.get("blockIO") or {}, add)
    for position, entry in enumerate(resources.get("hugepageLimits") or ()):
        at = f"{_AT}/hugepageLimits/{position}"
        add("hugetlb", at, (f"hugetlb.{entry['pageSize']}.max", entry["limit"]))
        # Pages reserved but not touched count since Linux 5.7.
        add("hugetlb", at, (f"hugetlb.{entry['pageSize']}.rsvd.max", entry["limit"]), optional=True)
    for device, limits in (resources.get("rdma") or {}).items():
        add("rdma", f"{_AT}/rdma{pointer_token(device)}", ("rdma.max", rdma_line(device, limits)))
    network = resources.get("network") or {}
    if positive(network.get("classID")) or network.get("priorities"):
        raise _nothing_like("network", f"{_AT}/network")
    for file, value in (resources.get("unified") or {}).items():
        controller, _, parameter = file.partition(".")
        pointer = f"{_AT}/unified{pointer_token(file)}"
        if "/" in file or (controller == "cgroup" and parameter in _NOT_LIMITS):
            raise SpecError("config.json", [SpecFinding(pointer, "must be the name of a file that holds a limit")])
        if controller != "cgroup" and controller not in where.controllers:
            raise missing(controller, pointer)
        # One write a line: the kernel takes one device or key at a time.
        made += [Write(where.mountpoint, ((file, line),), pointer) for line in value.splitlines()]
    return made


def _nothing_like(field: str, pointer: str) -> Unsupported:
    return Unsupported(f"linux.resources.{field}", "cgroup v2 has no such setting", pointer=pointer)


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(memory: dict[str, Any], add: Add) -> None:
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit < 0 and not swap:
        swap = -1  # "no limit" means of neither
    if swap:
        # config.json has the sum of memory and swap, v2 the swap alone. Without swap accounting there is no file, and
        # no swap to use either.
        value = "max" if swap < 0 else str(swap - max(limit, 0))
        field = "swap" if memory.get("swap") else "limit"
        add("memory", f"{_AT}/memory/{field}", ("memory.swap.max", value), optional=value in ("max", "0"))
    if limit:
        checked = "memory.current" if memory.get("checkBeforeUpdate") and limit > 0 else ""
        add("memory", f"{_AT}/memory/limit", ("memory.max", _or_max(limit)), not_below=checked)
    if positive(memory.get("reservation")):
        add("memory", f"{_AT}/memory/reservation", ("memory.low", _or_max(memory["reservation"])))
    for field in ("kernel", "kernelTCP"):
        if (memory.get(field) or 0) > 0:
            raise _nothing_like(f"memory.{field}", f"{_AT}/memory/{field}")
    if memory.get("swappiness") is not None:
        raise _nothing_like("memory.swappiness", f"{_AT}/memory/swappiness")
    if memory.get("disableOOMKiller"):
        raise _nothing_like("memory.disableOOMKiller", f"{_AT}/memory/disableOOMKiller")


def _cpu(cpu: dict[str, Any], add: Add, *, zeros: bool) -> None:
    def wanted(field: str) -> bool:
        return positive(cpu.get(field)) or (zeros and cpu.get(field) == 0)

    if positive(cpu.get("shares")):
        add("cpu", f"{_AT}/cpu/shares", ("cpu.weight", cpu_weight(cpu["shares"])))
    if wanted("idle"):  # after the weight: an idle group refuses one
        add("cpu", f"{_AT}/cpu/idle", ("cpu.idle", cpu["idle"]), optional=cpu["idle"] == 0)
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if quota or period:
        value = f"{_or_max(quota) if quota else 'max'} {period or 100000}"
        add("cpu", f"{_AT}/cpu/{'quota' if quota else 'period'}", ("cpu.max", value))
    if wanted("burst"):  # after the quota, which it may not exceed
        add("cpu", f"{_AT}/cpu/burst", ("cpu.max.burst", cpu["burst"]), optional=cpu["burst"] == 0)
    for field in ("cpus", "mems"):
        if cpu.get(field):
            add("cpuset", f"{_AT}/cpu/{field}", (f"cpuset.{field}", cpu[field]))
    for field in ("realtimePeriod", "realtimeRuntime"):
        if positive(cpu.get(field)):
            raise _nothing_like(f"cpu.{field}", f"{_AT}/cpu/{field}")


def _block(block: dict[str, Any], add: Add) -> None:
    # BFQ keeps the old scale, io.weight has its own.
    if positive(block.get("weight")):
        weight = block["weight"]
        add("io", f"{_AT}/blockIO/weight", ("io.bfq.weight", weight), ("io.weight", io_weight(weight)))
    for position, entry in enumerate(block.get("weightDevice") or ()):
        at = f"{_AT}/blockIO/weightDevice/{position}"
        device, weight = f"{entry['major']}:{entry['minor']}", entry.get("weight")
        if positive(weight):
            choices = ("io.bfq.weight", f"{device} {weight}"), ("io.weight", f"{device} {io_weight(weight)}")
            add("io", f"{at}/weight", *choices)
        if positive(entry.get("leafWeight")):
            raise _nothing_like("blockIO.weightDevice.leafWeight", f"{at}/leafWeight")
    for field, key in _THROTTLE:
        for position, entry in enumerate(block.get(field) or ()):
            value = f"{entry['major']}:{entry['minor']} {key}={entry['rate'] or 'max'}"
            add("io", f"{_AT}/blockIO/{field}/{position}", ("io.max", value))
    if positive(block.get("leafWeight")):
        raise _nothing_like("blockIO.leafWeight", f"{_AT}/blockIO/leafWeight")


def cpu_weight(shares: int) -> int:
    """cpu.shares (2 to 262144, 1024 by default) as cpu.weight (1 to 10000, 100 by default).

    The curve that meets these three pairs (runc since 1.3.2): 10**((l*l + 125*l)/612 - 7/34), l the binary
    logarithm of the shares. The older straight line made half of the default of 1024 shares: 39.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = _log2(shares)
    weight = 10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0)
    return -int(-weight // 1)


def _log2(number: int) -> float:
    """The binary logarithm, bit by bit: the math module is not in the hot set."""
    whole = number.bit_length() - 1
    rest = number / (1 << whole)
    fraction, step = 0.0, 0.5
    while step > 1e-16 and rest != 1.0:
        rest *= rest
        if rest >= 2:
            rest /= 2
            fraction += step
        step /= 2
    return whole + fraction


def io_weight(weight: int) -> int:
    """blkio.weight (10…1000) as io.weight (1…10000), linearly."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990

"""linux.resources -> files of cgroup v2 (hot, pure): the kernel's cgroup-v2.rst.

config.json speaks v1; the conversions are those runc, crun and systemd agree on.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.plan.cgroup import Write, missing, positive
from knarr.plan.cgroup_v1 import rdma_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory

_AT = "/linux/resources"
_THROTTLE = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def cpu_weight(shares: int) -> int:
    """cpu.shares (2…262144) as cpu.weight (1…10000), linearly."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """blkio.weight (10…1000) as io.weight (1…10000), linearly."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def v2_writes(resources: dict[str, Any], where: CgroupDirectory) -> list[Write]:
    """All values in the order they must be written. Raises Unsupported or SpecError with the field's pointer."""
    made: list[Write] = []

    def add(controller: str, pointer: str, *choices: tuple[str, Any]) -> None:
        if controller not in where.controllers:
            raise missing(controller, pointer)
        made.append(Write(where.mountpoint, tuple((file, str(value)) for file, value in choices), pointer))

    memory = resources.get("memory") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if positive(limit):
        add("memory", f"{_AT}/memory/limit", ("memory.max", _or_max(limit)))
    if positive(swap):
        add("memory", f"{_AT}/memory/swap", ("memory.swap.max", _swap(limit, swap)))
    if positive(memory.get("reservation")):
        add("memory", f"{_AT}/memory/reservation", ("memory.low", _or_max(memory["reservation"])))
    for field in ("kernel", "kernelTCP", "swappiness"):
        if positive(memory.get(field)):
            raise Unsupported(f"memory.{field}", "cgroup v2 has no such setting", pointer=f"{_AT}/memory/{field}")
    if memory.get("disableOOMKiller"):
        pointer = f"{_AT}/memory/disableOOMKiller"
        raise Unsupported("memory.disableOOMKiller", "cgroup v2 has no such setting", pointer=pointer)
    _cpu(resources.get("cpu") or {}, add)
    pids = (resources.get("pids") or {}).get("limit")
    if positive(pids):
        add("pids", f"{_AT}/pids/limit", ("pids.max", _or_max(pids)))
    _block(resources.get("blockIO") or {}, add)
    for position, entry in enumerate(resources.get("hugepageLimits") or ()):
        add("hugetlb", f"{_AT}/hugepageLimits/{position}", (f"hugetlb.{entry['pageSize']}.max", entry["limit"]))
    for device, limits in (resources.get("rdma") or {}).items():
        add("rdma", f"{_AT}/rdma/{device}", ("rdma.max", rdma_line(device, limits)))
    network = resources.get("network") or {}
    if positive(network.get("classID")) or network.get("priorities"):
        raise Unsupported("linux.resources.network", "cgroup v2 has no net_cls, net_prio", pointer=f"{_AT}/network")
    for file, value in (resources.get("unified") or {}).items():
        controller = file.partition(".")[0]
        pointer = f"{_AT}/unified/{file.replace('~', '~0').replace('/', '~1')}"
        if "/" in file:
            raise SpecError("config.json", [SpecFinding(pointer, "must be the name of a file of the group")])
        if controller != "cgroup" and controller not in where.controllers:
            raise missing(controller, pointer)
        made += [Write(where.mountpoint, ((file, line),), pointer) for line in value.splitlines()]
    return made


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _swap(limit: int | None, swap: int) -> str:
    """config.json's memory plus swap as v2's swap alone."""
    if swap < 0:
        return "max"
    pointer = f"{_AT}/memory/swap"
    if limit is None or limit <= 0:
        raise SpecError("config.json", [SpecFinding(pointer, "needs /linux/resources/memory/limit: it is their sum")])
    if swap < limit:
        raise SpecError("config.json", [SpecFinding(pointer, "must not be less than the memory limit it includes")])
    return str(swap - limit)


def _cpu(cpu: dict[str, Any], add: Any) -> None:
    if positive(cpu.get("shares")):
        add("cpu", f"{_AT}/cpu/shares", ("cpu.weight", cpu_weight(cpu["shares"])))
    quota, period = cpu.get("quota"), cpu.get("period")
    if positive(quota) or positive(period):
        field = "quota" if positive(quota) else "period"
        value = f"{_or_max(quota) if positive(quota) else 'max'} {period or 100000}"
        add("cpu", f"{_AT}/cpu/{field}", ("cpu.max", value))
    if positive(cpu.get("burst")):
        add("cpu", f"{_AT}/cpu/burst", ("cpu.max.burst", cpu["burst"]))
    if positive(cpu.get("idle")):
        add("cpu", f"{_AT}/cpu/idle", ("cpu.idle", cpu["idle"]))
    for field in ("cpus", "mems"):
        if cpu.get(field):
            add("cpuset", f"{_AT}/cpu/{field}", (f"cpuset.{field}", cpu[field]))
    for field in ("realtimePeriod", "realtimeRuntime"):
        if positive(cpu.get(field)):
            raise Unsupported(f"cpu.{field}", "cgroup v2 has no such setting", pointer=f"{_AT}/cpu/{field}")


def _block(block: dict[str, Any], add: Any) -> None:
    if positive(block.get("weight")):
        # BFQ keeps the old scale, io.weight has its own.
        weight = block["weight"]
        add("io", f"{_AT}/blockIO/weight", ("io.bfq.weight", weight), ("io.weight", io_weight(weight)))
    for position, entry in enumerate(block.get("weightDevice") or ()):
        if positive(entry.get("weight")):
            value = f"{entry['major']}:{entry['minor']} {entry['weight']}"
            add("io", f"{_AT}/blockIO/weightDevice/{position}", ("io.bfq.weight", value))
    for field, key in _THROTTLE:
        for position, entry in enumerate(block.get(field) or ()):
            value = f"{entry['major']}:{entry['minor']} {key}={entry['rate']}"
            add("io", f"{_AT}/blockIO/{field}/{position}", ("io.max", value))
    if positive(block.get("leafWeight")):
        raise Unsupported("blockIO.leafWeight", "cgroup v2 has no such setting", pointer=f"{_AT}/blockIO/leafWeight")

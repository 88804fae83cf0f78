"""linux.resources -> files of the v1 controllers (hot, pure): the kernel's cgroup-v1/*.rst."""

from __future__ import annotations

from knarr.base.errors import Unsupported
from knarr.plan.cgroup import Write, missing, positive
from knarr.plan import devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory
    from knarr.plan.devices import Rule

_AT = "/linux/resources"
_MEMORY = (
    # The limit before memory+swap, which may not be smaller.
    ("limit", "memory.limit_in_bytes"),
    ("swap", "memory.memsw.limit_in_bytes"),
    ("reservation", "memory.soft_limit_in_bytes"),
    ("kernel", "memory.kmem.limit_in_bytes"),
    ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
)
_CPU = (
    # The period before the quota, which is checked against it.
    ("shares", "cpu.shares"),
    ("period", "cpu.cfs_period_us"),
    ("quota", "cpu.cfs_quota_us"),
    ("burst", "cpu.cfs_burst_us"),
    ("realtimePeriod", "cpu.rt_period_us"),
    ("realtimeRuntime", "cpu.rt_runtime_us"),
)
_THROTTLE = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)


class _Writes:
    """Collects writes, each to the hierarchy of its controller."""

    def __init__(self, directories: list[CgroupDirectory]) -> None:
        self.places = {name: place.mountpoint for place in directories for name in place.controllers}
        self.made: list[Write] = []

    def add(self, controller: str, files: str | tuple[str, ...], value: Any, pointer: str) -> None:
        place = self.places.get(controller)
        if place is None:
            raise missing(controller, pointer)
        names = (files,) if isinstance(files, str) else files
        self.made.append(Write(place, tuple((name, str(value)) for name in names), pointer))


def v1_writes(resources: dict[str, Any], rules: tuple[Rule, ...], directories: list[CgroupDirectory]) -> list[Write]:
    """All values in the order they must be written. Raises Unsupported with the field's pointer."""
    writes = _Writes(directories)
    if resources.get("unified"):
        raise Unsupported("linux.resources.unified", "this host has cgroup v1", pointer=f"{_AT}/unified")
    if "devices" in writes.places:
        for file, line, pointer in devices.v1_writes(rules):
            writes.add("devices", file, line, pointer or f"{_AT}/devices")
    elif resources.get("devices"):
        raise missing("devices", f"{_AT}/devices")
    _memory(resources.get("memory") or {}, writes)
    cpu = resources.get("cpu") or {}
    for field, file in _CPU:
        if positive(cpu.get(field)):
            writes.add("cpu", file, cpu[field], f"{_AT}/cpu/{field}")
    if positive(cpu.get("idle")):
        writes.add("cpu", "cpu.idle", cpu["idle"], f"{_AT}/cpu/idle")
    for field in ("cpus", "mems"):
        if cpu.get(field):
            writes.add("cpuset", f"cpuset.{field}", cpu[field], f"{_AT}/cpu/{field}")
    pids = (resources.get("pids") or {}).get("limit")
    if positive(pids):
        writes.add("pids", "pids.max", pids if pids > 0 else "max", f"{_AT}/pids/limit")
    _block(resources.get("blockIO") or {}, writes)
    for position, entry in enumerate(resources.get("hugepageLimits") or ()):
        file = f"hugetlb.{entry['pageSize']}.limit_in_bytes"
        writes.add("hugetlb", file, entry["limit"], f"{_AT}/hugepageLimits/{position}")
    network = resources.get("network") or {}
    if positive(network.get("classID")):
        writes.add("net_cls", "net_cls.classid", network["classID"], f"{_AT}/network/classID")
    for position, entry in enumerate(network.get("priorities") or ()):
        value = f"{entry['name']} {entry['priority']}"
        writes.add("net_prio", "net_prio.ifpriomap", value, f"{_AT}/network/priorities/{position}")
    for device, limits in (resources.get("rdma") or {}).items():
        writes.add("rdma", "rdma.max", rdma_line(device, limits), f"{_AT}/rdma/{device}")
    return writes.made


def _memory(memory: dict[str, Any], writes: _Writes) -> None:
    for field, file in _MEMORY:
        if positive(memory.get(field)):
            writes.add("memory", file, memory[field], f"{_AT}/memory/{field}")
    if memory.get("swappiness") is not None:
        writes.add("memory", "memory.swappiness", memory["swappiness"], f"{_AT}/memory/swappiness")
    if memory.get("disableOOMKiller"):
        writes.add("memory", "memory.oom_control", 1, f"{_AT}/memory/disableOOMKiller")
    if memory.get("useHierarchy"):
        writes.add("memory", "memory.use_hierarchy", 1, f"{_AT}/memory/useHierarchy")


def _block(block: dict[str, Any], writes: _Writes) -> None:
    # Kernels with the BFQ scheduler name their files after it.
    for field, name in (("weight", "weight"), ("leafWeight", "leaf_weight")):
        if positive(block.get(field)):
            files = (f"blkio.{name}", f"blkio.bfq.{name}")
            writes.add("blkio", files, block[field], f"{_AT}/blockIO/{field}")
    for position, entry in enumerate(block.get("weightDevice") or ()):
        for field, name in (("weight", "weight_device"), ("leafWeight", "leaf_weight_device")):
            if positive(entry.get(field)):
                files = (f"blkio.{name}", f"blkio.bfq.{name}")
                value = f"{entry['major']}:{entry['minor']} {entry[field]}"
                writes.add("blkio", files, value, f"{_AT}/blockIO/weightDevice/{position}")
    for field, file in _THROTTLE:
        for position, entry in enumerate(block.get(field) or ()):
            value = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            writes.add("blkio", file, value, f"{_AT}/blockIO/{field}/{position}")


def rdma_line(device: str, limits: dict[str, Any]) -> str:
    """The line of rdma.max (cgroup-v1/rdma.rst; the same in v2)."""
    words = [device]
    for field, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
        if limits.get(field) is not None:
            words.append(f"{name}={limits[field]}")
    return " ".join(words)

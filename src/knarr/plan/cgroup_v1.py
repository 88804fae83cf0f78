"""linux.resources -> files of the v1 controllers (hot, pure): the kernel's cgroup-v1/*.rst."""

from __future__ import annotations

from knarr.base.errors import Unsupported
from knarr.base.fastjson import pointer_token
from knarr.plan import devices
from knarr.plan.cgroup import Write, missing, positive, rdma_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory
    from knarr.plan.devices import Rule

_AT = "/linux/resources"
_CPU = (
    # A new group has no quota, so that any period will do; the quota before the burst, which may not be larger.
    ("shares", "cpu.shares"),
    ("idle", "cpu.idle"),  # after the shares: an idle group refuses them
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

    __slots__ = ("made", "places")

    def __init__(self, directories: list[CgroupDirectory]) -> None:
        self.places = {name: place.mountpoint for place in directories for name in place.controllers}
        self.made: list[Write] = []

    def add(
        self, controller: str, files: str | tuple[str, ...], value: Any, pointer: str, *, optional: bool = False
    ) -> None:
        place = self.places.get(controller)
        if place is None:
            raise missing(controller, pointer)
        names = (files,) if isinstance(files, str) else files
        self.made.append(Write(place, tuple((name, str(value)) for name in names), pointer, optional))


def v1_writes(
    resources: dict[str, Any], rules: tuple[Rule, ...], directories: list[CgroupDirectory], *, zeros: bool = False
) -> list[Write]:
    """All values in the order they must be written. Raises Unsupported with the field's pointer.

    ``zeros``: a burst or idle of 0, which a group begins with, is written too, to take an earlier one back.
    """
    writes = _Writes(directories)
    if resources.get("unified"):
        raise Unsupported("linux.resources.unified", "this host has cgroup v1", pointer=f"{_AT}/unified")
    if rules:
        for file, line, pointer in devices.v1_writes(rules):
            writes.add("devices", file, line, pointer or f"{_AT}/devices")
    _memory(resources.get("memory") or {}, writes)
    cpu = resources.get("cpu") or {}
    for field, file in _CPU:
        value = cpu.get(field)
        if positive(value) or (zeros and value == 0 and field in ("burst", "idle")):
            writes.add("cpu", file, value, f"{_AT}/cpu/{field}", optional=value == 0)
    for field in ("cpus", "mems"):
        if cpu.get(field):
            writes.add("cpuset", f"cpuset.{field}", cpu[field], f"{_AT}/cpu/{field}")
    pids = (resources.get("pids") or {}).get("limit") or 0
    if pids:
        writes.add("pids", "pids.max", pids if pids > 0 else "max", f"{_AT}/pids/limit")
    _block(resources.get("blockIO") or {}, writes)
    for position, entry in enumerate(resources.get("hugepageLimits") or ()):
        at = f"{_AT}/hugepageLimits/{position}"
        writes.add("hugetlb", f"hugetlb.{entry['pageSize']}.limit_in_bytes", entry["limit"], at)
        # Pages reserved but not touched count since Linux 5.7.
        writes.add("hugetlb", f"hugetlb.{entry['pageSize']}.rsvd.limit_in_bytes", entry["limit"], at, optional=True)
    network = resources.get("network") or {}
    if positive(network.get("classID")):
        writes.add("net_cls", "net_cls.classid", network["classID"], f"{_AT}/network/classID")
    for position, entry in enumerate(network.get("priorities") or ()):
        value = f"{entry['name']} {entry['priority']}"
        writes.add("net_prio", "net_prio.ifpriomap", value, f"{_AT}/network/priorities/{position}")
    for device, limits in (resources.get("rdma") or {}).items():
        writes.add("rdma", "rdma.max", rdma_line(device, limits), f"{_AT}/rdma{pointer_token(device)}")
    return writes.made


def _memory(memory: dict[str, Any], writes: _Writes) -> None:
    """The limit before memory+swap, which may not be less. checkBeforeUpdate needs nothing: v1 always checks."""
    for field, file in (
        ("limit", "memory.limit_in_bytes"),
        ("swap", "memory.memsw.limit_in_bytes"),
        ("reservation", "memory.soft_limit_in_bytes"),
        ("kernel", "memory.kmem.limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    ):
        value = memory.get(field)
        if positive(value):
            # What a kernel cannot limit, it does not limit: so -1 is true where the file is missing.
            writes.add("memory", file, value, f"{_AT}/memory/{field}", optional=value == -1)
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
                writes.add("blkio", files, value, f"{_AT}/blockIO/weightDevice/{position}/{field}")
    for field, file in _THROTTLE:
        for position, entry in enumerate(block.get(field) or ()):
            value = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            writes.add("blkio", file, value, f"{_AT}/blockIO/{field}/{position}")

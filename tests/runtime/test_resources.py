"""linux.resources beyond the usual, as the kernel has them after create; on the host's cgroups, and in a guest on v2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
pytestmark = [needs_busybox, needs_root]


def disk() -> tuple[int, int]:
    """A whole block device of this machine; a limit for it can be written whether or not anybody uses it."""
    for entry in sorted(Path("/sys/block").glob("*")):
        major, minor = (entry / "dev").read_text().split(":")
        if int((entry / "size").read_text()) and int(major) != 7:
            return int(major), int(minor)
    pytest.skip("no block device")


def created(runtime: Runtime, bundle: Bundle, **resources: Any) -> str:
    """A created container with these resources; its id, which is also its group's path."""
    id = runtime.new_id()
    bundle.config["linux"]["cgroupsPath"] = f"/{id}"
    bundle.config["linux"]["resources"] |= resources
    done = runtime("create", "--bundle", bundle.write("sleep", "60"), id)
    if done.returncode and runtime.name != "knarr":
        pytest.skip(f"this {runtime.name} refuses: {done.stderr.strip()[-120:]}")
    assert done.returncode == 0, done.stderr
    return id


def value(id: str, controller: str, v1: str, v2: str) -> str:
    place = Path("/sys/fs/cgroup", "" if V2 else controller, id)
    file = place / (v2 if V2 else v1)
    if not file.exists():
        pytest.skip(f"this kernel has no {file.name}")
    return file.read_text().strip()


def check(runtime: Runtime, seen: str, wanted: str, untouched: str) -> None:
    if runtime.name != "knarr" and seen == untouched:
        pytest.skip(f"this {runtime.name} ignores the field")
    assert seen == wanted


def test_cpu_burst(runtime: Runtime, bundle: Bundle) -> None:
    id = created(runtime, bundle, cpu={"quota": 50_000, "period": 100_000, "burst": 20_000})
    check(runtime, value(id, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "20000", "0")


def test_cpu_idle(runtime: Runtime, bundle: Bundle) -> None:
    id = created(runtime, bundle, cpu={"idle": 1})
    check(runtime, value(id, "cpu", "cpu.idle", "cpu.idle"), "1", "0")


@pytest.mark.parametrize(
    ("field", "v1", "key"),
    [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
    ],
)
def test_throttles(field: str, v1: str, key: str, runtime: Runtime, bundle: Bundle) -> None:
    major, minor = disk()
    id = created(runtime, bundle, blockIO={field: [{"major": major, "minor": minor, "rate": 1_000_000}]})
    seen = value(id, "blkio", v1, "io.max")
    if V2:
        assert seen.startswith(f"{major}:{minor} ")
        assert f"{key}=1000000" in seen.split()
    else:
        assert seen == f"{major}:{minor} 1000000"


@pytest.mark.skipif(V2, reason="cgroup v2 has neither")
def test_swappiness_and_no_oom_killer(runtime: Runtime, bundle: Bundle) -> None:
    id = created(runtime, bundle, memory={"limit": 64 << 20, "swappiness": 7, "disableOOMKiller": True})
    assert value(id, "memory", "memory.swappiness", "") == "7"
    assert "oom_kill_disable 1" in value(id, "memory", "memory.oom_control", "").splitlines()


@pytest.mark.skipif(not V2, reason="unified is cgroup v2's")
def test_unified(runtime: Runtime, bundle: Bundle) -> None:
    id = created(runtime, bundle, unified={"memory.high": "104857600", "pids.max": "77"})
    assert value(id, "", "", "memory.high") == "104857600"
    assert value(id, "", "", "pids.max") == "77"


@pytest.mark.parametrize(
    ("resources", "controller", "pointer"),
    [
        ({"rdma": {"mlx5_0": {"hcaHandles": 3}}}, "rdma", "/linux/resources/rdma/mlx5_0"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, "hugetlb", "/linux/resources/hugepageLimits/0"),
        ({"network": {"classID": 1}}, "net_cls", "/linux/resources/network"),
    ],
)
def test_a_controller_that_is_not_there(
    resources: dict[str, Any], controller: str, pointer: str, ours: Runtime, bundle: Bundle
) -> None:
    there = Path("/proc/self/cgroup").read_text()
    if V2:
        there = Path("/sys/fs/cgroup/cgroup.controllers").read_text()
    if controller in there:
        pytest.skip(f"{controller} is there")
    bundle.config["linux"]["resources"] |= resources
    done = ours("create", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert f"config.json {pointer}" in done.stderr
    assert "is not supported" in done.stderr

"""plan/cgroup*.py: config.json -> groups and writes, compared by value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from knarr.base.errors import SpecError, Unsupported
from knarr.plan.cgroup import CgroupDirectory, CgroupHost, CgroupMount, CgroupPlan, Write, plan_cgroup
from knarr.plan.cgroup_v2 import cpu_weight, io_weight

ALL_V1 = (
    "cpu,cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls,net_prio",
    "rdma",
    "name=systemd",
)
V1 = CgroupHost(
    "v1",
    tuple(
        CgroupMount(tuple(names.split(",")), f"/cg/{names.removeprefix('name=')}", "/own" if names == "memory" else "/")
        for names in ALL_V1
    ),
)
HYBRID = CgroupHost("hybrid", V1.mounts, "/cg/unified", "/u")
V2 = CgroupHost(
    "v2", (), "/cg", "/user.slice/session.scope", ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
)
AT = "/linux/resources"


def config(path: str | None = "/p/c", **resources: Any) -> dict[str, Any]:
    linux: dict[str, Any] = {"resources": resources}
    if path is not None:
        linux["cgroupsPath"] = path
    return {"linux": linux}


def writes(host: CgroupHost, **resources: Any) -> list[tuple[str, str, str]]:
    """(file, value, pointer below linux.resources) of each write, device rules aside."""
    plan = plan_cgroup(config(**resources), host, "id", devices=False)
    mounts = {name: mount.mountpoint for mount in host.mounts for name in mount.controllers}
    result = []
    for write in plan.writes:
        file, value = write.choices[0]
        controller = file.partition(".")[0]
        assert write.mountpoint == mounts.get(controller, host.unified)
        result.append((file, value, write.pointer.removeprefix(AT + "/")))
    return result


def of(plan: CgroupPlan, file: str) -> Write:
    return next(write for write in plan.writes if write.choices[0][0] == file)


# Where


def test_an_absolute_path_starts_at_the_top() -> None:
    assert {d.path for d in plan_cgroup(config("/p/c"), HYBRID, "id").directories} == {"/p/c"}
    assert plan_cgroup(config("//p///c/"), V2, "id").directories[0].path == "/p/c"


def test_a_relative_path_starts_at_our_own_group() -> None:
    paths = {d.mountpoint: d.path for d in plan_cgroup(config("p/c"), HYBRID, "id").directories}
    assert paths["/cg/memory"] == "/own/p/c"
    assert paths["/cg/cpu,cpuacct"] == "/p/c"
    assert paths["/cg/unified"] == "/u/p/c"
    # v2: beside it, for a group with processes has no children with controllers
    assert plan_cgroup(config("p/c"), V2, "id").directories[0].path == "/user.slice/p/c"


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_path_the_id_is_it(path: str | None) -> None:
    assert plan_cgroup(config(path), V2, "id").directories[0].path == "/user.slice/id"
    assert {d.path for d in plan_cgroup(config(path), V1, "id").directories} == {"/id", "/own/id"}
    at_the_top = CgroupHost("v2", (), "/cg", "/", ())
    assert plan_cgroup(config(path), at_the_top, "id", devices=False).directories[0].path == "/id"


def test_every_hierarchy_gets_a_group() -> None:
    plan = plan_cgroup(config(), HYBRID, "id")
    assert plan.directories == (
        *[CgroupDirectory(mount.mountpoint, "/p/c", mount.controllers) for mount in V1.mounts],
        CgroupDirectory("/cg/unified", "/p/c", ()),
    )
    assert not plan.clone_into
    assert plan_cgroup(config(), V2, "id").directories == (CgroupDirectory("/cg", "/p/c", V2.controllers),)
    assert plan_cgroup(config(), V2, "id").clone_into


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/..",
        "../x",
        "/a/../../b",
        ".",
        "/a/./b",
        "/a\n/b",
        "/a\0b",
        "/" + "a" * 256,
        "/a" * 2500,
        "x" * 5000,
    ],
)
def test_bad_paths_are_refused(path: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_cgroup(config(path), V2, "id")
    assert [finding.pointer for finding in caught.value.findings] == ["/linux/cgroupsPath"]


# What, on v1

V1_CASES: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    ({}, []),
    (
        # The limit before memory+swap
        {"memory": {"swap": 200, "limit": 100, "reservation": 50, "swappiness": 0, "disableOOMKiller": True}},
        [
            ("memory.limit_in_bytes", "100", "memory/limit"),
            ("memory.memsw.limit_in_bytes", "200", "memory/swap"),
            ("memory.soft_limit_in_bytes", "50", "memory/reservation"),
            ("memory.swappiness", "0", "memory/swappiness"),
            ("memory.oom_control", "1", "memory/disableOOMKiller"),
        ],
    ),
    (
        {"memory": {"kernel": 7, "kernelTCP": 8, "useHierarchy": True, "checkBeforeUpdate": True}},
        [
            ("memory.kmem.limit_in_bytes", "7", "memory/kernel"),
            ("memory.kmem.tcp.limit_in_bytes", "8", "memory/kernelTCP"),
            ("memory.use_hierarchy", "1", "memory/useHierarchy"),
        ],
    ),
    ({"memory": {"limit": 0, "swap": 0, "reservation": 0, "disableOOMKiller": False}}, []),
    (
        {"cpu": {"burst": 5, "quota": 50000, "period": 100000, "idle": 1, "shares": 512}},
        [
            ("cpu.shares", "512", "cpu/shares"),
            ("cpu.idle", "1", "cpu/idle"),
            ("cpu.cfs_period_us", "100000", "cpu/period"),
            ("cpu.cfs_quota_us", "50000", "cpu/quota"),
            ("cpu.cfs_burst_us", "5", "cpu/burst"),
        ],
    ),
    (
        {"cpu": {"realtimeRuntime": 950000, "realtimePeriod": 1000000, "cpus": "0-1", "mems": "0", "quota": -1}},
        [
            ("cpu.cfs_quota_us", "-1", "cpu/quota"),
            ("cpu.rt_period_us", "1000000", "cpu/realtimePeriod"),
            ("cpu.rt_runtime_us", "950000", "cpu/realtimeRuntime"),
            ("cpuset.cpus", "0-1", "cpu/cpus"),
            ("cpuset.mems", "0", "cpu/mems"),
        ],
    ),
    ({"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "idle": 0}}, []),
    ({"pids": {"limit": 7}}, [("pids.max", "7", "pids/limit")]),
    ({"pids": {"limit": -1}}, [("pids.max", "max", "pids/limit")]),
    ({"pids": {"limit": 0}}, []),
    (
        {
            "blockIO": {
                "weight": 500,
                "leafWeight": 10,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 11, "leafWeight": 12}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 1, "rate": 2}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 2, "rate": 3}],
                "throttleWriteIOPSDevice": [
                    {"major": 8, "minor": 3, "rate": 4},
                    {"major": 9, "minor": 3, "rate": 18446744073709551615},
                ],
            }
        },
        [
            ("blkio.weight", "500", "blockIO/weight"),
            ("blkio.leaf_weight", "10", "blockIO/leafWeight"),
            ("blkio.weight_device", "8:0 11", "blockIO/weightDevice/0/weight"),
            ("blkio.leaf_weight_device", "8:0 12", "blockIO/weightDevice/0/leafWeight"),
            ("blkio.throttle.read_bps_device", "8:0 1", "blockIO/throttleReadBpsDevice/0"),
            ("blkio.throttle.write_bps_device", "8:1 2", "blockIO/throttleWriteBpsDevice/0"),
            ("blkio.throttle.read_iops_device", "8:2 3", "blockIO/throttleReadIOPSDevice/0"),
            ("blkio.throttle.write_iops_device", "8:3 4", "blockIO/throttleWriteIOPSDevice/0"),
            ("blkio.throttle.write_iops_device", "9:3 18446744073709551615", "blockIO/throttleWriteIOPSDevice/1"),
        ],
    ),
    (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
        [
            ("hugetlb.2MB.limit_in_bytes", "0", "hugepageLimits/0"),
            ("hugetlb.2MB.rsvd.limit_in_bytes", "0", "hugepageLimits/0"),
        ],
    ),
    (
        {"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]}},
        [
            ("net_cls.classid", "1048577", "network/classID"),
            ("net_prio.ifpriomap", "eth0 5", "network/priorities/0"),
        ],
    ),
    (
        {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 0}}},
        [("rdma.max", "mlx5_1 hca_handle=3 hca_object=0", "rdma/mlx5_1")],
    ),
]


@pytest.mark.parametrize(("resources", "expected"), V1_CASES)
def test_v1_writes(resources: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert writes(V1, **resources) == expected
    assert writes(HYBRID, **resources) == expected


def test_v1_devices_come_first_and_start_with_everything_denied() -> None:
    plan = plan_cgroup(config(memory={"limit": 1 << 20}, devices=[{"allow": False, "access": "rwm"}]), V1, "id")
    files = [(write.mountpoint, *write.choices[0]) for write in plan.writes]
    assert files[0] == ("/cg/devices", "devices.deny", "a")
    assert files[1] == ("/cg/devices", "devices.allow", "c 1:3 rwm")
    assert files[-1] == ("/cg/memory", "memory.limit_in_bytes", "1048576")
    assert plan.device_rules == ()
    assert plan.device_mount == ""


def test_v1_without_a_devices_hierarchy() -> None:
    """Never without rules: the unified hierarchy's program has them, or it is an error."""
    left = tuple(mount for mount in V1.mounts if "devices" not in mount.controllers)
    plan = plan_cgroup(config(), CgroupHost("hybrid", left, "/cg/unified"), "id")
    assert plan.device_mount == "/cg/unified"
    assert plan.device_rules
    assert plan.writes == ()
    with pytest.raises(Unsupported) as caught:
        plan_cgroup(config(), CgroupHost("v1", left), "id")
    assert caught.value.pointer == f"{AT}/devices"
    assert plan_cgroup(config(), CgroupHost("v1", left), "id", devices=False).writes == ()


def test_files_that_go_by_two_names_or_may_be_missing() -> None:
    plan = plan_cgroup(config(blockIO={"weight": 100}, memory={"limit": -1, "swap": -1}), V1, "id", devices=False)
    assert of(plan, "blkio.weight").choices == (("blkio.weight", "100"), ("blkio.bfq.weight", "100"))
    assert not of(plan, "blkio.weight").optional
    assert of(plan, "memory.memsw.limit_in_bytes").optional
    plan = plan_cgroup(config(hugepageLimits=[{"pageSize": "1GB", "limit": 1}]), V1, "id", devices=False)
    assert [write.optional for write in plan.writes] == [False, True]


@pytest.mark.parametrize(
    ("controller", "resources", "pointer"),
    [
        ("memory", {"memory": {"limit": 1}}, "memory/limit"),
        ("cpu,cpuacct", {"cpu": {"shares": 2}}, "cpu/shares"),
        ("cpuset", {"cpu": {"cpus": "0"}}, "cpu/cpus"),
        ("pids", {"pids": {"limit": 1}}, "pids/limit"),
        ("blkio", {"blockIO": {"weight": 10}}, "blockIO/weight"),
        ("hugetlb", {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugepageLimits/0"),
        ("net_cls,net_prio", {"network": {"classID": 1}}, "network/classID"),
        ("net_cls,net_prio", {"network": {"priorities": [{"name": "a", "priority": 1}]}}, "network/priorities/0"),
        ("rdma", {"rdma": {"mlx": {"hcaHandles": 1}}}, "rdma/mlx"),
    ],
)
def test_a_limit_without_its_controller_is_an_error(controller: str, resources: dict[str, Any], pointer: str) -> None:
    names = controller.split(",")
    less = CgroupHost("v1", tuple(mount for mount in V1.mounts if mount.controllers[0] != names[0]))
    with pytest.raises(Unsupported) as caught:
        plan_cgroup(config(**resources), less, "id", devices=False)
    assert caught.value.pointer == f"{AT}/{pointer}"
    if controller != "net_cls,net_prio":
        v2_name = {"blkio": "io", "cpu,cpuacct": "cpu"}.get(controller, controller)
        less = V2.replace(controllers=tuple(name for name in V2.controllers if name != v2_name))
        with pytest.raises(Unsupported) as caught:
            plan_cgroup(config(**resources), less, "id")
        assert caught.value.pointer == f"{AT}/{pointer}"


def test_unified_needs_v2() -> None:
    for host in (V1, HYBRID):
        with pytest.raises(Unsupported) as caught:
            plan_cgroup(config(unified={"memory.high": "1"}), host, "id")
        assert caught.value.pointer == f"{AT}/unified"


# What, on v2

V2_CASES: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    ({}, []),
    (
        {"memory": {"limit": 100, "swap": 250, "reservation": 50}},
        [
            ("memory.swap.max", "150", "memory/swap"),
            ("memory.max", "100", "memory/limit"),
            ("memory.low", "50", "memory/reservation"),
        ],
    ),
    ({"memory": {"limit": 100}}, [("memory.max", "100", "memory/limit")]),
    (
        {"memory": {"limit": 100, "swap": 100}},
        [("memory.swap.max", "0", "memory/swap"), ("memory.max", "100", "memory/limit")],
    ),
    (
        {"memory": {"limit": 100, "swap": -1}},
        [("memory.swap.max", "max", "memory/swap"), ("memory.max", "100", "memory/limit")],
    ),
    # no limit means none of swap either, as with v1
    (
        {"memory": {"limit": -1}},
        [("memory.swap.max", "max", "memory/limit"), ("memory.max", "max", "memory/limit")],
    ),
    ({"memory": {"swap": -1, "kernel": -1}}, [("memory.swap.max", "max", "memory/swap")]),
    ({"memory": {"reservation": -1}}, [("memory.low", "max", "memory/reservation")]),
    (
        {"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 7, "idle": 1}},
        [
            ("cpu.weight", "100", "cpu/shares"),
            ("cpu.idle", "1", "cpu/idle"),
            ("cpu.max", "50000 100000", "cpu/quota"),
            ("cpu.max.burst", "7", "cpu/burst"),
        ],
    ),
    ({"cpu": {"quota": 50000}}, [("cpu.max", "50000 100000", "cpu/quota")]),
    ({"cpu": {"period": 5000}}, [("cpu.max", "max 5000", "cpu/period")]),
    ({"cpu": {"quota": -1, "period": 5000}}, [("cpu.max", "max 5000", "cpu/quota")]),
    (
        {"cpu": {"cpus": "0,2-3", "mems": "0"}},
        [("cpuset.cpus", "0,2-3", "cpu/cpus"), ("cpuset.mems", "0", "cpu/mems")],
    ),
    ({"pids": {"limit": 7}}, [("pids.max", "7", "pids/limit")]),
    ({"pids": {"limit": -1}}, [("pids.max", "max", "pids/limit")]),
    (
        {
            "blockIO": {
                "weight": 500,
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 1, "rate": 2}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 2, "rate": 3}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 3, "rate": 0}],
            }
        },
        [
            ("io.bfq.weight", "500", "blockIO/weight"),
            ("io.max", "8:0 rbps=1", "blockIO/throttleReadBpsDevice/0"),
            ("io.max", "8:1 wbps=2", "blockIO/throttleWriteBpsDevice/0"),
            ("io.max", "8:2 riops=3", "blockIO/throttleReadIOPSDevice/0"),
            ("io.max", "8:3 wiops=max", "blockIO/throttleWriteIOPSDevice/0"),
        ],
    ),
    (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
        [("hugetlb.2MB.max", "0", "hugepageLimits/0"), ("hugetlb.2MB.rsvd.max", "0", "hugepageLimits/0")],
    ),
    (
        {"rdma": {"a": {"hcaObjects": 1}, "b": {"hcaHandles": 2}}},
        [("rdma.max", "a hca_object=1", "rdma/a"), ("rdma.max", "b hca_handle=2", "rdma/b")],
    ),
    (
        {"unified": {"memory.high": "1G", "io.max": "8:0 rbps=1\n8:1 wbps=2", "cgroup.max.depth": "3"}},
        [
            ("memory.high", "1G", "unified/memory.high"),
            ("io.max", "8:0 rbps=1", "unified/io.max"),
            ("io.max", "8:1 wbps=2", "unified/io.max"),
            ("cgroup.max.depth", "3", "unified/cgroup.max.depth"),
        ],
    ),
]


@pytest.mark.parametrize(("resources", "expected"), V2_CASES)
def test_v2_writes(resources: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert writes(V2, **resources) == expected


def test_v2_swap_may_be_missing_where_it_would_not_matter() -> None:
    def swap(**memory: int) -> bool:
        return of(plan_cgroup(config(memory=memory), V2, "id"), "memory.swap.max").optional

    assert swap(limit=5, swap=5)
    assert swap(limit=5, swap=-1)
    assert not swap(limit=5, swap=6)


def test_v2_checks_before_it_sets_a_lower_limit() -> None:
    for asked, expected in ((True, "memory.current"), (False, "")):
        plan = plan_cgroup(config(memory={"limit": 5, "checkBeforeUpdate": asked}), V2, "id")
        assert of(plan, "memory.max").not_below == expected


def test_v2_weights_of_a_device() -> None:
    block = {"weight": 10, "weightDevice": [{"major": 8, "minor": 16, "weight": 1000}]}
    plan = plan_cgroup(config(blockIO=block), V2, "id")
    assert plan.writes[0].choices == (("io.bfq.weight", "10"), ("io.weight", "1"))
    assert plan.writes[1].choices == (("io.bfq.weight", "8:16 1000"), ("io.weight", "8:16 10000"))
    assert plan.writes[1].pointer == f"{AT}/blockIO/weightDevice/0/weight"


@pytest.mark.parametrize(
    ("resources", "pointer"),
    [
        ({"memory": {"kernel": 1}}, "memory/kernel"),
        ({"memory": {"kernelTCP": 1}}, "memory/kernelTCP"),
        ({"memory": {"swappiness": 0}}, "memory/swappiness"),
        ({"memory": {"disableOOMKiller": True}}, "memory/disableOOMKiller"),
        ({"cpu": {"realtimeRuntime": 1}}, "cpu/realtimeRuntime"),
        ({"cpu": {"realtimePeriod": 1}}, "cpu/realtimePeriod"),
        ({"blockIO": {"leafWeight": 10}}, "blockIO/leafWeight"),
        (
            {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}},
            "blockIO/weightDevice/0/leafWeight",
        ),
        ({"network": {"classID": 1}}, "network"),
        ({"network": {"priorities": [{"name": "a", "priority": 1}]}}, "network"),
        ({"unified": {"nothing.max": "1"}}, "unified/nothing.max"),
    ],
)
def test_what_v2_has_no_setting_for_is_an_error(resources: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Unsupported) as caught:
        plan_cgroup(config(**resources), V2, "id")
    assert caught.value.pointer == f"{AT}/{pointer}"


@pytest.mark.parametrize("file", ["cgroup.procs", "cgroup.kill", "cgroup.freeze", "cgroup.subtree_control", "a/b"])
def test_unified_takes_limits_only(file: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_cgroup(config(unified={file: "1"}), V2, "id")
    assert caught.value.findings[0].pointer == f"{AT}/unified/{file.replace('/', '~1')}"


def test_v2_devices_are_a_programs_matter() -> None:
    plan = plan_cgroup(config(), V2, "id")
    assert plan.device_mount == "/cg"
    assert plan.device_rules[0].kind == "a"
    assert plan.writes == ()
    bare = plan_cgroup(config(), V2, "id", devices=False)
    assert (bare.device_mount, bare.device_rules) == ("", ())


def test_planning_changes_nothing_and_equals_itself() -> None:
    given = config(memory={"limit": 5}, cpu={"shares": 3}, pids={"limit": 9})
    assert plan_cgroup(given, V2, "id") == plan_cgroup(given, V2, "id")
    assert given == config(memory={"limit": 5}, cpu={"shares": 3}, pids={"limit": 9})


# Conversions


def test_shares_become_weights() -> None:
    assert [cpu_weight(shares) for shares in (1, 2, 1024, 262144, 1 << 40)] == [1, 1, 100, 10000, 10000]
    for shares in range(3, 262144, 7):
        log = math.log2(shares)
        assert cpu_weight(shares) == math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34)), shares


def test_io_weights() -> None:
    assert [io_weight(weight) for weight in (10, 100, 500, 1000)] == [1, 910, 4950, 10000]

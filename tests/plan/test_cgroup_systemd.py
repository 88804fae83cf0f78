"""plan/cgroup_systemd.py: names, limits and annotations as systemd wants them."""

from __future__ import annotations

from typing import Any

import pytest

from knarr.base.errors import KnarrError, SpecError, Unsupported
from knarr.plan.cgroup import SYSTEMD, CgroupHost, CgroupMount, plan_cgroup
from knarr.plan.cgroup_systemd import (
    INFINITY,
    annotation_properties,
    bits,
    plan_scope,
    scope_name,
    slice_path,
    v1_properties,
    v2_properties,
    variant,
)
from knarr.plan.devices import device_rules

V2 = CgroupHost("v2", unified="/sys/fs/cgroup", controllers=("cpu", "io", "memory", "pids", "cpuset"))


@pytest.mark.parametrize(
    ("path", "user", "expected"),
    [
        ("", False, ("system.slice", "knarr-box.scope")),
        ("", True, ("user.slice", "knarr-box.scope")),
        (":libpod:1234", False, ("system.slice", "libpod-1234.scope")),
        ("machine.slice:libpod:1234", False, ("machine.slice", "libpod-1234.scope")),
        ("user.slice:docker:x", True, ("user.slice", "docker-x.scope")),
        ("-.slice:p:x", False, ("-.slice", "p-x.scope")),
    ],
)
def test_names(path: str, user: bool, expected: tuple[str, str]) -> None:
    assert scope_name(path, "box", user=user) == expected


def test_an_id_that_no_unit_could_have_is_escaped() -> None:
    assert scope_name("", "a+b", user=False)[1] == "knarr-a\\x2bb.scope"


@pytest.mark.parametrize("path", [
    "/a/b", "a:b", "a.slice:b:c:d", "system.slice:p:", "system:p:n", ".slice:p:n", "a--b.slice:p:n", "-a.slice:p:n",
    "a/b.slice:p:n", "system.slice:p:a/b", "system.slice:p:x.slice", "system.slice:p:" + 250 * "x", "system.slice:p q:n",
    "system.slice:p:ä",
])  # fmt: skip
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(SpecError, match="/linux/cgroupsPath"):
        scope_name(path, "box", user=False)


@pytest.mark.parametrize(
    ("name", "path"),
    [("system.slice", "/system.slice"), ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"), ("-.slice", "")],
)
def test_slices_say_where_they_are(name: str, path: str) -> None:
    assert slice_path(name) == path


def test_a_scope_on_v2() -> None:
    config = {
        "linux": {"cgroupsPath": "a-b.slice:p:n", "resources": {"pids": {"limit": 7}}},
        "annotations": {"run.oci.systemd.subgroup": "container"},
    }
    plan = plan_cgroup(config, V2.replace(units="/user.slice/u"), "box", driver=SYSTEMD, user=True)
    (place,) = plan.directories
    assert place.path == "/user.slice/u/a.slice/a-b.slice/p-n.scope/container"
    assert plan.scope is not None
    assert (plan.scope.slice, plan.scope.subgroup, plan.scope.user) == ("a-b.slice", "container", True)
    assert not plan.clone_into  # the process is there before the scope is
    said = {each.name: each.value for each in plan.scope.properties}
    assert said["TasksMax"] == 7
    assert said["Slice"] == "a-b.slice"
    assert said["Delegate"] is True
    assert [write.choices for write in plan.writes] == [(("pids.max", "7"),)]


def test_a_scope_on_v1_has_a_group_in_every_hierarchy() -> None:
    mounts = tuple(CgroupMount((name,), f"/c/{name}", "/own") for name in ("memory", "devices", "name=systemd"))
    plan = plan_cgroup({"linux": {}}, CgroupHost("v1", mounts), "box", driver=SYSTEMD)
    assert {place.path for place in plan.directories} == {"/system.slice/knarr-box.scope"}
    assert plan.scope is not None
    said = {each.name: each.value for each in plan.scope.properties}
    assert said["DevicePolicy"] == "strict"
    assert ("/dev/char/1:3", "rwm") in said["DeviceAllow"]
    assert ("char-136", "rwm") in said["DeviceAllow"]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"memory": {"limit": 100, "swap": 150, "reservation": 50}}, {"MemoryMax": 100, "MemorySwapMax": 50, "MemoryLow": 50}),
        ({"memory": {"limit": -1}}, {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}),
        ({"pids": {"limit": -1}}, {"TasksMax": INFINITY}),
        ({"pids": {"limit": 0}, "memory": {"limit": 0}, "cpu": {"shares": 0, "quota": 0}}, {}),
        ({"cpu": {"shares": 1024}}, {"CPUWeight": 100}),
        ({"cpu": {"shares": 1024, "idle": 1}}, {"CPUWeight": 0}),
        ({"cpu": {"quota": 50000, "period": 200000}}, {"CPUQuotaPeriodUSec": 200000, "CPUQuotaPerSecUSec": 250000}),
        # 33.333 % becomes 34: systemd has whole percents
        ({"cpu": {"quota": 33333}}, {"CPUQuotaPerSecUSec": 340000}),
        ({"cpu": {"quota": -1}}, {"CPUQuotaPerSecUSec": INFINITY}),
        ({"cpu": {"cpus": "0-2,8", "mems": "0"}}, {"AllowedCPUs": b"\x07\x01", "AllowedMemoryNodes": b"\x01"}),
        ({"blockIO": {"weight": 1000}}, {"IOWeight": 10000}),
        ({"unified": {"memory.high": "5", "pids.max": "max", "cpu.max": "max 5000", "io.max": "8:0 rbps=1"}},
         {"MemoryHigh": 5, "TasksMax": INFINITY, "CPUQuotaPeriodUSec": 5000, "CPUQuotaPerSecUSec": INFINITY}),
    ],
)  # fmt: skip
def test_limits_on_v2(resources: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {each.name: each.value for each in v2_properties(resources)} == expected


def test_limits_on_v1() -> None:
    resources = {"memory": {"limit": 9}, "cpu": {"shares": 512}, "blockIO": {"weight": 10}, "pids": {"limit": 3}}
    said = {each.name: each.value for each in v1_properties(resources, device_rules({}))}
    assert {name: said[name] for name in ("MemoryLimit", "CPUShares", "BlockIOWeight", "TasksMax")} == {
        "MemoryLimit": 9, "CPUShares": 512, "BlockIOWeight": 10, "TasksMax": 3,
    }  # fmt: skip
    everything = {"linux": {"resources": {"devices": [{"allow": True, "access": "rwm"}]}}}
    said = {each.name: each.value for each in v1_properties({}, device_rules(everything))}
    assert said["DevicePolicy"] == "auto"


def test_bits_of_huge_ranges_cost_nothing() -> None:
    assert bits("0-99999999999") == b"\xff" * 1024
    assert bits("") == b"\0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", ("b", True)),
        ("'a b'", ("s", "a b")),
        ('"it\\"s"', ("s", 'it"s')),
        ("5", ("i", 5)),
        ("uint64 5", ("t", 5)),
        ("byte 0x10", ("y", 16)),
        ("2.5", ("d", 2.5)),
        ("['a', 'b,c']", ("as", ["a", "b,c"])),
        ("[uint32 1, uint32 2]", ("au", [1, 2])),
    ],
)
def test_values_of_annotations(text: str, expected: tuple[str, Any]) -> None:
    assert variant(text) == expected


@pytest.mark.parametrize(
    "text", ["", "yes", "'a", "'a'b'", "uint64 -1", "byte 256", "5 6", "[1, 'a']", "[]", "uint64 1.5"]
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        variant(text)


def test_seconds_become_microseconds() -> None:
    (made,) = annotation_properties({"org.systemd.property.TimeoutStopSec": "uint64 3"})
    assert (made.name, made.signature, made.value) == ("TimeoutStopUSec", "t", 3000000)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("org.systemd.property.X", "true"),
        ("org.systemd.property.Memory-Max", "true"),
        ("org.systemd.property.MemoryMax", "lots"),
        ("org.systemd.property.TimeoutStopSec", "'3'"),
        ("org.systemd.property.Slice", "'system.slice'"),
        ("org.systemd.property.PIDs", "[uint32 1]"),
        ("run.oci.systemd.subgroup", "../x"),
        ("run.oci.systemd.force_cgroup_v1", "/x"),
    ],
)
def test_annotations_that_are_refused(key: str, value: str) -> None:
    with pytest.raises((SpecError, Unsupported)) as caught:
        plan_scope({"annotations": {key: value}}, "box", user=False, v2=True)
    assert isinstance(caught.value, KnarrError)
    assert f"/annotations/{key}" in str(caught.value)


def test_an_annotation_wins_over_our_own_word() -> None:
    scope = plan_scope({"annotations": {"org.systemd.property.CollectMode": "'inactive'"}}, "b", user=False, v2=True)
    assert [each.value for each in scope.properties if each.name == "CollectMode"] == ["inactive"]

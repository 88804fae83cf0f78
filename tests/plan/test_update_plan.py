"""plan/update.py: what is asked for, what config.json becomes, what is written and how it is undone."""

from __future__ import annotations

from typing import Any

import pytest

from knarr.plan.cgroup import CgroupHost, CgroupMount
from knarr.plan.update import asked, before, merged, plan_update

NAMES = ("cpu", "memory", "pids", "blkio", "devices")
V1 = CgroupHost("v1", tuple(CgroupMount((name,), f"/cg/{name}", "/own") for name in NAMES))
V2 = CgroupHost("v2", (), "/cg", "/own", ("cpu", "io", "memory", "pids"))


def changes(old: dict[str, Any], given: dict[str, Any], host: CgroupHost) -> tuple[dict[str, Any], list[str]]:
    groups = [(mount.mountpoint, "/c") for mount in host.mounts] or [("/cg", "/c")]
    config, plan = plan_update({"linux": {"resources": old}}, asked(given), host, groups, devices=True)
    return config["linux"]["resources"], [" ".join(write.choices[0]) for write in plan.writes]


def test_zeros_and_empty_sections_ask_for_nothing() -> None:
    given = {"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "cpus": "", "idle": 0}, "pids": {"limit": 0}}
    assert asked({**given, "blockIO": {"weightDevice": []}, "unified": {}}) == {"cpu": {"idle": 0}}


def test_entries_of_lists_replace_what_they_name() -> None:
    old: dict[str, Any] = {
        "blockIO": {"weight": 5, "throttleReadBpsDevice": [{"major": 8, "minor": n, "rate": n} for n in (1, 2)]}
    }
    given = {
        "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 2, "rate": 9}, {"major": 9, "minor": 0, "rate": 7}]}
    }
    new = merged(old, given)
    assert [entry["rate"] for entry in new["blockIO"]["throttleReadBpsDevice"]] == [1, 9, 7]
    assert new["blockIO"]["weight"] == 5
    assert [entry["rate"] for entry in old["blockIO"]["throttleReadBpsDevice"]] == [1, 2]


def test_no_limit_of_memory_takes_the_one_with_swap_along() -> None:
    assert merged({"memory": {"limit": 5, "swap": 6}}, {"memory": {"limit": -1}}) == {
        "memory": {"limit": -1, "swap": -1}
    }
    assert merged({}, {"memory": {"limit": -1, "swap": 7}}) == {"memory": {"limit": -1, "swap": 7}}


@pytest.mark.parametrize(
    ("old", "given", "v1", "v2"),
    [
        (
            {"cpu": {"quota": 5000, "period": 20000}},
            {"cpu": {"quota": 7000}},
            ["cpu.cfs_period_us 20000", "cpu.cfs_quota_us 7000"],
            ["cpu.max 7000 20000"],
        ),
        (
            {"memory": {"limit": 100, "swap": 150}},
            {"memory": {"limit": 120}},
            ["memory.limit_in_bytes 120", "memory.memsw.limit_in_bytes 150"],
            ["memory.swap.max 30", "memory.max 120"],
        ),
        (
            {"cpu": {"shares": 1024, "idle": 1}},
            {"cpu": {"idle": 0}},
            ["cpu.shares 1024", "cpu.idle 0"],
            ["cpu.weight 100", "cpu.idle 0"],
        ),
        ({"pids": {"limit": 9}, "memory": {"limit": 5}}, {"pids": {"limit": 8}}, ["pids.max 8"], ["pids.max 8"]),
        ({"pids": {"limit": 9}}, {}, [], []),
    ],
)
def test_what_is_written(old: dict[str, Any], given: dict[str, Any], v1: list[str], v2: list[str]) -> None:
    """What changes, and with it the other half of what the kernel holds or compares together."""
    assert changes(old, given, V1) == (merged(old, asked(given)), v1)
    assert changes(old, given, V2) == (merged(old, asked(given)), v2)


def test_device_rules_are_written_only_when_they_differ() -> None:
    rules = [{"allow": False, "access": "rwm"}]
    assert changes({"devices": rules}, {"devices": rules}, V1)[1] == []
    assert "devices.deny a" in changes({}, {"devices": rules}, V1)[1]
    groups = [("/cg", "/c")]
    same = plan_update({"linux": {"resources": {"devices": rules}}}, {"devices": rules}, V2, groups, devices=True)[1]
    assert (same.device_rules, same.device_mount) == ((), "")
    other = plan_update({"linux": {}}, {"devices": rules}, V2, groups, devices=True)[1]
    assert other.device_rules
    assert other.device_mount == "/cg"
    assert plan_update({"linux": {}}, {"devices": rules}, V2, groups, devices=False)[1].device_rules == ()


@pytest.mark.parametrize(
    ("value", "text", "undo"),
    [
        ("5", "7\n", "7"),
        ("50000 100000", "max 100000\n", "max 100000"),
        ("8:0 4096", "", "8:0 0"),
        ("8:0 4096", "8:16 5\n8:0 77\n", "8:0 77"),
        ("8:0 rbps=5", "", "8:0 rbps=max"),
        ("8:0 rbps=5", "8:0 rbps=9 wbps=max riops=max wiops=max\n", "8:0 rbps=9 wbps=max riops=max wiops=max"),
    ],
)
def test_what_undoes_a_write(value: str, text: str, undo: str) -> None:
    assert before(value, text) == undo

"""linux.intelRdt: which group of resctrl, with which schemata. No such hardware is at hand: what is planned, and refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import InitError
from knarr.plan.resctrl import RdtPlan, differing, plan_rdt
from knarr.runtime import resctrl

if TYPE_CHECKING:
    from pathlib import Path

AT = "/linux/intelRdt"


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, None),
        ({}, RdtPlan("c1", (), True, True)),
        ({"closID": "gold"}, RdtPlan("gold", (), False, False)),
        ({"closID": "/"}, RdtPlan("", (), False, False)),
        ({"closID": "/", "l3CacheSchema": "L3:0=f"}, RdtPlan("", (("L3:0=f", f"{AT}/l3CacheSchema"),), False, False)),
        ({"closID": "gold", "enableMonitoring": True}, RdtPlan("gold", (), False, False, "c1")),
        (
            {"closID": "g", "memBwSchema": "MB:0=50", "l3CacheSchema": "L3:0=ff", "schemata": ["L2:0=3", ""]},
            RdtPlan(
                "g",
                (
                    ("L3:0=ff", f"{AT}/l3CacheSchema"),
                    ("MB:0=50", f"{AT}/memBwSchema"),
                    ("L2:0=3", f"{AT}/schemata/0"),
                ),
                True,
                False,
            ),
        ),
    ],
)
def test_the_group(asked: dict[str, Any] | None, wanted: RdtPlan | None) -> None:
    assert plan_rdt(asked, "c1") == wanted


@pytest.mark.parametrize(
    ("wanted", "present", "other"),
    [
        ("L3:0=ff", "    L3:0=000ff;1=fffff\n    MB:0=100\n", ""),
        ("L3:00=0FF;1=fffff", "L3:0=ff;1=fffff", ""),
        ("L3:0=f;1=3", "L3:0=f;1=7", "L3:1=3"),
        ("L3:2=f", "L3:0=f;1=7", "L3:2=f"),
        ("MB:0=50", "L3:0=50", "MB:0=50"),
        ("MB:0= 50 ; 1=0", "MB:0=050;1=00", ""),
    ],
)
def test_schemata_that_differ(wanted: str, present: str, other: str) -> None:
    assert differing(wanted, present) == other


def tree(tmp_path: Path) -> str:
    (tmp_path / "info").mkdir()
    (tmp_path / "info/last_cmd_status").write_text("mask f0f not contiguous\n")
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold/schemata").write_text("L3:0=ff\n")
    (tmp_path / "gold/tasks").write_text("")
    return str(tmp_path)


def test_a_group_that_is_there_is_compared_and_left_alone(tmp_path: Path) -> None:
    top = tree(tmp_path)
    plan = RdtPlan("gold", (("L3:0=0ff", f"{AT}/schemata/0"),), True, False)
    resctrl.make(plan, top)
    resctrl.join(plan, top, 123)
    assert (tmp_path / "gold/tasks").read_text() == "123"
    resctrl.remove(resctrl.intent(plan, top))
    assert (tmp_path / "gold/schemata").read_text() == "L3:0=ff\n"
    other = plan.replace(schemata=(("L3:0=f", f"{AT}/schemata/0"),))
    with pytest.raises(InitError, match=r"/linux/intelRdt/schemata/0: .* group gold is there, .* not L3:0=f"):
        resctrl.make(other, top)


def test_a_group_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InitError, match="/linux/intelRdt/closID: use group silver of resctrl: there is no such group"):
        resctrl.make(RdtPlan("silver", (), False, False), tree(tmp_path))


def test_what_the_kernel_says_is_told_and_what_was_made_is_found(tmp_path: Path) -> None:
    top = tree(tmp_path)
    plan = RdtPlan("c1", (("L3:0=f0f", f"{AT}/schemata/0"),), True, True, "c1")
    with pytest.raises(InitError, match=r"/linux/intelRdt/schemata/0: .*: mask f0f not contiguous"):
        resctrl.make(plan, top)  # in a tree of ordinary directories there is no file to write to
    assert (tmp_path / "c1").is_dir()
    recorded = resctrl.intent(plan, top)
    assert recorded == {"top": top, "group": "c1", "monitor": "c1/mon_groups/c1"}
    resctrl.remove(recorded)
    resctrl.remove(recorded)
    assert not (tmp_path / "c1").exists()

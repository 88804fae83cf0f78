"""config.json's section ``vm``, decided."""

from __future__ import annotations

from typing import Any

import pytest

from knarr.isolation.vmconfig import Wanted, cannot_honour, wanted
from knarr.spec.validate import config_findings

FULL: dict[str, Any] = {
    "hypervisor": {"path": "/qemu", "parameters": ["-name", "it"]},
    "kernel": {"path": "/vmlinuz", "parameters": ["foo=bar", "hello world"], "initrd": "/initrd.img"},
    "hwConfig": {"vcpus": 2, "memory": 1 << 30},
}


def test_all_of_it_is_read() -> None:
    assert cannot_honour(FULL, "x86_64") == []
    assert wanted(FULL) == Wanted(
        hypervisor="/qemu",
        parameters=("-name", "it"),
        kernel="/vmlinuz",
        words=("foo=bar", "hello world"),
        initrd="/initrd.img",
        cpus=2,
        memory=1 << 30,
    )


def test_without_one_nothing_is_asked_for() -> None:
    assert wanted(None) == wanted({}) == Wanted()
    assert cannot_honour(None, "x86_64") == []


@pytest.mark.parametrize(
    ("section", "pointer", "why"),
    [
        ({"kernel": {"path": "/k", "parameters": ["a", "b -- c"]}}, "/vm/kernel/parameters/1", "first program"),
        ({"kernel": {"path": "/k", "parameters": ["rdinit=/sh"]}}, "/vm/kernel/parameters/0", "for knarr"),
        ({"kernel": {"path": "/k", "parameters": ["x knarr.channel=a"]}}, "/vm/kernel/parameters/0", "for knarr"),
        ({"kernel": {"path": "/k", "parameters": ["x\ny"]}}, "/vm/kernel/parameters/0", "one line"),
        ({"image": {"path": "/root.img", "format": "vdi"}}, "/vm/image/format", "other files"),
        ({"hwConfig": {"dtdevs": ["/soc/eth"]}}, "/vm/hwConfig/dtdevs", "hardware"),
        ({"hwConfig": {"iomems": [{"firstMFN": 1, "nrMFNs": 1}]}}, "/vm/hwConfig/iomems", "hardware"),
        ({"hwConfig": {"irqs": [4]}}, "/vm/hwConfig/irqs", "hardware"),
        ({"hwConfig": {"deviceTree": "/tree.dtb"}}, "/vm/hwConfig/deviceTree", "x86_64 has none"),
        ({"hwConfig": {"vcpus": 0}}, "/vm/hwConfig/vcpus", "1 to 64"),
        ({"hwConfig": {"vcpus": 65}}, "/vm/hwConfig/vcpus", "1 to 64"),
        ({"hwConfig": {"memory": 1 << 20}}, "/vm/hwConfig/memory", "at least"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_pointer(section: dict[str, Any], pointer: str, why: str) -> None:
    found = cannot_honour(section, "x86_64")
    assert [each.pointer for each in found] == [pointer]
    assert why in found[0].why


def test_a_device_tree_is_arm64s() -> None:
    assert cannot_honour({"hwConfig": {"deviceTree": "/tree.dtb"}}, "aarch64") == []
    assert wanted({"hwConfig": {"deviceTree": "/tree.dtb"}}).device_tree == "/tree.dtb"
    assert cannot_honour({"hwConfig": {"deviceTree": "tree.dtb"}}, "aarch64")[0].why == "must be an absolute path"


def test_it_is_valid_to_begin_with() -> None:
    config = {"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "process": {"cwd": "/", "args": ["a"]}, "vm": FULL}
    assert [each for each in config_findings(config) if each.pointer.startswith("/vm/")] == []

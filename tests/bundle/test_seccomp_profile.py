from __future__ import annotations

from typing import Any

import pytest

from knarr.base.errors import SpecError
from knarr.bundle.seccomp_profile import convert_profile

# The shape of Docker's and Podman's profile files, cut down.
PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrno": "ENOSYS",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "", "includes": {}, "excludes": {}},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"name": "old", "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
    ],
}


def convert(
    profile: Any, *, capabilities: tuple[str, ...] = (), arch: str = "x86_64", kernel: tuple[int, int] = (6, 1)
) -> dict[str, Any]:
    return convert_profile(profile, "p.json", capabilities=capabilities, arch=arch, kernel=kernel)


def names(made: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, rule["action"]) for rule in made["syscalls"] for name in rule["names"]]


def test_rules_are_decided_for_this_container() -> None:
    made = convert(PROFILE)
    assert made["defaultErrnoRet"] == 38
    assert made["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    allow, refuse = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
    assert names(made) == [
        ("read", allow), ("write", allow), ("mount", refuse), ("arch_prctl", allow), ("ptrace", allow), ("old", allow),
    ]  # fmt: skip
    assert made["syscalls"][1]["errnoRet"] == 1
    assert made["syscalls"][-1]["args"] == [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    assert not any(key in rule for rule in made["syscalls"] for key in ("includes", "excludes", "comment", "name"))


def test_capabilities_architecture_and_kernel_count() -> None:
    made = convert(PROFILE, capabilities=("CAP_SYS_ADMIN",), arch="aarch64", kernel=(4, 4))
    assert made["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert [name for name, _ in names(made)] == ["read", "write", "mount", "old"]


def test_a_runtime_profile_passes() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]}  # fmt: skip
    assert convert(profile) == profile


@pytest.mark.parametrize(
    ("profile", "pointer"),
    [
        ({}, "/defaultAction"),
        ([], "/defaultAction"),
        ({"defaultAction": "X", "syscalls": {}}, "/syscalls"),
        ({"defaultAction": "X", "syscalls": [1]}, "/syscalls/0"),
        ({"defaultAction": "X", "archMap": [1]}, "/archMap/0"),
        ({"defaultAction": "X", "architectures": "y"}, "/architectures"),
        ({"defaultAction": "X", "defaultErrno": "NOPE"}, "/defaultErrno"),
        ({"defaultAction": "X", "syscalls": [{"names": ["a"], "includes": 3}]}, "/syscalls/0/includes"),
        ({"defaultAction": "X", "syscalls": [{"excludes": {"minKernel": "x"}}]}, "/syscalls/0/excludes/minKernel"),
    ],
)  # fmt: skip
def test_what_is_no_profile(profile: Any, pointer: str) -> None:
    with pytest.raises(SpecError) as caught:
        convert(profile)
    assert caught.value.findings[0].pointer == pointer

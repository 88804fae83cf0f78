from __future__ import annotations

import pytest

from knarr.base.errors import UsageError
from knarr.bundle.mounts import check_target, clean_path, place_mounts, volume_entry
from knarr.bundle.options import Facts, RunOptions, VolumeMount
from knarr.bundle.posture import base_mounts


def bind(*options: str, readonly: bool = False, target: str = "/t") -> list[str]:
    entry = volume_entry(VolumeMount("bind", target, "/s", readonly, options))
    assert (entry["type"], entry["source"], entry["destination"]) == ("bind", "/s", target)
    options_made: list[str] = entry["options"]
    return options_made


def test_bind_defaults_are_safe_to_the_last_mount_below() -> None:
    assert bind() == ["rbind", "rprivate", "rnosuid", "rnodev"]
    assert bind(readonly=True)[-1] == "rro"
    assert bind("ro")[-1] == "rro"
    assert bind("suid") == ["rbind", "rprivate", "rnodev"]
    assert bind("dev") == ["rbind", "rprivate", "rnosuid"]
    assert bind("rslave", "noexec") == ["rbind", "rslave", "rnosuid", "rnodev", "rnoexec"]
    assert bind("bind")[0] == "bind"
    with pytest.raises(UsageError, match="'fly'"):
        bind("fly")
    with pytest.raises(UsageError, match="absolute"):
        volume_entry(VolumeMount("bind", "/t", "relative"))


def test_tmpfs() -> None:
    def tmpfs(*options: str, readonly: bool = False) -> list[str]:
        made: list[str] = volume_entry(VolumeMount("tmpfs", "/t", "", readonly, options))["options"]
        return made

    assert tmpfs() == ["nosuid", "nodev", "noexec", "mode=1777"]
    assert tmpfs("exec", "size=1024", "mode=700") == ["size=1024", "mode=700", "nosuid", "nodev"]
    assert "ro" in tmpfs(readonly=True)
    with pytest.raises(UsageError, match="lowerdir"):
        tmpfs("lowerdir=/")


COVERING = [
    "/", "/.", "/proc", "/proc/", "//proc/sys", "/sys", "/sys/x", "/dev", "/dev/pts", "/dev/null", "x", "/a/../b",
]  # fmt: skip


@pytest.mark.parametrize("path", [*COVERING, ""])
def test_what_no_mount_may_cover(path: str) -> None:
    with pytest.raises(UsageError):
        check_target(path, "mount target")


def test_paths_are_cleaned() -> None:
    assert clean_path("//a/./b//", "x") == "/a/b"
    assert check_target("/dev/shm", "x") == "/dev/shm"
    assert check_target("/process", "x") == "/process"


def placed(options: RunOptions) -> list[str]:
    return [mount["destination"] for mount in place_mounts(base_mounts(Facts()), [], [], options)]


def test_parents_come_before_what_lies_below() -> None:
    mounts = tuple(VolumeMount("tmpfs", target) for target in ("/a/b/c", "/a", "/a/b"))
    assert placed(RunOptions(mounts=mounts))[-3:] == ["/a", "/a/b", "/a/b/c"]


def test_the_users_mounts_win() -> None:
    files = [("/etc/hosts", "/mine/hosts")]
    options = RunOptions(mounts=(VolumeMount("bind", "/etc/hosts", "/his"), VolumeMount("tmpfs", "/dev/shm")))
    mounts = place_mounts(base_mounts(Facts()), [], files, options)
    assert [mount["source"] for mount in mounts if mount["destination"] == "/etc/hosts"] == ["/his"]
    shm = [mount for mount in mounts if mount["destination"] == "/dev/shm"]
    assert len(shm) == 1
    assert "noexec" in shm[0]["options"]
    assert [mount["destination"] for mount in mounts].index("/dev") < mounts.index(shm[0])


def test_one_target_once() -> None:
    with pytest.raises(UsageError, match="two mounts are asked for at /a"):
        placed(RunOptions(mounts=(VolumeMount("tmpfs", "/a"), VolumeMount("tmpfs", "/a/"))))


def test_shm_size() -> None:
    mounts = place_mounts(base_mounts(Facts()), [], [], RunOptions(shm_size=1 << 20))
    shm = next(mount for mount in mounts if mount["destination"] == "/dev/shm")
    assert "size=1048576" in shm["options"]
    assert "size=65536k" not in shm["options"]

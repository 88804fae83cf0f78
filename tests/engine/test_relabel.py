"""Volumes with :z and :Z. The attribute can be set on any kernel, by root; what SELinux makes of it: tests/vm."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from knarr.base.errors import FileError, SafetyViolation, UsageError
from knarr.engine.relabel import relabel, relabel_volume

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or Path("/sys/fs/selinux/enforce").exists(),
    reason="needs root, and a kernel that takes any label",
)


def label_of(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).decode()
    except OSError:
        return ""


def volume(path: Path) -> str:
    return relabel_volume(str(path), LABEL, own=())


def test_everything_below_is_labelled_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "file").touch()
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").touch()
    os.mkfifo(top / "a/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "s"))
    (top / "to-file").symlink_to(outside / "file")
    (top / "to-dir").symlink_to(outside / "dir")
    (top / "up").symlink_to("../outside")
    assert volume(top) == ""
    inside = ["", "a", "a/b", "a/b/file", "a/fifo", "s", "to-file", "to-dir", "up"]
    assert {name: label_of(top / name) for name in inside} == dict.fromkeys(inside, LABEL)
    assert [label_of(path) for path in (outside, outside / "file", outside / "dir", tmp_path)] == [""] * 4


def test_a_file_alone(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    volume(tmp_path / "one")
    assert [label_of(tmp_path / name) for name in ("one", "two", "")] == [LABEL, "", ""]


def test_what_is_mounted_below_keeps_its_labels(tmp_path: Path) -> None:
    other = tmp_path / "other"
    top = tmp_path / "top"
    (top / "place").mkdir(parents=True)
    other.mkdir()
    (other / "file").touch()
    subprocess.run(["mount", "--bind", str(other), str(top / "place")], check=True)
    try:
        volume(top)
    finally:
        subprocess.run(["umount", str(top / "place")], check=True)
    assert [label_of(other), label_of(other / "file"), label_of(top)] == ["", "", LABEL]


def test_what_has_the_label_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume(tmp_path)
    before = (tmp_path / "file").stat().st_ctime_ns
    volume(tmp_path)
    assert (tmp_path / "file").stat().st_ctime_ns == before


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "/usr", "/home", "/bin", "/usr/bin", "/etc/passwd", "/proc", "/proc/sys", "/sys/kernel", "/dev/shm/..",
     "/var", "/var/lib", "/root", "/tmp", "/run", "/usr/../etc"],
)  # fmt: skip
def test_the_systems_directories_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="belongs to the system"):
        relabel_volume(path, LABEL, own=())
    assert label_of(Path(path)) == ""


def test_another_name_of_one_is_no_way_around(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "bind").mkdir()
    with pytest.raises(UsageError, match="belongs to the system"):
        volume(tmp_path / "link")
    subprocess.run(["mount", "--bind", "/etc", str(tmp_path / "bind")], check=True)
    try:
        with pytest.raises(UsageError, match="belongs to the system"):
            volume(tmp_path / "bind")
    finally:
        subprocess.run(["umount", str(tmp_path / "bind")], check=True)
    assert label_of(Path("/etc")) == ""


def test_a_home_and_our_own_directories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/store").mkdir(parents=True)
    (tmp_path / "home/work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in (tmp_path / "home", tmp_path / "data", tmp_path / "data/store"):
        with pytest.raises(UsageError, match="belongs to the system"):
            relabel_volume(str(path), LABEL, own=(str(tmp_path / "data/store"),))
    volume(tmp_path / "home/work")
    assert label_of(tmp_path / "home/work") == LABEL


def test_a_file_system_without_labels_is_told(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(tmp_path)], check=True)
    try:
        (tmp_path / "file").touch()
        assert "no SELinux labels" in volume(tmp_path)
        assert "no SELinux labels" in volume(tmp_path / "file")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_too_deep_is_an_error_and_so_is_nothing(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(210):
        path = path / "d"
    path.mkdir(parents=True)
    with pytest.raises(SafetyViolation, match="too deep"):
        volume(tmp_path)
    with pytest.raises(FileError, match="no such file"):
        volume(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path)
    relabel(str(tmp_path / "link"), LABEL)
    assert label_of(tmp_path / "link") == LABEL, "a file of the container's own is no way out"

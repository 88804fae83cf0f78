"""Mount calls on the real kernel, in directories of our own."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import KernelError
from knarr.kernel.mount import (
    AT_EMPTY_PATH,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_STRING,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_BIND,
    OPEN_TREE_CLONE,
    UMOUNT_NOFOLLOW,
    fsconfig,
    fsmount,
    fsopen,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
AT_FDCWD = -100


@pytest.fixture
def place() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="knarr-test-")
    yield path
    while os.path.ismount(path):
        umount2(path, MNT_DETACH)
    os.rmdir(path)


@needs_root
def test_a_file_system_by_descriptor(place: str) -> None:
    fs = fsopen("tmpfs")
    fsconfig(fs, FSCONFIG_SET_STRING, "size", "64k")
    with pytest.raises(KernelError, match="no-such-option"):
        fsconfig(fs, FSCONFIG_SET_STRING, "no-such-option", "1")
    fsconfig(fs, FSCONFIG_CMD_CREATE)
    tree = fsmount(fs)
    move_mount(tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    os.close(fs)
    os.close(tree)
    assert os.path.ismount(place)
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 64 << 10
    umount2(place, UMOUNT_NOFOLLOW)
    assert not os.path.ismount(place)


@needs_root
def test_a_detached_copy_made_read_only(place: str) -> None:
    mount("tmpfs", place, "tmpfs", 0, "mode=0700")
    tree = open_tree(AT_FDCWD, place, OPEN_TREE_CLONE)
    assert not os.get_inheritable(tree)
    mount_setattr(tree, "", AT_EMPTY_PATH, add=MOUNT_ATTR_RDONLY)
    move_mount(tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir(f"{place}/x")
    umount2(place)
    os.mkdir(f"{place}/x")
    os.rmdir(f"{place}/x")


def test_failures_name_the_target(place: str) -> None:
    with pytest.raises(KernelError) as caught:
        mount(f"{place}/none", f"{place}/none", None, MS_BIND)
    assert str(caught.value).startswith(f"mount {place}/none: ")
    with pytest.raises(KernelError, match="umount2"):
        umount2(f"{place}/none")
    with pytest.raises(KernelError, match="over 4095"):
        mount("x", place, "tmpfs", 0, "a" * 4096)
    with pytest.raises(KernelError, match="NUL"):
        mount("x", place + "\0", "tmpfs", 0)

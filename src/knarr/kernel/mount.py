"""Mounts: mount(2), umount2(2), and the descriptor calls fsopen, fsconfig, fsmount, open_tree, move_mount (hot).

One function per system call; numbers from linux/mount.h. The new calls need Linux 5.2, mount_setattr 5.12.
"""

from __future__ import annotations

import os
from errno import EINVAL
from struct import Struct

from knarr.base.errors import KernelError
from knarr.kernel.ffi import syscall

# mount(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000

# umount2(2)
MNT_FORCE = 0x1
MNT_DETACH = 0x2
MNT_EXPIRE = 0x4
UMOUNT_NOFOLLOW = 0x8

# open_tree(2), move_mount(2), fsopen(2), fsmount(2)
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

# mount attributes of fsmount(2) and mount_setattr(2)
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x100000

_pack_attr = Struct("=QQQQ").pack


def _text(value: str | bytes | None) -> bytes | None:
    if value is None:
        return None
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise KernelError("mount", repr(value), EINVAL, hint="it holds a NUL")
    return raw


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | bytes | None,
    flags: int,
    data: str | bytes | None = None,
) -> None:
    """Mount a file system, or change a mount. ``data``: at most 4095 bytes, one page. Raises KernelError."""
    raw = _text(data)
    if raw is not None and len(raw) > 4095:  # the kernel would cut it off without a word
        raise KernelError("mount", os.fsdecode(target), EINVAL, hint=f"the options have {len(raw)} bytes, over 4095")
    syscall("mount", _text(source), _text(target), _text(fstype), flags, raw, operand=os.fsdecode(target))


def umount2(target: str | bytes, flags: int = 0) -> None:
    """Unmount ``target``. Raises KernelError."""
    syscall("umount2", _text(target), flags, operand=os.fsdecode(target))


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Return a descriptor in which a new file system is configured. Raises KernelError."""
    return syscall("fsopen", _text(fstype), flags, operand=fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | bytes | None = None, extra: int = 0) -> None:
    """Set one option, or create the file system. Raises KernelError with the key as operand."""
    syscall("fsconfig", fd, command, _text(key), _text(value), extra, operand=key or "create")


def fsmount(fd: int, attributes: int = 0, flags: int = FSMOUNT_CLOEXEC) -> int:
    """Return a detached mount of the file system configured in ``fd``. Raises KernelError."""
    return syscall("fsmount", fd, flags, attributes)


def open_tree(dir_fd: int, path: str | bytes, flags: int) -> int:
    """Return a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy. Raises KernelError."""
    return syscall("open_tree", dir_fd, _text(path), flags | OPEN_TREE_CLOEXEC, operand=os.fsdecode(path))


def move_mount(from_fd: int, from_path: str | bytes, to_fd: int, to_path: str | bytes, flags: int) -> None:
    """Attach a detached mount, or move one. Raises KernelError with the target as operand."""
    syscall("move_mount", from_fd, _text(from_path), to_fd, _text(to_path), flags, operand=os.fsdecode(to_path))


def mount_setattr(
    dir_fd: int,
    path: str | bytes,
    flags: int,
    *,
    add: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change mount attributes, with AT_RECURSIVE of all below too. Raises KernelError."""
    attributes = _pack_attr(add, clear, propagation, userns_fd)
    syscall("mount_setattr", dir_fd, _text(path), flags, attributes, len(attributes), operand=os.fsdecode(path))

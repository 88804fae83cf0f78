"""The mounts of a container without a mount namespace of its own: on the host, until it is deleted (cold).

Such a container inherits the runtime's mount namespace (runtime-spec config-linux.md "Namespaces"). All it mounts lies
below one mount, its root bound on itself; what was there before is recorded, so that taking mounts away down to that
takes away ours and no other's.
"""

from __future__ import annotations

import os
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR

from knarr.base.errors import FileError, KernelError
from knarr.kernel.mount import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    MNT_DETACH,
    MS_PRIVATE,
    UMOUNT_NOFOLLOW,
    mount_setattr,
    umount2,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DEEP = 64  # mounts on one root; a container's own is one


def intent(rootfs: str) -> tuple[int, int]:
    """What there is before anything is mounted: the mount namespace's number, the mount ``rootfs`` lies on."""
    return _namespace(), _mount_at(rootfs)


def undo(rootfs: str, recorded: Sequence[int]) -> list[str]:
    """Detach what was mounted on ``rootfs`` since ``intent``; returns warnings. Raises FileError, KernelError."""
    namespace, before = recorded
    if _namespace() != namespace:
        return [f"what the container mounted on {rootfs} was left: it is in the mount namespace of who created it"]
    for _ in range(_DEEP):
        try:
            if _mount_at(rootfs) == before:
                break
            _make_private(rootfs)
            umount2(rootfs, MNT_DETACH | UMOUNT_NOFOLLOW)
        except FileError as error:
            if error.number in (ENOENT, ENOTDIR, ELOOP):  # the bundle is gone
                break
            raise
        except KernelError as error:
            if error.errno == EINVAL:  # nothing is mounted there any more
                break
            raise
    return []


def _make_private(rootfs: str) -> None:
    """Or what lies below a shared bind would be unmounted where it came from, too. Raises FileError, KernelError."""
    fd = _open(rootfs)
    try:
        mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, propagation=MS_PRIVATE)
    finally:
        os.close(fd)


def _namespace() -> int:
    return os.stat("/proc/self/ns/mnt").st_ino


def _mount_at(path: str) -> int:
    """The number of the mount a directory lies on (proc_pid_fdinfo(5)). Raises FileError."""
    fd = _open(path)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            words = file.read().split()
    finally:
        os.close(fd)
    return int(words[words.index("mnt_id:") + 1])


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open root directory", path, error.errno or 0) from None

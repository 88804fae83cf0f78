"""One cgroup and the tree below it, by descriptor: the small steps of runtime/cgroup.py (hot). cgroups(7)."""

from __future__ import annotations

import posix
from errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOTEMPTY

from knarr.base.errors import KernelError
from knarr.kernel.path import BENEATH, RESOLVE_NO_XDEV, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY
_RULES = BENEATH | RESOLVE_NO_XDEV
# trusted.* cannot be written without CAP_SYS_ADMIN, user.* by whoever may write to the group (Linux 5.7).
_MARKS = ("trusted.knarr", "user.knarr")


def open_group(mountpoint: str, path: str) -> int:
    """A descriptor of the group ``path`` below the hierarchy's mount point. Raises KernelError."""
    try:
        top = posix.open(mountpoint, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", mountpoint, error.errno or 0) from None
    try:
        return openat2(top, path.strip("/") or ".", _DIRECTORY, _RULES)
    finally:
        posix.close(top)


def enter(above: int, name: str) -> int:
    """A descriptor of a child group: no link, no other mount. Raises KernelError."""
    return openat2(above, name, _DIRECTORY, _RULES)


def tree(fd: int) -> Iterator[int]:
    """The group and all groups below it, each open until the next one is asked for."""
    yield fd
    for name in children(fd):
        try:
            below = enter(fd, name)
        except OSError:
            continue
        try:
            yield from tree(below)
        finally:
            posix.close(below)


def children(fd: int) -> list[str]:
    """The names of the groups right below; none where the group is gone."""
    try:
        with posix.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def members(fd: int) -> list[int]:
    """The processes of this group itself."""
    for file in ("cgroup.procs", "cgroup.threads"):  # a threaded group has no list of processes
        try:
            return [int(line) for line in read(fd, file, 1 << 24).split()]
        except OSError:
            continue
    return []


def write(fd: int, file: str, value: str) -> None:
    """Put a value into a file of the group, all at once as cgroupfs wants it. Raises OSError."""
    into = posix.open(file, posix.O_WRONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=fd)
    try:
        posix.write(into, value.encode())
    finally:
        posix.close(into)


def read(fd: int, file: str, limit: int = 4096) -> str:
    """Read a file of the group. Raises OSError."""
    out = posix.open(file, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=fd)
    try:
        text = b""
        while len(text) < limit and (part := posix.read(out, min(limit, 1 << 16))):
            text += part
        return text.decode()
    finally:
        posix.close(out)


def mark(fd: int) -> None:
    """Mark a group as made by knarr, where the kernel lets us."""
    for name in _MARKS:
        try:
            posix.setxattr(fd, name, b"1")
            return
        except OSError:  # no privilege, or a kernel that keeps no such attributes on cgroups
            continue


def marked(fd: int) -> bool:
    """Whether knarr made this group."""
    for name in _MARKS:
        try:
            posix.getxattr(fd, name)
            return True
        except OSError:
            continue
    return False


def rmdir(above: int, name: str, shown: str) -> bool:
    """Remove an empty group, which may be gone; False for one that is not empty."""
    try:
        posix.rmdir(name, dir_fd=above)
    except OSError as error:
        if error.errno in (EBUSY, ENOTEMPTY):
            return False
        if error.errno not in (ENOENT, ENODEV):
            raise KernelError("rmdir", shown, error.errno or EINVAL) from None
    return True

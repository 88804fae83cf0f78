"""Metadata of files that layers share: which attributes a layer may carry, and copying a file up from below."""

from __future__ import annotations

import os
import stat
from errno import EACCES, ENODATA, ENOTSUP, EPERM

from knarr.kernel.path import BENEATH, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.layer.view import Found

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


def allowed_xattrs(fd: int) -> dict[str, bytes]:
    """The extended attributes of an open file that a layer may carry."""
    found = {}
    for name in os.listxattr(fd):
        if is_allowed(name):
            found[name] = os.getxattr(fd, name)
    return found


def is_allowed(name: str) -> bool:
    """Whether a layer may set this attribute: never overlayfs's own, nor a security module's labels."""
    if name.startswith("user."):
        return not name.startswith("user.overlay.")
    return name == "security.capability" or name in _ACLS


def copy_up(found: Found, dir_fd: int, name: bytes) -> None:
    """Copy a file that is not a directory, with its metadata, under ``name`` into another directory."""
    facts = found.facts
    times = (facts.st_atime_ns, facts.st_mtime_ns)
    mode = stat.S_IMODE(facts.st_mode)
    if stat.S_ISREG(facts.st_mode):
        source = openat2(found.dir_fd, found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, BENEATH)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
            try:
                left = facts.st_size
                while left and (sent := os.sendfile(fd, source, facts.st_size - left, min(left, 1 << 30))):
                    left -= sent
                os.fchown(fd, facts.st_uid, facts.st_gid)
                os.fchmod(fd, mode)
                for key, value in allowed_xattrs(source).items():
                    os.setxattr(fd, key, value)
                os.utime(fd, ns=times)
            finally:
                os.close(fd)
        finally:
            os.close(source)
        return
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(found.name, dir_fd=found.dir_fd), name, dir_fd=dir_fd)
    else:
        os.mknod(name, facts.st_mode, facts.st_rdev, dir_fd=dir_fd)
    os.chown(name, facts.st_uid, facts.st_gid, dir_fd=dir_fd, follow_symlinks=False)
    os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def has_default_acl(fd: int) -> bool:
    """Whether what is made in an open directory gets access rights from it."""
    try:
        return bool(os.getxattr(fd, "system.posix_acl_default"))
    except OSError as error:
        if error.errno in (ENODATA, ENOTSUP, EPERM, EACCES):
            return False
        raise

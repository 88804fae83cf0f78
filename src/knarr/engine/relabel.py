"""Give files new SELinux labels: a container's own, and volumes with ``:z`` or ``:Z``.

By descriptors only: no symbolic link is followed, no other mount entered (docs/security.md I1), so that whoever may
write in a volume cannot have anything outside of it relabelled (CVE-2021-43816).
"""

from __future__ import annotations

import os
import pwd
import stat
from errno import EINVAL, ENODATA, ENOENT, ENOTSUP, EXDEV

from knarr.base.errors import FileError, KernelError, SafetyViolation, UsageError
from knarr.kernel.path import BENEATH, RESOLVE_NO_XDEV, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "security.selinux"
"""The extended attribute with a label."""
_DEEPEST = 200  # directories held open at once
# Directories of the system, and files it lives by: with a container's label its own programs could not use them.
_GUARDED = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt"),
    *("/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"),
    *("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/pki", "/etc/ssh", "/etc/ssl", "/etc/selinux"),
    *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/local", "/usr/sbin", "/usr/share"),
    *("/run/lock", "/run/systemd", "/run/user", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool"),
    *("/var/tmp", "/dev/shm"),
)  # fmt: skip
_GUARDED_TREES = ("/boot/", "/dev/", "/proc/", "/sys/")


def relabel_volume(path: str, label: str, *, own: Iterable[str]) -> str:
    """Relabel what ``path`` names, with all that is below it; returns a note if its file system has no labels.

    ``own``: directories of knarr's, which are not to be relabelled, nor what holds them. Raises UsageError for these
    and for the system's directories, FileError, SafetyViolation.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("relabel", path, error.errno or EINVAL) from None
    try:
        if _is_guarded(fd, own):
            hint = "a directory of its own for the container, or --security-opt label=disable"
            raise UsageError(f"{path} belongs to the system and gets no container's SELinux label", hint=hint)
        labelled = _relabel(fd, path, label)
    finally:
        os.close(fd)
    return "" if labelled else f"volume {path}: its file system has no SELinux labels"


def relabel(path: str, label: str) -> None:
    """Relabel a tree of the container's own. Raises FileError, SafetyViolation."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("relabel", path, error.errno or EINVAL) from None
    try:
        _relabel(fd, path, label)
    finally:
        os.close(fd)


def label_of(path: str) -> str:
    """The label of what a path names; "" if it has none."""
    try:
        return os.getxattr(path, NAME).rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def _is_guarded(fd: int, own: Iterable[str]) -> bool:
    """By what it is, so that no other name of it, nor a bind mount of it, is a way around."""
    facts = os.fstat(fd)
    path = os.readlink(f"/proc/self/fd/{fd}")
    if path.startswith(_GUARDED_TREES):
        return True
    if any(f"{os.path.realpath(one)}/".startswith(f"{path.rstrip('/')}/") for one in own):
        return True
    for guarded in (*_GUARDED, *_homes()):
        try:
            one = os.stat(guarded)
        except OSError:
            continue
        if (one.st_dev, one.st_ino) == (facts.st_dev, facts.st_ino):
            return True
    return False


def _homes() -> list[str]:
    """The home directories of whoever calls."""
    found = [os.environ.get("HOME", "")]
    for text in (str(os.getuid()), os.environ.get("SUDO_UID", "")):
        try:
            found.append(pwd.getpwuid(int(text)).pw_dir)
        except (KeyError, ValueError, OverflowError):
            pass
    return [home for home in found if home]


def _relabel(top: int, path: str, label: str) -> bool:
    """Label what the descriptor shows, the top last; whether the file system has labels at all."""
    value = label.encode()
    try:
        if stat.S_ISDIR(os.fstat(top).st_mode):
            _label_below(openat2(top, ".", os.O_RDONLY | os.O_DIRECTORY, BENEATH), value)
        _set_label(top, value)
    except OSError as error:
        if error.errno == ENOTSUP:
            return False
        raise FileError("relabel", path, error.errno or EINVAL) from None
    return True


def _label_below(fd: int, value: bytes) -> None:
    """Label all that is below a directory, whose descriptor is closed; raises OSError."""
    stack = [(fd, os.listdir(fd))]
    try:
        while stack:
            fd, left = stack[-1]
            if not left:
                _set_label(fd, value)
                stack.pop()
                os.close(fd)
                continue
            deeper = _label_entry(fd, left.pop(), value)
            if deeper < 0:
                continue
            stack.append((deeper, os.listdir(deeper)))
            if len(stack) > _DEEPEST:
                raise SafetyViolation("relabelling", os.readlink(f"/proc/self/fd/{deeper}"), "it lies too deep")
    finally:
        for fd, _ in stack:
            os.close(fd)


def _label_entry(fd: int, name: str, value: bytes) -> int:
    """Label one entry of a directory; a directory is opened instead, to be done when all below it is. -1: done.

    What vanished meanwhile is passed over, and so is another mount.
    """
    try:
        found = openat2(fd, name, os.O_PATH | os.O_NOFOLLOW, BENEATH | RESOLVE_NO_XDEV)
    except KernelError as error:
        if error.errno in (ENOENT, EXDEV):
            return -1
        raise
    try:
        if stat.S_ISDIR(os.fstat(found).st_mode):
            return openat2(found, ".", os.O_RDONLY | os.O_DIRECTORY, BENEATH)
        _set_label(found, value)
    finally:
        os.close(found)
    return -1


def _set_label(fd: int, value: bytes) -> None:
    """Label the very thing that a descriptor shows, be it a link; what has the label already is left alone."""
    path = f"/proc/self/fd/{fd}"
    try:
        if os.getxattr(path, NAME).rstrip(b"\0") == value:
            return
    except OSError as error:
        if error.errno != ENODATA:
            raise
    os.setxattr(path, NAME, value)

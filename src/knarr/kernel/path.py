"""Paths below a directory by descriptor: resolved once inside the root, made, removed (hot). openat2(2).

A path that comes from an image, a config or a container is never joined to a string and handed to the
kernel: it is resolved here, against the descriptor of its root, and only the descriptor that comes back
is used (docs/security.md I1, I22). There is no fallback for kernels without openat2 (before 5.6): what an
O_PATH walk in user space cannot promise is refused instead.
"""

from __future__ import annotations

import posix
import stat
from errno import E2BIG, EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOSYS, ENOTDIR, ENOTEMPTY, EXDEV
from sys import byteorder

from knarr.base.errors import KernelError, SafetyViolation, Unsupported
from knarr.base.paths import fsdecode, fsencode
from knarr.kernel.ffi import syscall

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
"""Symbolic links and ``..`` count from the root descriptor, as chroot(2) would have it, and cannot leave it."""
BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
"""No symbolic link at all, no ``..`` above the descriptor, no absolute path."""

# A rename or mount anywhere on the machine during a scoped walk makes the kernel answer EAGAIN.
_TRIES = 1024
_DEEPEST = 200  # directories held open at once while a tree is removed

_hows: dict[tuple[int, int, int], bytes] = {}


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` relative to ``dir_fd`` under the RESOLVE_ rules; the descriptor is close-on-exec.

    ``flags`` are open(2)'s, ``mode`` counts only with O_CREAT (and is subject to the umask). EAGAIN is tried
    again. Raises KernelError, or Unsupported where the kernel has no openat2 or not these rules.
    """
    raw = fsencode(path)
    if b"\0" in raw:
        raise KernelError("openat2", printable(raw), EINVAL, hint="the path holds a NUL")
    key = (flags | posix.O_CLOEXEC, mode, resolve)
    how = _hows.get(key)
    if how is None:
        how = _hows[key] = b"".join([number.to_bytes(8, byteorder) for number in key])
    tries = 0
    while True:
        try:
            return syscall("openat2", dir_fd, raw or b".", how, 24)
        except KernelError as error:
            if error.errno == EAGAIN and tries < _TRIES:
                tries += 1
                continue
            if error.errno in (ENOSYS, E2BIG):
                raise Unsupported(
                    "opening files safely inside an image",
                    f"openat2 answers {posix.strerror(error.errno).lower()}",
                    hint="Linux 5.12 or newer is needed, and no seccomp filter that hides openat2",
                ) from None
            error.operand = printable(raw)
            raise


def printable(path: str | bytes) -> str:
    """Return a path as it may be shown on a terminal: control and undecodable bytes escaped."""
    text = fsdecode(path)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def open_in_root(root_fd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open ``path`` as if ``root_fd`` were ``/``: symbolic links resolve inside it. Raises KernelError."""
    return openat2(root_fd, path, flags, IN_ROOT, mode)


def resolve(root_fd: int, path: str | bytes, *, follow: bool = True) -> int:
    """Return an O_PATH descriptor of what ``path`` names inside ``root_fd``; the last link too, if ``follow``.

    Works for any type of file, without opening it. Raises KernelError.
    """
    return openat2(root_fd, path, posix.O_PATH | (0 if follow else posix.O_NOFOLLOW), IN_ROOT)


def mkdir_all(root_fd: int, path: str | bytes, mode: int = 0o755) -> int:
    """Make ``path`` and its missing parents inside ``root_fd``; return an O_PATH descriptor of it.

    Existing symbolic links are followed inside the root. What is missing is made link by link from the deepest
    directory there is; ``..`` in that part is refused (SafetyViolation), a dangling link is ENOTDIR or ENOENT.
    Raises KernelError.
    """
    raw = fsencode(path)
    directory = posix.O_PATH | posix.O_DIRECTORY
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    made = len(parts)
    while True:  # the deepest prefix that is there
        try:
            fd = openat2(root_fd, b"/".join(parts[:made]) or b".", directory, IN_ROOT)
            break
        except KernelError as error:
            if error.errno != ENOENT or not made:
                raise
            made -= 1
    try:
        for part in parts[made:]:
            if part == b"..":
                raise SafetyViolation("making directory", printable(raw), "it goes up from one that does not exist")
            try:
                posix.mkdir(part, mode, dir_fd=fd)
            except FileExistsError:
                pass  # somebody was faster, or it is a dangling link: the next step tells
            deeper = openat2(fd, part, directory | posix.O_NOFOLLOW, BENEATH)
            posix.close(fd)
            fd = deeper
    except OSError as error:
        posix.close(fd)
        if isinstance(error, KernelError):
            raise
        raise KernelError("mkdir", printable(raw), error.errno or EINVAL) from None
    except SafetyViolation:
        posix.close(fd)
        raise
    return fd


def remove_tree(dir_fd: int, name: str | bytes) -> None:
    """Remove ``name`` in ``dir_fd``, whatever it is, with all that is below it; fine if it is not there.

    By descriptor only: no symbolic link is followed and no mount is crossed (SafetyViolation names it; also a
    bind mount of the same file system). Any depth needs few descriptors. Raises KernelError.
    """
    raw = fsencode(name)
    if raw in (b"", b".", b"..") or b"/" in raw:
        raise SafetyViolation("removing", printable(raw), "it must be a plain name")
    try:
        if not _unlink(dir_fd, raw):
            empty_directory(dir_fd, raw)
            posix.rmdir(raw, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _told(error, raw) from None


def empty_directory(dir_fd: int, name: str | bytes) -> None:
    """Remove all that is below directory ``name`` of ``dir_fd``, but not the directory. See remove_tree."""
    raw = fsencode(name)
    top = _enter(dir_fd, raw)
    try:
        moved = 0
        # (descriptor, name in its parent, names still to do)
        stack: list[tuple[int, bytes, list[bytes]]] = [(top, raw, _names(top))]
        try:
            while stack:
                fd, own, left = stack[-1]
                if not left:
                    stack.pop()
                    if stack:
                        posix.close(fd)
                        posix.rmdir(own, dir_fd=stack[-1][0])
                    continue
                child = left.pop()
                if _unlink(fd, child):
                    continue
                if len(stack) >= _DEEPEST:
                    # Hang the deep directory on the top one, to be done later: descriptors stay few.
                    moved += 1
                    fresh = b".knarr-removed-%d-%d" % (posix.getpid(), moved)
                    posix.rename(child, fresh, src_dir_fd=fd, dst_dir_fd=top)
                    stack[0][2].append(fresh)
                    continue
                deeper = _enter(fd, child)
                stack.append((deeper, child, []))  # first, so that it is closed whatever listing it says
                stack[-1][2].extend(_names(deeper))
        finally:
            for fd, _own, _left in stack[1:]:
                posix.close(fd)
    except OSError as error:
        raise _told(error, raw) from None
    finally:
        posix.close(top)


def _unlink(dir_fd: int, name: bytes) -> bool:
    """Unlink anything but a directory; False when it is one."""
    try:
        posix.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    except PermissionError:  # POSIX says EPERM for a directory, and some file systems do
        if not stat.S_ISDIR(posix.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise
        return False
    except FileNotFoundError:
        return True
    return True


def _enter(dir_fd: int, name: bytes) -> int:
    """Open a directory to empty it: not a link, not another mount; made accessible if it is ours and closed."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW
    rules = BENEATH | RESOLVE_NO_XDEV
    try:
        fd = openat2(dir_fd, name, flags, rules)
        if posix.geteuid() and posix.fstat(fd).st_mode & 0o300 != 0o300:
            posix.fchmod(fd, 0o700)
        return fd
    except KernelError as error:
        if error.errno != EACCES or not posix.geteuid():
            raise
    # Mode 0000 and the like, made by an image; chmod has no way to take an O_PATH descriptor, and the name was
    # not a link a moment ago. Only the owner reaches this place, and chmod gives the owner nothing he has not.
    if stat.S_ISDIR(posix.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        posix.chmod(name, 0o700, dir_fd=dir_fd)
    return openat2(dir_fd, name, flags, rules)


def _names(fd: int) -> list[bytes]:
    return [fsencode(name) for name in posix.listdir(fd)]


def _told(error: OSError, top: bytes) -> SafetyViolation | KernelError:
    """The error that says what went wrong while ``top`` was being removed."""
    number = error.errno or EINVAL
    if number in (EXDEV, EBUSY):
        what = error.operand if isinstance(error, KernelError) else printable(error.filename or top)
        return SafetyViolation("removing", printable(top), f"a file system is mounted at or below {what}")
    if isinstance(error, KernelError):
        return error
    if number in (ENOTEMPTY, EEXIST, ENOTDIR):
        return SafetyViolation("removing", printable(top), "somebody else changes it at the same time")
    return KernelError("remove", printable(top), number)

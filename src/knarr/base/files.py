"""Whole files read and replaced, and locks, by descriptor and close-on-exec (hot).

For knarr's own files and the operator's: paths inside a container's root go through ``kernel.path``.
Python retries interrupted calls itself (PEP 475).
"""

from __future__ import annotations

import fcntl
import posix
import stat
from errno import EACCES, EAGAIN, EFBIG, EINVAL, EISDIR, ENOENT, EPERM, EROFS

from knarr.base.errors import FileError, InUse
from knarr.base.paths import dirname

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

TEMPORARY = ".knarr-"
"""How names of files that are not finished start; one that stays was left by a process that was killed."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def read_file(path: str, limit: int, dir_fd: int | None = None) -> bytes:
    """Return the whole of a regular file of at most ``limit`` bytes; ``path`` is relative to ``dir_fd`` if given.

    Never blocks on a FIFO and never reads a device. Symbolic links are followed. Raises FileError.
    """
    try:
        # O_NONBLOCK: a FIFO named config.json must not hang us (runc 1.1 does hang).
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY, dir_fd=dir_fd)
    except OSError as error:
        raise FileError("read", path, error.errno or EINVAL) from None
    except ValueError:  # a NUL in the path
        raise FileError("read", path, EINVAL, hint="the path holds a NUL") from None
    try:
        facts = posix.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            if stat.S_ISDIR(facts.st_mode):
                raise FileError("read", path, EISDIR)
            kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
            raise FileError("read", path, EINVAL, hint=f"it is {kind}, not a regular file")
        if facts.st_size > limit:
            raise FileError("read", path, EFBIG, hint=f"it has {facts.st_size} bytes, at most {limit} are read")
        parts: list[bytes] = []
        left = limit + 1
        ask = facts.st_size + 1  # one more than there should be, so the usual file needs one read and a check
        while left:
            part = posix.read(fd, min(left, max(ask, 4096)))
            if not part:
                break
            parts.append(part)
            left -= len(part)
            ask -= len(part)
        if not left:  # it grew, or is a file of /proc, whose st_size is 0
            raise FileError("read", path, EFBIG, hint=f"it has more than the {limit} bytes that are read")
        return b"".join(parts)
    except OSError as error:
        raise FileError("read", path, error.errno or EINVAL) from None
    finally:
        posix.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to ``fd``; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]


def write_atomic(path: str, data: bytes, *, mode: int = 0o600, dir_fd: int | None = None, sync: bool = False) -> None:
    """Put ``data`` at ``path`` in one step: a reader sees the old file or the new one, never a part.

    The file gets exactly ``mode``, whatever the umask. With ``sync`` it and its directory are on disk when the
    call returns (needed for what must outlive a crash of the machine; state below /run needs none). A symbolic
    link at ``path`` is replaced, not followed. Leaves nothing behind on failure. Raises FileError.
    """
    if "\0" in path:
        raise FileError("write", path, EINVAL, hint="the path holds a NUL")
    folder = dirname(path)
    temporary = f"{folder}{'/' if folder else ''}{TEMPORARY}{posix.urandom(8).hex()}"
    try:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
        fd = posix.open(temporary, flags, 0o600, dir_fd=dir_fd)
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None
    made = False
    try:
        write_all(fd, data)
        posix.fchmod(fd, mode)
        if sync:
            posix.fsync(fd)
        posix.rename(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        made = True
        if sync:
            sync_directory(folder or ".", dir_fd)
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None
    finally:
        posix.close(fd)
        if not made:
            try:
                posix.unlink(temporary, dir_fd=dir_fd)
            except OSError:
                pass  # the first error is the one worth telling


def stage(data: bytes, *, dir_fd: int) -> str:
    """Write ``data`` to a new file (0600) in a directory, to be put in its place by a rename; its name. FileError."""
    name = f"{TEMPORARY}{posix.urandom(8).hex()}"
    try:
        fd = posix.open(
            name,
            posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC,
            0o600,
            dir_fd=dir_fd,
        )
        try:
            posix.fchmod(fd, 0o600)
            write_all(fd, data)
        except OSError:
            posix.unlink(name, dir_fd=dir_fd)
            raise
        finally:
            posix.close(fd)
    except OSError as error:
        raise FileError("write", name, error.errno or EINVAL) from None
    return name


def sync_directory(path: str, dir_fd: int | None = None) -> None:
    """Put the entries of a directory on disk; raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        posix.fsync(fd)
    finally:
        posix.close(fd)


class Lock:
    """An advisory lock (flock(2)) on a file, made if missing, or on an existing directory; a context manager.

    ``shared`` allows other shared holders. With ``wait`` False a lock that others hold raises InUse at once.
    It ends with ``release``, the ``with`` block or the process. Not for sharing one object between threads:
    two objects on one path exclude each other, also within one process.
    """

    __slots__ = ("dir_fd", "fd", "path", "shared", "wait")

    def __init__(self, path: str, *, shared: bool = False, dir_fd: int | None = None, wait: bool = True) -> None:
        self.path = path
        self.shared = shared
        self.dir_fd = dir_fd
        self.wait = wait
        self.fd = -1

    def acquire(self) -> None:
        """Take the lock; raises InUse, or FileError when the file cannot be opened or made."""
        if self.fd >= 0:
            raise InUse("lock", self.path, "this process already")
        operation = (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | (0 if self.wait else fcntl.LOCK_NB)
        try:
            while True:
                fd = self._open()
                try:
                    fcntl.flock(fd, operation)
                    if self._current(fd):
                        self.fd, fd = fd, -1
                        return
                finally:
                    if fd >= 0:
                        posix.close(fd)
        except OSError as error:
            if error.errno == EAGAIN:
                raise InUse("lock", self.path, "another process") from None
            raise FileError("lock", self.path, error.errno or EINVAL) from None
        except ValueError:
            raise FileError("lock", self.path, EINVAL, hint="the path holds a NUL") from None

    def _open(self) -> int:
        common = posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NOCTTY | posix.O_NONBLOCK
        try:
            return posix.open(self.path, posix.O_RDWR | posix.O_CREAT | common, 0o600, dir_fd=self.dir_fd)
        except OSError as error:
            # A directory, or a place we may only read: flock needs no right to write (NFS apart).
            if error.errno not in (EISDIR, EROFS, EACCES, EPERM):
                raise
        return posix.open(self.path, posix.O_RDONLY | common, dir_fd=self.dir_fd)

    def _current(self, fd: int) -> bool:
        """Whether the locked file is still the one at the path: the holder before us may have removed it."""
        ours = posix.fstat(fd)
        try:
            there = posix.stat(self.path, dir_fd=self.dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def release(self) -> None:
        """Let the lock go; does nothing when it is not held."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            posix.close(fd)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

"""What is in memory goes to the disk: syncfs(2), and sync_file_range(2) to have it begin early."""

from __future__ import annotations

import os
from errno import EINVAL

from knarr.base.errors import FileError, KernelError
from knarr.kernel.ffi import syscall

_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_STEP = 8 << 20


class Writeback:
    """Has what is written to ``fd`` go to the disk while more comes, so that a sync at the end has little to wait for.

    ``start`` is where writing begins. It promises nothing: what must be on disk is synced all the same.
    """

    def __init__(self, fd: int, start: int = 0) -> None:
        self._fd = fd
        self._begin = self._end = start

    def wrote(self, count: int) -> None:
        """So many bytes were written behind those before."""
        self._end += count
        if self._end - self._begin >= _STEP:
            try:
                syscall("sync_file_range", self._fd, self._begin, self._end - self._begin, _WRITE)
            except KernelError:
                pass  # a file system without; seccomp
            self._begin = self._end


def sync_file_system(path: str) -> None:
    """Write everything of the file system that holds directory ``path`` to its disk. Raises FileError.

    Since Linux 5.8 it says so when some of it could not be written.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("sync", path, error.errno or EINVAL) from None
    try:
        syscall("syncfs", fd)
    except KernelError as error:
        raise FileError("sync", path, error.errno or EINVAL) from None
    finally:
        os.close(fd)

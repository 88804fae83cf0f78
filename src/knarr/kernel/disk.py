"""What is in memory goes to the disk: syncfs(2)."""

from __future__ import annotations

import os
from errno import EINVAL

from knarr.base.errors import FileError, KernelError
from knarr.kernel.ffi import syscall


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

"""fs-verity: files that the kernel checks at every read, and nobody can write again (ext4, f2fs, btrfs).

Documentation/filesystems/fsverity.rst. The kernel makes a Merkle tree of the file's blocks and keeps it beside them; a
block that is read from the disk later and does not fit is EIO, never wrong bytes.
"""

from __future__ import annotations

import os
from errno import EACCES, EEXIST, EINVAL, ENOTTY, EOPNOTSUPP, EPERM, ETXTBSY
from fcntl import ioctl
from struct import pack, unpack_from

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY, of struct fsverity_enable_arg
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY, of struct fsverity_digest and the digest behind it
_SHA256 = 1
_BLOCK = 4096  # what every kernel with pages of this size takes; with larger pages it takes Linux 6.3
# No such ioctl; no such feature of this file system or file; a block size it does not know; not ours; somebody writes.
_CANNOT = (ENOTTY, EOPNOTSUPP, EINVAL, EPERM, EACCES, ETXTBSY)


def seal(fd: int) -> bool:
    """Seal the file open for reading at ``fd``; False where that cannot be. Nobody may have it open for writing.

    It reads the file whole. Raises OSError: no room for the tree (1/127 of the file), the disk fails.
    """
    argument = pack("=IIIIQIIQ88x", 1, _SHA256, _BLOCK, 0, 0, 0, 0, 0)
    try:
        ioctl(fd, _ENABLE, argument)
    except OSError as error:
        if error.errno == EEXIST:
            return True
        if error.errno in _CANNOT:
            return False
        raise
    return True


def sealed(fd: int) -> str:
    """The fs-verity digest of an open file, ``sha256:…`` (a tree's, not that of its bytes); "" if it is not sealed."""
    try:
        answer = ioctl(fd, _MEASURE, pack("=HH64x", _SHA256, 64))
    except OSError:
        return ""
    algorithm, size = unpack_from("=HH", answer)
    return f"sha256:{answer[4 : 4 + size].hex()}" if algorithm == _SHA256 else ""


def seal_file(path: str) -> bool:
    """``seal`` for one of our own files by its path; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return seal(fd)
    finally:
        os.close(fd)

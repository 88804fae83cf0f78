"""The disk image of config.json's ``vm.image``: which file system it holds, without trusting it (cold).

Raw and QCOW2 (docs/interop/qcow2.txt of QEMU) only, each read by its own rules and never guessed: a raw image whose
first bytes are a QCOW2 header stays raw. An image that names another file (a backing file, a data file) is refused:
QEMU could not open it either, behind its wall.
"""

from __future__ import annotations

import os
import stat
from struct import unpack_from

from knarr.base.errors import FileError, Unsupported
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

_PATH = "/vm/image/path"
# offset, magic, type for mount(2)
_MAGIC = (
    (0, b"hsqs", "squashfs"),
    (0, b"XFSB", "xfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x438, b"\x53\xef", "ext4"),  # and ext2 and ext3, whose driver it is
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
)
_NEVER_WRITTEN = ("squashfs", "erofs")
_CORRUPT, _DATA_FILE, _LONG_ENTRIES = 2, 4, 16  # of qcow2's incompatible features
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_LARGEST_TABLE = 1 << 20


class DiskImage(Record):
    """An image that can be a container's root."""

    path: str
    format: str
    fstype: str
    writable: bool

    def facts(self) -> dict[str, str | bool]:
        """The same as JSON has it."""
        return {"path": self.path, "format": self.format, "fstype": self.fstype, "writable": self.writable}


def look(path: str, format: str, *, writable: bool) -> DiskImage:
    """The image at ``path`` and the type of its file system. Raises Unsupported with the field, FileError."""
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open", path, error.errno or 0) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unsupported("vm.image", f"{path} is no file", pointer=_PATH)
        fstype = _fstype(_qcow2(fd, path) if format == "qcow2" else lambda at, count: os.pread(fd, count, at), path)
    except OSError as error:
        raise FileError("read", path, error.errno or 0) from None
    finally:
        os.close(fd)
    if writable and fstype in _NEVER_WRITTEN:
        why = f"{path} holds {fstype}, which is not written to"
        raise Unsupported("a root that can be written", why, pointer="/root/readonly", hint="root.readonly: true")
    return DiskImage(path, format, fstype, writable)


def _fstype(read: Read, path: str) -> str:
    for at, magic, name in _MAGIC:
        if read(at, len(magic)) == magic:
            return name
    why = f"{path} begins with no file system that is known"
    if read(510, 2) == b"\x55\xaa":
        why = f"{path} has partitions; it must hold the file system itself"
    hint = f"known are {', '.join(sorted({name for _, _, name in _MAGIC}))}"
    raise Unsupported("vm.image", why, pointer=_PATH, hint=hint)


def _qcow2(fd: int, path: str) -> Read:
    """How to read what a QCOW2 image holds. Raises Unsupported."""
    head = os.pread(fd, 104, 0).ljust(104, b"\0")
    magic, version, backing, _, bits, size, encrypted, entries, table = unpack_from(">4sIQIIQIIQ", head)
    if magic != b"QFI\xfb" or version not in (2, 3) or not 9 <= bits <= 21:
        raise Unsupported("vm.image", f"{path} is no QCOW2 image", pointer="/vm/image/format")
    features = unpack_from(">Q", head, 72)[0] if version == 3 else 0
    why = ""
    if backing or features & _DATA_FILE:
        why = "it needs another file beside itself, which nobody shows to the guest (qemu-img convert makes it one)"
    elif encrypted:
        why = "it is encrypted"
    elif features & _CORRUPT:
        why = "it is marked as damaged"
    elif features & _LONG_ENTRIES or entries * 8 > _LARGEST_TABLE * 32:
        why = "it is of a kind that is not known"
    if why:
        raise Unsupported("vm.image", f"{path}: {why}", pointer=_PATH)
    cluster = 1 << bits
    per_table = cluster // 8

    def entry(place: int, number: int) -> int:
        data = os.pread(fd, 8, place + 8 * number) if place <= _OFFSET else b""
        return int.from_bytes(data, "big") if len(data) == 8 else 0

    def read(at: int, count: int) -> bytes:
        """Not across the end of a cluster, which no magic number crosses."""
        number, within = divmod(at, cluster)
        first, second = divmod(number, per_table)
        if at + count > size or first >= entries:
            return b""
        place = entry(table, first) & _OFFSET
        found = entry(place, second) if place else 0
        if found & _COMPRESSED:
            return _unpacked(fd, found, bits)[within : within + count]
        if found & 1 or not found & _OFFSET:
            return bytes(count)
        return os.pread(fd, count, (found & _OFFSET) + within)

    return read


def _unpacked(fd: int, entry: int, bits: int) -> bytes:
    """A compressed cluster; nothing when it is not deflate's."""
    import zlib

    shift = 62 - (bits - 8)
    place, sectors = entry & ((1 << shift) - 1), (entry & (_COMPRESSED - 1)) >> shift
    data = os.pread(fd, (sectors + 1) * 512 - (place & 511), place)
    try:
        return zlib.decompressobj(-15).decompress(data, 1 << bits)
    except zlib.error:
        return b""

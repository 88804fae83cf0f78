"""How the roots of containers are made from the layers of images: mounted, overlaid or copied.

    erofs      layers stay tars, an index of them is mounted (layer/erofs.py): root, Linux 6.12, nothing is extracted
    erofs-loop the same by loop devices, where the kernel does not mount from files: Linux 6.4
    overlay    each layer is unpacked once (layer/snapshot.py): also for ordinary users
    copy       each container gets a copy: where overlayfs cannot be used

What is seen inside is the same. An image that is unpacked already stays so.
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError, UsageError
from knarr.base.files import read_file
from knarr.engine import host, hostroot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.engine.paths import Places

DRIVERS = ("erofs", "erofs-loop", "overlay", "copy")
MOUNTED = ("erofs", "erofs-loop")
"""Those that leave layers the tars they are."""
# File systems that overlayfs does not take as its writable layer.
_NO_UPPER = frozenset(("overlay", "nfs", "nfs4", "ecryptfs", "vfat", "exfat", "ntfs", "ntfs3", "fuseblk", "cifs", "9p"))
# Those in whose files the kernel mounts EROFS: it wants to read them by pages, which tmpfs and overlayfs do not offer.
_FILES_MOUNTABLE = frozenset(("ext4", "xfs", "btrfs", "f2fs"))
# fsconfig(2) takes no text above 255 bytes, and below the directory of tars a path has at most 141 more.
_LONGEST = 255 - 141
_kept: dict[str, str] = {}


def driver(where: Places) -> str:
    """How roots are made from layers in this store, one of ``DRIVERS``. KNARR_DRIVER decides, if it is set.

    Raises UsageError for a driver that does not exist, or cannot be used by an ordinary user.
    """
    asked = os.environ.get("KNARR_DRIVER", "")
    if asked not in ("", *DRIVERS):
        raise UsageError(f"KNARR_DRIVER {asked!r} is not known", hint=f"there are {', '.join(DRIVERS)}")
    if asked in MOUNTED and host.rootless():
        raise UsageError(f"KNARR_DRIVER {asked} is for root", hint="the kernel lets nobody else mount an image")
    if asked:
        return asked
    if where.store not in _kept:
        kind = hostroot.file_system(existing(where.store))
        usable = host.overlay() and kind not in _NO_UPPER
        if host.rootless() and host.kernel() < (5, 11):
            usable = False  # no overlayfs in user namespaces before
        mounted = _mounted(kind, where.tars) if usable and not host.rootless() else ""
        _kept[where.store] = mounted or ("overlay" if usable else "copy")
    return _kept[where.store]


def _mounted(kind: str, tars: str) -> str:
    """How root mounts images from tars in a file system of this kind; "" if the kernel cannot."""
    kernel = host.kernel()
    if kernel < (6, 4) or not _knows_erofs():
        return ""  # blocks of 512 bytes, as tars have them, came with 6.4
    if kernel >= (6, 12) and kind in _FILES_MOUNTABLE and len(os.fsencode(tars)) <= _LONGEST:
        return "erofs"
    return "erofs-loop" if _loops() else ""


def _loops() -> bool:
    """Whether there are loop devices, and new ones appear when they are asked for: not so in another's container."""
    return os.access("/dev/loop-control", os.R_OK | os.W_OK) and hostroot.file_system("/dev") == "devtmpfs"


def existing(path: str) -> str:
    """The path, or the nearest directory above it that is there."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _knows_erofs() -> bool:
    try:
        known = b"\terofs\n" in read_file("/proc/filesystems", 1 << 16)
    except FileError:
        return False
    return known or os.path.exists(f"/lib/modules/{os.uname().release}/kernel/fs/erofs")

"""An image mounted read-only at a directory, from its tars: nothing is extracted (layer/tarstore.py)."""

from __future__ import annotations

import os
from errno import EINVAL

from knarr.base.errors import FileError, InUse, Unsupported
from knarr.engine import images
from knarr.engine.driver import driver
from knarr.engine.paths import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.engine.images import Watcher
    from knarr.engine.paths import Places
    from knarr.layer.tarstore import Mountable

_TRIES = 3


def mount(where: Places, text: str, directory: str, *, platform: str = "", watcher: Watcher | None = None) -> str:
    """Mount an image of the store, or fetched into it, at an existing directory; return its manifest's digest.

    Read-only, nosuid, nodev, in this mount namespace, until umount(8). What is mounted stays readable when the image is
    removed meanwhile: the kernel holds the files. Raises NotFound, Unsupported where the kernel cannot, or the image
    has what no index can say, FileError, KernelError.
    """
    from knarr.layer.source import layers_of

    if driver(where) != "erofs":
        why = "the kernel mounts images from files for root alone, on Linux 6.12, out of ext4, xfs, btrfs or f2fs"
        raise Unsupported("mounting an image here", why, hint="knarr image unpack --bare writes its files")
    try:
        target = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("mount at", directory, error.errno or EINVAL) from None
    try:
        for _ in range(_TRIES):
            image = images.find(where, text, platform=platform, watcher=watcher)
            store, tars = open_store(where), images.tars(where)
            chain = tars.ensure(layers_of(store, image.manifest, image.image_config()))
            with tars.hold():  # until the kernel has opened them, nobody may remove them
                if tars.has(chain):
                    _attach(tars.get(chain), target)
                    return image.digest
    finally:
        os.close(target)
    raise InUse("image", text, "others, who remove its layers each time they are made")


def _attach(image: Mountable, target: int) -> None:
    from knarr.kernel import mount as kernel

    fd = kernel.fsopen("erofs")
    try:
        kernel.fsconfig(fd, kernel.FSCONFIG_SET_STRING, "source", image.index)
        for tar in image.tars:
            kernel.fsconfig(fd, kernel.FSCONFIG_SET_STRING, "device", tar)
        kernel.fsconfig(fd, kernel.FSCONFIG_CMD_CREATE)
        attributes = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
        made = kernel.fsmount(fd, attributes)
    finally:
        os.close(fd)
    try:
        flags = kernel.MOVE_MOUNT_F_EMPTY_PATH | kernel.MOVE_MOUNT_T_EMPTY_PATH
        kernel.move_mount(made, "", target, "", flags)
    finally:
        os.close(made)

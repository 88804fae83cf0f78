"""The kind ``kernel`` as kinds.py wants it: a guest under user-mode Linux (cold).

Whoever makes a container for which a guest waits loads this, and not what boots one (uml.py): 1 ms of code.
"""

from __future__ import annotations

import posix

from knarr.isolation import convert, frames
from knarr.isolation.kinds import Booting, Mounted, Settings, Share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.uml import Kernel

OVERHEAD = 64 << 20
"""Its kernel's own data, page tables and the pages of a root's overlay."""
BESIDE = 0


def find_guest(_config: dict[str, Any]) -> dict[str, Any]:
    """The user-mode Linux of this machine and its module for overlays. Raises Unsupported, FileError."""
    from os import environ

    from knarr.isolation import uml

    kernel = uml.find(environ)
    return {
        "path": kernel.path,
        "release": kernel.release,
        "libraries": [list(each) for each in kernel.libraries],
        "modules": uml.modules(kernel, ["overlay"]),
        "folder": uml.module_folder(kernel),
    }


def _kernel(found: dict[str, Any]) -> Kernel:
    from knarr.isolation.uml import Kernel

    return Kernel(found["path"], found["release"], tuple((inside, file) for inside, file in found["libraries"]))


def described() -> str:
    """The program and its version. Raises Unsupported, FileError."""
    from os import environ

    from knarr.isolation import uml

    kernel = uml.find(environ)
    return f"user-mode Linux {kernel.release} ({kernel.path})"


def before() -> tuple[tuple[str, Mounted], ...]:
    """Nothing: its hostfs shows each share by itself."""
    return ()


def mounted(number: int) -> Mounted:
    """A directory below what its hostfs begins at."""
    return Mounted("none", "hostfs", f"/{number}")


def drivers(found: dict[str, Any]) -> tuple[Share, ...]:
    """The directory of its modules: IPv6 is one, of 2.7 MB, which its serial line would take 1.5 s for."""
    return (Share(found["folder"]),)


def network(found: dict[str, Any], share: int, *, ipv6: bool) -> tuple[str, bool, list[tuple[int, int, bytes]]]:
    """Its devices are vec0, vec1, … and built in. Raises Unsupported."""
    if not ipv6:
        return "vec", False, []
    from knarr.isolation.uml import modules

    place, how, top = convert.share_place(share), mounted(share), found["folder"]
    steps = [frames.mkdir(place), frames.mount(how.source, place, how.fstype, how.flags, how.data)]
    needed = [place + path.removeprefix(top) for path in modules(_kernel(found), ["ipv6"])]
    return "vec", True, steps + [(frames.MODULE, 0, frames.texts(path, "")) for path in needed]


def templated(_config: dict[str, Any]) -> bool:
    """Any may: nothing but memory and processors is decided at its boot."""
    return True


def show(begun: Booting, shares: tuple[Share, ...], of: int) -> None:
    """Mount the shares where its program sees them. Raises as ``uml.show``."""
    from knarr.isolation import uml

    uml.show(begun.pidfd, shares, of)


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises as ``uml.launch``."""
    from knarr.base.files import read_file, write_atomic
    from knarr.isolation import uml
    from knarr.isolation.initramfs import initramfs
    from knarr.isolation.nic import NICS
    from knarr.runtime.launch import init_path

    found = settings.found
    modules = [(path.rpartition("/")[2], read_file(path, 16 << 20)) for path in found["modules"]]
    write_atomic(settings.initramfs, initramfs(read_file(init_path(), 16 << 20), modules))
    place = f"{settings.initramfs}.ring"
    ring = _make_ring(place)
    try:
        launched = uml.launch(
            _kernel(found),
            initramfs=settings.initramfs,
            memory=settings.memory,
            shares=None if settings.shares is None else (*settings.shares, *settings.drivers),
            nics=NICS,
            filters=settings.filters,
            ring=place,
        )
    except BaseException:
        posix.close(ring)
        raise
    finally:
        posix.unlink(place)  # the guest has it, and nobody else needs to find it
    return Booting(
        launched.pid,
        launched.pidfd,
        launched.channel,
        launched.console,
        window=frames.RING_BYTES,
        ring=ring,
        nics=launched.nics,
    )


def _make_ring(path: str) -> int:
    from knarr.base.errors import FileError

    ring = -1
    try:
        ring = posix.open(
            path, posix.O_RDWR | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
        posix.posix_fallocate(ring, 0, frames.RING_BYTES)  # not to find out later that the disk is full
    except OSError as error:
        if ring >= 0:
            posix.close(ring)
            posix.unlink(path)
        raise FileError("make", path, error.errno or 0) from None
    return ring

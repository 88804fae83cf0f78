"""The kind ``kernel`` as kinds.py wants it: a guest under user-mode Linux (cold)."""

from __future__ import annotations

import os

from knarr.base.errors import FileError
from knarr.base.files import read_file, write_atomic
from knarr.isolation import convert, frames, guest, uml
from knarr.isolation.initramfs import initramfs
from knarr.isolation.kinds import Booting, Mounted, Settings, Share
from knarr.isolation.nic import NICS
from knarr.runtime.launch import init_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OVERHEAD = 64 << 20
"""Its kernel's own data, page tables and the pages of a root's overlay."""
BESIDE = 0


def find_guest(_config: dict[str, Any]) -> dict[str, Any]:
    """The user-mode Linux of this machine and its module for overlays. Raises Unsupported, FileError."""
    kernel = uml.find(os.environ)
    return {
        "path": kernel.path,
        "release": kernel.release,
        "libraries": [list(each) for each in kernel.libraries],
        "modules": uml.modules(kernel, ["overlay"]),
    }


def _kernel(found: dict[str, Any]) -> uml.Kernel:
    return uml.Kernel(found["path"], found["release"], tuple((inside, file) for inside, file in found["libraries"]))


def described() -> str:
    """The program and its version. Raises Unsupported, FileError."""
    kernel = uml.find(os.environ)
    return f"user-mode Linux {kernel.release} ({kernel.path})"


def before() -> tuple[tuple[str, Mounted], ...]:
    """Nothing: its hostfs shows each share by itself."""
    return ()


def mounted(number: int) -> Mounted:
    """A directory below what its hostfs begins at."""
    return Mounted(*uml.mount_of(number))


def drivers(found: dict[str, Any]) -> tuple[Share, ...]:
    """The directory of its modules: IPv6 is one, of 2.7 MB, which its serial line would take 1.5 s for."""
    return (Share(uml.module_folder(_kernel(found))),)


def network(found: dict[str, Any], share: int, *, ipv6: bool) -> tuple[str, bool, list[tuple[int, int, bytes]]]:
    """Its devices are vec0, vec1, … and built in. Raises Unsupported."""
    if not ipv6:
        return "vec", False, []
    kernel = _kernel(found)
    place, how, top = convert.share_place(share), mounted(share), uml.module_folder(kernel)
    steps = [guest.mkdir(place), guest.mount(how.source, place, how.fstype, how.flags, how.data)]
    needed = [place + path.removeprefix(top) for path in uml.modules(kernel, ["ipv6"])]
    return "vec", True, steps + [(frames.MODULE, 0, frames.texts(path, "")) for path in needed]


def templated(_config: dict[str, Any]) -> bool:
    """Any may: nothing but memory and processors is decided at its boot."""
    return True


def show(begun: Booting, shares: tuple[Share, ...], of: int) -> None:
    """Mount the shares where its program sees them. Raises as ``uml.show``."""
    uml.show(begun.pidfd, shares, of)


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises as ``uml.launch``."""
    found = settings.found
    modules = [(os.path.basename(path), read_file(path, 16 << 20)) for path in found["modules"]]
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
        os.close(ring)
        raise
    finally:
        os.unlink(place)  # the guest has it, and nobody else needs to find it
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
    try:
        ring = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.truncate(ring, frames.RING_BYTES)
    except OSError as error:
        raise FileError("make", path, error.errno or 0) from None
    return ring

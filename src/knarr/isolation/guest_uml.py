"""The kind ``kernel`` as kinds.py wants it: a guest under user-mode Linux (cold)."""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread

from knarr.base.errors import KnarrError
from knarr.base.files import read_file
from knarr.isolation import uml
from knarr.isolation.initramfs import initramfs
from knarr.isolation.kinds import Booting, Mounted, Settings
from knarr.runtime.launch import init_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OVERHEAD = 64 << 20
"""Its kernel's own data, page tables and the pages of a root's overlay."""
BESIDE = 0
_WINDOW = 3584
"""Less than the 4,096 bytes of a terminal's buffer: a line that had to be held up is not heard of again
(arch/um/drivers/line.c: line_throttle takes its descriptor off the list of those waited for; Linux 6.1)."""


def find_guest(_config: dict[str, Any]) -> dict[str, Any]:
    """The user-mode Linux of this machine and its module for overlays. Raises Unsupported, FileError."""
    kernel = uml.find(os.environ)
    return {
        "path": kernel.path,
        "release": kernel.release,
        "libraries": [list(each) for each in kernel.libraries],
        "modules": uml.modules(kernel.release, ["overlay"]),
    }


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


def boot(settings: Settings) -> Booting:
    """Begin a guest, or take one that waits. Raises as ``uml.launch``."""
    shares = None
    if settings.shares is not None:
        shares = tuple(uml.Share(each.source, each.writable) for each in settings.shares)
        taken = _taken(settings, shares) if settings.templates else None
        if taken is not None:
            return taken
    found = settings.found
    modules = [(os.path.basename(path), read_file(path, 16 << 20)) for path in found["modules"]]
    archive = initramfs(read_file(init_path(), 16 << 20), modules)
    with open(settings.initramfs, "wb", opener=_private) as file:
        file.write(archive)
    kernel = uml.Kernel(found["path"], found["release"], tuple((inside, file) for inside, file in found["libraries"]))
    launched = uml.launch(
        kernel,
        initramfs=settings.initramfs,
        memory=settings.memory,
        shares=shares,
        filters=settings.filters,
    )
    return Booting(launched.pid, launched.pidfd, launched.channel, launched.console, window=_WINDOW)


def _taken(settings: Settings, shares: tuple[uml.Share, ...]) -> Booting | None:
    """A guest that has booted already, brought into our cgroups and shown its shares; None when none waits."""
    from knarr.isolation import template

    taken = template.take(template.Shape(settings.kind, settings.memory, settings.cpus), settings.templates)
    if taken is None:
        return None
    from knarr.runtime import cgroup

    failed: list[KnarrError] = []
    moved = allocate_lock()

    def move() -> None:
        # On v1 each group waits for RCU, 7 to 13 ms: beside the rest, and over before anything foreign runs.
        try:
            for pid in (taken.pid, *_children(taken.pid)):
                cgroup.join_recorded(settings.groups, pid)
        except KnarrError as error:
            failed.append(error)
        finally:
            moved.release()

    def settled() -> None:
        moved.acquire()
        if failed:
            raise failed[0]

    moved.acquire()
    start_new_thread(move, ())
    uml.show(taken.pidfd, shares)
    taken.life.detach()  # open until this process ends, and then the keeper ends the guest
    return Booting(taken.pid, taken.pidfd, taken.channel, taken.console, window=_WINDOW, settled=settled)


def _children(pid: int) -> list[int]:
    """The processes of a guest that waits: all are its own children, and none comes or goes."""
    return [int(word) for word in read_file(f"/proc/{pid}/task/{pid}/children", 1 << 16).split()]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)

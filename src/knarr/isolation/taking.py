"""A guest that waited becomes a container's: it is brought into the container's cgroups (cold)."""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread
from errno import ESRCH

from knarr.base.errors import FileError, KnarrError
from knarr.base.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.isolation.kinds import Booting


def settle(guest: Booting, groups: dict[str, Any] | None) -> Callable[[], None]:
    """Begin to move this process and the guest's into cgroups; gives what blocks until that is done.

    Which raises KnarrError when it cannot be done.
    """
    from knarr.runtime import cgroup

    failed: list[KnarrError] = []
    moved = allocate_lock()

    def move() -> None:
        # On v1 each group waits for RCU, 7 to 13 ms: beside the rest, and over before anything foreign runs.
        try:
            for pid in (os.getpid(), guest.pid, *guest.helpers):
                cgroup.join_recorded(groups, pid)
            for pid in (guest.pid, *guest.helpers):  # what it has made since is there already
                for each in _children(pid):
                    _join(groups, each)
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
    return settled


def _join(groups: dict[str, Any] | None, pid: int) -> None:
    from knarr.runtime import cgroup

    try:
        cgroup.join_recorded(groups, pid)
    except KnarrError as error:
        if getattr(error, "number", 0) != ESRCH:  # it has ended meanwhile
            raise


def _children(pid: int) -> list[int]:
    """The processes of a guest: all are its own children."""
    return [int(word) for word in read_file(f"/proc/{pid}/task/{pid}/children", 1 << 16).split()]


def opened(root: str, of: int = -1) -> int:
    """A descriptor of a container's root; ``of``: a pidfd of the process in whose mounts it is seen.

    Raises FileError.
    """
    if of >= 0:
        with open(f"/proc/self/fdinfo/{of}", encoding="ascii") as file:
            (pid,) = [line.split()[1] for line in file if line.startswith("Pid:")]
        root = f"/proc/{pid}/root{root}"
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open", root, error.errno or 0) from None

"""What the freezer says of a container, without the rest of the cgroup code: state, list and start ask only this (hot).

By plain paths: they lead through directories of cgroupfs, where there are no links but those of the mount points.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def frozen(recorded: dict[str, Any]) -> bool:
    """Whether the freezer holds the container whose groups are recorded so (runtime/cgroup.py, ``Intent``)."""
    groups = recorded["groups"]
    by_name = [group for group in groups if "freezer" in group[0]]  # v1: asked first, so mostly it alone
    for mountpoint, path, *_ in (*by_name, *groups):
        state = state_of(f"{mountpoint}{path}/")
        if state:
            return state == "frozen"
    return False


def state_of(folder: str = "", dir_fd: int | None = None) -> str:
    """frozen, freezing or thawed; nothing where this hierarchy has no freezer, or the group is gone.

    ``folder`` ends with a slash, or it is empty and the group is ``dir_fd``.
    """
    try:
        return _read(f"{folder}freezer.state", dir_fd).strip().lower()
    except OSError:
        pass
    try:
        if "frozen 1" in _read(f"{folder}cgroup.events", dir_fd):
            return "frozen"
        return "freezing" if _read(f"{folder}cgroup.freeze", dir_fd).strip() == "1" else "thawed"
    except OSError:
        return ""


def _read(path: str, dir_fd: int | None) -> str:
    fd = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return posix.read(fd, 4096).decode()
    finally:
        posix.close(fd)

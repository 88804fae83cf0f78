"""Be told when the kernel kills a container's process for want of memory, and when the container is over (hot).

v1: an eventfd that is registered with the group (cgroup-v1/memory.rst, "OOM Control"). v2: memory.events and
cgroup.events, which can be polled for changes (cgroup-v2.rst).
"""

from __future__ import annotations

import posix
from errno import ENODEV, ENOENT
from select import POLLIN, POLLPRI

from knarr.base.errors import KernelError, Unsupported
from knarr.runtime import cgroup, cgroup_probe
from knarr.runtime.cgroup_fs import open_group, read, write
from knarr.runtime.stats import table

_LIMIT = 4096


class OomWatch:
    """``fds`` gives (descriptor, poll events); when one is ready, ``look`` says what happened."""

    __slots__ = ("_fds", "_kills", "_v2", "over")

    def __init__(self, recorded: cgroup.Intent | None) -> None:
        """Begin to watch. Raises Unsupported without the memory controller, KernelError."""
        self.over = False
        self._kills = 0
        self._v2 = bool(recorded and recorded["v2"])
        host = cgroup_probe.probe()
        where = None
        if recorded is not None and host is not None:
            places = {mountpoint: path for mountpoint, path, _ in recorded["groups"]}
            mounts = [host.unified] if self._v2 else [m.mountpoint for m in host.mounts if "memory" in m.controllers]
            where = next(((mount, places[mount]) for mount in mounts if mount in places), None)
        if where is None:
            raise Unsupported("watching the memory of this container", "it has no cgroup with the memory controller")
        group = open_group(*where)
        try:
            self._fds = _watch_v2(group) if self._v2 else _watch_v1(group)
        except OSError as error:
            hint = "the memory controller is not enabled for it" if error.errno == ENOENT else ""
            raise KernelError("watch", f"cgroup {where[0]}{where[1]}", error.errno or 0, hint=hint) from None
        finally:
            posix.close(group)
        if self._v2:
            self.look()  # what happened before is known, and what is polled must have been read once

    @property
    def fds(self) -> list[tuple[int, int]]:
        """What to poll."""
        return [(fd, POLLPRI if self._v2 else POLLIN) for fd in self._fds[: 2 if self._v2 else 1]]

    def look(self) -> int:
        """How many times memory ran out since the last look.

        Sets ``over`` when the container has no process any more (v2) or its group is gone.
        """
        if self._v2:
            events, populated = (_reread(fd) for fd in self._fds)
            self.over = events is None or populated is None or populated.get("populated") == 0
            kills = (events or {}).get("oom_kill", 0)
            new, self._kills = max(kills - self._kills, 0), max(kills, self._kills)
            return new
        count = int.from_bytes(posix.read(self._fds[0], 8), "little")
        # The group's end is an event as well.
        try:
            posix.stat("memory.oom_control", dir_fd=self._fds[1], follow_symlinks=False)
        except OSError:
            self.over = True
            return 0
        return count

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._fds:
            posix.close(fd)
        self._fds = []


def kills(recorded: cgroup.Intent | None) -> int:
    """How many processes of the container were killed for want of memory so far; 0 where nobody counts.

    v1 says it in memory.oom_control since Linux 4.13, v2 in memory.events.
    """
    if recorded is None:
        return 0
    for mountpoint, path, _ in recorded["groups"]:
        try:
            group = open_group(mountpoint, path)
        except KernelError:
            continue
        try:
            return table(read(group, "memory.events" if recorded["v2"] else "memory.oom_control")).get("oom_kill", 0)
        except OSError:
            continue  # this hierarchy is another controller's
        finally:
            posix.close(group)
    return 0


def _watch_v2(group: int) -> list[int]:
    flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    events = posix.open("memory.events", flags, dir_fd=group)
    try:
        return [events, posix.open("cgroup.events", flags, dir_fd=group)]
    except BaseException:
        posix.close(events)
        raise


def _watch_v1(group: int) -> list[int]:
    made = [posix.eventfd(0, posix.EFD_CLOEXEC)]
    try:
        made.append(posix.dup(group))
        control = posix.open("memory.oom_control", posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        try:
            write(group, "cgroup.event_control", f"{made[0]} {control}")
        finally:
            posix.close(control)
    except BaseException:
        for fd in made:
            posix.close(fd)
        raise
    return made


def _reread(fd: int) -> dict[str, int] | None:
    """The numbers of a file; None when its group is gone."""
    try:
        return table(posix.pread(fd, _LIMIT, 0).decode("ascii", "replace"))
    except OSError as error:
        if error.errno == ENODEV:
            return None
        raise KernelError("read", "events of the cgroup", error.errno or 0) from None

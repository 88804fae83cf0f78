"""The groups of a container that is there: its processes frozen, listed, signalled; removed (hot). cgroups(7).

They are found by what was recorded before they were made (runtime/cgroup.py, ``intent``).
"""

from __future__ import annotations

import posix
import time
from errno import EBUSY, EINVAL, ENODEV, ENOENT, EOPNOTSUPP

from knarr.base.errors import KernelError
from knarr.runtime import freezer
from knarr.runtime.cgroup_fs import children, enter, marked, members, open_group, rmdir, tree, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.runtime.cgroup import Intent


def freeze(recorded: Intent, patience: float = 2.0) -> None:
    """Stop every process of the container where it is. Raises KernelError if that takes over ``patience`` seconds."""
    deadline = time.monotonic() + patience
    tries = 0
    while True:
        done = _set_frozen(recorded, frozen=True)
        if done == "":
            raise KernelError("freeze", "container", ENOENT, hint="it has no cgroup with a freezer")
        if done == "frozen":
            return
        tries += 1
        if time.monotonic() > deadline:
            _set_frozen(recorded, frozen=False)
            raise KernelError(
                "freeze", "container", EBUSY, hint="a process does not react, perhaps it waits for a disk"
            )
        if tries % 64 == 0:
            _set_frozen(recorded, frozen=False)  # v1 can miss a process that forks; once more from the start
        time.sleep(0.001)


def thaw(recorded: Intent) -> None:
    """Let a frozen container go on; nothing happens to one that is not, or is gone. Raises KernelError."""
    _set_frozen(recorded, frozen=False)


def _set_frozen(recorded: Intent, *, frozen: bool) -> str:
    """Ask the freezer; its state then: frozen, freezing, thawed, or nothing where there is no freezer."""
    for fd in _groups(recorded):
        try:
            for file, value in (
                ("freezer.state", "FROZEN" if frozen else "THAWED"),
                ("cgroup.freeze", "1" if frozen else "0"),
            ):
                try:
                    write(fd, file, value)
                    return freezer.state_of(dir_fd=fd)
                except OSError as error:
                    if error.errno not in (ENOENT, ENODEV):
                        doing = "freeze" if frozen else "thaw"
                        raise KernelError(doing, "container", error.errno or EINVAL) from None
        finally:
            posix.close(fd)
    return ""


def pids(recorded: Intent) -> list[int]:
    """All processes in the container's group and the groups below it."""
    found: set[int] = set()
    for fd in _groups(recorded):
        try:
            for group in tree(fd):
                found.update(members(group))
        finally:
            posix.close(fd)
        if found:
            break  # every hierarchy has the same processes
    return sorted(found)


def signal_all(recorded: Intent, number: int) -> None:
    """Send a signal to every process of the group; SIGKILL until none is left (at once by cgroup.kill, Linux 5.14).

    Raises KernelError for a signal there is not.
    """
    if number != 9:
        _signal_members(recorded, number)
        return
    for fd in _groups(recorded):
        try:
            write(fd, "cgroup.kill", "1")  # of a hybrid's groups the unified one has it
            thaw(recorded)  # a process that the v1 freezer holds dies only then
        except OSError as error:
            if error.errno not in (ENOENT, EOPNOTSUPP):
                raise KernelError("kill", "container's processes", error.errno or EINVAL) from None
        finally:
            posix.close(fd)
    # Without cgroup.kill; and with it what a killed runtime had not brought into the unified group yet.
    for tries in range(200):
        if tries:
            time.sleep(0.002)
            # What forks faster than it is killed: hold it, kill it, let it die.
            _set_frozen(recorded, frozen=True)
        left = _signal_members(recorded, number)
        if tries:
            thaw(recorded)
        if not left:
            return


def _signal_members(recorded: Intent, number: int) -> int:
    """Signal each member by pidfd; how many were listed, also those that are gone by now: what forks has successors."""
    from _signal import pidfd_send_signal  # only here: kill --all and clean-up

    listed = pids(recorded)
    opened: list[tuple[int, int]] = []
    try:
        for pid in listed:
            try:
                opened.append((pid, posix.pidfd_open(pid)))
            except OSError:
                continue
        # Still a member after it was opened: the number was not given to another process in between.
        members = set(pids(recorded))
        for pid, pidfd in opened:
            if pid in members:
                try:
                    pidfd_send_signal(pidfd, number)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    raise KernelError("kill", f"process {pid}", error.errno or EINVAL) from None
    finally:
        for _, pidfd in opened:
            posix.close(pidfd)
    return len(listed)


def remove(recorded: Intent, patience: float) -> None:
    """Remove the groups, those below them first, killing what is still inside, and parents that we made and are empty.

    Idempotent; tries for ``patience`` seconds, because a group stays busy until its dead processes are gone.
    Raises KernelError; a group without our mark is not emptied.
    """
    deadline = time.monotonic() + patience
    if "unit" in recorded:
        from knarr.runtime import systemd  # cold: only with that driver

        systemd.stop_scope(recorded)
    for mountpoint, path, parents in recorded["groups"]:
        pause = 0.0005
        while not _remove_group(mountpoint, path):
            signal_all(recorded, 9)
            if time.monotonic() > deadline:
                raise KernelError("rmdir", mountpoint + path, EBUSY)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        _remove_parents(mountpoint, path, parents)


def _remove_group(mountpoint: str, path: str) -> bool:
    """Remove a group and all below it; False while something is in it."""
    try:
        # Mostly this is all. By its plain path: cgroupfs has no links, and only what is empty goes.
        posix.rmdir(mountpoint + path)
    except OSError:
        pass
    else:
        return True
    folder, _, name = path.rpartition("/")
    try:
        above = open_group(mountpoint, folder)
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):
            return True
        raise
    try:
        if rmdir(above, name, mountpoint + path):
            return True
        fd = enter(above, name)
        try:
            if not marked(fd):
                hint = "it is not marked as made by knarr, so what is in it was left alone"
                raise KernelError("rmdir", mountpoint + path, EBUSY, hint=hint)
            _remove_below(fd, mountpoint + path)
        finally:
            posix.close(fd)
        return rmdir(above, name, mountpoint + path)
    except KernelError as error:
        if error.errno in (ENOENT, ENODEV):
            return True
        raise
    finally:
        posix.close(above)


def _remove_below(fd: int, shown: str) -> None:
    for name in children(fd):
        if not rmdir(fd, name, f"{shown}/{name}"):
            below = enter(fd, name)
            try:
                _remove_below(below, f"{shown}/{name}")
            finally:
                posix.close(below)
            rmdir(fd, name, f"{shown}/{name}")


def _remove_parents(mountpoint: str, path: str, parents: int) -> None:
    """Take away the group's parents, up to the first that is in use or that knarr did not make."""
    path = path.rpartition("/")[0]
    while path:
        folder, _, name = path.rpartition("/")
        try:
            fd = open_group(mountpoint, path)
            try:
                ours = parents > 0 or marked(fd)
            finally:
                posix.close(fd)
            if not ours:
                return
            above = open_group(mountpoint, folder)
            try:
                posix.rmdir(name, dir_fd=above)
            finally:
                posix.close(above)
        except OSError as error:
            if error.errno != ENOENT:
                return  # another container is in it
        path, parents = folder, parents - 1


def _groups(recorded: Intent) -> Iterator[int]:
    """A descriptor of each group that is there; the receiver closes it."""
    for mountpoint, path, _ in recorded["groups"]:
        try:
            fd = open_group(mountpoint, path)
        except OSError:
            continue
        yield fd

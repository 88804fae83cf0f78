"""Remove a container, or what a killed runtime left of one (hot). runtime-spec runtime.md "Delete".

Order: processes by pidfd and cgroup, then the cgroups, then poststop hooks, the record last, so that a delete that is
itself killed can be repeated.
"""

from __future__ import annotations

import posix
from errno import EBUSY, ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, KernelError, KnarrError, NotFound, SpecError, WrongStatus
from knarr.base.ids import check_id
from knarr.kernel.process import boot_id, ended, open_pid, reap, signal_pid
from knarr.runtime import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.base.files import Lock
    from knarr.runtime.record import State

PATIENCE = 10.0
"""Seconds to wait for killed processes to end."""


def delete(state_root: str, id: str, *, force: bool = False) -> list[str]:
    """Remove a stopped container, or one that was created and never started (as runc does).

    ``force`` kills whatever runs and finishes a creation or deletion that was cut short; a container that does not
    exist is no error then. Returns warnings (poststop hooks that failed). Raises InvalidId, NotFound, WrongStatus,
    InUse, KernelError, FileError.
    """
    check_id(id)
    try:
        fd = record.open_container(state_root, id)
    except NotFound:
        if force:
            record.forget_stale_lock(state_root, id)
            return []
        raise
    root_fd = record.open_root(state_root)
    try:
        try:
            state = record.load(fd, id)
        except (FileError, SpecError) as error:
            return _remnant(root_fd, fd, id, error, force=force)
        if not force:
            status = record.status(fd, state, root_fd)
            if status not in ("created", "stopped"):
                raise WrongStatus(id, "delete", status, hint="--force kills it first")
        return destroy(root_fd, fd, state, None)
    finally:
        posix.close(fd)
        posix.close(root_fd)


def destroy(root_fd: int, fd: int, state: State, config: dict[str, Any] | None) -> list[str]:
    """Kill what runs and remove everything of the container; returns warnings. Raises InUse, KernelError, FileError."""
    _kill(state)
    try:
        taken = record.hold(root_fd, fd, state.id)
    except NotFound:
        return []  # another delete was quicker
    try:
        if state.pid == 0:
            state = record.load(fd, state.id)  # the creation that held the lock may have come further
        return clear(root_fd, fd, state, config)
    finally:
        _let_go(root_fd, fd, state.id, taken)


def clear(root_fd: int, fd: int, state: State, config: dict[str, Any] | None) -> list[str]:
    """The part of ``destroy`` under the lock."""
    _kill(state)
    if state.cgroup is not None:
        from knarr.runtime import cgroup_members

        cgroup_members.remove(state.cgroup, PATIENCE)
    if state.rdt is not None and state.boot == boot_id():
        from knarr.runtime import resctrl  # cold: only with linux.intelRdt

        resctrl.remove(state.rdt)
    warnings: list[str] = []
    if state.mounts is not None and state.boot == boot_id():
        from knarr.runtime import shared_mounts  # cold: only without a mount namespace

        warnings += shared_mounts.undo(state.rootfs, state.mounts)
    if "poststop" in state.hooks and (state.complete or state.hooked):
        warnings += _poststop(fd, state, config)
    record.remove(root_fd, fd, state.id)
    return warnings


def _kill(state: State) -> None:
    """End the container's first process, and with it all of its pid namespace; and what is its network."""
    if state.pid == 0 or state.boot != boot_id():
        return
    _end(state, state.pid, state.starttime)
    if state.network is not None:  # it has heard of that by itself; whoever comes next may want its ports
        _end(state, state.network["pid"], state.network["starttime"])


def _end(state: State, pid: int, starttime: int) -> None:
    pidfd = open_pid(pid, starttime)
    if pidfd is None:
        return
    try:
        signal_pid(pidfd, 9)
        if state.cgroup is not None and not ended(pidfd, 0.05):
            from knarr.runtime import cgroup_members

            cgroup_members.thaw(state.cgroup)
        if not ended(pidfd, PATIENCE):
            raise KernelError("kill", f"process {pid} of container {state.id}", EBUSY, hint=_waits(pid))
        reap(pidfd, wait=False)  # if it is ours
    finally:
        posix.close(pidfd)


def _waits(pid: int) -> str:
    """What the kernel holds a process in."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            where = file.read(100)
    except OSError:
        where = ""
    return f"the kernel holds it in {where or 'an uninterruptible wait'}; try again later"


def _poststop(fd: int, state: State, config: dict[str, Any] | None) -> list[str]:
    """Run every poststop hook, also after one that failed (lifecycle, step 13)."""
    from knarr.runtime.hooks import run_hook

    document = fastjson.dumps(record.document(state, "stopped"))
    warnings = []
    try:
        hooks = (config or record.config(fd))["hooks"]["poststop"]
    except (KnarrError, KeyError) as error:
        return [f"poststop hooks of container {state.id} were not run: {error}"]
    for number, hook in enumerate(hooks):
        try:
            run_hook(hook, f"/hooks/poststop/{number}", document, state.bundle, state.annotations)
        except KnarrError as error:
            warnings.append(str(error))
    return warnings


def _remnant(root_fd: int, fd: int, id: str, error: KnarrError, *, force: bool) -> list[str]:
    """A directory without a usable state: the creation was killed at its very start, or somebody damaged the file."""
    interrupted = isinstance(error, FileError) and error.number == ENOENT
    if not interrupted and not force:
        error.hint = error.hint or "delete --force removes it"
        raise error
    try:
        taken = record.hold(root_fd, fd, id)
    except NotFound:
        return []
    try:
        try:
            state = record.load(fd, id)
        except (FileError, SpecError):
            record.remove(root_fd, fd, id)
        else:
            return clear(root_fd, fd, state, None)  # the creation that held the lock went on to its end
    finally:
        _let_go(root_fd, fd, id, taken)
    return (
        [] if interrupted else [f"state of container {id} was damaged: its processes and cgroups were not looked for"]
    )


def _let_go(root_fd: int, fd: int, id: str, taken: Lock) -> None:
    """Release the lock; with the container gone its file goes, too."""
    if record.same(root_fd, fd, id):
        taken.release()
    else:
        record.forget_lock(root_fd, id, taken)

"""Which processes a container has (hot)."""

from __future__ import annotations

import posix

from knarr.base.errors import Unsupported
from knarr.kernel.process import open_pid
from knarr.runtime import cgroup_members, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.runtime.record import State


def processes(state_root: str, id: str) -> list[int]:
    """The pids, as this program sees them, sorted; none of a stopped container.

    Raises NotFound; Unsupported for a container that has neither a cgroup nor a pid namespace of its own.
    """
    fd = record.open_container(state_root, id)
    try:
        state = record.load(fd, id)
        if state.isolation is not None:  # what stands for it here; its processes have no numbers of the host's
            return [] if record.status(fd, state, freezer=False) == "stopped" else [state.pid]
        if state.cgroup is not None:
            return cgroup_members.pids(state.cgroup)
        if record.status(fd, state, freezer=False) == "stopped":
            return []
        return _in_namespace(state)
    finally:
        posix.close(fd)


def _in_namespace(state: State) -> list[int]:
    """The processes in the pid namespace of the container's first process; those below it are not looked at."""
    pidfd = open_pid(state.pid, state.starttime)
    if pidfd is None:
        return []
    posix.close(pidfd)
    space = _namespace(str(state.pid))
    if space is None or space == _namespace("self"):
        raise Unsupported(
            "listing the processes of this container", "it has neither a cgroup nor a pid namespace of its own"
        )
    return sorted(int(name) for name in posix.listdir("/proc") if name.isdecimal() and _namespace(name) == space)


def _namespace(name: str) -> str | None:
    try:
        return posix.readlink(f"/proc/{name}/ns/pid")
    except OSError:  # gone, or another user's
        return None

"""Stop all processes of a container where they are, and let them go on (hot). cgroups: v1 freezer, v2 cgroup.freeze."""

from __future__ import annotations

import posix

from knarr.base.errors import Unsupported, WrongStatus
from knarr.runtime import cgroup_members, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.runtime.record import State


def pause(state_root: str, id: str) -> None:
    """Freeze a created or running container.

    Raises NotFound, WrongStatus, Unsupported when it has no cgroup, KernelError when a process does not stop.
    """
    state, status = _look(state_root, id)
    if status not in ("created", "running"):
        # The words in brackets are runc's.
        raise WrongStatus(id, "pause", status, hint="container not running")
    if state.isolation is not None:
        _ask(state_root, id, "pause")
        return
    if state.cgroup is None:
        raise Unsupported("pausing a container without a cgroup", "the freezer is a part of cgroups")
    cgroup_members.freeze(state.cgroup)


def resume(state_root: str, id: str) -> None:
    """Let a paused container go on. Raises NotFound, WrongStatus, KernelError."""
    state, status = _look(state_root, id)
    if status != "paused":
        raise WrongStatus(id, "resume", status, hint="container not paused")
    if state.isolation is not None:
        _ask(state_root, id, "resume")
        return
    cgroup_members.thaw(state.cgroup)


def _ask(state_root: str, id: str, do: str) -> None:
    """A guest stops its own processes: stopped from outside, its kernel would take what it sees for a fault."""
    from knarr.runtime.monitored import ask  # cold: only for a container in a guest

    fd = record.open_container(state_root, id)
    try:
        ask(fd, id, do)
    finally:
        posix.close(fd)


def _look(state_root: str, id: str) -> tuple[State, str]:
    fd = record.open_container(state_root, id)
    try:
        state = record.load(fd, id)
        return state, record.status(fd, state)
    finally:
        posix.close(fd)

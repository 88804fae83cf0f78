"""Send a signal to a container (hot). runtime-spec runtime.md "Kill"."""

from __future__ import annotations

import posix

from knarr.base.errors import WrongStatus
from knarr.kernel.process import open_pid, process_stat, signal_pid
from knarr.runtime import record

SIGKILL = 9
_STOPPING = (18, 19)  # SIGCONT, SIGSTOP


def kill(state_root: str, id: str, number: int, *, all: bool = False) -> None:
    """Send signal ``number`` to the container's first process, with ``all`` to every process in its cgroup.

    SIGKILL means all of them, too, in a container without a pid namespace, whose processes outlive the first.
    Raises NotFound, WrongStatus when it is neither created nor running nor paused (with ``all`` a stopped one, which
    may have left processes behind without a pid namespace, is fine), KernelError (EINVAL: no such signal).
    """
    fd = record.open_container(state_root, id)
    try:
        state = record.load(fd, id)
        status = record.status(fd, state, freezer=False)
        # A monitor is stopped by these, and does not hear of it; and who "all" are is for the guest to know.
        guests = state.isolation is not None and number != SIGKILL and (all or number in _STOPPING)
        if guests and status in ("created", "running"):
            from knarr.runtime.monitored import ask  # cold: only for a container in a guest

            ask(fd, id, "signal", number=number, all=all)
            return
        if state.isolation is not None and number == SIGKILL and status in ("created", "running"):
            from knarr.runtime.monitored import end

            if end(fd, id):
                return
    finally:
        posix.close(fd)
    if state.cgroup is not None and number == SIGKILL and state.shared_pids:
        from knarr.runtime import cgroup_members

        all = all or status != "stopped" or bool(cgroup_members.pids(state.cgroup))
    if status == "stopped" and all and state.cgroup is not None:
        _all(state, number)
        return
    # The words in brackets are runc's: containerd looks for them to tell "already ended" from a failure.
    gone = WrongStatus(id, "kill", status, hint="container not running")
    if status in ("stopped", "creating"):
        raise gone
    if all and state.cgroup is not None:
        _all(state, number)
    else:
        pidfd = open_pid(state.pid, state.starttime)
        if pidfd is None:
            raise gone
        try:
            if not signal_pid(pidfd, number):
                raise gone
        finally:
            posix.close(pidfd)
    if number == SIGKILL and state.cgroup is not None and _stuck(state.pid):
        from knarr.runtime import cgroup_members

        cgroup_members.thaw(state.cgroup)  # a frozen v1 process takes even SIGKILL only when it thaws


def _stuck(pid: int) -> bool:
    """Whether the kernel shows the process as uninterruptible, as it does what a v1 freezer holds."""
    stat = process_stat(pid)
    return stat is not None and stat[0] == "D"


def _all(state: record.State, number: int) -> None:
    from knarr.runtime import cgroup_members

    cgroup_members.signal_all(state.cgroup, number)

"""Run a further process in a running container (hot)."""

from __future__ import annotations

import posix
from errno import ENOENT, EPERM, ESRCH

from knarr.base.errors import InitError, KernelError, KnarrError, Unsupported, WrongStatus
from knarr.kernel.process import ended, open_pid
from knarr.plan.container import Options
from knarr.plan.exec import plan_exec
from knarr.runtime import cgroup, freezer, record
from knarr.runtime.create import Process, Stdio, compiled_seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.container import ContainerPlan
    from knarr.plan.host import Host
    from knarr.runtime.record import State


class Execed(Process):
    """A process in a container that somebody made, perhaps another program."""

    __slots__ = ("_state", "_status")

    def __init__(
        self, plan: ContainerPlan, host: Host, config: dict[str, Any], *, state: record.State, status: str
    ) -> None:
        super().__init__(state.id, plan, host, config)
        self._state = state
        self._status = status

    def join_cgroup(self) -> None:
        if self._state.cgroup is not None:
            cgroup.join_recorded(self._state.cgroup, self.pid)

    def document(self) -> dict[str, Any]:
        return record.document(self._state, self._status)

    def failed(self, index: int, number: int, detail: bytes) -> KnarrError:
        if number in (ESRCH, EPERM) and index < len(self.plan.ops) and self.plan.ops[index].kind == "setns":
            if number == ESRCH:
                return WrongStatus(self.id, "exec in", "stopped")
            if self._status == "created":  # its init is not dumpable (CVE-2016-9962), and not root's in the host's eyes
                return WrongStatus(
                    self.id, "exec in", "created", hint="only root may look into it before its program runs: start it"
                )
        error = super().failed(index, number, detail)
        if isinstance(error, InitError):
            error.pointer = ""  # points into the container's config.json, which is not where this process comes from
        return error

    def undo(self) -> None:
        """End the process and forget it."""
        if self._state.cgroup is not None and self.pid and freezer.frozen(self._state.cgroup):
            cgroup.expel(self._state.cgroup, self.pid)
        super().undo()


def begin_exec(
    state_root: str,
    id: str,
    process: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    host: Host | None = None,
    ignore_paused: bool = False,
    cgroups: list[str] | None = None,
) -> Execed:
    """Start a process; drive ``.launch`` until ``step()`` says that it runs; on an error call ``.undo()``.

    ``process`` is a validated process section of config.json. With ``ignore_paused`` a process may be started in a
    paused container; it stands still, and ``step()`` does not come to its end, until that is resumed. ``cgroups``:
    groups below the container's to start it in, see ``cgroup_below.below``. Raises NotFound, UsageError, WrongStatus,
    Unsupported, SpecError, KernelError.
    """
    stdio = io or Stdio()
    fd = record.open_container(state_root, id)
    pidfd = groups_fd = root_fd = -1
    try:
        state = record.load(fd, id)
        status = record.status(fd, state)
        if status not in ("created", "running") and not (status == "paused" and ignore_paused):
            raise WrongStatus(id, "exec in", status, hint="--ignore-paused waits" if status == "paused" else "")
        config = record.config(fd)
        from knarr.runtime.probe import probe_for

        host = probe_for(config, host)
        opened = open_pid(state.pid, state.starttime)
        if opened is None:
            raise WrongStatus(id, "exec in", "stopped")
        pidfd = opened
        wishes = (options or Options()).replace(
            terminal_slot=stdio.console >= 0, preserve_fds=len(stdio.preserve), wait_start=False
        )
        if cgroups:
            if state.cgroup is None or host.cgroup is None:
                raise Unsupported("a cgroup below this container's", "it has none of its own")
            from knarr.runtime.cgroup_below import below  # few ask for it

            place: cgroup.Intent | None = below(state.cgroup, cgroups, host.cgroup)
        else:
            place = cgroup.entered(state.cgroup, state.pid)
        groups = cgroup.for_exec(place, host)
        plan = plan_exec(
            process,
            config,
            host,
            id=id,
            options=wishes,
            seccomp=compiled_seccomp(config, host, state_root),
            cgroup=groups,
        )
        slots = {f"fd{3 + number}": source for number, source in enumerate(stdio.preserve)}
        slots["console"] = stdio.console
        slots["pidfd"] = pidfd
        if "cgroup" in plan.slots and groups is not None:
            slots["cgroup"] = groups_fd = cgroup.open_directory(groups)
        if "root" in plan.slots:
            slots["root"] = root_fd = root_of(state, pidfd)
        made = Execed(plan, host, config, state=state.replace(cgroup=place), status=status)
        made.spawn(stdio, slots)
        return made
    finally:
        for used in (fd, pidfd, groups_fd, root_fd):
            if used >= 0:
                posix.close(used)


def root_of(state: State, pidfd: int) -> int:
    """The root of a container without a mount namespace. Raises WrongStatus, KernelError."""
    try:
        root_fd = posix.open(f"/proc/{state.pid}/root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError as error:
        if error.errno in (ESRCH, ENOENT):
            raise WrongStatus(state.id, "exec in", "stopped") from None
        raise KernelError("open", f"/proc/{state.pid}/root", error.errno or 0) from None
    if ended(pidfd, 0):  # then the number may have been somebody else's already
        posix.close(root_fd)
        raise WrongStatus(state.id, "exec in", "stopped")
    return root_fd


def exec_process(
    state_root: str,
    id: str,
    process: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    host: Host | None = None,
    ignore_paused: bool = False,
    cgroups: list[str] | None = None,
    deadline: float | None = None,
    stop: int = -1,
) -> Execed:
    """``begin_exec()`` and block until the program runs, until ``deadline`` or until ``stop`` is readable.

    The caller waits for it (``.wait()``, or ``.pidfd``) and calls ``.close()``. Raises also what went wrong inside:
    CommandNotFound, CommandNotExecutable, InitError, SafetyViolation, Interrupted.
    """
    made = begin_exec(
        state_root, id, process, io=io, options=options, host=host, ignore_paused=ignore_paused, cgroups=cgroups
    )
    until_it_runs(made, deadline, stop)
    return made


def until_it_runs(made: Process, deadline: float | None, stop: int) -> None:
    """Block until what ``begin_exec`` began runs, or undo it. Raises as ``exec_process``."""
    try:
        if made.launch is not None:
            made.launch.run(deadline, stop)
    except BaseException:
        made.undo()
        raise

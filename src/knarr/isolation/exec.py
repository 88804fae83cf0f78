"""Run a further process in a container in a guest (cold): as ``runtime.exec``, through the monitor.

A process of the host's stands for it (stand.c): its pid, signals, terminal size and exit code.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from struct import pack

from knarr.base import fastjson
from knarr.base.errors import FileError, InitError, KnarrError, Unsupported, WrongStatus
from knarr.isolation import convert, frames
from knarr.isolation.create import Relayed, guest_host
from knarr.plan.cgroup import CgroupDirectory, CgroupPlan
from knarr.plan.container import Options
from knarr.plan.exec import plan_exec
from knarr.plan.ops import NO_SLOT, Op, encode
from knarr.runtime import record
from knarr.runtime.create import Process, Stdio, compiled_seccomp
from knarr.runtime.exec import until_it_runs
from knarr.runtime.launch import Control, memfd, spawn, wait_child
from knarr.runtime.monitored import connect, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from knarr.plan.container import ContainerPlan
    from knarr.plan.host import Host


class GuestExeced(Process):
    """A process in a container in a guest; ``pid`` and ``pidfd`` are those of what stands for it."""

    __slots__ = ("_state",)

    def __init__(self, plan: ContainerPlan, host: Host, config: dict[str, Any], state: record.State) -> None:
        super().__init__(state.id, plan, host, config)
        self._state = state

    def failed(self, index: int, number: int, detail: bytes) -> KnarrError:
        error = told(index, number, detail) or super().failed(index, number, detail)
        if isinstance(error, InitError):
            error.pointer = ""  # points into the container's config.json
        return error

    def document(self) -> dict[str, Any]:
        return record.document(self._state, "running")


def begin_exec(
    state_root: str,
    id: str,
    process: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    host: Host | None = None,  # noqa: ARG001  # as runtime.exec has it
    ignore_paused: bool = False,
    cgroups: list[str] | None = None,
) -> GuestExeced:
    """As ``runtime.exec.begin_exec``. Raises the same, and Unsupported for what a guest cannot have."""
    stdio = io or Stdio()
    if stdio.preserve:
        raise Unsupported("handing descriptors down", "they cannot go into a guest")
    if cgroups:
        raise Unsupported("a cgroup below this container's", "it is in a guest")
    fd = record.open_container(state_root, id)
    try:
        state = record.load(fd, id)
        status = record.status(fd, state)
        config = record.config(fd)
        if status not in ("created", "running") and not (status == "paused" and ignore_paused):
            raise WrongStatus(id, "exec in", status, hint="--ignore-paused waits" if status == "paused" else "")
        monitor = connect(fd, id)
    finally:
        os.close(fd)
    try:
        return _begin(monitor, state, config, process, stdio, options or Options(), state_root)
    finally:
        monitor.close()


def _begin(
    monitor: socket,
    state: record.State,
    config: dict[str, Any],
    process: dict[str, Any],
    stdio: Stdio,
    options: Options,
    state_root: str,
) -> GuestExeced:
    everything = dict.fromkeys(convert.sources(config, state.bundle), True)
    inside = convert.guestly(config, state.bundle, everything, mapped=state.isolation["mapped"]).config
    guests = guest_host()
    group = f"/{state.id}"
    plan = plan_exec(
        process,
        inside,
        guests,
        id=state.id,
        options=options.replace(terminal_slot=bool(process.get("terminal")), preserve_fds=0),
        seccomp=compiled_seccomp(inside, guests, state_root),
        cgroup=CgroupPlan((CgroupDirectory("/sys/fs/cgroup", group, ()),), (), clone_into=True),
    )
    made = GuestExeced(plan, guests, config, state)
    places = {
        "console": [frames.SLOT_CONSOLE, 0, ""],
        "cgroup": [frames.SLOT_DIRECTORY, 0, f"/sys/fs/cgroup{group}"],
        "pidfd": [frames.SLOT_PIDFD, 0, ""],
    }
    request = {"do": "spawn", "slots": [places[name] for name in plan.slots], "terminal": bool(process.get("terminal"))}
    made.launch = _ask(made, monitor, request, stdio, process)  # type: ignore[assignment]
    return made


def _ask(made: GuestExeced, monitor: socket, request: dict[str, Any], stdio: Stdio, process: dict[str, Any]) -> Relayed:
    """Send the request with all it needs, start what stands for the process."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
    stand, told = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
    terminal = plan_fd = -1
    try:
        plan_fd = memfd("knarr-plan", made.plan.encode())
        streams = [stdio.stdin, stdio.stdout, stdio.stderr]
        if process.get("terminal") and stdio.console >= 0:
            from knarr.isolation.monitor import make_terminal  # cold: only for a terminal

            size = process.get("consoleSize") or {}
            terminal = make_terminal(stdio.console, [size.get("height", 0), size.get("width", 0)])
            streams = [terminal, terminal, terminal]
        rights = pack(f"{3 + len(streams)}i", plan_fd, theirs.fileno(), told.fileno(), *streams)
        try:
            monitor.sendmsg([fastjson.dumps(request)], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        except OSError as error:
            raise FileError("ask", f"the monitor of container {made.id}", error.errno or 0) from None
        pid = _stand(stand.fileno(), terminal, made)
        launch = Relayed(ours, pid, os.pidfd_open(pid), failed=made.failed, on_sync=made.on_sync)
        ours = None  # type: ignore[assignment]  # it is the launch's
        return launch
    finally:
        for each in (theirs, stand, told):
            each.close()
        if ours is not None:
            ours.close()
        for fd in (plan_fd, terminal):
            if fd >= 0:
                os.close(fd)


def _stand(connection: int, terminal: int, made: GuestExeced) -> int:
    """Start the process that stands for one in the guest; its pid, a child of ours. Raises InitError, KernelError.

    When it is killed, the monitor sees the end of the connection and kills the one in the guest.
    """
    plan = [Op("setsid"), Op("stand", (0, NO_SLOT if terminal < 0 else 1))]
    slots = [connection] if terminal < 0 else [connection, terminal]

    def failed(index: int, number: int, _detail: bytes) -> KnarrError:
        return InitError("", f"stand for a process in the guest ({plan[index].kind})", number)

    pid, sock = spawn(encode(plan, len(slots)), slots, (0, 1, 2), made.id)
    control = Control(sock, failed=failed)
    try:
        control.run()
    except BaseException:
        wait_child(pid)
        raise
    finally:
        control.close()
    return pid


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
) -> GuestExeced:
    """``begin_exec()`` and block until the program runs, as ``runtime.exec.exec_process``."""
    made = begin_exec(
        state_root, id, process, io=io, options=options, host=host, ignore_paused=ignore_paused, cgroups=cgroups
    )
    until_it_runs(made, deadline, stop)
    return made

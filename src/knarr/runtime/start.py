"""Start a created container (hot). runtime-spec runtime.md "Start", lifecycle steps 6 to 9.

Whoever renames the start socket is the one who starts; then the init, which listens on it, is told to go on, and end
of file means that the program runs.
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from errno import E2BIG, EACCES
from time import monotonic, sleep

from knarr.base import fastjson
from knarr.base.errors import HookError, InitError, KernelError, KnarrError, WrongStatus
from knarr.kernel.process import process_stat
from knarr.plan.ops import SYNC_LISTENER
from knarr.runtime import record
from knarr.runtime.launch import SYNC, Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.runtime.record import State

STARTED = "started"
_REAPED_WITHIN = 2.0
"""Seconds a parent has to reap the process; it may not reap at all, or be this very process."""


class _Starting(Control):
    """The control socket of a container that is started: the one thing it may ask for is to pass its listener on."""

    __slots__ = ("_fd", "_state")

    def __init__(self, sock: socket, failed: Callable[[int, int, bytes], KnarrError], fd: int, state: State) -> None:
        super().__init__(sock, failed)
        self._fd = fd
        self._state = state

    def ended(self) -> None:
        if self.unheard:
            raise WrongStatus(self._state.id, "start", "stopped")

    def handle(self, kind: int, value: int) -> None:
        if (kind, value) != (SYNC, SYNC_LISTENER):
            super().handle(kind, value)
        from knarr.runtime.listener import send_listener  # cold: only with SCMP_ACT_NOTIFY

        document = record.document(self._state, "created")
        send_listener(self.received, record.config(self._fd), self._state.pid, document)
        self.go()


def start(state_root: str, id: str, told: int = -1) -> None:
    """Run the program of a created container. Raises NotFound, WrongStatus, InitError and its kin, HookError.

    ``told``: its socket, when bin/verbs.c has told it to go on and it had something to say; it is closed.

    When a startContainer or poststart hook fails the container is stopped and removed (lifecycle, steps 7 and 9).
    """
    fd = record.open_container(state_root, id)
    root_fd = record.open_root(state_root)
    try:
        state = record.load(fd, id)
        try:
            start_container(root_fd, fd, state, None, told)
        except WrongStatus:
            raise
        except KnarrError:
            _await_end(state)
            raise
    finally:
        posix.close(fd)
        posix.close(root_fd)


def start_container(root_fd: int, fd: int, state: State, config: dict[str, Any] | None, told: int = -1) -> None:
    """``start`` for a container whose record is at hand."""
    control = connect(fd, state) if told < 0 else _control(socket(fileno=told), fd, state)
    try:
        control.run()
    except HookError as error:
        _remove(root_fd, fd, state, config, error)
        raise
    finally:
        control.close()
    poststart(root_fd, fd, state, config)


def _await_end(state: State) -> None:
    """Let the process's parent (containerd's shim, conmon) reap it before anybody hears that the start failed.

    dockerd deletes the container at once, and what still counts as created cannot be deleted: it would stay for ever.
    """
    until = monotonic() + _REAPED_WITHIN
    while (stat := process_stat(state.pid)) and stat[1] == state.starttime and monotonic() < until:
        sleep(0.001)


def connect(fd: int, state: State) -> Control:
    """Win the right to start, tell the init to go; the Control is done when the program runs. Raises WrongStatus."""
    status = record.status(fd, state)
    if status != "created":
        raise WrongStatus(state.id, "start", status)
    try:
        posix.rename(record.START, STARTED, src_dir_fd=fd, dst_dir_fd=fd)
    except FileNotFoundError:
        raise WrongStatus(state.id, "start", "running") from None
    except OSError as error:
        raise KernelError("rename", record.START, error.errno or 0) from None
    sock = socket(AF_UNIX, SOCK_SEQPACKET, 0)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{STARTED}")
    except OSError:
        sock.close()
        raise WrongStatus(state.id, "start", "stopped") from None
    control = _control(sock, fd, state)
    inside = "startContainer" in state.hooks  # which the init runs, and gives the state document
    control.go(fastjson.dumps(record.document(state, "created")) if inside else b"")
    return control


def _control(sock: socket, fd: int, state: State) -> Control:
    """The socket's other side: an init that was told to go on, or will be."""
    posix.set_inheritable(sock.fileno(), False)

    def failed(index: int, number: int, detail: bytes) -> KnarrError:
        from knarr.runtime.explain import LANDLOCK_HINT, later_error  # cold: only for an error
        from knarr.runtime.monitored import told

        error = told(index, number, detail) if state.isolation is not None else None
        if error is not None:
            return error
        position = index - state.tail_index
        kind, pointer, text = state.tail[position] if 0 <= position < len(state.tail) else ("", "", "")
        process = record.config(fd)["process"] if kind == "exec" and number == E2BIG else None
        error = later_error(kind, pointer, text, number, detail, process=process)
        if kind == "exec" and number == EACCES and any(each[0] == "landlock_restrict" for each in state.tail):
            error.hint = LANDLOCK_HINT
        return error

    return _Starting(sock, failed, fd, state)


def poststart(root_fd: int, fd: int, state: State, config: dict[str, Any] | None) -> None:
    """Run the poststart hooks, if there are any. Raises HookError, after removing the container."""
    if "poststart" not in state.hooks:
        return
    from knarr.runtime.hooks import run_hooks

    config = config or record.config(fd)
    document = fastjson.dumps(record.document(state, "running"))
    try:
        run_hooks(_of(config, "poststart"), document, state.bundle, state.annotations)
    except (HookError, InitError) as error:  # the latter: a file for its output cannot be opened
        _remove(root_fd, fd, state, config, error)
        raise


def _of(config: dict[str, Any], kind: str) -> list[tuple[str, int, dict[str, Any]]]:
    return [(kind, number, hook) for number, hook in enumerate(config["hooks"][kind])]


def _remove(root_fd: int, fd: int, state: State, config: dict[str, Any] | None, error: KnarrError) -> None:
    from knarr.runtime.delete import destroy

    try:
        destroy(root_fd, fd, state, config)
    except KnarrError as trouble:
        error.add_note(f"and while removing the container: {trouble}")

"""Hooks that run in the runtime's namespaces: prestart, createRuntime, poststart, poststop (hot).

runtime-spec config.md "POSIX-platform Hooks". A hook is started by knarr-init, so that no descriptor of the calling
program crosses: a session of its own, the bundle as working directory, the environment exactly as configured (empty
if none is; docs/security.md I7), the state document on standard input. Its output is drained and its end kept for the
error message; the annotations run.oci.hooks.stdout and run.oci.hooks.stderr (crun's) name files that it writes to
instead. It ends with its first process: a daemon it leaves behind does not hold us up, but a timeout kills all
of its session.
"""

from __future__ import annotations

import posix
from errno import EAGAIN, EINVAL
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll
from struct import unpack_from
from time import monotonic

from knarr.base.errors import HookError, InitError, Interrupted
from knarr.kernel.process import reap, signal_pid
from knarr.plan.host import HOOK_OUTPUTS
from knarr.plan.ops import Op, encode
from knarr.runtime.launch import ERROR, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

KEEP = 4096
"""Bytes of a hook's output that are kept: the last ones."""


def open_output(annotations: dict[str, str], name: str, bundle: str) -> int:
    """The file hooks write to by the annotation ``name``, relative to the bundle; -1 without it. Raises InitError.

    It is made if it is missing and appended to. One that nobody reads (a FIFO) is an error, nothing to wait for.
    """
    path = annotations.get(name)
    if path is None:
        return -1
    try:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOCTTY | posix.O_NONBLOCK
        fd = posix.open(path if path.startswith("/") else f"{bundle}/{path}", flags, 0o600)
        posix.set_blocking(fd, True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        number = error.errno if isinstance(error, OSError) else EINVAL
        raise InitError(f"/annotations/{name}", f"open {path} for the hooks' output", number or EINVAL) from None
    return fd


def run_hooks(
    hooks: Iterable[tuple[str, int, dict[str, Any]]],
    state: bytes,
    bundle: str,
    annotations: dict[str, str] | None = None,
    *,
    alive: int = -1,
    stop: int = -1,
) -> None:
    """Run (kind, index, hook) one after another, ``state`` on the standard input of each.

    ``annotations`` may name files for their output. ``alive`` is the pidfd of the container's process: when that ends,
    the hook is killed, as it is when the descriptor ``stop`` becomes readable. Raises HookError at the first that fails
    (the others are not run), Interrupted, InitError.
    """
    for kind, index, hook in hooks:
        run_hook(hook, f"/hooks/{kind}/{index}", state, bundle, annotations, alive=alive, stop=stop)


def run_hook(
    hook: dict[str, Any],
    pointer: str,
    state: bytes,
    bundle: str,
    annotations: dict[str, str] | None = None,
    *,
    alive: int = -1,
    stop: int = -1,
) -> None:
    """Run one hook to its end. Raises HookError (status, signal, timeout, cannot start), Interrupted, InitError."""
    path = str(hook["path"])
    timeout = hook.get("timeout")
    deadline = None if timeout is None else monotonic() + timeout
    arguments = hook.get("args") or [path]
    plan = encode(
        (
            Op("pdeathsig", (9,)),
            Op("setsid"),
            Op("host_chdir", (), (bundle,)),
            Op("host_program", (), (path,)),
            Op("exec", (len(arguments),), (*arguments, *(hook.get("env") or ()))),
        ),
        0,
    )
    files: list[int] = []
    try:
        for name in HOOK_OUTPUTS:
            files.append(open_output(annotations or {}, name, bundle))  # noqa: PERF401  # all are closed if one fails
        in_read, in_write = posix.pipe2(posix.O_CLOEXEC)
        out_read, out_write = posix.pipe2(posix.O_CLOEXEC)
    except BaseException:
        _close(files)
        raise
    pid, pidfd, control = 0, -1, None
    try:
        try:
            stdout, stderr = [fd if fd >= 0 else out_write for fd in files]
            pid, control = spawn(plan, (), (in_read, stdout, stderr), "hook", path)
            pidfd = posix.pidfd_open(pid)
        finally:
            _close([in_read, out_write, *files])
        posix.set_blocking(in_write, False)
        posix.set_blocking(out_read, False)
        said, trouble, late = _attend(pidfd, control.fileno(), in_write, out_read, state, deadline, (alive, stop))
        if trouble:
            raise HookError(pointer, path, f"cannot be started: {trouble}")
        if late:
            raise HookError(pointer, path, late)
        code = reap(pidfd)
        pid = 0
        if code:
            why = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit status {code}"
            words = " ".join(said.decode("utf-8", "replace").split())[-400:]
            raise HookError(pointer, path, f"{why}: {words}" if words else why)
    finally:
        if control is not None:
            control.close()
        posix.close(in_write)
        posix.close(out_read)
        if pid and pidfd >= 0:
            _kill_session(pid, pidfd)
        if pidfd >= 0:
            posix.close(pidfd)


def _close(fds: list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            posix.close(fd)


def _attend(
    pidfd: int, control: int, in_write: int, out_read: int, state: bytes, deadline: float | None, ends: tuple[int, int]
) -> tuple[bytes, str, str]:
    """Feed and drain the hook until it ends; (end of its output, why it could not start, why it must be killed)."""
    poller = poll()
    poller.register(pidfd, POLLIN)
    poller.register(control, POLLIN)
    poller.register(out_read, POLLIN)
    poller.register(in_write, POLLOUT)
    for fd in ends:
        if fd >= 0:
            poller.register(fd, POLLIN)
    said, left, trouble, fed = b"", memoryview(state), "", False
    while True:
        wait = None if deadline is None else max(deadline - monotonic(), 0.0) * 1000
        ready = dict(poller.poll(wait))
        if not ready and wait is not None and deadline is not None and monotonic() >= deadline:
            return said, trouble, "did not end within its timeout"
        if control in ready:
            poller.unregister(control)
            trouble = _trouble(control)
        if in_write in ready and not fed:
            try:
                left = left[posix.write(in_write, left) :] if left else left
            except OSError as error:
                if error.errno != EAGAIN:
                    left = memoryview(b"")  # it does not want to read its state, which is its own affair
            if not left or ready[in_write] & (POLLERR | POLLHUP):
                fed = True
                poller.unregister(in_write)
                # End of file for the hook: an empty pipe cannot be shut down, so put the read end of nothing there.
                _hang_up(in_write)
        if out_read in ready:
            part = _drain(out_read)
            if part is None:
                poller.unregister(out_read)
            else:
                said = (said + part)[-KEEP:]
        if pidfd in ready:
            # What it wrote before it ended is in the pipe; a child that still holds the pipe is not waited for.
            rest = _drain(out_read)
            return (said + (rest or b""))[-KEEP:], trouble, ""
        if ends[1] in ready:
            raise Interrupted("interrupted while a hook ran")
        if ends[0] in ready:
            return said, trouble, "was killed because the container ended"


def _hang_up(fd: int) -> None:
    """Close the pipe behind ``fd`` but keep the number, so that nobody else gets it before we close it."""
    null = posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)
    posix.dup2(null, fd, inheritable=False)
    posix.close(null)


def _drain(fd: int) -> bytes | None:
    """What the pipe holds now; None at its end."""
    said = b""
    for _ in range(64):  # a hook that writes without end must not keep us from its timeout
        try:
            part = posix.read(fd, 65536)
        except BlockingIOError:
            return said
        if not part:
            return said or None
        said = (said + part)[-KEEP:]
    return said


def _trouble(control: int) -> str:
    """Why the hook's program does not run; empty when it does."""
    try:
        packet = posix.read(control, 16 << 10)
    except OSError:
        return ""
    if len(packet) < 16:
        return ""
    kind, index, number, length = unpack_from("<IIiI", packet)
    if kind != ERROR:
        return "knarr-init spoke out of turn"
    detail = packet[16 : 16 + length]
    if index >= 3:
        from knarr.runtime.explain import program  # cold: only for a hook that cannot run

        words = program("/", number, detail, posix.uname().machine)
        return words[0]
    return posix.strerror(number).lower()


def _kill_session(pid: int, pidfd: int) -> None:
    """Kill the hook's process group (its id is the pid, still ours until reaped), then reap the hook."""
    try:
        posix.killpg(pid, 9)
    except OSError:
        pass  # not yet in a session of its own, or already gone
    signal_pid(pidfd, 9)
    reap(pidfd)

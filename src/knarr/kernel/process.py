"""Processes: what /proc tells of one, pidfds, signals, limits (hot).

proc(5), pidfd_open(2), pidfd_send_signal(2), waitid(2), sched_setattr(2), ioprio_set(2). A pid alone is never
trusted: it is compared with the start time the kernel gave the process (docs/security.md I23).
"""

from __future__ import annotations

import _signal
import posix
from errno import ECHILD, ENOENT, ESRCH
from select import POLLIN, poll

from knarr.base.errors import KernelError

GONE = frozenset("ZX")
"""States of /proc/PID/stat that mean the process runs no more: zombie and dead."""


def process_stat(pid: int) -> tuple[str, int] | None:
    """Return (state letter, start time in clock ticks since boot) of a process, None when there is none."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        if error.errno == ENOENT:
            return None
        raise KernelError("open", f"/proc/{pid}/stat", error.errno or 0) from None
    try:
        data = posix.read(fd, 4096)
    except OSError as error:
        if error.errno == ESRCH:
            return None
        raise KernelError("read", f"/proc/{pid}/stat", error.errno or 0) from None
    finally:
        posix.close(fd)
    # pid (comm) state ppid …: the name may hold blanks and parentheses, so count from the last one.
    fields = data[data.rfind(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])


def in_user_namespace() -> bool:
    """Whether ids are mapped: the initial namespace has the one line ``0 0 4294967295`` (user_namespaces(7))."""
    try:
        fd = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return True
    try:
        return posix.read(fd, 4096).split() != [b"0", b"0", b"4294967295"]
    finally:
        posix.close(fd)


def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    fd = posix.open("/proc/sys/kernel/random/boot_id", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 64).decode().strip()
    finally:
        posix.close(fd)


def open_pid(pid: int, starttime: int = 0) -> int | None:
    """Return a pidfd of a live process, None when it is gone or, with ``starttime``, when the pid is another's now."""
    try:
        fd = posix.pidfd_open(pid)
    except OSError as error:
        if error.errno == ESRCH:
            return None
        raise KernelError("pidfd_open", str(pid), error.errno or 0) from None
    # Looked up after the pidfd was opened: if the start time fits now, the descriptor is that process.
    stat = process_stat(pid)
    if stat is None or stat[0] in GONE or (starttime and stat[1] != starttime):
        posix.close(fd)
        return None
    return fd


def signal_pid(pidfd: int, number: int) -> bool:
    """Send a signal; returns False when the process is gone. Raises KernelError (EINVAL, EPERM)."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        if error.errno == ESRCH:
            return False
        raise KernelError("pidfd_send_signal", str(number), error.errno or 0) from None
    return True


def ended(pidfd: int, timeout: float | None = 0.0) -> bool:
    """Whether the process has ended (a zombie has), waiting up to ``timeout`` seconds (None: for ever)."""
    poller = poll()
    poller.register(pidfd, POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def reap(pidfd: int, *, wait: bool = True) -> int | None:
    """Take the exit code of a child: 0 to 255, or 128 + the signal that ended it.

    None when it has not ended (``wait`` False), is not our child, or was already taken by somebody else.
    """
    try:
        result = posix.waitid(posix.P_PIDFD, pidfd, posix.WEXITED | (0 if wait else posix.WNOHANG))
    except OSError as error:
        if error.errno == ECHILD:
            return None
        raise KernelError("waitid", "", error.errno or 0) from None
    if result is None:
        return None
    return result.si_status if result.si_code == posix.CLD_EXITED else 128 + result.si_status


def set_scheduler(
    pid: int, policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int
) -> None:
    """Set another process's scheduling policy; times in nanoseconds. Raises KernelError."""
    from struct import pack

    from knarr.kernel.ffi import syscall

    # struct sched_attr as of Linux 5.3; an older kernel takes it as long as what it does not know is zero
    attr = pack("<IIQiIQQQII", 56, policy, flags, nice, priority, runtime, deadline, period, 0, 0)
    syscall("sched_setattr", pid, attr, 0, operand=str(pid))


def set_io_priority(pid: int, value: int) -> None:
    """Set another process's I/O class and priority: class << 13 | priority. Raises KernelError."""
    from knarr.kernel.ffi import syscall

    syscall("ioprio_set", 1, pid, value, operand=str(pid))  # IOPRIO_WHO_PROCESS

"""What a host gives its microVMs: KVM if it truly works, and the speed of its time stamp counter (cold).

That /dev/kvm is there says little: under some hypervisors a guest's kernel hangs in KVM, or QEMU ends at once. So a
guest of ours is booted, within a time limit, and what came of it is kept for as long as the host runs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from _socket import socket
from select import POLLIN, poll

from knarr.base.errors import FileError, KnarrError, SafetyViolation
from knarr.base.files import read_file, write_atomic
from knarr.base.record import Record
from knarr.kernel.process import boot_id, ended, reap, signal_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.isolation.qemu import Hypervisor
    from knarr.isolation.vm import Settings

PATIENCE = 2.0
"""Seconds a guest has to say something under KVM; where KVM works it takes a tenth of that."""
TRIED = "kvm"
DEVICE = "/dev/kvm"
TCG = "tcg,thread=multi,tb-size=128"  # MiB at most for translated code; QEMU's own limit is a GiB
_RDTSC = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; shl rdx,32; or rax,rdx; ret
_SAMPLE = 0.05


class Acceleration(Record):
    """``name``: ``kvm``, or QEMU's words for its own emulation; ``why`` it is not KVM; ``tsc``: kHz, 0 if not known."""

    name: str
    why: str = ""
    tsc: int = 0


def cache_directory() -> str:
    """Where knarr keeps what can be made again: KNARR_CACHE, root's /var/cache/knarr, $XDG_CACHE_HOME/knarr; made 0700.

    Raises FileError, SafetyViolation when it is another's: kernels are booted from it.
    """
    path = os.environ.get("KNARR_CACHE", "")
    if not path and os.geteuid() == 0:
        path = "/var/cache/knarr"
    if not path:
        home = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME') or '/nonexistent'}/.cache"
        path = f"{home}/knarr"
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        facts = os.stat(path)
    except OSError as error:
        raise FileError("make directory", path, error.errno or 0, hint="KNARR_CACHE names another place") from None
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise SafetyViolation("cache", path, "another user may write to it")
    return path


def remembered(hypervisor: Hypervisor, cache: str) -> Acceleration | None:
    """What was found since this host booted, with this version of QEMU; None when nothing was, or ``cache`` is ""."""
    return _remembered(f"{cache}/{_name(hypervisor)}") if cache else None


def find(hypervisor: Hypervisor, cache: str, small: Settings, device: str = "") -> Acceleration:
    """KVM if a guest boots with it, emulation otherwise; kept in ``cache``, unless that is "".

    ``small`` is the smallest guest that says something on its channel, with KVM and the counter's frequency.
    """
    why = why_not(hypervisor, small, device or DEVICE)
    found = Acceleration(TCG if why else TRIED, why, small.tsc)
    if cache:
        text = f"{found.name}\n{found.why}\n{found.tsc}\n"
        write_atomic(f"{cache}/{_name(hypervisor)}", text.encode(), mode=0o600)
        for old in os.listdir(cache):
            if old.startswith("accel-") and not old.startswith(f"accel-{boot_id()}"):
                os.unlink(f"{cache}/{old}")
    return found


def _name(hypervisor: Hypervisor) -> str:
    return f"accel-{boot_id()}-{'.'.join(map(str, hypervisor.version))}-{os.geteuid()}"


def _remembered(path: str) -> Acceleration | None:
    try:
        name, why, tsc, end = read_file(path, 4096).decode().split("\n")
    except (FileError, ValueError):
        return None
    return None if end or not tsc.isdecimal() else Acceleration(name, why, int(tsc))


def why_not(hypervisor: Hypervisor, small: Settings, device: str) -> str:
    """Why KVM is not used, in a few words; empty when a guest booted with it."""
    from knarr.isolation import vm

    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened" if os.path.exists(device) else f"there is no {device}"
    deadline = time.monotonic() + PATIENCE
    try:
        launched = vm.launch(hypervisor, small, deadline=deadline)
    except KnarrError as error:
        return error.sentence()
    channel = socket(fileno=launched.channel)
    try:
        wanted = poll()
        wanted.register(channel, POLLIN)
        if not wanted.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return f"a guest did not begin within {PATIENCE:.0f} s"
        if _received(channel):
            return ""
        ended(launched.pidfd, 1.0)
        said = os.read(launched.console, 65536).decode("utf-8", "replace").strip().splitlines()
        return f"QEMU ended: {said[-1] if said else 'it said nothing'}"[:300]
    finally:
        signal_pid(launched.pidfd, 9)
        ended(launched.pidfd, 10.0)
        reap(launched.pidfd, wait=False)
        os.close(launched.pidfd)
        if launched.helper is not None:
            launched.helper.kill()
            launched.helper.close()
        channel.close()
        os.close(launched.console)


def _received(end: socket) -> bytes:
    try:
        return end.recv(65536)
    except OSError:
        return b""


def tsc_khz() -> int:
    """The frequency of this processor's time stamp counter in kHz, measured in 0.05 s; 0 where it cannot be read.

    No file tells it: "cpu MHz" in /proc/cpuinfo is the clock of the moment.
    """
    if os.uname().machine != "x86_64":
        return 0
    try:
        # Never writable and executable at a time.
        fd = os.memfd_create("knarr-rdtsc", os.MFD_CLOEXEC)
        try:
            os.write(fd, _RDTSC)
            length = mmap.PAGESIZE
            os.ftruncate(fd, length)
            library = ctypes.CDLL(None, use_errno=True)
            library.mmap.restype = ctypes.c_void_p
            library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
            library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
            address = library.mmap(None, length, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
        finally:
            os.close(fd)
    except OSError:
        return 0
    if address in (None, ctypes.c_void_p(-1).value):
        return 0
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    try:
        begin, first = _together(read)
        time.sleep(_SAMPLE)
        end, last = _together(read)
    finally:
        library.munmap(address, length)
    return round((last - first) * 1e6 / (end - begin))


def _together(read: Callable[[], int]) -> tuple[int, int]:
    """Time in ns and the counter at one moment: the closest of some tries, since we may be interrupted in between."""
    best, found = 1 << 62, (0, 0)
    for _ in range(20):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if after - before < best:
            best, found = after - before, ((before + after) // 2, counter)
    return found

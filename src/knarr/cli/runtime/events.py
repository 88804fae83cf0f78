"""``knarr-runtime events`` (hot). The JSON is runc's (types/events.go there); containerd's go-runc reads it."""

from __future__ import annotations

import posix
from select import poll
from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import KernelError, UsageError, WrongStatus
from knarr.base.files import write_all
from knarr.runtime import record
from knarr.runtime.stats import stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context
    from knarr.runtime.monitored import GuestOomWatch
    from knarr.runtime.oom import OomWatch
    from knarr.runtime.record import State
    from knarr.runtime.stats import MemoryEntry, Stalls, Stats

_UNITS = (("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
# Names that differ from the kernel's.
_BLOCK = {
    "io_service_bytes": "ioServiceBytesRecursive",
    "io_serviced": "ioServicedRecursive",
    "io_queued": "ioQueueRecursive",
    "io_service_time": "ioServiceTimeRecursive",
    "io_wait_time": "ioWaitTimeRecursive",
    "io_merged": "ioMergedRecursive",
    "time": "ioTimeRecursive",
    "sectors": "sectorsRecursive",
}


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Print what a container uses, again and again until it is over, and each time it runs out of memory."""
    interval = duration(options.get("interval", "5s"))
    fd = record.open_container(context.root, operands[0])
    try:
        state = record.load(fd, operands[0])
        status = record.status(fd, state, freezer=False)
    finally:
        posix.close(fd)
    if status == "stopped":
        raise WrongStatus(state.id, "watch", status, hint=f"container with id {state.id} is not running")
    if options.get("stats"):
        _print("stats", state.id, shape(_stats(context.root, state)))
    else:
        _stream(context.root, state, interval)
    return 0


def _stats(root: str, state: State) -> Stats:
    """What a container uses; of one in a guest, what its guest says."""
    if state.isolation is None:
        return stats(state.cgroup)
    from knarr.runtime.stats import guest_stats

    return guest_stats(root, state.id)


def _watch(root: str, state: State) -> OomWatch | GuestOomWatch:
    if state.isolation is None:
        from knarr.runtime.oom import OomWatch

        return OomWatch(state.cgroup)
    from knarr.runtime.monitored import GuestOomWatch

    fd = record.open_container(root, state.id)
    try:
        return GuestOomWatch(fd, state.id)
    finally:
        posix.close(fd)


def _stream(root: str, state: State, interval: float) -> None:
    id = state.id
    watch = _watch(root, state)
    try:
        poller = poll()
        for fd, events in watch.fds:
            poller.register(fd, events)
        due = monotonic() + interval
        while not watch.over:
            if poller.poll(max(0.0, due - monotonic()) * 1000):
                _print_kills(id, watch.look())
            if monotonic() >= due:
                due += interval
                try:
                    _print("stats", id, shape(_stats(root, state)))
                except (KernelError, WrongStatus):  # its groups are gone, or its monitor
                    if state.isolation is not None:
                        _print_kills(id, watch.look())
                    return
    finally:
        watch.close()


def _print_kills(id: str, count: int) -> None:
    for _ in range(count):
        _print("oom", id, None)


def _print(kind: str, id: str, data: dict[str, Any] | None) -> None:
    event: dict[str, Any] = {"type": kind, "id": id}
    if data is not None:
        event["data"] = data
    write_all(1, fastjson.dumps(event) + b"\n")


def duration(text: str) -> float:
    """A duration as Go writes it (``1m30s``, ``500ms``, ``1.5h``) in seconds. Raises UsageError."""
    seconds, rest = 0.0, text
    while rest:
        digits = 0
        while digits < len(rest) and (rest[digits] in "0123456789."):
            digits += 1
        letters = digits
        while letters < len(rest) and rest[letters] not in "0123456789.":
            letters += 1
        unit = dict(_UNITS).get(rest[digits:letters])
        number = rest[:digits]
        if unit is None or number.count(".") > 1 or not number.replace(".", "") or digits > 15:
            break
        seconds += float(number) * unit
        rest = rest[letters:]
    if rest or seconds <= 0:
        raise UsageError(f"option --interval: {text!r} is not a duration above 0", hint="such as 5s, 500ms or 1m30s")
    return seconds


# -- runc's shape ------------------------------------------------------------------------------------------------------


def shape(used: Stats) -> dict[str, Any]:
    """The ``data`` of an event."""
    cpu, memory = used.cpu, used.memory
    usage = _some(total=cpu.total, percpu=cpu.percpu, percpu_kernel=cpu.percpu_kernel, percpu_user=cpu.percpu_user)
    usage.update(kernel=cpu.kernel, user=cpu.user)
    throttling = _some(periods=cpu.periods, throttledPeriods=cpu.throttled_periods, throttledTime=cpu.throttled)
    return {
        "cpu": {"usage": usage, "throttling": throttling, **_psi(cpu.stalls)},
        "cpuset": {**_some(cpus=used.cpuset.cpus, mems=used.cpuset.mems), **used.cpuset.flags},
        "memory": {
            **_some(cache=memory.cache),
            "usage": _memory(memory.usage),
            "swap": _memory(memory.swap),
            "kernel": _memory(memory.kernel),
            "kernelTCP": _memory(memory.kernel_tcp),
            **_some(raw=memory.raw),
            **_psi(memory.stalls),
        },
        "pids": _some(current=used.pids, limit=used.pids_limit),
        "blkio": {
            **{
                _BLOCK[name]: [
                    _some(major=major, minor=minor, op=op, value=value) for major, minor, op, value in entries
                ]
                for name, entries in used.block.items()
            },
            **_psi(used.block_stalls),
        },
        "hugetlb": {
            size: {**_some(usage=entry.usage, max=entry.max), "failcnt": entry.failures}
            for size, entry in used.huge.items()
        },
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _some(**fields: Any) -> dict[str, Any]:
    """Go leaves out what is empty."""
    return {name: list(value) if type(value) is tuple else value for name, value in fields.items() if value}


def _memory(entry: MemoryEntry) -> dict[str, Any]:
    return {"limit": entry.limit, **_some(usage=entry.usage, max=entry.max), "failcnt": entry.failures}


def _psi(stalls: Stalls | None) -> dict[str, Any]:
    if stalls is None:
        return {}
    lines = {"some": stalls.some, "full": stalls.full}
    return {
        "psi": {
            name: {"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total}
            for name, line in lines.items()
        }
    }

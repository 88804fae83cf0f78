"""What a container uses: files of its cgroups -> Stats (hot). The kernel's cgroup-v1/*.rst and cgroup-v2.rst.

``v1_stats`` and ``v2_stats`` are pure: they ask a function for the text of a file and turn it into numbers. A file that
is not there, because the kernel is older or the controller not enabled, says nothing: its numbers are 0. All times are
nanoseconds, all sizes bytes; NO_LIMIT stands where nothing limits.
"""

from __future__ import annotations

import posix

from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.runtime import cgroup, cgroup_probe
from knarr.runtime.cgroup_fs import open_group, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # (controller, file) -> its text, empty where there is none
    Read = Callable[[str, str], str]
    # (major, minor, operation, count)
    BlockEntries = tuple[tuple[int, int, str, int], ...]

NO_LIMIT = (1 << 64) - 1
_LIMIT = 1 << 20
_SECOND = 1_000_000_000


class Pressure(Record):
    """One line of a pressure file (v2, accounting/psi.rst): shares of time in percent, the total in microseconds."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: int = 0


class Stalls(Record):
    """How much of the time some, and all, processes waited for a resource."""

    some: Pressure
    full: Pressure


class Cpu(Record):
    """Processor time."""

    total: int = 0
    user: int = 0
    kernel: int = 0
    percpu: tuple[int, ...] = ()  # v1
    percpu_user: tuple[int, ...] = ()
    percpu_kernel: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0
    stalls: Stalls | None = None


class CpuSet(Record):
    """Where it may run (v1)."""

    cpus: tuple[int, ...]
    mems: tuple[int, ...]
    flags: dict[str, int]


class MemoryEntry(Record):
    """One kind of memory: in use, most that was, how often the limit was hit, the limit."""

    usage: int = 0
    max: int = 0
    failures: int = 0
    limit: int = 0


class Memory(Record):
    """Memory. ``swap`` is memory and swap together, as v1 counts; ``raw`` is memory.stat."""

    cache: int
    usage: MemoryEntry
    swap: MemoryEntry
    kernel: MemoryEntry
    kernel_tcp: MemoryEntry
    raw: dict[str, int]
    stalls: Stalls | None = None


class Stats(Record):
    """All of it. ``block`` has v1's tables by their names without ``_recursive``; ``pids_limit`` 0: none."""

    cpu: Cpu
    cpuset: CpuSet
    memory: Memory
    pids: int
    pids_limit: int
    block: dict[str, BlockEntries]
    huge: dict[str, MemoryEntry]
    block_stalls: Stalls | None = None


def stats(recorded: cgroup.Intent | None) -> Stats:
    """Read the files of a container's groups. Raises Unsupported without groups, KernelError when they are gone."""
    host = cgroup_probe.probe()
    if recorded is None or host is None:
        raise Unsupported("statistics of this container", "it has no cgroup of its own")
    places = {mountpoint: path for mountpoint, path, _ in recorded["groups"]}
    opened: dict[str, int] = {}
    try:
        if recorded["v2"]:
            fd = opened[""] = open_group(host.unified, places[host.unified])
            return v2_stats(lambda _, file: _text(fd, file), _page_sizes())
        for mount in host.mounts:
            if mount.mountpoint in places:
                fd = open_group(mount.mountpoint, places[mount.mountpoint])
                opened.update((name, fd) for name in mount.controllers)
        return v1_stats(
            lambda controller, file: _text(opened.get(controller, -1), file), _page_sizes(), posix.sysconf("SC_CLK_TCK")
        )
    finally:
        for fd in set(opened.values()):
            posix.close(fd)


def guest_stats(state_root: str, id: str) -> Stats:
    """The same of a container in a guest, by the files of its group there. Raises WrongStatus, KnarrError."""
    from knarr.base.errors import KnarrError  # cold: only for a container in a guest
    from knarr.runtime.monitored import ask
    from knarr.runtime.record import open_container

    fd = open_container(state_root, id)
    try:
        return v2_stats(lambda _, file: str(ask(fd, id, "read", file=file)["text"]), ())
    except (ValueError, IndexError, KeyError) as error:  # whatever a guest calls numbers
        raise KnarrError(f"what the guest of container {id} says of its use makes no sense: {error}") from None
    finally:
        posix.close(fd)


def _text(fd: int, file: str) -> str:
    if fd < 0:
        return ""
    try:
        return read(fd, file, _LIMIT)
    except OSError:
        return ""


def _page_sizes() -> tuple[str, ...]:
    """The sizes of huge pages as hugetlb files spell them: 2MB, 1GB."""
    try:
        names = posix.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return ()
    sizes = []
    for name in sorted(names):
        size, unit = number(name.removeprefix("hugepages-").removesuffix("kB")), 0
        while size >= 1024 and not size % 1024 and unit < 2:
            size, unit = size // 1024, unit + 1
        sizes.append(f"{size}{('KB', 'MB', 'GB')[unit]}")
    return tuple(sizes)


# -- texts -------------------------------------------------------------------------------------------------------------


def number(text: str) -> int:
    """``max`` is NO_LIMIT; what is no number 0."""
    text = text.strip()
    if text == "max":
        return NO_LIMIT
    return int(text) if text.isdecimal() and len(text) <= 20 else 0


def table(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            found[name] = number(value)
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Numbers with blanks between."""
    return tuple(number(word) for word in text.split())


def cpu_numbers(text: str) -> tuple[int, ...]:
    """``0-2,5`` -> 0, 1, 2, 5."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            found += range(int(first), min(int(last if dash else first), 65535) + 1)
    return tuple(found)


def block_entries(text: str) -> BlockEntries:
    """``8:0 Read 4096`` and ``8:0 4096``; the sum over all devices is left out."""
    found = []
    for line in text.splitlines():
        words = line.replace(":", " ", 1).split()
        if len(words) in (3, 4) and all(word.isdecimal() for word in (words[0], words[1], words[-1])):
            found.append((int(words[0]), int(words[1]), words[2] if len(words) == 4 else "", int(words[-1])))
    return tuple(found)


def stalls(text: str) -> Stalls | None:
    """A pressure file; None where the kernel counts no pressure."""
    lines: dict[str, Pressure] = {}
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        values = {name: value for name, _, value in (word.partition("=") for word in words)}
        try:
            lines[kind] = Pressure(
                float(values.get("avg10", 0)),
                float(values.get("avg60", 0)),
                float(values.get("avg300", 0)),
                number(values.get("total", "0")),
            )
        except ValueError:
            return None
    if "some" not in lines:
        return None
    return Stalls(lines["some"], lines.get("full", Pressure()))


# -- v1 ----------------------------------------------------------------------------------------------------------------

_BLOCK = (
    *("io_service_bytes", "io_serviced", "io_queued", "io_service_time", "io_wait_time", "io_merged"),
    *("time", "sectors"),
)
_CPUSET_FLAGS = (
    *("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab"),
    *("memory_pressure", "sched_load_balance"),
)


def v1_stats(read: Read, page_sizes: tuple[str, ...], ticks: int) -> Stats:
    """From the files of the v1 hierarchies; ``ticks`` a second in cpuacct.stat."""
    throttling = table(read("cpu", "cpu.stat"))
    used = table(read("cpuacct", "cpuacct.stat"))
    by_mode = [numbers(line) for line in read("cpuacct", "cpuacct.usage_all").splitlines()[1:]]
    by_mode = [line for line in by_mode if len(line) >= 3]
    cpu = Cpu(
        total=number(read("cpuacct", "cpuacct.usage")),
        user=used.get("user", 0) * _SECOND // ticks,
        kernel=used.get("system", 0) * _SECOND // ticks,
        percpu=numbers(read("cpuacct", "cpuacct.usage_percpu")),
        percpu_user=tuple(line[1] for line in by_mode),
        percpu_kernel=tuple(line[2] for line in by_mode),
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled=throttling.get("throttled_time", 0),
    )
    flags = {name: number(read("cpuset", f"cpuset.{name}")) for name in _CPUSET_FLAGS}
    level = read("cpuset", "cpuset.sched_relax_domain_level").strip()
    flags["sched_relax_domain_level"] = -number(level[1:]) if level.startswith("-") else number(level)
    raw = table(read("memory", "memory.stat"))
    memory = Memory(
        cache=raw.get("cache", 0),
        usage=_v1_memory(read, "memory"),
        swap=_v1_memory(read, "memory.memsw"),
        kernel=_v1_memory(read, "memory.kmem"),
        kernel_tcp=_v1_memory(read, "memory.kmem.tcp"),
        raw=raw,
    )
    limit = number(read("pids", "pids.max"))
    huge = {}
    for size in page_sizes:
        name = f"hugetlb.{size}.rsvd" if read("hugetlb", f"hugetlb.{size}.rsvd.usage_in_bytes") else f"hugetlb.{size}"
        if read("hugetlb", f"{name}.usage_in_bytes"):
            huge[size] = _v1_counters(lambda file, name=name: read("hugetlb", f"{name}.{file}"))  # type: ignore[misc]
    return Stats(
        cpu=cpu,
        cpuset=CpuSet(cpu_numbers(read("cpuset", "cpuset.cpus")), cpu_numbers(read("cpuset", "cpuset.mems")), flags),
        memory=memory,
        pids=number(read("pids", "pids.current")),
        pids_limit=0 if limit == NO_LIMIT else limit,
        block=_v1_block(read),
        huge=huge,
    )


def _v1_memory(read: Read, name: str) -> MemoryEntry:
    return _v1_counters(lambda file: read("memory", f"{name}.{file}"))


def _v1_counters(value: Callable[[str], str]) -> MemoryEntry:
    usage = value("usage_in_bytes")
    if not usage:
        return MemoryEntry()
    return MemoryEntry(
        number(usage), number(value("max_usage_in_bytes")), number(value("failcnt")), number(value("limit_in_bytes"))
    )


def _v1_block(read: Read) -> dict[str, BlockEntries]:
    """Of the scheduler that keeps count: BFQ, the older CFQ, or else the throttling layer."""
    for prefix, suffix in (("bfq.", "_recursive"), ("", "_recursive"), ("throttle.", "_recursive"), ("throttle.", "")):
        found = {name: block_entries(read("blkio", f"blkio.{prefix}{name}{suffix}")) for name in _BLOCK}
        found = {name: entries for name, entries in found.items() if entries}
        if found:
            return found
    return {}


# -- v2 ----------------------------------------------------------------------------------------------------------------

_IO = {
    "rbytes": ("io_service_bytes", "Read"),
    "wbytes": ("io_service_bytes", "Write"),
    "rios": ("io_serviced", "Read"),
    "wios": ("io_serviced", "Write"),
}


def v2_stats(read: Read, page_sizes: tuple[str, ...]) -> Stats:
    """From the files of a v2 group, in v1's terms: swap with memory, operations named as there."""
    used = table(read("cpu", "cpu.stat"))
    cpu = Cpu(
        total=used.get("usage_usec", 0) * 1000,
        user=used.get("user_usec", 0) * 1000,
        kernel=used.get("system_usec", 0) * 1000,
        periods=used.get("nr_periods", 0),
        throttled_periods=used.get("nr_throttled", 0),
        throttled=used.get("throttled_usec", 0) * 1000,
        stalls=stalls(read("cpu", "cpu.pressure")),
    )
    raw = table(read("memory", "memory.stat"))
    usage = _v2_memory(read, "memory")
    swap = _v2_memory(read, "memory.swap")
    together = MemoryEntry(
        swap.usage + usage.usage,
        0,
        swap.failures,
        NO_LIMIT if NO_LIMIT in (swap.limit, usage.limit) else swap.limit + usage.limit,
    )
    memory = Memory(
        cache=raw.get("file", 0),
        usage=usage,
        swap=together,
        kernel=MemoryEntry(),
        kernel_tcp=MemoryEntry(),
        raw=raw,
        stalls=stalls(read("memory", "memory.pressure")),
    )
    limit = number(read("pids", "pids.max"))
    current = read("pids", "pids.current")
    huge = {}
    for size in page_sizes:
        usage_text = read("hugetlb", f"hugetlb.{size}.rsvd.current") or read("hugetlb", f"hugetlb.{size}.current")
        if usage_text:
            failures = table(read("hugetlb", f"hugetlb.{size}.events")).get("max", 0)
            huge[size] = MemoryEntry(number(usage_text), 0, failures, 0)
    return Stats(
        cpu=cpu,
        cpuset=CpuSet((), (), dict.fromkeys((*_CPUSET_FLAGS, "sched_relax_domain_level"), 0)),
        memory=memory,
        pids=number(current) if current else len(read("pids", "cgroup.procs").split()),
        pids_limit=0 if limit == NO_LIMIT else limit,
        block=_v2_block(read("io", "io.stat")),
        huge=huge,
        block_stalls=stalls(read("io", "io.pressure")),
    )


def _v2_memory(read: Read, name: str) -> MemoryEntry:
    usage = read("memory", f"{name}.current")
    if not usage:
        return MemoryEntry()
    return MemoryEntry(
        number(usage),
        number(read("memory", f"{name}.peak")),
        table(read("memory", f"{name}.events")).get("max", 0),
        number(read("memory", f"{name}.max")),
    )


def _v2_block(text: str) -> dict[str, BlockEntries]:
    found: dict[str, list[tuple[int, int, str, int]]] = {}
    for line in text.splitlines():
        device, *words = line.split() or [""]
        major, colon, minor = device.partition(":")
        if not colon or not major.isdecimal() or not minor.isdecimal():
            continue
        for word in words:
            key, _, value = word.partition("=")
            if key in _IO and value.isdecimal():
                name, operation = _IO[key]
                found.setdefault(name, []).append((int(major), int(minor), operation, int(value)))
    return {name: tuple(entries) for name, entries in found.items()}

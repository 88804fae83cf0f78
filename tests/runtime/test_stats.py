"""runtime/stats.py on texts as kernels write them, and on what none should write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from knarr.runtime import stats
from knarr.runtime.stats import NO_LIMIT, MemoryEntry, Pressure, Stalls, v1_stats, v2_stats

V1 = {
    ("cpu", "cpu.stat"): "nr_periods 7\nnr_throttled 2\nthrottled_time 123\nnr_bursts 0\n",
    ("cpuacct", "cpuacct.usage"): "5000\n",
    ("cpuacct", "cpuacct.stat"): "user 3\nsystem 2\n",
    ("cpuacct", "cpuacct.usage_percpu"): "0 5000 \n",
    ("cpuacct", "cpuacct.usage_all"): "cpu user system\n0 0 0\n1 3000 2000\n",
    ("cpuset", "cpuset.cpus"): "0-2,5\n",
    ("cpuset", "cpuset.mems"): "0\n",
    ("cpuset", "cpuset.sched_load_balance"): "1\n",
    ("cpuset", "cpuset.sched_relax_domain_level"): "-1\n",
    ("memory", "memory.stat"): "cache 4096\nrss 8192\n",
    ("memory", "memory.usage_in_bytes"): "10\n",
    ("memory", "memory.max_usage_in_bytes"): "20\n",
    ("memory", "memory.failcnt"): "3\n",
    ("memory", "memory.limit_in_bytes"): "9223372036854771712\n",
    ("memory", "memory.kmem.usage_in_bytes"): "5\n",  # newer kernels have no kmem.limit_in_bytes
    ("pids", "pids.current"): "4\n",
    ("pids", "pids.max"): "max\n",
    ("blkio", "blkio.throttle.io_service_bytes"): "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n",
    ("blkio", "blkio.throttle.io_serviced"): "8:0 Read 1\nTotal 1\n",
    ("hugetlb", "hugetlb.2MB.usage_in_bytes"): "0\n",
    ("hugetlb", "hugetlb.2MB.failcnt"): "1\n",
}
V2 = {
    "cpu.stat": "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.25 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "memory.stat": "anon 8192\nfile 4096\n",
    "memory.current": "10\n",
    "memory.max": "100\n",
    "memory.peak": "20\n",
    "memory.events": "low 0\nmax 3\noom_kill 1\n",
    "memory.swap.current": "5\n",
    "memory.swap.max": "50\n",
    "pids.current": "4\n",
    "pids.max": "9\n",
    "io.stat": "8:0 rbytes=4096 wbytes=0 rios=1 wios=2 dbytes=0 dios=0\n254:1\n",
    "hugetlb.1GB.current": "0\n",
    "hugetlb.1GB.events": "max 2\n",
}


def test_v1() -> None:
    found = v1_stats(lambda controller, file: V1.get((controller, file), ""), ("2MB", "1GB"), 100)
    assert found.cpu == stats.Cpu(5000, 30_000_000, 20_000_000, (0, 5000), (0, 3000), (0, 2000), 7, 2, 123)
    assert (found.cpuset.cpus, found.cpuset.mems) == ((0, 1, 2, 5), (0,))
    assert found.cpuset.flags["sched_load_balance"] == 1
    assert found.cpuset.flags["sched_relax_domain_level"] == -1
    assert found.memory.cache == 4096
    assert found.memory.usage == MemoryEntry(10, 20, 3, 9223372036854771712)
    assert found.memory.swap == MemoryEntry()
    assert found.memory.kernel == MemoryEntry(5, 0, 0, 0)
    assert (found.pids, found.pids_limit) == (4, 0)
    assert found.block == {
        "io_service_bytes": ((8, 0, "Read", 4096), (8, 0, "Total", 4096)),
        "io_serviced": ((8, 0, "Read", 1),),
    }
    assert found.huge == {"2MB": MemoryEntry(0, 0, 1, 0)}


def test_v1_prefers_the_scheduler_s_own_count() -> None:
    texts = {**V1, ("blkio", "blkio.bfq.io_serviced_recursive"): "8:0 Read 9\nTotal 9\n"}
    found = v1_stats(lambda controller, file: texts.get((controller, file), ""), (), 100)
    assert found.block == {"io_serviced": ((8, 0, "Read", 9),)}


def test_v2() -> None:
    found = v2_stats(lambda _, file: V2.get(file, ""), ("1GB",))
    assert (found.cpu.total, found.cpu.user, found.cpu.kernel, found.cpu.throttled) == (50_000, 30_000, 20_000, 9_000)
    assert found.cpu.stalls == Stalls(Pressure(1.5, 0.0, 0.25, 77), Pressure(0.0, 0.0, 0.0, 1))
    assert found.memory.usage == MemoryEntry(10, 20, 3, 100)
    assert found.memory.swap == MemoryEntry(15, 0, 0, 150)
    assert found.memory.stalls is None
    assert (found.pids, found.pids_limit) == (4, 9)
    assert found.block == {
        "io_service_bytes": ((8, 0, "Read", 4096), (8, 0, "Write", 0)),
        "io_serviced": ((8, 0, "Read", 1), (8, 0, "Write", 2)),
    }
    assert found.huge == {"1GB": MemoryEntry(0, 0, 2, 0)}


def test_v2_without_limits_and_controllers() -> None:
    texts = {**V2, "memory.max": "max\n"}
    assert v2_stats(lambda _, file: texts.get(file, ""), ()).memory.swap.limit == NO_LIMIT
    bare = v2_stats(lambda _, file: {"cgroup.procs": "1\n2\n3\n"}.get(file, ""), ())
    assert (bare.pids, bare.pids_limit, bare.memory.usage) == (3, 0, MemoryEntry())


@given(some.text() | some.text(" :=0123456789.\n-aRx,"))
def test_no_text_is_too_odd(text: str) -> None:
    """Whatever a file says, there are numbers in the end."""
    assert v1_stats(lambda _controller, _file: text, ("2MB",), 100).cpu.total >= 0
    assert v2_stats(lambda _controller, _file: text, ("2MB",)).cpu.total >= 0


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("3", (3,)), ("0-1,4", (0, 1, 4)), ("x,1-y,2", (2,)), ("2-1", ())]
)
def test_lists_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    assert stats.cpu_numbers(text) == cpus
    assert len(stats.cpu_numbers("0-99999999999999")) == 65536

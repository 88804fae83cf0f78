"""The init's operations on scheduling, CPUs, memory nodes and personality; an ordinary user may do these to itself."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

import pytest
from initlaunch import ROOT_ONLY, Launcher, shell

from knarr.plan.ops import Op

NICE, PRIORITY, POLICY = 18, 39, 40  # of /proc/PID/stat, counted from 0


def stat_of(launcher: Launcher, *plan: Op) -> list[str]:
    # the whole line: the shell has no blank in its name
    return launcher.output([*plan, *shell("read -r line </proc/$$/stat; echo $line")]).split()


def test_a_lower_nice_and_the_batch_and_idle_policies(launcher: Launcher) -> None:
    assert stat_of(launcher, Op("scheduler", [0, 0, 11, 0, 0, 0, 0]))[NICE] == "11"
    assert stat_of(launcher, Op("scheduler", [3, 0, 12, 0, 0, 0, 0]))[POLICY] == "3"
    assert stat_of(launcher, Op("scheduler", [5, 0, 0, 0, 0, 0, 0]))[POLICY] == "5"


@ROOT_ONLY
def test_a_negative_nice_travels_and_real_time_has_its_priority(launcher: Launcher) -> None:
    assert stat_of(launcher, Op("scheduler", [0, 0, -4, 0, 0, 0, 0]))[NICE] == "-4"
    found = stat_of(launcher, Op("scheduler", [2, 0, 0, 17, 0, 0, 0]))
    assert (found[PRIORITY], found[POLICY]) == ("17", "2")


@pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user")
def test_real_time_is_refused_to_an_ordinary_user(launcher: Launcher) -> None:
    launcher.start([Op("scheduler", [1, 0, 0, 5, 0, 0, 0])]).finish().refused(0, errno.EPERM)


def test_a_policy_that_is_none(launcher: Launcher) -> None:
    launcher.start([Op("setsid"), Op("scheduler", [77, 0, 0, 0, 0, 0, 0])]).finish().refused(1, errno.EINVAL)


def test_io_priority(launcher: Launcher) -> None:
    assert launcher.output([Op("io_priority", [2 << 13 | 6]), *shell("ionice")]) == "best-effort: prio 6\n"
    launcher.start([Op("io_priority", [7 << 13])]).finish().refused(0, errno.EINVAL)


def test_cpu_affinity(launcher: Launcher) -> None:
    cpu = max(os.sched_getaffinity(0))
    words = [(1 << cpu) >> shift & (1 << 64) - 1 for shift in range(0, cpu + 1, 64)]
    seen = launcher.output([Op("cpu_affinity", words), *shell("grep Cpus_allowed_list /proc/self/status")])
    assert seen.split()[1] == str(cpu)
    launcher.start([Op("cpu_affinity", [])]).finish().refused(0, errno.EINVAL)
    launcher.start([Op("cpu_affinity", [0, 0, 1 << 63])]).finish().refused(0, errno.EINVAL)


def test_personality(launcher: Launcher) -> None:
    narrow = {"x86_64": "i686", "aarch64": "armv8l"}[platform.machine()]
    assert launcher.output([Op("personality", [8]), *shell("uname -m")]) == f"{narrow}\n"


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="this kernel has no memory nodes (CONFIG_NUMA)")
def test_memory_policy(launcher: Launcher) -> None:
    show = shell("read -r address policy rest </proc/$$/numa_maps; echo $policy")
    assert launcher.output([Op("memory_policy", [2, 1]), *show]) == "bind:0\n"
    assert launcher.output([Op("memory_policy", [4]), *show]) == "local\n"
    assert launcher.output([Op("memory_policy", [2, 1]), Op("memory_policy", [0]), *show]) == "default\n"
    # bit 63 of the second word: the last one of a mask is read, too
    launcher.start([Op("memory_policy", [2, 0, 1 << 63])]).finish().refused(0, errno.EINVAL)


def test_memory_policy_on_a_kernel_without_nodes(launcher: Launcher) -> None:
    if Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel has memory nodes")
    launcher.start([Op("memory_policy", [2, 1])]).finish().refused(0, errno.ENOSYS)

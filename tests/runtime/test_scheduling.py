"""scheduler, ioPriority, execCPUAffinity, personality and memoryPolicy, as the program finds them.

runc 1.1.5 knows none of them (personality came with 1.2, ioPriority and scheduler too); crun 1.8.1 knows personality
alone. Newer ones have all: where a runtime plainly ignores the field its test is skipped, and says so.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

pytestmark = [needs_busybox, needs_root]

# Of /proc/self/stat, after the name: nice is field 19, rt_priority 40, policy 41 (proc(5)).
SCHEDULING = "read -r line </proc/self/stat; set -- ${line##*) }; echo ${17} ${38} ${39}"


def outcome(runtime: Runtime, bundle: Bundle, script: str) -> str:
    return runtime.ok("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id()).strip()


def give_real_time(bundle: Bundle) -> None:
    """A v1 group gets none by itself where the kernel shares it out (CONFIG_RT_GROUP_SCHED)."""
    if os.path.exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"):
        bundle.config["linux"]["resources"]["cpu"] = {"realtimeRuntime": 5000}


def unless_ignored(runtime: Runtime, seen: str, untouched: str, wanted: str) -> None:
    """The wanted outcome, or a skip for another runtime that does not know the field."""
    if runtime.name != "knarr" and seen == untouched:
        pytest.skip(f"this {runtime.name} ignores the field")
    assert seen == wanted


@pytest.fixture
def applets(bundle: Bundle) -> Bundle:
    for name in ("uname", "ionice", "nproc", "taskset"):
        (bundle.rootfs / "bin" / name).symlink_to("busybox")
    return bundle


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"policy": "SCHED_OTHER", "nice": 7}, "7 0 0"),
        ({"policy": "SCHED_OTHER", "nice": -3}, "-3 0 0"),
        ({"policy": "SCHED_BATCH", "nice": 3}, "3 0 3"),
        ({"policy": "SCHED_IDLE"}, "0 0 5"),
        ({"policy": "SCHED_FIFO", "priority": 11}, "0 11 1"),
        ({"policy": "SCHED_RR", "priority": 12, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, "0 12 2"),
        (
            {"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 40_000_000, "period": 50_000_000},
            "0 0 6",
        ),
    ],
)
def test_scheduler(asked: dict[str, Any], wanted: str, runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["process"]["scheduler"] = asked
    give_real_time(bundle)
    unless_ignored(runtime, outcome(runtime, bundle, SCHEDULING), "0 0 0", wanted)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"class": "IOPRIO_CLASS_RT", "priority": 2}, "realtime: prio 2"),
        ({"class": "IOPRIO_CLASS_BE", "priority": 6}, "best-effort: prio 6"),
        ({"class": "IOPRIO_CLASS_IDLE"}, "idle"),
    ],
)
def test_io_priority(asked: dict[str, Any], wanted: str, runtime: Runtime, applets: Bundle) -> None:
    applets.config["process"]["ioPriority"] = asked
    unless_ignored(runtime, outcome(runtime, applets, "ionice"), "none: prio 0", wanted)


def test_personality(runtime: Runtime, applets: Bundle) -> None:
    applets.config["linux"]["personality"] = {"domain": "LINUX32"}
    machine = {"x86_64": "i686", "aarch64": "armv8l"}[os.uname().machine]
    unless_ignored(runtime, outcome(runtime, applets, "uname -m"), os.uname().machine, machine)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, "bind:0"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "interleave=static:0"),
        ({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}, "prefer=relative:0"),
        ({"mode": "MPOL_LOCAL"}, "local"),
    ],
)
def test_memory_policy(asked: dict[str, Any], wanted: str, runtime: Runtime, bundle: Bundle) -> None:
    if not os.path.exists("/sys/devices/system/node"):
        pytest.skip("this kernel has no memory nodes (CONFIG_NUMA)")
    bundle.config["linux"]["memoryPolicy"] = asked
    script = "while read -r a policy more; do echo $policy; done </proc/self/numa_maps | head -n 1"
    unless_ignored(runtime, outcome(runtime, bundle, script), "default", wanted)


@pytest.mark.skipif(not os.path.exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"), reason="no cgroup v1 with real time")
def test_a_group_without_real_time_is_an_error_with_a_hint(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["process"]["scheduler"] = {"policy": "SCHED_FIFO", "priority": 5}
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "config.json /process/scheduler: set the scheduling policy: operation not permitted" in done.stderr
    assert "resources.cpu.realtimeRuntime" in done.stderr


def test_memory_policy_without_such_a_node_is_an_error(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "900"}
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "config.json /linux/memoryPolicy: set the memory policy: invalid argument" in done.stderr
    assert "none of the nodes is there" in done.stderr


def test_in_a_user_namespace_root_of_the_host_sets_what_takes_its_power(runtime: Runtime, applets: Bundle) -> None:
    config = applets.config
    config["linux"]["namespaces"].append({"type": "user"})
    for side in ("uidMappings", "gidMappings"):
        config["linux"][side] = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    for folder in (applets.path, *applets.path.parents):
        if str(folder).startswith(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o711)
    for top, _, files in os.walk(applets.rootfs):
        for path in (top, *(f"{top}/{name}" for name in files)):
            os.chown(path, 100_000, 100_000, follow_symlinks=False)
    config["process"]["scheduler"] = {"policy": "SCHED_FIFO", "priority": 5}
    give_real_time(applets)
    config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_RT", "priority": 1}
    seen = outcome(runtime, applets, f"{SCHEDULING}; ionice")
    unless_ignored(runtime, seen, "0 0 0\nnone: prio 0", "0 5 1\nrealtime: prio 1")


def test_exec_takes_them_from_its_document_or_the_container(runtime: Runtime, applets: Bundle, tmp_path: Path) -> None:
    process = applets.config["process"]
    process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 4}
    process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 7}
    applets.config["linux"]["personality"] = {"domain": "LINUX32"}
    id = runtime.new_id()
    runtime.ok("create", "--bundle", applets.write("sleep", "60"), id)
    runtime.ok("start", id)
    script = f"{SCHEDULING}; ionice; uname -m"
    machine = {"x86_64": "i686", "aarch64": "armv8l"}[os.uname().machine]
    wanted = f"4 0 3\nbest-effort: prio 7\n{machine}"
    seen = runtime.ok("exec", id, "sh", "-c", script).strip()
    if runtime.name != "knarr" and seen != wanted:
        pytest.skip(f"this {runtime.name} ignores some of the fields")
    assert seen == wanted
    document = {
        "args": ["sh", "-c", script],
        "cwd": "/",
        "env": process["env"],
        "user": process["user"],
        "scheduler": {"policy": "SCHED_OTHER", "nice": 9},
    }
    (tmp_path / "process.json").write_text(json.dumps(document))
    seen = runtime.ok("exec", "--process", str(tmp_path / "process.json"), id).strip()
    assert seen == f"9 0 0\nbest-effort: prio 7\n{machine}"


CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
def test_exec_cpu_affinity(runtime: Runtime, applets: Bundle, tmp_path: Path) -> None:
    first, second = CPUS[:2]
    process = applets.config["process"]
    process["execCPUAffinity"] = {"initial": str(first), "final": str(second)}
    id = runtime.new_id()
    runtime.ok("create", "--bundle", applets.write("sleep", "60"), id)
    runtime.ok("start", id)
    show = "grep Cpus_allowed_list /proc/self/status"
    pid = runtime.state(id)["pid"]
    assert os.sched_getaffinity(pid) == set(CPUS), "it is no setting of the container's first process"
    seen = runtime.ok("exec", id, "sh", "-c", show).split()[-1]
    unless_ignored(runtime, seen, f"{CPUS[0]}-{CPUS[-1]}", str(second))
    document = {"args": ["sh", "-c", show], "cwd": "/", "env": process["env"], "user": process["user"]}
    for affinity, wanted in (({"final": str(first)}, first), ({"initial": str(first)}, first), (None, second)):
        if affinity:
            document["execCPUAffinity"] = affinity
        else:
            del document["execCPUAffinity"]
        (tmp_path / "process.json").write_text(json.dumps(document))
        seen = runtime.ok("exec", "--process", str(tmp_path / "process.json"), id).split()[-1]
        assert seen == str(wanted)


def test_cpus_that_are_not_there_are_an_error(ours: Runtime, applets: Bundle) -> None:
    applets.config["process"]["execCPUAffinity"] = {"final": "4000-4003"}
    id = ours.new_id()
    ours.ok("create", "--bundle", applets.write("sleep", "60"), id)
    done = ours("exec", id, "true")
    assert done.returncode != 0
    assert "set the CPU affinity: invalid argument" in done.stderr
    assert "none of these CPUs is there" in done.stderr

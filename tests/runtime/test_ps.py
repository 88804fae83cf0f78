"""ps: the processes of a container, as a table and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

pytestmark = [needs_busybox]


def two_processes(runtime: Runtime, bundle: Bundle) -> tuple[str, list[int]]:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", "sleep 1001 & exec sleep 1002"), id)
    deadline = time.monotonic() + 10
    while len(pids := json.loads(runtime.ok("ps", "--format", "json", id)) or []) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return id, pids


@needs_root
def test_json_is_the_list_of_pids(runtime: Runtime, bundle: Bundle) -> None:
    id, pids = two_processes(runtime, bundle)
    assert runtime.state(id)["pid"] in pids
    assert len(pids) == len(set(pids)) == 2
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    if runtime.name != "crun":  # which 1.8.1 crashes at
        assert json.loads(runtime.ok("ps", "-f", "json", id)) is None


@needs_root
def test_the_table_is_what_ps_says_of_them(runtime: Runtime, bundle: Bundle) -> None:
    if shutil.which("ps") is None:
        pytest.skip("ps is not installed (procps)")
    id, pids = two_processes(runtime, bundle)
    head, *lines = runtime.ok("ps", id).splitlines()
    if runtime.name == "crun":
        assert head == "PID"
        assert sorted(int(line) for line in lines) == sorted(pids)
        return
    assert head.split()[:2] == ["UID", "PID"]
    assert sorted(int(line.split()[1]) for line in lines) == sorted(pids)
    assert {line.split()[-1] for line in lines} == {"1001", "1002"}
    head, *lines = runtime.ok("ps", id, "-eo", "comm,pid").splitlines()
    assert head.split() == ["COMMAND", "PID"]
    assert sorted(int(line.split()[1]) for line in lines) == sorted(pids)
    assert all(line.startswith("sleep") for line in lines)


@needs_root
def test_what_ps_cannot_do(runtime: Runtime, bundle: Bundle) -> None:
    if shutil.which("ps") is None:
        pytest.skip("ps is not installed (procps)")
    if runtime.name == "crun":
        pytest.skip("crun hands nothing to ps(1)")
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("true"), id)
    for words, said in ((("-eo", "comm"), "PID"), (("--nonsense",), "option")):
        done = runtime("ps", id, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
    assert runtime("ps", "--format", "yaml", id).returncode == 1
    assert runtime("ps", "nobody").returncode == 1
    assert runtime("ps").returncode == 1


@needs_root
def test_without_ps_installed(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    done = ours("ps", id, env={**os.environ, "PATH": "/nowhere"})
    assert done.returncode == 1
    assert "run ps: no such file or directory (install procps" in done.stderr
    assert json.loads(ours.ok("ps", "--format", "json", id, env={**os.environ, "PATH": "/nowhere"}))


def test_a_container_without_cgroups_is_told_by_its_pid_namespace(ours: Runtime, bundle: Bundle) -> None:
    """An ordinary user's container: nothing but the pid namespace says what belongs to it."""
    if os.geteuid() == 0:
        pytest.skip("root's containers have cgroups")
    id, pids = two_processes(ours, bundle)
    assert ours.state(id)["pid"] in pids
    spaces = {os.readlink(f"/proc/{pid}/ns/pid") for pid in pids}
    assert len(spaces) == 1
    assert spaces != {os.readlink("/proc/self/ns/pid")}

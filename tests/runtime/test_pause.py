"""pause, resume, and what the other verbs make of a paused container. Runs on v1 and, under user-mode Linux, on v2."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
from blackbox import Bundle, Runtime, end, left_behind, needs_busybox, needs_root, process_state

pytestmark = [needs_busybox, needs_root]

STOPPED = "DS"  # a process the v1 freezer holds is shown as D, one the v2 freezer holds as S


def started(runtime: Runtime, bundle: Bundle, *args: str) -> str:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write(*(args or ("sleep", "1000"))), id)
    return id


def test_pause_and_resume(runtime: Runtime, bundle: Bundle) -> None:
    """A counter stands still while the container is paused and goes on after."""
    count = bundle.rootfs / "tmp/count"
    script = "n=0; while true; do n=$((n+1)); echo $n > /tmp/new; mv /tmp/new /tmp/count; sleep 0.01; done"
    bundle.rootfs.joinpath("bin/mv").symlink_to("busybox")
    id = started(runtime, bundle, "sh", "-c", script)
    for _ in range(500):
        if count.exists():
            break
        time.sleep(0.01)
    for _ in range(5 if runtime.name == "runc" else 1):  # runc 1.1 gives up on v1's freezer when processes come and go
        done = runtime("pause", id)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert runtime.state(id)["status"] == "paused"
    first = count.read_text()
    time.sleep(0.15)
    assert count.read_text() == first
    runtime.ok("resume", id)
    assert runtime.state(id)["status"] == "running"
    deadline = time.monotonic() + 10
    while count.read_text() == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_others_say_of_a_paused_container(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle)
    runtime.ok("pause", id)
    refused = runtime("exec", id, "true")
    assert refused.returncode == (1 if runtime.name == "crun" else 255)
    assert "paused" in refused.stderr
    assert runtime("start", id).returncode == 1
    assert runtime("delete", id).returncode == 1
    assert runtime.state(id)["status"] == "paused"
    pid = runtime.state(id)["pid"]
    assert json.loads(runtime.ok("ps", "--format", "json", id)) == [pid]
    assert process_state(pid) in STOPPED
    assert [line.split()[2] for line in runtime.ok("list").splitlines() if id in line] == ["paused"]
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


def test_pause_and_resume_of_the_wrong_status(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle, "sh", "-c", "trap exit TERM; while true; do sleep 0.01; done")
    if runtime.name != "crun":  # which resumes anything, and pauses twice
        again = runtime("resume", id)
        assert (again.returncode, "not paused" in again.stderr) == (1, True)
        runtime.ok("pause", id)
        again = runtime("pause", id)
        assert (again.returncode, "container not running" in again.stderr) == (1, True)
        runtime.ok("resume", id)
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    for verb in ("pause", "resume"):
        done = runtime(verb, id)
        assert done.returncode == 1
        assert "not running" in done.stderr or "not paused" in done.stderr
    missing = runtime("pause", "nobody")
    assert (missing.returncode, "nobody" in missing.stderr or "does not exist" in missing.stderr) == (1, True)


def test_a_created_container_can_be_paused(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("sleep", "1000"), id)
    runtime.ok("pause", id)
    if runtime.name != "crun":  # which calls it created, and hangs in start or lets it run
        assert runtime.state(id)["status"] == "paused"
        assert runtime("start", id).returncode == 1
    runtime.ok("resume", id)
    assert runtime.state(id)["status"] == "created"
    runtime.ok("start", id)
    assert runtime.wait_for(id, "running")["pid"]


def test_a_signal_waits_until_it_goes_on_but_sigkill_does_not(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle, "sh", "-c", "trap 'echo term > /tmp/got; exit' TERM; while true; do sleep 0.01; done")
    time.sleep(0.1)
    runtime.ok("pause", id)
    runtime.ok("kill", id, "TERM")
    time.sleep(0.1)
    assert not (bundle.rootfs / "tmp/got").exists()
    runtime.ok("resume", id)
    runtime.wait_for(id, "stopped")
    assert (bundle.rootfs / "tmp/got").read_text() == "term\n"
    other = started(runtime, bundle)
    runtime.ok("pause", other)
    runtime.ok("kill", other, "KILL")
    if runtime.name == "crun":  # leaves it frozen on v1
        runtime("resume", other)
    runtime.wait_for(other, "stopped")


def test_exec_in_a_paused_container_waits_if_asked_to(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("crun has no --ignore-paused")
    id = started(runtime, bundle)
    runtime.ok("pause", id)
    waiting = runtime.popen("exec", "--ignore-paused", id, "echo", "hello", stdout=subprocess.PIPE)
    time.sleep(0.4)
    assert waiting.poll() is None
    runtime.ok("resume", id)
    assert waiting.communicate(timeout=20)[0] == b"hello\n"
    assert waiting.returncode == 0


def test_an_exec_that_waits_for_a_paused_container_can_be_interrupted(ours: Runtime, bundle: Bundle) -> None:
    """Its process stands still in the frozen group, where on v1 not even SIGKILL would end it."""
    id = started(ours, bundle)
    ours.ok("pause", id)
    waiting = ours.popen("exec", "--ignore-paused", id, "echo", "hello", stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while len(json.loads(ours.ok("ps", "--format", "json", id))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=8) == 130
        assert ours.state(id)["status"] == "paused"
        assert len(json.loads(ours.ok("ps", "--format", "json", id))) == 1
    finally:
        end(waiting)

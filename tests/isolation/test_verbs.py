"""Verbs beyond a container's plain life, behind each wall: pause, ps, events, kill, terminals, limits."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import termios
import time
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest
from behind import ISOLATION, need
from blackbox import end, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

    from blackbox import Bundle, Runtime

pytestmark = needs_busybox
COUNTING = "n=0; while :; do echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; n=$((n+1)); sleep 0.05; done"


def goes_on(runtime: Runtime, id: str, first: int) -> bool:
    """Whether it counts past a number; an emulated machine takes its time."""
    deadline = time.monotonic() + 10
    while counted(runtime, id) <= first:
        if time.monotonic() > deadline:
            return False
    return True


def counted(runtime: Runtime, id: str) -> int:
    return int(runtime.ok("exec", id, "cat", "/tmp/n"))


@needs_root
def test_pause_ps_stats_and_signals(runtime: Runtime, isolated: Bundle, kind: str) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", isolated.write("sh", "-c", COUNTING), id)
    time.sleep(0.3)
    table = runtime.ok("ps", id)
    assert table.splitlines()[0].split()[:2] in (["PID", "PPID"], ["UID", "PID"])
    assert "sh -c n=0" in table
    assert json.loads(runtime.ok("ps", "--format", "json", id))
    stats = json.loads(runtime.ok("events", "--stats", id))["data"]
    assert 0 < stats["memory"]["usage"]["usage"] < 200 << 20
    assert stats["pids"]["current"] >= 1
    runtime.ok("pause", id)
    assert runtime.state(id)["status"] == "paused"
    assert "paused" in runtime("exec", id, "true").stderr
    time.sleep(0.3)
    runtime.ok("resume", id)
    assert runtime.state(id)["status"] == "running"
    assert goes_on(runtime, id, counted(runtime, id))
    runtime.ok("kill", id, "STOP")
    first = counted(runtime, id)
    time.sleep(0.3)
    assert counted(runtime, id) <= first + 1
    runtime.ok("kill", id, "CONT")
    assert goes_on(runtime, id, first)
    refused = runtime("checkpoint", id) if kind != "namespace" else None
    assert refused is None or "it is in a guest" in refused.stderr
    runtime.ok("kill", "--all", id, "KILL")
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


def test_a_paused_one_is_deleted(runtime: Runtime, bundle: Bundle) -> None:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", bundle.write("sleep", "100"), id)
    runtime.ok("pause", id)
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id, 5) == []


@needs_root
def test_limits_bind_inside(runtime: Runtime, bundle: Bundle) -> None:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    bundle.config["linux"]["resources"] |= {"memory": {"limit": 48 << 20}, "pids": {"limit": 20}}
    bundle.config["linux"]["resources"]["cpu"] = {"quota": 50000, "period": 100000}
    bundle.config["linux"]["namespaces"].append({"type": "cgroup"})
    bundle.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    id = runtime.new_id()
    words = ["sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; cat /proc/self/cgroup"]
    done = runtime("run", "-b", bundle.write(*words), id)
    assert done.stdout.split() == [str(48 << 20), "20", "50000", "100000", "0::/"], done.stderr
    id = runtime.new_id()
    words = ["sh", "-c", "for i in $(seq 40); do sleep 2 & done; echo made"]
    done = runtime("run", "-b", bundle.write(*words), id)
    assert "made" not in done.stdout
    assert "fork" in done.stderr


@needs_root
def test_out_of_memory_is_told(runtime: Runtime, bundle: Bundle) -> None:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    bundle.config["linux"]["resources"]["memory"] = {"limit": 24 << 20}
    id = runtime.new_id()
    done = runtime("run", "--keep", "-b", bundle.write("tail", "/dev/zero"), id)
    assert done.returncode == 137
    assert runtime.state(id)["status"] == "stopped"
    assert "out of memory" in runtime.state(id)["reason"]
    runtime.ok("delete", id)


def until(master: int, wanted: bytes, seconds: float = 15) -> bytes:
    """Read a terminal until something has come."""
    got, deadline = b"", time.monotonic() + seconds
    while wanted not in got:
        ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, got
        try:
            got += os.read(master, 4096)
        except OSError:
            break
    assert wanted in got, got
    return got


def test_a_terminal(runtime: Runtime, isolated: Bundle, tmp_path: Path) -> None:
    """Typing, line editing, size, its change, and Ctrl-C, as from a person's terminal."""
    id = runtime.new_id()
    script = "trap 'echo int' INT; echo up; read a; stty size; read x; stty size; echo got $x; read y; exit 3"
    bundle = isolated.write("sh", "-c", script, terminal=True)
    master, other = pty.openpty()
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = runtime.popen("run", "-b", bundle, id, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    try:
        until(master, b"up")
        time.sleep(0.3)  # the size comes after the start, as from any runtime
        os.write(master, b"\n")
        until(master, b"33 101")
        ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
        process.send_signal(signal.SIGWINCH)
        time.sleep(0.3)
        os.write(master, b"wordx\x7f\n")
        said = until(master, b"got word")
        assert b"44 111" in said
        os.write(master, b"\x03")
        until(master, b"int")
        os.write(master, b"\n")
        assert process.wait(15) == 3
    finally:
        end(process)
        os.close(master)
    assert left_behind(runtime, id, 5) == []


def test_a_terminal_of_a_further_process(runtime: Runtime, isolated: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", isolated.write("sleep", "100"), id)
    master, other = pty.openpty()
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 21, 61, 0, 0))
    words = ("exec", "-t", id, "sh", "-c", "read x; stty size; tty; exit 4")
    process = runtime.popen(*words, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    try:
        time.sleep(0.5)
        os.write(master, b"\n")
        said = until(master, b"/dev/pts")
        assert b"21 61" in said
        assert process.wait(15) == 4
    finally:
        end(process)
        os.close(master)


@pytest.mark.parametrize("how", ["create", "run"])
def test_a_guest_that_cannot_boot(runtime: Runtime, bundle: Bundle, tmp_path: Path, how: str) -> None:
    """What serves as its kernel ends at once: an error that says so, and nothing left."""
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    fake = tmp_path / "linux.uml"
    fake.write_text("#!/bin/sh\necho 6.1.176\n")
    fake.chmod(0o755)
    id = runtime.new_id()
    done = runtime(how, "-b", bundle.write("true"), id, env={**os.environ, "KNARR_UML": str(fake)})
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert left_behind(runtime, id, 5) == []

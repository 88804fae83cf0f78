"""NOTIFY_SOCKET: what a container says to its socket reaches the service manager, which here is the test."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, end, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]

INSIDE = "/run/notify/notify.sock"


class Manager:
    """The service manager's end; ``env`` for what it starts."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(10)
        self.env = {**os.environ, "NOTIFY_SOCKET": str(path)}
        self.got: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        """Read until a line is that."""
        deadline = time.monotonic() + 20
        while True:
            for line in self.got:
                if found := re.fullmatch(pattern, line):
                    return found
            assert time.monotonic() < deadline, self.got
            self.read()

    def read(self) -> None:
        data, ancillary, _, _ = self.sock.recvmsg(4096, 1024)
        for _, _, fds in ancillary:
            os.close(int.from_bytes(fds[:4], "little"))  # the barrier: taken note of
        self.got += data.decode().splitlines()

    def quiet(self) -> bool:
        return not select.select([self.sock], [], [], 0.3)[0]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "manager")
    yield made
    made.sock.close()


def say(pid: int, text: str) -> None:
    """As a process in the container would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(f"/proc/{pid}/root{INSIDE}")
        sock.send(text.encode())


@contextmanager
def background(runtime: Runtime, *words: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = runtime.popen(*words, stdin=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        end(process)


def running(runtime: Runtime, id: str) -> int:
    """The pid, once the container runs."""
    deadline = time.monotonic() + 10
    while not (runtime.root / id).exists() or runtime("state", id).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(runtime.wait_for(id, "running")["pid"])


SCRIPT = ("sh", "-c", "echo $NOTIFY_SOCKET > /tmp/where; exec sleep 1000")


@pytest.mark.parametrize("way", ["run -d", "create and start"], ids=["run", "start"])
def test_ready(runtime: Runtime, bundle: Bundle, manager: Manager, way: str) -> None:
    """It is waited for and passed on. (A short name: runc's socket is a path of 108 bytes at most.)"""
    if runtime.name == "crun":
        pytest.skip("crun 1.8.1 passes READY on, but its start does not come back")
    id = runtime.new_id()
    words: tuple[str, ...] = ("start", id)
    if way == "run -d":
        words = ("run", "--detach", "--bundle", bundle.write(*SCRIPT), id)
    else:
        runtime.ok("create", "--bundle", bundle.write(*SCRIPT), id, env=manager.env)
    with background(runtime, *words, env=manager.env) as process:
        pid = running(runtime, id)
        assert manager.quiet()
        assert process.poll() is None  # until the container is ready
        inside = (bundle.rootfs / "tmp/where").read_text().strip()
        assert inside == INSIDE
        say(pid, "READY=1\nSTATUS=all is well")
        manager.until("READY=1")
        assert int(manager.until(r"MAINPID=(\d+)")[1]) == pid
        if runtime.name == "knarr":  # runc since 1.2
            manager.until("BARRIER=1")
        assert process.wait(timeout=10) == 0
    assert runtime.state(id)["status"] == "running"
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


@pytest.mark.parametrize("way", ["run -d", "create and start"])
def test_a_container_that_ends_is_not_waited_for(ours: Runtime, bundle: Bundle, manager: Manager, way: str) -> None:
    id = ours.new_id()
    bundle.write("sh", "-c", "sleep 0.3; exit 3")
    if way == "run -d":
        ours.ok("run", "--detach", "--bundle", str(bundle.path), id, env=manager.env)
    else:
        ours.ok("create", "--bundle", str(bundle.path), id, env=manager.env)
        ours.ok("start", id, env=manager.env)
    assert ours.wait_for(id, "stopped")
    assert manager.quiet()
    ours.ok("delete", id)
    assert left_behind(ours, id) == []


def test_in_the_foreground_all_is_passed_on(ours: Runtime, bundle: Bundle, manager: Manager) -> None:
    """We stay the service's main process; what is about processes and descriptors stays inside."""
    id = ours.new_id()
    with background(ours, "run", "--bundle", bundle.write(*SCRIPT), id, env=manager.env) as process:
        pid = running(ours, id)
        say(pid, "STATUS=starting\nMAINPID=1\nFDSTORE=1\nBARRIER=1")
        manager.until("STATUS=starting")
        say(pid, "READY=1")
        manager.until("READY=1")
        manager.until("BARRIER=1")
        say(pid, "WATCHDOG=1")
        manager.until("WATCHDOG=1")
        say(pid, "STOPPING=1\nSTATUS=going")
        manager.until("STOPPING=1")
        assert not [line for line in manager.got if line.startswith(("MAINPID", "FDSTORE"))]
        ours.ok("kill", id, "KILL")
        assert process.wait(timeout=10) == 137
    assert left_behind(ours, id) == []


def test_a_user_namespace(ours: Runtime, bundle: Bundle, manager: Manager) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        bundle.config["linux"][name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for folder in (bundle.path, *bundle.path.parents):  # pytest's own are for their owner alone
        if str(folder).startswith(f"{tempfile.gettempdir()}/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    os.chown(bundle.rootfs, 100000, 100000)
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "1000"), id, env=manager.env)
    with background(ours, "start", id, env=manager.env) as process:
        say(running(ours, id), "READY=1")
        manager.until("READY=1")
        manager.until("BARRIER=1")
        assert process.wait(timeout=10) == 0


def test_an_interrupted_wait_leaves_nothing(ours: Runtime, bundle: Bundle, manager: Manager) -> None:
    id = ours.new_id()
    with background(ours, "run", "-d", "--bundle", bundle.write(*SCRIPT), id, env=manager.env) as process:
        running(ours, id)
        time.sleep(0.2)
        process.terminate()
        assert process.wait(timeout=10) == 130
    assert left_behind(ours, id) == []


def test_no_service_manager(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = ours.new_id()
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "none")}
    done = ours("run", "--bundle", bundle.write("true"), id, env=env)
    assert done.returncode == 1
    assert f"cannot notify the service manager at {tmp_path}/none: no such file" in done.stderr
    assert left_behind(ours, id) == []
    # a container made without the variable has nothing to wait for
    ours.ok("create", "--bundle", bundle.write("sleep", "100"), id)
    ours.ok("start", id, env=env)


def test_an_exec_knows_nothing_of_it(ours: Runtime, bundle: Bundle, manager: Manager) -> None:
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "1000"), id, env=manager.env)
    ours.ok("start", id)
    assert "NOTIFY_SOCKET" not in ours.ok("exec", id, "env", env=manager.env)

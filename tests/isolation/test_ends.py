"""Something gives way below a container in a guest: a true state within 5 s, a reason, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from behind import GUESTS, ISOLATION, need
from blackbox import end, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blackbox import Bundle, Runtime

pytestmark = needs_busybox
PROGRAMS = {"kernel": ("linux", "linux.uml"), "vm": ("qemu-system",)}
SMALL = 48 << 20


@pytest.fixture(params=GUESTS)
def guest(request: pytest.FixtureRequest, bundle: Bundle) -> str:
    """Each kind that has a guest; the bundle asks for it."""
    name: str = request.param
    need(name)
    bundle.config["annotations"] = {ISOLATION: name}
    return name


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def below(pid: int) -> Iterator[tuple[int, str]]:
    """The processes below one, and their names; those of a guest come and go meanwhile."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child, Path(f"/proc/{child}/comm").read_text().strip()
                yield from below(child)


def fill(disk: Path) -> None:
    """Leave no room."""
    with (disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def ended(runtime: Runtime, id: str, *told: str) -> None:
    """It is seen as stopped within 5 s, the reason is told, and it can be removed without a trace."""
    state = runtime.wait_for(id, "stopped", 5)
    for word in told:
        assert word in state.get("reason", ""), state
    assert runtime("exec", id, "true").returncode != 0
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


def test_its_machine_is_killed(runtime: Runtime, bundle: Bundle, guest: str) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", bundle.write("sleep", "100"), id)
    found = [pid for pid, name in below(runtime.state(id)["pid"]) if name.startswith(PROGRAMS[guest])]
    os.kill(found[0], signal.SIGKILL)
    ended(runtime, id, "it is gone")


@needs_root
def test_its_memory_is_full(runtime: Runtime, bundle: Bundle, guest: str, tmp_path: Path) -> None:
    """A process wants more than the limit: it is killed; whoever watches hears of it, and so do those who come later."""
    bundle.config["linux"]["resources"]["memory"] = {"limit": SMALL}
    script = "until [ -e /tmp/go ]; do sleep 0.1; done; tail /dev/zero; echo $?; exec tail /dev/zero"
    id = runtime.new_id()
    with (tmp_path / "out").open("wb") as out:
        runtime.ok("run", "-d", "-b", bundle.write("sh", "-c", script), id, stdout=out)
    watching = runtime.popen("events", "--interval", "600s", id, stdout=subprocess.PIPE)
    try:
        time.sleep(1)
        runtime.ok("exec", id, "touch", "/tmp/go")
        said = watching.communicate(timeout=20)[0]
    finally:
        end(watching)
    assert [json.loads(line)["type"] for line in said.splitlines()] == ["oom", "oom"]
    assert (tmp_path / "out").read_text() == "137\n"
    ended(runtime, id, "out of memory: 2 of its processes")


@needs_root
def test_the_guests_own_memory_is_full(runtime: Runtime, bundle: Bundle, guest: str) -> None:
    """Where no limit binds, all of the guest's memory can be filled; its kernel's own program is not what dies."""
    bundle.config["linux"]["resources"] |= {"memory": {"limit": SMALL}, "unified": {"memory.max": "max"}}
    script = "tail /dev/zero; echo $?; echo still here"
    id = runtime.new_id()
    done = runtime("run", "--keep", "-b", bundle.write("sh", "-c", script), id)
    assert (done.returncode, done.stdout.split()) == (0, ["137", "still", "here"]), done.stderr
    ended(runtime, id, "out of memory")


@needs_root
def test_its_root_is_full(runtime: Runtime, bundle: Bundle, guest: str) -> None:
    bundle.config["linux"]["resources"]["memory"] = {"limit": SMALL}
    script = "dd if=/dev/zero of=/big bs=1M; echo $?; rm /big; echo again > /file; cat /file"
    id = runtime.new_id()
    done = runtime("run", "--keep", "-b", bundle.write("sh", "-c", script), id)
    assert "No space left on device" in done.stderr
    assert (done.returncode, done.stdout.split()) == (0, ["1", "again"]), done.stderr
    ended(runtime, id)


@needs_root
def test_a_volume_is_full(runtime: Runtime, bundle: Bundle, guest: str, little_disk: Path) -> None:
    entry = {"destination": "/v", "type": "bind", "source": str(little_disk), "options": ["bind"]}
    bundle.config["mounts"].append(entry)
    script = "dd if=/dev/zero of=/v/big bs=1M; echo $?; rm /v/big; echo again > /v/file; cat /v/file"
    id = runtime.new_id()
    done = runtime("run", "--keep", "-b", bundle.write("sh", "-c", script), id)
    assert "No space left on device" in done.stderr
    assert (done.returncode, done.stdout.split()) == (0, ["1", "again"]), done.stderr
    assert (little_disk / "file").read_text() == "again\n"
    ended(runtime, id)


@needs_root
def test_the_disk_of_its_state_is_full(runtime: Runtime, bundle: Bundle, guest: str, little_disk: Path) -> None:
    """It cannot be made and leaves nothing; one that runs goes on, and can be looked at, ended and removed."""
    at = runtime.command.index("--root") + 1
    runtime.root = little_disk / "state"
    runtime.command[at] = str(runtime.root)
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", bundle.write("sleep", "100"), id)
    fill(little_disk)
    other = runtime.new_id()
    done = runtime("run", "-b", bundle.write("true"), other)
    assert done.returncode != 0
    assert "no space left on device" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert left_behind(runtime, other, 5) == []
    assert runtime.state(id)["status"] == "running"
    assert runtime("exec", id, "sh", "-c", "exit 3").returncode == 3
    runtime.ok("kill", id, "KILL")
    ended(runtime, id)


def test_its_monitor_is_killed(runtime: Runtime, bundle: Bundle, guest: str) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", bundle.write("sleep", "100"), id)
    processes = [pid for pid, _ in below(runtime.state(id)["pid"])]
    os.kill(runtime.state(id)["pid"], signal.SIGKILL)
    began = time.monotonic()
    ended(runtime, id)
    while left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < began + 5, left
        time.sleep(0.05)

"""Containers in guests that had booted before: the same as in fresh ones, in their own cgroups, and nothing left."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from behind import GUESTS, ISOLATION, need
from blackbox import cgroup_of, left_behind, needs_busybox
from kept import Templates
from wired import OUT4, PAGE, link

from knarr.isolation.choose import WRITES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blackbox import Bundle, Runtime

pytestmark = [
    needs_busybox,
    pytest.mark.skipif(os.geteuid() != 0, reason="showing files to a guest that runs takes root"),
]
MEMORY = 96 << 20


def children(pid: int) -> list[int]:
    """All the processes below one; those of a guest come and go meanwhile."""
    found: list[int] = []
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in map(int, words):
        found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(params=GUESTS)
def templates(
    request: pytest.FixtureRequest, tmp_path: Path, knarr: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Templates]:
    need(request.param)
    place = tmp_path / "templates"
    monkeypatch.setenv("KNARR_TEMPLATES", str(place))
    made = Templates(request.param, place, knarr)
    made("start", "--isolation", request.param, "--memory", str(MEMORY))
    yield made
    made("stop")
    deadline = time.monotonic() + 10
    while (place / "keeper").exists():
        assert time.monotonic() < deadline, "the keeper stays"
        time.sleep(0.05)


@pytest.fixture
def small(templates: Templates, bundle: Bundle, tmp_path: Path) -> Bundle:
    """A container whose memory is that of the template, with a volume and a file of the host's."""
    bundle.config["annotations"] = {ISOLATION: templates.kind}
    bundle.config["linux"]["resources"] = {"memory": {"limit": MEMORY}}
    (tmp_path / "volume").mkdir()
    (tmp_path / "alone").write_text("from the host\n")
    volume = {"destination": "/volume", "type": "bind", "source": str(tmp_path / "volume"), "options": ["rbind", "rw"]}
    alone = {"destination": "/etc/alone", "type": "bind", "source": str(tmp_path / "alone"), "options": ["bind", "ro"]}
    bundle.config["mounts"] += [volume, alone]
    return bundle


def test_a_container_takes_one(templates: Templates, runtime: Runtime, small: Bundle, tmp_path: Path) -> None:
    templates.expect("ready")
    id = runtime.new_id()
    script = "cat /etc/alone; echo written >/volume/it; echo x 2>/dev/null >/etc/alone || echo refused; echo k >/kept"
    done = runtime("run", "-b", small.write("sh", "-c", f"{script}; exit 5"), id)
    assert (done.returncode, done.stdout) == (5, "from the host\nrefused\n")
    assert (tmp_path / "volume" / "it").read_text() == "written\n"
    assert (small.rootfs / "kept").read_text() == "k\n"
    assert left_behind(runtime, id) == []
    templates.expect("ready")  # another one


def test_it_is_the_containers_own_while_it_runs(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    (waiting,) = templates.expect("ready")
    id = runtime.new_id()
    runtime.ok("create", "-b", small.write("sleep", "600"), id)
    runtime.ok("start", id)
    _, taken = templates.expect("ready", "taken")
    assert taken["Pid"] == waiting["Pid"]
    stands = runtime.state(id)["pid"]
    assert os.readlink(f"/proc/{taken['Pid']}/ns/net") == os.readlink(f"/proc/{stands}/ns/net")
    family = [taken["Pid"], *children(taken["Pid"])]
    assert len(family) > 2
    for controller in ("memory", "pids"):
        assert {cgroup_of(each, controller) for each in family} == {cgroup_of(stands, controller)}
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []
    templates.expect("ready")
    assert not Path(f"/proc/{taken['Pid']}").exists()


@pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed")
def test_it_has_the_containers_network(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    """Its devices were there before it was known whose they are."""
    with link() as wired:
        spaces = [each for each in small.config["linux"]["namespaces"] if each["type"] != "network"]
        small.config["linux"]["namespaces"] = [*spaces, {"type": "network", "path": wired.path}]
        (small.rootfs / "bin" / "wget").symlink_to("busybox")
        server = wired.python(PAGE, OUT4)
        with server:
            (waiting,) = templates.expect("ready")
            id = runtime.new_id()
            words = ("sh", "-c", f"wget -qO- http://{OUT4}:7080/; cat")
            with runtime.popen(
                "run", "-b", small.write(*words), id, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as run:
                assert templates.expect("ready", "taken")[1]["Pid"] == waiting["Pid"]
                out, _ = run.communicate(b"", 60)
            server.kill()
        assert out == b"a page"


def test_another_memory_boots_anew(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    (waiting,) = templates.expect("ready")
    small.config["linux"]["resources"]["memory"]["limit"] = MEMORY + (1 << 20)
    id = runtime.new_id()
    assert runtime("run", "-b", small.write("true"), id).returncode == 0
    (still,) = templates.expect("ready")
    assert still["Pid"] == waiting["Pid"]


def test_who_takes_one_and_is_killed_leaves_nothing(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    templates.expect("ready")
    id = runtime.new_id()
    runtime.ok("create", "-b", small.write("sleep", "600"), id)
    runtime.ok("start", id)
    _, taken = templates.expect("ready", "taken")
    os.kill(runtime.state(id)["pid"], 9)
    runtime.wait_for(id, "stopped")
    templates.expect("ready")
    assert not Path(f"/proc/{taken['Pid']}").exists()
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []


KERNEL = pytest.mark.parametrize("templates", ["kernel"], indirect=True)  # a microVM takes seconds to boot


@KERNEL
def test_several_boot_at_one_time(templates: Templates, tmp_path: Path) -> None:
    for count in ("4", "1", "5"):
        templates("start", "--memory", str(MEMORY), "--count", count)
        assert [row["State"] for row in templates.listed()] == ["ready"] * int(count)
    assert not list((tmp_path / "templates").glob("initramfs*"))


@KERNEL
@pytest.mark.parametrize("whom", ["monitor", "guest"])
def test_whoever_of_it_is_killed_all_of_it_ends(
    templates: Templates, runtime: Runtime, small: Bundle, whom: str
) -> None:
    templates.expect("ready")
    id = runtime.new_id()
    runtime.ok("create", "-b", small.write("sleep", "600"), id)
    runtime.ok("start", id)
    _, taken = templates.expect("ready", "taken")
    family = [taken["Pid"], *children(taken["Pid"])]
    os.kill(family[0 if whom == "monitor" else 1], 9)
    runtime.wait_for(id, "stopped")
    templates.expect("ready")
    assert not any(map(alive, family))
    assert whom == "monitor" or "guest" in runtime.state(id)["reason"]
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []


@KERNEL
def test_its_container_outlives_the_keeper(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    (waiting,) = templates.expect("ready")
    id = runtime.new_id()
    # what it leaves is reaped by a parent that is there
    command = [*runtime.command, "run", "-b", small.write("sh", "-c", "read line; echo $line; exit 7"), id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        (other,) = (row for row in templates.expect("ready", "taken") if row["State"] == "ready")
        keeper = int(Path(f"/proc/{waiting['Pid']}/stat").read_text().rpartition(")")[2].split()[1])
        others = [other["Pid"], *children(other["Pid"])]
        os.kill(keeper, 9)
        deadline = time.monotonic() + 10
        while any(map(alive, others)):  # those that wait end with it
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert runtime.state(id)["status"] == "running"
        assert running.communicate("still there\n", timeout=20)[0] == "still there\n"
        assert running.returncode == 7
    assert left_behind(runtime, id) == []
    templates("start", "--isolation", templates.kind, "--memory", str(MEMORY))  # a killed one's socket is no hindrance


@KERNEL
def test_a_signal_goes_in_and_a_code_comes_out(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    templates.expect("ready")
    id = runtime.new_id()
    script = "trap 'echo asked; exit 9' USR1; echo on; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [*runtime.command, "run", "-b", small.write("sh", "-c", script), id], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        runtime.ok("kill", id, "USR1")
        assert running.stdout.readline() == "asked\n"
        assert running.wait(20) == 9
    assert left_behind(runtime, id) == []


def read_until(master: int, wanted: bytes) -> None:
    """Read a terminal until something has come."""
    got, deadline = b"", time.monotonic() + 15
    while wanted not in got:
        assert select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0], got
        got += os.read(master, 4096)


@KERNEL
def test_its_terminal(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    """Its creator makes it, what stands before the monitor has it for its own, the monitor copies."""
    (waiting,) = templates.expect("ready")
    id = runtime.new_id()
    bundle = small.write("sh", "-c", "echo up; read a; stty size; exit 4", terminal=True)
    master, other = os.openpty()
    termios.tcsetwinsize(master, (33, 101))
    process = runtime.popen("run", "-b", bundle, id, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    try:
        read_until(master, b"up")
        assert [row["Pid"] for row in templates.listed() if row["State"] == "taken"] == [waiting["Pid"]]
        termios.tcsetwinsize(master, (44, 111))
        process.send_signal(signal.SIGWINCH)
        time.sleep(0.3)
        os.write(master, b"\n")
        read_until(master, b"44 111")
        assert process.wait(15) == 4
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert left_behind(runtime, id, 5) == []


def test_nothing_of_one_is_seen_by_the_next(templates: Templates, runtime: Runtime, small: Bundle) -> None:
    """What a container does to its guest is gone with it: the next one has a guest that has seen none."""
    script = (
        "cat /proc/sys/kernel/random/boot_id; ls /tmp /dev/shm; hostname; "
        "echo secret >/tmp/left; echo secret >/dev/shm/left; hostname spoilt; sleep 600 & exit 0"
    )
    small.config["annotations"][WRITES] = "discard"  # its root is the next one's, too
    boots = []
    for _ in range(2):
        templates.expect("ready")
        done = runtime("run", "-b", small.write("sh", "-c", script), runtime.new_id())
        boot, *seen = done.stdout.split()
        boots.append(boot)
        assert "left" not in seen
        assert "spoilt" not in seen
    assert boots[0] != boots[1]


def test_without_the_kernel_it_says_so(tmp_path: Path, knarr: str) -> None:
    environment = {**os.environ, "KNARR_TEMPLATES": str(tmp_path / "templates"), "KNARR_UML": "/nowhere/linux.uml"}
    command = [knarr, "template", "start"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 125
    assert "/nowhere/linux.uml" in done.stderr
    assert sys.executable not in done.stderr
    subprocess.run([knarr, "template", "stop"], check=True, env=environment)

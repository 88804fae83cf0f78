"""The same container behind each wall: what it prints, its exit code, its files, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from behind import GUESTS, ISOLATION, need
from blackbox import left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from blackbox import Bundle, Runtime

pytestmark = needs_busybox


def run(runtime: Runtime, bundle: Bundle, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end; nothing may be left of it."""
    id = runtime.new_id()
    done = runtime("run", "-b", bundle.write(*args), id, **more)
    assert left_behind(runtime, id) == []
    return done


def test_streams_and_exit_code(runtime: Runtime, isolated: Bundle, kind: str) -> None:
    script = "echo out; echo err >&2; id; hostname; cat /proc/sys/kernel/osrelease; ls /; exit 7"
    done = run(runtime, isolated, "sh", "-c", script)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr.strip()) == (7, "err")
    assert lines[:3] == ["out", "uid=0 gid=0", "box"] or lines[1].startswith("uid=0 gid=0")
    assert (lines[3] == os.uname().release) == (kind == "namespace")
    assert lines[4:] == ["bin", "dev", "etc", "proc", "sys", "tmp"]


def test_input_of_more_than_a_window_and_output_of_more(runtime: Runtime, isolated: Bundle, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "data").write_bytes(data)
    id = runtime.new_id()
    with (tmp_path / "data").open("rb") as source, (tmp_path / "out").open("wb") as target:
        done = runtime("run", "-b", isolated.write("cat"), id, stdin=source, stdout=target)
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == data


def test_a_signal_ends_it(runtime: Runtime, isolated: Bundle) -> None:
    done = run(runtime, isolated, "sh", "-c", "kill -9 $$; sleep 1")
    assert done.returncode in (0, 137)  # the first process of a pid namespace is not killed from inside
    done = run(runtime, isolated, "sh", "-c", "sh -c 'kill -9 $$'; exit $?")
    assert done.returncode == 137


@pytest.mark.parametrize(("args", "code"), [(["nothing-there"], 127), (["/etc"], 126)])
def test_what_cannot_be_executed_is_told_as_ever(
    runtime: Runtime, isolated: Bundle, args: list[str], code: int
) -> None:
    done = run(runtime, isolated, *args)
    assert done.returncode in (code, 255, 1)
    assert args[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_volumes(runtime: Runtime, isolated: Bundle, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    (tmp_path / "hosts").write_text("one file\n")
    for name in ("ro", "rw", "hosts"):
        options = ["bind", "ro"] if name == "ro" else ["bind"]
        entry = {"destination": f"/etc/{name}", "type": "bind", "source": str(tmp_path / name), "options": options}
        isolated.config["mounts"].append(entry)
    script = (
        "cat /etc/ro/file /etc/rw/file /etc/hosts; echo more >> /etc/rw/file; echo made > /etc/rw/new;"
        " echo more >> /etc/ro/file; echo $?; ls /etc"
    )
    done = run(runtime, isolated, "sh", "-c", script)
    assert done.stdout.splitlines() == ["ro", "rw", "one file", "1", "hosts", "ro", "rw"], done.stderr
    assert (tmp_path / "rw/file").read_text() == "rw\nmore\n"
    assert (tmp_path / "rw/new").read_text() == "made\n"
    assert (tmp_path / "ro/file").read_text() == "ro\n"


@needs_root
def test_whose_files_on_a_volume_are(runtime: Runtime, isolated: Bundle, kind: str, tmp_path: Path) -> None:
    """What a user other than root makes there: hostfs of user-mode Linux gives it to root (docs/isolation.md)."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    entry = {"destination": "/tmp", "type": "bind", "source": str(volume), "options": ["bind"]}
    isolated.config["mounts"].append(entry)
    isolated.config["process"]["user"] = {"uid": 1000, "gid": 1001}
    script = "echo one > /tmp/file; mkdir /tmp/folder; cat /tmp/file; stat -c %u:%g /tmp/file; : > /tmp/folder/below"
    done = run(runtime, isolated, "sh", "-c", script)
    owner = (0, 0) if kind == "kernel" else (1000, 1001)
    assert done.stdout.split() == ["one", f"{owner[0]}:{owner[1]}"], done.stderr
    for name in ("file", "folder"):
        facts = (volume / name).stat()
        assert (facts.st_uid, facts.st_gid) == owner
    assert (volume / "folder/below").exists() == (kind != "kernel")


def test_its_life(runtime: Runtime, isolated: Bundle, kind: str) -> None:
    """create, start, exec, signals, delete: the states are true all along."""
    id = runtime.new_id()
    script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    with open(os.memfd_create("out"), "w+b") as out:
        runtime.ok("create", "-b", isolated.write("sh", "-c", script), id, stdout=out)
        assert runtime.state(id)["status"] == "created"
        early = runtime("exec", id, "true")
        if os.geteuid() and kind == "namespace":
            assert early.returncode == 255
            assert "it is created (only root may look into it before its program runs: start it)" in early.stderr
        else:
            assert early.returncode == 0, early.stderr
        runtime.ok("start", id)
        assert runtime.state(id)["status"] == "running"
        pid = runtime.state(id)["pid"]
        assert Path(f"/proc/{pid}").exists()
        done = runtime("exec", "--env", "WORD=said", "--cwd", "/tmp", id, "sh", "-c", "echo $WORD; pwd; exit 4")
        assert (done.returncode, done.stdout) == (4, "said\n/tmp\n")
        assert runtime("exec", id, "nothing-there").returncode in (127, 255)
        assert runtime("delete", id).returncode != 0
        runtime.ok("kill", id, "TERM")
        runtime.wait_for(id, "stopped")
        assert runtime("exec", id, "true").returncode != 0
        out.seek(0)
        assert out.read() == b"up\ncaught\n"
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []


def test_many_processes_at_once(runtime: Runtime, isolated: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", isolated.write("sleep", "100"), id)
    begun = [
        runtime.popen(
            "exec", id, "sh", "-c", f"seq 1000; exit {number}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        for number in range(1, 6)
    ]
    texts = [process.communicate(timeout=30)[0] for process in begun]
    assert [process.returncode for process in begun] == [1, 2, 3, 4, 5]
    assert set(texts) == {"".join(f"{number}\n" for number in range(1, 1001)).encode()}
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")


def test_the_monitor_killed_takes_all_along(runtime: Runtime, isolated: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", isolated.write("sleep", "100"), id)
    os.kill(runtime.state(id)["pid"], signal.SIGKILL)
    runtime.wait_for(id, "stopped", 5)
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


@pytest.mark.parametrize("guest", GUESTS)
def test_the_guests_kernel_panics(runtime: Runtime, bundle: Bundle, guest: str) -> None:
    need(guest)
    bundle.config["annotations"] = {ISOLATION: guest}
    bundle.config["linux"]["readonlyPaths"] = []
    id = runtime.new_id()
    began = time.monotonic()
    done = runtime("run", "--keep", "-b", bundle.write("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 50"), id)
    assert done.returncode == 137
    assert time.monotonic() - began < 15
    assert runtime.state(id)["status"] == "stopped"
    assert "it is gone" in (runtime.root / id / "reason").read_text()
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


@pytest.mark.parametrize("guest", GUESTS)
def test_the_guests_kernel_panics_before_its_program_is_seen_to_run(
    runtime: Runtime, bundle: Bundle, guest: str
) -> None:
    """What foreign code does at once, here a hook in the guest, is no failed creation: it ran and was killed."""
    need(guest)
    bundle.config["annotations"] = {ISOLATION: guest}
    bundle.config["linux"]["readonlyPaths"] = []
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 50"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    id = runtime.new_id()
    assert runtime("run", "--keep", "-b", bundle.write("sleep", "50"), id).returncode == 137
    assert "it is gone" in runtime.wait_for(id, "stopped", 5)["reason"]
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


def spaces(config: dict[str, Any], *, without: str = "", more: dict[str, str] | None = None) -> None:
    kept = [each for each in config["linux"]["namespaces"] if each["type"] != without]
    config["linux"]["namespaces"] = [*kept, *([more] if more else [])]


FUSE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}
OTHER_UTS = {"type": "uts", "path": "/proc/1/ns/uts"}
REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda config: spaces(config, without="network"), "/linux/namespaces"),
    (lambda config: spaces(config, without="uts", more=OTHER_UTS), "/linux/namespaces"),
    (lambda config: config["linux"].update(intelRdt={"closID": "x"}), "/linux/intelRdt"),
    (lambda config: config["linux"].update(devices=[FUSE]), "/linux/devices/0"),
    (lambda config: config["process"].update(apparmorProfile="docker-default"), "/process/apparmorProfile"),
    (lambda config: config.update(hooks={"createContainer": [{"path": "/bin/true"}]}), "/hooks/createContainer"),
]


@pytest.mark.parametrize(("change", "pointer"), REFUSED)
def test_what_cannot_be_honoured_is_refused_and_named(
    runtime: Runtime, bundle: Bundle, change: Callable[[dict[str, Any]], object], pointer: str
) -> None:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    change(bundle.config)
    id = runtime.new_id()
    done = runtime("run", "-b", bundle.write("true"), id)
    assert done.returncode != 0
    assert f"config.json {pointer}" in done.stderr, done.stderr
    assert left_behind(runtime, id) == []


def test_an_annotation_that_is_no_kind(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {ISOLATION: "moat"}
    done = runtime("run", "-b", bundle.write("true"), runtime.new_id())
    assert done.returncode != 0
    assert "'moat' is not namespace, kernel or vm" in done.stderr


def test_the_name_is_not_weakened(runtime: Runtime, bundle: Bundle) -> None:
    """An engine chose knarr-runtime-kernel; an annotation of its user's asks for less."""
    need("kernel")
    program = Path(sys.prefix, "bin", "knarr-runtime-kernel")
    if not program.exists():
        pytest.skip(f"knarr is not installed in {sys.prefix} (make build)")
    runtime.command[:-2] = [str(program)]
    done = run(runtime, bundle, "cat", "/proc/sys/kernel/osrelease")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != os.uname().release
    bundle.config["annotations"] = {ISOLATION: "namespace"}
    done = run(runtime, bundle, "true")
    assert done.returncode != 0
    assert "'namespace' is not the kernel of knarr-runtime-kernel" in done.stderr

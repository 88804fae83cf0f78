"""checkpoint and restore with the real CRIU, on a kernel it supports; the container is ours again afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, cgroups_named, left_behind, processes_with
from guest import needs_criu

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_criu

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime("knarr", tmp_path)
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle")
    made.config["process"]["args"] = ["sh", "-c", COUNT]
    made.config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    return made


def start(runtime: Runtime, bundle: Bundle, *words: str) -> str:
    """Run a container detached, with /dev/null for its output: a file of the host's cannot be checkpointed."""
    id = runtime.new_id()
    quiet(runtime, *words, "run", "--detach", "--bundle", bundle.write(), id)
    return id


def quiet(runtime: Runtime, *words: str) -> None:
    log = runtime.root.parent / "log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [*runtime.command, "--log", str(log), *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, log.read_text() if log.exists() else words


def count(runtime: Runtime, id: str) -> int:
    """How far the loop has come; the file may just be being written."""
    for _ in range(50):
        done = runtime("exec", id, "cat", "/tmp/count")
        if done.stdout.strip():
            return int(done.stdout)
        time.sleep(0.1)
    raise AssertionError(done.stderr)


def goes_on(runtime: Runtime, id: str, after: int) -> None:
    first = count(runtime, id)
    assert first >= after
    time.sleep(0.6)
    assert count(runtime, id) > first


def checkpoint(runtime: Runtime, id: str, images: Path, *words: str) -> None:
    done = runtime("checkpoint", "--image-path", str(images), *words, id, timeout=120)
    assert done.returncode == 0, done.stderr


def restore(runtime: Runtime, bundle: Bundle, id: str, images: Path, *words: str) -> None:
    quiet(runtime, "restore", "--detach", "--bundle", str(bundle.path), "--image-path", str(images), *words, id)


def test_a_container_goes_and_comes_back(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["linux"]["resources"]["pids"] = {"limit": 60}
    id = start(runtime, bundle)
    seen = count(runtime, id)
    checkpoint(runtime, id, tmp_path / "images")
    assert runtime("state", id).returncode == 1
    assert left_behind(runtime, id) == []
    pid_file = tmp_path / "pid"
    restore(runtime, bundle, id, tmp_path / "images", "--pid-file", str(pid_file))
    state = runtime.state(id)
    assert (state["status"], state["pid"]) == ("running", int(pid_file.read_text()))
    goes_on(runtime, id, seen)
    # It is limited, paused, listed, killed and deleted like any other.
    (group,) = cgroups_named(id)
    assert Path(group, "pids.max").read_text().strip() == "60"
    assert str(state["pid"]) in Path(group, "cgroup.procs").read_text().split()
    assert runtime("exec", id, "mknod", "/tmp/disk", "b", "8", "0").returncode != 0
    runtime.ok("pause", id)
    assert runtime.state(id)["status"] == "paused"
    runtime.ok("resume", id)
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []


def test_it_can_go_on(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle)
    checkpoint(runtime, id, tmp_path / "images", "--leave-running")
    seen = count(runtime, id)
    goes_on(runtime, id, seen)
    assert (tmp_path / "images/dump.log").exists()


def test_under_another_id_with_another_root(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """As a copy elsewhere: binds from other places, mount points missing in the new root."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    bundle.config["mounts"] += [
        {"destination": "/srv/data", "type": "bind", "source": str(tmp_path / "one"), "options": ["rbind", "ro"]},
        {"destination": "/etc/file", "type": "bind", "source": str(tmp_path / "one/file"), "options": ["bind"]},
    ]
    id = start(runtime, bundle)
    seen = count(runtime, id)
    checkpoint(runtime, id, tmp_path / "images", "--work-path", str(tmp_path / "work"))
    assert (tmp_path / "work/dump.log").exists()
    other = Bundle(tmp_path / "other")
    other.config = bundle.config
    for entry in other.config["mounts"][-2:]:
        entry["source"] = entry["source"].replace(f"{tmp_path}/one", f"{tmp_path}/two")
    other.write()
    again = runtime.new_id()
    restore(runtime, other, again, tmp_path / "images")
    goes_on(runtime, again, seen)
    assert runtime.ok("exec", again, "cat", "/srv/data/file", "/etc/file") == "twotwo"
    assert runtime("exec", again, "touch", "/srv/data/x").returncode != 0


def test_masked_paths_and_devices_are_there_again(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle)
    looks = "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo x > /dev/null && echo null; head -c 3 /dev/zero | wc -c"
    before = runtime.ok("exec", id, "sh", "-c", looks)
    assert before.split() == ["0", "0", "null", "3"]
    checkpoint(runtime, id, tmp_path / "images")
    restore(runtime, bundle, id, tmp_path / "images")
    assert runtime.ok("exec", id, "sh", "-c", looks) == before


def test_pipes_are_the_new_ones(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = runtime.new_id()
    bundle.config["process"]["args"] = ["sh", "-c", "while read line; do echo got $line; echo saw $line >&2; done"]
    bundle.write()
    with subprocess.Popen(
        [*runtime.command, "run", "--bundle", str(bundle.path), id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as first:  # fmt: skip
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write(b"one\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"got one\n"
        checkpoint(runtime, id, tmp_path / "images")
        first.wait(30)
    assert json.loads((tmp_path / "images/descriptors.json").read_text())[0].startswith("pipe:")
    command = [*runtime.command, "restore", "--bundle", str(bundle.path), "--image-path", str(tmp_path / "images"), id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second:
        out, err = second.communicate(b"two\n", 60)
    assert (out, err, second.returncode) == (b"got two\n", b"saw two\n", 0)
    assert left_behind(runtime, id) == []


def receive_terminal(listener: socket.socket, process: subprocess.Popen[bytes]) -> int:
    listener.settimeout(60)
    connection, _ = listener.accept()
    with connection:
        _, fds, _, _ = socket.recv_fds(connection, 100, 1)
    process.wait(60)
    return fds[0]


def converse(master: int, word: str) -> bool:
    os.write(master, f"{word}\n".encode())
    text, deadline = b"", time.monotonic() + 20
    while f"got {word}".encode() not in text and time.monotonic() < deadline:
        text += os.read(master, 1000)
    return f"got {word}".encode() in text


def test_a_terminal_comes_back(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = runtime.new_id()
    bundle.config["process"]["terminal"] = True
    bundle.config["process"]["args"] = ["sh", "-c", "while read line; do echo got $line; done"]
    bundle.write()
    path = str(tmp_path / "tty")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        more: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = runtime.popen("run", "--detach", "--console-socket", path, "--bundle", str(bundle.path), id, **more)
        master = receive_terminal(listener, run)
        assert converse(master, "one")
        checkpoint(runtime, id, tmp_path / "images")
        os.close(master)
        words = ["restore", "--detach", "--console-socket", path, "--bundle", str(bundle.path)]
        again = runtime.popen(*words, "--image-path", str(tmp_path / "images"), id, **more)
        master = receive_terminal(listener, again)
    assert again.returncode == 0
    assert converse(master, "two")
    os.close(master)


def test_in_two_steps(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """pre-dump, then what has changed since."""
    id = start(runtime, bundle)
    checkpoint(runtime, id, tmp_path / "images/first", "--pre-dump")
    seen = count(runtime, id)
    checkpoint(runtime, id, tmp_path / "images/second", "--parent-path", "../first")
    assert (tmp_path / "images/second/parent").is_symlink()
    restore(runtime, bundle, id, tmp_path / "images/second")
    goes_on(runtime, id, seen)


def test_a_network_namespace_of_others(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    name = f"knarr{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = f"/run/netns/{name}"
        id = start(runtime, bundle)
        checkpoint(runtime, id, tmp_path / "images")
        restore(runtime, bundle, id, tmp_path / "images")
        inode = os.stat(f"/run/netns/{name}").st_ino
        assert os.stat(f"/proc/{runtime.state(id)['pid']}/ns/net").st_ino == inode
        runtime.ok("delete", "--force", id)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_paused_container(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle)
    seen = count(runtime, id)
    runtime.ok("pause", id)
    checkpoint(runtime, id, tmp_path / "images")
    restore(runtime, bundle, id, tmp_path / "images")
    goes_on(runtime, id, seen)


def test_systemd_scopes(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    if not Path("/run/systemd/system").is_dir():
        pytest.skip("needs systemd (make test-vm has it)")
    id = start(runtime, bundle, "--systemd-cgroup")
    seen = count(runtime, id)
    checkpoint(runtime, id, tmp_path / "images")
    quiet(
        runtime,
        "--systemd-cgroup",
        "restore",
        "-d",
        "-b",
        str(bundle.path),
        "--image-path",
        str(tmp_path / "images"),
        id,
    )
    goes_on(runtime, id, seen)
    group = Path(f"/proc/{runtime.state(id)['pid']}/cgroup").read_text(encoding="ascii").strip()
    assert group == f"0::/system.slice/knarr-{id}.scope"
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


def test_hooks_run_as_at_creation(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {tmp_path}/hooks"]}]
        for kind in ("createRuntime", "poststop")
    }
    id = start(runtime, bundle)
    checkpoint(runtime, id, tmp_path / "images")
    restore(runtime, bundle, id, tmp_path / "images")
    assert (tmp_path / "hooks").read_text().split() == ["createRuntime", "poststop", "createRuntime"]


def test_what_criu_cannot_do_is_told_and_undone(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle)
    seen = count(runtime, id)
    checkpoint(runtime, id, tmp_path / "images", "--leave-running")
    # The id is taken.
    done = runtime("restore", "-d", "-b", str(bundle.path), "--image-path", str(tmp_path / "images"), id)
    assert done.returncode == 1
    assert "already exists" in done.stderr
    goes_on(runtime, id, seen)
    # A damaged image.
    shutil.copytree(tmp_path / "images", tmp_path / "bad")
    for image in (tmp_path / "bad").glob("core-*.img"):
        image.write_bytes(b"nothing")
    again = runtime.new_id()
    done = runtime("restore", "-d", "-b", str(bundle.path), "--image-path", str(tmp_path / "bad"), again)
    assert done.returncode == 1
    assert f"restore container {again}: CRIU: " in done.stderr
    assert f"{tmp_path}/bad/restore.log" in done.stderr
    assert left_behind(runtime, again) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    # What cannot be checkpointed goes on: its output is a file of the host's.
    third = runtime.new_id()
    with (tmp_path / "output").open("w") as output:
        subprocess.run(
            [*runtime.command, "run", "-d", "-b", str(bundle.path), third], stdout=output, stderr=output, check=True
        )
    done = runtime("checkpoint", "--image-path", str(tmp_path / "third"), third)
    assert done.returncode == 1
    assert "CRIU: " in done.stderr
    goes_on(runtime, third, 0)


def test_a_restore_that_is_killed_leaves_nothing(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = start(runtime, bundle)
    checkpoint(runtime, id, tmp_path / "images")
    for delay in (0.5, 0.8, 1.1, 1.4, 1.7):
        command = ["restore", "-d", "-b", str(bundle.path), "--image-path", str(tmp_path / "images"), id]
        process = runtime.popen(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.kill()
        process.wait()
        runtime.ok("delete", "--force", id)
        deadline = time.monotonic() + 10
        while (left := cgroups_named(id) + processes_with(id)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []


def test_the_wrong_status(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = runtime.new_id()
    quiet(runtime, "create", "--bundle", bundle.write(), id)
    done = runtime("checkpoint", "--image-path", str(tmp_path / "images"), id)
    assert done.returncode == 1
    assert "checkpoint" in done.stderr
    assert "created" in done.stderr

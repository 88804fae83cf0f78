"""exec: what a further process sees, its exit code, its terminal, its errors; the same from all runtimes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from blackbox import Bundle, Runtime, end, needs_busybox, needs_root, processes_with
from test_terminal import Console, read_until, spawn_in_terminal, unread

pytestmark = [needs_busybox, needs_root]


@pytest.fixture
def box(runtime: Runtime, bundle: Bundle) -> tuple[Runtime, str]:
    """A running container."""
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    return runtime, id


def test_exit_codes(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    for script, code in (("exit 0", 0), ("exit 9", 9), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
        assert runtime("exec", id, "sh", "-c", script).returncode == code


def test_stdio_and_arguments(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    with runtime.popen(
        "exec", id, "sh", "-c", 'cat; echo "$0 $1"; echo e >&2', "-t", "--cwd", stdin=-1, stdout=-1, stderr=-1
    ) as process:
        out, err = process.communicate(b"in\n", timeout=20)
    assert (out, err) == (b"in\n-t --cwd\n", b"e\n")


def test_environment_user_and_directory(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    if runtime.name == "crun":
        pytest.skip("with --env crun 1.8 drops the container's PATH")
    done = runtime(
        *("exec", "-e", "A=1", "-e", "B=two words", "--user", "5:6", "--cwd", "/tmp", id),
        *("sh", "-c", 'echo "$A|$B|$PATH|$(id -u):$(id -g)|$(pwd)"'),
    )
    assert done.stdout == "1|two words|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|5:6|/tmp\n"


@pytest.mark.parametrize("user", ["-1", "+0", "00x", " 0", "0x0", "0_0", "٠", "4294967295", "4294967296", "1:", "root"])
def test_users_that_are_no_numbers(user: str, ours: Runtime, bundle: Bundle) -> None:
    """I13: CVE-2016-3697, CVE-2024-40635."""
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    (bundle.rootfs / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n")
    done = ours("exec", "--user", user, id, "id", "-u")
    assert done.returncode == 255
    assert "is not a number" in done.stderr
    assert ours("exec", "--user", "1000", id, "id", "-u").stdout == "1000\n"


@pytest.mark.parametrize("user", ["1", "1:2", "0:5", "65534", "4294967294"])
def test_users_that_are(user: str, box: tuple[Runtime, str]) -> None:
    """CVE-2026-30892."""
    runtime, id = box
    if runtime.name == "runc" and int(user.partition(":")[0]) > 1 << 31:
        pytest.skip("runc 1.1 takes ids below 2**31 only")
    done = runtime("exec", "--user", user, id, "sh", "-c", "echo $(id -u):$(id -g)")
    uid, _, gid = user.partition(":")
    assert done.stdout == f"{uid}:{gid or '0'}\n", done.stderr


def test_it_is_in_the_containers_namespaces_and_cgroups(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    pid = runtime.state(id)["pid"]
    kinds = ("pid", "mnt", "net", "ipc", "uts")
    done = runtime(
        "exec", id, "sh", "-c", f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done; cat /proc/self/cgroup"
    )
    lines = done.stdout.splitlines()
    assert lines[:5] == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds]
    inside = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert sorted(lines[5:]) == sorted(inside)


def test_capabilities_are_the_containers(box: tuple[Runtime, str]) -> None:
    """I14, CVE-2022-29162, CVE-2025-27612."""
    runtime, id = box
    mine = runtime("exec", id, "grep", "^Cap", "/proc/self/status").stdout
    init = runtime("exec", id, "grep", "^Cap", "/proc/1/status").stdout
    assert mine == init
    assert "CapInh:\t0000000000000000" in mine
    other = runtime("exec", "--user", "1000", id, "grep", "^Cap[PE]", "/proc/self/status").stdout
    assert other == "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"


def test_a_capability_more(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    found = dict(
        line.split(":\t")
        for line in ours.ok("exec", "--cap", "CAP_NET_RAW", id, "grep", "^Cap", "/proc/self/status").splitlines()
    )
    wanted = sum(1 << number for number in (5, 10, 13, 29))
    assert {name: int(value, 16) for name, value in found.items()} == {
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), wanted),
        **dict.fromkeys(("CapInh", "CapAmb"), 0),
    }


def test_no_new_privileges_and_groups(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000", noNewPrivileges=False), id)
    script = "grep -E '^(NoNewPrivs|Groups)' /proc/self/status"
    assert ours.ok("exec", id, "sh", "-c", script).split() == ["Groups:", "NoNewPrivs:", "0"]
    done = ours.ok("exec", "--no-new-privs", "-g", "7", "--additional-gids", "9", id, "sh", "-c", script)
    assert done.split() == ["Groups:", "7", "9", "NoNewPrivs:", "1"]


def test_a_process_document(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    document = {
        "args": ["sh", "-c", 'echo "$X $(pwd) $(id -u)"; grep CapEff /proc/self/status'],
        "env": ["PATH=/bin", "X=y"],
        "cwd": "/etc",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
    }
    path = tmp_path / "process.json"
    path.write_text(json.dumps(document))
    assert runtime.ok("exec", "--process", str(path), id) == "y /etc 0\nCapEff:\t0000000000000020\n"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"args": [], "cwd": "/"}', "/args"),
        ('{"args": ["true"], "cwd": "relative"}', "/cwd"),
        ('{"args": ["true"]}', "/cwd"),
        ('{"args": ["true"], "cwd": "/", "user": {"uid": true}}', "/user/uid"),
        ("{", "line 1"),
        ("[]", "process.json"),
    ],
)
def test_a_bad_process_document(document: str, words: str, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    path = tmp_path / "process.json"
    path.write_text(document)
    done = ours("exec", "--process", str(path), id)
    assert done.returncode == 255
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_detached_with_a_pid_file(box: tuple[Runtime, str], tmp_path: Path) -> None:
    runtime, id = box
    pid_file = tmp_path / "pid"
    begun = time.monotonic()
    runtime.ok("exec", "--detach", "--pid-file", str(pid_file), id, "sleep", "987")
    assert time.monotonic() - begun < 5
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00987\0"


def test_a_terminal_over_a_socket(box: tuple[Runtime, str], tmp_path: Path) -> None:
    runtime, id = box
    console = Console(tmp_path / "c")
    try:
        script = 'tty; read x; echo "got $x"; read y'
        runtime.ok("exec", "--tty", "--detach", "--console-socket", console.path, id, "sh", "-c", script)
        _, master = console.receive()
        console.read_until(b"/dev/pts/")
        os.write(master, b"hello\n")
        console.read_until(b"got hello")
    finally:
        console.close()


def test_a_terminal_in_the_foreground(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    if runtime.name == "crun":
        pytest.skip("our wrapper for crun stands between")
    command = [*runtime.command, "exec", "-t", id, "sh", "-c", 'sleep 0.5; stty size; read x; echo "<$x>"; exit 5']
    pid, master = spawn_in_terminal(command, 31, 83)
    try:
        read_until(master, b"31 83")
        os.write(master, b"typed\r")
        read_until(master, b"<typed>")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5
    finally:
        unread.pop(master, None)
        os.close(master)


def test_signals_are_passed_on(box: tuple[Runtime, str], bundle: Bundle) -> None:
    runtime, id = box
    if runtime.name == "crun":
        pytest.skip("our wrapper for crun would take the signal")
    script = "trap 'exit 12' USR2; echo set >/tmp/set; while :; do sleep 0.05; done"
    process = runtime.popen("exec", id, "sh", "-c", script)
    try:
        deadline = time.monotonic() + 10
        while not (bundle.rootfs / "tmp/set").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR2)
        assert process.wait(timeout=10) == 12
    finally:
        end(process)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["nosuch"], "executable file not found"),
        (["/bin/nosuch"], "no such file or directory"),
        (["/etc"], "permission denied"),
        (["/etc/plain"], "permission denied"),
        ([], ""),
    ],
)
def test_commands_that_cannot_run(command: list[str], words: str, runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    (bundle.rootfs / "etc/plain").write_text("x")
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    done = runtime("exec", id, *command)
    assert done.returncode != 0
    if runtime.name != "crun":
        assert done.returncode == 255
        assert words in done.stderr
    assert runtime.state(id)["status"] == "running"
    assert "knarr-init" not in " ".join(processes_with(id))


def test_a_directory_that_is_not_there(box: tuple[Runtime, str]) -> None:
    runtime, id = box
    done = runtime("exec", "--cwd", "/no/such", id, "true")
    if runtime.name == "crun":
        pytest.skip("crun makes it")
    assert done.returncode == 255
    assert "/no/such" in done.stderr


def test_states_that_do_not_fit(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    assert runtime("exec", id, "true").returncode != 0
    runtime.ok("create", "--bundle", bundle.write("sleep", "1000"), id)
    assert runtime("exec", id, "sh", "-c", "exit 4").returncode == 4  # created is fine
    runtime.ok("start", id)
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    assert runtime("exec", id, "true").returncode != 0


def test_exec_in_a_paused_container_is_refused(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    groups = Path(f"/proc/{ours.state(id)['pid']}/cgroup").read_text().splitlines()
    own = {name: path for line in groups for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    v1 = Path(f"/sys/fs/cgroup/freezer{own.get('freezer', '')}/freezer.state")
    v2 = Path(f"/sys/fs/cgroup{own.get('', '')}/cgroup.freeze")
    file, freeze, thaw = (v1, "FROZEN", "THAWED") if "freezer" in own else (v2, "1", "0")
    if not file.exists():
        pytest.skip("there is no freezer")
    file.write_text(freeze)
    try:
        ours.wait_for(id, "paused")
        done = ours("exec", id, "true")
        assert done.returncode == 255
        assert "paused" in done.stderr
        # A frozen container can be killed, and then removed.
        ours.ok("kill", id, "KILL")
        ours.wait_for(id, "stopped")
        ours.ok("delete", id)
    finally:
        if file.exists():
            file.write_text(thaw)


def test_descriptors_do_not_leak_and_processes_do_not_stay(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        done = ours("exec", id, "ls", "/proc/self/fd", close_fds=False)
    finally:
        os.close(secret)
    assert set(done.stdout.split()) <= {"0", "1", "2", "3"}
    assert ours("exec", id, "true").returncode == 0
    assert len(processes_with(id)) == 1


def test_preserved_descriptors(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    (tmp_path / "given").write_text("handed down\n")
    words = " ".join([*ours.command, "exec", "--preserve-fds", "1", id, "sh", "-c", "'cat <&3'"])
    done = subprocess.run(
        ["sh", "-c", f"exec {words} 3<{tmp_path}/given"], stdin=-3, capture_output=True, check=False, timeout=30
    )
    assert done.stdout == b"handed down\n", done.stderr

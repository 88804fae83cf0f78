"""Options of single verbs, each seen to do what it says, on the runtimes that have it."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blackbox import PURE_V2, Bundle, Runtime, cgroup_of, left_behind, needs_busybox, needs_root, processes_with

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_busybox, needs_root]


def has(runtime: Runtime, verb: str, option: str) -> None:
    """Skip where a runtime does not know the option."""
    done = runtime(verb, "--help")
    if option not in done.stdout + done.stderr:
        pytest.skip(f"this {runtime.name} has no {verb} {option}")


def started(runtime: Runtime, bundle: Bundle, *args: str) -> str:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write(*(args or ("sleep", "1000"))), id)
    return id


# -- run, create -------------------------------------------------------------------------------------------------------


def test_keep_leaves_the_container_after_its_end(runtime: Runtime, bundle: Bundle) -> None:
    has(runtime, "run", "--keep")
    id, gone = runtime.new_id(), runtime.new_id()
    assert runtime("run", "--keep", "--bundle", bundle.write("sh", "-c", "exit 7"), id).returncode == 7
    assert runtime.state(id)["status"] == "stopped"
    assert left_behind(runtime, id, 0) != []
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []
    assert runtime("run", "--bundle", str(bundle.path), gone).returncode == 7
    assert left_behind(runtime, gone) == []


@pytest.mark.parametrize("verb", ["create", "run"])
def test_another_config(runtime: Runtime, bundle: Bundle, tmp_path: Path, verb: str) -> None:
    has(runtime, verb, "--config")
    bundle.write("false")
    (bundle.path / "config.json").rename(tmp_path / "other.json")
    bundle.config["process"]["args"] = ["sh", "-c", "exit 9"]
    (tmp_path / "other.json").write_text(json.dumps(bundle.config))
    id = runtime.new_id()
    words = (verb, "--config", "other.json", "--bundle", str(bundle.path), id)  # from the current directory
    if verb == "run":
        assert runtime(*words, cwd=tmp_path).returncode == 9
        return
    runtime.ok(*words, cwd=tmp_path)
    assert runtime.state(id)["bundle"] == str(bundle.path)
    missing = runtime("create", "--config", str(tmp_path / "none"), "--bundle", str(bundle.path), runtime.new_id())
    assert missing.returncode == 1
    assert "none" in missing.stderr or runtime.name == "crun"


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(10)
        yield server


def received(server: socket.socket) -> tuple[bytes, int]:
    """What came over a connection: the bytes and the descriptor."""
    with server.accept()[0] as sock:
        sock.settimeout(10)
        word, ancillary, _, _ = sock.recvmsg(64, socket.CMSG_SPACE(4))
        fds = array.array("i", ancillary[0][2])
        return word, fds[0]


@pytest.mark.parametrize("verb", ["create", "run", "exec"])
def test_the_process_s_descriptor_is_sent(runtime: Runtime, bundle: Bundle, tmp_path: Path, verb: str) -> None:
    has(runtime, verb, "--pidfd-socket")
    path = tmp_path / "socket"
    with listening(path) as server:
        option = ("--pidfd-socket", str(path))
        id = runtime.new_id()
        words = ("--bundle", bundle.write("sleep", "1000"), id)
        if verb == "exec":
            runtime.ok("run", "--detach", *words)
            runtime.ok("exec", "--detach", *option, "--pid-file", str(tmp_path / "pid"), id, "sleep", "999")
        else:
            runtime.ok(*((verb, "--detach") if verb == "run" else (verb,)), *option, *words)
        word, pidfd = received(server)
    try:
        assert word == (b"setns" if verb == "exec" else b"standard")
        shown = re.search(r"^Pid:\t(\d+)$", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.MULTILINE)
        assert shown
        assert int(shown[1]) == (int((tmp_path / "pid").read_text()) if verb == "exec" else runtime.state(id)["pid"])
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_the_receiver_of_the_annotation(runtime: Runtime, bundle: Bundle, tmp_path: Path, verb: str) -> None:
    if runtime.name == "runc":
        pytest.skip("the annotation is crun's")
    path = tmp_path / "receiver"
    bundle.config["annotations"] = {"run.oci.pidfd_receiver": str(path)}
    id = runtime.new_id()
    with listening(path) as server:
        detach = ["--detach"] if verb == "run" else []
        runtime.ok(verb, *detach, "--bundle", bundle.write("sleep", "1000"), id)
        word, pidfd = received(server)
    try:
        assert word == b" "
        shown = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        assert f"\nPid:\t{runtime.state(id)['pid']}\n" in shown
    finally:
        os.close(pidfd)


def test_nobody_at_the_receiver(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["annotations"] = {"run.oci.pidfd_receiver": str(tmp_path / "none")}
    id = ours.new_id()
    done = ours("create", "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert "config.json /annotations/run.oci.pidfd_receiver" in done.stderr
    assert left_behind(ours, id) == []


def test_nobody_at_the_pidfd_socket(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = ours.new_id()
    done = ours("create", "--pidfd-socket", str(tmp_path / "none"), "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert f"cannot connect to pidfd socket {tmp_path}/none" in done.stderr
    assert left_behind(ours, id) == []


def test_orphans_in_the_host_s_pid_namespace(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """They become children of the runtime that waits; with --no-subreaper of this machine's init, or who stands for it."""
    if runtime.name == "crun":
        pytest.skip("our wrapper for crun stands between")
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [entry for entry in spaces if entry["type"] != "pid"]
    orphan = (
        "sh -c 'sleep 0.4; read -r _ _ _ parent _ < /proc/$$/stat; echo $parent > /tmp/parent' & sleep 0.05; exit 0"
    )
    for option in ((), ("--no-subreaper",)):
        id = runtime.new_id()
        bundle.write("sh", "-c", f"({orphan}); while [ ! -e /tmp/parent ]; do sleep 0.05; done")
        pid_of = runtime.popen("run", *option, "--bundle", str(bundle.path), id, stdin=subprocess.DEVNULL)
        assert pid_of.wait(timeout=20) == 0
        parent = int((bundle.rootfs / "tmp/parent").read_text())
        assert (parent == pid_of.pid) == (not option), (parent, pid_of.pid, option)
        (bundle.rootfs / "tmp/parent").unlink()
        assert left_behind(runtime, id) == []


def keyrings(runtime: Runtime, bundle: Bundle, *options: str) -> tuple[str, str]:
    """The id of a container, and the session keyring its program has."""
    bundle.config["linux"]["maskedPaths"] = []
    id = runtime.new_id()
    # of several keyrings that may be seen, the newest is the one that was joined last
    return id, runtime.ok("run", *options, "--bundle", bundle.write("cat", "/proc/keys"), id)


def test_a_session_keyring_of_its_own(runtime: Runtime, bundle: Bundle) -> None:
    id, shown = keyrings(runtime, bundle)
    assert f"_ses.{id}" in shown or runtime.name == "crun"  # which takes the id alone as its name
    assert id in shown


def test_the_caller_s_session_keyring(runtime: Runtime, bundle: Bundle) -> None:
    id, shown = keyrings(runtime, bundle, "--no-new-keyring")
    assert id not in shown


def without_pivot_root() -> None:
    """Have the kernel refuse pivot_root(2) to this process and its children, as it does on an initramfs."""
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    # load the call's number; is it this one? EINVAL : allow
    steps = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.EINVAL), (0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    if ctypes.CDLL(None, use_errno=True).prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "prctl")


def test_no_pivot(runtime: Runtime, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "ls / && exit 6")
    bundle.config["process"]["noNewPrivileges"] = False
    for option, code in ((["--no-pivot"], 6), ([], 1)):
        words = ("run", *option, "--bundle", str(bundle.path), runtime.new_id())
        done = runtime(*words, preexec_fn=without_pivot_root)
        assert done.returncode == code, done.stderr
        if option:
            assert done.stdout.split() == sorted(path.name for path in bundle.rootfs.iterdir())
        else:
            assert "pivot" in done.stderr


@pytest.mark.parametrize("option", ["--apparmor", "--process-label"])
def test_labels_where_there_is_no_such_module(runtime: Runtime, bundle: Bundle, option: str) -> None:
    there = "/sys/module/apparmor" if option == "--apparmor" else "/sys/fs/selinux/enforce"
    if os.path.exists(there):
        pytest.skip("this kernel has the module")
    id = started(runtime, bundle)
    done = runtime("exec", option, "some_label", id, "true")
    if runtime.name == "knarr":  # the others pass over a profile or a label that nobody enforces
        assert done.returncode == 255
        assert ("AppArmor" if option == "--apparmor" else "SELinux") in done.stderr


# -- kill, delete ------------------------------------------------------------------------------------------------------


def test_kill_and_delete_by_regular_expression(runtime: Runtime, bundle: Bundle) -> None:
    has(runtime, "kill", "--regex")
    bundle.write("sleep", "1000")
    ids = [runtime.new_id() for _ in range(3)]
    for id in ids:
        runtime.ok("run", "--detach", "--bundle", str(bundle.path), id)
    two = f"^({ids[0]}|{ids[1]})$"
    runtime.ok("kill", "--regex", two, "KILL")
    for id in ids[:2]:
        runtime.wait_for(id, "stopped")
    assert runtime.state(ids[2])["status"] == "running"
    runtime.ok("delete", "--regex", two)
    assert [id for id in ids if (runtime.root / id).exists()] == ids[2:]
    runtime.ok("delete", "--regex", "--force", ids[2][1:9])  # found anywhere in the id
    assert left_behind(runtime, ids[2]) == []


def test_one_that_fails_does_not_hold_up_the_others(ours: Runtime, bundle: Bundle) -> None:
    bundle.write("sleep", "1000")
    ids = sorted(ours.new_id() for _ in range(2))
    for id in ids:
        ours.ok("run", "--detach", "--bundle", str(bundle.path), id)
    ours.ok("kill", ids[1], "KILL")
    ours.wait_for(ids[1], "stopped")
    done = ours("delete", "-r", "^t")
    assert done.returncode == 1
    assert f"cannot delete container {ids[0]}: it is running" in done.stderr
    assert not (ours.root / ids[1]).exists()
    assert ours.state(ids[0])["status"] == "running"
    assert "is not a regular expression" in ours("kill", "--regex", "(").stderr
    ours.ok("delete", "--regex", "nothing like that")


def test_sigkill_without_a_pid_namespace_means_all(runtime: Runtime, bundle: Bundle) -> None:
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [entry for entry in spaces if entry["type"] != "pid"]
    id = started(runtime, bundle, "sh", "-c", "sleep 7777 & exec sleep 7777")
    deadline = time.monotonic() + 10
    while len(json.loads(runtime.ok("ps", "--format", "json", id))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if runtime.name == "runc" and "(obsoleted" not in runtime("kill", "--help").stdout:
        runtime.ok("kill", "--all", id, "KILL")  # runc does it by itself since 1.2
    elif runtime.name == "crun":
        runtime.ok("kill", "--all", id, "KILL")
    else:
        runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    deadline = time.monotonic() + 10
    while [line for line in processes_with(id) if "sleep 7777" in line]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- cgroups -----------------------------------------------------------------------------------------------------------


def test_no_cgroups_at_all(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "runc":
        pytest.skip("runc has no --cgroup-manager")
    bundle.config["linux"]["resources"] = {}
    id = runtime.new_id()
    runtime.ok("--cgroup-manager=disabled", "run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    pid = runtime.state(id)["pid"]
    own, its = Path("/proc/self/cgroup").read_text(), Path(f"/proc/{pid}/cgroup").read_text()
    assert its == own or runtime.name == "crun"  # whose wrapper hides the unified hierarchy
    assert id not in its
    assert runtime("exec", id, "true").returncode == 0
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


def test_no_cgroups_but_limits(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["resources"]["pids"] = {"limit": 5}
    done = ours("--cgroup-manager", "disabled", "run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert (
        "config.json /linux/resources/pids: a resource limit is not supported: cgroups are switched off" in done.stderr
    )
    other = ours("--cgroup-manager", "mine", "run", "--bundle", str(bundle.path), ours.new_id())
    assert "option --cgroup-manager: 'mine' is not cgroupfs, systemd or disabled" in other.stderr


@pytest.fixture
def inner(runtime: Runtime, bundle: Bundle) -> Iterator[tuple[str, dict[str, Path]]]:
    """A container with a cgroup ``inner`` below its own: id, and the group in two hierarchies."""
    has(runtime, "exec", "--cgroup")
    id = started(runtime, bundle)
    pid = runtime.state(id)["pid"]
    made = {name: cgroup_of(pid, name) / "inner" for name in ("pids", "memory")}
    for group in set(made.values()):
        group.mkdir()
    yield id, made
    runtime("delete", "--force", id)
    for group in set(made.values()):
        if group.exists():
            group.rmdir()


def groups_of(runtime: Runtime, *words: str) -> dict[str, str]:
    lines = runtime.ok(*words, "cat", "/proc/self/cgroup").splitlines()
    return {name: line.split(":", 2)[2] for line in lines for name in line.split(":")[1].split(",")}


def test_exec_in_a_cgroup_below(runtime: Runtime, inner: tuple[str, dict[str, Path]]) -> None:
    id, made = inner
    if PURE_V2:
        assert groups_of(runtime, "exec", "--cgroup", "inner", id)[""].endswith(f"/{id}/inner")
        assert groups_of(runtime, "exec", "--cgroup", "/", id)[""].endswith(id)
        return
    if runtime.name == "crun":
        pytest.skip("crun has one path for all hierarchies, and not all have the group here")
    found = groups_of(runtime, "exec", "--cgroup", "pids,memory:inner", id)
    assert found["pids"].endswith(f"{id}/inner")
    assert found["memory"].endswith(f"{id}/inner")
    assert found["freezer"].endswith(id)
    found = groups_of(runtime, "exec", "--cgroup", "memory:inner", "--cgroup", "pids:/", id)
    assert (found["pids"].endswith(id), found["memory"].endswith(f"{id}/inner")) == (True, True)
    assert made["pids"].exists()


def test_cgroups_that_cannot_be(runtime: Runtime, inner: tuple[str, dict[str, Path]]) -> None:
    id, _ = inner
    words = ["none", "../.."] if PURE_V2 else ["memory:none", "memory:../..", "nothing:inner", ":inner"]
    for word in words:
        if runtime.name == "crun" and (not PURE_V2 or ".." in word):
            continue  # 1.8.1 has no controllers there, and follows the dots
        done = runtime("exec", "--cgroup", word, id, "true")
        assert done.returncode in (1, 255), word
        assert done.stderr
    assert runtime.state(id)["status"] == "running"
    if runtime.name == "knarr":
        twice = runtime("exec", "--cgroup", "memory:inner", "--cgroup", "memory:inner", id, "true")
        assert "controller memory is given twice" in twice.stderr or PURE_V2


@pytest.mark.skipif(not PURE_V2, reason="only v2 forbids processes beside groups with controllers")
def test_exec_where_the_container_s_own_cgroup_admits_nobody(runtime: Runtime, bundle: Bundle) -> None:
    """As in a container that runs systemd or containers itself: there its processes have moved one level down."""
    id = started(runtime, bundle)
    pid = runtime.state(id)["pid"]
    group = cgroup_of(pid, "pids")
    (group / "own").mkdir()
    (group / "own/cgroup.procs").write_text(str(pid))
    (group / "cgroup.subtree_control").write_text("+pids")
    if runtime.name == "crun":
        pytest.skip("crun 1.8.1 fails")
    assert groups_of(runtime, "exec", id)[""].endswith(f"/{id}/own")
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


# -- spec, log ---------------------------------------------------------------------------------------------------------


def test_spec_into_another_file(runtime: Runtime, tmp_path: Path) -> None:
    has(runtime, "spec", "--file")
    runtime.ok("spec", "--file", "other.json", cwd=tmp_path)
    assert json.loads((tmp_path / "other.json").read_text())["process"]["args"] == ["sh"]
    assert not (tmp_path / "config.json").exists()


def test_log_to_a_named_file(runtime: Runtime, tmp_path: Path) -> None:
    if runtime.name == "runc":
        pytest.skip("runc takes a path alone")
    runtime("--log", f"file:{tmp_path}/log", "start", "nobody")
    assert "nobody" in (tmp_path / "log").read_text()


DAEMON = """
import os, socket, subprocess, sys
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
path, root, words = sys.argv[1], sys.argv[2], sys.argv[3:]
top = "/" + path.split("/")[1]
if top == "/run":
    os.makedirs("/run/systemd", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
else:
    keep = {name: os.stat(f"/dev/{name}").st_rdev for name in ("null", "zero", "urandom")}
    subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
    for name, number in keep.items():
        os.mknod(f"/dev/{name}", 0o020666, number)
os.makedirs(os.path.dirname(path), exist_ok=True)
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(path)
server.settimeout(10)
subprocess.run(words, stdout=2)
os.write(1, server.recv(100000))
"""


@pytest.mark.parametrize(("backend", "path"), [("journald", "/run/systemd/journal/socket"), ("syslog", "/dev/log")])
def test_log_to_a_daemon(runtime: Runtime, tmp_path: Path, backend: str, path: str) -> None:
    """What comes in at the daemon's socket, in a mount namespace where we are the daemon."""
    if runtime.name == "runc":
        pytest.skip("runc takes a path alone")
    if runtime.name == "crun" and backend == "journald" and not os.path.exists("/run/systemd/journal/socket"):
        pytest.skip("crun talks to journald by libsystemd, which wants more than the socket")
    (tmp_path / "daemon.py").write_text(DAEMON)
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else "python3"
    words = [*runtime.command, "--log", f"{backend}:me", "start", "nobody"]
    done = subprocess.run(
        ["unshare", "-m", python, str(tmp_path / "daemon.py"), path, str(runtime.root), *words],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    if backend == "syslog":
        assert re.fullmatch(rb"<\d+>.*me(\[\d+\])?: .*nobody.*", done.stdout.strip(b"\0\n"), re.DOTALL), done.stdout
    else:
        assert b"PRIORITY=3\n" in done.stdout
        assert b"SYSLOG_IDENTIFIER=me\n" in done.stdout
        assert b"MESSAGE=container nobody does not exist\n" in done.stdout


def test_log_to_no_daemon(ours: Runtime) -> None:
    assert "must be followed by a name" in ours("--log", "syslog:", "list").stderr
    if not os.path.exists("/run/systemd/journal/socket"):
        done = ours("--log", "journald:me", "list")
        assert done.returncode == 1
        assert "cannot log to journald at /run/systemd/journal/socket: no such file or directory" in done.stderr


def test_debug_says_more(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("true")
    sizes = []
    for option in ((), ("--debug",)):
        log = tmp_path / f"log{len(option)}"
        runtime.ok(
            "--log", str(log), "--log-format", "json", *option, "run", "--bundle", str(bundle.path), runtime.new_id()
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert all({"level", "msg", "time"} <= line.keys() for line in lines)
        sizes.append(len(lines))
    assert sizes[1] > sizes[0] or runtime.name == "crun"


def test_log_level(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["capabilities"]["bounding"].append("CAP_NONE")
    bundle.write("true")
    for level, warned in (("warning", True), ("error", False)):
        log = tmp_path / level
        ours.ok("--log", str(log), "--log-level", level, "run", "--bundle", str(bundle.path), ours.new_id())
        assert ("CAP_NONE" in log.read_text()) == warned
    assert ours("--log-level", "loud", "list").returncode == 1

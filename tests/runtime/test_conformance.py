"""The official suite's checks that matter, on all three runtimes: docs/conformance.md names its program for each. A few
are of fields that the suite has no program for.

Here they also run where there is no Go compiler, and without the suite's mistakes: its check of the pids limit compares
pointers, that of open files runs in a Go program, which changes the very limit it looks at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import UNIFIED, Bundle, Runtime, cgroups_named, mounts_at, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_busybox, needs_root]
KINDS = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt"}


def merged(place: dict[str, Any], change: dict[str, Any]) -> None:
    """Put ``change`` into ``place``: objects by member, lists at the end, everything else instead."""
    for name, value in change.items():
        if isinstance(value, dict):
            merged(place.setdefault(name, {}), value)
        elif isinstance(value, list):
            place[name] = [*place.get(name, ()), *value]
        else:
            place[name] = value


# program of the suite: (what is added to config.json, what the container's shell does, what it says)
INSIDE: dict[str, tuple[dict[str, Any], str, str]] = {
    "hostname": ({"hostname": "conform"}, "cat /proc/sys/kernel/hostname", "conform"),
    "domainname": ({"domainname": "conform.example"}, "cat /proc/sys/kernel/domainname", "conform.example"),
    "linux_sysctl": ({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}}, "cat /proc/sys/net/ipv4/ip_forward", "1"),
    "linux_masked_paths": ({"linux": {"maskedPaths": ["/etc/hidden", "/hidden"]}}, "cat /etc/hidden; ls /hidden", ""),
    "linux_readonly_paths": (
        {"linux": {"readonlyPaths": ["/hidden", "/etc/hidden"]}},
        "touch /hidden/x 2>/dev/null || echo no; (echo x >/etc/hidden) 2>/dev/null || echo no; touch /free && echo yes",
        "no no yes",
    ),
    "linux_devices": (
        {"linux": {"devices": [{"path": "/dev/own/x", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}]}},
        "stat -c '%F %t:%T %a %u %g' /dev/own/x; for d in null zero full random urandom tty; do stat -c %t:%T /dev/$d; done",
        "character special file 1:5 640 3 4 1:3 1:5 1:7 1:8 1:9 5:0",
    ),
    "mounts": (
        {"mounts": [{"destination": "/m", "type": "tmpfs", "source": "m", "options": ["nosuid", "ro", "noexec", "size=64k"]}]},
        "grep ' /m ' /proc/mounts | cut -d' ' -f3,4 | tr , ' ' | cut -d' ' -f 1-5",
        "tmpfs ro nosuid noexec relatime",
    ),
    "process": ({"process": {"cwd": "/etc", "env": ["FOO=bar"]}}, "pwd; echo $FOO", "/etc bar"),
    "process_user": (
        {"process": {"user": {"uid": 10, "gid": 11, "additionalGids": [12, 13], "umask": 0o27}}},
        "id -u; id -g; id -G; umask",
        "10 11 11 12 13 0027",
    ),
    "process_rlimits": (
        {"process": {"rlimits": [{"type": "RLIMIT_CORE", "hard": 4096, "soft": 2048}, {"type": "RLIMIT_CPU", "hard": 120, "soft": 60}]}},
        "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -St; ulimit -Ht",
        "1024 1024 4 8 60 120",
    ),
    "process_oom_score_adj": ({"process": {"oomScoreAdj": 500}}, "cat /proc/self/oom_score_adj", "500"),
    "root_readonly_true": ({"root": {"readonly": True}}, "touch /x 2>/dev/null || echo no; touch /dev/shm/x && echo yes", "no yes"),
    "misc_props": ({"annotations": {"org.unknown": ""}, "unknown": 1, "linux": {"unknown": {}}}, "echo fine", "fine"),
    "process_capabilities_fail": ({"process": {"capabilities": {"bounding": ["CAP_TEST"]}}}, "echo fine", "fine"),
    "linux_seccomp": (
        {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}}},
        "/bin/pwd 2>&1 | head -c 4; grep Seccomp: /proc/self/status | tr -d '\\t'",
        "pwd:Seccomp:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", INSIDE)
def test_inside(program: str, runtime: Runtime, bundle: Bundle) -> None:
    change, script, wanted = INSIDE[program]
    (bundle.rootfs / "hidden").mkdir()
    (bundle.rootfs / "hidden/file").write_text("seen")
    (bundle.rootfs / "etc/hidden").write_text("seen")
    for name in ("tr", "cut"):
        (bundle.rootfs / "bin" / name).symlink_to("busybox")
    merged(bundle.config, change)
    done = runtime("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id())
    if runtime.name == "runc" and "domainname" in change and done.stdout.strip() == "(none)":
        pytest.skip("this runc ignores domainname")
    assert done.returncode == 0, done
    assert done.stdout.split() == wanted.split()


@pytest.fixture
def shared_tree(tmp_path: Path) -> Iterator[Path]:
    """A mount that is shared: what is bound from it can be a slave."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("kind", ["shared", "slave", "private", "unbindable"])
def test_propagation(kind: str, shared_tree: Path, runtime: Runtime, bundle: Bundle) -> None:
    """linux_rootfs_propagation; and of single mounts, with all below (r…) and without."""
    shown = {"shared": "shared:", "slave": "master:", "private": "", "unbindable": "unbindable"}
    bundle.config["linux"]["rootfsPropagation"] = kind
    for place, options in (("/a", ["bind", kind]), ("/b", ["rbind", f"r{kind}"])):
        mount = {"destination": place, "type": "bind", "source": str(shared_tree), "options": options}
        bundle.config["mounts"].append(mount)
    done = runtime("run", "--bundle", bundle.write("cat", "/proc/self/mountinfo"), runtime.new_id())
    if runtime.name == "runc" and kind == "unbindable":
        pytest.skip("runc 1.1 cannot bind a root that cannot be bound")
    if runtime.name == "crun" and kind == "slave" and os.path.ismount(UNIFIED):
        pytest.skip("crun is called in a mount namespace where all is private")
    assert done.returncode == 0, done
    fields = [line.split() for line in done.stdout.splitlines()]
    tags = {each[4]: " ".join(each[6 : each.index("-")]) for each in fields}
    for place in ("/a", "/b"):
        assert tags[place].startswith(shown[kind]), (place, tags)
        assert tags[place] or not shown[kind], (place, tags)
    if runtime.name == "knarr":  # the others leave some of them private
        # The root lies on a mount of its own, which is no other's slave.
        assert tags["/"].startswith(shown[kind]) if kind != "slave" else tags["/"] == "", tags


def test_namespaces(runtime: Runtime, bundle: Bundle) -> None:
    """linux_ns_nopath, linux_ns_path, linux_ns_itype: made, joined, inherited."""

    def spaces(id: str) -> dict[str, str]:
        pid = runtime.state(id)["pid"]
        return {kind: os.readlink(f"/proc/{pid}/ns/{name}") for kind, name in KINDS.items()}

    path = bundle.write("sleep", "1000")
    runtime.ok("create", "--bundle", path, first := runtime.new_id())
    own = {kind: os.readlink(f"/proc/self/ns/{name}") for kind, name in KINDS.items()}
    made = spaces(first)
    assert not set(made.values()) & set(own.values())
    pid = runtime.state(first)["pid"]
    joined = [{"type": kind, "path": f"/proc/{pid}/ns/{KINDS[kind]}"} for kind in ("network", "ipc", "uts")]
    bundle.config["linux"]["namespaces"] = [{"type": "mount"}, *joined]
    # sysfs may be mounted by who owns the network namespace only; without a pid namespace the masks would not hold
    del bundle.config["hostname"]
    runtime.ok("create", "--bundle", bundle.write(), second := runtime.new_id())
    found = spaces(second)
    assert {kind: found[kind] for kind in ("network", "ipc", "uts")} == {
        kind: made[kind] for kind in ("network", "ipc", "uts")
    }
    assert found["pid"] == own["pid"]


@pytest.mark.parametrize("kind", ["pid", "network", "mount"])
def test_a_namespace_path_of_another_kind(kind: str, runtime: Runtime, bundle: Bundle) -> None:
    """linux_ns_path_type."""
    for entry in bundle.config["linux"]["namespaces"]:
        if entry["type"] == kind:
            entry["path"] = "/proc/self/ns/uts"
    assert runtime("create", "--bundle", bundle.write("true"), runtime.new_id()).returncode != 0


def test_id_mappings(runtime: Runtime, bundle: Bundle) -> None:
    """linux_uid_mappings."""
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": 1000, "size": 2000}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": 1000, "size": 3000}]
    for folder in (bundle.path, *bundle.path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(folder.stat().st_mode | 0o055)
    done = runtime("run", "--bundle", bundle.write("cat", "/proc/self/uid_map", "/proc/self/gid_map"), runtime.new_id())
    if runtime.name == "runc" and "permission denied" in done.stderr:
        pytest.skip("runc 1.1 opens the bundle as the container's root")
    assert done.stdout.split() == ["0", "1000", "2000", "0", "1000", "3000"], done


def test_the_state_document(runtime: Runtime, bundle: Bundle) -> None:
    """state, pidfile, create, config_updates_without_affect."""
    pid_file = bundle.path / "pid"
    bundle.config["annotations"] = {"org.example": "1"}
    path = bundle.write("sleep", "1000")
    id = runtime.new_id()
    assert runtime("state", id).returncode != 0
    runtime.ok("create", "--pid-file", str(pid_file), "--bundle", path, id)
    assert runtime("create", "--bundle", path, id).returncode != 0
    bundle.write(args=["false"])
    bundle.config["annotations"] = {"org.example": "2"}
    bundle.write()
    state = runtime.state(id)
    assert state["ociVersion"].startswith("1.0")
    assert (state["id"], state["status"], state["bundle"]) == (id, "created", path)
    assert state["pid"] == int(pid_file.read_text())
    assert state["annotations"] == {"org.example": "1"}
    runtime.ok("start", id)
    assert runtime.wait_for(id, "running")["pid"] == int(pid_file.read_text())
    assert b"sleep" in Path(f"/proc/{state['pid']}/cmdline").read_bytes()


def test_start_happens_once(runtime: Runtime, bundle: Bundle) -> None:
    """start: not without an id, not what does not exist, runs or has ended; nothing runs before it."""
    path = bundle.write("sh", "-c", "echo called >>/output")
    id = runtime.new_id()
    assert runtime("start").returncode != 0
    assert runtime("start", id).returncode != 0
    runtime.ok("create", "--bundle", path, id)
    assert not (bundle.rootfs / "output").exists()
    runtime.ok("start", id)
    runtime.wait_for(id, "stopped")
    assert runtime("start", id).returncode != 0
    assert (bundle.rootfs / "output").read_text() == "called\n"
    assert runtime.state(id)["status"] == "stopped"


def test_kill_and_delete_of_the_wrong_state(runtime: Runtime, bundle: Bundle) -> None:
    """kill, kill_no_effect, delete."""
    path = bundle.write("sleep", "1000")
    id = runtime.new_id()
    for words in (["kill"], ["kill", id, "KILL"], ["delete"], ["delete", id]):
        assert runtime(*words).returncode != 0, words
    runtime.ok("create", "--bundle", path, id)
    runtime.ok("start", id)
    runtime.wait_for(id, "running")
    assert runtime("delete", id).returncode != 0
    assert runtime.state(id)["status"] == "running"
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    assert runtime("kill", id, "KILL").returncode != 0
    assert runtime.state(id)["status"] == "stopped"
    runtime.ok("delete", id)
    assert runtime("delete", id).returncode != 0


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_the_signal_that_was_asked_for(name: str, runtime: Runtime, bundle: Bundle) -> None:
    """killsig."""
    script = f"trap 'echo {name} >/got; exit 0' {name}; echo up >/up; while :; do sleep 0.05; done"
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", script), id)
    deadline = time.monotonic() + 10
    while not (bundle.rootfs / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runtime.ok("kill", id, str(int(getattr(signal, f"SIG{name}"))) if name == "USR2" else name)
    runtime.wait_for(id, "stopped")
    assert (bundle.rootfs / "got").read_text().split() == [name]


def test_hooks_in_the_listed_order(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """hooks, hooks_stdin, prestart, poststart, poststop: each kind in its order and at its time, with the state."""
    log = tmp_path / "log"
    bundle.config["hooks"] = {
        kind: [
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind}{n} >>{log}; cat >{log}.{kind}{n}"]} for n in (1, 2)
        ]
        for kind in ("prestart", "poststart", "poststop")
    }
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("true"), id)
    assert log.read_text().split()[:2] == ["prestart1", "prestart2"]
    runtime.ok("start", id)
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    assert log.read_text().split() == [f"{kind}{n}" for kind in ("prestart", "poststart", "poststop") for n in (1, 2)]
    for kind, pid in (("prestart", True), ("poststart", True), ("poststop", False)):
        state = json.loads(Path(f"{log}.{kind}2").read_text())
        assert state["id"] == id
        assert bool(state.get("pid")) is pid


@pytest.mark.parametrize("kind", ["prestart", "createRuntime"])
def test_a_hook_that_fails_stops_the_creation(kind: str, runtime: Runtime, bundle: Bundle) -> None:
    """prestart_fail."""
    bundle.config["hooks"] = {kind: [{"path": "/bin/false"}]}
    id = runtime.new_id()
    assert runtime("create", "--bundle", bundle.write("true"), id).returncode != 0
    assert runtime("state", id).returncode != 0


def test_a_poststop_hook_that_fails_stops_nothing(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """poststop_fail."""
    later = tmp_path / "later"
    touch = {"path": "/bin/sh", "args": ["sh", "-c", f": >{later}"]}
    # crun 1.8 dies of SIGPIPE when a hook ends before it has read the state.
    fails = {"path": "/bin/sh", "args": ["sh", "-c", "cat >/dev/null; exit 1"]}
    bundle.config["hooks"] = {"poststop": [fails, touch]}
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("true"), id)
    runtime.ok("start", id)
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    if runtime.name != "runc":  # runc 1.1 stops at the first that fails
        assert later.exists()
    assert runtime("state", id).returncode != 0


@pytest.mark.parametrize("value", ["invalid", "1"])
def test_values_that_are_none(value: str, runtime: Runtime, bundle: Bundle) -> None:
    """misc_props, process_rlimits_fail."""
    if value == "invalid":
        bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_TEST", "hard": 1, "soft": 1}]
    else:
        bundle.config["linux"]["namespaces"][0]["type"] = "test"
    id = runtime.new_id()
    assert runtime("create", "--bundle", bundle.write("true"), id).returncode != 0
    assert runtime("state", id).returncode != 0


def test_limits_are_set_and_their_groups_go(runtime: Runtime, bundle: Bundle) -> None:
    """linux_cgroups_pids, linux_cgroups_cpus, linux_cgroups_memory, delete_resources, delete_only_create_resources."""
    id = runtime.new_id()
    wanted = {"pids.max": "37", "cpu.shares": "500", "memory.limit_in_bytes": str(48 << 20)}
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        wanted = {"pids.max": "37", "cpu.max": "20000 50000", "memory.max": str(48 << 20)}
    resources = bundle.config["linux"]["resources"]
    resources["pids"] = {"limit": 37}
    resources["cpu"] = {"shares": 500, "quota": 20000, "period": 50000}
    resources["memory"] = {"limit": 48 << 20}
    bundle.config["linux"]["cgroupsPath"] = f"/conform-{id}/sub"
    runtime.ok("create", "--bundle", bundle.write("sleep", "1000"), id)
    groups = [Path(path) for path in cgroups_named("sub") if f"conform-{id}" in path]
    for name, value in wanted.items():
        found = [(group / name).read_text().strip() for group in groups if (group / name).exists()]
        assert found == [value], name
    foreign = Path(f"{groups[0].parent}/foreign-{id}")
    foreign.mkdir()
    try:
        runtime.ok("delete", "--force", id)
        assert foreign.exists()  # what create did not make is not delete's
        assert [path for path in cgroups_named("sub") if f"conform-{id}" in path] == []
    finally:
        foreign.rmdir()
        for group in groups:
            if group.parent.exists():
                group.parent.rmdir()
    assert mounts_at(bundle.path) == []

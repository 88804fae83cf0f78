"""What config.json may ask for and the kernel or this host refuses: each error names the field by its JSON pointer.

Malformed and hostile values are in config_corpus.py; here all are well-formed. Some come out at ``start`` only.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from blackbox import PURE_V2, Bundle, Rootless, Runtime, left_behind, needs_busybox, needs_root
from config_corpus import CHAR, GONE, MAP, USER, bind, call, hooks, memory, namespace, put, rlimit, seccomp, tmpfs

from knarr.kernel.landlock import landlock_version

pytestmark = [needs_busybox, needs_root]

ONE = {"containerID": 0, "hostID": 0, "size": 1}
OWN_ID = {**USER, "/linux/uidMappings": [ONE], "/linux/gidMappings": [ONE]}
TIME = {"/linux/namespaces/-": {"type": "time"}}
V1 = "v1"  # what only a machine with cgroup v1 refuses
PAGES = 32 * os.sysconf("SC_PAGE_SIZE")


def mount(fstype: str, source: str = "x", *options: str) -> dict[str, Any]:
    return {"/mounts/-": {"destination": "/m", "type": fstype, "source": source, "options": [*options]}}


def annotation(key: str, value: str) -> dict[str, Any]:
    return {"/annotations": {key: value}}


def cpu(**limits: Any) -> dict[str, Any]:
    return {"/linux/resources/cpu": limits}


def resources(name: str, value: Any) -> dict[str, Any]:
    return {f"/linux/resources/{name}": value}


THROTTLED = [{"major": 4000, "minor": 99, "rate": 1000}]
FIFO = {"policy": "SCHED_FIFO", "priority": 1}

# name, changes of the config, pointer, a word of the reason, "" or V1
REFUSED: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("root: missing", {"/root/path": "nosuch"}, "/root/path", "no such file", ""),
    ("root: a file", {"/root/path": "config.json"}, "/root/path", "not a directory", ""),
    ("mount: no source", {"/mounts/-": bind("/no/such", "/m")}, "/mounts/5", "no such file", ""),
    ("mount: file system", mount("nosuchfs"), "/mounts/5", "no such device", ""),
    ("mount: option", mount("tmpfs", "x", "frob=1"), "/mounts/5", "frob", ""),
    ("mount: no block device", mount("proc", "x", "hidepid=99"), "/mounts/5", "hidepid", ""),
    ("mount: lower directory", mount("overlay", "o", "lowerdir=/no/such"), "/mounts/5", "mount overlay", ""),
    ("mount: what is copied up", {"/mounts/-": tmpfs("/bin", "tmpcopyup", "size=4k")}, "/mounts/5", "/bin/busybox", ""),
    ("mount: a file as link", {"/mounts/-": bind("/proc/self", "/bin", "copy-symlink")}, "/mounts/5", "exists", ""),
    ("mount: group not mapped", OWN_ID, "/mounts/2", "invalid", ""),
    ("mount: ids of proc", {"/mounts/0/uidMappings": [MAP], "/mounts/0/gidMappings": [MAP]}, "/mounts/0", "bind", ""),
    ("mount: idmap without ids", {"/mounts/-": bind("/etc", "/m", "idmap")}, "/mounts/5/options", "idmap", ""),
    ("hostname", {"/hostname": "x" * 65}, "/hostname", "64", ""),
    ("domainname", {"/domainname": "x" * 65}, "/domainname", "64", ""),
    ("terminal: no console socket", {"/process/terminal": True}, "/process/terminal", "--console-socket", ""),
    ("cwd: a file", {"/process/cwd": "/bin/busybox"}, "/process/cwd", "not a directory", ""),
    ("cwd: a long name", {"/process/cwd": "/" + "x" * 300}, "/process/cwd", "too long", ""),
    ("args: no program", {"/process/args": ["nosuch"]}, "/process/args/0", "not found", ""),
    ("args: one too long", {"/process/args": ["true", "x", "x" * PAGES]}, "/process/args/2", f"{PAGES} bytes", ""),
    ("args: too many", {"/process/args": ["true", *["x" * 100_000] * 80]}, "/process/args", "RLIMIT_STACK", ""),
    ("env: one too long", {"/process/env/-": "A=" + "x" * PAGES}, "/process/env/1", f"{PAGES + 2} bytes", ""),
    ("env: too many", {"/process/env": [f"A{n}=" + "x" * 100_000 for n in range(80)]}, "/process/env", "RLIMIT_STACK", ""),
    ("rlimit: above the kernel's", rlimit("RLIMIT_NOFILE", 1 << 40, 1 << 40), "/process/rlimits/0", "not permitted", ""),
    ("uid not mapped", {**OWN_ID, "/process/user/uid": 7, "/mounts/2": GONE}, "/process/user/uid", "uidMappings", ""),
    ("gid not mapped", {**OWN_ID, "/process/user/gid": 7, "/mounts/2": GONE}, "/process/user/gid", "gidMappings", ""),
    ("AppArmor", {"/process/apparmorProfile": "nosuch-profile"}, "/process/apparmorProfile", "AppArmor", "apparmor"),
    ("SELinux", {"/process/selinuxLabel": "a:b:c:d"}, "/process/selinuxLabel", "SELinux", "selinux"),
    ("mount label", {"/linux/mountLabel": "a:b:c:d"}, "/linux/mountLabel", "SELinux", "selinux"),
    ("scheduler: real time", {"/process/scheduler": FIFO}, "/process/scheduler", "realtimeRuntime", V1),
    ("scheduler: time promised", {"/process/scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1 << 62, "deadline": 1 << 62, "period": 1 << 62}}, "/process/scheduler", "", ""),
    ("memory policy", {"/linux/memoryPolicy": {"mode": "MPOL_BIND", "nodes": "63"}}, "/linux/memoryPolicy", "memory policy", ""),
    ("sysctl: absent", {"/linux/sysctl": {"net.foo": "1"}}, "/linux/sysctl/net.foo", "no such file", ""),
    ("sysctl: value", {"/linux/sysctl": {"net.ipv4.ip_forward": "many"}}, "/linux/sysctl/net.ipv4.ip_forward", "invalid", ""),
    ("sysctl: the second", {"/linux/sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmni": "x"}}, "/linux/sysctl/kernel.shmmni", "", ""),
    ("namespace: absent", {"/linux/namespaces": namespace("uts", "/no/such")}, "/linux/namespaces/4", "no such file", ""),
    ("namespace: of another type", {"/linux/namespaces": namespace("uts", "/proc/self/ns/net")}, "/linux/namespaces/4", "type", ""),
    ("namespace: the caller's user", {"/linux/namespaces/-": {"type": "user", "path": "/proc/self/ns/user"}}, "/linux/namespaces/5", "he is in", ""),
    ("time: too far", {**TIME, "/linux/timeOffsets": {"boottime": {"secs": 1 << 62}}}, "/linux/timeOffsets/boottime", "out of range", "time"),
    ("time: before the start", {**TIME, "/linux/timeOffsets": {"monotonic": {"secs": -(1 << 40)}}}, "/linux/timeOffsets/monotonic", "out of range", "time"),
    ("mask: a long name", {"/linux/maskedPaths": ["/a", "/" + "x" * 300]}, "/linux/maskedPaths/1", "too long", ""),
    ("read-only: a long name", {"/linux/readonlyPaths": ["/a", "/" + "x" * 300]}, "/linux/readonlyPaths/1", "too long", ""),
    ("device: a directory", {"/linux/devices": [{**CHAR, "path": "/bin"}]}, "/linux/devices/0", "exists", ""),
    ("device: below a file", {"/linux/devices": [{**CHAR, "path": "/bin/busybox/x"}]}, "/linux/devices/0", "not a directory", ""),
    ("device: a large number", {"/linux/devices": [{**CHAR, "major": 5000}]}, "/linux/devices/0/major", "4095", ""),
    ("network device: absent", {"/linux/netDevices": {"nosuch0": {}}}, "/linux/netDevices/nosuch0", "no such device", ""),
    ("network device: lo", {"/linux/netDevices": {"lo": {}}}, "/linux/netDevices/lo", "cannot leave", ""),
    ("seccomp: a call", {**seccomp(call("nosuchcall")), **annotation("run.oci.seccomp_fail_unknown_syscall", "1")}, "/linux/seccomp/syscalls/0/names/0", "nosuchcall", ""),
    ("seccomp: nobody listens", seccomp(call(action="SCMP_ACT_NOTIFY"), listenerPath="/no/such"), "/linux/seccomp/listenerPath", "no such file", ""),
    ("seccomp: no filter", annotation("run.oci.seccomp_bpf_data", "AAAAAAAAAAA="), "/annotations/run.oci.seccomp_bpf_data", "instructions", ""),
    ("Landlock: a path", annotation("org.knarr.landlock", '{"paths":[{"path":"/no/such","access":["read"]}]}'), "/annotations/org.knarr.landlock", "/no/such", "landlock"),
    ("cgroup: CPUs", cpu(cpus="4095"), "/linux/resources/cpu/cpus", "4095", "cpuset"),
    ("cgroup: nodes", cpu(mems="900"), "/linux/resources/cpu/mems", "900", "cpuset"),
    ("cgroup: burst", cpu(burst=1 << 60), "/linux/resources/cpu/burst", "invalid", V1),
    ("cgroup: real time", cpu(realtimeRuntime=2_000_000), "/linux/resources/cpu/realtimeRuntime", "", V1),
    ("cgroup: no memory", memory(limit=4096), "/linux/resources/memory/limit", "memory limit too low", ""),
    ("cgroup: pids", resources("pids", {"limit": 1 << 40}), "/linux/resources/pids/limit", "invalid", ""),
    ("cgroup: block device", resources("blockIO", {"throttleReadBpsDevice": THROTTLED}), "/linux/resources/blockIO/throttleReadBpsDevice/0", "", ""),
    ("cgroup: leaf weight", resources("blockIO", {"leafWeight": 500}), "/linux/resources/blockIO/leafWeight", "", ""),
    ("cgroup: page size", resources("hugepageLimits", [{"pageSize": "3MB", "limit": 0}]), "/linux/resources/hugepageLimits/0", "", ""),
    ("cgroup: network priority", resources("network", {"priorities": [{"name": "nosuch0", "priority": 1}]}), "/linux/resources/network" if PURE_V2 else "/linux/resources/network/priorities/0", "", ""),
    ("cgroup: rdma", resources("rdma", {"nosuch0": {"hcaHandles": 1}}), "/linux/resources/rdma/nosuch0", "", ""),
    ("cgroup: unified", resources("unified", {"memory.nosuch": "1"}), "/linux/resources/unified/memory.nosuch" if PURE_V2 else "/linux/resources/unified", "", ""),
    ("cgroup: path", {"/linux/cgroupsPath": "/" + "x" * 300}, "/linux/cgroupsPath", "too long", ""),
    ("RDT", {"/linux/intelRdt": {"closID": "a", "l3CacheSchema": "L3:0=f"}}, "/linux/intelRdt", "resctrl", "resctrl"),
    *((f"hook: {kind}", {"/hooks": {kind: [{"path": "/bin/true"}, *hooks(kind, path="/no/such")["/hooks"][kind]]}}, f"/hooks/{kind}/1", "", "") for kind in ("prestart", "createRuntime")),
    *((f"hook: {kind}", hooks(kind, path="/no/such"), f"/hooks/{kind}/0", "", "") for kind in ("createContainer", "startContainer", "poststart")),
]  # fmt: skip


def not_refused_here(condition: str) -> str:
    """Why this machine lets a case pass; empty if it does not."""
    if condition == V1 and PURE_V2:
        return "cgroup v2 has no such limit"
    if condition == "cpuset" and PURE_V2 and not Path("/sys/fs/cgroup/cpuset.cpus.effective").exists():
        return "no cgroup controller cpuset"
    if condition == "apparmor" and Path("/sys/module/apparmor/parameters/enabled").exists():
        return "there is AppArmor: tests/vm/test_apparmor.py"
    if condition == "selinux" and Path("/sys/fs/selinux/enforce").exists():
        return "there is SELinux"
    if condition == "landlock" and "landlock" not in _security_modules():
        return "no Landlock"
    if condition == "time" and not Path("/proc/self/ns/time").exists():
        return "this kernel has no time namespaces, which is said"
    if condition == "resctrl" and " resctrl " in Path("/proc/self/mountinfo").read_text():
        return "resctrl is mounted"
    return ""


def _security_modules() -> str:
    path = Path("/sys/kernel/security/lsm")
    return path.read_text() if path.exists() else "landlock" * bool(landlock_version())


@pytest.mark.parametrize(("change", "pointer", "why", "condition"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])  # fmt: skip
def test_refused_with_its_field(
    change: dict[str, Any], pointer: str, why: str, condition: str, ours: Runtime, bundle: Bundle
) -> None:
    if reason := not_refused_here(condition):
        pytest.skip(reason)
    for place, value in change.items():
        put(bundle.config, place, value)
    if change.get("/linux/namespaces"):  # without one of its own, there is no name to give
        del bundle.config["hostname"]
    id = ours.new_id()
    done = ours("create", "--bundle", bundle.write(), id)
    if done.returncode == 0:
        done = ours("start", id)
    said(done.returncode, done.stderr, pointer, why)
    ours("delete", "--force", id)
    if pointer == "/process/terminal":
        return  # `run` takes its own
    id = ours.new_id()
    done = ours("run", "--bundle", str(bundle.path), id)
    said(done.returncode, done.stderr, pointer, why)
    assert left_behind(ours, id, 1) == []


# What has another cause in the bundle of an ordinary user, which has a user and no network namespace, and what `run` takes.
NOT_A_USERS = ("uid not", "gid not", "mount: group", "namespace", "network", "sysctl", "terminal", "scheduler: time")


def test_an_ordinary_user_hears_the_field(rootless: Rootless) -> None:
    """All of the above once more; of a limit, which he may not set at all, the kind of resource is enough."""
    plain = copy.deepcopy(rootless.bundle.config)
    wrong = []
    for name, change, pointer, _, condition in REFUSED:
        if name.startswith(NOT_A_USERS) or not_refused_here(condition):
            continue
        rootless.bundle.config = copy.deepcopy(plain)
        for place, value in change.items():
            put(rootless.bundle.config, place, value)
        done = rootless("run", "--bundle", rootless.bundle.write(), "mine")
        named = re.search(r'msg="config\.json (/[^ ]*): ', done.stderr)
        if done.returncode not in {1, 126, 127} or not named or not f"{pointer}/".startswith(f"{named[1]}/"):
            wrong.append((name, done))
    assert wrong == []


def test_a_default_device_without_mknod(ours: Runtime, bundle: Bundle) -> None:
    ours.command = ["setpriv", "--bounding-set", "-mknod", *ours.command]
    done = ours("run", "--bundle", bundle.write(), ours.new_id())
    said(done.returncode, done.stderr, "/linux/devices", "CAP_MKNOD")


def test_in_a_user_namespace_the_hosts_node_must_be_the_device(ours: Runtime, bundle: Bundle) -> None:
    """It is bound, as none can be made: another device, or a directory, is not what was asked for."""
    for name in ("uidMappings", "gidMappings"):
        bundle.config["linux"][name] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    node = {"type": "c", "path": "/dev/zero", "major": 1, "minor": 5}
    for change, good in (({}, True), ({"minor": 3}, False), ({"type": "b"}, False), ({"path": "/etc"}, False)):
        bundle.config["linux"]["devices"] = [{**node, **change}]
        done = ours("run", "--bundle", bundle.write(), ours.new_id())
        if good:
            assert done.returncode == 0, done
        else:
            said(done.returncode, done.stderr, "/linux/devices/0", "on the host that is not the device")


def said(code: int, text: str, pointer: str, why: str) -> None:
    """One line, which names the field and the reason."""
    assert code in (1, 126, 127), text
    assert text.count("\n") == 1, text
    assert f'msg="config.json {pointer}: ' in text
    assert why in text


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is not installed")
@pytest.mark.parametrize(
    ("change", "pointer", "lacking"),
    [
        (rlimit("RLIMIT_NICE", 40, 40), "/process/rlimits/0", "sys_resource"),
        ({"/process/oomScoreAdj": -1000}, "/process/oomScoreAdj", "sys_resource"),
        ({"/process/scheduler": {"policy": "SCHED_OTHER", "nice": -20}}, "/process/scheduler", "sys_nice"),
    ],
)
def test_what_takes_a_capability(
    change: dict[str, Any], pointer: str, lacking: str, ours: Runtime, bundle: Bundle
) -> None:
    ours.command = ["setpriv", "--bounding-set", f"-{lacking}", *ours.command]
    for place, value in change.items():
        put(bundle.config, place, value)
    done = ours("run", "--bundle", bundle.write(), ours.new_id())
    said(done.returncode, done.stderr, pointer, "not permitted" if lacking != "sys_resource" else "")


def test_a_program_of_exec_has_the_reason(ours: Runtime, bundle: Bundle) -> None:
    """Its arguments are no field of config.json, so no pointer is named."""
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    document = {**bundle.config["process"], "args": ["true", "x" * PAGES]}
    (bundle.path / "p.json").write_text(json.dumps(document))
    done = ours("exec", "--process", str(bundle.path / "p.json"), id)
    assert "argument list too long: this argument has" in done.stderr
    assert "config.json" not in done.stderr

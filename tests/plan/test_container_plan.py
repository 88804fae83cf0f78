"""config.json -> Plan: the order and what each field asks for. No root, no kernel."""

from __future__ import annotations

from typing import Any

import pytest

from knarr.base.errors import SpecError, Unsupported
from knarr.plan import ops
from knarr.plan.cgroup import CgroupDirectory, CgroupHost, CgroupMount, CgroupPlan, plan_cgroup
from knarr.plan.container import ContainerPlan, Options, plan_container
from knarr.plan.exec import plan_exec
from knarr.plan.host import Host
from knarr.plan.namespaces import CLONE_FLAG, plan_namespaces
from knarr.plan.ops import NO_SLOT, Op
from knarr.plan.root import Root
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.defaults import default_config

V2 = CgroupHost(mode="v2")
ROOT_HOST = Host(0, 0, "x86_64", (6, 18), False, V2)
USER_HOST = Host(1000, 1000, "x86_64", (6, 18), False, V2)


def compiled(
    config: dict[str, Any], host: Host = ROOT_HOST, *, options: Options | None = None, **extra: Any
) -> ContainerPlan:
    return plan_container(config, host, id="c1", bundle="/bundle", options=options or Options(), **extra)


def kinds(plan: ContainerPlan) -> list[str]:
    return [op.kind for op in plan.ops]


def only(plan: ContainerPlan, kind: str) -> Op:
    (found,) = [op for op in plan.ops if op.kind == kind]
    return found


def with_linux(**fields: Any) -> dict[str, Any]:
    config = default_config()
    config["linux"].update(fields)
    return config


def test_the_same_input_gives_an_equal_plan_and_leaves_the_config_alone() -> None:
    config = default_config()
    before = repr(config)
    assert compiled(config) == compiled(config)
    assert repr(config) == before


def test_the_order_that_safety_depends_on() -> None:
    config = default_config()
    config["hooks"] = {
        "createContainer": [{"path": "/cc"}],
        "createRuntime": [{"path": "/cr"}],
        "startContainer": [{"path": "/sc"}],
    }
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    plan = compiled(config, options=Options(wait_start=True, terminal_slot=True), seccomp=b"12345678")
    seen = kinds(plan)

    def place(kind: str, nth: int = 0) -> int:
        return [position for position, name in enumerate(seen) if name == kind][nth]

    syncs = {op.ints[0]: position for position, op in enumerate(plan.ops) if op.kind == "sync"}
    assert seen[0] == "open_proc"  # before anything of the container can stand in its place
    assert place("dumpable") < place("clone") < place("pdeathsig") < place("bind_root") < place("mount")
    # Limits bind before hooks, before the root is entered, before anything foreign runs.
    assert syncs[ops.SYNC_CGROUP] < syncs[ops.SYNC_HOOKS] < place("hook") < place("mask")
    assert max(p for p, k in enumerate(seen) if k in ("mask", "readonly", "remount", "console")) < place("pivot")
    assert place("pivot") < syncs[ops.SYNC_READY] < place("wait_start") < place("bounding") < place("user")
    assert place("user") < place("hook", 1) < place("capabilities") < place("no_new_privs") < place("seccomp")
    assert seen[-1] == "exec"
    assert place("find_program") < syncs[ops.SYNC_READY], "create says that the program is missing"
    assert plan.runtime_hooks == (("createRuntime", 0, {"path": "/cr"}),)


def test_without_no_new_privs_the_filter_comes_while_there_is_still_the_capability() -> None:
    config = default_config()
    config["process"]["noNewPrivileges"] = False
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}
    plan = compiled(config, seccomp=b"12345678")
    assert only(plan, "seccomp").ints == (2,)
    seen = kinds(plan)
    assert "no_new_privs" not in seen
    assert seen.index("bounding") < seen.index("user") < seen.index("seccomp") < seen.index("capabilities")


def test_every_operation_of_a_field_carries_its_pointer() -> None:
    plan = compiled(default_config())
    pointers = {(op.kind, op.pointer) for op in plan.ops}
    assert ("mount", "/mounts/0") in pointers
    assert ("mask", "/linux/maskedPaths/0") in pointers
    assert ("capabilities", "/process/capabilities") in pointers
    assert ("hostname", "/hostname") in pointers


def test_namespaces_become_clone_flags_but_the_cgroup_namespace_waits_for_its_cgroup() -> None:
    config = with_linux(
        namespaces=[{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup", "time")]
    )
    plan = compiled(config)
    flags = sum(CLONE_FLAG[kind] for kind in ("mount", "pid", "network", "ipc", "uts", "time"))
    assert only(plan, "clone").ints == (flags, NO_SLOT)
    seen = [(op.kind, op.ints) for op in plan.ops]
    assert seen.index(("sync", (ops.SYNC_CGROUP,))) < seen.index(("unshare", (CLONE_FLAG["cgroup"],)))


def test_a_cgroup_mount_waits_for_the_namespace_and_moves_behind_unrelated_mounts() -> None:
    namespaces = [{"type": kind} for kind in ("mount", "pid", "cgroup")]
    config = with_linux(namespaces=namespaces)
    config["mounts"].insert(1, {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})
    config["mounts"] = [entry for entry in config["mounts"] if entry["destination"] != "/sys"][:4]
    plan = compiled(config)
    targets = [op.strs[2] for op in plan.ops if op.kind == "mount"]
    assert targets[-1] == "/sys/fs/cgroup"
    seen = kinds(plan)
    assert seen.index("unshare") < len(seen) - 1 - seen[::-1].index("mount")
    # Below /sys it stays behind /sys, above a later mount it stays before that one.
    config["mounts"].append({"destination": "/sys/fs/cgroup/extra", "type": "tmpfs", "source": "tmpfs"})
    targets = [op.strs[2] for op in compiled(config).ops if op.kind == "mount"]
    assert targets.index("/sys/fs/cgroup") < targets.index("/sys/fs/cgroup/extra")


def test_joins_are_all_opened_before_the_first_is_entered() -> None:
    entries = [{"type": "network", "path": "/run/netns/a"}, {"type": "user", "path": "/u"}, {"type": "mount"}]
    plan = compiled(with_linux(namespaces=entries))
    joins = [(op.kind, op.pointer) for op in plan.ops if op.kind in ("open_ns", "setns")]
    assert [kind for kind, _ in joins] == ["open_ns", "open_ns", "setns", "setns"]
    assert "become_root" in kinds(plan)


@pytest.mark.parametrize(
    ("privileged", "order"), [(True, ["network", "mount", "user"]), (False, ["user", "network", "mount"])]
)
def test_the_user_namespace_is_entered_last_by_the_privileged_and_first_by_others(
    privileged: bool, order: list[str]
) -> None:
    entries = [{"type": kind, "path": f"/{kind}"} for kind in ("user", "mount", "network")]
    assert [kind for kind, _, _ in plan_namespaces(entries, privileged=privileged).joins] == order


def rootless() -> dict[str, Any]:
    return default_config(rootless_ids=(1000, 1000))


def test_rootless_maps_come_from_the_parent_and_setgroups_is_denied_for_a_single_id() -> None:
    plan = compiled(rootless(), USER_HOST)
    assert plan.uid_map == ((0, 1000, 1),)
    assert plan.setgroups_deny
    seen = kinds(plan)
    assert seen.index("sync") < seen.index("become_root")
    assert only(plan, "user").ints[2] & ops.NO_SETGROUPS
    # The parent must be able to write the maps: not dumpable only afterwards.
    assert seen.index("dumpable") > seen.index("become_root")
    config = rootless()
    config["linux"]["gidMappings"].append({"containerID": 1, "hostID": 100000, "size": 65536})
    assert not compiled(config, USER_HOST).setgroups_deny


def test_in_a_user_namespace_device_nodes_are_bound_and_root_opens_sources_beforehand() -> None:
    config = rootless()
    config["mounts"].append({"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"]})
    plan = compiled(config, ROOT_HOST)
    assert "mknod" not in kinds(plan)
    assert ("/dev/null", "/dev/null") in [op.strs for op in plan.ops if op.kind == "bind"]
    opened = only(plan, "open_source") if kinds(plan).count("open_source") == 1 else None
    sources = [op for op in plan.ops if op.kind == "open_source"]
    assert ("/bundle/data",) in [op.strs for op in sources], opened
    assert all(kinds(plan).index("open_source") < kinds(plan).index("clone") for _ in sources)
    bind = next(op for op in plan.ops if op.kind == "bind" and op.strs[1] == "/data")
    assert bind.ints[1] != NO_SLOT
    assert bind.ints[2] & ops.SOURCE_IS_TREE
    assert compiled(config, USER_HOST).by_parent == ()


def test_root_with_a_user_namespace_leaves_raising_limits_to_the_parent() -> None:
    plan = compiled(rootless(), ROOT_HOST)
    assert plan.by_parent == (Op("rlimit", (7, 1024, 1024), (), "/process/rlimits/0"),)
    assert "rlimit" not in kinds(plan)


def scheduled() -> dict[str, Any]:
    config = default_config()
    config["process"] |= {
        "scheduler": {"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0-1,64", "final": "2"},
    }
    config["linux"] |= {
        "personality": {"domain": "LINUX32"},
        "memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0,65-66", "flags": ["MPOL_F_STATIC_NODES"]},
    }
    return config


SCHEDULER = Op("scheduler", (2, 1, 0, 7, 0, 0, 0), (), "/process/scheduler")
IO_PRIORITY = Op("io_priority", (0x4003,), (), "/process/ioPriority")
PERSONALITY = Op("personality", (8,), (), "/linux/personality")
MEMORY_POLICY = Op("memory_policy", (0x8003, 1, 6), (), "/linux/memoryPolicy")


def test_scheduling_comes_after_hooks_and_cgroups_and_before_the_program_is_looked_for() -> None:
    plan = compiled(scheduled(), options=Options(wait_start=True))
    place = plan.ops.index(SCHEDULER)
    assert plan.ops[place : place + 4] == (SCHEDULER, IO_PRIORITY, PERSONALITY, MEMORY_POLICY)
    seen = kinds(plan)
    ready = plan.ops.index(Op("sync", (ops.SYNC_READY,)))
    assert seen.index("pivot") < place < seen.index("find_program") < ready
    assert plan.ops.index(Op("sync", (ops.SYNC_CGROUP,), (), "/linux/cgroupsPath")) < place
    assert "cpu_affinity" not in seen, "it is for exec alone"


def test_scheduling_in_a_user_namespace_of_roots_is_done_from_outside() -> None:
    config = scheduled()
    config["linux"] |= {side: rootless()["linux"][side] for side in ("uidMappings", "gidMappings")}
    config["linux"]["namespaces"].append({"type": "user"})
    plan = compiled(config)
    assert plan.by_parent[:2] == (SCHEDULER, IO_PRIORITY)
    assert "scheduler" not in kinds(plan)
    assert PERSONALITY in plan.ops


def test_exec_takes_scheduling_from_its_document_or_else_from_the_container() -> None:
    config = scheduled()
    process = {"args": ["true"], "cwd": "/", "scheduler": {"policy": "SCHED_BATCH", "nice": 3}}
    plan = plan_exec(process, config, ROOT_HOST, id="c1", options=Options())
    seen = kinds(plan)
    before, after = (position for position, kind in enumerate(seen) if kind == "cpu_affinity")
    sync = plan.ops.index(Op("sync", (ops.SYNC_CGROUP,), (), "/linux/cgroupsPath"))
    assert plan.ops[before] == Op("cpu_affinity", (3, 1), (), "/process/execCPUAffinity/initial")
    assert plan.ops[after] == Op("cpu_affinity", (4,), (), "/process/execCPUAffinity/final")
    assert before < seen.index("clone") < sync < after
    assert Op("scheduler", (3, 0, 3, 0, 0, 0, 0), (), "/process/scheduler") in plan.ops
    assert IO_PRIORITY in plan.ops
    assert PERSONALITY in plan.ops
    assert MEMORY_POLICY in plan.ops


def test_a_copied_up_tmpfs_waits_for_the_cgroup_and_is_writable_until_then() -> None:
    config = default_config()
    options = ["ro", "tmpcopyup", "size=1m"]
    config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    plan = compiled(config)
    (mount,) = [op for op in plan.ops if op.pointer == f"/mounts/{len(config['mounts']) - 1}"]
    root = mount.ints[0]
    flags = ops.CREATE_DIR | ops.MODE_OF_TARGET | ops.COPY_UP | ops.COPY_OWNER
    assert mount == Op("mount", (root, 1, 0, flags), ("tmpfs", "tmpfs", "/run", "size=1m"), mount.pointer)
    assert plan.ops.index(Op("sync", (ops.SYNC_CGROUP,), (), "/linux/cgroupsPath")) < plan.ops.index(mount)
    options += ["uid=5", "mode=700"]
    (mount,) = [op for op in compiled(config).ops if op.pointer == mount.pointer]
    assert mount.ints[3] == ops.CREATE_DIR | ops.COPY_UP


def test_masks_and_read_only_paths_come_after_hooks() -> None:
    config = default_config()
    config["hooks"] = {"prestart": [{"path": "/h"}]}
    seen = kinds(compiled(config))
    last_sync = max(position for position, kind in enumerate(seen) if kind == "sync" and position < seen.index("pivot"))
    assert last_sync < seen.index("readonly") < seen.index("mask")


def test_an_overlay_root_is_mounted_by_the_init() -> None:
    root = Root("overlay", "/c/root", ("l/a", "l/b"), "/store", "", "", "/c/scratch")
    plan = compiled(default_config(), root=root)
    first, second = [op for op in plan.ops if op.kind == "host_mount"]
    assert first.strs == ("tmpfs", "/c/scratch", "tmpfs", "mode=700")
    assert second.strs == (
        "overlay",
        "/c/root",
        "overlay",
        "lowerdir=l/a:l/b,upperdir=/c/scratch/upper,workdir=/c/scratch/work",
    )
    assert "bind_root" not in kinds(plan)


def test_slots_name_what_the_parent_hands_over() -> None:
    plan = compiled(default_config(), options=Options(terminal_slot=True, preserve_fds=2, wait_start=True))
    assert plan.slots == ("start", "console", "fd3", "fd4")
    assert [op.ints for op in plan.ops if op.kind == "keep_fd"] == [(2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
    ],
)
def test_sysctl_names(key: str, path: str) -> None:
    plan = compiled(with_linux(sysctl={key: "1"}))
    assert (path, "1") in [op.strs for op in plan.ops if op.kind == "proc_write"]


@pytest.mark.parametrize("key", ["net.ipv4..x", "net/../kernel/core_pattern", "net.ipv4.", "net./../x"])
def test_a_sysctl_name_cannot_leave_its_directory(key: str) -> None:
    with pytest.raises(SpecError):
        compiled(with_linux(sysctl={key: "1"}))


def test_a_sysctl_value_is_written_verbatim_to_its_one_key() -> None:
    # CVE-2022-0811: "+" in a value was once read as a second setting.
    plan = compiled(with_linux(sysctl={"net.ipv4.ip_forward": "0+kernel.core_pattern=|/x"}))
    write = next(op for op in plan.ops if op.pointer == "/linux/sysctl/net.ipv4.ip_forward")
    assert write.strs == ("sys/net/ipv4/ip_forward", "0+kernel.core_pattern=|/x")


def test_labels_of_processes_and_mounts() -> None:
    config = with_linux(mountLabel="system_u:object_r:container_file_t:s0:c1,c2")
    config["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0:c1,c2"
    plan = compiled(config, ROOT_HOST.replace(selinux=True))
    where = ("self/attr/exec", "self/attr/keycreate")
    written = [op.strs for op in plan.ops if op.pointer == "/process/selinuxLabel"]
    assert written == [(file, config["process"]["selinuxLabel"]) for file in where]
    seen = kinds(plan)
    assert seen.index("proc_write") < seen.index("keyring") < seen.index("pivot")
    option = f"context={config['linux']['mountLabel']}"
    labelled = {op.strs[0] for op in plan.ops if op.kind == "mount" and option in op.strs}
    assert labelled == {"tmpfs", "devpts"}
    assert only(plan, "label").strs == ("/dev/mqueue", config["linux"]["mountLabel"])
    config["annotations"] = {"run.oci.mount_context_type": "rootcontext"}
    plan = compiled(config, ROOT_HOST.replace(selinux=True))
    assert any(op.kind == "mount" and f"root{option}" in op.strs for op in plan.ops)
    config["annotations"] = {"run.oci.mount_context_type": "x"}
    with pytest.raises(SpecError, match=r"/annotations/run\.oci\.mount_context_type"):
        compiled(config, ROOT_HOST.replace(selinux=True))


def test_the_groups_of_the_caller_are_kept_when_asked() -> None:
    config = rootless()
    assert only(compiled(config), "user").ints[2] == ops.KEEP_CAPS
    assert only(compiled(config), "become_root").ints == (0,)
    config["annotations"] = {"run.oci.keep_original_groups": "1"}
    plans = (compiled(config), plan_exec(config["process"], config, ROOT_HOST, id="c1", options=Options()))
    for plan in plans:
        assert only(plan, "user").ints[2] == ops.KEEP_CAPS | ops.NO_SETGROUPS
        assert only(plan, "become_root").ints == (ops.NO_SETGROUPS,)


def test_labels_need_their_module() -> None:
    config = default_config()
    config["process"]["apparmorProfile"] = "p"
    with pytest.raises(Unsupported, match="AppArmor"):
        compiled(config)
    plan = compiled(config, ROOT_HOST.replace(apparmor=True))
    assert ("self/attr/apparmor/exec", "exec p") in [op.strs for op in plan.ops if op.kind == "proc_write"]


def test_home_is_looked_up_only_when_the_environment_has_none() -> None:
    config = default_config()
    assert "home" in kinds(compiled(config))
    config["process"]["env"].append("HOME=/x")
    assert "home" not in kinds(compiled(config))


def test_exec_enters_by_pidfd_hidden_from_the_container() -> None:
    config = default_config()
    process = {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 5, "gid": 6}}
    plan = plan_exec(process, config, ROOT_HOST, id="c1", options=Options(preserve_fds=1))
    assert plan.slots == ("fd3", "pidfd")
    seen = kinds(plan)
    assert seen.index("dumpable") < seen.index("setns") < seen.index("clone")
    enter = only(plan, "setns")
    assert enter.ints[0] == plan.slots.index("pidfd")
    assert enter.ints[1] == sum(CLONE_FLAG[entry["type"]] for entry in config["linux"]["namespaces"])
    assert only(plan, "user").ints[:2] == (5, 6)


def test_time_offsets_are_set_before_the_clone() -> None:
    namespaces = [{"type": kind} for kind in ("mount", "time")]
    plan = compiled(with_linux(namespaces=namespaces, timeOffsets={"monotonic": {"secs": 5, "nanosecs": 1}}))
    seen = kinds(plan)
    assert seen.index("unshare") < seen.index("clone")
    assert ("self/timens_offsets", "monotonic 5 1") in [op.strs for op in plan.ops if op.kind == "proc_write"]
    assert not only(plan, "clone").ints[0] & CLONE_FLAG["time"]


def test_in_a_new_user_namespace_the_offsets_are_set_with_its_power() -> None:
    config = rootless()
    config["linux"]["namespaces"].append({"type": "time"})
    config["linux"]["timeOffsets"] = {"monotonic": {"secs": 5}}
    seen = kinds(compiled(config, ROOT_HOST))
    assert seen.index("user_ns") < seen.index("setns") < seen.index("unshare") < seen.index("clone")
    plan = compiled(config, USER_HOST)
    seen = kinds(plan)
    assert seen.index("clone") < seen.index("sync") < seen.index("unshare") < seen.index("become_root")
    assert not only(plan, "clone").ints[0] & CLONE_FLAG["time"]
    with pytest.raises(Unsupported, match=r"Linux 6\.3"):
        compiled(config, USER_HOST.replace(kernel=(6, 2)))


def test_root_makes_the_user_namespace_before_the_process_and_enters_it_last() -> None:
    config = rootless()
    config["linux"]["namespaces"].append({"type": "network", "path": "/run/netns/a"})
    config["linux"]["namespaces"] = [entry for entry in config["linux"]["namespaces"] if entry != {"type": "network"}]
    plan = compiled(config, ROOT_HOST)
    seen = kinds(plan)
    made = only(plan, "user_ns")
    assert made.ints[2:] == (1, 0, 1000, 1, 0, 1000, 1)
    # Dumpable until then, or it could not be opened; with the caller's power until the very end.
    assert seen.index("user_ns") < seen.index("dumpable") < seen.index("open_source") if "open_source" in seen else True
    entered = [op.ints for op in plan.ops if op.kind == "setns"]
    assert entered[-1] == (made.ints[0], CLONE_FLAG["user"])
    assert seen.index("own_stdio") < len(seen) - 1 - seen[::-1].index("setns") < seen.index("clone")
    assert not only(plan, "clone").ints[0] & CLONE_FLAG["user"]
    assert plan.uid_map == ()
    assert (ops.SYNC_IDMAP,) not in [op.ints for op in plan.ops if op.kind == "sync"]


def test_an_overlay_apart_is_mounted_with_the_callers_power_over_shifted_layers() -> None:
    config = rootless()
    options = ["lowerdir=/s/a/data", "upperdir=/c,v/upper", "workdir=/c,v/work", "nodev"]
    config["mounts"].append({"destination": "/data", "type": "overlay", "source": "overlay", "options": options})
    root = Root("overlay", "/c/root", ("a",), "/s", scratch="/c/scratch", apart=True, shifted=(("/s", "/s"),))
    plan = compiled(config, ROOT_HOST, root=root)
    seen = kinds(plan)
    first = [op for op in plan.ops[: seen.index("clone")] if op.kind in ("idmap", "cover", "host_mount", "host_mkdir")]
    assert [op.kind for op in first] == ["idmap", "cover", *["host_mount"] * 2, *["host_mkdir"] * 2, "host_mount"]
    assert first[2].strs[3] == "lowerdir=/s/a/data,upperdir=/c\\,v/upper,workdir=/c\\,v/work"
    assert first[4].ints == (0o755, 1000, 1000)  # the writable layer's root is the container's root's
    assert seen.index("unshare") < seen.index("propagation") < seen.index("idmap")
    assert seen.index("clone") < seen.index("root_tree") < seen.index("mount")
    bound = next(op for op in plan.ops if op.kind == "bind" and op.strs[1] == "/data")
    assert bound.ints[2] & ops.SOURCE_IS_TREE
    assert "overlay" not in [op.strs[0] for op in plan.ops if op.kind == "mount"]


@pytest.mark.parametrize("place", ["/proc", "/proc/self/attr", "/proc/sys/net", "//proc/./sys", "/proc/cpuinfo"])
def test_nothing_but_a_procfs_lies_over_proc(place: str) -> None:
    config = default_config()
    config["mounts"].append({"destination": place, "type": "tmpfs", "source": "tmpfs"})
    with pytest.raises(SpecError) as caught:
        compiled(config)
    assert caught.value.findings[0].pointer == f"/mounts/{len(config['mounts']) - 1}/destination"


def test_what_may_lie_over_proc_is_flagged() -> None:
    config = default_config()
    config["mounts"].append({"destination": "/proc/meminfo", "type": "bind", "source": "/lxcfs/meminfo"})
    plan = compiled(config)
    flags = {op.strs[-1]: op.ints[2] for op in plan.ops if op.kind == "bind"}
    assert flags["/proc/meminfo"] & ops.OVER_PROC
    procfs = next(op for op in plan.ops if op.kind == "mount" and op.strs[2] == "/proc")
    assert procfs.ints[3] & ops.OVER_PROC
    assert not any(op.ints[3] & ops.OVER_PROC for op in plan.ops if op.kind == "mount" and op.strs[2] != "/proc")


def sets_of(plan: ContainerPlan) -> tuple[int, ...]:
    """Bounding, effective, permitted, inheritable, ambient."""
    return (*only(plan, "bounding").ints, *only(plan, "capabilities").ints)


def test_what_the_runtime_cannot_grant_is_left_out_with_a_warning() -> None:
    config = default_config()
    chown, resource = (1 << CAPABILITIES[name] for name in ("CAP_CHOWN", "CAP_SYS_RESOURCE"))
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    config["process"]["capabilities"] = {kind: ["CAP_CHOWN", "CAP_SYS_RESOURCE"] for kind in kinds}
    plan = compiled(config, ROOT_HOST.replace(capabilities=chown, bounding=chown))
    assert sets_of(plan) == (chown,) * 5
    (warning,) = plan.warnings
    assert warning.pointer == "/process/capabilities/bounding/1"
    assert warning.why.startswith("CAP_SYS_RESOURCE cannot be granted, this process does not have it itself: left out")
    assert warning.why.endswith(" of bounding, effective, permitted, inheritable, ambient")
    # The bounding set may have more than is permitted.
    plan = compiled(config, ROOT_HOST.replace(capabilities=chown))
    assert sets_of(plan) == (chown | resource, chown, chown, chown, chown)
    assert [each.pointer for each in plan.warnings] == ["/process/capabilities/effective/1"]
    config["linux"]["namespaces"].append({"type": "user"})
    plan = compiled(config, ROOT_HOST.replace(capabilities=chown, bounding=chown))
    assert sets_of(plan) == (chown | resource,) * 5  # whoever makes a user namespace has them all inside
    assert plan.warnings == ()


def test_nothing_is_inheritable_beyond_the_bounding_set() -> None:
    config = default_config()
    config["process"]["capabilities"] = {
        "bounding": [],
        **{kind: ["CAP_CHOWN"] for kind in ("permitted", "inheritable", "ambient")},
    }
    plan = compiled(config)
    assert sets_of(plan) == (0, 0, 1, 0, 0)
    (warning,) = plan.warnings
    assert warning.pointer == "/process/capabilities/inheritable/0"
    assert warning.why == "CAP_CHOWN cannot be granted, it is not in the bounding set: left out of inheritable"


@pytest.mark.parametrize("word", ["shared", "rshared"])
def test_a_bind_that_is_to_be_shared_is_opened_where_it_is_the_hosts(word: str) -> None:
    config = default_config()
    config["mounts"].append({"destination": "/d", "source": "/srv", "type": "bind", "options": ["rbind", word]})
    config["mounts"].append({"destination": "/e", "source": "/srv", "type": "bind", "options": ["rbind", "rslave"]})
    plan = compiled(config)
    opened = only(plan, "open_source")
    assert kinds(plan).index("open_source") < kinds(plan).index("clone")
    shared, other = [op for op in plan.ops if op.kind == "bind" and op.strs[0] == "/srv"]
    assert shared.ints[1] == opened.ints[0]
    assert shared.ints[2] & ops.SOURCE_IS_TREE
    assert other.ints[1] == NO_SLOT


def test_ptmx_is_a_link_even_when_the_hosts_node_is_asked_for() -> None:
    config = with_linux(devices=[{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}])
    assert not [op for op in compiled(config).ops if op.kind == "mknod" and op.strs[0] == "/dev/ptmx"]
    assert [op.strs for op in compiled(config).ops if op.kind == "symlink"][-1] == ("/dev/ptmx", "pts/ptmx")


def test_a_group_is_joined_once_however_often_it_is_named() -> None:
    config = default_config()
    config["process"]["user"]["additionalGids"] = [2000, 7, 2000]
    assert only(compiled(config), "user").ints[3:] == (2000, 7)


ROOT_IN_A_NAMESPACE = ROOT_HOST.replace(in_userns=True, setgroups_denied=True)


def test_root_in_a_user_namespace_binds_devices_and_leaves_groups_alone() -> None:
    """Rootless Podman has entered its namespace already; with one id setgroups is denied in there."""
    plan = compiled(default_config(), ROOT_IN_A_NAMESPACE)
    assert "mknod" not in kinds(plan)
    assert only(plan, "user").ints[2] & ops.NO_SETGROUPS
    assert not only(compiled(default_config(), ROOT_HOST.replace(in_userns=True)), "user").ints[2] & ops.NO_SETGROUPS
    inside = plan_exec(default_config()["process"], default_config(), ROOT_IN_A_NAMESPACE, id="c1", options=Options())
    assert only(inside, "user").ints[2] & ops.NO_SETGROUPS


def test_root_in_a_user_namespace_makes_the_next_one_itself() -> None:
    """podman run --userns=keep-id: newuidmap would look for its ranges in /etc/subuid, where they are not."""
    ids = [{"containerID": 0, "hostID": 1, "size": 1000}]
    config = with_linux(uidMappings=ids, gidMappings=ids)
    config["linux"]["namespaces"].append({"type": "user"})
    plan = compiled(config, ROOT_IN_A_NAMESPACE)
    assert "user_ns" in kinds(plan)
    assert (plan.uid_map, plan.gid_map) == ((), ())


def test_exec_enters_the_cgroup_before_its_namespace() -> None:
    """cgroup2 mounted with nsdelegate lets nobody who is in the namespace be moved there from outside."""
    group = CgroupPlan((CgroupDirectory("/c", "/g", ()),), (), clone_into=True)
    config = {"linux": {"namespaces": [{"type": "mount"}, {"type": "cgroup"}]}}
    process = {"args": ["true"], "cwd": "/"}
    plan = plan_exec(process, config, ROOT_HOST, id="c1", options=Options(), cgroup=group)
    steps = [(op.kind, op.arguments().get("nstype")) for op in plan.ops if op.kind in ("setns", "clone")]
    assert steps == [("setns", 0x20000), ("clone", None), ("setns", 0x2000000)]


HYBRID = CgroupHost(
    "hybrid", (CgroupMount(("pids",), "/c/pids", "/"), CgroupMount(("name=systemd",), "/c/systemd", "/")), "/c/unified"
)


def test_v1_groups_are_joined_from_inside() -> None:
    host = ROOT_HOST.replace(cgroup=HYBRID)
    groups = plan_cgroup(default_config(), HYBRID, "c1", devices=False)
    plan = compiled(default_config(), host, options=Options(early=True, wait_start=True), cgroup=groups)
    claimed, joining = [op for op in plan.ops if op.kind == "sync" and len(op.ints) > 1]
    assert claimed.ints[0] == ops.SYNC_CLAIMED
    assert plan.late == ("start", "cgroup")
    assert plan.slots == ()
    start, born = claimed.ints[1:]
    assert only(plan, "wait_start").ints == (start,)
    assert only(plan, "clone").ints[1] == born
    assert plan.ops.index(claimed) < plan.ops.index(only(plan, "clone"))
    assert joining.ints[0] == ops.SYNC_CGROUP
    assert [door.mountpoint for door in plan.doors] == ["/c/pids", "/c/systemd"]
    at = plan.ops.index(joining)
    assert [(op.kind, op.ints, op.strs) for op in plan.ops[at + 1 : at + 3]] == [
        ("join_cgroup", (joining.ints[1],), ("/c/pids/c1",)),
        ("join_cgroup", (joining.ints[2],), ("/c/systemd/c1",)),
    ]
    assert len({*claimed.ints[1:], *joining.ints[1:]}) == 4


@pytest.mark.parametrize(
    ("host", "change"),
    [
        (USER_HOST, {}),  # by the time it could, the process may have another uid
        (ROOT_HOST.replace(in_userns=True), {}),
        (ROOT_HOST, {"scope": object()}),  # systemd's
    ],
)
def test_others_are_brought_into_v1_groups(host: Host, change: dict[str, Any]) -> None:
    groups = plan_cgroup(default_config(), HYBRID, "c1", devices=False).replace(**change)
    config = default_config()
    if host is not ROOT_HOST:
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [
            {"containerID": 0, "hostID": host.euid, "size": 1}
        ]
    plan = compiled(config, host.replace(cgroup=HYBRID), cgroup=groups)
    assert plan.doors == ()
    assert "cgroup" not in plan.slots
    assert "join_cgroup" not in kinds(plan)


def test_a_directory_of_the_host_s_is_fenced_where_others_may_look() -> None:
    group = CgroupPlan((CgroupDirectory("/c", "/g", ()),), (), clone_into=True)
    config = default_config()
    assert "fence" not in kinds(compiled(config, cgroup=group))
    for entry in config["linux"]["namespaces"]:
        if entry["type"] == "pid":
            entry["path"] = "/proc/1/ns/pid"
    plan = compiled(config, cgroup=group)
    assert only(plan, "fence").ints == only(plan, "clone").ints[1:]
    process = {"args": ["/bin/true"], "cwd": "/"}
    plan = plan_exec(process, config, ROOT_HOST, id="c1", options=Options(), cgroup=group)
    assert kinds(plan).index("fence") < kinds(plan).index("setns") < kinds(plan).index("clone")

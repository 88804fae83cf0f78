"""mounts, devices, masked and read-only paths of config.json -> operations (hot, pure).

runtime-spec config.md "Mounts", config-linux.md "Default Devices", "Masked Paths", "Readonly Paths".
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.plan import mountopts, ops
from knarr.plan.mountopts import parse_options
from knarr.plan.ops import NO_SLOT, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupPlan
    from knarr.plan.host import Host

# SB_RDONLY of these is shared with other mounts of the same file system instance, so "ro" stays with the mount.
_SHARED_SUPERBLOCK = (
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "mqueue",
    "devpts",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
)
# What may lie over a single file of /proc: views of a container's own resources (lxcfs), and two settings.
_OVER_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"),
        *("sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"),
    )
)
# These have the label their security policy gives them, or take it as an attribute of their root.
_UNLABELLED = ("proc", "sysfs", "cgroup", "cgroup2", "mqueue")
# Mounted in a user namespace, only these may be given a label (security/selinux/hooks.c, selinux_set_mnt_opts).
_LABELLED_IN_USERNS = ("tmpfs", "ramfs", "devpts", "overlay")
_CONTEXT_TYPE = "run.oci.mount_context_type"
_V1_DEFAULTS = mountopts.NOSUID | mountopts.NODEV | mountopts.NOEXEC


class MountContext:
    """What a mount's translation depends on beyond its own entry."""

    __slots__ = ("bundle", "cgroup", "cgroup_namespace", "host", "label", "network_namespace", "new_user", "root")

    def __init__(
        self,
        host: Host,
        *,
        bundle: str,
        root: int,
        cgroup: CgroupPlan | None,
        cgroup_namespace: bool,
        network_namespace: bool,
        new_user: bool,
        label: tuple[str, str] | None = None,
    ) -> None:
        self.host = host
        self.bundle = bundle
        self.root = root
        self.cgroup = cgroup
        self.cgroup_namespace = cgroup_namespace
        self.network_namespace = network_namespace
        self.new_user = new_user
        self.label = label


def mount_label(config: dict[str, Any], host: Host) -> tuple[str, str] | None:
    """linux.mountLabel as (mount option, label); crun's annotation chooses the option.

    Raises Unsupported, SpecError.
    """
    label = (config.get("linux") or {}).get("mountLabel")
    if not label:
        return None
    if not host.selinux:
        why = "SELinux is not enabled in this kernel"
        raise Unsupported(f"SELinux label {label}", why, pointer="/linux/mountLabel")
    option = (config.get("annotations") or {}).get(_CONTEXT_TYPE, "context")
    if option not in ("context", "fscontext", "defcontext", "rootcontext"):
        why = f"{option!r} is not one of context, fscontext, defcontext and rootcontext"
        raise SpecError("config.json", [SpecFinding(f"/annotations/{_CONTEXT_TYPE}", why)])
    if '"' in label:  # it would end the label among the options of a mount, and begin another one
        raise SpecError("config.json", [SpecFinding("/linux/mountLabel", "has a quotation mark in it")])
    return option, label


def label_options(label: tuple[str, str] | None) -> tuple[str, ...]:
    """The option that labels a file system, for fsconfig(2); none without a label."""
    return ("=".join(label),) if label else ()


def is_bind(entry: dict[str, Any]) -> bool:
    """Whether an entry of ``mounts[]`` is a bind mount: by type or by option."""
    options = entry.get("options") or ()
    return entry.get("type") == "bind" or "bind" in options or "rbind" in options


def source_path(entry: dict[str, Any], bundle: str) -> str:
    """The source of a bind mount; a relative one starts at the bundle (runtime-spec config.md "Mounts")."""
    source = str(entry.get("source") or "")
    return source if source.startswith("/") else f"{bundle}/{source}"


def source_op(entry: dict[str, Any], pointer: str, bundle: str, slot: int) -> Op:
    """Open the source of a bind before the container's namespaces are entered, as the caller."""
    options = parse_options(list(entry.get("options") or ()), pointer)
    how = (ops.RECURSIVE if options.recursive else 0) | options.links & (ops.SOURCE_NOFOLLOW | ops.COPY_LINK)
    return Op("open_source", (slot, how), (source_path(entry, bundle),), f"{pointer}/source")


def mount_ops(entry: dict[str, Any], pointer: str, context: MountContext, source_slot: int = NO_SLOT) -> list[Op]:
    """The operations of one entry of ``mounts[]``. ``source_slot`` holds a bind's source already opened as a tree."""
    options = parse_options(list(entry.get("options") or ()), pointer)
    target = _absolute(entry["destination"])
    over_proc = _over_proc(entry, target, pointer)
    if options.copy_up and (entry.get("type") != "tmpfs" or options.remount):
        where = f"{pointer}/options/{entry['options'].index('tmpcopyup')}"
        raise SpecError("config.json", [SpecFinding(where, "tmpcopyup is for a tmpfs only")])
    if options.links and (not is_bind(entry) or options.remount):
        why = "src-nofollow, dest-nofollow and copy-symlink are for bind mounts only"
        raise SpecError("config.json", [SpecFinding(f"{pointer}/options", why)])
    if options.remount:
        return [Op("remount", (context.root, 0, options.attr_set, options.attr_clear), (target,), pointer)]
    if is_bind(entry) or source_slot != NO_SLOT:
        flags = ops.CREATE_LIKE_SOURCE | over_proc | (ops.RECURSIVE if options.recursive else 0) | options.links
        if source_slot != NO_SLOT:
            flags |= ops.SOURCE_IS_TREE
        numbers = (options.attr_set, options.attr_clear, options.rec_set, options.rec_clear, options.propagation)
        source = source_path(entry, context.bundle)
        return [Op("bind", (context.root, source_slot, flags, *numbers), (source, target), pointer)]
    fstype = entry.get("type") or "none"
    if fstype == "cgroup":
        return _cgroup_mount(options, target, pointer, context)
    attr = options.attr_set | options.rec_set
    data = list(options.data)
    if attr & mountopts.RDONLY and fstype not in _SHARED_SUPERBLOCK and not options.copy_up:
        data.append("ro")
    if fstype == "sysfs" and not context.network_namespace and (context.new_user or context.host.in_userns):
        # sysfs shows the network namespace's devices; mounting it asks for power over that namespace.
        flags = ops.CREATE_DIR | ops.RECURSIVE
        return [Op("bind", (context.root, NO_SLOT, flags, attr, 0, attr, 0, 0), ("/sys", target), pointer)]
    in_userns = context.new_user or context.host.in_userns
    if fstype not in _UNLABELLED and (fstype in _LABELLED_IN_USERNS or not in_userns):
        data += label_options(context.label)
    strings = (fstype, entry.get("source") or fstype, target, *data)
    flags = ops.CREATE_DIR | over_proc
    if fstype == "tmpfs":
        given = {text.partition("=")[0] for text in data}
        if "mode" not in given:
            flags |= ops.MODE_OF_TARGET
        if options.copy_up:
            flags |= ops.COPY_UP if given & {"uid", "gid"} else ops.COPY_UP | ops.COPY_OWNER
    result = [Op("mount", (context.root, attr, options.propagation, flags), strings, pointer)]
    if context.label and fstype == "mqueue":
        # With ids of its own its root is nobody's, so that it cannot be: it is as old as the IPC namespace, which the
        # host's root makes. Without the label SELinux keeps the container out of it.
        flags = ops.OPTIONAL if in_userns else 0
        result.append(Op("label", (context.root, flags), (target, context.label[1]), "/linux/mountLabel"))
    return result


def _over_proc(entry: dict[str, Any], target: str, pointer: str) -> int:
    """Whether a mount may lie in /proc: a procfs on /proc itself, a file on one of a few names (CVE-2019-16884).

    This is about the destination as written, and for the sentence; the init refuses whatever leads there otherwise.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if parts[:1] != ["proc"]:
        return 0
    place = "/" + "/".join(parts)
    if place == "/proc" and (entry.get("type") == "proc" or (is_bind(entry) and entry.get("source") == "/proc")):
        return ops.OVER_PROC
    if place in _OVER_PROC_FILES and is_bind(entry):
        return ops.OVER_PROC
    why = f"{target} lies in /proc, where only a procfs may be mounted, on /proc itself"
    raise SpecError("config.json", [SpecFinding(f"{pointer}/destination", why)])


def _cgroup_mount(options: mountopts.MountOptions, target: str, pointer: str, context: MountContext) -> list[Op]:
    host = context.host.cgroup
    attr = options.attr_set
    root = context.root
    if host is None:
        raise Unsupported("a cgroup mount", "this host has no cgroups mounted", pointer=pointer)
    if host.mode == "v2":
        if context.new_user and not context.cgroup_namespace:
            # The kernel lets a user namespace mount cgroup2 only over its own cgroup namespace.
            flags = ops.CREATE_DIR | ops.RECURSIVE
            return [Op("bind", (root, NO_SLOT, flags, attr, 0, attr, 0, 0), ("/sys/fs/cgroup", target), pointer)]
        return [Op("mount", (root, attr, options.propagation, ops.CREATE_DIR), ("cgroup2", "cgroup", target), pointer)]
    # v1 and hybrid: a tmpfs with one directory per hierarchy and a link for each controller of a joint one.
    words = ("tmpfs", "tmpfs", target, "mode=755", *label_options(context.label))
    result = [Op("mount", (root, _V1_DEFAULTS, 0, ops.CREATE_DIR), words, pointer)]
    for mount in host.mounts:
        if not mount.controllers:
            continue  # the unified half of a hybrid: runc shows the v1 half alone
        name = mount.mountpoint.rpartition("/")[2]
        place = f"{target}/{name}"
        if context.cgroup_namespace:
            data = [f"name={c[5:]}" if c.startswith("name=") else c for c in mount.controllers]
            if all(c.startswith("name=") for c in mount.controllers):
                data.insert(0, "none")
            result.append(Op("mount", (root, attr, 0, ops.CREATE_DIR), ("cgroup", "cgroup", place, *data), pointer))
        else:
            source = cgroup_directory(mount, context.cgroup)
            numbers = (attr, 0, 0, 0, 0)
            result.append(Op("bind", (root, NO_SLOT, ops.CREATE_DIR, *numbers), (source, place), pointer))
        if len(mount.controllers) > 1:
            result += [
                Op("symlink", (root, 0), (f"{target}/{controller}", name), pointer)
                for controller in mount.controllers
                if controller != name
            ]
    if attr & mountopts.RDONLY:
        result.append(Op("remount", (root, 0, mountopts.RDONLY, 0), (target,), pointer))
    return result


def cgroup_directory(mount: Any, cgroup: CgroupPlan | None) -> str:
    """Where the container's cgroup of this hierarchy is on the host; the caller's own when it has none."""
    if cgroup is not None:
        for directory in cgroup.directories:
            if directory.mountpoint == mount.mountpoint:
                return f"{directory.mountpoint}/{directory.path.strip('/')}"
    return f"{mount.mountpoint}/{mount.own.strip('/')}"


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def needs_dev(mounts: list[dict[str, Any]]) -> bool:
    """Whether nodes and links in /dev are ours to make: not when the host's own /dev is bound there."""
    return not any(is_bind(entry) and entry["destination"].rstrip("/") == "/dev" for entry in mounts)


def device_ops(config: dict[str, Any], root: int, *, bound: bool, kcore: bool) -> list[Op]:
    """Nodes of linux.devices, the default nodes, and the links of config-linux.md "Default Devices".

    No field asks for the default nodes; what goes wrong with them is told of the one that is about devices.
    """
    from knarr.plan.devices import device_nodes

    result: list[Op] = []
    for node, pointer in device_nodes(config):
        if _absolute(node["path"]) == "/dev/ptmx":
            continue  # a link, whatever was asked for: docker run --privileged names all nodes of the host
        mode = node["mode"]
        pointer = pointer or "/linux/devices"
        if bound and node["kind"] != "p":
            # mknod of a device fails in a user namespace; the host's node is bound instead.
            result.append(
                Op("bind", (root, NO_SLOT, ops.CREATE_FILE, 0, 0, 0, 0, 0), (node["path"], node["path"]), pointer)
            )
        else:
            numbers = (root, mode, node["major"], node["minor"], node["uid"], node["gid"])
            result.append(Op("mknod", numbers, (node["path"],), pointer))
    links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ]
    if kcore:
        links.append(("/dev/core", "/proc/kcore"))
    result += [Op("symlink", (root, 0), link, "") for link in links]
    result.append(Op("symlink", (root, ops.REPLACE), ("/dev/ptmx", "pts/ptmx"), ""))
    return result

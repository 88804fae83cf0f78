"""(config.json, facts about the host) -> ContainerPlan: the one place where the order is decided (hot, pure).

Reads no file, no clock and no environment, and makes no system call.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.fastjson import pointer_token
from knarr.base.record import Record
from knarr.plan import ops
from knarr.plan.cgroup import born_in, joined_from_inside
from knarr.plan.host import HOOK_OUTPUTS, LANDLOCK
from knarr.plan.idmounts import shift_ops, user_ns_op
from knarr.plan.mountopts import PROPAGATION
from knarr.plan.mounts import (
    MountContext,
    device_ops,
    is_bind,
    label_options,
    mount_label,
    mount_ops,
    needs_dev,
    source_op,
)
from knarr.plan.namespaces import CLONE_FLAG, id_map, net_devices, outside_id, plan_namespaces
from knarr.plan.ops import NO_SLOT, Op
from knarr.plan.process import granted_capabilities, keeps_groups, label_ops, process_tail, rlimit_ops, search_path
from knarr.plan.resctrl import plan_rdt
from knarr.plan.root import Root, image_ops, root_apart, root_ops
from knarr.plan.schedule import BY_PARENT, schedule_ops
from knarr.spec.grammar import sysctl_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory, CgroupPlan
    from knarr.plan.host import Host
    from knarr.plan.namespaces import Namespaces, NetDevice
    from knarr.plan.resctrl import RdtPlan

    IdMap = tuple[tuple[int, int, int], ...]


_INSIDE_HOOKS = ("createContainer", "startContainer")
RAW_FILTER = "run.oci.seccomp_bpf_data"
"""crun's annotation with a compiled seccomp filter, in base64, in place of linux.seccomp."""


class Options(Record):
    """What the caller, not config.json, decides."""

    terminal_slot: bool = False  # a console socket is handed over
    preserve_fds: int = 0
    no_pivot: bool = False
    no_new_keyring: bool = False
    cgroup_manager: str = "cgroupfs"  # or "disabled": none are made; "systemd"
    notify: str = ""  # the service manager's socket, which sd_notify(3) from inside is passed on to
    wait_start: bool = False
    early: bool = False  # the init is started before the id is claimed, and waits for that before it makes anything


class ContainerPlan(Record):
    """All that must be done; ``slots`` names the descriptors the parent hands over, in slot order.

    ``late``: those that it hands over with the answer to SYNC_CLAIMED; None where the plan has no such point.
    ``by_parent``: what the runtime does to the process from outside, since root of its user namespace may not.
    """

    ops: tuple[Op, ...]
    slots: tuple[str, ...]
    uid_map: IdMap
    gid_map: IdMap
    setgroups_deny: bool
    by_parent: tuple[Op, ...]
    cgroup: CgroupPlan | None
    runtime_hooks: tuple[tuple[str, int, dict[str, Any]], ...]
    net_devices: tuple[NetDevice, ...] = ()  # the runtime moves them in
    rdt: RdtPlan | None = None  # the runtime puts it into this group of resctrl
    late: tuple[str, ...] | None = None
    doors: tuple[CgroupDirectory, ...] = ()  # groups whose files the process gets at SYNC_CGROUP, to join by itself
    mounts_stay: bool = False  # no mount namespace of its own: its mounts are the runtime's to take away
    warnings: tuple[SpecFinding, ...] = ()  # what config.json asks for in vain, and may

    def encode(self) -> bytes:
        """The bytes knarr-init reads."""
        return ops.encode(self.ops, len(self.slots))


class _Slots:
    """Gives out slot numbers: first those the parent hands over (``late``: in a while), then those the init fills."""

    __slots__ = ("_next", "late", "names")

    def __init__(self, names: list[str], late: tuple[str, ...] = ()) -> None:
        self.names = tuple(names)
        self.late = late
        self._next = len(names) + len(late)

    def new(self) -> int:
        self._next += 1
        return self._next - 1

    def of(self, name: str) -> int:
        if name in self.late:
            return len(self.names) + self.late.index(name)
        return self.names.index(name) if name in self.names else NO_SLOT


def inherited(options: Options, born: bool, files: Sequence[str] = ()) -> _Slots:  # noqa: FBT001
    """The descriptors the parent hands over, ``files`` among them."""
    names = ["start"] if options.wait_start else []
    if born:
        names.append("cgroup")
    late = tuple(names) if options.early else ()
    if late:
        names = []
    if options.terminal_slot:
        names.append("console")
    return _Slots([*names, *files] + [f"fd{3 + number}" for number in range(options.preserve_fds)], late)


def landlock_rules(config: dict[str, Any], host: Host, slots: _Slots) -> list[Op]:
    """The operations of the annotation org.knarr.landlock."""
    if LANDLOCK not in (config.get("annotations") or {}):
        return []
    from knarr.plan.landlock import landlock_ops  # cold: only with the annotation

    return landlock_ops(config, host.landlock, slots.new())


def seccomp_ops(config: dict[str, Any], seccomp: bytes | None) -> list[Op]:
    """The operation that loads the filter."""
    if seccomp is None:
        return []
    from knarr.plan.seccomp_filter import filter_flags  # only with a profile

    profile = (config.get("linux") or {}).get("seccomp") or {}
    pointer = "/linux/seccomp"
    if RAW_FILTER in (config.get("annotations") or {}):  # of the profile, only flags have a meaning then
        profile = {key: value for key, value in profile.items() if key == "flags"}
        pointer = f"/annotations/{RAW_FILTER}"
    return [Op("seccomp", (filter_flags(profile),), (seccomp,), pointer)]


def plan_container(
    config: dict[str, Any],
    host: Host,
    *,
    id: str,
    bundle: str,
    options: Options,
    root: Root | None = None,
    seccomp: bytes | None = None,
    cgroup: CgroupPlan | None = None,
) -> ContainerPlan:
    """Compile a validated config.json into a plan.

    ``seccomp`` is the compiled linux.seccomp, ``cgroup`` the plan of linux.resources; both are made beside this one
    because the runtime caches and creates them on their own. Raises Unsupported with the field's JSON pointer.
    """
    linux = config.get("linux") or {}
    process = config["process"]
    spaces = plan_namespaces(linux.get("namespaces") or [], privileged=host.privileged)
    new_user = "user" in spaces.new
    # Root's first stage makes the user namespace itself (also root in a namespace, as below rootless Podman); anyone
    # else's maps are written by the parent.
    by_init = new_user and host.euid == 0
    uid_map, gid_map = own_maps(linux) if new_user and not by_init else ((), ())
    # Without newgidmap's privilege the kernel accepts a gid map only after setgroups is denied (user_namespaces(7)).
    setgroups_deny = new_user and not by_init and own_id_alone(gid_map, host.egid)
    # In a user namespace all are had; an ordinary user without one has another, greater problem (see clone).
    limited = host.euid == 0 and not spaces.own("user")
    masks, warnings = (
        granted_capabilities(process, permitted=host.capabilities, bounding=host.bounding)
        if limited
        else granted_capabilities(process)
    )
    hooks = config.get("hooks") or {}
    inside = any(hooks.get(kind) for kind in _INSIDE_HOOKS)
    outputs = [name for name in HOOK_OUTPUTS if inside and name in (config.get("annotations") or {})]
    slots = inherited(options, born_in(cgroup, host), outputs)
    proc, root_slot = slots.new(), slots.new()
    user_slot = slots.new() if by_init else NO_SLOT
    opened: dict[int, int] = {}
    root = root or Root("bind", _root_path(config, bundle))
    image_slot = slots.new() if root.image else NO_SLOT
    label = mount_label(config, host)

    plan = _before_clone(
        config,
        host,
        spaces,
        slots,
        proc,
        root=root,
        root_slot=root_slot,
        image_slot=image_slot,
        user_slot=user_slot,
        opened=opened,
        bundle=bundle,
        label=label,
        early=options.early,
    )
    plan += _identity(config, spaces, options, id=id, asks=new_user and not by_init, host=host, proc=proc)
    own_mounts = spaces.own("mount")
    plan += root_ops(root, root_slot, linux, image_slot=image_slot, own_mounts=own_mounts, label=label)
    context = MountContext(
        host,
        bundle=bundle,
        root=root_slot,
        cgroup=cgroup,
        cgroup_namespace=spaces.own("cgroup"),
        network_namespace=spaces.own("network"),
        new_user=new_user or any(kind == "user" for kind, _, _ in spaces.joins),
        label=label,
    )
    # Among processes of others, who may look into it, its parent brings it in instead.
    doors = () if any(kind == "pid" for kind, _, _ in spaces.joins) else joined_from_inside(cgroup, host)
    plan += _mounts(config, context, spaces, opened, joining_ops(doors, slots))
    if needs_dev(config.get("mounts") or []):
        plan += device_ops(config, root_slot, bound=context.new_user or host.in_userns, kcore=host.kcore)
    plan.append(Op("mkdir", (root_slot, 0o755), (process.get("cwd", "/"),), "/process/cwd"))
    if "network" in spaces.new:
        plan.append(Op("loopback", (), (), ""))
    if hooks.get("prestart") or hooks.get("createRuntime") or hooks.get("createContainer"):
        plan.append(Op("sync", (ops.SYNC_HOOKS,), (), "/hooks"))
    if outputs:
        plan.append(Op("hook_output", tuple(slots.of(name) for name in HOOK_OUTPUTS), (), "/annotations"))
    plan += [hook_op(hook, f"/hooks/createContainer/{n}") for n, hook in enumerate(hooks.get("createContainer") or ())]
    how = ops.PIVOT_MOVE if options.no_pivot else 0
    plan += _seal_root(config, linux, slots, root_slot, how if own_mounts else ops.PIVOT_CHROOT, label)
    plan += _inside(config, linux, process, proc)
    own, outside = divided(process, linux, by_parent=by_init)
    plan += own
    plan.append(Op("dumpable", (0,), (), ""))
    plan.append(Op("find_program", (), (process["args"][0], search_path(process)), "/process/args/0"))
    plan.append(Op("sync", (ops.SYNC_READY,), (), ""))
    plan.append(Op("pdeathsig", (0,), (), ""))
    if options.wait_start:
        plan.append(Op("wait_start", (slots.of("start"),), (), ""))
    plan += process_tail(
        process,
        capabilities=masks,
        hooks=[hook_op(hook, f"/hooks/startContainer/{n}") for n, hook in enumerate(hooks.get("startContainer") or ())],
        seccomp=seccomp_ops(config, seccomp),
        set_rlimits=not by_init,
        setgroups_denied=setgroups_deny or host.setgroups_denied or keeps_groups(config),
        keep=[(slots.of(f"fd{3 + n}"), 3 + n) for n in range(options.preserve_fds)],
        landlock=landlock_rules(config, host, slots),
    )
    return ContainerPlan(
        tuple(plan),
        slots.names,
        uid_map,
        gid_map,
        setgroups_deny,
        outside,
        cgroup,
        tuple(
            (kind, n, hook) for kind in ("prestart", "createRuntime") for n, hook in enumerate(hooks.get(kind) or ())
        ),
        net_devices=net_devices(linux.get("netDevices") or {}),
        rdt=plan_rdt(linux.get("intelRdt"), id),
        late=slots.late if options.early else None,
        doors=doors,
        mounts_stay=not own_mounts,
        warnings=warnings,
    )


def divided(process: dict[str, Any], linux: dict[str, Any], *, by_parent: bool) -> tuple[list[Op], tuple[Op, ...]]:
    """How the process is scheduled: what it does itself, and with ``by_parent`` what is done to it, limits included.

    Scheduling and limits take capabilities in the initial user namespace: a privileged runtime has them, the root of
    a new user namespace has not.
    """
    scheduled = schedule_ops(process, linux)
    if not by_parent:
        return scheduled, ()
    outside = [op for op in scheduled if op.kind in BY_PARENT]
    return [op for op in scheduled if op.kind not in BY_PARENT], (*outside, *rlimit_ops(process))


def own_id_alone(gid_map: IdMap, egid: int) -> bool:
    """Whether only the caller's own group is mapped, which any user may do, but with setgroups denied."""
    return len(gid_map) == 1 and gid_map[0][1:] == (egid, 1)


def _root_path(config: dict[str, Any], bundle: str) -> str:
    path = str(config["root"]["path"])
    return path if path.startswith("/") else f"{bundle}/{path}"


def _opened_before(options: Sequence[str], host: Host, user_slot: int) -> bool:
    """Whether a bind's source is opened in the caller's namespaces.

    For root with a new user namespace all are: its root may not reach what the caller can (I21). What is to be shared
    must be, as the copy in the new mount namespace is a slave of the host's, and nothing made in it would go out.
    """
    if user_slot != NO_SLOT:
        return True
    given = set(options)
    return host.euid == 0 and bool(given & {"shared", "rshared"})


def _before_clone(
    config: dict[str, Any],
    host: Host,
    spaces: Namespaces,
    slots: _Slots,
    proc: int,
    *,
    root: Root,
    root_slot: int,
    image_slot: int,
    user_slot: int,
    opened: dict[int, int],
    bundle: str,
    label: tuple[str, str] | None,
    early: bool,
) -> list[Op]:
    """The first stage, still in the caller's namespaces with the caller's power."""
    linux = config.get("linux") or {}
    process = config["process"]
    plan = [Op("open_proc", (proc,), (), "")]
    score = process.get("oomScoreAdj")
    if score is not None:
        # Here, while the process is dumpable and has the caller's capabilities; the child inherits it.
        plan.append(Op("proc_write", (proc, 0), ("self/oom_score_adj", str(score)), "/process/oomScoreAdj"))
    # User namespaces while dumpable: the process in one has to be looked at to open it.
    if user_slot != NO_SLOT:
        plan.append(user_ns_op(user_slot, proc, *own_maps(linux), "/linux/uidMappings"))
    shifting, shifts = shift_ops(config, host, proc=proc, user_slot=user_slot, new_slot=slots.new)
    plan += shifting
    if not host.in_userns and host.euid == 0:
        plan.append(Op("dumpable", (0,), (), ""))
    plan += image_ops(root, image_slot, label)
    if root.apart:
        plan += root_apart(
            config, root, root_slot, slots.new, image_slot=image_slot, user_slot=user_slot, opened=opened, label=label
        )
    for position, entry in enumerate(config.get("mounts") or ()):
        options = entry.get("options") or ()
        apart = is_bind(entry) and "remount" not in options and _opened_before(options, host, user_slot)
        if apart or position in shifts:
            slot = opened[position] = slots.new()
            plan.append(source_op(entry, f"/mounts/{position}", bundle, slot))
            if position in shifts:
                plan.append(Op("idmap", (slot, *shifts[position]), (), f"/mounts/{position}"))
    plan += join_ops(spaces, slots)
    if user_slot != NO_SLOT:
        uid = (process.get("user") or {}).get("uid", 0)
        # From inside the streams' owner is nobody, and could not be changed.
        plan.append(Op("own_stdio", (outside_id(linux.get("uidMappings"), uid),), (), "/process/user/uid"))
        plan.append(Op("setns", (user_slot, CLONE_FLAG["user"]), (), "/linux/uidMappings"))
    flags = 0
    for kind in spaces.new:
        # The cgroup namespace is made after the cgroup was joined, so that its root is the container's own cgroup.
        if kind != "cgroup" and not (kind == "user" and user_slot != NO_SLOT):
            flags |= CLONE_FLAG[kind]
    offsets = linux.get("timeOffsets")
    if offsets and "time" in spaces.new:
        flags &= ~CLONE_FLAG["time"]
        if flags & CLONE_FLAG["user"] == 0:
            plan += _time_ops(offsets, proc)  # the clone enters
    if early:
        plan.append(Op("sync", (ops.SYNC_CLAIMED, *(slots.of(name) for name in slots.late)), (), ""))
    if slots.of("cgroup") != NO_SLOT and any(kind == "pid" for kind, _, _ in spaces.joins):
        plan.append(Op("fence", (slots.of("cgroup"),), (), ""))
    plan.append(Op("clone", (flags, slots.of("cgroup")), (), "/linux/namespaces"))
    return plan


def own_maps(linux: dict[str, Any]) -> tuple[IdMap, IdMap]:
    """The maps of the container's user namespace, users' first."""
    return id_map(linux.get("uidMappings") or []), id_map(linux.get("gidMappings") or [])


def _time_ops(offsets: dict[str, Any], proc: int) -> list[Op]:
    """A time namespace. Its offsets can be set only before the first process enters (time_namespaces(7))."""
    plan = [Op("unshare", (CLONE_FLAG["time"],), (), "/linux/timeOffsets")]
    for clock, offset in sorted(offsets.items()):
        line = f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}"
        plan.append(Op("proc_write", (proc, 0), ("self/timens_offsets", line), f"/linux/timeOffsets/{clock}"))
    return plan


def join_ops(spaces: Namespaces, slots: _Slots) -> list[Op]:
    """Open every namespace first (their paths belong to the caller's mount namespace), then enter them."""
    opening: list[Op] = []
    entering: list[Op] = []
    for kind, path, pointer in spaces.joins:
        slot = slots.new()
        opening.append(Op("open_ns", (slot, CLONE_FLAG[kind]), (path,), pointer))
        entering.append(Op("setns", (slot, CLONE_FLAG[kind]), (), pointer))
    return opening + entering


def _identity(
    config: dict[str, Any], spaces: Namespaces, options: Options, *, id: str, asks: bool, host: Host, proc: int
) -> list[Op]:
    """The child's first steps; ``asks``: the parent writes the maps of a new user namespace."""
    # Should the runtime die before the container is recorded, the container dies too.
    plan = [Op("pdeathsig", (9,), (), "")]
    if asks:
        plan.append(Op("sync", (ops.SYNC_IDMAP,), (), "/linux/uidMappings"))
        offsets = (config.get("linux") or {}).get("timeOffsets")
        if offsets and "time" in spaces.new:
            # Only here is there the power to make one; it is exec that enters it, which older kernels do not do.
            if host.kernel < (6, 3):
                raise Unsupported("linux.timeOffsets", "it takes root, or Linux 6.3", pointer="/linux/timeOffsets")
            plan += _time_ops(offsets, proc)
    if spaces.own("user"):
        flags = ops.NO_SETGROUPS if keeps_groups(config) else 0
        plan.append(Op("become_root", (flags,), (), "/linux/uidMappings"))
        # Changing ids clears the death signal (prctl(2)).
        plan.append(Op("pdeathsig", (9,), (), ""))
    plan.append(Op("setsid", (), (), ""))
    plan += label_ops(config["process"], host, proc)
    if not options.no_new_keyring:
        plan.append(Op("keyring", (), (f"_ses.{id}",), ""))
    return plan


def joining_ops(doors: Sequence[CgroupDirectory], slots: _Slots) -> list[Op]:
    """The point at which the process is, or comes, into its cgroups."""
    files = [slots.new() for _ in doors]
    entering = [
        Op("join_cgroup", (file,), (door.mountpoint + door.path,), "/linux/cgroupsPath")
        for file, door in zip(files, doors, strict=True)
    ]
    return [Op("sync", (ops.SYNC_CGROUP, *files), (), "/linux/cgroupsPath"), *entering]


def _mounts(
    config: dict[str, Any], context: MountContext, spaces: Namespaces, opened: dict[int, int], joining: list[Op]
) -> list[Op]:
    """All mounts in order, and the point at which the cgroups must have been made and are joined.

    Making v1 cgroups takes a while, so it goes on while the child mounts. Only a cgroup mount that
    shows the new cgroup namespace, or v1 groups of the container's own, has to wait for it; it is moved to the end
    unless another mount lies above or below it.
    """
    groups = context.cgroup
    awaited = context.cgroup_namespace or (groups is not None and not groups.clone_into)
    entries: list[tuple[int, dict[str, Any]]] = list(enumerate(config.get("mounts") or ()))
    joined = list(joining)
    if "cgroup" in spaces.new:
        joined.append(Op("unshare", (CLONE_FLAG["cgroup"],), (), "/linux/namespaces"))
    waiting = [pair for pair in entries if pair[1].get("type") == "cgroup" and awaited]
    if waiting and all(_alone(pair, entries) for pair in waiting):
        entries = [pair for pair in entries if pair not in waiting] + waiting
    plan: list[Op] = []
    synced = False
    for position, entry in entries:
        shows_groups = entry.get("type") == "cgroup" and awaited
        # What is copied into memory must count as the container's.
        if not synced and (shows_groups or "tmpcopyup" in (entry.get("options") or ())):
            plan += joined
            synced = True
        plan += mount_ops(entry, f"/mounts/{position}", context, opened.get(position, NO_SLOT))
    return plan if synced else plan + joined


def _alone(pair: tuple[int, dict[str, Any]], entries: list[tuple[int, dict[str, Any]]]) -> bool:
    """No later mount is above, below or at this one's destination."""
    here = pair[1]["destination"].rstrip("/") + "/"
    later = [entry["destination"].rstrip("/") + "/" for position, entry in entries if position > pair[0]]
    return not any(other.startswith(here) or here.startswith(other) for other in later)


def _seal_root(
    config: dict[str, Any],
    linux: dict[str, Any],
    slots: _Slots,
    root: int,
    how: int,
    label: tuple[str, str] | None,
) -> list[Op]:
    """Terminal, masked and read-only paths, and the step into the root."""
    process = config["process"]
    plan: list[Op] = []
    if process.get("terminal") and "console" in slots.names:
        size = process.get("consoleSize") or {}
        uid = (process.get("user") or {}).get("uid", 0)
        numbers = (root, slots.of("console"), ops.CONSOLE_BIND, size.get("height", 0), size.get("width", 0), uid)
        plan.append(Op("console", numbers, (), "/process/terminal"))
    plan += [
        Op("readonly", (root,), (path,), f"/linux/readonlyPaths/{n}")
        for n, path in enumerate(linux.get("readonlyPaths") or ())
    ]
    plan += [
        Op("mask", (root,), (path, *label_options(label)), f"/linux/maskedPaths/{n}")
        for n, path in enumerate(linux.get("maskedPaths") or ())
    ]
    if (config.get("root") or {}).get("readonly"):
        plan.append(Op("remount", (root, 0, 0x1, 0), ("/",), "/root/readonly"))
    plan.append(Op("pivot", (root, how), (), "/root/path"))
    plan.append(Op("close", (root,), (), ""))
    asked = linux.get("rootfsPropagation")
    if asked:
        plan.append(Op("propagation", (PROPAGATION[asked],), ("/",), "/linux/rootfsPropagation"))
    return plan


def _inside(
    config: dict[str, Any],
    linux: dict[str, Any],
    process: dict[str, Any],
    proc: int,
) -> list[Op]:
    """Names and kernel settings of the new namespaces; the procfs handle was opened before the root changed (I2)."""
    plan: list[Op] = []
    if config.get("hostname"):
        plan.append(Op("hostname", (), (config["hostname"],), "/hostname"))
    if config.get("domainname"):
        plan.append(Op("domainname", (), (config["domainname"],), "/domainname"))
    for key, value in (linux.get("sysctl") or {}).items():
        pointer = f"/linux/sysctl{pointer_token(key)}"
        path = sysctl_path(key)
        if path is None:  # it would leave /proc/sys (CVE-2022-0811)
            raise SpecError("config.json", [SpecFinding(pointer, "is not the name of a kernel setting")])
        plan.append(Op("proc_write", (proc, 0), (f"sys/{path}", value), pointer))
    plan.append(Op("close", (proc,), (), ""))
    if not process.get("terminal"):
        plan.append(Op("reopen_null", (), (), ""))
    return plan


def hook_op(hook: dict[str, Any], pointer: str) -> Op:
    """A hook that runs inside the container's namespaces; its environment is only what is configured (I7)."""
    arguments = hook.get("args") or [hook["path"]]
    timeout = int(hook.get("timeout") or 0) * 1000
    return Op("hook", (timeout, len(arguments)), (hook["path"], *arguments, *(hook.get("env") or ())), pointer)

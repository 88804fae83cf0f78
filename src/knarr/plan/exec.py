"""A further process in a running container -> ContainerPlan (hot, pure).

The container's namespaces are entered all at once through a pidfd (setns(2), Linux 5.8): no path of the container
is opened, and a reused pid cannot be entered by mistake.
"""

from __future__ import annotations

from knarr.plan import ops
from knarr.plan.cgroup import born_in
from knarr.plan.container import (
    ContainerPlan,
    divided,
    inherited,
    joining_ops,
    landlock_rules,
    own_id_alone,
    seccomp_ops,
)
from knarr.plan.namespaces import CLONE_FLAG, id_map, outside_id
from knarr.plan.ops import NO_SLOT, Op
from knarr.plan.process import granted_capabilities, keeps_groups, label_ops, process_tail, search_path
from knarr.plan.schedule import OF_EXEC, affinity_op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupPlan
    from knarr.plan.container import Options
    from knarr.plan.host import Host


def plan_exec(
    process: dict[str, Any],
    config: dict[str, Any],
    host: Host,
    *,
    id: str,
    options: Options,
    seccomp: bytes | None = None,
    cgroup: CgroupPlan | None = None,
) -> ContainerPlan:
    """Compile a process document for the container that ``config`` describes.

    The parent hands over a pidfd of the container's first process as slot "pidfd", after the other inherited slots,
    and the process's root as slot "root" where there is no mount namespace to enter.
    Raises Unsupported with the field's JSON pointer.
    """
    linux = config.get("linux") or {}
    keep_groups = keeps_groups(config)
    own = config.get("process") or {}
    process = {**{field: own[field] for field in OF_EXEC if own.get(field)}, **process}
    slots = inherited(options, born_in(cgroup, host))
    kinds = {entry["type"] for entry in linux.get("namespaces") or ()}
    slots = type(slots)([*slots.names, "pidfd", *(() if "mount" in kinds else ("root",))])
    proc = slots.new()
    user = "user" in kinds
    flags = 0
    for kind in kinds:
        flags |= CLONE_FLAG[kind]
    plan = [Op("open_proc", (proc,), (), ""), *affinity_op(process, "initial")]
    score = process.get("oomScoreAdj")
    if score is not None:
        plan.append(Op("proc_write", (proc, 0), ("self/oom_score_adj", str(score)), "/process/oomScoreAdj"))
    plan += label_ops(process, host, proc)
    # Before the container's processes can see this one (CVE-2016-9962).
    plan += [Op("dumpable", (0,), (), ""), Op("close", (proc,), (), "")]
    by_parent = host.euid == 0 and user
    if by_parent and linux.get("uidMappings"):
        # From inside the streams' owner is nobody, and could not be changed.
        uid = outside_id(linux["uidMappings"], (process.get("user") or {}).get("uid", 0))
        plan.append(Op("own_stdio", (uid,), (), ""))
    # Into the cgroup first, into its namespace then: where namespaces bound delegation (nsdelegate, as systemd mounts
    # cgroup2), nobody inside one may be moved there from outside (cgroups(7)).
    inside = flags & CLONE_FLAG["cgroup"] if slots.of("cgroup") != NO_SLOT else 0
    if slots.of("cgroup") != NO_SLOT:
        plan.append(Op("fence", (slots.of("cgroup"),), (), ""))
    if flags & ~inside:
        plan.append(Op("setns", (slots.of("pidfd"), flags & ~inside), (), "/linux/namespaces"))
    if "mount" not in kinds:
        plan.append(Op("pivot", (slots.of("root"), ops.PIVOT_CHROOT), (), ""))
    plan += [Op("clone", (0, slots.of("cgroup")), (), ""), Op("pdeathsig", (9,), (), "")]
    if inside:
        plan.append(Op("setns", (slots.of("pidfd"), inside), (), "/linux/namespaces"))
    if user:
        flags = ops.NO_SETGROUPS if keep_groups else 0
        plan += [Op("become_root", (flags,), (), "/linux/uidMappings"), Op("pdeathsig", (9,), (), "")]
    plan.append(Op("setsid", (), (), ""))
    if not options.no_new_keyring:
        plan.append(Op("keyring", (), (f"_ses.{id}",), ""))
    if process.get("terminal") and options.terminal_slot:
        size = process.get("consoleSize") or {}
        uid = (process.get("user") or {}).get("uid", 0)
        numbers = (NO_SLOT, slots.of("console"), 0, size.get("height", 0), size.get("width", 0), uid)
        plan.append(Op("console", numbers, (), "/process/terminal"))
    else:
        plan.append(Op("reopen_null", (), (), ""))
    # Its parent brings it in: the files to join by would be seen by who may look into it, in there.
    plan += joining_ops((), slots)
    scheduled, outside = divided(process, linux, by_parent=by_parent)
    plan += [*affinity_op(process, "final"), *scheduled]
    plan.append(Op("find_program", (), (process["args"][0], search_path(process)), "/process/args/0"))
    denied = user and host.euid != 0 and own_id_alone(id_map(linux.get("gidMappings") or []), host.egid)
    plan += [Op("sync", (ops.SYNC_READY,), (), ""), Op("pdeathsig", (0,), (), "")]
    masks, warnings = (
        granted_capabilities(process)
        if user or host.euid
        else granted_capabilities(process, permitted=host.capabilities, bounding=host.bounding)
    )
    plan += process_tail(
        process,
        capabilities=masks,
        hooks=[],
        seccomp=seccomp_ops(config, seccomp),
        set_rlimits=not by_parent,
        setgroups_denied=denied or host.setgroups_denied or keep_groups,
        keep=[(slots.of(f"fd{3 + n}"), 3 + n) for n in range(options.preserve_fds)],
        landlock=landlock_rules(config, host, slots),
    )
    return ContainerPlan(tuple(plan), slots.names, (), (), False, outside, cgroup, (), warnings=warnings)

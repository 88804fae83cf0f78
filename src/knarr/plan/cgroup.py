"""linux.cgroupsPath and linux.resources -> the groups to make and the values to write (hot, pure).

runtime-spec config-linux.md "Control groups"; the files are those of the kernel's cgroup-v1/ and cgroup-v2.rst.
The executor is runtime/cgroup.py; docs/cgroups.md has the choices and their reasons. Values were checked by
spec/validate.py; a number that is 0 was not asked for, as Go's writers of config.json have it.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.plan.devices import device_rules
from knarr.plan.ops import MAX_SENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup_systemd import Scope
    from knarr.plan.devices import Rule
    from knarr.plan.host import Host

_PATH_MAX = 4096 - 256  # leaves room for the mount point and the files below
_NAME_MAX = 255
CGROUPFS, SYSTEMD, DISABLED = "cgroupfs", "systemd", "disabled"
"""Who makes the groups: the runtime, systemd, nobody (--cgroup-manager)."""


class CgroupMount(Record):
    """One v1 hierarchy: its controllers (``name=systemd`` for a named one), its mount point, our own group in it."""

    controllers: tuple[str, ...]
    mountpoint: str
    own: str


class CgroupHost(Record):
    """What there is: ``mode`` v1, hybrid (v1 with a unified hierarchy beside it) or v2."""

    mode: str
    mounts: tuple[CgroupMount, ...] = ()  # the v1 hierarchies
    unified: str = ""  # mount point of the v2 hierarchy
    unified_own: str = "/"
    controllers: tuple[str, ...] = ()  # of the v2 hierarchy
    units: str = ""  # the group below which the manager of systemd keeps its units, for the systemd driver


class Write(Record):
    """Write the value of the first of ``choices`` (file, value) that exists in the group below ``mountpoint``.

    ``optional``: that none exists is no error. ``not_below``: the value must not be less than that file's number.
    """

    mountpoint: str
    choices: tuple[tuple[str, str], ...]
    pointer: str
    optional: bool = False
    not_below: str = ""


class CgroupDirectory(Record):
    """The container's group in one hierarchy; ``path`` starts at the mount point. ``controllers``: see CgroupHost."""

    mountpoint: str
    path: str
    controllers: tuple[str, ...]


class CgroupPlan(Record):
    """All that must be made.

    Where devices are an eBPF program's matter, ``device_mount`` is the v2 hierarchy to attach it in and
    ``device_rules`` what it must say; on v1 they are among the writes.
    """

    directories: tuple[CgroupDirectory, ...]
    writes: tuple[Write, ...]
    device_rules: tuple[Rule, ...] = ()
    device_mount: str = ""
    clone_into: bool = False  # v2 only: the process is born in its group (CLONE_INTO_CGROUP)
    unified: CgroupDirectory | None = None  # of a hybrid, where the process is born in its group as well
    scope: Scope | None = None  # what systemd makes around the process


def plan_cgroup(
    config: dict[str, Any],
    host: CgroupHost,
    id: str,
    *,
    devices: bool = True,
    driver: str = CGROUPFS,
    user: bool = False,
) -> CgroupPlan:
    """Decide on groups and values for a validated config.json.

    With the systemd ``driver`` they belong to a scope of the system's manager or, ``user``, of the user's.

    Without ``devices`` the device rules are left out: a user namespace can neither make nor restrict devices. Raises
    Unsupported, with the JSON pointer, for a limit whose controller this host does not have, and SpecError for a path
    that is not a group below the hierarchy's root.
    """
    linux = config.get("linux") or {}
    resources = linux.get("resources") or {}
    rules = device_rules(config) if devices else ()
    scope = None
    if driver == SYSTEMD:
        from knarr.plan.cgroup_systemd import plan_scope

        v2 = host.mode == "v2"
        scope = plan_scope(config, id, user=user, v2=v2, rules=() if v2 else rules)
        path = f"{host.units}{scope.path}" + (f"/{scope.subgroup}" if scope.subgroup else "")
    else:
        path = str(linux.get("cgroupsPath") or "")
    place = _relative(path, id)
    top = path.startswith("/")
    if host.mode == "v2":
        from knarr.plan.cgroup_v2 import v2_writes

        own = "" if top else _above(host.unified_own)
        where = CgroupDirectory(host.unified, f"{own}/{place}", host.controllers)
        writes = tuple(v2_writes(resources, where))
        return CgroupPlan((where,), writes, rules, host.unified if devices else "", scope is None, scope=scope)
    from knarr.plan.cgroup_v1 import v1_writes

    directories = [
        CgroupDirectory(mount.mountpoint, f"{'' if top else mount.own.rstrip('/')}/{place}", mount.controllers)
        for mount in host.mounts
    ]
    unified = None
    if host.unified:
        own = "" if top else host.unified_own.rstrip("/")
        unified = CgroupDirectory(host.unified, f"{own}/{place}", ())
        directories.append(unified)
    device_mount = ""
    if devices and not any("devices" in mount.controllers for mount in host.mounts):
        # A hybrid without the v1 controller, which newer kernels can leave out: the program does it there too.
        if not host.unified:
            raise missing("devices", "/linux/resources/devices")
        device_mount = host.unified
    v1 = tuple(v1_writes(resources, () if device_mount else rules, directories))
    return CgroupPlan(tuple(directories), v1, rules if device_mount else (), device_mount, unified=unified, scope=scope)


def joined_from_inside(planned: CgroupPlan | None, host: Host) -> tuple[CgroupDirectory, ...]:
    """The v1 groups that the process joins itself, which waits for nobody: those that root made, not systemd.

    The kernel lets a process in by who opened the group's file; an ordinary user's may be somebody else by then.
    """
    if planned is None or planned.clone_into or planned.scope is not None or not host.privileged:
        return ()
    groups = tuple(directory for directory in planned.directories if directory != planned.unified)
    return groups if len(groups) <= MAX_SENT else ()


def born_in(planned: CgroupPlan | None, host: Host) -> bool:
    """Whether the process is born in one of its groups, or in the only one."""
    return planned is not None and (
        planned.clone_into or (planned.unified is not None and bool(joined_from_inside(planned, host)))
    )


def _relative(path: str, id: str) -> str:
    """The path without its leading slash; the id where none is given.

    An absolute path starts at the top, a relative one at our own group, as with runc.
    """
    parts = [part for part in path.split("/") if part] if path else [id]
    why = ""
    if any(part in (".", "..") for part in parts):
        why = 'must not have "." or ".." as a part'
    elif not parts:
        why = "is the root of the hierarchy, which is not a container's"
    elif len(path) > _PATH_MAX or any(len(part.encode("utf-8", "surrogateescape")) > _NAME_MAX for part in parts):
        why = f"is too long: a part may have {_NAME_MAX} bytes, all of it {_PATH_MAX}"
    elif any(ord(char) < 32 or ord(char) == 127 for char in path):
        why = "must not have control characters"
    if why:
        raise SpecError("config.json", [SpecFinding("/linux/cgroupsPath", why)])
    return "/".join(parts)


def _above(own: str) -> str:
    """On v2 a group with processes cannot have children with controllers, so ours stand beside our own group."""
    return own.rpartition("/")[0]


def missing(controller: str, pointer: str) -> Unsupported:
    """The error for a limit that nothing here can enforce."""
    return Unsupported(
        f"a limit of the cgroup controller {controller}",
        "this host has no such controller, or it is not delegated",
        pointer=pointer,
    )


def positive(value: Any) -> bool:
    """Whether a limit was asked for: Docker writes 0 for "none"."""
    return value is not None and value != 0


def rdma_line(device: str, limits: dict[str, Any]) -> str:
    """The line of rdma.max (cgroup-v1/rdma.rst; the same in v2)."""
    words = [device]
    for field, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
        if limits.get(field) is not None:
            words.append(f"{name}={limits[field]}")
    return " ".join(words)

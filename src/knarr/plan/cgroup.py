"""linux.resources -> the directories to make and the values to write (hot, pure).

runtime-spec config-linux.md "Control groups"; the files are those of the kernel's cgroup-v1/ and cgroup-v2.rst.
The executor is runtime/cgroup.py.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.plan.devices import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.devices import Rule


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


class Write(Record):
    """Write the value of the first of ``choices`` (file, value) that exists in the group below ``mountpoint``."""

    mountpoint: str
    choices: tuple[tuple[str, str], ...]
    pointer: str


class CgroupDirectory(Record):
    """The container's group in one hierarchy; ``path`` starts at the mount point."""

    mountpoint: str
    path: str
    controllers: tuple[str, ...]


class CgroupPlan(Record):
    """All that must be made; ``device_rules`` is for a v2 hierarchy, where devices are an eBPF program's matter."""

    directories: tuple[CgroupDirectory, ...]
    writes: tuple[Write, ...]
    device_rules: tuple[Rule, ...] = ()
    clone_into: bool = False  # the process is born in its group (CLONE_INTO_CGROUP, v2 only)


def plan_cgroup(config: dict[str, Any], host: CgroupHost, id: str) -> CgroupPlan:
    """Decide on groups and values for a validated config.json.

    Raises Unsupported, with the JSON pointer, for a limit whose controller this host does not have, and SpecError for
    a path that would leave the hierarchy.
    """
    linux = config.get("linux") or {}
    resources = linux.get("resources") or {}
    path = str(linux.get("cgroupsPath") or "")
    if any(part in (".", "..") for part in path.split("/")):
        raise SpecError("config.json", [SpecFinding("/linux/cgroupsPath", 'must not have "." or ".." as a part')])
    if host.mode == "v2":
        from knarr.plan.cgroup_v2 import v2_writes

        where = CgroupDirectory(host.unified, _place(path, id, _above(host.unified_own)), host.controllers)
        writes = v2_writes(resources, where)
        return CgroupPlan((where,), tuple(writes), device_rules(config), True)
    from knarr.plan.cgroup_v1 import v1_writes

    directories = [
        CgroupDirectory(mount.mountpoint, _place(path, id, mount.own), mount.controllers) for mount in host.mounts
    ]
    if host.mode == "hybrid":
        directories.append(CgroupDirectory(host.unified, _place(path, id, host.unified_own), ()))
    return CgroupPlan(tuple(directories), tuple(v1_writes(resources, device_rules(config), directories)))


def _place(path: str, id: str, own: str) -> str:
    """An absolute path starts at the top, a relative one (or none: the id) at our own group, as with runc."""
    if path.startswith("/"):
        return path
    return f"{own.rstrip('/')}/{path or id}"


def _above(own: str) -> str:
    """On v2 a group with processes cannot have children with controllers, so ours stand beside our own group."""
    return own.rpartition("/")[0] or "/"


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

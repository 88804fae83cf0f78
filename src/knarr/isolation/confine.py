"""The wall around the program that runs a guest: it is itself a container, made by knarr-init from a Plan (cold).

The guest's kernel is the first wall; whoever breaks it stands in this program, and finds: namespaces of its own, a root
with its own files and what the guest was given, no network, no process but its own, no capability but those over the
guest's files, a system call filter, Landlock, limits, a cgroup. docs/isolation-kernel.md says what each of them stops.
"""

from __future__ import annotations

import os
import resource

from knarr.base import fastjson
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.kernel.landlock import landlock_version
from knarr.kernel.userns import default_map
from knarr.plan.container import Options, plan_container
from knarr.plan.host import LANDLOCK
from knarr.plan.ops import Op
from knarr.runtime import cgroup
from knarr.runtime.create import Process, Stdio, compiled_seccomp
from knarr.runtime.probe import probe_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.plan.cgroup import CgroupPlan
    from knarr.plan.container import ContainerPlan
    from knarr.plan.host import Host

    Ranges = tuple[tuple[int, int, int], ...]

_NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
_OVER_FILES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"]
TEMPORARY = "/tmp"
"""Inside: a tmpfs, of which only the program knows."""


class View(Record):
    """A file or directory of the host's that the program sees at ``inside``.

    ``program``: it may be executed, or mapped to be. ``device``: it is a device, below /dev, that may be opened.
    """

    source: str
    inside: str
    writable: bool = False
    program: bool = False
    device: bool = False


class Confinement(Record):
    """What the program may have.

    ``root`` is an empty directory of the caller's own. ``scratch`` are the bytes its tmpfs may hold. ``calls`` are the
    system calls it needs, as rules of config.json's linux.seccomp; any other is ENOSYS. ``resources`` is a
    linux.resources for its cgroup ``cgroup`` (a path as in linux.cgroupsPath), none without one.
    """

    id: str
    arguments: tuple[str, ...]
    root: str
    views: tuple[View, ...]
    calls: tuple[dict[str, Any], ...]
    scratch: int
    descriptors: int
    resources: dict[str, Any] | None = None
    cgroup: str = ""


def config_of(wanted: Confinement, *, uids: Ranges, gids: Ranges, landlock: int, arch: str) -> dict[str, Any]:
    """The config.json of that container; pure.

    ``uids`` and ``gids`` are the maps of its user namespace, ``landlock`` is the version, 0 for none.
    """
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _NAMESPACES],
        "uidMappings": _mappings(uids),
        "gidMappings": _mappings(gids),
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,  # ENOSYS, which a C library knows how to do without
            "architectures": [f"SCMP_ARCH_{arch.upper()}"],
            "syscalls": list(wanted.calls),
        },
    }
    if wanted.cgroup:
        linux["cgroupsPath"] = wanted.cgroup
        linux["resources"] = wanted.resources or {}
    config: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "root": {"path": wanted.root, "readonly": True},
        "process": {
            "args": list(wanted.arguments),
            "env": [f"TMPDIR={TEMPORARY}", "HOME=/", "PATH=/"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _OVER_FILES),
            "rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NOFILE", "soft": wanted.descriptors, "hard": wanted.descriptors},
            ],
        },
        # With a /dev that is bound, nothing is put into it but what is named here.
        "mounts": [_mount(View(f"{wanted.root}/dev", "/dev")), _scratch(wanted.scratch), *map(_mount, wanted.views)],
        "linux": linux,
    }
    if landlock:
        rules = fastjson.dumps(landlock_rules(wanted.views, landlock)).decode()
        config["annotations"] = {LANDLOCK: rules}
    return config


def _mappings(ranges: Ranges) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]


def _scratch(size: int) -> dict[str, Any]:
    options = ["nosuid", "nodev", "mode=700", f"size={size >> 10}k"]
    return {"destination": TEMPORARY, "type": "tmpfs", "source": "tmpfs", "options": options}


def _mount(view: View) -> dict[str, Any]:
    options = ["rbind", "rw" if view.writable or view.device else "rro", "rnosuid"]
    options += [] if view.device else ["rnodev"]
    options += [] if view.program else ["rnoexec"]
    return {"destination": view.inside, "type": "bind", "source": view.source, "options": options}


def landlock_rules(views: Sequence[View], version: int) -> dict[str, Any]:
    """The document of the annotation org.knarr.landlock; pure."""
    paths: list[dict[str, Any]] = [{"path": TEMPORARY, "access": ["read", "write", "execute"]}]
    for view in views:
        access = ["read"]
        if view.writable:
            access.append("write")
        if view.device:
            access = ["read_file", "write_file"] + (["ioctl_dev"] if version >= 5 else [])
        if view.program:
            access.append("execute")
        paths.append({"path": view.inside, "access": access})
    rules: dict[str, Any] = {"abi": min(version, 5), "paths": paths}
    if version >= 4:
        rules["ports"] = []
    if version >= 6:
        rules["scopes"] = ["abstract-unix-socket", "signal"]
    return rules


def bound_to_parent(plan: ContainerPlan) -> ContainerPlan:
    """The plan, but its process dies with the thread that started it, for as long as it lives; pure."""
    kept = [op for op in plan.ops if not (op.kind == "pdeathsig" and op.ints == (0,))]
    # After the change of user, which clears it; exec does not.
    place = next(index for index, op in enumerate(kept) if op.kind == "no_new_privs")
    kept.insert(place, Op("pdeathsig", (9,), (), ""))
    bound: ContainerPlan = plan.replace(ops=tuple(kept))
    return bound


class Confined(Process):
    """The program behind its wall: ``pid``, ``pidfd``, ``wait()``. It dies with the thread that started it."""

    __slots__ = ("_groups",)

    def __init__(
        self, id: str, plan: ContainerPlan, host: Host, config: dict[str, Any], groups: CgroupPlan | None
    ) -> None:
        super().__init__(id, plan, host, config)
        self._groups = groups

    @property
    def groups(self) -> dict[str, Any] | None:
        """Its cgroups as a record keeps them, for cgroup.remove; None without any."""
        return None if self._groups is None else cgroup.intent(self._groups)

    def join_cgroup(self) -> None:
        if self._groups is not None:
            cgroup.join(self._groups, self.pid)
            cgroup.restrict_devices(self._groups)

    def document(self) -> dict[str, Any]:
        return {"ociVersion": self.config["ociVersion"], "id": self.id, "status": "creating", "bundle": ""}

    def end(self, patience: float = 10.0) -> None:
        """Kill it if it still runs, reap it, remove its cgroups. Raises KernelError when it does not end."""
        self.kill()
        self.close()
        recorded = self.groups
        if recorded is not None:
            cgroup.remove(recorded, patience)


def start(
    wanted: Confinement, stdio: Stdio, *, deadline: float | None = None, stop: int = -1, filters: str = ""
) -> Confined:
    """Start the program; on return it runs. ``stdio.preserve`` become 3, 4, … inside.

    ``filters`` is a directory that keeps compiled filters ("": none). Raises KernelError, InitError, Unsupported,
    Interrupted; nothing is left then.
    """
    _make_devices(wanted)
    uids, gids = _own_maps()
    version = landlock_version()
    config = config_of(wanted, uids=uids, gids=gids, landlock=version, arch=os.uname().machine)
    host = probe_for(config, None)
    groups = cgroup.plan(config, host, wanted.id) if wanted.cgroup else None
    plan = plan_container(
        config,
        host,
        id=wanted.id,
        bundle=wanted.root,
        options=Options(preserve_fds=len(stdio.preserve)),
        seccomp=compiled_seccomp(config, host, filters),
        cgroup=groups,
    )
    process = Confined(wanted.id, bound_to_parent(plan), host, config, groups)
    slots = {f"fd{3 + number}": fd for number, fd in enumerate(stdio.preserve)}
    try:
        if groups is not None:
            cgroup.create(groups, devices=False)
            if groups.clone_into:
                slots["cgroup"] = cgroup.open_directory(groups)
        process.spawn(stdio, slots)
        if process.launch is not None:
            process.launch.run(deadline, stop)
    except BaseException:
        process.end()
        raise
    finally:
        if "cgroup" in slots:
            os.close(slots["cgroup"])
    return process


def _make_devices(wanted: Confinement) -> None:
    """The places where devices will be bound; the others are made by the init."""
    os.mkdir(f"{wanted.root}/dev", 0o700)
    for view in wanted.views:
        if view.device:
            os.close(os.open(wanted.root + view.inside, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _own_maps() -> tuple[Ranges, Ranges]:
    """The ids of the program's user namespace.

    Root's are what they are outside: the guest's files keep their owners, and of the capabilities over them only those
    of this namespace are left. An ordinary user is root in there, and has the subordinate ids beside.
    """
    if os.geteuid() == 0:
        return _same_ids("/proc/self/uid_map"), _same_ids("/proc/self/gid_map")
    ids = default_map(os.geteuid(), os.getegid())
    return ids.uids, ids.gids


def _same_ids(path: str) -> Ranges:
    numbers = [int(word) for word in read_file(path, 64 << 10).split()]
    return tuple((numbers[at], numbers[at], numbers[at + 2]) for at in range(0, len(numbers), 3))


def descriptor_limit() -> int:
    """The most descriptors this process may allow another."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

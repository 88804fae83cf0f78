"""The wall around the program that runs a guest: it is itself a container, made by knarr-init from a Plan (hot).

The guest's kernel is the first wall; whoever breaks it stands in this program, and finds: namespaces of its own, a root
with its own files and what the guest was given, no network, no process but its own, no capability but those over the
guest's files, a system call filter, Landlock, limits, a cgroup. docs/isolation-kernel.md says what each of them stops.
"""

from __future__ import annotations

import os
from resource import RLIMIT_NOFILE, getrlimit

from knarr.base import fastjson
from knarr.base.errors import InitError
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.kernel.userns import default_map
from knarr.plan.container import Options, plan_container
from knarr.plan.host import LANDLOCK
from knarr.plan.mountopts import MS_PRIVATE, MS_REC
from knarr.plan.mounts import MountContext, mount_ops, source_op
from knarr.plan.namespaces import CLONE_FLAG
from knarr.plan.ops import NO_SLOT, Op, encode
from knarr.plan.root import Root
from knarr.runtime.create import Process, Stdio, compiled_seccomp
from knarr.runtime.launch import Control, spawn, wait_child
from knarr.runtime.probe import probe_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.base.errors import KnarrError
    from knarr.isolation.kinds import Share
    from knarr.plan.container import ContainerPlan

    Ranges = tuple[tuple[int, int, int], ...]

_NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
_CAPABILITY_SETS = ("bounding", "effective", "permitted")
_OVER_FILES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")
_PROC = ["ro", "nosuid", "nodev", "noexec"]
_NO_RANDOMIZE = 0x40000  # ADDR_NO_RANDOMIZE
_NOSUID, _NODEV, _NOEXEC = 0x2, 0x4, 0x8  # MOUNT_ATTR_*
TEMPORARY = "/tmp"
"""Inside: a tmpfs, of which only the program knows."""


class View(Record):
    """A file or directory of the host's that the program sees at ``inside``.

    ``program``: it may be executed, or mapped to be. ``asked``: access(2) tells who may execute it, which on a noexec
    mount is nobody: hostfs asks so before a guest executes a file. ``device``: it is a device, below /dev, that may be
    opened.
    """

    source: str
    inside: str
    writable: bool = False
    program: bool = False
    asked: bool = False
    device: bool = False


class Confinement(Record):
    """What the program may have.

    ``scratch`` are the bytes its tmpfs may hold. ``calls`` are the system calls it needs, as rules of config.json's
    linux.seccomp; any other is ENOSYS. ``later`` is a directory in which ``attach`` may show more. It stays in its
    parent's cgroups. ``capabilities`` are over its ids and in its namespaces. ``proc``: it has a /proc of its own.
    ``fixed``: its addresses are not randomized.
    """

    id: str
    arguments: tuple[str, ...]
    views: tuple[View, ...]
    calls: tuple[dict[str, Any], ...]
    scratch: int
    descriptors: int
    later: str = ""
    capabilities: tuple[str, ...] = _OVER_FILES
    proc: bool = False
    fixed: bool = False


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
    config: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "root": {"path": "/", "readonly": True},
        "process": {
            "args": list(wanted.arguments),
            "env": [f"TMPDIR={TEMPORARY}", "HOME=/", "PATH=/"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "noNewPrivileges": True,
            "capabilities": {kind: list(wanted.capabilities) for kind in _CAPABILITY_SETS},
            "rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NOFILE", "soft": wanted.descriptors, "hard": wanted.descriptors},
            ],
        },
        "mounts": [
            _scratch(wanted.scratch),
            *_places(wanted.later),
            *([{"destination": "/proc", "type": "proc", "source": "proc", "options": _PROC}] if wanted.proc else []),
            *map(_mount, wanted.views),
        ],
        "linux": linux,
    }
    if landlock:
        rules = fastjson.dumps(landlock_rules(wanted.views, landlock, wanted.later, proc=wanted.proc)).decode()
        config["annotations"] = {LANDLOCK: rules}
    return config


def _mappings(ranges: Ranges) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]


def _scratch(size: int) -> dict[str, Any]:
    options = ["nosuid", "nodev", "mode=700", f"size={size >> 10}k"]
    return {"destination": TEMPORARY, "type": "tmpfs", "source": "tmpfs", "options": options}


def _places(later: str) -> list[dict[str, Any]]:
    """Where mount points can be made once the root is read-only."""
    options = ["nosuid", "nodev", "noexec", "mode=755", "size=64k"]
    return [{"destination": later, "type": "tmpfs", "source": "tmpfs", "options": options}] if later else []


def _mount(view: View) -> dict[str, Any]:
    # A device can be written to on a read-only mount, and there nobody changes its owner or mode, which are the host's.
    options = ["rbind", "rw" if view.writable else "rro", "rnosuid"]
    options += [] if view.device else ["rnodev"]
    options += [] if view.program or view.asked else ["rnoexec"]
    return {"destination": view.inside, "type": "bind", "source": view.source, "options": options}


def landlock_rules(views: Sequence[View], version: int, later: str = "", *, proc: bool = False) -> dict[str, Any]:
    """The document of the annotation org.knarr.landlock; pure.

    Below ``later`` the mounts alone decide what may be written.
    """
    paths: list[dict[str, Any]] = [{"path": TEMPORARY, "access": ["read", "write", "execute"]}]
    paths += [{"path": later, "access": ["read", "write"]}] if later else []
    paths += [{"path": "/proc", "access": ["read"]}] if proc else []
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


def tightened(plan: ContainerPlan, mounts: int, *, fixed: bool = False) -> ContainerPlan:
    """The plan of a config.json with so many mounts, but as no container has it; pure.

    Its root is a new tmpfs, so that no directory of the host's is needed. /dev has what was named and no more. The
    process dies with the thread that started it for as long as it lives.
    """
    kept: list[Op] = []
    named = {f"/mounts/{number}" for number in range(mounts)}
    cloned = False
    for op in plan.ops:
        cloned = cloned or op.kind == "clone"
        if op.kind == "root_tree":
            kept.append(Op("propagation", (MS_PRIVATE | MS_REC,), ("/",)))
            kept.append(
                Op("new_tree", (op.ints[0], _NOSUID | _NODEV | _NOEXEC), ("tmpfs", "none", "mode=755", "size=64k"))
            )
        if op.kind == "no_new_privs":
            kept.append(Op("pdeathsig", (9,)))  # after the change of user, which clears it; exec does not
            kept += [Op("personality", (_NO_RANDOMIZE,))] if fixed else []
        devices = op.kind in ("mknod", "symlink") or (op.kind == "bind" and op.pointer not in named)
        # What the first stage would do for a root of the host's, with a mount namespace of its own.
        root = not cloned and (op.kind in ("unshare", "propagation") or op.pointer == "/root/path")
        if not devices and not root and not (op.kind == "pdeathsig" and op.ints == (0,)):
            kept.append(op)
    made: ContainerPlan = plan.replace(ops=tuple(kept))
    return made


def shown(shares: Sequence[Share], folder: str, *, asked: bool = False) -> list[View]:
    """Shares, each at its number below a folder inside; a file in there by its name, not the directory it lies in."""
    views = []
    for number, share in enumerate(shares):
        name = "" if os.path.isdir(share.source) else f"/{os.path.basename(share.source)}"
        views.append(View(share.source, f"{folder}/{number}{name}", writable=share.writable, asked=asked))
    return views


class Confined(Process):
    """The program behind its wall: ``pid``, ``pidfd``, ``wait()``. It dies with the thread that started it."""

    __slots__ = ()

    def document(self) -> dict[str, Any]:
        return {"ociVersion": self.config["ociVersion"], "id": self.id, "status": "creating", "bundle": ""}


def start(wanted: Confinement, stdio: Stdio, *, deadline: float | None = None, filters: str = "") -> Confined:
    """Start the program; on return it runs. ``stdio.preserve`` become 3, 4, … inside.

    ``filters`` is a directory that keeps compiled filters ("": none). Raises KernelError, InitError, Unsupported;
    nothing is left then.
    """
    from knarr.kernel.landlock import landlock_version  # cold: a call of its own, with ctypes

    uids, gids = _own_maps()
    version = landlock_version()
    config = config_of(wanted, uids=uids, gids=gids, landlock=version, arch=os.uname().machine)
    host = probe_for(config, None)
    plan = plan_container(
        config,
        host,
        id=wanted.id,
        bundle="/",
        options=Options(preserve_fds=len(stdio.preserve)),
        root=Root("bind", "/", apart=True),
        seccomp=compiled_seccomp(config, host, filters),
    )
    process = Confined(wanted.id, tightened(plan, len(config["mounts"]), fixed=wanted.fixed), host, config)
    try:
        process.spawn(stdio, {f"fd{3 + number}": fd for number, fd in enumerate(stdio.preserve)})
        if process.launch is not None:
            process.launch.run(deadline)
            process.launch.close()
    except BaseException:
        process.undo()
        raise
    return process


def attach(pidfd: int, views: Sequence[View], of: int = -1) -> None:
    """Show more to a program that was started with ``later``, below that directory.

    The sources are what the process of pidfd ``of`` sees at these paths (-1: this process). Takes root, who may enter
    its mount namespace. Raises InitError with what could not be shown, KernelError.
    """
    host = probe_for({}, None)
    context = MountContext(
        host, bundle="/", root=NO_SLOT, cgroup=None, cgroup_namespace=False, network_namespace=False, new_user=True
    )
    entries = [_mount(view) for view in views]
    mounts = CLONE_FLAG["mount"]
    plan = [Op("setns", (1, mounts))] if of >= 0 else []
    plan += [source_op(entry, "", "/", 2 + number) for number, entry in enumerate(entries)]
    plan.append(Op("setns", (0, mounts)))
    for number, entry in enumerate(entries):
        plan += mount_ops(entry, "", context, 2 + number)

    def failed(index: int, number: int, detail: bytes) -> KnarrError:
        from knarr.runtime.explain import init_error  # cold: only for an error

        if index >= len(plan):
            return InitError("", "show files to the guest", number)
        op = plan[index]
        return init_error(op.kind, op.arguments(), "", number, detail, machine=host.arch)

    slots = [pidfd, of if of >= 0 else pidfd]
    pid, sock = spawn(encode(plan, len(slots)), slots, (0, 1, 2), "guest")
    control = Control(sock, failed=failed)
    try:
        control.run()
    finally:
        control.close()
        wait_child(pid)


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
    return getrlimit(RLIMIT_NOFILE)[1]

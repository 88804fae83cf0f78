"""What this machine and this process can do, as the ``Facts`` of bundle: each thing looked at once per process."""

from __future__ import annotations

import os
import resource
import stat

from knarr.base.errors import FileError
from knarr.base.files import read_file
from knarr.bundle.options import Facts
from knarr.spec.capabilities import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.kernel.userns import IdMap
    from knarr.plan.host import Host

_NOFILE = 524288
_kept: dict[str, Any] = {}


def host() -> Host:
    """The facts planning needs; gathered once per process and user."""
    from knarr.runtime.probe import probe

    key = f"host {os.geteuid()}"
    if key not in _kept:
        _kept[key] = probe()
    found: Host = _kept[key]
    return found


def rootless() -> bool:
    """Whether this process lacks root's power over the machine, so that a user namespace is needed."""
    return not host().privileged


def id_map() -> IdMap | None:
    """The id map of an ordinary user's containers; None for root, whose containers have maps of their own (ids.py).

    Raises FileError when /etc/subuid cannot be read.
    """
    if not rootless():
        return None
    from knarr.kernel.userns import default_map

    if "ids" not in _kept:
        _kept["ids"] = default_map(os.geteuid(), os.getegid())
    ids: IdMap = _kept["ids"]
    return ids


def facts(*, privileged: bool = False) -> Facts:
    """The facts for converting an image; ``privileged`` adds the host's devices."""
    if "facts" not in _kept:
        ids = id_map()
        _kept["facts"] = Facts(
            arch=host().arch,
            rootless=ids is not None,
            time_namespace=os.path.exists("/proc/self/ns/time"),
            cgroup_namespace=os.path.exists("/proc/self/ns/cgroup"),
            swap_limit=_swap_limit(),
            cgroup_limits=ids is None or _delegated(),
            nofile_hard=_nofile_hard(),
            uid_map=ids.uids if ids else (),
            gid_map=ids.gids if ids else (),
            capabilities=_capabilities(everything=ids is not None),
            thermal_paths=_thermal_paths(),
        )
    found: Facts = _kept["facts"]
    if privileged:
        changed: Facts = found.replace(devices=tuple(_devices()))
        return changed
    return found


def _status(field: str) -> int:
    """A capability mask of /proc/self/status."""
    for line in read_file("/proc/self/status", 1 << 16).splitlines():
        name, _, value = line.partition(b":")
        if name.decode() == field:
            return int(value, 16)
    return 0


def _capabilities(*, everything: bool) -> tuple[str, ...]:
    """What the kernel has and we may hand out; a new user namespace starts with all of them."""
    last = int(read_file("/proc/sys/kernel/cap_last_cap", 64))
    mask = (1 << (last + 1)) - 1
    if not everything:
        mask &= _status("CapBnd") & _status("CapPrm")
    return tuple(name for name, number in CAPABILITIES.items() if mask >> number & 1)


def _nofile_hard() -> int:
    """The highest hard limit of open files we may give: to raise ours takes CAP_SYS_RESOURCE on the host."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    can_raise = host().privileged and _status("CapEff") >> CAPABILITIES["CAP_SYS_RESOURCE"] & 1
    if can_raise or hard == resource.RLIM_INFINITY:
        return _NOFILE
    return min(hard, _NOFILE)


def _swap_limit() -> bool:
    """Whether the memory controller counts swap (a boot option on some machines)."""
    if os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"):
        return True
    own = _own_cgroup()
    if not own:
        return False
    # The root group has no such file, its children do; without any, a kernel with swap counts it (since Linux 4.5).
    groups = [
        group for group in (own, *(f"{own}/{name}" for name in _folders(own))) if os.path.exists(f"{group}/memory.max")
    ]
    if not groups:
        return os.path.exists("/proc/swaps")
    return os.path.exists(f"{groups[0]}/memory.swap.max")


def _folders(path: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(path) if entry.is_dir()]
    except OSError:
        return []


def _own_cgroup() -> str:
    """The directory of our own cgroup in a cgroup v2 tree; "" where there is none."""
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return ""
    for line in read_file("/proc/self/cgroup", 1 << 16).decode().splitlines():
        if line.startswith("0::"):
            return f"/sys/fs/cgroup{line[3:].rstrip('/')}"
    return ""


def _delegated() -> bool:
    """Whether an ordinary user may make limited groups below their own: cgroup v2, delegated to them."""
    own = _own_cgroup()
    return bool(own) and os.access(own, os.W_OK) and os.access(f"{own}/cgroup.procs", os.W_OK)


def _thermal_paths() -> tuple[str, ...]:
    base = "/sys/devices/system/cpu"
    try:
        names = os.listdir(base)
    except OSError:
        return ()
    numbers = sorted(int(name[3:]) for name in names if name.startswith("cpu") and name[3:].isdigit())
    paths = [f"{base}/cpu{number}/thermal_throttle" for number in numbers]
    return tuple(path for path in paths if os.path.exists(path))


def _devices(folder: str = "/dev", depth: int = 0) -> list[dict[str, Any]]:
    """The host's device nodes as linux.devices; /dev/pts, shm and mqueue are the container's own."""
    found: list[dict[str, Any]] = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return found
    for name in names:
        path = f"{folder}/{name}"
        if path in ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx", "/dev/fd", "/dev/.udev"):
            continue
        try:
            facts = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISDIR(facts.st_mode) and depth < 4:
            found += _devices(path, depth + 1)
        elif stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
            entry: dict[str, Any] = {
                "path": path,
                "type": "c" if stat.S_ISCHR(facts.st_mode) else "b",
                "major": os.major(facts.st_rdev),
                "minor": os.minor(facts.st_rdev),
                "fileMode": stat.S_IMODE(facts.st_mode) & 0o777,
            }
            if not rootless():  # else the host's own node is bound, whoever owns it
                entry.update(uid=facts.st_uid, gid=facts.st_gid)
            found.append(entry)
    return found


def kernel() -> tuple[int, int]:
    """The running kernel's (major, minor)."""
    return host().kernel


def overlay() -> bool:
    """Whether the kernel knows overlayfs, or can load it."""
    if "overlay" not in _kept:
        try:
            known = b"\toverlay\n" in read_file("/proc/filesystems", 1 << 16)
        except FileError:
            known = False
        release = os.uname().release
        _kept["overlay"] = known or os.path.exists(f"/lib/modules/{release}/kernel/fs/overlayfs")
    found: bool = _kept["overlay"]
    return found

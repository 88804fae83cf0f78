"""Which cgroup hierarchies this machine has, and where (hot). cgroups(7)."""

from __future__ import annotations

from knarr.base.files import read_file
from knarr.base.paths import exists
from knarr.plan.cgroup import CgroupHost, CgroupMount

_LIMIT = 1 << 24  # mountinfo of a host with a hundred thousand mounts
_USUAL = "/sys/fs/cgroup"


def probe() -> CgroupHost | None:
    """Return the hierarchies mounted here, None without any. Raises FileError.

    Where they are mounted as usual no mount table is read: it has a line for every mount of the machine.
    """
    own: list[tuple[tuple[str, ...], str]] = []  # (controllers, our group), none for the unified hierarchy
    for line in read_file("/proc/self/cgroup", _LIMIT).decode("utf-8", "surrogateescape").splitlines():
        _, names, path = line.split(":", 2)
        own.append((tuple(names.split(",")) if names else (), path))
    host = _usual(own)
    return host if host is not None else _mounted(own)


def _usual(own: list[tuple[tuple[str, ...], str]]) -> CgroupHost | None:
    """The hierarchies if each is where systemd and cgroupfs-mount put it, with our own group in it."""
    places = []
    pure = exists(f"{_USUAL}/cgroup.controllers")
    for names, path in own:
        if not names:
            place = _USUAL if pure else f"{_USUAL}/unified"
        else:
            place = f"{_USUAL}/{','.join(name.removeprefix('name=') for name in names)}"
        if not exists(f"{place}{path}/cgroup.procs"):
            return None
        places.append((names, place, path))
    if pure and len(places) > 1:
        return None
    return _host(places)


def _mounted(own: list[tuple[tuple[str, ...], str]]) -> CgroupHost | None:
    """The hierarchies by /proc/self/mountinfo."""
    path_of = {name: path for names, path in own for name in names or ("",)}
    places: list[tuple[tuple[str, ...], str, str]] = []
    for line in read_file("/proc/self/mountinfo", _LIMIT).decode("utf-8", "surrogateescape").splitlines():
        if " - cgroup" not in line:
            continue
        before, _, after = line.partition(" - ")
        _, _, _, root, mountpoint, *_ = before.split(" ")
        fstype, _, options = after.split(" ", 2)
        names = tuple(name for name in options.split(",") if name in path_of) if fstype == "cgroup" else ()
        if (names or fstype == "cgroup2") and not any(place[0] == names for place in places):
            own_path = path_of.get(names[0] if names else "", "/")
            places.append((names, mountpoint, _below(own_path, root)))
    return _host(places) if places else None


def _host(places: list[tuple[tuple[str, ...], str, str]]) -> CgroupHost:
    mounts = tuple(CgroupMount(names, place, path) for names, place, path in places if names)
    unified = next(((place, path) for names, place, path in places if not names), ("", "/"))
    controllers: tuple[str, ...] = ()
    if not mounts:
        # Always there, and without a word in cgroup.controllers: devices (by eBPF) and the freezer.
        controllers = tuple(read_file(f"{unified[0]}/cgroup.controllers", 4096).decode().split())
    return CgroupHost("v2" if not mounts else "hybrid" if unified[0] else "v1", mounts, *unified, controllers)


def _below(path: str, root: str) -> str:
    """A group of /proc/self/cgroup as seen below a mount whose root is the group ``root``."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"

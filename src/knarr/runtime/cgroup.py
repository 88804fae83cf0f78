"""Control groups of containers: found, made, joined, emptied, removed (hot). cgroups(7).

What to make is decided in plan/cgroup.py. A group is reached from its hierarchy's mount point with openat2(BENEATH,
NO_SYMLINKS, NO_XDEV) and used by descriptor. Only groups that knarr made are removed. What finds them again after a
crash, the *intent*, is a plain value recorded before the first directory is made.
"""

from __future__ import annotations

import os
import time
from errno import EACCES, EBUSY, EEXIST, ENODEV, ENOENT, EPERM, EROFS

from knarr.base.errors import KernelError, Unsupported
from knarr.base.files import read_file
from knarr.kernel.path import BENEATH, RESOLVE_NO_XDEV, openat2
from knarr.plan.cgroup import CgroupDirectory, CgroupHost, CgroupMount, CgroupPlan, plan_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.host import Host

    # {"v2": bool, "groups": [[mount point, path, number of its parents that we make], …]}
    Intent = dict[str, Any]

_LIMIT = 1 << 20
_FORBIDDEN = (EACCES, EPERM, EROFS)


# -- what this machine has ---------------------------------------------------------------------------------------------


def probe() -> CgroupHost | None:
    """Return the hierarchies mounted here, None without any. Raises FileError."""
    own: dict[str, str] = {}
    for line in read_file("/proc/self/cgroup", _LIMIT).decode("utf-8", "surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = path
    mounts: list[CgroupMount] = []
    unified = ("", "")
    for line in read_file("/proc/self/mountinfo", _LIMIT).decode("utf-8", "surrogateescape").splitlines():
        if " - cgroup" not in line:
            continue
        before, _, after = line.partition(" - ")
        _, _, _, root, mountpoint, *_ = before.split(" ")
        fstype, _, options = after.split(" ", 2)
        if fstype == "cgroup2" and not unified[0]:
            unified = (mountpoint, _below(own.get("", "/"), root))
        elif fstype == "cgroup":
            names = tuple(name for name in options.split(",") if name in own)
            if names and not any(mount.controllers == names for mount in mounts):
                mounts.append(CgroupMount(names, mountpoint, _below(own[names[0]], root)))
    if not mounts and not unified[0]:
        return None
    mode = "v2" if not mounts else "hybrid" if unified[0] else "v1"
    controllers: tuple[str, ...] = ()
    if mode == "v2":
        controllers = tuple(read_file(f"{unified[0]}/cgroup.controllers", 4096).decode().split())
        # Always there, and without a file in cgroup.controllers: devices (by eBPF) and the freezer.
    return CgroupHost(mode, tuple(mounts), *unified, controllers)


def _below(path: str, root: str) -> str:
    """A group of /proc/self/cgroup as seen below a mount whose root is the group ``root``."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"


# -- planning and recording --------------------------------------------------------------------------------------------


def plan(config: dict[str, Any], host: Host, id: str, *, rootless: bool | None = None) -> CgroupPlan | None:
    """Decide on the container's groups; None where there are none or, asked for nothing, none may be made.

    ``rootless``: True: a group that may not be made is done without unless limits were asked for; None: so for
    everyone but root. Raises Unsupported and SpecError with the JSON pointer.
    """
    linux = config.get("linux") or {}
    wanted = _first_limit(linux.get("resources") or {})
    if host.cgroup is None:
        if wanted:
            raise Unsupported("a resource limit", "this host has no cgroups mounted", pointer=wanted)
        return None
    planned = plan_cgroup(config, host.cgroup, id)
    if (not host.privileged if rootless is None else rootless) and not _may_make(planned):
        asked = wanted or ("/linux/cgroupsPath" if linux.get("cgroupsPath") and not rootless else "")
        if wanted:
            raise Unsupported(
                "a resource limit",
                "this user may not make cgroups here",
                pointer=asked,
                hint="run as root, or on cgroup v2 have a group delegated to you",
            )
        return None
    return planned


def _first_limit(resources: dict[str, Any]) -> str:
    """The pointer of a limit that is asked for; device rules do not count: a user namespace has no devices to give."""
    for field, value in resources.items():
        if field != "devices" and value and (not isinstance(value, dict) or any(value.values())):
            return f"/linux/resources/{field}"
    return ""


def _may_make(planned: CgroupPlan) -> bool:
    for directory in planned.directories:
        path = directory.path
        while not os.path.isdir(f"{directory.mountpoint}{path}"):
            path = path.rpartition("/")[0]
        if not os.access(f"{directory.mountpoint}{path}", os.W_OK | os.X_OK, effective_ids=True):
            return False
    return True


def intent(planned: CgroupPlan) -> Intent:
    """What is about to be made, as a value to record first: groups, and how many of their parents are new."""
    groups = []
    for directory in planned.directories:
        path, parents = directory.path.rpartition("/")[0], 0
        while path and not os.path.isdir(directory.mountpoint + path):
            path, parents = path.rpartition("/")[0], parents + 1
        groups.append([directory.mountpoint, directory.path, parents])
    return {"v2": planned.clone_into, "groups": groups}


# -- making and joining ------------------------------------------------------------------------------------------------


def create(planned: CgroupPlan) -> None:
    """Make the groups and write every limit, so that they bind before anything runs.

    Raises KernelError naming file and value (with the JSON pointer in its hint), Unsupported.
    """
    for directory in planned.directories:
        fd = _make(directory, v2=planned.clone_into)
        try:
            if "cpuset" in directory.controllers and not planned.clone_into:
                _inherit_cpuset(directory)
            for write in planned.writes:
                if write.mountpoint == directory.mountpoint:
                    _write_limit(fd, directory, write.choices, write.pointer)
            if planned.clone_into:
                _attach_devices(fd, planned)
        finally:
            os.close(fd)


def _make(directory: CgroupDirectory, *, v2: bool) -> int:
    """Make the group and its parents, give the parents' controllers on (v2), return its descriptor."""
    parts = [part for part in directory.path.split("/") if part]
    at = os.open(directory.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts):
            if v2:
                _enable_controllers(at, directory.controllers)
            below = _enter(at, part, f"{directory.mountpoint}/{'/'.join(parts[: number + 1])}")
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def _enter(at: int, part: str, shown: str) -> int:
    while True:
        try:
            os.mkdir(part, 0o755, dir_fd=at)
        except OSError as error:
            if error.errno != EEXIST:
                raise KernelError("mkdir", shown, error.errno or 0) from None
        try:
            return openat2(at, part, os.O_RDONLY | os.O_DIRECTORY, BENEATH | RESOLVE_NO_XDEV)
        except KernelError as error:
            if error.errno != ENOENT:  # another container's end may have taken an empty parent away: make it again
                raise


def _enable_controllers(at: int, controllers: tuple[str, ...]) -> None:
    """On v2 a group has only the controllers its parent gives on; one at a time, so a missing one costs no other.

    What cannot be given on shows when a limit is written, with the limit's name.
    """
    given = _read(at, "cgroup.subtree_control").split()
    for name in controllers:
        if name not in given:
            try:
                _write(at, "cgroup.subtree_control", f"+{name}")
            except OSError:
                continue


def _inherit_cpuset(directory: CgroupDirectory) -> None:
    """A new v1 cpuset is empty and admits nobody: take over the parents' values, from the top down."""
    parts = [part for part in directory.path.split("/") if part]
    for number in range(1, len(parts) + 1):
        here = "/".join([directory.mountpoint, *parts[:number]])
        above = "/".join([directory.mountpoint, *parts[: number - 1]])
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not read_file(f"{here}/{file}", 4096).strip():
                value = read_file(f"{above}/{file}", 4096).strip()
                fd = os.open(f"{here}/{file}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, value)
                finally:
                    os.close(fd)


def _write_limit(fd: int, directory: CgroupDirectory, choices: tuple[tuple[str, str], ...], pointer: str) -> None:
    for number, (file, value) in enumerate(choices):
        try:
            _write(fd, file, value)
            return
        except OSError as error:
            if error.errno == ENOENT and number + 1 < len(choices):
                continue
            shown = f"{value} to {directory.mountpoint}{directory.path}/{file}"
            raise KernelError("write", shown, error.errno or 0, hint=f"config.json {pointer}") from None


def _attach_devices(fd: int, planned: CgroupPlan) -> None:
    from knarr.kernel.bpf import set_device_program
    from knarr.plan.device_bpf import device_program

    program = device_program(planned.device_rules)
    if program is None:
        return  # everything is allowed
    try:
        set_device_program(fd, program)
    except KernelError as error:
        # In a user namespace nobody may load programs, and nobody can make devices either.
        if error.errno not in _FORBIDDEN or os.geteuid() == 0:
            raise


def join(planned: CgroupPlan, pid: int) -> None:
    """Put a process into every group. Joining v1 groups may take milliseconds each (RCU). Raises KernelError."""
    if not planned.clone_into:
        _join([(directory.mountpoint, directory.path) for directory in planned.directories], pid)


def join_recorded(recorded: Intent | None, pid: int) -> None:
    """Put a further process into a container's groups. Raises KernelError."""
    if recorded is not None and not recorded["v2"]:
        _join([(mountpoint, path) for mountpoint, path, _ in recorded["groups"]], pid)


def _join(groups: list[tuple[str, str]], pid: int) -> None:
    for mountpoint, path in groups:
        try:
            fd = _open(mountpoint, path)
            try:
                _write(fd, "cgroup.procs", str(pid))
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError("join", f"{mountpoint}{path}", error.errno or 0) from None


def for_exec(recorded: Intent | None) -> CgroupPlan | None:
    """What planning an exec must know of the container's groups."""
    if recorded is None:
        return None
    places = tuple(CgroupDirectory(mountpoint, path, ()) for mountpoint, path, _ in recorded["groups"])
    return CgroupPlan(places, (), (), recorded["v2"])


def open_directory(group: CgroupPlan | Intent) -> int:
    """Return a descriptor of the v2 group, for CLONE_INTO_CGROUP. Raises KernelError."""
    if isinstance(group, CgroupPlan):
        return _open(group.directories[0].mountpoint, group.directories[0].path)
    return _open(group["groups"][0][0], group["groups"][0][1])


def _open(mountpoint: str, path: str) -> int:
    top = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(top, path.strip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, BENEATH | RESOLVE_NO_XDEV)
    finally:
        os.close(top)


# -- afterwards --------------------------------------------------------------------------------------------------------


def frozen(recorded: Intent) -> bool:
    """Whether the freezer holds the container."""
    try:
        fd, v2 = _freezer(recorded)
    except OSError:
        return False
    try:
        if v2:
            return "frozen 1" in _read(fd, "cgroup.events")
        return _read(fd, "freezer.state").strip() in ("FROZEN", "FREEZING")
    except OSError:
        return False
    finally:
        os.close(fd)


def thaw(recorded: Intent) -> None:
    """Let a frozen container go on; nothing happens to one that is not, or is gone."""
    try:
        fd, v2 = _freezer(recorded)
    except OSError:
        return
    try:
        _write(fd, *(("cgroup.freeze", "0") if v2 else ("freezer.state", "THAWED")))
    except OSError as error:
        if error.errno not in (ENOENT, ENODEV):
            raise KernelError("thaw", "container", error.errno or 0) from None
    finally:
        os.close(fd)


def _freezer(recorded: Intent) -> tuple[int, bool]:
    for mountpoint, path, _ in recorded["groups"]:
        if recorded["v2"] or mountpoint.endswith("/freezer"):
            return _open(mountpoint, path), recorded["v2"]
    raise OSError(ENOENT, "there is no freezer")


def pids(recorded: Intent) -> list[int]:
    """All processes in the container's group and the groups below it."""
    found: set[int] = set()
    for mountpoint, path, _ in recorded["groups"]:
        for folder, _, _ in os.walk(mountpoint + path):
            try:
                found.update(int(line) for line in read_cgroup_procs(folder))
            except OSError:
                continue
        if found or recorded["v2"]:
            break
    return sorted(found)


def read_cgroup_procs(folder: str) -> list[str]:
    """The lines of a group's cgroup.procs."""
    fd = os.open(f"{folder}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(fd, 1 << 16):
            text += part
    finally:
        os.close(fd)
    return text.decode().split()


def signal_all(recorded: Intent, number: int) -> None:
    """Send a signal to every process of the group; SIGKILL until none is left (v2: cgroup.kill, Linux 5.14)."""
    from _signal import pidfd_send_signal  # only here: kill --all and clean-up

    if number == 9 and recorded["v2"]:
        try:
            fd = _open(*recorded["groups"][0][:2])
            try:
                _write(fd, "cgroup.kill", "1")
                return
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno != ENOENT:
                raise
    for _ in range(100):
        left = pids(recorded)
        for pid in left:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                # Still a member after it was opened: the number was not given to another process in between.
                if pid in pids(recorded):
                    pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        if number != 9 or not left:
            return
        time.sleep(0.005)


def remove(recorded: Intent, patience: float) -> None:
    """Remove the groups, those below them first, killing what is still inside, and parents that we made and are empty.

    Idempotent; tries for ``patience`` seconds, because a group stays busy until its dead processes are gone.
    Raises KernelError.
    """
    deadline = time.monotonic() + patience
    for mountpoint, path, parents in recorded["groups"]:
        pause = 0.0005
        while not _remove_tree(mountpoint + path):
            signal_all(recorded, 9)
            if time.monotonic() > deadline:
                raise KernelError("rmdir", mountpoint + path, EBUSY)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        for _ in range(parents):
            path = path.rpartition("/")[0]
            try:
                os.rmdir(mountpoint + path)
            except OSError:
                break  # another container is in it, or it is gone


def _remove_tree(path: str) -> bool:
    """Remove a group and all below it; False while one is busy."""
    try:
        os.rmdir(path)
        return True
    except OSError as error:
        if error.errno == ENOENT:
            return True
        if error.errno != EBUSY:
            raise KernelError("rmdir", path, error.errno or 0) from None
    try:
        below = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return True
    if not below:
        return False
    for folder in below:
        _remove_tree(folder)
    try:
        os.rmdir(path)
    except OSError as error:
        return error.errno == ENOENT
    return True


def _write(fd: int, file: str, value: str) -> None:
    into = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        os.write(into, value.encode())
    finally:
        os.close(into)


def _read(fd: int, file: str) -> str:
    out = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        return os.read(out, 4096).decode()
    finally:
        os.close(out)

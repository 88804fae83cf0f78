"""Control groups of containers: found, made, joined (hot). cgroups(7). cgroup_members.py has what comes afterwards.

What to make is decided in plan/cgroup.py. A group is reached from its hierarchy's mount point with openat2(BENEATH,
NO_SYMLINKS, NO_XDEV) and used by descriptor. A group that knarr makes carries an extended attribute as its mark: only
marked groups are emptied, used again or, as parents, removed. What finds them again after a crash, the *intent*, is a
plain value recorded before the first directory is made.
"""

from __future__ import annotations

import posix
from errno import EACCES, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC, EPERM, EROFS

from knarr.base.errors import Exists, InitError, InUse, KernelError, Unsupported
from knarr.base.files import read_file
from knarr.base.paths import isdir, lexists
from knarr.plan.cgroup import CGROUPFS, DISABLED, SYSTEMD, CgroupDirectory, CgroupPlan, plan_cgroup
from knarr.runtime import freezer
from knarr.runtime.cgroup_fs import (
    enter,
    mark,
    marked,
    members,
    open_group,
    read,
    tree,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.plan.cgroup import CgroupHost, Write
    from knarr.plan.host import Host

    # {"v2": bool, "groups": [[mount point, path, number of its parents that we make], …]}; with the systemd driver also
    # "unit", "user" (of the user's manager) and "subgroup"
    Intent = dict[str, Any]

JOIN_HINTS = {
    ENOSPC: "the cpuset is empty: no processor or memory node is left for it",
    EINVAL: "a real-time process needs cpu.realtimeRuntime",
}
_RESTARTS = 100  # how often a parent may vanish under us while we make a group


# -- planning and recording --------------------------------------------------------------------------------------------


def plan(
    config: dict[str, Any], host: Host, id: str, *, rootless: bool | None = None, manager: str = CGROUPFS
) -> CgroupPlan | None:
    """Decide on the container's groups; None where there are none or, asked for nothing, none may be made.

    ``manager``: who makes them (cgroupfs, systemd, disabled); nobody: asking for a limit is an error.

    ``rootless``: True: groups that may not be made are done without, unless limits or a path were asked for; None: so
    for everyone but root. Raises Unsupported and SpecError with the JSON pointer.
    """
    linux = config.get("linux") or {}
    wanted = _first_limit(linux.get("resources") or {})
    if manager == DISABLED:
        if wanted:
            raise Unsupported("a resource limit", "cgroups are switched off", pointer=wanted)
        return None
    if host.cgroup is None:
        if wanted:
            raise Unsupported("a resource limit", "this host has no cgroups mounted", pointer=wanted)
        return None
    if manager == SYSTEMD:
        return _plan_scope(config, host, host.cgroup, id)
    planned = plan_cgroup(config, host.cgroup, id, devices=host.privileged)
    if (host.privileged if rootless is None else not rootless) or _may_make(planned):
        return planned
    if wanted or linux.get("cgroupsPath"):
        raise Unsupported(
            "a resource limit" if wanted else "a cgroup of the container's own",
            "this user may not make cgroups there",
            pointer=wanted or "/linux/cgroupsPath",
            hint="run as root, or on cgroup v2 have a group delegated to you (systemd-run --user --scope)",
        )
    return None


def _plan_scope(config: dict[str, Any], host: Host, groups: CgroupHost, id: str) -> CgroupPlan:
    """For the systemd driver; to others than root its units are the user's manager's."""
    user = not host.privileged
    if user:
        from knarr.runtime import systemd  # cold: only with that driver

        root = systemd.unit_root(user=True)
        groups = groups.replace(units=root)
        if groups.mode == "v2":  # what was delegated to the user
            given = read_file(f"{groups.unified}{root}/cgroup.controllers", 4096).decode().split()
            groups = groups.replace(controllers=tuple(given))
    return plan_cgroup(config, groups, id, devices=host.privileged, driver=SYSTEMD, user=user)


def _first_limit(resources: dict[str, Any]) -> str:
    """The pointer of a limit that is asked for; device rules do not count: a user namespace has no devices to give."""
    for field, value in resources.items():
        if field != "devices" and value and (not isinstance(value, dict) or any(value.values())):
            return f"/linux/resources/{field}"
    return ""


def _may_make(planned: CgroupPlan) -> bool:
    for directory in planned.directories:
        path = directory.path
        while not isdir(f"{directory.mountpoint}{path}"):
            path = path.rpartition("/")[0]
        if not posix.access(f"{directory.mountpoint}{path}", posix.W_OK | posix.X_OK, effective_ids=True):
            return False
    return True


def intent(planned: CgroupPlan) -> Intent:
    """What is about to be made, as a value to record first: groups, and how many of their parents are new.

    Raises Exists for a group that knarr did not make, InUse for one with processes, KernelError.
    """
    groups = []
    for directory in planned.directories:
        path, parents = directory.path.rpartition("/")[0], 0
        if lexists(directory.mountpoint + directory.path):
            fd = open_group(directory.mountpoint, directory.path)
            try:
                _check_left_over(fd, directory)
            finally:
                posix.close(fd)
        while path and not isdir(directory.mountpoint + path):
            path, parents = path.rpartition("/")[0], parents + 1
        groups.append([directory.mountpoint, directory.path, parents])
    if planned.scope is None:
        return {"v2": planned.clone_into, "groups": groups}
    scope = planned.scope
    return {"v2": scope.v2, "groups": groups, "unit": scope.name, "user": scope.user, "subgroup": scope.subgroup}


def _check_left_over(fd: int, directory: CgroupDirectory) -> None:
    """A group of that name is there: it may be used only if an earlier container of ours left it, empty."""
    shown = directory.mountpoint + directory.path
    if not marked(fd):
        raise Exists("cgroup", shown, hint="knarr did not make it; choose another cgroupsPath")
    inside = sum(len(members(group)) for group in tree(fd))
    if inside:
        raise InUse("cgroup", shown, f"{inside} processes")
    if freezer.state_of(dir_fd=fd) == "frozen":
        raise InUse("cgroup", shown, "its freezer", hint="it is frozen: nothing started in it would run")


# -- making and joining ------------------------------------------------------------------------------------------------


def create(
    planned: CgroupPlan,
    *,
    devices: bool = True,
    only: Sequence[CgroupDirectory] | None = None,
    doors: list[int] | None = None,
) -> None:
    """Make the groups (``only``: these of them) and write every limit, so that they bind before anything runs.

    Without ``devices`` the caller still has to call restrict_devices. ``doors`` gets, in the order of the groups, the
    files by which a process joins v1 groups itself: descriptors that are the caller's to close, also after an error;
    those groups' device rules are in force, which has to wait for nothing as long as nobody is inside.
    Raises InitError with the JSON pointer, the file and the value; KernelError, Exists, InUse for the group itself.
    """
    if planned.scope is not None:
        return  # systemd makes it around the process: join
    for directory in planned.directories if only is None else only:
        fd = make_group(directory, v2=planned.clone_into)
        try:
            _limit(fd, directory, planned)
            if doors is not None:
                _write_rules(fd, directory, planned)
                doors.append(_door(fd))
        finally:
            posix.close(fd)
    if devices:
        restrict_devices(planned)


def _limit(fd: int, directory: CgroupDirectory, planned: CgroupPlan) -> None:
    """Write the limits of one group, but for device rules."""
    for limit in planned.writes:
        if limit.mountpoint == directory.mountpoint and not is_device_rule(limit):
            write_limit(fd, directory, limit)


def restrict_devices(planned: CgroupPlan) -> None:
    """Make the device rules bind. Raises InitError, KernelError.

    They also hold for a file system that is mounted from a block device by a process of the group, so with such mounts
    the time for this is after them, and before anything of the image runs.
    """
    ruled = {rule.mountpoint for rule in planned.writes if is_device_rule(rule)} | {planned.device_mount}
    for directory in planned.directories:
        if directory.mountpoint in ruled:
            fd = open_group(directory.mountpoint, directory.path)
            try:
                _write_rules(fd, directory, planned)
                if planned.device_mount == directory.mountpoint:
                    _attach_devices(fd, planned)
            finally:
                posix.close(fd)


def _write_rules(fd: int, directory: CgroupDirectory, planned: CgroupPlan) -> None:
    """The v1 device rules of one group, each file opened once for all of its lines. Raises InitError."""
    files: dict[str, int] = {}
    try:
        for rule in planned.writes:
            if rule.mountpoint == directory.mountpoint and is_device_rule(rule):
                ((file, value),) = rule.choices
                try:
                    if file not in files:
                        files[file] = posix.open(file, posix.O_WRONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=fd)
                    posix.write(files[file], value.encode())
                except OSError as error:
                    raise _limit_error(error, directory, rule, file, value) from None
    finally:
        for each in files.values():
            posix.close(each)


def is_device_rule(limit: Write) -> bool:
    """Whether it is one of those that restrict_devices writes."""
    return limit.choices[0][0].startswith("devices.")


def make_group(directory: CgroupDirectory, *, v2: bool, adopt: bool = False) -> int:
    """Make the group and its parents, give the parents' controllers on (v2), return its descriptor.

    ``adopt``: it may be there already, made by systemd for us. Raises KernelError, Exists, InUse.
    """
    parts = directory.path.strip("/").split("/")
    for _ in range(_RESTARTS):
        at = posix.open(directory.mountpoint, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            for number, part in enumerate(parts):
                if v2:
                    enable_controllers(at, directory.controllers)
                below, made = _child(at, part, f"{directory.mountpoint}/{'/'.join(parts[: number + 1])}")
                try:
                    if not made and not adopt and number + 1 == len(parts):
                        _check_left_over(below, directory)
                    if "cpuset" in directory.controllers and not v2 and (made or marked(below)):
                        _inherit_cpuset(at, below)
                except BaseException:
                    posix.close(below)
                    raise
                posix.close(at)
                at = below
            if v2:
                _check_type(at, directory)
        except BaseException as error:
            posix.close(at)
            # The end of another container may have taken an empty parent away: begin again.
            if isinstance(error, OSError) and error.errno in (ENOENT, ENODEV):
                continue
            raise
        return at
    raise KernelError(
        "mkdir", directory.mountpoint + directory.path, ENOENT, hint="its parents are removed all the time"
    )


def _child(at: int, part: str, shown: str) -> tuple[int, bool]:
    """The descriptor of a child group, and whether it was made now."""
    made = True
    try:
        posix.mkdir(part, 0o755, dir_fd=at)
    except OSError as error:
        if error.errno != EEXIST:
            raise KernelError("mkdir", shown, error.errno or EINVAL) from None
        made = False
    fd = enter(at, part)
    if made:
        mark(fd)
    return fd, made


def enable_controllers(at: int, controllers: tuple[str, ...]) -> None:
    """On v2 a group has only the controllers its parent gives on.

    What cannot be given on shows when a limit is written, with the limit's name.
    """
    given = read(at, "cgroup.subtree_control").split()
    lacking = [name for name in controllers if name not in given]
    if not lacking:
        return
    try:
        write(at, "cgroup.subtree_control", " ".join(f"+{name}" for name in lacking))
    except OSError:
        for name in lacking:  # one at a time, so that a missing one costs no other
            try:
                write(at, "cgroup.subtree_control", f"+{name}")
            except OSError:
                continue


def _check_type(fd: int, directory: CgroupDirectory) -> None:
    kind = read(fd, "cgroup.type").strip()
    if kind != "domain":
        raise Unsupported(
            f"a cgroup below {directory.path.rpartition('/')[0] or '/'}",
            f'it would be of type "{kind}"',
            pointer="/linux/cgroupsPath",
            hint="a parent has processes or is threaded (cgroups(7))",
        )


def _inherit_cpuset(above: int, fd: int) -> None:
    """A new v1 cpuset is empty and admits nobody: take over the parent's values."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not read(fd, file).strip():
            write(fd, file, read(above, file).strip())


def write_limit(fd: int, directory: CgroupDirectory, limit: Write) -> None:
    """Put one value into the group behind ``fd``. Raises InitError with the field, the file and the value."""
    for number, (file, value) in enumerate(limit.choices):
        try:
            if limit.not_below:
                used = int(read(fd, limit.not_below))
                if used > int(value):
                    why = f"{used} bytes are in use already"
                    raise InitError(limit.pointer, f"set {file} to {value}", EBUSY, why=why)
            write(fd, file, value)
            return
        except OSError as error:
            if error.errno == ENOENT and number + 1 < len(limit.choices):
                continue
            if error.errno == ENOENT and limit.optional:
                return
            raise _limit_error(error, directory, limit, file, value) from None


def _limit_error(error: OSError, directory: CgroupDirectory, limit: Write, file: str, value: str) -> InitError:
    doing = f"write {value!r} to {directory.mountpoint}{directory.path}/{file}"
    return InitError(limit.pointer, doing, error.errno or EINVAL, hint=_limit_hint(error, file))


def _limit_hint(error: OSError, file: str) -> str:
    if error.errno == ENOENT:
        if ".memsw." in file or ".swap." in file:
            return "this kernel does not account for swap (swapaccount=1 on its command line)"
        return "this kernel, or the group above, does not offer that limit"
    if error.errno in (EACCES, EPERM, EROFS):
        return "the group above allows less" if file.startswith("devices.") else "this user may not set it"
    return ""


def _attach_devices(fd: int, planned: CgroupPlan) -> None:
    from knarr.kernel.bpf import set_device_program
    from knarr.plan.device_bpf import device_program

    program = device_program(planned.device_rules)
    if program is None:
        return  # everything is allowed
    try:
        set_device_program(fd, program)
    except KernelError as error:
        raise InitError("/linux/resources/devices", error.operand, error.errno or EINVAL, hint=error.hint) from None


def _door(fd: int) -> int:
    """The file of a v1 group by which a process may join it that writes to it itself. Raises OSError."""
    return posix.open("tasks", posix.O_WRONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=fd)


def open_doors(groups: Sequence[CgroupDirectory], doors: list[int]) -> None:
    """The same of groups that are there, appended to ``doors``, the caller's to close. Raises InitError."""
    for directory in groups:
        fd = open_group(directory.mountpoint, directory.path)
        try:
            doors.append(_door(fd))
        except OSError as error:
            doing = f"join cgroup {directory.mountpoint}{directory.path}"
            raise InitError("/linux/cgroupsPath", doing, error.errno or EINVAL) from None
        finally:
            posix.close(fd)


def join(planned: CgroupPlan, pid: int) -> None:
    """Put another process into every group. Joining v1 groups may take 10 ms (RCU). Raises InitError.

    With the systemd driver the groups are made by that. Raises also Exists, Unsupported, KernelError.
    """
    if planned.scope is not None:
        from knarr.runtime import systemd  # cold: only with that driver

        systemd.make_scope(planned, planned.scope, pid)
        for directory in planned.directories:
            fd = open_group(directory.mountpoint, directory.path)
            try:
                _limit(fd, directory, planned)
            finally:
                posix.close(fd)
    elif not planned.clone_into:
        _join([(directory.mountpoint, directory.path) for directory in planned.directories], pid)


def join_recorded(recorded: Intent | None, pid: int) -> None:
    """Put a further process into a container's groups. Raises InitError, Unsupported."""
    if recorded is not None and recorded["v2"] and recorded.get("user"):
        from knarr.runtime import systemd  # cold: only with that driver

        systemd.attach(recorded, pid)
    elif recorded is not None and not recorded["v2"]:
        _join([(mountpoint, path) for mountpoint, path, _ in recorded["groups"]], pid)


def _join(groups: list[tuple[str, str]], pid: int) -> None:
    for mountpoint, path in groups:
        try:
            fd = open_group(mountpoint, path)
            try:
                write(fd, "cgroup.procs", str(pid))
            finally:
                posix.close(fd)
        except OSError as error:
            doing = f"join cgroup {mountpoint}{path}"
            number = error.errno or EINVAL
            raise InitError("/linux/cgroupsPath", doing, number, hint=JOIN_HINTS.get(number, "")) from None


def expel(recorded: Intent, pid: int) -> None:
    """Take a process of ours out of a frozen v1 group, where not even SIGKILL would end it. On v2 it does."""
    if recorded["v2"]:
        return
    from knarr.runtime.cgroup_probe import probe

    host = probe()
    for mount in host.mounts if host is not None else ():
        if "freezer" in mount.controllers:
            fd = open_group(mount.mountpoint, mount.own)
            try:
                write(fd, "cgroup.procs", str(pid))
            except OSError as error:
                raise KernelError("take out of the frozen cgroup", f"process {pid}", error.errno or EINVAL) from None
            finally:
                posix.close(fd)


def entered(recorded: Intent | None, pid: int) -> Intent | None:
    """The groups a further process joins: the container's own, or on v2 maybe the one of its first process, ``pid``.

    A v2 group whose children have controllers admits no process (cgroups(7)), and its processes may have moved away.
    """
    if recorded is None or not recorded["v2"]:
        return recorded
    try:
        fd = open_group(*recorded["groups"][0][:2])
        try:
            if not read(fd, "cgroup.subtree_control").strip():
                return recorded
        finally:
            posix.close(fd)
    except OSError:
        pass
    from knarr.runtime.cgroup_below import of_process  # containers that manage cgroups themselves

    return of_process(recorded, pid)


def for_exec(recorded: Intent | None, host: Host) -> CgroupPlan | None:
    """What planning an exec must know of the container's groups."""
    if recorded is None:
        return None
    places = tuple(CgroupDirectory(mountpoint, path, ()) for mountpoint, path, _ in recorded["groups"])
    if not recorded["v2"]:
        top = host.cgroup.unified if host.cgroup is not None else ""
        unified = next((place for place in places if place.mountpoint == top), None)
        return CgroupPlan(places, (), unified=unified)
    # A user's caller may be in a group from which it could not go to this one, but systemd can move what it started.
    return CgroupPlan(places, (), clone_into=not recorded.get("user"))


def open_directory(group: CgroupPlan) -> int:
    """Return a descriptor of the v2 group, for CLONE_INTO_CGROUP. Raises KernelError."""
    place = group.unified or group.directories[0]
    return open_group(place.mountpoint, place.path)

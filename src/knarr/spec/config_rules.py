"""What config.json must mean, beyond its shape (hot): the whole, its process, mounts and hooks.

Each rule reads the parts of the document it is listed with in RULES, which have passed ``config_shape``, and reports
with ``add(pointer, why)``. Where a rule comes from is said beside it when it is not plainly what runtime-spec 1.3
config.md says. The rules about the ``linux`` section are in ``linux_rules``.
"""

from __future__ import annotations

from knarr.spec.grammar import clean_path, semver
from knarr.spec.shape import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Add = Callable[[str, str], None]

NO_ID = 0xFFFFFFFF
"""To setresuid(2) it means "leave as it is": a process asking for this id would stay root (as in CVE-2024-40635)."""

MOST_GIDS = 65_536  # NGROUPS_MAX
MOST_MAPPINGS = 340  # user_namespaces(7), since Linux 4.15


def namespaces(config: dict[str, Any]) -> dict[str, str]:
    """Return the namespaces the container has of its own: type to path, "" for a new one."""
    listed = config.get("linux", {}).get("namespaces", ())
    return {entry["type"]: entry.get("path", "") for entry in listed}


def mapping_faults(entries: list[dict[str, int]], at: str, add: Add) -> None:
    """Check id mappings as the kernel will (map_write in kernel/user_namespace.c)."""
    if len(entries) > MOST_MAPPINGS:
        add(at, f"has {len(entries)} entries, the kernel takes {MOST_MAPPINGS}")
        return
    for index, entry in enumerate(entries):
        size = entry["size"]
        if size == 0:
            add(f"{at}/{index}/size", "must not be 0")
        for side in ("containerID", "hostID"):
            if entry[side] + size > NO_ID:  # 2^32 - 1 itself is no id
                add(f"{at}/{index}/{side}", f"{entry[side]} and {size} ids from there go past the last id, {NO_ID - 1}")
    for side in ("containerID", "hostID"):
        spans = sorted((entry[side], entry["size"], index) for index, entry in enumerate(entries))
        end = 0
        for first, size, index in spans:
            if first < end:
                add(f"{at}/{index}/{side}", f"the ids from {first} are mapped twice")
            end = max(end, first + size)


def mapped(entries: list[dict[str, int]], number: int) -> bool:
    """Whether a container's id has one on the host."""
    return any(entry["containerID"] <= number < entry["containerID"] + entry["size"] for entry in entries)


def _absolute(value: str, at: str, add: Add) -> None:
    if not value.startswith("/"):
        add(at, f"must be an absolute path, not {shown(value)}" if value else "must not be empty")


def _one_line(holder: dict[str, Any], name: str, at: str, add: Add) -> None:
    if any(char in "\r\n" for char in holder.get(name, "")):  # they are written into files of lines
        add(f"{at}/{name}", "must not hold a line break")


def _version(config: dict[str, Any], add: Add) -> None:
    version = semver(config["ociVersion"])
    if version is None:
        add("/ociVersion", f"{shown(config['ociVersion'])} is not a version such as 1.3.0")
    elif version[0] != 1:
        add("/ociVersion", f"{config['ociVersion']} is not supported, only versions 1.x are")


def _root(config: dict[str, Any], add: Add) -> None:  # config.md: required on every platform but Windows
    root = config.get("root")
    if root is None:
        add("/root", "is missing")
    elif not root["path"]:
        add("/root/path", "must not be empty")


def _args(config: dict[str, Any], add: Add) -> None:
    process = config.get("process")
    if process is not None:
        args = process.get("args")
        if not args:
            add("/process/args", "is missing" if args is None else "must have at least one item, the program")
        elif not args[0]:
            add("/process/args/0", "must not be empty")


def _cwd(config: dict[str, Any], add: Add) -> None:
    process = config.get("process")
    if process is not None:
        _absolute(process["cwd"], "/process/cwd", add)


def _env(config: dict[str, Any], add: Add) -> None:
    for index, entry in enumerate(config.get("process", {}).get("env", ())):
        if entry.find("=") < 1:
            why = 'has no name before the "="' if entry.startswith("=") else 'has no "="'
            add(f"/process/env/{index}", f"{shown(entry)} {why}")


def _user(config: dict[str, Any], add: Add) -> None:
    user = config.get("process", {}).get("user", {})
    at = "/process/user"
    for name in ("uid", "gid"):
        if user.get(name) == NO_ID:
            add(f"{at}/{name}", f"{NO_ID} is no id")
    if user.get("umask", 0) > 0o777:
        add(f"{at}/umask", f"is {user['umask']}, must be from 0 to 511 (0777)")
    groups = user.get("additionalGids", ())
    if len(groups) > MOST_GIDS:
        add(f"{at}/additionalGids", f"has {len(groups)} items, the kernel takes {MOST_GIDS}")
    elif NO_ID in groups:
        add(f"{at}/additionalGids/{groups.index(NO_ID)}", f"{NO_ID} is no id")


def _mapped_user(config: dict[str, Any], add: Add) -> None:  # setresuid(2) would fail with EINVAL
    if namespaces(config).get("user") != "":  # a joined namespace has its own mappings
        return
    user = config.get("process", {}).get("user", {})
    linux = config["linux"]
    uids, gids = linux.get("uidMappings", ()), linux.get("gidMappings", ())
    if uids and not mapped(uids, user.get("uid", 0)):
        add("/process/user/uid", f"{user.get('uid', 0)} is not in linux.uidMappings")
    if gids:
        if not mapped(gids, user.get("gid", 0)):
            add("/process/user/gid", f"{user.get('gid', 0)} is not in linux.gidMappings")
        groups = user.get("additionalGids", ())
        for index, group in enumerate(groups[:MOST_GIDS]):
            if not mapped(gids, group):
                add(f"/process/user/additionalGids/{index}", f"{group} is not in linux.gidMappings")


def _console(config: dict[str, Any], add: Add) -> None:  # struct winsize; ignored without a terminal
    process = config.get("process", {})
    if process.get("terminal"):
        for name, size in process.get("consoleSize", {}).items():
            if name in ("height", "width") and size > 0xFFFF:
                add(f"/process/consoleSize/{name}", f"is {size}, must be from 0 to 65535")


def _capabilities(config: dict[str, Any], add: Add) -> None:  # capset(2)
    sets = config.get("process", {}).get("capabilities", {})
    permitted = sets.get("permitted", ())
    for index, name in enumerate(sets.get("effective", ())):
        if name not in permitted:
            add(f"/process/capabilities/effective/{index}", f"{shown(name)} is not in the permitted set")


def _rlimits(config: dict[str, Any], add: Add) -> None:
    seen = set()
    for index, limit in enumerate(config.get("process", {}).get("rlimits", ())):
        at = f"/process/rlimits/{index}"
        if limit["type"] in seen:
            add(f"{at}/type", f"{limit['type']} occurs twice")
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            add(f"{at}/soft", f"is {limit['soft']}, more than the hard limit {limit['hard']}")


def _labels(config: dict[str, Any], add: Add) -> None:
    process = config.get("process", {})
    _one_line(process, "apparmorProfile", "/process", add)
    _one_line(process, "selinuxLabel", "/process", add)
    _one_line(config.get("linux", {}), "mountLabel", "/linux", add)


def _scheduler(config: dict[str, Any], add: Add) -> None:  # sched_setattr(2)
    asked = config.get("process", {}).get("scheduler")
    if asked is None:
        return
    at, policy = "/process/scheduler", asked["policy"]
    nice, priority = asked.get("nice", 0), asked.get("priority", 0)
    if policy == "SCHED_ISO":
        add(f"{at}/policy", "SCHED_ISO is reserved, no Linux has it")
    if policy in ("SCHED_OTHER", "SCHED_BATCH"):
        if not -20 <= nice <= 19:
            add(f"{at}/nice", f"is {nice}, must be from -20 to 19")
    elif nice:
        add(f"{at}/nice", f"has no meaning for {policy}")
    if policy in ("SCHED_FIFO", "SCHED_RR"):
        if not 1 <= priority <= 99:
            add(f"{at}/priority", f"is {priority}, must be from 1 to 99 for {policy}")
    elif priority:
        add(f"{at}/priority", f"has no meaning for {policy}")
    run, deadline, period = asked.get("runtime", 0), asked.get("deadline", 0), asked.get("period", 0)
    if policy != "SCHED_DEADLINE":
        for name in ("runtime", "deadline", "period"):
            if asked.get(name, 0):
                add(f"{at}/{name}", f"has no meaning for {policy}")
    elif not 1024 <= run <= deadline <= (period or deadline):
        add(at, f"SCHED_DEADLINE needs 1024 ≤ runtime ≤ deadline ≤ period, not {run}, {deadline}, {period}")


def _host_names(config: dict[str, Any], add: Add) -> None:
    for name in ("hostname", "domainname"):
        value = config.get(name, "")
        if value:
            if "uts" not in namespaces(config):
                add(f"/{name}", "needs a uts namespace in linux.namespaces, else it would rename the host")
            if len(value.encode("utf-8", "surrogateescape")) > 64:  # __NEW_UTS_LEN
                add(f"/{name}", "is longer than 64 bytes")
            if any(char < " " or char == "\x7f" for char in value):  # it ends up in /etc/hosts
                add(f"/{name}", "must not hold control characters")


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether a mount is a bind mount (config.md, Mounts: by its options only)."""
    options = mount.get("options", ())
    return "bind" in options or "rbind" in options


def _mounts(config: dict[str, Any], add: Add) -> None:
    for index, mount in enumerate(config.get("mounts", ())):
        at = f"/mounts/{index}"
        if clean_path(mount["destination"]) == "/":
            why = f"{shown(mount['destination'])} is the root itself" if mount["destination"] else "must not be empty"
            add(f"{at}/destination", why)
        bind = is_bind(mount)
        if not bind and not mount.get("type") and "remount" not in mount.get("options", ()):
            add(f"{at}/type", "is missing, and the mount is no bind mount")
        if bind and not mount.get("source"):
            add(f"{at}/source", "a bind mount needs a source")


def _id_mapped_mounts(config: dict[str, Any], add: Add) -> None:  # config.md, Linux mount options
    for index, mount in enumerate(config.get("mounts", ())):
        at, options = f"/mounts/{index}", mount.get("options", ())
        sides = [side for side in ("uidMappings", "gidMappings") if mount.get(side)]
        asked = "idmap" in options or "ridmap" in options
        if not sides:
            if asked and "user" not in namespaces(config):
                add(f"{at}/options", "idmap needs uidMappings and gidMappings, or a user namespace to take them from")
        elif len(sides) == 1:
            other = "gidMappings" if sides[0] == "uidMappings" else "uidMappings"
            add(f"{at}/{other}", f"is missing beside {sides[0]}")
        if (sides or asked) and not is_bind(mount):
            add(at, "ids can be mapped on bind mounts only")
        for side in sides:
            mapping_faults(mount[side], f"{at}/{side}", add)


def _hooks(config: dict[str, Any], add: Add) -> None:
    for kind, listed in config.get("hooks", {}).items():
        if type(listed) is list and kind in _HOOKS:
            for index, hook in enumerate(listed):
                _absolute(hook["path"], f"/hooks/{kind}/{index}/path", add)


_HOOKS = frozenset(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))


def _annotations(config: dict[str, Any], add: Add) -> None:  # config.md, Annotations
    if "" in config.get("annotations", {}):
        add("/annotations/", "a key must not be empty")


def _vm(config: dict[str, Any], add: Add) -> None:  # config-vm.md
    vm = config.get("vm", {})
    for part, name in (("hypervisor", "path"), ("kernel", "path"), ("kernel", "initrd"), ("image", "path")):
        value = vm.get(part, {}).get(name)
        if value is not None:
            _absolute(value, f"/vm/{part}/{name}", add)


# What a rule reads, as JSON pointers by spaces, and the rule.
RULES = (
    ("/ociVersion", _version),
    ("/root", _root),
    ("/process/args", _args),
    ("/process/cwd", _cwd),
    ("/process/env", _env),
    ("/process/user", _user),
    ("/process/user /linux", _mapped_user),
    ("/process/terminal /process/consoleSize", _console),
    ("/process/capabilities", _capabilities),
    ("/process/rlimits", _rlimits),
    ("/process/apparmorProfile /process/selinuxLabel /linux/mountLabel", _labels),
    ("/process/scheduler", _scheduler),
    ("/hostname /domainname /linux/namespaces", _host_names),
    ("/mounts", _mounts),
    ("/mounts /linux/namespaces", _id_mapped_mounts),
    ("/hooks", _hooks),
    ("/annotations", _annotations),
    ("/vm", _vm),
)

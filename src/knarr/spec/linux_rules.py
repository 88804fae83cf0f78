"""What the ``linux`` section of config.json must mean, beyond its shape (hot).

As ``config_rules``, whose helpers and form these rules share. runtime-spec 1.3 config-linux.md; limits of the
kernel's own where named. In resources a 0 stands for "not set" where Go programs write the zero value so (quota,
period, shares, weights, memory limits), as in runc.
"""

from __future__ import annotations

from knarr.base.fastjson import pointer_token
from knarr.spec.config_rules import NO_ID, mapped, mapping_faults, namespaces
from knarr.spec.grammar import clean_path, cpu_list, interface_name, sysctl_path
from knarr.spec.shape import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.spec.config_rules import Add

PATH_MAX = 4096
MAJOR_MAX, MINOR_MAX = 0xFFF, 0xFFFFF  # what a dev_t of the kernel's ABI holds (new_encode_dev)

# Sysctls a container may have for itself, by namespace (ipc_namespaces(7), namespaces(7)).
_IPC = frozenset(
    (
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    )
)
_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")


def _linux(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("linux", {})
    return found


def _namespaces(config: dict[str, Any], add: Add) -> None:
    seen = set()
    for index, entry in enumerate(_linux(config).get("namespaces", ())):
        at = f"/linux/namespaces/{index}"
        if entry["type"] in seen:
            add(f"{at}/type", f"{entry['type']} occurs twice")
        seen.add(entry["type"])
        path = entry.get("path", "")
        if path and not path.startswith("/"):
            add(f"{at}/path", f"must be an absolute path, not {shown(path)}")
        elif len(path.encode("utf-8", "surrogateescape")) >= PATH_MAX:  # CVE-2021-43784: nothing may outgrow a message
            add(f"{at}/path", f"is longer than {PATH_MAX - 1} bytes")
    if "mount" not in seen:
        # Such a container shares the caller's mounts, and what it mounts is taken away with it; but a path that is
        # hidden from one must not be hidden from all.
        for name in ("maskedPaths", "readonlyPaths", "rootfsPropagation"):
            if _linux(config).get(name):
                add(f"/linux/{name}", "needs a mount namespace in linux.namespaces")


def _id_mappings(config: dict[str, Any], add: Add) -> None:  # user_namespaces(7)
    linux = _linux(config)
    user = namespaces(config).get("user")
    for side in ("uidMappings", "gidMappings"):
        entries = linux.get(side)
        if entries:
            if user is None:
                add(f"/linux/{side}", "needs a user namespace in linux.namespaces")
            mapping_faults(entries, f"/linux/{side}", add)
        elif user == "":
            add(f"/linux/{side}", "is missing, a new user namespace needs it")


def _time_offsets(config: dict[str, Any], add: Add) -> None:  # time_namespaces(7)
    offsets = _linux(config).get("timeOffsets")
    if not offsets:
        return
    path = namespaces(config).get("time")
    if path is None:
        add("/linux/timeOffsets", "needs a time namespace in linux.namespaces")
    elif path:
        add("/linux/timeOffsets", "cannot be set in a time namespace that is joined by its path")
    for clock, offset in offsets.items():
        if clock not in ("monotonic", "boottime"):
            add(
                f"/linux/timeOffsets{pointer_token(clock)}",
                "is no clock of a time namespace, monotonic and boottime are",
            )
        elif offset.get("nanosecs", 0) >= 1_000_000_000:
            add(f"/linux/timeOffsets/{clock}/nanosecs", f"is {offset['nanosecs']}, must be below 1000000000")


def _sysctl(config: dict[str, Any], add: Add) -> None:  # a sysctl only with the namespace that separates it
    asked = _linux(config).get("sysctl")
    if not asked:
        return
    own = namespaces(config)
    for name, value in asked.items():
        at = f"/linux/sysctl{pointer_token(name)}"
        path = sysctl_path(name)
        if path is None:
            add(at, "is no name of a sysctl")
            continue
        area = path.partition("/")[0]
        if path in _IPC or path.startswith("fs/mqueue/"):
            needs = "ipc"
        elif area == "net":
            needs = "network"
        elif area == "user":
            needs = "user"
        elif path == "kernel/domainname":
            needs = "uts"
        elif path == "kernel/hostname":
            add(at, "is set by hostname, not by sysctl")
            continue
        else:
            add(at, "belongs to the host, no namespace separates it")
            continue
        if needs not in own:
            add(at, f"needs a namespace of type {needs} in linux.namespaces, else it would change the host")
        if "\n" in value:
            add(at, "the value must be one line")
        elif len(value) >= 4096:
            add(at, "the value is longer than 4095 characters")


def _devices(config: dict[str, Any], add: Add) -> None:
    seen: dict[str, tuple[Any, ...]] = {}
    for index, device in enumerate(_linux(config).get("devices", ())):
        at, path, kind = f"/linux/devices/{index}", device["path"], device["type"]
        if not path.startswith("/"):
            add(f"{at}/path", f"must be an absolute path, not {shown(path)}" if path else "must not be empty")
        elif clean_path(path) == "/":
            add(f"{at}/path", f"{shown(path)} is the root itself")
        for name, most in (("major", MAJOR_MAX), ("minor", MINOR_MAX)):
            number = device.get(name)
            if number is None:
                if kind != "p":
                    add(f"{at}/{name}", "is missing")
            elif not 0 <= number <= most:
                add(f"{at}/{name}", f"is {number}, must be from 0 to {most}")
        mode = device.get("fileMode", 0)
        # Podman hands over st_mode whole: the type's bits are fine when they are this type's.
        if mode & 0o170000 == {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}[kind]:
            mode &= 0o7777
        if mode > 0o777:
            add(f"{at}/fileMode", f"is {device['fileMode']}, must be from 0 to 511 (0777)")
        for name in ("uid", "gid"):
            if device.get(name) == NO_ID:
                add(f"{at}/{name}", f"{NO_ID} is no id")
        facts = ("c" if kind == "u" else kind, device.get("major"), device.get("minor"))
        if seen.setdefault(clean_path(path), facts) != facts:
            add(f"{at}/path", f"{shown(path)} is listed before as another device")


def _mapped_devices(config: dict[str, Any], add: Add) -> None:
    linux = _linux(config)
    if namespaces(config).get("user") != "":
        return
    for index, device in enumerate(linux.get("devices", ())):
        for name, side in (("uid", "uidMappings"), ("gid", "gidMappings")):
            number = device.get(name)
            if number is not None and linux.get(side) and not mapped(linux[side], number):
                add(f"/linux/devices/{index}/{name}", f"{number} is not in linux.{side}")


def _net_devices(config: dict[str, Any], add: Add) -> None:  # config-linux.md, Network Devices
    asked = _linux(config).get("netDevices")
    if not asked:
        return
    if "network" not in namespaces(config):
        add("/linux/netDevices", "needs a network namespace in linux.namespaces")
    inside: set[str] = set()
    for name, device in asked.items():
        at = f"/linux/netDevices{pointer_token(name)}"
        new = device.get("name") or name
        if not interface_name(name):
            add(at, f"{shown(name)} is no name of a network device")
        elif name == "lo":
            add(at, "lo cannot leave its namespace")
        elif not interface_name(new):
            add(f"{at}/name", f"{shown(new)} is no name of a network device")
        elif new in inside and "%d" not in new:
            add(f"{at}/name", f"{shown(new)} is the name of two devices")
        inside.add(new)


def _paths(config: dict[str, Any], add: Add) -> None:
    linux = _linux(config)
    for name in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(linux.get(name, ())):
            if not path.startswith("/"):
                add(f"/linux/{name}/{index}", f"must be an absolute path, not {shown(path)}")
            elif name == "maskedPaths" and clean_path(path) == "/":
                add(f"/linux/{name}/{index}", f"{shown(path)} is the root itself")


def _personality(config: dict[str, Any], add: Add) -> None:
    asked = _linux(config).get("personality")
    if asked is not None:
        if "domain" not in asked:
            add("/linux/personality/domain", "is missing")
        if asked.get("flags"):
            add("/linux/personality/flags", "must be empty, the specification defines no flag")


def _memory_policy(config: dict[str, Any], add: Add) -> None:  # set_mempolicy(2)
    asked = _linux(config).get("memoryPolicy")
    if asked is None:
        return
    at, mode = "/linux/memoryPolicy", asked.get("mode")
    if mode is None:
        add(f"{at}/mode", "is missing")
        return
    try:
        nodes = cpu_list(asked.get("nodes", ""))
    except ValueError as error:
        add(f"{at}/nodes", str(error))
        return
    if mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        if nodes:
            add(f"{at}/nodes", f"must be empty for {mode}")
    elif not nodes and mode != "MPOL_PREFERRED":
        add(f"{at}/nodes", f"must name at least one node for {mode}")
    flags = asked.get("flags", ())
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        add(f"{at}/flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")


def _intel_rdt(config: dict[str, Any], add: Add) -> None:
    asked = _linux(config).get("intelRdt")
    if not asked:
        return
    at, name = "/linux/intelRdt", asked.get("closID", "")
    if name != "/" and ("/" in name or name in (".", "..") or "\n" in name):
        add(f"{at}/closID", f"{shown(name)} is no name of a directory")
    for key in ("l3CacheSchema", "memBwSchema"):
        if "\n" in asked.get(key, ""):
            add(f"{at}/{key}", "must be one line")
    for index, line in enumerate(asked.get("schemata", ())):
        if "\n" in line:
            add(f"{at}/schemata/{index}", "must be one line")


def _range(holder: dict[str, Any], name: str, low: int, high: int, at: str, add: Add, *, zero: bool = True) -> None:
    value = holder.get(name, low)
    if not low <= value <= high and not (zero and value == 0):
        add(f"{at}/{name}", f"is {value}, must be from {low} to {high}")


def _device_rules(resources: dict[str, Any], at: str, add: Add) -> None:
    for index, rule in enumerate(resources.get("devices", ())):
        here = f"{at}/devices/{index}"
        if rule.get("type", "") not in ("", "a", "b", "c"):
            add(f"{here}/type", f"is {shown(rule['type'])}, must be one of a, b, c")
        access = rule.get("access")
        if not access:
            # The schema lets it be absent; what that would allow nobody says, and runc refuses it.
            add(f"{here}/access", "is missing" if access is None else "must not be empty")
        elif not set(access) <= set("rwm"):
            add(f"{here}/access", f"is {shown(access)}, must be made of r, w and m")
        for name, most in (("major", MAJOR_MAX), ("minor", MINOR_MAX)):
            _range(rule, name, -1, most, here, add)  # -1: all


def _memory(resources: dict[str, Any], at: str, add: Add) -> None:
    memory = resources.get("memory")
    if not memory:
        return
    here = f"{at}/memory"
    for name in ("limit", "reservation", "swap", "kernel", "kernelTCP"):
        if memory.get(name, 0) < -1:
            add(f"{here}/{name}", f"is {memory[name]}, must be a number of bytes or -1 for no limit")
    limit, swap, reservation = memory.get("limit", 0), memory.get("swap", 0), memory.get("reservation", 0)
    if swap > 0:
        if limit <= 0:
            add(f"{here}/swap", "memory and swap together can only be limited when memory is")
        elif swap < limit:
            add(f"{here}/swap", f"is {swap}, must be at least the memory limit {limit}, which it includes")
    if reservation > limit > 0:
        add(f"{here}/reservation", f"is {reservation}, more than the limit {limit}")
    if memory.get("swappiness", 0) > 100:
        add(f"{here}/swappiness", f"is {memory['swappiness']}, must be from 0 to 100")


def _cpu(resources: dict[str, Any], at: str, add: Add) -> None:
    cpu = resources.get("cpu")
    if not cpu:
        return
    here = f"{at}/cpu"
    _range(cpu, "shares", 2, 1 << 18, here, add)  # MIN_SHARES and MAX_SHARES of kernel/sched
    _range(cpu, "period", 1_000, 1_000_000, here, add)  # microseconds
    quota = cpu.get("quota", 0)
    if quota not in (0, -1) and quota < 1_000:
        add(f"{here}/quota", f"is {quota}, must be at least 1000 (microseconds), or -1 for no limit")
    if cpu.get("burst", 0) > quota > 0:
        add(f"{here}/burst", f"is {cpu['burst']}, more than the quota {quota}")
    if cpu.get("realtimeRuntime", 0) < -1:
        add(f"{here}/realtimeRuntime", f"is {cpu['realtimeRuntime']}, must be -1 or more")
    _range(cpu, "idle", 0, 1, here, add)
    for name in ("cpus", "mems"):
        try:
            cpu_list(cpu.get(name, ""))
        except ValueError as error:
            add(f"{here}/{name}", str(error))


def _pids(resources: dict[str, Any], at: str, add: Add) -> None:
    if resources.get("pids", {}).get("limit", 0) < -1:
        add(f"{at}/pids/limit", f"is {resources['pids']['limit']}, must be a number of tasks or -1 for no limit")


def _block_io(resources: dict[str, Any], at: str, add: Add) -> None:
    block = resources.get("blockIO")
    if not block:
        return
    here = f"{at}/blockIO"
    for name in ("weight", "leafWeight"):
        _range(block, name, 10, 1000, here, add)
    for index, entry in enumerate(block.get("weightDevice", ())):
        below = f"{here}/weightDevice/{index}"
        for name in ("weight", "leafWeight"):
            _range(entry, name, 10, 1000, below, add)
        if "weight" not in entry and "leafWeight" not in entry:
            add(below, "has neither weight nor leafWeight")
        _device_number(entry, below, add)
    for name in _THROTTLES:
        for index, entry in enumerate(block.get(name, ())):
            if "rate" not in entry:
                add(f"{here}/{name}/{index}/rate", "is missing")
            _device_number(entry, f"{here}/{name}/{index}", add)


def _device_number(entry: dict[str, Any], at: str, add: Add) -> None:
    _range(entry, "major", 0, MAJOR_MAX, at, add)
    _range(entry, "minor", 0, MINOR_MAX, at, add)


def _others(resources: dict[str, Any], at: str, add: Add) -> None:
    for index, entry in enumerate(resources.get("network", {}).get("priorities", ())):
        if not interface_name(entry["name"]):
            add(f"{at}/network/priorities/{index}/name", f"{shown(entry['name'])} is no name of a network device")
    for name, entry in resources.get("rdma", {}).items():
        here = f"{at}/rdma{pointer_token(name)}"
        if not name or any(char.isspace() for char in name):
            add(here, f"{shown(name)} is no name of an RDMA device")
        if "hcaHandles" not in entry and "hcaObjects" not in entry:
            add(here, "has neither hcaHandles nor hcaObjects")
    for name in resources.get("unified", ()):
        # The file's name and nothing else: a slash would leave the container's cgroup.
        if "/" in name or "." not in name.strip("."):
            add(f"{at}/unified{pointer_token(name)}", f"{shown(name)} is no name of a cgroup file")


def resource_faults(resources: dict[str, Any], at: str, add: Add) -> None:
    """Check well-shaped resources found at the pointer ``at``."""
    _device_rules(resources, at, add)
    _memory(resources, at, add)
    _cpu(resources, at, add)
    _pids(resources, at, add)
    _block_io(resources, at, add)
    _others(resources, at, add)


def _resources(config: dict[str, Any], add: Add) -> None:
    resource_faults(config.get("linux", {}).get("resources", {}), "/linux/resources", add)


def _errno(action: str, number: int | None, at: str, add: Add) -> None:
    if number is None:
        return
    most = {"SCMP_ACT_ERRNO": 4095, "SCMP_ACT_TRACE": 65_535}.get(action)  # MAX_ERRNO; 16 bits for a tracer
    if most is None:
        add(at, f"has no meaning for {action}")
    elif number > most:
        add(at, f"is {number}, must be from 0 to {most} for {action}")


_GO_ON = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY")


def _denies(profile: dict[str, Any], name: str) -> bool:
    """Whether the profile lets a system call through on no condition whatever."""
    rules = [entry for entry in profile.get("syscalls", ()) if name in entry["names"]]
    if any(entry["action"] in _GO_ON or entry.get("args") for entry in rules):
        return False
    return bool(rules) or profile["defaultAction"] not in _GO_ON


def _seccomp(config: dict[str, Any], add: Add) -> None:
    profile = config.get("linux", {}).get("seccomp")
    if profile is None:
        return
    at, default = "/linux/seccomp", profile["defaultAction"]
    _errno(default, profile.get("defaultErrnoRet"), f"{at}/defaultErrnoRet", add)
    if default == "SCMP_ACT_NOTIFY":
        add(f"{at}/defaultAction", "must not be SCMP_ACT_NOTIFY: nobody would hear of the runtime's own calls")
    notify = False
    for index, entry in enumerate(profile.get("syscalls", ())):
        here, action, names = f"{at}/syscalls/{index}", entry["action"], entry["names"]
        _errno(action, entry.get("errnoRet"), f"{here}/errnoRet", add)
        if "" in names:
            add(f"{here}/names/{names.index('')}", "must not be empty")
        for number, argument in enumerate(entry.get("args", ())):
            if argument["index"] > 5:
                add(f"{here}/args/{number}/index", f"is {argument['index']}, a system call has arguments 0 to 5")
        if action == "SCMP_ACT_NOTIFY":
            notify = True
            if "write" in names:  # the init writes to say that it has sent the listener: it would wait for itself
                add(f"{here}/names/{names.index('write')}", "write cannot have SCMP_ACT_NOTIFY")
    if _denies(profile, "execve"):
        add(at, "denies execve, with which the program itself is started")
    if notify and not profile.get("listenerPath"):
        add(f"{at}/listenerPath", "is missing, SCMP_ACT_NOTIFY needs a socket to send the listener to")
    if profile.get("listenerMetadata") and not profile.get("listenerPath"):
        add(f"{at}/listenerMetadata", "has no meaning without listenerPath")


RULES = (
    ("/linux/namespaces", _namespaces),
    ("/linux/namespaces /linux/uidMappings /linux/gidMappings", _id_mappings),
    ("/linux/namespaces /linux/timeOffsets", _time_offsets),
    ("/linux/namespaces /linux/sysctl", _sysctl),
    ("/linux/devices", _devices),
    ("/linux/namespaces /linux/devices /linux/uidMappings /linux/gidMappings", _mapped_devices),
    ("/linux/namespaces /linux/netDevices", _net_devices),
    ("/linux/maskedPaths /linux/readonlyPaths", _paths),
    ("/linux/personality", _personality),
    ("/linux/memoryPolicy", _memory_policy),
    ("/linux/intelRdt", _intel_rdt),
    ("/linux/resources", _resources),
    ("/linux/seccomp", _seccomp),
)

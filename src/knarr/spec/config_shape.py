"""The shape of config.json, as tables (hot): what runtime-spec's JSON schema says of a Linux container.

The schema's platforms that knarr does not run (Windows, Solaris, z/OS, FreeBSD) are in ``platforms``, loaded only
for a document that has such a section. Where this is stricter or milder than the schema, a comment says so.
"""

from __future__ import annotations

from knarr.spec.grammar import cpu_list
from knarr.spec.runtime import (
    CAPABILITY_SETS,
    HOOKS,
    IO_CLASSES,
    MEMORY_FLAGS,
    MEMORY_MODES,
    NAMESPACES,
    PERSONALITIES,
    PROPAGATIONS,
    RLIMITS,
    SCHEDULER_FLAGS,
    SCHEDULER_POLICIES,
    SECCOMP_ACTIONS,
    SECCOMP_ARCHES,
    SECCOMP_FLAGS,
    SECCOMP_OPERATORS,
)
from knarr.spec.shape import (
    array,
    flag,
    int32,
    int64,
    integer,
    mapping,
    members,
    one_of,
    shown,
    strings,
    text,
    uint16,
    uint32,
    uint64,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.spec.shape import Fault


def _page_size(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    digits, unit = value[:-2], value[-2:]
    if unit in ("KB", "MB", "GB") and digits.isascii() and digits.isdigit() and digits[0] != "0":
        return None
    return [("", f"is {shown(value)}, must be a size such as 64KB, 2MB or 1GB")]


def _bandwidth(value: Any) -> Fault:
    bad = text(value)
    if bad or value.startswith("MB:"):
        return bad
    return [("", 'must start with "MB:"')]


def _cpus(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    try:
        cpu_list(value)
    except ValueError as error:
        return [("", str(error))]
    return None


_annotations = mapping(text)
_id_mappings = array(members({"containerID": uint32, "hostID": uint32, "size": uint32}, "containerID hostID size"))

_mount = members(
    {
        "destination": text,
        "source": text,
        "type": text,
        "options": strings,
        "uidMappings": _id_mappings,
        "gidMappings": _id_mappings,
    },
    "destination",
)

_hook = members({"path": text, "args": strings, "env": strings, "timeout": integer(1, (1 << 63) - 1)}, "path")
_hooks = array(_hook)

_user = members({"uid": uint32, "gid": uint32, "umask": uint32, "additionalGids": array(uint32), "username": text})

PROCESS = members(
    {
        "terminal": flag,
        "consoleSize": members({"height": uint64, "width": uint64}, "height width"),
        "cwd": text,
        "env": strings,
        "args": strings,
        "commandLine": text,
        "user": _user,
        "capabilities": members(dict.fromkeys(CAPABILITY_SETS, strings)),
        # Stricter: the schema takes every RLIMIT_ word, config.md wants an error for one the kernel does not have.
        "rlimits": array(members({"type": one_of(RLIMITS), "soft": uint64, "hard": uint64}, "type soft hard")),
        "noNewPrivileges": flag,
        "apparmorProfile": text,
        "selinuxLabel": text,
        # Stricter: the schema knows no range, the kernel does (OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX).
        "oomScoreAdj": integer(-1000, 1000),
        "scheduler": members(
            {
                "policy": one_of(SCHEDULER_POLICIES),
                "nice": int32,
                "priority": int32,
                "flags": array(one_of(SCHEDULER_FLAGS)),
                "runtime": uint64,
                "deadline": uint64,
                "period": uint64,
            },
            "policy",
        ),
        # Stricter: config.md gives the range; a missing priority is 0, as in the schema.
        "ioPriority": members({"class": one_of(IO_CLASSES), "priority": integer(0, 7)}, "class"),
        # Stricter: the schema has only the characters, not the form.
        "execCPUAffinity": members({"initial": _cpus, "final": _cpus}),
    },
    "cwd",
)

_device = members(
    {
        "type": one_of(("c", "b", "u", "p")),
        "path": text,
        "major": int64,
        "minor": int64,
        "fileMode": uint32,  # milder: Podman writes the file type's bits too; the rules refuse what is left above 0777
        "uid": uint32,
        "gid": uint32,
    },
    "type path",
)

_throttles = array(members({"major": int64, "minor": int64, "rate": uint64}, "major minor"))
_weights = array(members({"major": int64, "minor": int64, "weight": uint16, "leafWeight": uint16}, "major minor"))

RESOURCES = members(
    {
        "devices": array(
            members({"allow": flag, "type": text, "major": int64, "minor": int64, "access": text}, "allow")
        ),
        "memory": members(
            {
                "limit": int64,
                "reservation": int64,
                "swap": int64,
                "kernel": int64,
                "kernelTCP": int64,
                "swappiness": uint64,
                "disableOOMKiller": flag,
                "useHierarchy": flag,
                "checkBeforeUpdate": flag,
            }
        ),
        "cpu": members(
            {
                "shares": uint64,
                "quota": int64,
                "burst": uint64,
                "period": uint64,
                "realtimeRuntime": int64,
                "realtimePeriod": uint64,
                "cpus": text,
                "mems": text,
                "idle": int64,
            }
        ),
        "pids": members({"limit": int64}, "limit"),
        "blockIO": members(
            {
                "weight": uint16,
                "leafWeight": uint16,
                "weightDevice": _weights,
                "throttleReadBpsDevice": _throttles,
                "throttleWriteBpsDevice": _throttles,
                "throttleReadIOPSDevice": _throttles,
                "throttleWriteIOPSDevice": _throttles,
            }
        ),
        "hugepageLimits": array(members({"pageSize": _page_size, "limit": uint64}, "pageSize limit")),
        "network": members(
            {
                "classID": uint32,
                "priorities": array(members({"name": text, "priority": uint32}, "name priority")),
            }
        ),
        "rdma": mapping(members({"hcaHandles": uint32, "hcaObjects": uint32})),
        "unified": mapping(text),
    }
)

_syscall = members(
    {
        "names": array(text, least=1),
        "action": one_of(SECCOMP_ACTIONS),
        "errnoRet": uint32,
        "args": array(
            members(
                {"index": uint32, "value": uint64, "valueTwo": uint64, "op": one_of(SECCOMP_OPERATORS)},
                "index value op",
            )
        ),
    },
    "names action",
)

SECCOMP = members(
    {
        "defaultAction": one_of(SECCOMP_ACTIONS),
        "defaultErrnoRet": uint32,
        "flags": array(one_of(SECCOMP_FLAGS)),
        "listenerPath": text,
        "listenerMetadata": text,
        "architectures": array(one_of(SECCOMP_ARCHES)),
        "syscalls": array(_syscall),
    },
    "defaultAction",
)

_offset = members({"secs": int64, "nanosecs": uint32})

LINUX = members(
    {
        "namespaces": array(members({"type": one_of(NAMESPACES), "path": text}, "type")),
        "uidMappings": _id_mappings,
        "gidMappings": _id_mappings,
        "devices": array(_device),
        "netDevices": mapping(members({"name": text})),
        "cgroupsPath": text,
        "resources": RESOURCES,
        "sysctl": mapping(text),
        "seccomp": SECCOMP,
        # Milder: runc takes the recursive words too and Podman writes them; "" is "not set" in Go.
        "rootfsPropagation": one_of((*PROPAGATIONS, "")),
        "maskedPaths": strings,
        "readonlyPaths": strings,
        "mountLabel": text,
        "intelRdt": members(
            {
                "closID": text,
                "schemata": strings,
                "l3CacheSchema": text,
                "memBwSchema": _bandwidth,
                "enableMonitoring": flag,
            }
        ),
        "memoryPolicy": members({"mode": one_of(MEMORY_MODES), "nodes": text, "flags": array(one_of(MEMORY_FLAGS))}),
        "personality": members({"domain": one_of(PERSONALITIES), "flags": strings}),
        "timeOffsets": members({"boottime": _offset, "monotonic": _offset}),
    }
)

_VM = members(
    {
        "hypervisor": members({"path": text, "parameters": strings}, "path"),
        "kernel": members({"path": text, "parameters": strings, "initrd": text}, "path"),
        "image": members({"path": text, "format": one_of(("raw", "qcow2", "vdi", "vmdk", "vhd"))}, "path format"),
        "hwConfig": members(
            {
                "deviceTree": text,
                "vcpus": uint32,
                "memory": uint64,
                "dtdevs": strings,
                "iomems": array(members({"firstGFN": uint64, "firstMFN": uint64, "nrMFNs": uint64}, "firstMFN nrMFNs")),
                "irqs": array(uint32),
            }
        ),
    },
    "kernel",
)


def _foreign(name: str) -> Any:
    def check(value: Any) -> Fault:
        from knarr.spec import platforms  # cold: a section for a platform that knarr does not run

        known: Fault = platforms.SECTIONS[name](value)
        return known

    return check


CONFIG = members(
    {
        "ociVersion": text,
        "root": members({"path": text, "readonly": flag}, "path"),
        "mounts": array(_mount),
        "process": PROCESS,
        "hostname": text,
        "domainname": text,
        "hooks": members(dict.fromkeys(HOOKS, _hooks)),
        "annotations": _annotations,
        "linux": LINUX,
        "vm": _VM,
        "windows": _foreign("windows"),
        "solaris": _foreign("solaris"),
        "zos": _foreign("zos"),
        "freebsd": _foreign("freebsd"),
    },
    "ociVersion",
)

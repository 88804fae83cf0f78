"""The shape of what knarr reads but does not run, or only writes (cold): other platforms' sections, features.

runtime-spec 1.3: config-windows.md, config-solaris.md, config-zos.md, config-freebsd.md, features.md and
features-linux.md, by their JSON schemas.
"""

from __future__ import annotations

from knarr.spec.runtime import (
    MEMORY_FLAGS,
    MEMORY_MODES,
    NAMESPACES,
    SECCOMP_ACTIONS,
    SECCOMP_ARCHES,
    SECCOMP_FLAGS,
    SECCOMP_OPERATORS,
)
from knarr.spec.shape import (
    anything,
    array,
    flag,
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

_WINDOWS = members(
    {
        "layerFolders": array(text, least=1),
        "devices": array(members({"id": text, "idType": one_of(("class",))}, "id idType")),
        "resources": members(
            {
                "memory": members({"limit": uint64}),
                "cpu": members(
                    {
                        "count": uint64,
                        "shares": uint16,
                        "maximum": uint16,
                        "affinity": members({"mask": uint64, "group": uint32}),
                    }
                ),
                "storage": members({"iops": uint64, "bps": uint64, "sandboxSize": uint64}),
            }
        ),
        "network": members(
            {
                "endpointList": strings,
                "allowUnqualifiedDNSQuery": flag,
                "DNSSearchList": strings,
                "networkSharedContainerName": text,
                "networkNamespace": text,
            }
        ),
        "credentialSpec": anything,
        "servicing": flag,
        "ignoreFlushesDuringBoot": flag,
        "hyperv": members({"utilityVMPath": text}),
    },
    "layerFolders",
)

_ANET = "linkname lowerLink allowedAddress configureAllowedAddress defrouter macAddress linkProtection"
_SOLARIS = members(
    {
        "milestone": text,
        "limitpriv": text,
        "maxShmMemory": text,
        "cappedCPU": members({"ncpus": text}),
        "cappedMemory": members({"physical": text, "swap": text}),
        "anet": array(members(dict.fromkeys(_ANET.split(), text))),
    }
)

_ZOS = members({"namespaces": array(members({"type": one_of(("mount", "pid", "uts", "ipc")), "path": text}, "type"))})

_SHARING = one_of(("disable", "new", "inherit"))
_SHARING_NO_DISABLE = one_of(("new", "inherit"))
_FREEBSD = members(
    {
        "devices": array(members({"path": text, "mode": integer(0, 0o777)})),
        "jail": members(
            {
                "parent": text,
                "host": _SHARING_NO_DISABLE,
                "ip4": _SHARING,
                "ip4Addr": strings,
                "ip6": _SHARING,
                "ip6Addr": strings,
                "vnet": _SHARING_NO_DISABLE,
                "interface": text,
                "vnetInterfaces": strings,
                "sysvmsg": _SHARING,
                "sysvsem": _SHARING,
                "sysvshm": _SHARING,
                "enforceStatfs": integer(0, 255),
                "allow": members(
                    {
                        "setHostname": flag,
                        "rawSockets": flag,
                        "chflags": flag,
                        "mount": strings,
                        "quotas": flag,
                        "socketAf": flag,
                        "mlock": flag,
                        "reservedPorts": flag,
                        "suser": flag,
                    }
                ),
            }
        ),
    }
)

SECTIONS = {"windows": _WINDOWS, "solaris": _SOLARIS, "zos": _ZOS, "freebsd": _FREEBSD}


def _capability(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    letters = value[4:]
    if value.startswith("CAP_") and letters and all("A" <= char <= "Z" or char == "_" for char in letters):
        return None
    return [("", f"is {shown(value)}, must be a capability such as CAP_CHOWN")]


_ENABLED = members({"enabled": flag})

FEATURES = members(
    {
        "ociVersionMin": text,
        "ociVersionMax": text,
        "hooks": strings,
        "mountOptions": strings,
        "annotations": mapping(text),
        "potentiallyUnsafeConfigAnnotations": strings,
        "linux": members(
            {
                "namespaces": array(one_of(NAMESPACES)),
                "capabilities": array(_capability),
                "cgroup": members({"v1": flag, "v2": flag, "systemd": flag, "systemdUser": flag, "rdma": flag}),
                "seccomp": members(
                    {
                        "enabled": flag,
                        "actions": array(one_of(SECCOMP_ACTIONS)),
                        "operators": array(one_of(SECCOMP_OPERATORS)),
                        "archs": array(one_of(SECCOMP_ARCHES)),
                        "knownFlags": array(one_of(SECCOMP_FLAGS)),
                        "supportedFlags": array(one_of(SECCOMP_FLAGS)),
                    }
                ),
                "apparmor": _ENABLED,
                "selinux": _ENABLED,
                # Stricter: features-linux.md describes these members, the schema does not.
                "intelRdt": members({"enabled": flag, "schemata": flag, "monitoring": flag}),
                "memoryPolicy": members({"modes": array(one_of(MEMORY_MODES)), "flags": array(one_of(MEMORY_FLAGS))}),
                "mountExtensions": members({"idmap": _ENABLED}),
                "netDevices": _ENABLED,
            }
        ),
    },
    "ociVersionMin ociVersionMax",
)

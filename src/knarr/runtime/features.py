"""The features document: what this version does (hot). runtime-spec features.md, features-linux.md."""

from __future__ import annotations

import posix

from knarr import __version__
from knarr.plan.mountopts import PROPAGATION
from knarr.plan.seccomp import ACTIONS, OPERATORS
from knarr.plan.seccomp_filter import FLAGS
from knarr.plan.syscalls import MACHINES
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.runtime import HOOKS, MEMORY_FLAGS, MEMORY_MODES, NAMESPACES, OCI_VERSION, OCI_VERSION_MIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Per-mount attributes, which exist in a recursive form too, and what goes to the file system or means nothing.
_ATTRIBUTES = (
    *("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "relatime", "norelatime"),
    *("strictatime", "nostrictatime", "nodiratime", "diratime", "nosymfollow", "symfollow"),
)
_OTHERS = (
    *("bind", "rbind", "remount", "defaults", "async", "sync", "dirsync", "loud", "silent", "mand", "nomand"),
    *("lazytime", "nolazytime", "iversion", "noiversion", "tmpcopyup", "idmap", "ridmap"),
    *("copy-symlink", "src-nofollow", "dest-nofollow"),
)


def features() -> dict[str, Any]:
    """Return the document."""
    return {
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION,
        "hooks": [*HOOKS],
        "mountOptions": _mount_options(),
        "annotations": {"knarr.version": __version__},
        "potentiallyUnsafeConfigAnnotations": [],  # none makes a container less confined
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": [*CAPABILITIES],
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(OPERATORS),
                "archs": sorted(MACHINES.get(posix.uname().machine, ())),
                "knownFlags": sorted(FLAGS),
                "supportedFlags": sorted(FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
            "memoryPolicy": {"modes": [*MEMORY_MODES], "flags": [*MEMORY_FLAGS]},
        },
    }


def _mount_options() -> list[str]:
    """Those of the specification's and crun's that mean something to the planner."""
    return sorted({*_ATTRIBUTES, *("r" + name for name in _ATTRIBUTES), *PROPAGATION, *_OTHERS})

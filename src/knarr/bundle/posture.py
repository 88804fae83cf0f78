"""The configuration every container of knarr starts from: the default posture of docs/bundle.md, as data.

``base_config`` is a function of the host's facts only; ``convert`` puts the image's and the user's wishes on top.
Each choice and its reason stands in the table of docs/bundle.md; a golden file (tests/bundle) holds the result.
"""

from __future__ import annotations

from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.defaults import MASKED_PATHS, READONLY_PATHS, default_mounts
from knarr.spec.runtime import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.bundle.options import Facts

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""Podman's eleven less CAP_SETFCAP: no MKNOD, NET_RAW, AUDIT_WRITE."""

# What runc's list lacks and other engines hide: GHSA-6fw5-f8r9-fgfm (interrupts), PLATYPUS (powercap).
EXTRA_MASKED = ("/proc/interrupts", "/sys/devices/virtual/powercap", "/sys/fs/selinux")


def base_config(facts: Facts) -> dict[str, Any]:
    """Return a new config.json without a process' arguments: the posture for a container with no options.

    It may be changed freely by the caller; the root is ``rootfs`` below the bundle.
    """
    namespaces = ["mount", "network", "uts", "pid", "ipc"]
    if facts.cgroup_namespace:
        namespaces.append("cgroup")
    if facts.time_namespace:
        namespaces.append("time")
    linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in namespaces]}
    if facts.uid_map:
        linux["namespaces"].append({"type": "user"})
        for key, lines in (("uidMappings", facts.uid_map), ("gidMappings", facts.gid_map)):
            linux[key] = [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in lines]
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if facts.cgroup_limits:
        resources["pids"] = {"limit": 2048}
    linux["resources"] = resources
    linux["sysctl"] = {
        # Ordinary users may ping and serve on port 80: both only inside the container's own network.
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": f"0 {_last_group(facts)}",
    }
    linux["maskedPaths"] = [*MASKED_PATHS, *EXTRA_MASKED, *facts.thermal_paths]
    linux["readonlyPaths"] = [*READONLY_PATHS]
    granted = list(default_capabilities(facts))
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": [],
            "env": [],
            "cwd": "/",
            "capabilities": {
                "bounding": granted,
                "effective": list(granted),
                "permitted": list(granted),
                "inheritable": [],  # CVE-2022-24769
                "ambient": [],
            },
            "rlimits": [
                {
                    "type": "RLIMIT_NOFILE",
                    "soft": min(1024, facts.nofile_hard),
                    "hard": min(524288, facts.nofile_hard),
                }
            ],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": base_mounts(facts),
        "linux": linux,
    }


def default_capabilities(facts: Facts) -> tuple[str, ...]:
    """The ten default capabilities, less what this host cannot hand out."""
    return tuple(name for name in DEFAULT_CAPABILITIES if not facts.capabilities or name in facts.capabilities)


def all_capabilities(facts: Facts) -> tuple[str, ...]:
    """Every capability this host can hand out, in the kernel's order."""
    return tuple(name for name in CAPABILITIES if not facts.capabilities or name in facts.capabilities)


def base_mounts(facts: Facts) -> list[dict[str, Any]]:
    """The mounts of /proc, /dev, /sys and below; group 5 of devpts only where it is mapped."""
    mounts = default_mounts()
    for mount in mounts:
        if mount["destination"] == "/proc":
            mount["options"] = ["nosuid", "noexec", "nodev"]
        if mount["type"] == "devpts" and facts.gid_map and not _mapped(5, facts.gid_map):
            mount["options"].remove("gid=5")
    if not facts.cgroup_namespace:
        # Without a namespace of its own the mount would show the host's whole tree (CVE-2023-25809).
        mounts = [mount for mount in mounts if mount["type"] != "cgroup"]
    return mounts


def host_sys() -> dict[str, Any]:
    """The host's /sys, read-only to its last submount: for a user namespace without a network namespace of its own."""
    options = ["rbind", "rro", "rnosuid", "rnoexec", "rnodev", "rprivate"]
    return {"destination": "/sys", "type": "bind", "source": "/sys", "options": options}


def _mapped(number: int, lines: tuple[tuple[int, int, int], ...]) -> bool:
    return any(inside <= number < inside + count for inside, _, count in lines)


def _last_group(facts: Facts) -> int:
    """The highest group that may ping: the kernel wants one that is mapped."""
    last = 0
    for inside, _, count in sorted(facts.gid_map):
        if inside > last + 1:
            break
        last = max(last, inside + count - 1)
    return last if facts.gid_map else 2147483647

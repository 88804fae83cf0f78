"""The config.json to start from: what ``runc spec`` writes (hot).

Follows the newest runc, which gives no ambient capabilities (CVE-2022-29162 and its family).
"""

from __future__ import annotations

from knarr.spec.runtime import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def default_mounts() -> list[dict[str, Any]]:
    """Return the seven mounts a Linux program expects: /proc, /dev and three below it, /sys, cgroups."""
    quiet = ["nosuid", "noexec", "nodev"]
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": devpts},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": [*quiet]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [*quiet, "relatime", "ro"],
        },
    ]


def default_config(*, rootless_ids: tuple[int, int] | None = None, cgroup_namespace: bool = False) -> dict[str, Any]:
    """Return a new config.json document that runs ``sh`` in ``rootfs``; the caller may change it freely.

    ``rootless_ids`` (effective uid, gid) makes it one for a user without rights: a user namespace that maps only
    them to 0, the host's network and /sys, no resources (``runc spec --rootless``). ``cgroup_namespace`` adds one,
    as runc does on hosts with cgroup v2 only.
    """
    namespaces = ["pid", "network", "ipc", "uts", "mount"]
    if cgroup_namespace:
        namespaces.append("cgroup")
    linux: dict[str, Any] = {}
    mounts = default_mounts()
    if rootless_ids is None:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    else:
        namespaces.remove("network")
        namespaces.append("user")
        uid, gid = rootless_ids
        linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
        mounts[2]["options"].remove("gid=5")  # group 5 is not mapped
        # A new sysfs needs a network namespace of one's own; the host's, bound, needs none.
        mounts[5] = {
            "destination": "/sys",
            "type": "none",
            "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }
    linux["namespaces"] = [{"type": name} for name in namespaces]
    linux["maskedPaths"] = [*MASKED_PATHS]
    linux["readonlyPaths"] = [*READONLY_PATHS]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: [*CAPABILITIES] for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runc",
        "mounts": mounts,
        "linux": linux,
    }

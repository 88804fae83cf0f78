"""What planning must know of this machine: facts in a record, gathered by runtime/probe.py (hot, pure)."""

from __future__ import annotations

from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.plan.cgroup import CgroupHost


HOOK_OUTPUTS = ("run.oci.hooks.stdout", "run.oci.hooks.stderr")
"""crun's annotations: files that hooks write their standard output and standard error to."""
LANDLOCK = "org.knarr.landlock"
"""The annotation with a container's Landlock rules (docs/config.md)."""


class Host(Record):
    """The facts a plan depends on; none is read while planning."""

    euid: int
    egid: int
    arch: str  # "x86_64" or "aarch64"
    kernel: tuple[int, int]
    in_userns: bool  # this process is not in the initial user namespace
    cgroup: CgroupHost | None = None
    apparmor: bool = False
    selinux: bool = False
    kcore: bool = True  # /proc/kcore exists, so /dev/core is made
    capabilities: int = -1  # those permitted to this process, a bit each
    bounding: int = -1  # its bounding set
    setgroups_denied: bool = False  # in this process's user namespace and those below it (user_namespaces(7))
    landlock: int = 0  # the version of Landlock; gathered only for a container with rules

    @property
    def privileged(self) -> bool:
        """Root in the initial user namespace."""
        return self.euid == 0 and not self.in_userns

"""Gather what planning must know of this machine, each fact read once (hot)."""

from __future__ import annotations

import posix

from knarr.base.paths import exists
from knarr.kernel.process import in_user_namespace
from knarr.plan.host import LANDLOCK, Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def probe_for(config: dict[str, Any], host: Host | None) -> Host:
    """The facts for one container: ``host``, or else gathered now, and what only its own config makes of interest."""
    facts = probe() if host is None else host
    if LANDLOCK in (config.get("annotations") or {}):
        from knarr.kernel.landlock import landlock_version  # cold: only with rules

        facts = facts.replace(landlock=landlock_version())
    return facts


def probe() -> Host:
    """Return the facts. Raises FileError, KernelError when /proc cannot be read."""
    from knarr.runtime import cgroup_probe

    name = posix.uname()
    in_userns = in_user_namespace()
    numbers = name.release.split("-")[0].split(".")
    status = _content("/proc/self/status")
    return Host(
        euid=posix.geteuid(),
        egid=posix.getegid(),
        arch=name.machine,
        kernel=(_number(numbers[0]), _number(numbers[1]) if len(numbers) > 1 else 0),
        in_userns=in_userns,
        cgroup=cgroup_probe.probe(),
        apparmor=_content("/sys/module/apparmor/parameters/enabled").startswith(b"Y"),
        selinux=exists("/sys/fs/selinux/enforce"),
        kcore=exists("/proc/kcore"),
        capabilities=_mask(status, b"\nCapPrm:"),
        bounding=_mask(status, b"\nCapBnd:"),
        setgroups_denied=in_userns and _content("/proc/self/setgroups").startswith(b"deny"),
    )


def _mask(status: bytes, name: bytes) -> int:
    return int(status.partition(name)[2][:17] or b"-1", 16)


def _number(text: str) -> int:
    digits = "".join(char for char in text if char.isdigit())
    return int(digits) if digits else 0


def _content(path: str) -> bytes:
    """The first bytes of a small file of the kernel; empty when it is not there."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return posix.read(fd, 4096)
    finally:
        posix.close(fd)

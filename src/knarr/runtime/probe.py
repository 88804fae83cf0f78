"""Gather what planning must know of this machine, each fact read once (hot)."""

from __future__ import annotations

import os

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

    name = os.uname()
    in_userns = in_user_namespace()
    numbers = name.release.split("-")[0].split(".")
    status = _content("/proc/self/status")
    return Host(
        euid=os.geteuid(),
        egid=os.getegid(),
        arch=name.machine,
        kernel=(_number(numbers[0]), _number(numbers[1]) if len(numbers) > 1 else 0),
        in_userns=in_userns,
        cgroup=cgroup_probe.probe(),
        apparmor=_content("/sys/module/apparmor/parameters/enabled").startswith(b"Y"),
        selinux=os.path.exists("/sys/fs/selinux/enforce"),
        kcore=os.path.exists("/proc/kcore"),
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
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)

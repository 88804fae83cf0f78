"""Landlock: which version this kernel has (cold). landlock_create_ruleset(2)."""

from __future__ import annotations

from errno import ENOSYS, EOPNOTSUPP

from knarr.base.errors import KernelError
from knarr.kernel.ffi import syscall


def landlock_version() -> int:
    """The version of Landlock, 1 or more; 0 when the kernel has none or it is not enabled."""
    try:
        return syscall("landlock_create_ruleset", None, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION
    except KernelError as error:
        if error.errno in (ENOSYS, EOPNOTSUPP):
            return 0
        raise

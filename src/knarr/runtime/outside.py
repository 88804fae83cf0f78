"""What is done to a process from outside, because root of its user namespace may not do it itself (cold).

Limits, scheduler and I/O priority take capabilities in the initial user namespace (capabilities(7)); the runtime has
them. The operations are those the init would carry out; the process waits meanwhile.
"""

from __future__ import annotations

from errno import EINVAL, EPERM
from resource import prlimit

from knarr.kernel.process import set_io_priority, set_scheduler
from knarr.runtime.explain import init_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.plan.ops import Op


def carry_out(pid: int, operations: Iterable[Op]) -> None:
    """Do them to ``pid``, which must be a child of ours that is not reaped. Raises InitError."""
    for op in operations:
        try:
            if op.kind == "rlimit":
                _limit(pid, *op.ints)
            elif op.kind == "scheduler":
                set_scheduler(pid, *op.ints)
            else:
                set_io_priority(pid, *op.ints)
        except (OSError, ValueError) as error:
            # resource raises a ValueError of its own for what the kernel says with an errno
            number = getattr(error, "errno", None) or (EPERM if "allowed" in str(error) else EINVAL)
            raise init_error(op.kind, op.arguments(), op.pointer, number, b"") from None


def _limit(pid: int, resource: int, soft: int, hard: int) -> None:
    # RLIM_INFINITY is -1 for Python, 2**64 - 1 in config.json.
    soft, hard = (-1 if value >= (1 << 64) - 1 else value for value in (soft, hard))
    prlimit(pid, resource, (soft, hard))

"""What glibc's malloc keeps of freed memory, and how to have less of it: mallopt(3), malloc_trim(3).

Threads get heaps of their own, and blocks of a few hundred kilobytes that come and go leave holes in each: after
gigabytes of layers that was half of what knarr had resident. Other C libraries have neither call; nothing is done then.
"""

from __future__ import annotations

from knarr.kernel.ffi import library_call

_ARENA_MAX = -8


def one_heap() -> None:
    """All threads of this process share one heap; for programs of ours, not for those that import us."""
    library_call("mallopt", _ARENA_MAX, 1)


def trim() -> None:
    """Give the pages of freed blocks back to the kernel; some tenths of a millisecond."""
    library_call("malloc_trim", 0)

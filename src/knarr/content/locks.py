"""Locks on the store's files, waited for with a bound, and what is said when one cannot be had."""

from __future__ import annotations

import os
from contextlib import contextmanager
from errno import EACCES, EINVAL, ENOENT, ENOSPC, EROFS
from time import monotonic, sleep

from knarr.base.errors import FileError, InUse
from knarr.base.files import Lock, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT = 60.0
"""Seconds to wait for a lock of another process that makes no progress."""

POLL = 0.02


@contextmanager
def held(path: str, *, shared: bool, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold flock on ``path`` within ``timeout`` seconds; raises InUse with the holder, FileError."""
    lock = Lock(path, shared=shared, wait=False)
    deadline = monotonic() + timeout
    while True:
        try:
            lock.acquire()
            break
        except InUse:
            if monotonic() >= deadline:
                raise InUse("lock", path, holder(path)) from None
            sleep(POLL)
        except FileError as error:
            if error.number != ENOENT:
                raise
            if shared and not os.access(os.path.dirname(path), os.W_OK):
                yield  # a store nobody here can change has no lock file, and needs none
                return
            number = cannot_create(path) or ENOENT
            raise FileError("lock", path, number, hint=store_hint(number)) from None
    try:
        yield
    finally:
        lock.release()


def holder(path: str) -> str:
    """Say which processes hold flock on a file, from /proc/locks (proc_locks(5))."""
    try:
        facts = os.stat(path)
        table = read_file("/proc/locks", 4 << 20).decode("ascii", "replace")
    except (OSError, FileError):
        return "another process"
    file = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    pids = sorted({row.split()[4] for row in table.splitlines() if " FLOCK " in row and f" {file} " in row})
    return f"process {', '.join(pids)}" if pids else "another process"


def cannot_create(path: str) -> int:
    """Return the errno with which ``path`` cannot be made, 0 if it can: Lock hides it behind its second try."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        return error.errno or EINVAL
    return 0


def store_hint(number: int | None) -> str:
    """Say what to do about an error of writing to a store."""
    if number == ENOSPC:
        return "nothing was kept; free some space and pull again"
    if number in (EROFS, EACCES):
        return "the store must be on a file system this user can write to"
    return ""

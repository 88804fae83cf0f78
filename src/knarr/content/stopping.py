"""Work in one thread that another thread may stop: readers and writers ask at every block whether to go on.

A ``Stop`` belongs to the context in which the work runs (PEP 567), so that nothing between the caller and the reader
has to hand it down. What is opened there keeps it, also when a thread of its own reads it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from knarr.base.errors import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")


class Stop:
    """Whether some work is to stop; ``ask`` from any thread."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.asked = False
        self._lock = Lock()
        self._breaks: list[Callable[[], None]] = []

    def run(self, work: Callable[[], T]) -> T:
        """Do the work in this thread; raises what it raises, Interrupted once it is to stop."""
        token = _current.set(self)
        try:
            self.check()
            return work()
        finally:
            _current.reset(token)

    def ask(self) -> None:
        """Let the work end at its next block, and break off what waits for others."""
        with self._lock:
            self.asked = True
            breaks = list(self._breaks)
        for one in breaks:
            one()

    def check(self) -> None:
        """Raise Interrupted once it is to stop."""
        if self.asked:
            raise Interrupted(f"{self.what} was stopped")

    def watch(self, abort: Callable[[], None]) -> None:
        """Have ``abort`` called, from another thread, when it is to stop; at once if it is already."""
        with self._lock:
            self._breaks.append(abort)
            asked = self.asked
        if asked:
            abort()

    def unwatch(self, abort: Callable[[], None]) -> None:
        """Call it no more; fine if it never was to be. One call may still be under way."""
        with self._lock:
            if abort in self._breaks:
                self._breaks.remove(abort)

    @contextmanager
    def breaking(self, abort: Callable[[], None]) -> Iterator[None]:
        """Have ``abort`` called when it is to stop meanwhile; it comes from another thread."""
        self.check()
        self.watch(abort)
        try:
            yield
        finally:
            self.unwatch(abort)


_current: ContextVar[Stop | None] = ContextVar("knarr-stop", default=None)


def current() -> Stop | None:
    """What may stop the work this thread does, if anything."""
    return _current.get()


def check() -> None:
    """Raise Interrupted when the work of this thread is to stop."""
    stop = _current.get()
    if stop is not None:
        stop.check()


@contextmanager
def breaking(abort: Callable[[], None]) -> Iterator[None]:
    """As ``Stop.breaking`` of the work this thread does; nothing when nobody can stop it."""
    stop = _current.get()
    if stop is None:
        yield
        return
    with stop.breaking(abort):
        yield


def checked(told: Callable[..., None] | None) -> Callable[..., None] | None:
    """A progress callback, for any thread, that also ends the work of this one's context when that is to stop."""
    stop = _current.get()
    if stop is None:
        return told

    def both(*facts: Any) -> None:
        stop.check()
        if told is not None:
            told(*facts)

    return both

"""Layers made two at a time: what each waits for, the other one uses."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

_THREADS = 2


def two_at_a_time(work: Callable[[T], None], items: Iterable[T], failures: list[BaseException]) -> None:
    """Do ``work`` for all of ``items``, begun in their order, in two threads; for a single one, in this thread.

    What goes wrong first, Ctrl-C included, is put into ``failures``, which ``work`` is to look at and end, and is
    raised when all have ended.
    """
    todo = list(items)
    if len(todo) < 2:
        for item in todo:
            work(item)
        return
    from threading import Lock, Thread

    queue, turn = iter(todo), Lock()

    def run() -> None:
        while not failures:
            with turn:
                item = next(queue, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001  # raised again in the calling thread
                failures.append(error)

    threads = [Thread(target=run, name="knarr-layer", daemon=True) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        failures.insert(0, error)
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]

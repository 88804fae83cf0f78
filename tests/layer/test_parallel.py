"""Two layers at a time: all are done, and what goes wrong ends the others and is told."""

from __future__ import annotations

import threading
import time

import pytest

from knarr.layer.parallel import two_at_a_time


def test_all_are_done_two_at_a_time() -> None:
    at_once: list[int] = []
    now, lock, done = 0, threading.Lock(), []

    def work(item: int) -> None:
        nonlocal now
        with lock:
            now += 1
            at_once.append(now)
        time.sleep(0.02)
        with lock:
            now -= 1
            done.append(item)

    two_at_a_time(work, range(7), [])
    assert sorted(done) == list(range(7))
    assert max(at_once) == 2


def test_one_needs_no_thread() -> None:
    names: list[str] = []
    two_at_a_time(lambda _item: names.append(threading.current_thread().name), [0], [])
    two_at_a_time(lambda _item: names.append("never"), [], [])
    assert names == [threading.current_thread().name]


def test_the_first_failure_ends_the_rest() -> None:
    failures: list[BaseException] = []
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        deadline = time.monotonic() + 20
        while not failures and time.monotonic() < deadline:
            time.sleep(0.005)
        raise RuntimeError("stopped")

    with pytest.raises(ValueError, match="one"):
        two_at_a_time(work, range(100), failures)
    assert sorted(begun) == [0, 1]
    assert len(failures) == 2

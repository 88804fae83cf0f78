"""``knarr.aio``: many at once without a thread for each, cancelling, time limits, Container."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import enginekit
import pytest

from knarr.base.errors import CommandNotFound, TimedOut
from knarr.engine import aio

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[dict[str, Any]]:
    """Keyword arguments for a store and state of one's own."""
    folder = enginekit.new_folder()
    try:
        yield {"store": str(folder / "store"), "state_dir": str(folder / "run")}
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)


def test_run(image: str, place: dict[str, Any]) -> None:
    async def work() -> None:
        data = os.urandom(200_000)
        result = await aio.run(image, ["sh", "-c", "cat; echo e >&2; exit 4"], input=data, **place)
        assert (result.exit_code, result.stdout, result.stderr) == (4, data, b"e\n")
        assert result.timings.start > 0
        bounded = await aio.run(image, ["sh", "-c", "yes | head -c 100000"], output_limit=10, **place)
        assert (bounded.stdout, bounded.truncated) == (b"y\ny\ny\ny\ny\n", True)
        with pytest.raises(CommandNotFound):
            await aio.run(image, ["nosuch"], **place)

    asyncio.run(work())


def test_thirty_at_once_without_thirty_threads(image: str, place: dict[str, Any]) -> None:
    most = 0
    others = threading.active_count()  # what tests before this one have left: servers' threads end when they please

    async def one(number: int) -> bytes:
        nonlocal most
        result = await aio.run(image, ["sh", "-c", f"sleep 1; echo {number}"], **place)
        most = max(most, threading.active_count())
        return result.stdout

    async def work() -> list[bytes]:
        await aio.run(image, ["true"], **place)
        return await asyncio.gather(*(one(number) for number in range(30)))

    before = time.monotonic()
    assert asyncio.run(work()) == [f"{number}\n".encode() for number in range(30)]
    assert time.monotonic() - before < 25  # one after the other they would sleep 30 s
    assert most - others <= min(32, (os.cpu_count() or 1) + 4) + 1  # the loop's own pool and nothing else


def test_cancelling_kills_and_removes(image: str, place: dict[str, Any]) -> None:
    async def work() -> None:
        for delay in (0.0, 0.005, 0.02, 0.3):
            task = asyncio.create_task(aio.run(image, ["sleep", "1000"], **place))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())  # the fixture looks for what is left


def test_time_limit(image: str, place: dict[str, Any]) -> None:
    async def work() -> None:
        with pytest.raises(TimedOut) as caught:
            await aio.run(image, ["sh", "-c", "echo first; exec sleep 100"], timeout=0.7, **place)
        assert caught.value.stdout == b"first\n"

    asyncio.run(work())


def test_container(image: str, place: dict[str, Any]) -> None:
    async def work() -> None:
        box = aio.Container(image, ["sh", "-c", "echo begun; exec sleep 100"], **place)
        assert box.state == "new"
        async with box:
            assert box.state == "running"
            assert box.pid > 0
            results = await asyncio.gather(*(box.exec(["sh", "-c", f"echo {n}; exit {n}"]) for n in range(5)))
            assert [(one.exit_code, one.stdout) for one in results] == [(n, f"{n}\n".encode()) for n in range(5)]
            assert (await box.exec(["cat"], input=b"given")).stdout == b"given"
            with pytest.raises(CommandNotFound):
                await box.exec(["nosuch"])
            with pytest.raises(TimedOut):
                await box.exec(["sleep", "50"], timeout=0.3)
            with pytest.raises(TimedOut, match="it goes on"):
                await box.wait(0.1)
            waiters = [asyncio.create_task(box.wait()) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert box.kill("KILL")
            codes = {(await waiter).exit_code for waiter in waiters}
            assert codes == {137}
            assert box.state == "exited"
            assert box.stdout() == b"begun\n"

    asyncio.run(work())


def test_no_descriptor_is_lost(image: str, place: dict[str, Any]) -> None:
    async def work() -> None:
        await aio.run(image, ["true"], **place)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await aio.run(image, ["echo", "x"], input=b"y", **place)
            async with aio.Container(image, ["sleep", "9"], **place) as box:
                await box.exec(["true"])
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(work())

"""Files that begin to go to the disk while they are written."""

from __future__ import annotations

import os
import tempfile

import pytest

from knarr.base.errors import KernelError
from knarr.kernel import disk
from knarr.kernel.ffi import syscall

STEP = 8 << 20


@pytest.mark.parametrize("start", [0, 1000])
def test_whole_steps_are_begun_each_once(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    asked: list[tuple[int, ...]] = []

    def watched(name: str, *arguments: int) -> int:
        asked.append(arguments[1:3])
        return syscall(name, *arguments)  # the kernel takes it, too

    monkeypatch.setattr(disk, "syscall", watched)
    with tempfile.TemporaryFile(dir="/var/tmp") as file:  # a disk's, not /tmp, which may be in memory
        file.seek(start)
        writeback = disk.Writeback(file.fileno(), start)
        for _ in range(20):
            writeback.wrote(os.write(file.fileno(), bytes(1 << 20)))
    assert asked == [(start, STEP), (start + STEP, STEP)]


def test_where_the_kernel_refuses_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuses(name: str, *_arguments: int) -> int:
        asked.append(name)
        raise KernelError(name, "", 1)

    monkeypatch.setattr(disk, "syscall", refuses)
    disk.Writeback(0).wrote(STEP)
    assert asked == ["sync_file_range"]

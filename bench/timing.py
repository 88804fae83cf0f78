"""Interleaved measurements: every contender runs once per round, so drift of the machine hits all alike."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Figures:
    """Wall times in milliseconds of one contender, and its peak memory in KiB (0: not known)."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.peak = 0

    @property
    def least(self) -> float:
        return min(self.wall)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def command(*argv: str, check: bool = True) -> Callable[[], None]:
    """A contender that is a program: spawned without a shell, output thrown away."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def once() -> None:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        if check and status:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")

    return once


def peak_of(*argv: str) -> int:
    """The peak memory of a program and its children in KiB, by busybox's ``time -v``; 0 where there is none.

    Not from our own wait4: a child's figure begins with what its parent has, and we are large.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        return 0
    done = subprocess.run([busybox, "time", "-v", *argv], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    line = next(line for line in done.stderr.splitlines() if b"Maximum resident set size" in line)
    return int(line.split()[-1]) * 1024 // os.sysconf("SC_PAGESIZE")  # it takes the kernel's KiB for pages


def interleave(contenders: dict[str, Callable[[], None]], *, rounds: int, warmup: int = 2) -> dict[str, Figures]:
    """Run all contenders in turn, ``rounds`` times after ``warmup`` uncounted rounds."""
    figures = {name: Figures() for name in contenders}
    for number in range(rounds + warmup):
        for name, once in contenders.items():
            start = time.perf_counter()
            once()
            wall = (time.perf_counter() - start) * 1000
            if number >= warmup:
                figures[name].wall.append(wall)
    return figures


def table(title: str, figures: dict[str, Figures], base: Sequence[str]) -> str:
    """A Markdown table with the ratio of medians (and of minima) to each of ``base``."""
    lines = [f"### {title}", ""]
    heads = ["", "min ms", "median ms", *[f"÷ {name} (median / min)" for name in base], "peak MiB"]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, figure in figures.items():
        ratios = [
            f"{figure.median / figures[other].median:.2f} / {figure.least / figures[other].least:.2f}" for other in base
        ]
        peak = f"{figure.peak / 1024:.1f}" if figure.peak else ""
        lines.append("| " + " | ".join([name, f"{figure.least:.1f}", f"{figure.median:.1f}", *ratios, peak]) + " |")
    return "\n".join(lines) + "\n"

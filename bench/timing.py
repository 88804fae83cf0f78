"""Interleaved measurements: every contender runs once per round, so drift of the machine hits all alike."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Figures:
    """Wall times in milliseconds of one contender, and the largest peak memory of its children in KiB."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.peak = 0

    @property
    def least(self) -> float:
        return min(self.wall)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def command(*argv: str, check: bool = True) -> Callable[[], int]:
    """A contender that is a program: spawned without a shell, output thrown away; returns its peak memory in KiB."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def once() -> int:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        if check and status:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")
        return usage.ru_maxrss

    return once


def interleave(contenders: dict[str, Callable[[], int | None]], *, rounds: int, warmup: int = 2) -> dict[str, Figures]:
    """Run all contenders in turn, ``rounds`` times after ``warmup`` uncounted rounds."""
    figures = {name: Figures() for name in contenders}
    for number in range(rounds + warmup):
        for name, once in contenders.items():
            start = time.perf_counter()
            peak = once()
            wall = (time.perf_counter() - start) * 1000
            if number >= warmup:
                figures[name].wall.append(wall)
                figures[name].peak = max(figures[name].peak, peak or 0)
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

"""Measurements as an SVG picture: one group of bars a job, one bar a contender, its least over its median."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from timing import Figures

_COLOURS = ("#1f6feb", "#bc4c00", "#8250df", "#57606a", "#1a7f37", "#bf3989")
_LEFT, _WIDTH, _BAR, _GAP = 210, 560, 16, 18


def write(path: Path, title: str, jobs: Mapping[str, Mapping[str, Figures]], unit: str = "ms") -> None:
    """Write the picture. ``jobs``: title -> contender -> figures in milliseconds, or what ``unit`` says."""
    names = list(dict.fromkeys(name for figures in jobs.values() for name in figures))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    longest = max(figure.median for figures in jobs.values() for figure in figures.values())
    step = _round(longest / 5)
    scale = _WIDTH / (longest * 1.02)
    body: list[str] = []
    y = 64
    for job, figures in jobs.items():
        height = _BAR * len(figures)
        body.append(_text(_LEFT - 10, y + height / 2 + 3, job, "end"))
        for name, figure in figures.items():
            long, short = figure.median * scale, figure.least * scale
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{long:.1f}" height="{_BAR - 3}" fill="{colours[name]}44"/>')
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{short:.1f}" height="{_BAR - 3}" fill="{colours[name]}"/>')
            body.append(_text(_LEFT + long + 5, y + 11, f"{figure.least:.1f} / {figure.median:.1f}", "start", 10))
            y += _BAR
        y += _GAP
    lines = []
    at = 0.0
    while at <= longest:
        x = _LEFT + at * scale
        lines.append(f'<line x1="{x:.1f}" y1="56" x2="{x:.1f}" y2="{y - _GAP + 4}" stroke="#d0d7de"/>')
        lines.append(_text(x, y + 2, f"{at:g}", "middle", 10))
        at += step
    x = _LEFT
    keys = []
    for name in names:
        keys.append(f'<rect x="{x}" y="34" width="11" height="11" fill="{colours[name]}"/>{_text(x + 16, 44, name)}')
        x += 34 + 7 * len(name)
    head = _text(_LEFT, 20, title, "start", 14)
    foot = _text(_LEFT + _WIDTH, y + 18, f"{unit}: least (dark) / median", "end", 10)
    size = f'width="{_LEFT + _WIDTH + 110}" height="{y + 28}"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    style = 'font-family="sans-serif" font-size="12" fill="#1f2328"'
    parts = "\n".join([paper, head, *keys, *lines, *body, foot])
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{parts}\n</svg>\n')


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _round(value: float) -> float:
    """A step of 1, 2 or 5 times a power of ten."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    return next((power * factor for factor in (1, 2, 5) if power * factor >= value), power * 10)

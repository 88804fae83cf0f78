"""What commands print: tables for people, JSON and templates for programs.

Nothing from an image or a registry reaches the terminal with control characters in it.
"""

from __future__ import annotations

import os
import sys
import time

from knarr.base import fastjson
from knarr.base.clock import parse_rfc3339
from knarr.cli.template import Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def put(text: str, *, end: str = "\n") -> None:
    """Write to standard output."""
    sys.stdout.write(text + end)


def say(text: str) -> None:
    """Write a line for people to standard error, so that output stays usable by programs."""
    sys.stderr.write(text + "\n")


def clean(text: str) -> str:
    """``text`` with control characters escaped: names and labels come from strangers."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def put_json(value: Any) -> None:
    """Print JSON, indented."""
    put(fastjson.dumps(value, indent=True).decode())


def put_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format: str, *, quiet: str = "") -> None:
    """Print rows (all with the same keys) as ``format`` says: ``table``, ``json``, a template, ``table TEMPLATE``.

    ``columns`` are the keys of the usual table; ``quiet`` names the one key to print alone. Raises UsageError for a
    template with a field that rows do not have.
    """
    if quiet:
        for row in rows:
            put(clean(str(row[quiet])))
    elif format == "json":
        put_json(list(rows))
    elif format in ("", "table"):
        put_table([heading(name) for name in columns], [[shown(row[name]) for name in columns] for row in rows])
    elif format.startswith("table "):
        template = Template(format.removeprefix("table "))
        # Fields are cleaned before they stand between the tabs that make the columns.
        lines = [template.render(_cleaned(row)).split("\t") for row in rows]
        put_table(template.headings().split("\t"), lines)
    else:
        template = Template(format)
        for row in rows:
            put(template.render(row))


def put_value(value: Any, format: str) -> None:
    """Print one object: JSON when ``format`` is "json" or empty, else by a template."""
    if format in ("", "json"):
        put_json(value)
    else:
        put(Template(format).render(value))


def heading(name: str) -> str:
    """``CreatedSince`` -> ``CREATED SINCE``, and the short words people know from other tools."""
    return Template(f"{{{{.{name}}}}}").headings()


def shown(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return clean(", ".join(map(str, value)))
    return clean(str(value))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item) for item in value]
    return value


def put_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, three blanks apart; the heading is bold on a terminal."""
    count = max([len(headings), *map(len, rows)])
    lines = [[*row, *[""] * (count - len(row))] for row in (headings, *rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(count)]
    for number, line in enumerate(lines):
        cells = [cell + " " * (widths[column] - _width(cell)) for column, cell in enumerate(line)]
        text = "   ".join(cells).rstrip()
        put(f"\033[1m{text}\033[0m" if number == 0 and colour(sys.stdout) else text)


def _width(text: str) -> int:
    """Columns of a terminal that ``text`` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def colour(stream: Any) -> bool:
    """Whether to use colour on a stream: a terminal, unless NO_COLOR is set."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def size(count: int) -> str:
    """Bytes for people, in powers of 1000: ``5.6 MB``."""
    if count < 1000:
        return f"{count} B"
    value, units = count / 1000, ["kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    unit = units[0]
    return f"{value:.3g} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def since(moment: str, now: float | None = None) -> str:
    """How long ago an RFC 3339 moment was: ``3 minutes ago``; empty for none, the text itself if it is no date."""
    if not moment:
        return ""
    try:
        seconds = (time.time() if now is None else now) - parse_rfc3339(moment) / 1e9
    except ValueError:
        return clean(moment)
    return "in the future" if seconds < -1 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """``2 hours`` and the like: one unit, as people say it."""
    if seconds < 1:
        return "less than a second"
    for unit, length in (
        ("year", 31_557_600),
        ("month", 2_629_800),
        ("week", 604_800),
        ("day", 86_400),
        ("hour", 3600),
        ("minute", 60),
        ("second", 1),
    ):
        count = int(seconds // length)
        # "18 days" says more than "2 weeks", "30 hours" more than "1 day".
        if count >= 2 or unit == "second":
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "a second"

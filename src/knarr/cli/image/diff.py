"""``knarr image diff``: every difference between two images."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, fetched, opened, wants_json
from knarr.cli.output import clean, put, put_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.imaging.compare import Difference

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def parse_diff() -> Parser:
    """The parser of ``knarr image diff``."""
    parser = Parser(
        "image diff",
        "Show every difference between two images: content, type, mode, owner, time, attributes and links of files,"
        " config, history, annotations. Ends with 1 when there is one.",
        "[--first] [--ignore-times] [--json] IMAGE IMAGE",
        "  knarr image diff app:1 app:2\n  knarr image diff --json docker://debian:12.1 docker://debian:12.2\n"
        "  knarr image diff --first oci:./built-here oci:./built-there",
    )
    parser.add_argument("--first", action="store_true",
                        help="of two builds that should be one: the first entry that differs")  # fmt: skip
    parser.add_argument("--ignore-times", action="store_true", help="modification times of files may differ")
    add_json(parser)
    add_platform(parser)
    parser.add_argument("one", metavar="IMAGE", help=SOURCES)
    parser.add_argument("two", metavar="IMAGE", help="what to compare it with")
    return parser


def do_diff(arguments: list[str]) -> int:
    """Compare."""
    given = parse_diff().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.compare import diff, first_difference

    with opened(given.one, given.platform) as one, opened(given.two, given.platform) as two:
        if given.first:
            first = first_difference(one, two)
            if as_json:
                put_json(None if first is None else first.told())
            elif first is not None:
                where = f"layer {first.layer}" if first.layer >= 0 else "documents"
                entry = f", entry {first.entry} {clean(first.path)}" if first.entry >= 0 else ""
                put(f"{where}{entry}: {first.why}")
                for line in _fields(first.fields):
                    put(f"    {line}")
            differ = first is not None
        else:
            found = diff(one, two, mtime=not given.ignore_times)
            if as_json:
                put_json([one.told() for one in found])
            else:
                for difference in found:
                    _show(difference)
            differ = bool(found)
        fetched(one, given.one)
        fetched(two, given.two)
    return 1 if differ else 0


def _show(difference: Difference) -> None:
    put(f"{_SIGNS[difference.what]} {difference.kind} {clean(difference.name)}".rstrip())
    for line in _fields(difference.fields):
        put(f"    {line}")


def _fields(fields: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}{': ' if name else ''}{_text(pair[0])} -> {_text(pair[1])}" for name, pair in fields.items()]


def _text(value: Any) -> str:
    from knarr.base import fastjson

    return clean(value) if isinstance(value, str) else clean(fastjson.dumps(value).decode())

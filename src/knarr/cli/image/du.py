"""``knarr image du``: bytes by layer, and how many of them nobody sees."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, add_whole, fetched, opened, wants_json
from knarr.cli.output import clean, put, put_json, put_table, size


def parse_du() -> Parser:
    """The parser of ``knarr image du``."""
    parser = Parser(
        "image du",
        "Show the bytes of each layer: compressed, its files, and those wasted on files that layers above replace.",
        "[--whole] [--json] IMAGE",
        "  knarr image du app:1\n  knarr image du --json docker://debian:12",
    )
    add_whole(parser)
    add_json(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_du(arguments: list[str]) -> int:
    """Count."""
    given = parse_du().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.look import usage

    with opened(given.image, given.platform) as image:
        told = usage(image, whole=given.whole)
        if as_json:
            put_json({**told, "fetched": image.fetched})
            return 0
        rows = [
            [
                str(row["layer"]),
                size(row["compressed"]),
                size(row["size"]),
                size(row["wasted"]),
                str(row["entries"]),
                str(row["whiteouts"]),
                clean(row["created_by"])[:60],
            ]
            for row in told["layers"]
        ]
        put_table(["LAYER", "COMPRESSED", "FILES", "WASTED", "ENTRIES", "WHITEOUTS", "CREATED BY"], rows)
        share = 100 * told["wasted"] / told["size"] if told["size"] else 0
        put(f"{size(told['compressed'])} compressed, {size(told['size'])} of files, "
            f"{size(told['wasted'])} wasted ({share:.1f} %)")  # fmt: skip
        fetched(image, given.image)
    return 0

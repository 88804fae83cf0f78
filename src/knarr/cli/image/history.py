"""``knarr image history``: what made an image, layer by layer."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_platform, opened
from knarr.cli.output import put_rows, since, size


def parse_history() -> Parser:
    """The parser of ``knarr image history``."""
    parser = Parser(
        "image history",
        "Show what made an image, the newest first; entries that made no layer have none.",
        "[--no-trunc] [--format FORMAT] IMAGE",
        "  knarr image history alpine\n  knarr image history --format json docker://debian:12",
    )
    parser.add_argument("--no-trunc", action="store_true", help="whole commands and digests")
    parser.add_argument("-f", "--format", default="table", metavar="FORMAT", help="table, json or a template")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="the same as --format json")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_history(arguments: list[str]) -> int:
    """Show the history."""
    given = parse_history().parse_args(arguments)
    from knarr.image.edit import history_places

    with opened(given.image, given.platform) as image:
        config = image.image_config()
        layers = image.layers
    by_place = {place: number for number, place in enumerate(history_places(config)) if place >= 0}
    told = [(entry, by_place.get(number, -1)) for number, entry in enumerate(config.get("history") or [])]
    silent = [number for number, place in enumerate(history_places(config)) if place < 0]
    rows = []
    for entry, number in [*told, *(({}, number) for number in silent)]:
        layer = layers[number] if number >= 0 else None
        text = str(entry.get("created_by") or "")
        rows.append(
            {
                "Layer": number if number >= 0 else "",
                "Digest": _cut(layer.digest if layer else "", 19, whole=given.no_trunc or given.format == "json"),
                "DiffID": layer.diff_id if layer else "",
                "Created": entry.get("created") or "",
                "CreatedSince": since(entry.get("created") or ""),
                "CreatedBy": _cut(text, 60, whole=given.no_trunc or given.format == "json"),
                "Size": (layer.size if layer else 0) if given.format == "json" else size(layer.size if layer else 0),
                "Author": entry.get("author") or "",
                "Comment": entry.get("comment") or "",
                "EmptyLayer": layer is None,
            }
        )
    put_rows(rows[::-1], ["Layer", "Digest", "CreatedSince", "Size", "CreatedBy", "Comment"], given.format)
    return 0


def _cut(text: str, limit: int, *, whole: bool) -> str:
    return text if whole or len(text) <= limit else text[: limit - 1] + "…"

"""``knarr image referrers``: what refers to an image: signatures, SBOMs, reports."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, wants_json
from knarr.cli.output import clean, put_json, put_table, size


def parse_referrers() -> Parser:
    """The parser of ``knarr image referrers``."""
    parser = Parser(
        "image referrers",
        "List what refers to an image or index, in a registry, layout or the store.",
        "[--type TYPE] [--json] IMAGE",
        "  knarr image referrers app:1\n  knarr image referrers --type application/spdx+json docker://ghcr.io/me/app:1",
    )
    parser.add_argument("--type", default="", metavar="TYPE", help="of this artifact type only")
    add_json(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_referrers(arguments: list[str]) -> int:
    """List."""
    given = parse_referrers().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.artifacts import referrers

    found = referrers(given.image, kind=given.type, platform=given.platform)
    if as_json:
        put_json(found)
        return 0
    rows = [
        [
            one["digest"],
            clean(one.get("artifactType", "")),
            size(one["size"]),
            clean(", ".join(f"{name}={value}" for name, value in sorted((one.get("annotations") or {}).items()))),
        ]
        for one in found
    ]
    put_table(["DIGEST", "TYPE", "SIZE", "ANNOTATIONS"], rows)
    return 0

"""``knarr image remove``: paths out of an image, without unpacking it."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import add_change, finish, opened


def parse_remove() -> Parser:
    """The parser of ``knarr image remove``."""
    parser = Parser(
        "image remove",
        "Hide paths of an image by a layer on top; knarr image squash takes their bytes out. Prints the new digest.",
        "[--to DEST] IMAGE PATH [PATH…]",
        "  knarr image remove --to app:slim app:1 /usr/share/doc /var/cache/apt\n"
        "  knarr image remove oci:./layout:v1 /etc/secret && knarr image squash oci:./layout:v1",
    )
    parser.add_argument("--missing-ok", action="store_true", help="paths that are not there are no error")
    parser.add_argument("--to", default="", metavar="DEST", help="the new image's name; IMAGE itself if not given")
    add_change(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a path in the image; a link is removed itself")
    return parser


def do_remove(arguments: list[str]) -> int:
    """Remove."""
    given = parse_remove().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        made = image.remove(
            given.paths, missing=given.missing_ok, compression=given.compress, created_by=given.created_by
        )
        return finish(made, given.image, given.to)

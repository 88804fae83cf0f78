"""``knarr image squash``: several layers made one."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_destination, add_platform, finish, opened


def parse_squash() -> Parser:
    """The parser of ``knarr image squash``."""
    parser = Parser(
        "image squash",
        "Make all layers of an image one, or those from a layer up; the files stay the same. Prints the new digest.",
        "[--from N] [--compress HOW] IMAGE [DEST]",
        "  knarr image squash app:1 app:flat\n  knarr image squash --from 3 --compress zstd:19 oci:./layout:v1",
    )
    parser.add_argument("--from", dest="start", type=int, default=0, metavar="N",
                        help="keep the layers below this one; the lowest is 0")  # fmt: skip
    parser.add_argument("--compress", default="gzip", metavar="HOW", help="gzip[:LEVEL], zstd[:LEVEL] or none")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    add_destination(parser)
    return parser


def do_squash(arguments: list[str]) -> int:
    """Squash."""
    given = parse_squash().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        return finish(image.squash(given.start, compression=given.compress), given.image, given.destination)

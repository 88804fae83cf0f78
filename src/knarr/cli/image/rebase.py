"""``knarr image rebase``: an image onto another base, no layer read."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_destination, add_platform, finish, opened
from knarr.spec import mediatypes


def parse_rebase() -> Parser:
    """The parser of ``knarr image rebase``."""
    parser = Parser(
        "image rebase",
        "Replace the layers of an image's base by those of a newer one; nothing is rebuilt. Prints the new digest.",
        "[--old BASE] --new BASE IMAGE [DEST]",
        "  knarr image rebase --old debian:12.1 --new debian:12.2 app:1 app:2",
    )
    parser.add_argument("--old", default="", metavar="BASE",
                        help="the base it is built on; if not given, the one its annotations name")  # fmt: skip
    parser.add_argument("--new", required=True, metavar="BASE", help="the base it shall be on")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    add_destination(parser)
    return parser


def do_rebase(arguments: list[str]) -> int:
    """Rebase."""
    given = parse_rebase().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        old = given.old or image.annotations.get(mediatypes.BASE_DIGEST, "")
        if not old:
            raise UsageError("the image does not say what it is built on", hint="name its base with --old")
        platform = given.platform or str(image.platform)
        with opened(old, platform) as before, opened(given.new, platform) as after:
            return finish(image.rebase(before, after), given.image, given.destination)

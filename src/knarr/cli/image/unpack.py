"""``knarr image unpack``: an image's files on disk, with what is needed to pack them again."""

from __future__ import annotations

import os

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_platform, opened
from knarr.cli.output import put, say


def parse_unpack() -> Parser:
    """The parser of ``knarr image unpack``."""
    parser = Parser(
        "image unpack",
        "Unpack an image to change it: a runtime bundle (rootfs, config.json), or its files alone, and a record of what"
        " they were, for knarr image repack. Needs no root.",
        "[--bare] IMAGE DIR",
        "  knarr image unpack app:1 ./bundle && touch ./bundle/rootfs/new && knarr image repack ./bundle app:2\n"
        "  knarr image unpack --bare oci:./layout:v1 ./files",
    )
    parser.add_argument("--bare", action="store_true", help="the files alone; the record is DIR.knarr-unpacked")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument("directory", metavar="DIR", help="a new or empty directory")
    return parser


def do_unpack(arguments: list[str]) -> int:
    """Unpack."""
    given = parse_unpack().parse_args(arguments)
    from knarr.bundle.options import RunOptions
    from knarr.engine.imaging.pack import unpack

    with opened(given.image, given.platform) as image:
        for note in unpack(image, given.directory, options=None if given.bare else RunOptions()):
            say(f"knarr image unpack: {note}")
    put(os.path.abspath(given.directory))
    return 0

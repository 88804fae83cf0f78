"""``knarr image cat``: one file of an image to standard output."""

from __future__ import annotations

import sys

from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_platform, add_whole, fetched, opened


def parse_cat() -> Parser:
    """The parser of ``knarr image cat``."""
    parser = Parser(
        "image cat",
        "Write a file of an image to standard output. Layers below the one that has it are not read.",
        "[--quick] [--whole] IMAGE PATH",
        "  knarr image cat alpine /etc/os-release\n  knarr image cat docker://debian:12 /etc/debian_version",
    )
    parser.add_argument("--quick", action="store_true",
                        help="stop as soon as the file has come, before its layer could be verified")  # fmt: skip
    add_whole(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument("path", metavar="PATH", help="a file in it; links are followed inside the image")
    return parser


def do_cat(arguments: list[str]) -> int:
    """Write a file."""
    given = parse_cat().parse_args(arguments)
    from knarr.engine.imaging.look import read_file

    with opened(given.image, given.platform) as image:
        data = read_file(image, given.path, quick=given.quick, whole=given.whole)
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        fetched(image, given.image)
    return 0

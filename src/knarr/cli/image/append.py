"""``knarr image append``: a tar as a layer on top."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import add_change, add_destination, finish, opened


def parse_append() -> Parser:
    """The parser of ``knarr image append``."""
    parser = Parser(
        "image append",
        "Put a tar archive on top of an image as one more layer. Prints the digest of the new image.",
        "[--compress HOW] --tar FILE [--tar FILE…] IMAGE [DEST]",
        "  knarr image append --tar site.tar.xz nginx:1 site:1\n"
        "  git archive HEAD | knarr image append --tar - scratch source:1",
    )
    parser.add_argument("-t", "--tar", action="append", required=True, metavar="FILE",
                        help="a tar, plain or in gzip, zstd, bzip2 or xz; - is standard input")  # fmt: skip
    parser.add_argument("--comment", default="", metavar="TEXT", help="a comment for the history")
    add_change(parser)
    add_destination(parser)
    return parser


def do_append(arguments: list[str]) -> int:
    """Append."""
    given = parse_append().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        made = image
        for path in given.tar:
            made = made.append(path, compression=given.compress, created_by=given.created_by, comment=given.comment)
        return finish(made, given.image, given.destination)

"""``knarr image save``: images of the store as one archive."""

from __future__ import annotations

import os

from knarr.cli.command import Parser
from knarr.cli.image.copy import options_from
from knarr.cli.output import say
from knarr.cli.progress import watching


def parse_save() -> Parser:
    """The parser of ``knarr image save``."""
    parser = Parser(
        "image save",
        "Write images of the store into one archive, which docker, podman, ctr, skopeo and knarr load.",
        "[-o FILE] [--format docker|oci] [--all] IMAGE…",
        "  knarr image save -o tools.tar tools:1 tools:2\n  knarr image save tools:1 | docker load",
    )
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="write there, not to standard output")
    parser.add_argument("--format", default="docker", metavar="docker|oci",
                        help="docker (default): with plain layers; oci: everything as it is")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="with oci: all platforms of an image")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name or id of an image of the store")
    return parser


def do_save(arguments: list[str]) -> int:
    """Save images."""
    given = parse_save().parse_args(arguments)
    from knarr.engine.archives import save
    from knarr.engine.paths import places

    options = options_from(given).replace(format="")
    path = given.output if given.output == "-" else os.path.abspath(given.output)
    with watching(quiet=given.quiet) as watcher:
        copied = save(places(), given.images, path, given.format, options, progress=watcher.blob if watcher else None)
    if given.output != "-":
        for one in copied:
            say(one.digest)
    return 0

"""``knarr image load``: the images of an archive into the store."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.output import put
from knarr.cli.progress import watching


def parse_load() -> Parser:
    """The parser of ``knarr image load``."""
    parser = Parser(
        "image load",
        "Take all images of an archive (docker save, podman save, skopeo, …) into the store; prints names and digests.",
        "[-i FILE] [--all | --platform OS/ARCH]",
        "  knarr image load -i saved.tar\n  docker save alpine | knarr image load",
    )
    parser.add_argument("-i", "--input", default="-", metavar="FILE", help="read there, not from standard input")
    parser.add_argument("--all", action="store_true", help="all platforms of an image")
    parser.add_argument("--platform", action="append", default=[], metavar="OS/ARCH", help="for another platform")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    return parser


def do_load(arguments: list[str]) -> int:
    """Load images."""
    given = parse_load().parse_args(arguments)
    from knarr.cli.image.copy import options_from
    from knarr.engine.archives import load
    from knarr.engine.paths import places

    with watching(quiet=given.quiet) as watcher:
        loaded = load(places(), given.input, options_from(given), progress=watcher.blob if watcher else None)
    for names, copied in loaded:
        put(f"{', '.join(names)} {copied.digest}")
    return 0

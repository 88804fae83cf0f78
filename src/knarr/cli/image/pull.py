"""``knarr image pull``: what ``knarr pull`` does, for one platform or all of them."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.containers import each
from knarr.cli.image.copy import add_choice, options_from
from knarr.cli.output import put
from knarr.cli.progress import watching


def parse_pull() -> Parser:
    """The parser of ``knarr image pull``."""
    parser = Parser(
        "image pull",
        "Fetch images into the store. Prints their digests. Unlike knarr pull it does not unpack them.",
        "[--all | --platform OS/ARCH…] IMAGE…",
        "  knarr image pull alpine:3.20\n  knarr image pull --all quay.io/fedora/fedora:41",
    )
    add_choice(parser)
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a registry's image, or any other place of one")
    return parser


def do_pull(arguments: list[str]) -> int:
    """Pull images."""
    given = parse_pull().parse_args(arguments)
    from knarr.engine.copying import Access, into_store
    from knarr.engine.paths import places

    where, options = places(), options_from(given)

    def one(name: str) -> None:
        with watching(quiet=given.quiet) as watcher:
            progress = watcher.blob if watcher else None
            copied = into_store(where, name, options, Access(insecure=given.insecure), progress=progress)
        put(copied.digest)

    if len(given.images) == 1:
        one(given.images[0])
        return 0
    return each("image pull", given.images, one)

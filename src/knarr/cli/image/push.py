"""``knarr image push``: an image of the store into a registry."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.copy import add_choice, add_form, options_from, signer_from, tell
from knarr.cli.progress import watching


def parse_push() -> Parser:
    """The parser of ``knarr image push``."""
    parser = Parser(
        "image push",
        "Send an image of the store to a registry, under its own name or another. Prints the digest.",
        "[OPTION…] IMAGE [TARGET]",
        "  knarr image push registry.local:5000/tools:1\n"
        "  knarr image push tools:1 docker://registry.local:5000/tools:1\n"
        "  knarr image push --compress zstd tools:1 quay.io/me/tools:1",
    )
    add_choice(parser)
    add_form(parser)
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("image", metavar="IMAGE", help="name or id of an image of the store")
    parser.add_argument("target", metavar="TARGET", nargs="?", default="", help="where to; its own name if not given")
    return parser


def do_push(arguments: list[str]) -> int:
    """Push an image."""
    given = parse_push().parse_args(arguments)
    from knarr.engine.copying import Access, copy, push_target
    from knarr.engine.paths import places

    where = places()
    source, target = push_target(where, given.image, given.target)
    signer = signer_from(given, target, insecure=given.insecure)
    with watching(quiet=given.quiet) as watcher:
        copied = copy(
            where,
            source,
            target,
            options_from(given),
            target_access=Access(insecure=given.insecure),
            progress=watcher.blob if watcher else None,
        )
    if signer is not None:
        signer(copied)
    tell(copied, target)
    return 0

"""``knarr image annotate``: annotations on an image's manifest, or on an index."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import add_change, add_destination, finish, opened, pairs


def parse_annotate() -> Parser:
    """The parser of ``knarr image annotate``."""
    parser = Parser(
        "image annotate",
        "Set or remove annotations of an image's manifest. Prints the digest of the new image.",
        "[--set NAME=VALUE…] [--unset NAME…] IMAGE [DEST]",
        "  knarr image annotate --set org.opencontainers.image.source=https://example.org/app app:1\n"
        "  knarr image annotate --unset org.example.draft oci:./layout:v1",
    )
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="set an annotation")
    parser.add_argument("-u", "--unset", action="append", default=[], metavar="NAME", help="take one away")
    add_change(parser, layer=False)
    add_destination(parser)
    return parser


def do_annotate(arguments: list[str]) -> int:
    """Annotate."""
    given = parse_annotate().parse_args(arguments)
    changes: dict[str, str | None] = {**pairs(given.set, "--set"), **dict.fromkeys(given.unset)}
    if not changes:
        raise UsageError("say what to --set or --unset", hint="see: knarr image annotate --help")
    with opened(given.image, given.platform) as image:
        return finish(image.with_annotations(changes), given.image, given.destination)

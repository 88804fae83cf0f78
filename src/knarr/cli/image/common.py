"""What the commands below ``knarr image`` share: operands, options, saving."""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.cli.output import put, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.cli.command import Parser
    from knarr.engine.imaging.image import Image, Index

SOURCES = (
    "a name, id or digest in the store, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, docker://NAME, or scratch"
)
FORMATS = ("", "table", "json")


def add_platform(parser: Parser) -> None:
    """``--platform``."""
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="of an index, the image for another platform")


def add_whole(parser: Parser) -> None:
    """``--whole``."""
    parser.add_argument("--whole", action="store_true",
                        help="read layers whole, also those of a registry that have a table of contents")  # fmt: skip


def add_json(parser: Parser) -> None:
    """``--json`` and ``--format json``."""
    parser.add_argument("--json", action="store_true", help="print JSON; the same as --format json")
    parser.add_argument("--format", default="", metavar="json", help="json, or nothing for text")


def wants_json(given: object) -> bool:
    """Whether JSON was asked for; raises UsageError for another format."""
    format = getattr(given, "format", "")
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not known", hint="there is json")
    return bool(getattr(given, "json", False)) or format == "json"


def add_change(parser: Parser, *, layer: bool = True) -> None:
    """The operands of a command that changes an image, and how a new layer is compressed."""
    if layer:
        parser.add_argument("--compress", default="gzip", metavar="HOW", help="gzip[:LEVEL], zstd[:LEVEL] or none")
        parser.add_argument("--created-by", default="", metavar="TEXT", help="what the history says of the new layer")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)


def add_destination(parser: Parser) -> None:
    """``DEST``, the last operand."""
    parser.add_argument("destination", metavar="DEST", nargs="?", default="",
                        help="a name for the store or oci:DIR[:TAG]; IMAGE itself if not given")  # fmt: skip


def opened(text: str, platform: str = "") -> Image:
    """Open an image; ``scratch`` is one without layers."""
    from knarr.engine.imaging.image import Image

    if text == "scratch":
        return Image.empty(platform=platform)
    return Image.open(text, platform=platform)


def finish(made: Image | Index, source: str, destination: str) -> int:
    """Save a changed image or index and print its digest."""
    if source == "scratch" and not destination:
        raise UsageError("scratch cannot be changed", hint="name the new image as DEST")
    put(made.save(destination or source).digest)
    return 0


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dict; raises UsageError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} {text!r} is not NAME=VALUE")
        found[name] = value
    return found


def fetched(image: Image, text: str) -> None:
    """Say how many bytes were fetched, when they came over a network."""
    if text.startswith("docker://"):
        from knarr.cli.output import say

        say(f"fetched {size(image.fetched)} of {size(image.size)} ({image.fetched} of {image.size} bytes)")


def shown(raw: bytes) -> str:
    """A path of an image, for a terminal."""
    from knarr.kernel.path import printable

    return printable("/" + os.fsdecode(raw))

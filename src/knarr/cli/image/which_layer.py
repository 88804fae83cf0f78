"""``knarr image which-layer``: the layer that set a path, or took it away."""

from __future__ import annotations

from knarr.base.errors import NotFound
from knarr.cli.command import FAILED, Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, add_whole, fetched, opened, shown, wants_json
from knarr.cli.output import clean, put, put_json


def parse_which_layer() -> Parser:
    """The parser of ``knarr image which-layer``."""
    parser = Parser(
        "image which-layer",
        "Say which layer set a path of an image, or removed it. Layers are read from the top, no more than needed.",
        "[--all] [--quick] [--whole] [--json] IMAGE PATH",
        "  knarr image which-layer app:1 /etc/passwd\n"
        "  knarr image which-layer --all docker://docker.io/library/python:3.12 /usr/local/bin/python3",
    )
    parser.add_argument("-a", "--all", action="store_true", help="all layers that touch it, down to the lowest")
    parser.add_argument("--quick", action="store_true",
                        help="stop as soon as it is found, before its layer could be verified")  # fmt: skip
    add_whole(parser)
    add_json(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument("path", metavar="PATH", help="a path; links in the directories above it are followed")
    return parser


def do_which_layer(arguments: list[str]) -> int:
    """Find the layer."""
    given = parse_which_layer().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.look import touches

    with opened(given.image, given.platform) as image:
        path, found, read = touches(image, given.path, everything=given.all, quick=given.quick, whole=given.whole)
        layers = image.layers
        rows = [
            {
                "layer": touch.layer,
                "digest": layers[touch.layer].digest,
                "what": touch.what,
                "path": shown(touch.path),
                "created_by": str(layers[touch.layer].history.get("created_by") or ""),
            }
            for touch in found
        ]
        if as_json:
            put_json({
                "path": shown(path), "touched": rows, "read": list(read), "layers": len(layers),
                "fetched": image.fetched, "size": image.size,
            })  # fmt: skip
        else:
            for row in rows:
                put(
                    f"layer {row['layer']} {row['digest']} {row['what']} {row['path']}  {clean(str(row['created_by']))}"
                )
            fetched(image, given.image)
    if not rows:
        if as_json:
            return FAILED
        raise NotFound("file", f"{shown(path)} in {given.image}")
    return 0

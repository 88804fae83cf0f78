"""``knarr image inspect``: all that an image's documents say, without fetching a layer."""

from __future__ import annotations

import sys

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_platform
from knarr.cli.output import put_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.imaging.image import Image, Index


def parse_inspect() -> Parser:
    """The parser of ``knarr image inspect``."""
    parser = Parser(
        "image inspect",
        "Show all that an image's documents say: digests, platforms, layers, config, history, annotations. No layer is"
        " read, also of an image in a registry.",
        "[--raw | --config] [--platform OS/ARCH] [--format FORMAT] IMAGE",
        "  knarr image inspect docker://debian:12\n  knarr image inspect --format '{{.Digest}}' alpine\n"
        "  knarr image inspect --raw docker://debian:12 | jq .manifests",
    )
    parser.add_argument("--raw", action="store_true", help="the bytes of the manifest or index, as they are")
    parser.add_argument("--config", action="store_true", help="the bytes of the config, as they are")
    parser.add_argument("-f", "--format", default="json", metavar="FORMAT", help="json or a template")
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_inspect(arguments: list[str]) -> int:
    """Show."""
    given = parse_inspect().parse_args(arguments)
    if given.raw and given.config:
        raise UsageError("--raw and --config are two documents", hint="ask for one")
    from knarr.engine.imaging.image import Image, Index
    from knarr.engine.imaging.opening import open_any, open_image

    found = open_image(given.image, platform=given.platform) if given.platform else open_any(given.image)
    with found:
        if given.raw:
            return _bytes(found.blobs.read(found.descriptor))
        index = found if isinstance(found, Index) else None
        image = found if isinstance(found, Image) else _chosen(found, given.image)
        if given.config:
            if image is None:
                raise UsageError(f"{given.image} has no image for this machine", hint="name one with --platform")
            return _bytes(image.blobs.read(image.manifest["config"]))
        put_value(described(image, index), given.format)
    return 0


def _chosen(index: Index, text: str) -> Image | None:
    """The image of an index for this machine; None when it has none, which is no reason not to show the index."""
    from knarr.base.errors import NotFound
    from knarr.engine.imaging.opening import open_image

    try:
        return open_image(text)
    except NotFound:
        return _only(index)


def _only(index: Index) -> Image | None:
    """The only image of an index; None when it has several."""
    images = list(index.images()) if len(index.entries) == 1 else []
    return images[0] if images else None


def _bytes(data: bytes) -> int:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


def described(image: Image | None, index: Index | None) -> dict[str, Any]:
    """Everything, ready for JSON and templates."""
    from knarr.image.platform import platform_of

    told: dict[str, Any] = {}
    if image is not None:
        config = image.config or {}
        told = {
            "Name": image.name,
            "Digest": image.digest,
            "ID": image.id,
            "MediaType": image.descriptor["mediaType"],
            "ArtifactType": image.manifest.get("artifactType", ""),
            "Platform": str(image.platform) if image.platform.os else "",
            "Created": config.get("created") or "",
            "Author": config.get("author") or "",
            "Size": image.size,
            "Subject": (image.manifest.get("subject") or {}).get("digest", ""),
            "Annotations": image.annotations,
            "Config": config.get("config") or {},
            "History": config.get("history") or [],
            "Layers": _layers(image),
        }
    if index is not None:
        told["Index"] = {
            "Digest": index.digest,
            "MediaType": index.descriptor["mediaType"],
            "Annotations": index.annotations,
            "Manifests": [
                {
                    "Digest": entry["digest"],
                    "MediaType": entry["mediaType"],
                    "ArtifactType": entry.get("artifactType", ""),
                    "Size": entry["size"],
                    "Platform": str(platform_of(entry["platform"])) if "platform" in entry else "",
                    "Annotations": entry.get("annotations") or {},
                }
                for entry in index.entries
            ],
        }
    return told


def _layers(image: Image) -> list[dict[str, Any]]:
    if image.config is None:
        return [
            {
                "Digest": layer["digest"],
                "MediaType": layer["mediaType"],
                "Size": layer["size"],
                "Annotations": layer.get("annotations") or {},
            }
            for layer in image.manifest["layers"]
        ]
    return [
        {
            "Digest": layer.digest,
            "DiffID": layer.diff_id,
            "MediaType": layer.media_type,
            "Size": layer.size,
            "CreatedBy": layer.history.get("created_by") or "",
            "Annotations": layer.descriptor.get("annotations") or {},
        }
        for layer in image.layers
    ]

"""``knarr inspect``: all that is known of an image or a container, as JSON or by a template."""

from __future__ import annotations

from knarr.base.errors import InvalidReference, KnarrError, NotFound, UsageError
from knarr.cli.command import FAILED, Parser
from knarr.cli.output import put, put_json, say
from knarr.cli.template import Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.paths import Places
    from knarr.image.catalog import Image


def parse_inspect() -> Parser:
    """The parser of ``knarr inspect``."""
    parser = Parser(
        "inspect",
        "Show all about images and containers; a container goes before an image of the same name.",
        "[--type image|container] [--format FORMAT] NAME…",
        "  knarr inspect alpine\n  knarr inspect --format '{{.State.Status}}' web\n"
        "  knarr inspect --format '{{json .Config.Env}}' alpine",
    )
    parser.add_argument("--type", default="", metavar="image|container", help="look for one kind only")
    parser.add_argument("-f", "--format", default="json", metavar="FORMAT", help="json or a template")
    parser.add_argument("names", metavar="NAME", nargs="+", help="name, id or digest")
    return parser


def do_inspect(arguments: list[str]) -> int:
    """Show objects."""
    given = parse_inspect().parse_args(arguments)
    if given.type not in ("", "image", "container"):
        raise UsageError(f"type {given.type!r} is not known", hint="there are image and container")
    from knarr.engine.paths import places

    where = places()
    template = None if given.format == "json" else Template(given.format)
    found: list[dict[str, Any]] = []
    code = 0
    for name in given.names:
        try:
            found.append(_one(where, name, given.type))
        except KnarrError as error:
            say(f"knarr inspect: {error}")
            code = FAILED
    if template is None:
        if found:
            put_json(found)
    else:
        for one in found:
            put(template.render(one))
    return code


def _one(where: Places, name: str, kind: str) -> dict[str, Any]:
    from knarr.engine import containers
    from knarr.engine.paths import open_store
    from knarr.image.catalog import lookup

    if kind != "image":
        try:
            return containers.describe(where, containers.find(where, name))
        except NotFound:
            if kind == "container":
                raise
    try:
        return describe_image(lookup(open_store(where), name.removeprefix("docker://")))
    except (NotFound, InvalidReference) as error:
        if kind == "image":
            raise
        hint = error.hint or "see: knarr ps --all, knarr images"
        raise NotFound("container or image", name, hint=hint) from None


def describe_image(image: Image) -> dict[str, Any]:
    """An image in the words of ``docker inspect``."""
    from knarr.image.catalog import INDEX_DIGEST, describe

    told = describe(image)
    config = image.config or {}
    repository = image.name.rpartition("@")[0] or image.name.rpartition(":")[0]
    return {
        "Id": image.id,
        "RepoTags": [image.name] if image.name and "@" not in image.name else [],
        "RepoDigests": [f"{repository}@{image.digest}"] if repository else [],
        "Digest": image.digest,
        "IndexDigest": image.descriptor.get("annotations", {}).get(INDEX_DIGEST, ""),
        "MediaType": image.descriptor["mediaType"],
        "Created": image.created,
        "Author": config.get("author", ""),
        "Architecture": config.get("architecture", ""),
        "Variant": config.get("variant", ""),
        "Os": config.get("os", ""),
        "Size": image.size,
        "Config": config.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids if image.config is not None else []},
        "Layers": [
            {"Digest": one["digest"], "DiffID": one["diffId"], "MediaType": one["mediaType"], "Size": one["size"]}
            for one in told["layers"]
        ],
        "History": told["history"],
        "Annotations": told["annotations"],
    }

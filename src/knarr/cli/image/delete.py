"""``knarr image delete``: an image out of a registry."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.containers import each
from knarr.cli.output import put


def parse_delete() -> Parser:
    """The parser of ``knarr image delete``."""
    parser = Parser(
        "image delete",
        "Remove images from a registry. The image a tag means goes with all its tags, unless only the tag shall.\n"
        "(knarr rmi removes from the store.) Prints what is gone.",
        "[--tag-only] NAME…",
        "  knarr image delete registry.local:5000/team/app:old\n"
        "  knarr image delete --tag-only registry.local:5000/team/app:rc1",
    )
    parser.add_argument("--tag-only", action="store_true", help="remove the tag, not the image (few registries can)")
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS")
    parser.add_argument("images", metavar="NAME", nargs="+", help="with a tag or digest")
    return parser


def do_delete(arguments: list[str]) -> int:
    """Delete images."""
    given = parse_delete().parse_args(arguments)
    from knarr.base.errors import UsageError
    from knarr.engine.registries import Registry
    from knarr.image.reference import parse_reference

    def one(name: str) -> None:
        reference = parse_reference(name)
        if reference.transport != "docker":
            raise UsageError(f"{name} is not in a registry", hint="knarr rmi removes images from the store")
        if "@" not in name and ":" not in name.rpartition("/")[2]:
            raise UsageError(f"{name} has no tag", hint=f"say which one, as {name}:latest")
        registry = Registry(reference.registry, insecure=given.insecure)
        if given.tag_only and not reference.tag:
            raise UsageError(f"{name} names no tag")
        put(registry.delete(reference.repository, reference.digest or reference.tag, tag_only=given.tag_only))

    if len(given.images) == 1:
        one(given.images[0])
        return 0
    return each("image delete", given.images, one)

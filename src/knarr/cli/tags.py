"""``knarr tags``: what a repository of a registry has."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.output import clean, put, put_json


def parse_tags() -> Parser:
    """The parser of ``knarr tags``."""
    parser = Parser(
        "tags",
        "List the tags of a repository of a registry.",
        "[--limit N] [--json] REPOSITORY",
        "  knarr tags alpine\n  knarr tags registry.local:5000/team/app",
    )
    parser.add_argument("--limit", type=int, default=100_000, metavar="N", help="at most so many")
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("repository", metavar="REPOSITORY", help="as quay.io/fedora/fedora")
    return parser


def do_tags(arguments: list[str]) -> int:
    """List tags."""
    given = parse_tags().parse_args(arguments)
    from knarr.base.errors import UsageError
    from knarr.engine.registries import Registry
    from knarr.image.reference import parse_reference

    reference = parse_reference(given.repository)
    if reference.transport != "docker" or reference.digest or given.repository.rpartition("/")[2].count(":"):
        raise UsageError(f"{given.repository} is no repository of a registry", hint="as quay.io/fedora/fedora")
    if given.limit < 1:
        raise UsageError("--limit wants a number from 1 on")
    tags = Registry(reference.registry, insecure=given.insecure).tags(reference.repository, limit=given.limit)
    if given.json:
        put_json(tags)
    else:
        for tag in tags:
            put(clean(tag))
    return 0

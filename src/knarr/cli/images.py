"""``knarr pull``, ``knarr images``, ``knarr rmi``."""

from __future__ import annotations

from knarr.cli.command import FAILED, Parser
from knarr.cli.containers import each
from knarr.cli.output import put, put_rows, say, since, size
from knarr.cli.progress import watching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COLUMNS = ("Repository", "Tag", "ID", "Platform", "Created", "Size")


def parse_pull() -> Parser:
    """The parser of ``knarr pull``."""
    parser = Parser(
        "pull",
        "Fetch an image into the store and unpack it. Prints the digest of its manifest.",
        "[--platform OS/ARCH] IMAGE…",
        "  knarr pull alpine:3.20\n  knarr pull quay.io/fedora/fedora@sha256:…\n"
        "  knarr pull oci:./layout:v1\n  knarr pull docker-archive:saved.tar",
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="for another platform, as linux/arm64")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="a registry's image, oci:, oci-archive:, docker-archive:"
    )
    return parser


def do_pull(arguments: list[str]) -> int:
    """Fetch images."""
    given = parse_pull().parse_args(arguments)
    from knarr.engine.api import pull

    def one(name: str) -> None:
        with watching(quiet=given.quiet) as watcher:
            digest = pull(name, platform=given.platform, watcher=watcher)
        put(digest)

    if len(given.images) == 1:
        one(given.images[0])
        return 0
    return each("pull", given.images, one)


def parse_images() -> Parser:
    """The parser of ``knarr images``."""
    parser = Parser(
        "images",
        "List the images of the store, newest first.",
        "[-q] [--digests] [--format FORMAT]",
        "  knarr images\n  knarr images --format '{{.Repository}}:{{.Tag}} {{.Digest}}'",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    parser.add_argument("--digests", action="store_true", help="also the digests of the manifests")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids")
    parser.add_argument("--format", default="", metavar="FORMAT", help="table, json or a template such as '{{.ID}}'")
    return parser


def do_images(arguments: list[str]) -> int:
    """List images."""
    given = parse_images().parse_args(arguments)
    from knarr.engine.images import listing
    from knarr.engine.paths import places

    rows, broken = listing(places())
    if given.format != "json":
        rows = [_readable(row) for row in rows]
    if given.no_trunc or given.format == "json":
        rows = [{**row, "ID": row["FullID"]} for row in rows]
    columns = [*COLUMNS]
    if given.digests:
        columns.insert(2, "Digest")
    put_rows(rows, columns, given.format, quiet="ID" if given.quiet else "")
    for sentence in broken:
        say(f"knarr images: {sentence}")
    return FAILED if broken else 0


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Times and sizes for people; the exact ones under other names."""
    created = row["Created"]
    return {
        **row,
        "Created": since(created),
        "CreatedSince": since(created),
        "CreatedAt": created,
        "Size": size(row["Size"]),
        "Bytes": row["Size"],
    }


def parse_rmi() -> Parser:
    """The parser of ``knarr rmi``."""
    parser = Parser(
        "rmi",
        "Remove images from the store, with the blobs and layers that nothing else needs.",
        "[-f] IMAGE…",
        "  knarr rmi alpine:3.20\n  knarr rmi 1d34ffeaf190",
    )
    parser.add_argument("-f", "--force", action="store_true", help="all names of an id; also when containers use it")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name, id or digest")
    return parser


def do_rmi(arguments: list[str]) -> int:
    """Remove images."""
    given = parse_rmi().parse_args(arguments)
    from knarr.engine.images import remove
    from knarr.engine.paths import places

    where = places()

    def one(name: str) -> None:
        gone = remove(where, name, force=given.force)
        for text in gone["Untagged"]:
            put(f"untagged: {text}")
        for digest in gone["Deleted"]:
            put(f"deleted:  {digest}")
        if gone["Freed"]:
            put(f"freed:    {size(gone['Freed'])}")

    return each("rmi", given.images, one)

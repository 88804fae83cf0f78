"""``knarr image sync``: many images from a list."""

from __future__ import annotations

from knarr.cli.command import FAILED, Parser
from knarr.cli.output import clean, put, say
from knarr.cli.progress import watching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.engine.sync import Outcome


def parse_sync() -> Parser:
    """The parser of ``knarr image sync``."""
    parser = Parser(
        "image sync",
        "Copy all images a list names, with all platforms unless the list says which. What is there already is\n"
        "not copied again; an error ends its image and no other. The list is YAML, each entry with from, to, and\n"
        "tags, match, platforms, referrers as wanted; skopeo's lists are read too.",
        "[--to TARGET] [--dry-run] LIST",
        "  knarr image sync mirrors.yaml\n  knarr image sync --to registry.local:5000/mirror list.yaml\n"
        "  knarr image sync --to oci:/srv/images list.yaml",
    )
    parser.add_argument(
        "--to", default="", metavar="TARGET", help="for entries without one: HOST/PATH, oci:DIR, dir:DIR"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be copied")
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS everywhere")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("list", metavar="LIST", help="a file")
    return parser


def do_sync(arguments: list[str]) -> int:
    """Copy everything a list names."""
    given = parse_sync().parse_args(arguments)
    from knarr.engine.paths import places
    from knarr.engine.sync import read_list, sync

    def told(outcome: Outcome) -> None:
        job = outcome.job
        if outcome.copied is None:
            say(f"knarr image sync: {clean(job.source)}: {clean(str(outcome.error))}")
            return
        blobs, size = outcome.copied.copied
        word = "would copy" if given.dry_run else "copied"
        put(f"{clean(job.source)} -> {clean(job.target)} {outcome.copied.digest} ({word} {blobs} blobs, {size} bytes)")

    entries = read_list(given.list, given.to)
    with watching(quiet=given.quiet) as watcher:
        done = sync(
            places(),
            entries,
            dry_run=given.dry_run,
            insecure=given.insecure,
            progress=watcher.blob if watcher else None,
            told=told,
        )
    return FAILED if any(outcome.error is not None for outcome in done) else 0

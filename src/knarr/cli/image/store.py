"""``knarr image df``, ``prune`` and ``fsck``: the store kept in order."""

from __future__ import annotations

from knarr.cli.command import FAILED, Parser
from knarr.cli.image.common import add_json, wants_json
from knarr.cli.output import clean, put, put_json, put_table, size


def parse_df() -> Parser:
    """The parser of ``knarr image df``."""
    parser = Parser(
        "image df",
        "Show what takes how much room in the store, and how much of it `knarr image prune --all` would free.",
        "[--json]",
        "  knarr image df",
    )
    add_json(parser)
    return parser


def do_df(arguments: list[str]) -> int:
    """Show it."""
    given = parse_df().parse_args(arguments)
    from knarr.engine.paths import places
    from knarr.engine.storekeeping import usage

    rows = usage(places())
    if wants_json(given):
        put_json(rows)
        return 0
    put_table(
        ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        [
            [row["Type"], str(row["Total"]), str(row["Active"]), size(row["Size"]), size(row["Reclaimable"])]
            for row in rows
        ],
    )
    return 0


def parse_prune() -> Parser:
    """The parser of ``knarr image prune``."""
    parser = Parser(
        "image prune",
        "Remove images without a name, and blobs and layers that nothing needs. What a container was made from stays.",
        "[-a] [--json]",
        "  knarr image prune\n  knarr image prune --all",
    )
    parser.add_argument("-a", "--all", action="store_true", help="also images with a name that no container uses")
    add_json(parser)
    return parser


def do_prune(arguments: list[str]) -> int:
    """Remove them."""
    given = parse_prune().parse_args(arguments)
    from knarr.engine.paths import places
    from knarr.engine.storekeeping import prune

    gone = prune(places(), everything=given.all)
    if wants_json(given):
        put_json(gone)
        return 0
    for name in gone["Untagged"]:
        put(f"untagged: {clean(name)}")
    for digest in gone["Deleted"]:
        put(f"deleted:  {digest}")
    for chain in gone["Layers"]:
        put(f"layer:    {chain}")
    put(f"freed:    {size(gone['Freed'])}")
    return 0


def parse_fsck() -> Parser:
    """The parser of ``knarr image fsck``."""
    parser = Parser(
        "image fsck",
        "Read everything in the store and compare it with its digests; the exit code is 125 when something is wrong.",
        "[--repair] [--json]",
        "  knarr image fsck\n  knarr image fsck --repair",
    )
    parser.add_argument("--repair", action="store_true", help="remove what is damaged; it is made or pulled anew")
    add_json(parser)
    return parser


def do_fsck(arguments: list[str]) -> int:
    """Check."""
    given = parse_fsck().parse_args(arguments)
    from knarr.engine.paths import places
    from knarr.engine.storekeeping import check

    found = check(places(), repair=given.repair)
    if wants_json(given):
        put_json([{"What": one.what, "Why": one.why, "Mended": one.mended} for one in found])
    else:
        for one in found:
            put(f"{clean(one.what)}: {clean(one.why)}{' (removed)' if one.mended else ''}")
        if not found:
            put("everything is as its digest says")
    return FAILED if any(not one.mended for one in found) else 0

"""``knarr template start``, ``list``, ``stop``: the keeper of guests that are ready (isolation/keeper.py)."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.output import put, put_rows, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def parse_start() -> Parser:
    """The parser of ``knarr template start``."""
    parser = Parser(
        "template start",
        "Boot guests and keep them ready for containers with a kernel of their own.\n\n"
        "A container takes one that has the memory and the processors it asks for, if there is one, and another is\n"
        "booted in its place. They end with knarr template stop, or when none was taken for a time.",
        "[options]",
        "  knarr template start\n  knarr template start --memory 256m --count 4 --idle 3600",
    )
    parser.add_argument("--isolation", default="kernel", choices=("kernel", "vm"), help="for this kind (%(default)s)")
    parser.add_argument("-m", "--memory", default="512m", metavar="SIZE", help="of the containers (%(default)s)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of the containers (%(default)s)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many are ready (%(default)s)")
    parser.add_argument("--idle", type=int, default=1800, metavar="SECONDS", help="end after so long (%(default)s)")
    return parser


def do_start(arguments: list[str]) -> int:
    """Have a keeper, the one there is or a new one, hold so many."""
    from os import geteuid

    from knarr.engine.options import parse_size
    from knarr.isolation import keeper, keeping, template

    given = parse_start().parse_args(arguments)
    if given.count < 1 or given.cpus < 1 or given.idle < 1:
        raise UsageError("--count, --cpus and --idle take a number above 0")
    if given.isolation != "kernel" and geteuid():
        hint = "as root they may be microVMs"
        raise UsageError("templates of an ordinary user are for --isolation kernel", hint=hint)
    shape = keeper.shape_of(given.isolation, parse_size(given.memory, "--memory"), given.cpus)
    place = template.folder()
    if not template.keep(shape, given.count, place):
        keeping.begin(place, given.idle)
        template.keep(shape, given.count, place)
    keeper.wait_ready(shape, place)
    put(f"{given.count} ready for containers with {size(parse_size(given.memory, '--memory'))} of memory")
    return 0


def parse_list() -> Parser:
    """The parser of ``knarr template list``."""
    parser = Parser(
        "template list",
        "List the guests that are ready, and those in use that were.",
        "[--format FORMAT]",
        "  knarr template list\n  knarr template list --format json",
    )
    parser.add_argument("--format", default="table", metavar="FORMAT", help="table, json or a template")
    return parser


def do_list(arguments: list[str]) -> int:
    """List them."""
    from knarr.isolation import template

    given = parse_list().parse_args(arguments)
    rows: list[dict[str, Any]] = [
        {
            "Kind": guest["kind"],
            "State": guest["state"],
            "Memory": size(guest["memory"]),
            "Cpus": guest["cpus"],
            "Pid": guest["pid"],
            "Seconds": guest["seconds"],
        }
        for guest in template.kept(template.folder()) or ()
    ]
    put_rows(rows, ("Kind", "State", "Memory", "Cpus", "Pid", "Seconds"), given.format)
    return 0


def parse_stop() -> Parser:
    """The parser of ``knarr template stop``."""
    return Parser(
        "template stop",
        "End the guests that wait. Containers that took one go on.",
        "",
        "  knarr template stop",
    )


def do_stop(arguments: list[str]) -> int:
    """End them."""
    from knarr.isolation import template

    parse_stop().parse_args(arguments)
    if not template.stop(template.folder()):
        put("there are none")
    return 0

"""``knarr image create``: an image of this machine's own programs."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.output import put


def parse_create() -> Parser:
    """The parser of ``knarr image create``."""
    parser = Parser(
        "image create",
        "Make an image of programs of this machine, with the libraries they need; no download, no root needed.",
        "NAME --from-host PROGRAM[,PROGRAM…] [--env NAME=VALUE] [-- COMMAND…]",
        "  knarr image create tools:1 --from-host /bin/sh,/bin/ls,/bin/cat\n"
        "  knarr image create box:1 --from-host busybox -- /bin/busybox sh\n"
        "  knarr run --rm -it tools:1",
    )
    parser.add_argument("name", metavar="NAME", help="what to call it, as tools:1")
    parser.add_argument("--from-host", action="append", default=[], metavar="PROGRAM,…",
                        help="programs by path, or by name as found in PATH")  # fmt: skip
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable in it")
    return parser


def do_create(arguments: list[str]) -> int:
    """Make an image; prints the digest of its manifest."""
    command: list[str] = []
    if "--" in arguments:
        position = arguments.index("--")
        arguments, command = arguments[:position], arguments[position + 1 :]
    given = parse_create().parse_args(arguments)
    from knarr.cli.run import split
    from knarr.engine.make_image import create_from_host
    from knarr.engine.options import environment
    from knarr.engine.paths import places

    programs = split(given.from_host)
    if not programs:
        raise UsageError("name the programs with --from-host", hint="see: knarr image create --help")
    env = environment(given.env, [], {})
    put(create_from_host(places(), given.name, programs, command=command, env=env).digest)
    return 0

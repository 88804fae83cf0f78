"""``knarr exec``: a further program in a running container."""

from __future__ import annotations

import os

from knarr.cli.command import Parser


def parse_exec() -> Parser:
    """The parser of ``knarr exec``."""
    parser = Parser(
        "exec",
        "Run another program in a running container; ends with that program's exit code.",
        "[OPTION…] CONTAINER COMMAND [ARGUMENT…]",
        "  knarr exec -it web sh\n  knarr exec -u 1000 -w /srv web ls -l",
    )
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="variables, one a line")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="working directory inside")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="names of the container, or numbers")
    parser.add_argument("--privileged", action="store_true", help="with all capabilities")
    parser.add_argument("container", metavar="CONTAINER", help="name, id or the start of an id")
    parser.add_command("what to run")
    return parser


def do_exec(arguments: list[str]) -> int:
    """Run a program in a container; returns its exit code."""
    given = parse_exec().parse_args(arguments)
    from knarr.cli.foreground import exec_foreground
    from knarr.cli.run import words
    from knarr.engine.containers import ExecRequest, exec_process, find
    from knarr.engine.options import environment
    from knarr.engine.paths import places

    where = places()
    seen = find(where, given.container)
    request = ExecRequest(
        tuple(words(given.command)),
        environment(given.env, given.env_file, os.environ),
        given.workdir,
        given.user,
        given.tty,
        given.privileged,
    )
    process = exec_process(where, seen, request)
    return exec_foreground(where, seen, process, interactive=given.interactive, terminal=given.tty)

"""``knarr ps``, ``knarr kill``, ``knarr rm``, ``knarr port``."""

from __future__ import annotations

from knarr.base.errors import KnarrError, NotFound, UsageError
from knarr.cli.command import FAILED, Parser
from knarr.cli.output import duration, put, put_rows, say, since

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.containers import Seen
    from knarr.engine.records import Container

COLUMNS = ("ID", "Image", "Command", "Created", "Status", "Name")


def parse_ps() -> Parser:
    """The parser of ``knarr ps``."""
    parser = Parser(
        "ps",
        "List containers: those that run, or with --all also those that have ended.",
        "[-a] [-q] [--format FORMAT]",
        "  knarr ps -a\n  knarr ps --format '{{.Name}} {{.Status}}'\n  knarr ps -aq | xargs knarr rm",
    )
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids and commands")
    parser.add_argument("--format", default="", metavar="FORMAT", help="table, json or a template such as '{{.Name}}'")
    return parser


def do_ps(arguments: list[str]) -> int:
    """List containers."""
    given = parse_ps().parse_args(arguments)
    from knarr.engine.containers import listing
    from knarr.engine.paths import places

    rows = [_row(seen, whole=given.no_trunc) for seen in listing(places(), everything=given.all)]
    if given.format == "json":
        for row in rows:
            row["Created"] = row["CreatedAt"]
    put_rows(rows, COLUMNS, given.format, quiet="ID" if given.quiet else "")
    return 0


def _row(seen: Seen, *, whole: bool) -> dict[str, Any]:
    container = seen.container
    command = " ".join(container.command)
    return {
        "ID": container.id if whole else container.id[:12],
        "Image": container.image,
        "Command": command if whole or len(command) <= 30 else f"{command[:29]}…",
        "Created": since(container.created),
        "CreatedAt": container.created,
        "Status": _status(seen),
        "State": seen.status,
        "ExitCode": container.exit_code,
        "Pid": seen.pid,
        "Name": container.name,
        "Names": container.name,
        "Labels": dict(container.labels),
        "Network": container.network,
        "Ports": ", ".join(f"{here}->{inside}" for inside, here in ports(container)),
    }


def ports(container: Container) -> list[tuple[str, str]]:
    """Published ports as people write them: those inside, with where they are here."""
    return [
        (f"{inside}/{protocol}", f"{f'[{ip}]' if ':' in ip else ip}:{here}")
        for ip, here, inside, protocol in container.ports
    ]


def _status(seen: Seen) -> str:
    """The status in words: ``running for 3 minutes``, ``exited (1) 2 hours ago``."""
    container = seen.container
    if seen.status == "exited":
        code = "unknown" if container.exit_code is None else str(container.exit_code)
        return f"exited ({code}) {since(container.finished)}".rstrip()
    if seen.status == "running":
        import time

        from knarr.base.clock import parse_rfc3339

        begun = parse_rfc3339(container.started or container.created) / 1e9
        return f"running for {duration(max(time.time() - begun, 0))}"
    return seen.status


def parse_kill() -> Parser:
    """The parser of ``knarr kill``."""
    parser = Parser(
        "kill",
        "Send a signal to the first process of containers: SIGKILL, unless another is named.",
        "[-s SIGNAL] CONTAINER…",
        "  knarr kill brisk_puffin\n  knarr kill -s HUP web",
    )
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="as TERM, SIGHUP or 15")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name, id or the start of an id")
    return parser


def do_kill(arguments: list[str]) -> int:
    """Signal containers."""
    given = parse_kill().parse_args(arguments)
    from knarr.engine.containers import kill
    from knarr.engine.options import parse_signal
    from knarr.engine.paths import places

    number = parse_signal(given.signal)
    where = places()
    return each("kill", given.containers, lambda name: put(_short(name, kill(where, name, number))))


def parse_rm() -> Parser:
    """The parser of ``knarr rm``."""
    parser = Parser(
        "rm",
        "Remove containers that have ended, with everything they wrote.",
        "[-f] (CONTAINER… | --all)",
        "  knarr rm brisk_puffin\n  knarr rm -f web db\n  knarr rm --all        every container that does not run",
    )
    parser.add_argument("-f", "--force", action="store_true", help="kill what runs; one that is not there is fine")
    parser.add_argument("-a", "--all", action="store_true", help="all of them; only with --force those that run")
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="name, id or the start of an id")
    return parser


def do_rm(arguments: list[str]) -> int:
    """Remove containers."""
    given = parse_rm().parse_args(arguments)
    from knarr.engine.containers import listing, remove
    from knarr.engine.paths import places

    where = places()
    names = list(given.containers)
    if given.all:
        if names:
            raise UsageError("either --all or names, not both")
        names = [
            seen.container.id
            for seen in listing(where, everything=True)
            if given.force or seen.status in ("exited", "created")
        ]
    elif not names:
        raise UsageError("name a container, or say --all", hint="see: knarr rm --help")

    def one(name: str) -> None:
        try:
            put(_short(name, remove(where, name, force=given.force)))
        except NotFound:
            if not given.force:
                raise

    return each("rm", names, one)


def parse_port() -> Parser:
    """The parser of ``knarr port``."""
    parser = Parser(
        "port",
        "Show which ports of this machine lead into a container.",
        "CONTAINER [PORT[/udp]]",
        "  knarr port web\n  knarr port web 80",
    )
    parser.add_argument("container", metavar="CONTAINER", help="name, id or the start of an id")
    parser.add_argument("port", metavar="PORT", nargs="?", default="", help="only what leads to this one inside")
    return parser


def do_port(arguments: list[str]) -> int:
    """Show published ports."""
    given = parse_port().parse_args(arguments)
    from knarr.engine.containers import find
    from knarr.engine.paths import places

    container = find(places(), given.container).container
    rows = ports(container)
    if not given.port:
        for inside, here in rows:
            put(f"{inside} -> {here}")
        return 0
    asked = given.port if "/" in given.port else f"{given.port}/tcp"
    found = [here for inside, here in rows if inside == asked]
    if not found:
        raise NotFound("published port", f"{asked} of {given.container}")
    for here in found:
        put(here)
    return 0


def _short(name: str, id: str) -> str:
    """What was given, or the short id when that was the whole one."""
    return id[:12] if name == id else name


def each(command: str, names: list[str], action: Any) -> int:
    """Do something for each name; all errors are told, the others are done nevertheless."""
    code = 0
    for name in names:
        try:
            action(name)
        except KnarrError as error:
            say(f"knarr {command}: {error}")
            code = FAILED
    return code

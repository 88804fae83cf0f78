"""``knarr image config``: everything an image's config says."""

from __future__ import annotations

import shlex

from knarr.base import fastjson
from knarr.base.errors import KnarrError, UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import add_change, add_destination, finish, opened, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

# option -> keyword of Image.with_config; the value is taken as it is
_PLAIN = {
    "user": "USER[:GROUP]",
    "workdir": "DIR",
    "stop-signal": "SIGNAL",
    "author": "TEXT",
    "created": "DATE",
    "architecture": "ARCH",
    "os": "OS",
    "variant": "TEXT",
    "os-version": "TEXT",
}
_CLEARABLE = (
    *("user", "workdir", "stop-signal", "author", "created", "variant", "os-version", "os-features", "cmd"),
    *("entrypoint", "healthcheck", "env", "labels", "ports", "volumes", "history"),
)


def parse_config() -> Parser:
    """The parser of ``knarr image config``."""
    parser = Parser(
        "image config",
        "Change what an image's config says; the layers stay. Prints the digest of the new image.",
        "[OPTION…] IMAGE [DEST]",
        "  knarr image config --env MODE=prod --unset-env DEBUG --cmd 'python -m app' app:1 app:2\n"
        '  knarr image config --entrypoint \'["/init", "--"]\' --label org.example.tier=web oci:./layout:v1\n'
        "  knarr image config --clear volumes --history=-1.comment=reviewed app:2",
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    parser.add_argument("--unset-env", action="append", default=[], metavar="NAME", help="take a variable away")
    parser.add_argument("--cmd", metavar="WORDS", help="the command: a JSON array, or words as a shell splits them")
    parser.add_argument("--entrypoint", metavar="WORDS", help="the same for the entrypoint")
    parser.add_argument("-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="set a label")
    parser.add_argument("--unset-label", action="append", default=[], metavar="NAME", help="take a label away")
    parser.add_argument("--port", action="append", default=[], metavar="PORT[/PROTO]", help="expose a port")
    parser.add_argument("--unset-port", action="append", default=[], metavar="PORT[/PROTO]", help="expose it no more")
    parser.add_argument("--volume", action="append", default=[], metavar="DIR", help="add a volume")
    parser.add_argument("--unset-volume", action="append", default=[], metavar="DIR", help="take a volume away")
    for name, value in _PLAIN.items():
        parser.add_argument(f"--{name}", metavar=value, help=f"set {name}")
    parser.add_argument("--os-feature", action="append", metavar="TEXT", help="set os.features; may be repeated")
    parser.add_argument("--healthcheck", metavar="JSON", help='Docker\'s, as {"Test": ["CMD", "true"]}')
    parser.add_argument("--history", action="append", default=[], metavar="N.FIELD=VALUE",
                        help="change an entry: created, created_by, author, comment; -1 is the last")  # fmt: skip
    parser.add_argument("--add-history", action="append", default=[], metavar="TEXT",
                        help="add a history entry that made no layer")  # fmt: skip
    parser.add_argument("--clear", action="append", default=[], metavar="FIELD", choices=_CLEARABLE,
                        help="take a field away first: " + ", ".join(_CLEARABLE))  # fmt: skip
    add_change(parser, layer=False)
    add_destination(parser)
    return parser


def do_config(arguments: list[str]) -> int:
    """Change a config."""
    given = parse_config().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        made = image.with_config(**cleared(given.clear, image.image_config())) if given.clear else image
        made = made.with_config(**changes(given))
        if "history" in given.clear or given.history or given.add_history:
            from knarr.engine.imaging.layers import moment

            when = moment(image)
            added = [{**({"created": when} if when else {}), "created_by": text} for text in given.add_history]
            made = made.with_history(_history(given.history), add=added, clear="history" in given.clear)
        return finish(made, given.image, given.destination)


def cleared(names: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    """The changes that take whole fields away."""
    run = config.get("config") or {}
    made: dict[str, Any] = {}
    for name in names:
        if name == "env":
            made["env"] = dict.fromkeys(entry.partition("=")[0] for entry in run.get("Env") or ())
        elif name == "labels":
            made["labels"] = dict.fromkeys(run.get("Labels") or ())
        elif name in ("ports", "volumes"):
            made[name] = dict.fromkeys(run.get("ExposedPorts" if name == "ports" else "Volumes") or (), False)
        elif name != "history":
            made[name.replace("-", "_")] = None
    return made


def changes(given: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, as keywords of ``with_config``."""
    made: dict[str, Any] = {
        "env": {**pairs(given.env, "--env"), **dict.fromkeys(given.unset_env)},
        "labels": {**pairs(given.label, "--label"), **dict.fromkeys(given.unset_label)},
        "ports": {**{_port(text): True for text in given.port}, **{_port(text): False for text in given.unset_port}},
        "volumes": {**dict.fromkeys(given.volume, True), **dict.fromkeys(given.unset_volume, False)},
    }
    for name in _PLAIN:
        value = getattr(given, name.replace("-", "_"))
        if value is not None:
            made[name.replace("-", "_")] = value
    for name in ("cmd", "entrypoint"):
        if getattr(given, name) is not None:
            made[name] = words(getattr(given, name), f"--{name}")
    if given.os_feature is not None:
        made["os_features"] = given.os_feature
    if given.healthcheck is not None:
        made["healthcheck"] = _json(given.healthcheck, "--healthcheck")
    return made


def words(text: str, option: str) -> list[str]:
    """``["a", "b"]`` or ``a b``; raises UsageError."""
    if text.lstrip().startswith("["):
        found = _json(text, option)
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise UsageError(f"{option} {text!r} is not an array of strings")
        return found
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r} cannot be split into words: {str(error).lower()}") from None


def _json(text: str, option: str) -> Any:
    try:
        return fastjson.loads(text.encode("utf-8", "surrogateescape"), option)
    except KnarrError as error:
        raise UsageError(str(error)) from None


def _port(text: str) -> str:
    """``80`` means ``80/tcp``, as it does elsewhere."""
    number, slash, protocol = text.partition("/")
    low, dash, high = number.partition("-")
    if not all(part.isascii() and part.isdigit() and int(part) <= 65_535 for part in ((low, high) if dash else (low,))):
        raise UsageError(f"{text!r} is no port", hint="as 80, 80/udp or 8000-8010/tcp")
    if slash and protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"{text!r} has a protocol that is not tcp, udp or sctp")
    return f"{number}/{protocol or 'tcp'}"


def _history(texts: Sequence[str]) -> dict[int, dict[str, str | None]]:
    found: dict[int, dict[str, str | None]] = {}
    for text in texts:
        where, equals, value = text.partition("=")
        number, dot, field = where.partition(".")
        digits = number.removeprefix("-")
        if not equals or not dot or not digits.isascii() or not digits.isdigit() or len(digits) > 6:
            raise UsageError(f"--history {text!r} is not N.FIELD=VALUE", hint="as 3.comment=reviewed")
        found.setdefault(int(number), {})[field] = value or None
    return found

"""``knarr image add``: files of this machine into an image, without unpacking it."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import add_change, finish, opened


def parse_add() -> Parser:
    """The parser of ``knarr image add``."""
    parser = Parser(
        "image add",
        "Put a file or directory at a path of an image, as a layer on top. Prints the digest of the new image.",
        "[OPTION…] IMAGE SOURCE PATH [DEST]",
        "  knarr image add app:1 ./config.toml /etc/app/config.toml app:2\n"
        "  knarr image add --owner 1000:1000 oci:./layout:v1 ./site /srv/",
    )
    parser.add_argument("--owner", default="0:0", metavar="UID:GID", help="who owns it (0:0); host: as on this machine")
    parser.add_argument("--chmod", default="", metavar="OCTAL", help="the mode of files")
    add_change(parser)
    parser.add_argument("source", metavar="SOURCE", help="a file or directory of this machine")
    parser.add_argument("path", metavar="PATH", help="where it goes; with / at its end, below that directory")
    parser.add_argument("destination", metavar="DEST", nargs="?", default="", help="IMAGE itself if not given")
    return parser


def do_add(arguments: list[str]) -> int:
    """Add."""
    given = parse_add().parse_args(arguments)
    with opened(given.image, given.platform) as image:
        made = image.add(
            given.source,
            given.path,
            owner=_owner(given.owner),
            mode=_mode(given.chmod),
            compression=given.compress,
            created_by=given.created_by,
        )
        return finish(made, given.image, given.destination)


def _owner(text: str) -> tuple[int, int] | None:
    if text == "host":
        return None
    uid, colon, gid = text.partition(":")
    for part in (uid, gid) if colon else (uid,):
        if not part.isascii() or not part.isdigit() or int(part) >= 1 << 31:
            raise UsageError(f"--owner {text!r} is not UID:GID, in digits")
    return int(uid), int(gid if colon else uid)


def _mode(text: str) -> int | None:
    if not text:
        return None
    try:
        mode = int(text, 8) if text.isascii() and text.isdigit() else -1
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise UsageError(f"--chmod {text!r} is not an octal mode", hint="as 0644")
    return mode

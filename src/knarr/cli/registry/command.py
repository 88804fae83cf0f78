"""``knarr registry``: the table of its commands, one file each beside this one."""

from __future__ import annotations

from knarr.cli.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.cli.command import Parser

# command -> (module beside this one, one line for the overview); the order is the overview's
COMMANDS = {
    "serve": ("serve", "serve a directory as a registry, or as a cache of another"),
}

GROUP = Group(
    "registry",
    "knarr.cli.registry",
    "A registry of your own.",
    COMMANDS,
    "  knarr registry serve /srv/images",
)


def parse_registry() -> Parser:
    """The parser of ``knarr registry`` itself."""
    return GROUP.parser()


def do_registry(arguments: list[str]) -> int:
    """Run one of its commands."""
    return GROUP.run(arguments)

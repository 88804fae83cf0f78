"""``knarr template``: the table of its commands, all in one file beside this one."""

from __future__ import annotations

from knarr.cli.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.cli.command import Parser

# command -> (module beside this one, one line for the overview); the order is the overview's
COMMANDS = {
    "start": ("verbs", "boot guests and keep them ready"),
    "list": ("verbs", "list them"),
    "stop": ("verbs", "end those that wait"),
}

GROUP = Group(
    "template",
    "knarr.cli.templates",
    "Guests that have booted and wait, so that a container with a kernel of its own starts at once.",
    COMMANDS,
    "  knarr template start --memory 256m --count 2\n  knarr template stop",
)


def parse_template() -> Parser:
    """The parser of ``knarr template`` itself."""
    return GROUP.parser()


def do_template(arguments: list[str]) -> int:
    """Run one of its commands."""
    return GROUP.run(arguments)

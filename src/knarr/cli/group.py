"""Commands with commands below them, as ``knarr image copy``: finds the one typed and loads only that."""

from __future__ import annotations

import sys

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.output import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping


class Group:
    """One such command. ``commands`` maps each name to (module below ``package``, one line for the overview).

    The module has ``parse_NAME`` and ``do_NAME``, a hyphen in the name written ``_``. ``summary`` and ``examples``
    are for the overview.
    """

    def __init__(
        self, name: str, package: str, summary: str, commands: Mapping[str, tuple[str, str]], examples: str
    ) -> None:
        self.name = name
        self.package = package
        self.summary = summary
        self.commands = commands
        self.examples = examples

    def parser(self) -> Parser:
        """The parser of the group itself, for its help and for completion."""
        return Parser(self.name, self.text(), "COMMAND …", self.examples)

    def text(self) -> str:
        """The overview of its commands."""
        rows = "\n".join(f"  {name:<14} {summary}" for name, (_, summary) in self.commands.items())
        return f"{self.summary}\n\n{rows}\n\nknarr {self.name} COMMAND --help tells more."

    def run(self, arguments: list[str]) -> int:
        """Run the command that ``arguments`` begins with; raises UsageError when there is none of that name."""
        if not arguments:
            put(self.parser().format_help(), end="")
            return 0
        name, rest = arguments[0], arguments[1:]
        if name.startswith("-"):
            self.parser().parse_args([name])
        if name == "help" and rest:
            name, rest = rest[0], ["--help"]
        if name not in self.commands:
            from difflib import get_close_matches

            close = get_close_matches(name, self.commands, 1)
            hint = f"did you mean {close[0]}?" if close else f"see: knarr {self.name} --help"
            raise UsageError(f"command {self.name} {name!r} is not known", hint=hint)
        function: Callable[[list[str]], int] = getattr(self._module(name), f"do_{_word(name)}")
        return function(rest)

    def parser_of(self, name: str) -> argparse.ArgumentParser:
        """The parser of one of its commands."""
        parser: argparse.ArgumentParser = getattr(self._module(name), f"parse_{_word(name)}")()
        return parser

    def _module(self, name: str) -> object:
        module = f"{self.package}.{self.commands[name][0]}"
        __import__(module)
        return sys.modules[module]


def _word(name: str) -> str:
    return name.replace("-", "_")

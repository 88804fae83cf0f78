"""``knarr completion``: scripts for bash, zsh and fish; and the answers they ask for (argcomplete's protocol)."""

from __future__ import annotations

import argparse
import os
import shlex

from knarr.base.errors import KnarrError, UsageError
from knarr.cli.command import COMMANDS, Parser, groups, parser_of
from knarr.cli.output import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

SHELLS = ("bash", "zsh", "fish")


def parse_completion() -> Parser:
    """The parser of ``knarr completion``."""
    parser = Parser(
        "completion",
        "Print the completion script for a shell.",
        "bash|zsh|fish",
        '  eval "$(knarr completion bash)"                     in ~/.bashrc\n'
        '  eval "$(knarr completion zsh)"                      in ~/.zshrc, after compinit\n'
        "  knarr completion fish > ~/.config/fish/completions/knarr.fish",
    )
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    return parser


def do_completion(arguments: list[str]) -> int:
    """Print a script."""
    given = parse_completion().parse_args(arguments)
    if given.shell not in SHELLS:
        raise UsageError(f"shell {given.shell!r} is not known", hint=f"there are {', '.join(SHELLS)}")
    from argcomplete.shell_integration import shellcode

    put(shellcode(["knarr"], shell=given.shell))
    return 0


def answer() -> NoReturn:
    """Tell the shell what could come next on the command line, and end."""
    import argcomplete

    root = argparse.ArgumentParser(prog="knarr", allow_abbrev=False)
    for name in ("--store", "--run-dir"):
        root.add_argument(name, metavar="DIR")
    root.add_argument("--version", action="store_true")
    commands = root.add_subparsers(dest="command")
    typed, second = _typed(os.environ.get("COMP_LINE", ""))
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
        if name == typed and name in groups():
            below = commands.choices[name].add_subparsers(dest="second")
            for one, (_, told) in groups()[name].commands.items():
                below.add_parser(one, help=told, add_help=False)
                if one == second:
                    below.choices[one] = _completing(groups()[name].parser_of(one), f"{name} {one}")
        elif name == typed:
            commands.choices[name] = _completing(parser_of(name), name)
    argcomplete.autocomplete(root, always_complete_options=False)
    os._exit(0)


def _typed(line: str) -> tuple[str, str]:
    """The command on the line so far, and the word after it."""
    try:
        words = shlex.split(line)[1:]
    except ValueError:
        words = line.split()[1:]
    skip = False
    found: list[str] = []
    for word in words:
        if skip:
            skip = False
        elif word in ("--store", "--run-dir"):
            skip = True
        elif found or not word.startswith("-"):
            found.append(word)
    return found[0] if found else "", found[1] if len(found) > 1 else ""


def _completing(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """A command's parser with what can stand for each argument."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no other list of them
        completer = _COMPLETERS.get((name, action.dest)) or _COMPLETERS.get(("", action.dest))
        if completer is not None:
            action.completer = completer  # type: ignore[attr-defined]  # argcomplete's way
    return parser


def _images(**_asked: Any) -> list[str]:
    from knarr.engine.images import listing
    from knarr.engine.paths import places

    try:
        rows, _ = listing(places())
    except KnarrError:
        return []
    return [f"{row['Repository']}:{row['Tag']}" for row in rows if row["Name"]]


def _runnable(**asked: Any) -> list[str]:
    return ["host:", *_images(**asked)]


def _containers(**_asked: Any) -> Sequence[str]:
    from knarr.engine.containers import names
    from knarr.engine.paths import places

    try:
        return names(places())
    except KnarrError:
        return []


def _words(*words: str) -> Callable[..., Sequence[str]]:
    return lambda **_asked: words


_COMPLETERS: dict[tuple[str, str], Callable[..., Sequence[str]]] = {
    ("run", "image"): _runnable,
    ("pull", "images"): _images,
    ("rmi", "images"): _images,
    ("unpack", "image"): _images,
    ("bundle", "image"): _images,
    ("inspect", "names"): lambda **asked: [*_containers(**asked), *_images(**asked)],
    ("exec", "container"): _containers,
    ("kill", "containers"): _containers,
    ("rm", "containers"): _containers,
    ("port", "container"): _containers,
    ("completion", "shell"): _words(*SHELLS),
    ("", "network"): _words("none", "host", "private", "slirp4netns", "pasta"),
    ("", "pull"): _words("always", "missing", "never", "newer"),
    ("", "type"): _words("image", "container"),
    ("", "signal"): _words("KILL", "TERM", "INT", "HUP", "QUIT", "STOP", "CONT", "USR1", "USR2"),
}

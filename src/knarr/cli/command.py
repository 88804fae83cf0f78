"""Finds the command that was typed, loads only that one, maps errors to exit codes; main.py calls it.

Exit codes follow podman: 125 when knarr itself failed, 126 and 127 when the program cannot be run or found, else the
program's own (128 + the signal that ended it), 130 after Ctrl-C. An error is one sentence on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys

from knarr.base.errors import CommandNotExecutable, CommandNotFound, KnarrError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from knarr.cli.group import Group

FAILED, INTERRUPTED, BROKEN_PIPE = 125, 130, 141

# command -> (module below knarr.cli, one line for the overview); the order is the overview's
COMMANDS = {
    "run": ("run", "start a container and wait for it"),
    "exec": ("exec", "run another program in a running container"),
    "ps": ("containers", "list containers"),
    "kill": ("containers", "send a signal to containers"),
    "rm": ("containers", "remove containers"),
    "port": ("containers", "show which ports lead into a container"),
    "pull": ("images", "fetch an image into the store"),
    "images": ("images", "list the images of the store"),
    "rmi": ("images", "remove images from the store"),
    "image": ("image.command", "copy, look into, change and make images"),
    "tags": ("tags", "list the tags of a repository of a registry"),
    "login": ("login", "log in to a registry"),
    "logout": ("login", "forget the login for a registry"),
    "registry": ("registry.command", "serve images to others"),
    "template": ("templates.command", "keep guests ready, for containers with a kernel of their own"),
    "inspect": ("inspect", "show all about an image or a container"),
    "unpack": ("unpack", "write an image's files into a directory"),
    "bundle": ("unpack", "write a runtime bundle (rootfs and config.json)"),
    "info": ("info", "show what knarr and this machine can do"),
    "version": ("info", "show the version"),
    "completion": ("completion", "print the completion script for a shell"),
}

OVERVIEW = """\
usage: knarr [--store DIR] [--run-dir DIR] COMMAND …

Containers without a daemon.

{commands}

options:
  --store DIR    where images and containers are kept   (KNARR_STORE; now {store})
  --run-dir DIR  where the state of running ones lives  (KNARR_RUN; now {state})
  --version      show the version
  -h, --help     show this; knarr COMMAND --help tells more

examples:
  knarr run host: -- ls /                  this machine's own root, nothing to download
  knarr run -it docker.io/library/alpine   a shell in an image from a registry
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one sentence and where to read more."""

    def __init__(self, command: str, summary: str, usage: str, examples: str, *, add_help: bool = True) -> None:
        super().__init__(
            prog=f"knarr {command}",
            description=summary,
            usage=f"knarr {command} {usage}",
            epilog=f"examples:\n{examples}",
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=add_help,
        )

    def add_command(self, help: str) -> None:
        """The rest of the line, options of other programs included, as ``command``."""
        action = self.add_argument("command", metavar="COMMAND", nargs="...", help=help)
        action.required = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see: {self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(_columns(), 110))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-e, --env NAME`` instead of naming the value twice."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def _columns() -> int:
    try:
        return max(os.get_terminal_size(1).columns, 60)
    except OSError:
        return 100


def run_command(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code, every error told."""
    name = "knarr"
    try:
        try:
            if "_ARGCOMPLETE" in os.environ:
                from knarr.cli.completion import answer

                answer()
            command, arguments, options = _split(list(argv))
            if command in COMMANDS:
                name = f"knarr {_full_name(command, arguments)}"
            code = _command(command, arguments, options) if command else _overview(arguments, options)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough. Nothing more may be written there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _complain(name, "interrupted")
        return INTERRUPTED
    except KnarrError as error:
        if isinstance(error, (CommandNotFound, CommandNotExecutable)):
            error.pointer = ""  # the command was typed here: no file's field is to blame
        _complain(name, str(error))
        for note in getattr(error, "__notes__", ()):
            _complain(name, note)
        from knarr.cli.exit_codes import engine_code

        return engine_code(error)
    except OSError as error:
        on = f" {error.filename}" if error.filename else ""
        _complain(name, f"cannot go on{on}: {os.strerror(error.errno or 0).lower()}")
        return FAILED
    except MemoryError:
        _complain(name, "there is not enough memory")
        return FAILED
    except SystemExit as error:  # argparse leaves so after --help
        return error.code if isinstance(error.code, int) else 0
    return code


def _full_name(command: str, arguments: list[str]) -> str:
    """``image copy`` for what begins so, else the command alone: how messages start."""
    group = groups().get(command)
    return f"{command} {arguments[0]}" if group and arguments and arguments[0] in group.commands else command


def _complain(name: str, message: str) -> None:
    from knarr.cli.output import clean

    try:
        sys.stderr.write(f"{name}: {clean(message)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens


def _split(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(command, its arguments, the options before it)."""
    options: dict[str, str] = {}
    position = 0
    while position < len(argv):
        word = argv[position]
        if not word.startswith("-"):
            return word, argv[position + 1 :], options
        name, equals, value = word.partition("=")
        if name in ("--store", "--run-dir"):
            if not equals:
                position += 1
                if position >= len(argv):
                    raise UsageError(f"{name} wants a directory")
                value = argv[position]
            if not value:
                raise UsageError(f"{name} wants a directory")
            options[name] = value
        elif word in ("-h", "--help", "--version", "-V"):
            return "", [word], options
        else:
            raise UsageError(
                f"option {word} is not known", hint="options of a command come after it; see: knarr --help"
            )
        position += 1
    return "", [], options


def _overview(arguments: list[str], options: dict[str, str]) -> int:
    from knarr.cli.output import put

    if arguments and arguments[0] in ("--version", "-V"):
        import knarr

        put(f"knarr {knarr.__version__}")
        return 0
    from knarr.engine.paths import places

    where = places(options.get("--store"), options.get("--run-dir"))
    commands = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items())
    put(OVERVIEW.format(commands=commands, store=where.store, state=where.state), end="")
    return 0


def _command(name: str, arguments: list[str], options: dict[str, str]) -> int:
    if name == "help":
        if not arguments:
            return _overview([], options)
        name, arguments = arguments[0], ["--help"]
    if name not in COMMANDS:
        raise UsageError(f"command {name!r} is not known", hint=_meant(name))
    if "--store" in options:
        os.environ["KNARR_STORE"] = options["--store"]
    if "--run-dir" in options:
        os.environ["KNARR_RUN"] = options["--run-dir"]
    return command(name)(arguments)


def command(name: str) -> Callable[[list[str]], int]:
    """The function that does a command, loaded now."""
    module = f"knarr.cli.{COMMANDS[name][0]}"
    __import__(module)
    function: Callable[[list[str]], int] = getattr(sys.modules[module], f"do_{name}")
    return function


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, for completion and for documentation."""
    module = f"knarr.cli.{COMMANDS[name][0]}"
    __import__(module)
    made: argparse.ArgumentParser = getattr(sys.modules[module], f"parse_{name}")()
    return made


def groups() -> dict[str, Group]:
    """The commands that have commands below them."""
    from knarr.cli.image.command import GROUP as IMAGE
    from knarr.cli.templates.command import GROUP as TEMPLATE

    return {IMAGE.name: IMAGE, TEMPLATE.name: TEMPLATE}


def _meant(name: str) -> str:
    """A word on what may have been meant."""
    others = {
        "ls": "ps",
        "list": "ps",
        "rmc": "rm",
        "remove": "rm",
        "delete": "rm",
        "image-ls": "images",
        "start": "run",
        "create": "run",
        "fetch": "pull",
        "container": "ps",
    }
    if name in others:
        return f"did you mean {others[name]}? See: knarr --help"
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, 1)
    return f"did you mean {close[0]}?" if close else "see: knarr --help"

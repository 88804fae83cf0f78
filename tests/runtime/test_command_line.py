"""The command line of knarr-runtime: runc's ways to write options, errors, help, exit codes."""

from __future__ import annotations

import pytest

from knarr.base import errors
from knarr.base.errors import KnarrError, UsageError
from knarr.cli import exit_codes
from knarr.cli.runtime.help import ABOUT, OPTIONS, text
from knarr.cli.runtime.kill import signal_number
from knarr.cli.runtime.options import GLOBAL, VERBS, check_operands, parse


def verb(name: str, *words: str) -> tuple[dict[str, object], list[str]]:
    table, _, _, mixed = VERBS[name]
    return parse(table, list(words), mixed=mixed, where=name)


@pytest.mark.parametrize(
    ("words", "options", "operands"),
    [
        (["--bundle", "/b", "x"], {"bundle": "/b"}, ["x"]),
        (["--bundle=/b", "x"], {"bundle": "/b"}, ["x"]),
        (["-b", "/b", "x"], {"bundle": "/b"}, ["x"]),
        (["-b=/b", "x"], {"bundle": "/b"}, ["x"]),
        (["-bundle", "/b", "x"], {"bundle": "/b"}, ["x"]),
        (["x", "--bundle", "/b"], {"bundle": "/b"}, ["x"]),
        (["--no-pivot", "x"], {"no-pivot": True}, ["x"]),
        (["--no-pivot=false", "x"], {"no-pivot": False}, ["x"]),
        (["--preserve-fds", "3", "x"], {"preserve-fds": 3}, ["x"]),
        (["--bundle", "", "x"], {"bundle": ""}, ["x"]),
        (["--", "-b"], {}, ["-b"]),
        (["-"], {}, ["-"]),
    ],
)
def test_options_as_runc_reads_them(words: list[str], options: dict[str, object], operands: list[str]) -> None:
    assert verb("create", *words) == (options, operands)


def test_exec_leaves_the_commands_own_options_alone() -> None:
    options, operands = verb("exec", "-t", "-e", "A=b", "--env", "C=d", "box", "ls", "-l", "--", "-t")
    assert options == {"tty": True, "env": ["A=b", "C=d"]}
    assert operands == ["box", "ls", "-l", "--", "-t"]


def test_flags_in_one_word() -> None:
    assert verb("exec", "-td", "box", "sh") == ({"tty": True, "detach": True}, ["box", "sh"])
    assert verb("exec", "-tu", "5", "box", "sh") == ({"tty": True, "user": "5"}, ["box", "sh"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frob", "x"], "unknown option --frob"),
        (["--frob=1", "x"], "unknown option --frob "),
        (["---bundle", "x"], "unknown option ---bundle"),
        (["-z", "x"], "unknown option -z"),
        (["-bz", "x"], "unknown option -bz"),
        (["--bundle"], "option --bundle needs a value"),
        (["--no-pivot=maybe", "x"], "neither true nor false"),
        (["--preserve-fds", "-1", "x"], "is not a number"),
        (["--preserve-fds=１", "x"], "is not a number"),
    ],
)
def test_what_is_not_understood_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        verb("create", *words)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", VERBS)
def test_operands_are_counted(name: str) -> None:
    _, least, most, _ = VERBS[name]
    check_operands(name, ["x"] * least)
    if least:
        with pytest.raises(UsageError, match="needs"):
            check_operands(name, ["x"] * (least - 1))
    if most < 100:
        with pytest.raises(UsageError, match="takes"):
            check_operands(name, ["x"] * (most + 1))


def test_every_option_and_verb_has_its_help() -> None:
    tables = {"": GLOBAL, **{name: entry[0] for name, entry in VERBS.items()}}
    wanted = {long for table in tables.values() for long, _, _ in table} | {"help"}
    assert {name.rpartition(".")[2] for name in OPTIONS} == wanted
    assert set(ABOUT) == set(VERBS)
    for name, table in tables.items():
        page = text(name)
        assert all(f"--{long}" in page for long, _, _ in table)
        assert all(len(line) <= 120 for line in page.splitlines())


@pytest.mark.parametrize(
    ("word", "number"),
    [("9", 9), ("0", 0), ("64", 64), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("usr1", 10), ("RTMIN+3", 37)],
)
def test_signals(word: str, number: int) -> None:
    assert signal_number(word) == number


@pytest.mark.parametrize("word", ["65", "-1", "", "FOO", "SIG", "_DFL", "_IGN", "RTMIN+99", "TERM+1", "٩", "SIG_BLOCK"])
def test_no_signals(word: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        signal_number(word)


def classes(base: type[KnarrError] = KnarrError) -> list[type[KnarrError]]:
    return [base, *(below for cls in base.__subclasses__() for below in classes(cls))]


@pytest.mark.parametrize("table", [exit_codes._ENGINE, exit_codes._RUNTIME, exit_codes._RUNTIME_EXEC])
def test_every_error_class_has_an_exit_code(table: dict[type[KnarrError], int]) -> None:
    # Only the tree itself: other tests make classes of their own.
    assert set(table) == {cls for cls in classes() if cls.__module__ == errors.__name__}
    assert all(1 <= code <= 255 for code in table.values())


def test_exit_codes_of_the_two_commands() -> None:
    missing = errors.CommandNotFound("", "exec", 2)
    assert exit_codes.engine_code(missing) == 127
    assert exit_codes.engine_code(errors.CommandNotExecutable("", "exec", 13)) == 126
    assert exit_codes.runtime_code(missing, "run") == 1
    assert exit_codes.runtime_code(missing, "exec") == 255

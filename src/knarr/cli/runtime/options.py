"""The command line of knarr-runtime as a table, and its parser (hot).

runc reads ``--name value``, ``--name=value``, one dash as well as two, and options after the operands (except in
``exec``, whose operands are another program's command line); ``--`` ends them. Help texts lie in ``help.py`` and are
read only when asked for.
"""

from __future__ import annotations

from knarr.base.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Table = tuple[tuple[str, str, str], ...]

FLAG, VALUE, LIST, NUMBER = "flag", "value", "list", "number"

GLOBAL: Table = (
    ("root", "", VALUE),
    ("log", "", VALUE),
    ("log-format", "", VALUE),
    ("log-level", "", VALUE),
    ("debug", "", FLAG),
    ("rootless", "", VALUE),
    ("systemd-cgroup", "", FLAG),
    ("cgroup-manager", "", VALUE),
    ("criu", "", VALUE),
    ("version", "v", FLAG),
    ("help", "h", FLAG),
)

_MAKE: Table = (
    ("bundle", "b", VALUE),
    ("config", "f", VALUE),
    ("console-socket", "", VALUE),
    ("pid-file", "", VALUE),
    ("pidfd-socket", "", VALUE),
    ("no-subreaper", "", FLAG),
    ("no-pivot", "", FLAG),
    ("no-new-keyring", "", FLAG),
    ("preserve-fds", "", NUMBER),
)

_CRIU: Table = (
    ("image-path", "", VALUE),
    ("work-path", "", VALUE),
    ("tcp-established", "", FLAG),
    ("ext-unix-sk", "", FLAG),
    ("shell-job", "", FLAG),
    ("lazy-pages", "", FLAG),
    ("file-locks", "", FLAG),
    ("manage-cgroups-mode", "", VALUE),
    ("empty-ns", "", LIST),
    ("auto-dedup", "", FLAG),
    ("network-lock", "", VALUE),
)

# verb -> (options, least operands, most operands, whether options may follow operands)
VERBS: dict[str, tuple[Table, int, int, bool]] = {
    "create": (_MAKE, 1, 1, True),
    "start": ((), 1, 1, True),
    "state": ((), 1, 1, True),
    "kill": ((("all", "a", FLAG), ("regex", "r", FLAG)), 1, 2, True),
    "delete": ((("force", "f", FLAG), ("regex", "r", FLAG)), 1, 1, True),
    "run": ((*_MAKE, ("detach", "d", FLAG), ("keep", "", FLAG)), 1, 1, True),
    "exec": (
        (
            ("console-socket", "", VALUE),
            ("cwd", "", VALUE),
            ("env", "e", LIST),
            ("tty", "t", FLAG),
            ("user", "u", VALUE),
            ("additional-gids", "g", LIST),
            ("process", "p", VALUE),
            ("detach", "d", FLAG),
            ("pid-file", "", VALUE),
            ("pidfd-socket", "", VALUE),
            ("process-label", "", VALUE),
            ("apparmor", "", VALUE),
            ("no-new-privs", "", FLAG),
            ("cap", "c", LIST),
            ("preserve-fds", "", NUMBER),
            ("ignore-paused", "", FLAG),
            ("cgroup", "", LIST),
        ),
        1,
        1 << 30,
        False,
    ),
    "ps": ((("format", "f", VALUE),), 1, 1 << 30, False),
    "events": ((("interval", "", VALUE), ("stats", "", FLAG)), 1, 1, True),
    "pause": ((), 1, 1, True),
    "resume": ((), 1, 1, True),
    "update": (
        (
            ("resources", "r", VALUE),
            ("memory", "", VALUE),
            ("memory-swap", "", VALUE),
            ("memory-reservation", "", VALUE),
            ("kernel-memory", "", VALUE),
            ("kernel-memory-tcp", "", VALUE),
            ("cpu-share", "", VALUE),
            ("cpu-quota", "", VALUE),
            ("cpu-period", "", VALUE),
            ("cpu-burst", "", VALUE),
            ("cpu-idle", "", VALUE),
            ("cpu-rt-period", "", VALUE),
            ("cpu-rt-runtime", "", VALUE),
            ("cpuset-cpus", "", VALUE),
            ("cpuset-mems", "", VALUE),
            ("pids-limit", "", VALUE),
            ("blkio-weight", "", VALUE),
            ("l3-cache-schema", "", VALUE),
            ("mem-bw-schema", "", VALUE),
        ),
        1,
        1,
        True,
    ),
    "mounts": ((), 3, 3, True),
    "list": ((("format", "f", VALUE), ("quiet", "q", FLAG)), 0, 0, True),
    "spec": ((("bundle", "b", VALUE), ("file", "f", VALUE), ("rootless", "", FLAG)), 0, 0, True),
    "checkpoint": (
        (
            *_CRIU,
            ("parent-path", "", VALUE),
            ("leave-running", "", FLAG),
            ("tcp-skip-in-flight", "", FLAG),
            ("link-remap", "", FLAG),
            ("status-fd", "", NUMBER),
            ("page-server", "", VALUE),
            ("pre-dump", "", FLAG),
        ),
        1,
        1,
        True,
    ),
    "restore": (
        (
            *_CRIU,
            ("bundle", "b", VALUE),
            ("config", "f", VALUE),
            ("console-socket", "", VALUE),
            ("detach", "d", FLAG),
            ("pid-file", "", VALUE),
            ("no-subreaper", "", FLAG),
            ("no-pivot", "", FLAG),
            ("tcp-close", "", FLAG),
            ("lsm-profile", "", VALUE),
            ("lsm-mount-context", "", VALUE),
        ),
        1,
        1,
        True,
    ),
    "features": ((), 0, 0, True),
    "plan": ((("format", "f", VALUE), ("id", "", VALUE)), 1, 1, True),
}

_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


def parse(table: Table, words: list[str], *, mixed: bool, where: str) -> tuple[dict[str, Any], list[str]]:
    """Split ``words`` into options (long names; only those given) and operands.

    With ``mixed`` options may come after operands. ``where`` names the verb in errors. Raises UsageError.
    """
    names = {long: (long, kind) for long, _, kind in table}
    names.update((short, (long, kind)) for long, short, kind in table if short)
    if "help" not in names:
        names["help"] = names["h"] = ("help", FLAG)
    names["?"] = ("help", FLAG)  # crun's
    given: dict[str, Any] = {}
    operands: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            operands += words[at:]
            break
        if len(word) < 2 or word[0] != "-":
            operands.append(word)
            if not mixed:
                operands += words[at:]
                break
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name not in names and word[1] != "-" and len(name) > 1 and _bundle(name, names):
            # -dt: all but the last are flags
            for letter in name[:-1]:
                given[names[letter][0]] = True
            name = name[-1]
        if name not in names or word.startswith("---"):
            raise UsageError(
                f"unknown option {word.partition('=')[0]}", hint=f"see knarr-runtime {where} --help".replace("  ", " ")
            )
        long, kind = names[name]
        if kind == FLAG:
            given[long] = _boolean(word, value) if equals else True
            continue
        if not equals:
            if at == len(words):
                raise UsageError(f"option {word} needs a value")
            value = words[at]
            at += 1
        if kind == LIST:
            given.setdefault(long, []).append(value)
        else:
            given[long] = _number(word, value) if kind == NUMBER else value
    return given, operands


def _bundle(letters: str, names: dict[str, tuple[str, str]]) -> bool:
    return all(letter in names and names[letter][1] == FLAG for letter in letters[:-1]) and letters[-1] in names


def _boolean(word: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"option {word}: {value!r} is neither true nor false")


def _number(word: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UsageError(f"option {word.partition('=')[0]}: {value!r} is not a number")
    return int(value)


def check_operands(verb: str, operands: list[str]) -> None:
    """Raise UsageError when there are too few or too many operands."""
    _, least, most, _ = VERBS[verb]
    if len(operands) < least:
        raise UsageError(f"{verb} needs {_counted(least)}", hint=f"see knarr-runtime {verb} --help")
    if len(operands) > most:
        raise UsageError(f"{verb} takes {_counted(most)}, not {len(operands)}", hint=f"see knarr-runtime {verb} --help")


def _counted(number: int) -> str:
    return "no operand" if number == 0 else "one operand" if number == 1 else f"at most {number} operands"

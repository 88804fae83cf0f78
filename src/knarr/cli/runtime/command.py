"""The command line of knarr-runtime: global options, the verb, errors (hot).

Only the verb in use is imported. Errors go to standard error as runc writes them, and to ``--log`` when that is given.
"""

from __future__ import annotations

import sys

from knarr.base.errors import KnarrError, UsageError
from knarr.base.paths import abspath
from knarr.cli.runtime.options import GLOBAL, VERBS, check_operands, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.base.log import Log

_MANAGERS = ("cgroupfs", "systemd", "disabled")
_ROOTLESS: dict[str, bool | None] = {"true": True, "false": False, "auto": None}


class Context:
    """What the global options say, for the verb."""

    __slots__ = ("_root", "cgroup_manager", "criu", "log", "rootless", "told")

    def __init__(
        self,
        root: str | None,
        log: Log,
        *,
        rootless: bool | None,
        cgroup_manager: str,
        criu: str = "criu",
        told: int = -1,
    ) -> None:
        self._root = root
        self.log = log
        self.rootless = rootless
        self.cgroup_manager = cgroup_manager
        self.criu = criu
        self.told = told

    @property
    def root(self) -> str:
        """The state root, an absolute path."""
        from knarr.runtime.record import default_root

        return abspath(self._root) if self._root else default_root()


def main(arguments: list[str] | None = None, told: int = -1) -> int:
    """Run one command line; returns the exit code. ``told``: see ``knarr.runtime.start.start``."""
    words = sys.argv[1:] if arguments is None else arguments
    log = None
    verb = ""
    try:
        given, rest = parse(GLOBAL, words, mixed=False, where="")
        log = _log(given)
        if "version" in given:
            return _version()
        if "help" in given or not rest or rest[0] in ("help", "h"):
            return _help(rest[1:2] if rest[:1] in (["help"], ["h"]) else [])
        verb = rest[0]
        if verb not in VERBS:
            raise UsageError(f"unknown command {verb!r}", hint="see knarr-runtime --help")
        table, _, _, mixed = VERBS[verb]
        options, operands = parse(table, rest[1:], mixed=mixed, where=verb)
        if "help" in options:
            return _help([verb])
        check_operands(verb, operands)
        manager = "systemd" if given.get("systemd-cgroup") else given.get("cgroup-manager", "cgroupfs")
        if manager not in _MANAGERS:
            raise UsageError(f"option --cgroup-manager: {manager!r} is not cgroupfs, systemd or disabled")
        rootless = given.get("rootless", "auto")
        if rootless not in _ROOTLESS:
            raise UsageError(f"option --rootless: {rootless!r} is not true, false or auto")
        context = Context(
            given.get("root"),
            log,
            rootless=_ROOTLESS[rootless],
            cgroup_manager=manager,
            criu=given.get("criu") or "criu",
            told=told,
        )
        code = _run(verb, options, operands, context)
        if given.get("debug"):
            said = f"{' '.join((verb, *operands[:1]))} below {context.root}: exit code {code}"
            log.debug(said)
        return code
    except KnarrError as error:
        return _report(str(error), error, verb, log)
    except Exception as error:
        if "--debug" in words:
            raise
        return _report(f"a mistake in knarr: {type(error).__name__}: {error} (--debug shows where)", error, verb, log)


def _run(verb: str, options: dict[str, Any], operands: list[str], context: Context) -> int:
    module = f"knarr.cli.runtime.{verb}"
    __import__(module)
    code: int = sys.modules[module].run(options, operands, context)
    return code


def _log(given: dict[str, Any]) -> Log:
    from knarr.base.log import Log, open_log

    level = "debug" if given.get("debug") else given.get("log-level", "info")
    path = given.get("log")
    shape = given.get("log-format", "text")
    if path in (None, "", "/dev/stderr"):
        return Log(2, format=shape, level=level)
    backend, colon, rest = path.partition(":")
    if colon and backend in ("journald", "syslog"):
        from knarr.base.log_daemon import open_daemon_log  # cold: few ask for it

        return open_daemon_log(backend, rest, level=level)
    return open_log(rest if colon and backend == "file" else path, format=shape, level=level)


def _report(text: str, error: Exception, verb: str, log: Log | None) -> int:
    """Tell what went wrong, on the log and where the user sees it; the exit code."""
    from knarr.base.log import Log
    from knarr.cli.exit_codes import runtime_code

    text = "; ".join((text, *getattr(error, "__notes__", ())))
    log = log or Log(2)
    log.error(text)
    if log.fd != 2:
        sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    return runtime_code(error if isinstance(error, KnarrError) else KnarrError(), verb)


def _version() -> int:
    import knarr
    from knarr.spec.runtime import OCI_VERSION

    python = ".".join(str(number) for number in sys.version_info[:3])
    sys.stdout.write(f"knarr-runtime version {knarr.__version__}\nspec: {OCI_VERSION}\npython: {python}\n")
    return 0


def _help(verbs: list[str]) -> int:
    from knarr.cli.runtime.help import text  # cold: for people

    if verbs and verbs[0] not in VERBS:
        raise UsageError(f"unknown command {verbs[0]!r}", hint="see knarr-runtime --help")
    sys.stdout.write(text(verbs[0] if verbs else ""))
    return 0

"""``knarr-runtime``: an OCI runtime with runc's command line, so that what calls runc can call it (hot).

Fifty modules, looked up one by one, cost as much as the interpreter itself. So the second call of a verb takes them
from one file, which ``codecache`` wrote: the code that the first call loaded, in the order in which it ran. It is kept
with the run state (below /run, private to its user, gone with the next boot) and used only if it is ours alone and
every source file is still the one it was made from. docs/runtime.md, "Speed".
"""

from __future__ import annotations

import _signal
import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    # name, file, its st_mtime_ns and st_size, whether it is a package, code
    Entry = tuple[str, str, int, int, bool, CodeType]

VERBS = ("create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "pause", "resume", "update")
_LARGEST = 4 << 20
_HOME = __file__.removesuffix("/cli/runtime_main.py")


def main(arguments: list[str] | None = None, told: int = -1) -> int:
    """Run one command line; returns the exit code. ``told``: the socket of a start that the launcher has begun."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Ctrl-C ends a command that holds nothing yet, or nothing that cannot be done again; create, run and exec
        # catch it once they have begun. No traceback either way.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))  # the launcher blocked it
    gc.disable()  # a command lives for milliseconds and makes few cycles
    words = sys.argv[1:] if arguments is None else arguments
    verb = next((word for word in words if word in VERBS), "")
    # Whoever looks at imports shall see them, whoever wants no bytecode written shall have none; tracebacks have lines.
    shown = "importtime" in sys._xoptions or "--debug" in words  # noqa: SLF001  # documented
    kept = bool(verb) and not sys.dont_write_bytecode and not shown
    if not kept or _load(verb):
        return _command(words, told)
    from knarr.cli import codecache  # cold: once per verb and boot

    codecache.watch()
    code = _command(words, told)
    codecache.save(place(), name(verb), verb)
    return code


def _command(words: list[str], told: int) -> int:
    from knarr.cli.runtime.command import main as command

    return command(words, told)


def place() -> str:
    """The directory of the cache."""
    if posix.geteuid() == 0:
        return "/run/knarr/.code"
    run = posix.environ.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    return f"{run}/knarr/.code" if run else ""


def name(verb: str) -> str:
    """The file of a verb, for a kind of isolation: of this interpreter, and of this installation."""
    called = next((kind for kind in ("-kernel", "-vm") if sys.argv[0].endswith(kind)), "")
    return f"{verb}{called}.{sys.implementation.cache_tag}-{sys.hexversion:x}.{_HOME.replace('/', '%')}"[:255]


def _load(verb: str) -> bool:
    """Run the code of all modules of ``verb``; False when there is no file of ours, or one that is out of date."""
    try:
        folder = posix.stat(place(), follow_symlinks=False)
        fd = posix.open(
            f"{place()}/{name(verb)}", posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
        )
    except OSError:
        return False
    try:
        facts = posix.fstat(fd)
        for each in (folder, facts):
            if each.st_uid != posix.geteuid() or each.st_mode & 0o077:
                return False
        if facts.st_mode & 0o170000 != 0o100000 or facts.st_size > _LARGEST:
            return False
        data = posix.read(fd, facts.st_size)
        entries: list[Entry] = marshal.loads(data)  # noqa: S302  # as with __pycache__: nobody but us can have written it
        for _, file, time, size, _, _ in entries:
            source = posix.stat(file)
            if source.st_mtime_ns != time or source.st_size != size:
                return False
    except (OSError, EOFError, ValueError, TypeError):
        return False
    finally:
        posix.close(fd)
    modules = sys.modules
    kind = type(sys)
    for full, file, _, _, package, code in entries:
        made = kind(full)
        above, _, last = full.rpartition(".")
        made.__file__ = file
        made.__package__ = full if package else above
        if package:
            made.__path__ = [file.removesuffix("/__init__.py")]
        modules[full] = made
        exec(code, made.__dict__)  # noqa: S102  # what import does; the code is our own
        if above in modules:
            setattr(modules[above], last, made)
    return True

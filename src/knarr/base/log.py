"""A log as runc writes it: text or JSON lines, to a file or to standard error (hot).

containerd, conmon and Docker read the file a runtime was given by ``--log`` (with ``--log-format json``) and
show its last line of level ``error`` to the user, so names and order of the fields are theirs: ``level``,
``msg``, ``time``; text is ``time="…" level=error msg="…"``.
"""

from __future__ import annotations

import posix
import time
from errno import EINVAL

from knarr.base import fastjson
from knarr.base.errors import FileError, UsageError
from knarr.base.files import write_all

LEVELS = ("error", "warning", "info", "debug")
FORMATS = ("text", "json")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_SHORT = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def _quoted(text: str) -> str:
    """``text`` bare if it is one plain word, else in double quotes on one line, nothing of it able to end the line."""
    if text and _PLAIN.issuperset(text):
        return text
    parts: list[str] = []
    for char in text:
        if char in _SHORT:
            parts.append(_SHORT[char])
        elif char.isprintable():
            parts.append(char)
        elif "\udc80" <= char <= "\udcff":  # a byte of a file name that is not UTF-8
            parts.append(f"\\x{ord(char) - 0xDC00:02x}")
        elif char < "\x80":
            parts.append(f"\\x{ord(char):02x}")
        else:
            parts.append(f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}")
    return f'"{"".join(parts)}"'


def _local_time() -> str:
    now = time.localtime()
    offset = now.tm_gmtoff // 60
    zone = "Z" if not offset else f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", now) + zone


class Log:
    """Where messages go. ``level`` is the most talkative of LEVELS that is written; ``format`` one of FORMATS."""

    __slots__ = ("_depth", "fd", "format", "owned")

    def __init__(self, fd: int = 2, *, format: str = "text", level: str = "info", owned: bool = False) -> None:
        if format not in FORMATS:
            raise UsageError(f"unknown log format {format!r}: choose {' or '.join(FORMATS)}")
        if level not in LEVELS:
            raise UsageError(f"unknown log level {level!r}: choose one of {', '.join(LEVELS)}")
        self.fd = fd
        self.format = format
        self.owned = owned
        self._depth = LEVELS.index(level)

    def write(self, level: str, message: str) -> None:
        """Write one message of one of LEVELS as one line; a log that cannot be written does not stop the work."""
        if LEVELS.index(level) > self._depth:
            return
        if self.format == "json":
            plain = message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            line = fastjson.dumps({"level": level, "msg": plain, "time": _local_time()}) + b"\n"
        else:
            line = f'time="{_local_time()}" level={level} msg={_quoted(message)}\n'.encode()
        try:
            write_all(self.fd, line)
        except OSError:
            pass  # the reader went away or the disk is full: what we are doing matters more than its log

    def error(self, message: str) -> None:
        """Write a failure."""
        self.write("error", message)

    def warning(self, message: str) -> None:
        """Write something the user should look at."""
        self.write("warning", message)

    def info(self, message: str) -> None:
        """Write what was done."""
        self.write("info", message)

    def debug(self, message: str) -> None:
        """Write what helps to find a mistake."""
        self.write("debug", message)

    def close(self) -> None:
        """Close the file, if this log opened it."""
        if self.owned:
            self.owned = False
            posix.close(self.fd)


def open_log(path: str | None, *, format: str = "text", level: str = "info") -> Log:
    """Return a log that appends to the file at ``path`` (made if missing, mode 0644), or to standard error for None.

    Raises UsageError for an unknown format or level, FileError when the file cannot be opened.
    """
    log = Log(2, format=format, level=level)
    if path is not None:
        try:
            # O_NONBLOCK: a FIFO without a reader fails at once instead of hanging the runtime.
            flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT
            log.fd = posix.open(path, flags | posix.O_CLOEXEC | posix.O_NOCTTY | posix.O_NONBLOCK, 0o644)
            posix.set_blocking(log.fd, True)
        except OSError as error:
            raise FileError("open log", path, error.errno or EINVAL) from None
        except ValueError:
            raise FileError("open log", path, EINVAL, hint="the path holds a NUL") from None
        log.owned = True
    return log

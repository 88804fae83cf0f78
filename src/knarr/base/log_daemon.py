"""A log that goes to journald or syslog (cold). systemd's JOURNAL_NATIVE_PROTOCOL; RFC 3164 as /dev/log takes it."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_DGRAM, socket

from knarr.base.errors import FileError, UsageError
from knarr.base.log import LEVELS, Log

JOURNALD = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
_PRIORITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}
_DAEMON = 3 << 3  # syslog facility
_LONGEST = 60_000  # a datagram of a local socket takes about 200 KB


class DaemonLog(Log):
    """Sends each message as one datagram; ``format`` means nothing here."""

    __slots__ = ("_name", "_native", "_socket")

    def __init__(self, connected: socket, name: str, *, native: bool, level: str) -> None:
        super().__init__(connected.fileno(), level=level)
        self._socket = connected
        self._name = name
        self._native = native

    def write(self, level: str, message: str) -> None:
        """Send one message; a daemon that went away does not stop the work."""
        if LEVELS.index(level) > self._depth:
            return
        text = message.encode("utf-8", "surrogateescape")[:_LONGEST]
        if self._native:
            fields = (("PRIORITY", b"%d" % _PRIORITY[level]), ("SYSLOG_IDENTIFIER", self._name.encode()))
            data = b"".join(_field(name, value) for name, value in (*fields, ("MESSAGE", text)))
        else:
            data = f"<{_DAEMON | _PRIORITY[level]}>{self._name}[{os.getpid()}]: ".encode() + text.replace(b"\n", b" ")
        try:
            self._socket.send(data)
        except OSError:
            pass


def _field(name: str, value: bytes) -> bytes:
    """A field of the native protocol: a value with a line end is sent with its length."""
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def open_daemon_log(backend: str, name: str, *, level: str = "info") -> Log:
    """Return a log to ``journald`` or ``syslog`` under a name of the user's. Raises UsageError, FileError."""
    if not name or not name.isprintable() or len(name) > 100:
        raise UsageError(f"option --log: {backend}: must be followed by a name, such as {backend}:knarr")
    path = JOURNALD if backend == "journald" else SYSLOG
    connected = socket(AF_UNIX, SOCK_DGRAM, 0)
    try:
        connected.connect(path)
    except OSError as error:
        connected.close()
        raise FileError(f"log to {backend} at", path, error.errno or 0) from None
    return DaemonLog(connected, name, native=backend == "journald", level=level)

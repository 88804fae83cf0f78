"""``docker-daemon:``: images of a running dockerd, through its socket (Docker Engine API: images/get, images/load)."""

from __future__ import annotations

import http.client
import os
import socket
from errno import EINVAL
from urllib.parse import quote

from knarr.base import fastjson
from knarr.base.errors import FileError, NotFound, RegistryError, SpecError, Unsupported
from knarr.content.names import printable
from knarr.image.archive import ArchiveSink
from knarr.image.dockerarchive import DockerArchive
from knarr.image.files import ArchiveFiles, unnamed_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.image.reference import Reference

DEFAULT = "/var/run/docker.sock"
_TIMEOUT = 600.0
"""Seconds without a byte: a daemon that stores or collects a large image may be silent for long."""
_ANSWER_LIMIT = 4 << 20


def socket_path() -> str:
    """Return the path of the daemon's socket, from DOCKER_HOST or the usual one; raises Unsupported."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        return DEFAULT
    if host.startswith("unix://") and len(host) > len("unix://"):
        return host[len("unix://") :]
    why = "only sockets on this machine are"
    raise Unsupported(f"DOCKER_HOST={printable(host, 80)}", why, hint="as unix:///var/run/docker.sock")


class _Connection(http.client.HTTPConnection):
    """HTTP through a socket of this machine."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Reach the socket; raises FileError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError as error:
            self.sock.close()
            hint = "is dockerd running, and may this user speak to it?"
            raise FileError("connect to", self._path, error.errno or EINVAL, hint=hint) from None


class _Url:
    """A call of the daemon as errors name it."""

    def __init__(self, method: str, path: str, asked: str) -> None:
        self.method = method
        self.asked = asked
        self.shown = f"unix://{path}{asked.partition('?')[0]}"

    def broken(self, error: BaseException) -> RegistryError:
        """Return the error for an exchange that failed."""
        why = f"no answer within {_TIMEOUT:g} s" if isinstance(error, TimeoutError) else "the connection ended early"
        return RegistryError(self.method, self.shown, 0, why)


class DaemonImage(DockerArchive):
    """One image of a daemon, saved by it into an unnamed file. See ``source.ImageSource``."""

    def __init__(self, ref: Reference) -> None:
        name = ref.path or ref.name
        path = socket_path()
        url = _Url("GET", path, f"/images/get?names={quote(name, safe='')}")
        connection = _Connection(path)
        try:
            try:
                connection.request(url.method, url.asked)
                answer = connection.getresponse()
                if answer.status == 404:
                    raise NotFound("image", f"{name} of the docker daemon at {path}")
                if answer.status != 200:
                    raise RegistryError(url.method, url.shown, answer.status, _message(answer.read(_ANSWER_LIMIT)))
                fd = unnamed_file(answer, str(ref))
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                raise url.broken(error) from None
        finally:
            connection.close()
        super().__init__(ref.replace(path=str(ref)), ArchiveFiles(str(ref), fd=fd))


class _Load:
    """A tar on its way into the daemon."""

    def __init__(self, path: str) -> None:
        self._url = _Url("POST", path, "/images/load?quiet=1")
        self._connection = _Connection(path)
        self._connection.putrequest(self._url.method, self._url.asked)
        self._connection.putheader("Content-Type", "application/x-tar")
        self._connection.putheader("Transfer-Encoding", "chunked")
        self._connection.endheaders()

    def write(self, data: bytes, /) -> None:
        """Send a piece; raises RegistryError."""
        if data:
            self._send(b"%x\r\n" % len(data))
            self._send(data)
            self._send(b"\r\n")

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except (OSError, http.client.HTTPException) as error:
            self._refused()
            raise self._url.broken(error) from None

    def _refused(self) -> None:
        """Raise what the daemon said when it broke off, if it said something."""
        try:
            answer = self._connection.getresponse()
            data = answer.read(_ANSWER_LIMIT)
        except (OSError, http.client.HTTPException):
            return
        raise RegistryError(self._url.method, self._url.shown, answer.status, _message(data))

    def finish(self) -> None:
        """End the request and hear what came of it; raises RegistryError."""
        self._send(b"0\r\n\r\n")
        try:
            answer = self._connection.getresponse()
            data = answer.read(_ANSWER_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise self._url.broken(error) from None
        if answer.status != 200:
            raise RegistryError(self._url.method, self._url.shown, answer.status, _message(data))
        for line in data.splitlines():  # progress, as one JSON object a line; an error among it is the result
            try:
                value = fastjson.loads(line, "the daemon's answer")
            except SpecError:
                continue
            if isinstance(value, dict) and value.get("error"):
                raise RegistryError(self._url.method, self._url.shown, 0, printable(str(value["error"])))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def open_daemon_sink(ref: Reference) -> ArchiveSink:
    """Return the sink that loads an image into the daemon; raises FileError, Unsupported."""
    output = _Load(socket_path())
    return ArchiveSink("", str(ref), docker=True, names=[ref.name], output=output)


def _message(data: bytes) -> str:
    try:
        value = fastjson.loads(data, "the daemon's answer")
    except SpecError:
        return "the docker daemon failed"
    said = value.get("message") if isinstance(value, dict) else None
    return printable(said) if isinstance(said, str) and said else "the docker daemon failed"

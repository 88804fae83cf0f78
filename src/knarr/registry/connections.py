"""Connections to registries: how long things may take, how bytes are read off a socket, TLS, and what went wrong.

urllib3 keeps the connections. Each read has a time-out, headers have a size and a deadline, bodies a least speed
(docs/security.md I10, I12).
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
from contextlib import suppress
from errno import EADDRNOTAVAIL, ECONNABORTED, EINVAL
from functools import cache, partial
from threading import Lock, Thread
from time import monotonic
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as PoolSSLError

from knarr.base.errors import FileError
from knarr.base.record import Record
from knarr.content.stopping import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.content.stopping import Stop
    from knarr.registry.settings import Certificates

HEADER_LIMIT = 64 << 10
# How OpenSSL says that the other side does not speak TLS at all.
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_EOF_WHILE_READING",
    "UNKNOWN_PROTOCOL",
)


class Policy(Record):
    """Times in seconds, sizes in bytes. The defaults are containers/image's where it has one."""

    connect: float = 10.0
    """for a connection and its TLS handshake"""
    read: float = 30.0
    """for the next byte of a body"""
    headers: float = 30.0
    """for a whole response header"""
    slow_window: float = 60.0
    """seconds of waiting for a body after which its speed is judged"""
    slow_rate: int = 1024
    """bytes per second it must have had"""
    document: float = 60.0
    """for the whole of a manifest, token, list or error"""
    tries: int = 5
    """attempts at a request or at the next part of a blob"""
    backoff: float = 2.0
    """before the second attempt; doubles with each"""
    longest_wait: float = 60.0
    """between two attempts, also when the registry asks for more"""
    commit: float = 600.0
    """for the answer to an upload: a registry may copy the blob first"""
    chunk: int = 4 << 20
    """bytes of the first piece of an upload, and of each while things break"""
    piece: float = 2.0
    """a registry that takes pieces faster gets larger ones; about so much work is lost when one breaks"""
    single_post: int = 0
    """blobs of at most so many bytes are sent with the request that begins the upload (few registries take that)"""


class Broken(Exception):  # becomes a RegistryError where method and URL are known
    """An exchange that failed below HTTP.

    ``again`` when another attempt may do better, ``language`` when the other side may speak HTTP over TLS where
    plain HTTP was tried, or the other way round.
    """

    def __init__(self, why: str, *, again: bool, hint: str = "", language: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.again = again
        self.hint = hint
        self.language = language


class Waiting:
    """The sockets that are being connected, sent to, or read for the beginning of an answer.

    Another thread can end that: for all by ``stop``, for those of some work by its ``Stop``.
    """

    def __init__(self) -> None:
        self._sockets: dict[socket.socket, tuple[Stop | None, Callable[[], None]]] = {}
        self._stopped = False
        self._lock = Lock()

    def add(self, sock: socket.socket) -> None:
        """Note one; after ``stop``, or when this thread's work is to stop, it is ended at once."""
        work, end = current(), partial(_end, sock)
        with self._lock:
            known = self._sockets.get(sock)
            self._sockets[sock] = (work, end)
            if self._stopped:
                end()
        if known is not None and known[0] is not None:
            known[0].unwatch(known[1])
        if work is not None:
            work.watch(end)

    def discard(self, sock: socket.socket) -> None:
        """Forget one: its answer has begun, or the connection has gone."""
        with self._lock:
            work, end = self._sockets.pop(sock, (None, None))
        if work is not None and end is not None:
            work.unwatch(end)

    def stop(self) -> None:
        """End the waiting on all of them, and on whatever is added."""
        with self._lock:
            self._stopped = True
            for sock in self._sockets:
                _end(sock)


def _end(sock: socket.socket) -> None:
    with suppress(OSError):  # closed by the other side
        sock.shutdown(socket.SHUT_RDWR)


class _Paced(io.RawIOBase):
    """The bytes of a socket: headers by a deadline and within a size, bodies at a least speed."""

    def __init__(self, raw: Any, sock: socket.socket, policy: Policy, waiting: Waiting) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._waiting = waiting
        waiting.add(sock)
        self._policy = policy
        self._deadline: float | None = monotonic() + policy.headers
        self._count = 0  # bytes of header, or of the body in this window
        self._waited = 0.0

    def readable(self) -> bool:
        return True

    def body(self) -> None:
        """The header has been read; from now on speed counts."""
        self._deadline = None
        self._count = 0
        self._waiting.discard(self._sock)

    def readinto(self, buffer: Any, /) -> int:
        policy = self._policy
        began = monotonic()
        if self._deadline is not None:
            if self._count >= HEADER_LIMIT:
                raise Broken(f"the response header has more than {HEADER_LIMIT} bytes", again=False)
            left = self._deadline - began
            if left <= 0:
                raise Broken(f"no complete response header within {policy.headers:g} s", again=False)
            self._sock.settimeout(left)
        else:
            self._sock.settimeout(policy.read)
        try:
            count: int = self._raw.readinto(buffer) or 0
        except TimeoutError:
            if self._deadline is not None:
                what = "complete response header" if self._count else "answer"
                raise Broken(f"no {what} within {policy.headers:g} s", again=False) from None
            raise Broken(f"nothing more came for {policy.read:g} s", again=True) from None
        self._count += count
        if self._deadline is None:
            self._waited += monotonic() - began
            if self._waited > policy.slow_window:
                if self._count < policy.slow_rate * policy.slow_window:
                    why = f"it sends less than {policy.slow_rate} bytes per second"
                    raise Broken(why, again=False)
                self._count, self._waited = 0, 0.0
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._waiting.discard(self._sock)
            self._raw.close()


def _connected(address: tuple[str, int], wait: float, options: Any, waiting: Waiting) -> socket.socket:
    """Connect to the first address of a host that answers, each within ``wait`` seconds; raises OSError."""
    failed: OSError | None = None
    for family, kind, protocol, _, where in _looked_up(address, waiting):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family this kernel has not
            failed = error
            continue
        waiting.add(sock)
        try:
            for option in options or ():
                sock.setsockopt(*option)
            sock.settimeout(wait)
            sock.connect(where)
        except OSError as error:
            sock.close()
            failed = error
        else:
            return sock
        finally:
            waiting.discard(sock)
    raise failed or OSError(EADDRNOTAVAIL, os.strerror(EADDRNOTAVAIL))


def _looked_up(address: tuple[str, int], waiting: Waiting) -> list[Any]:
    """``getaddrinfo``, which can be given up; raises what it raises, OSError when it is broken off.

    Nobody can end a look-up that waits for a name server; so it has a thread, which is left behind then and ends by
    itself: it has neither a socket nor anything else of ours.
    """
    with suppress(socket.gaierror):  # a number needs no server
        return socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: list[Any] = []
    mine, theirs = socket.socketpair()

    def look() -> None:
        with theirs:
            try:
                found.append(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                found.append(error)

    waiting.add(mine)
    try:
        Thread(target=look, name="knarr-lookup", daemon=True).start()
        mine.recv(1)  # the end, of the thread's work or of our waiting
    finally:
        waiting.discard(mine)
        mine.close()
    if not found:
        raise ConnectionAbortedError(ECONNABORTED, os.strerror(ECONNABORTED))
    if isinstance(found[0], Exception):
        raise found[0]
    answer: list[Any] = found[0]
    return answer


def _pools(policy: Policy, waiting: Waiting) -> tuple[type[HTTPConnectionPool], type[HTTPSConnectionPool]]:
    """Make connection classes whose responses are read through ``_Paced``."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self._paced = _Paced(self.fp.detach(), sock, policy, waiting)
            self.fp = io.BufferedReader(self._paced, 1 << 16)

        def begin(self) -> None:
            super().begin()
            self._paced.body()

    class Stoppable(HTTPConnection):
        """One that can be broken off while it is made, and while a request is sent."""

        response_class = Response
        _twin: socket.socket | None = None

        def _new_conn(self) -> socket.socket:
            try:
                made = _connected((self._dns_host, self.port), policy.connect, self.socket_options, waiting)
            except socket.gaierror as error:
                raise NameResolutionError(self.host, self, error) from None
            except TimeoutError as error:
                raise ConnectTimeoutError(self, str(error)) from None
            except OSError as error:
                raise NewConnectionError(self, str(error)) from error
            # TLS takes the socket over, and a proxy is spoken to, before anybody else sees it.
            twin = self._twin = made.dup()
            waiting.add(twin)
            return made

        def connect(self) -> None:
            try:
                super().connect()
            finally:
                if self._twin is not None:
                    waiting.discard(self._twin)
                    self._twin.close()
                    self._twin = None

        def request(self, *args: Any, **options: Any) -> None:
            if self.sock is None:
                self.connect()
            sock: socket.socket | None = self.sock
            if sock is not None:
                waiting.add(sock)  # until the answer begins, or ``close``
            super().request(*args, **options)

        def close(self) -> None:
            sock: socket.socket | None = self.sock
            if sock is not None:
                waiting.discard(sock)
            super().close()

    class Plain(Stoppable):
        pass

    class Secure(Stoppable, HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.is_verified = True  # or the user said insecure: no warning for each request

    class PlainPool(HTTPConnectionPool):
        ConnectionCls: Any = Plain  # the protocol in urllib3's stubs is narrower than its own class

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls: Any = Secure

    return PlainPool, SecurePool


@cache
def verifying(ca_file: str, own: Certificates, _times: tuple[int, ...]) -> ssl.SSLContext:
    """Return a context that verifies everything; kept, because reading the system's authorities takes 20 ms.

    ``_times`` are the files' times of change: a certificate that was renewed is read again.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, own)
    return context


def times_of(own: Certificates) -> tuple[int, ...]:
    """Return when the files of certificates were last changed."""
    paths = [path for path in (*own.authorities, own.certificate, own.key) if path]
    return tuple(os.stat(path).st_mtime_ns for path in paths if os.path.exists(path))


def lax(own: Certificates) -> ssl.SSLContext:
    """Return a context that verifies nothing, for a registry the user calls insecure."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _load(context, own)
    return context


def _load(context: ssl.SSLContext, own: Certificates) -> None:
    """Add a registry's own authorities and our certificate for it; raises FileError naming the file."""
    for path in (*own.authorities, own.certificate):
        try:
            if path and path == own.certificate:
                context.load_cert_chain(path, own.key, password=lambda: "")  # never a question on the terminal
            elif path:
                context.load_verify_locations(path)
        except (ssl.SSLError, ValueError):
            hint = "it is no certificate in PEM form, or its key does not belong to it"
            raise FileError("use", path, EINVAL, hint=hint) from None
        except OSError as error:
            raise FileError("read", path, error.errno or EINVAL) from None


def pool_manager(policy: Policy, context: ssl.SSLContext | None, proxy: str, waiting: Waiting) -> urllib3.PoolManager:
    """Return the connections for one kind of request, through ``proxy`` if that is not empty.

    ``waiting`` gets to know on which sockets an answer is waited for.
    """
    options: dict[str, Any] = {
        "num_pools": 8,
        "maxsize": 8,
        "retries": False,
        "timeout": urllib3.Timeout(connect=policy.connect, read=policy.read),
        "ssl_context": context,
        "assert_hostname": None if context is None or context.check_hostname else False,
    }
    manager = urllib3.PoolManager(**options)
    if proxy:
        parts = urlsplit(proxy)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        manager = urllib3.ProxyManager(place, proxy_headers=headers, **options)
    plain, secure = _pools(policy, waiting)
    manager.pool_classes_by_scheme = {"http": plain, "https": secure}
    return manager


def broken(error: BaseException, policy: Policy, *, at_body: bool = False) -> Broken:
    """Say what went wrong below HTTP in words; never with the URL in urllib3's texts, which may hold a signature."""
    chain = _causes(error)

    def first(*kinds: type[BaseException]) -> Any:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    if (certificate := first(ssl.SSLCertVerificationError)) is not None:
        hint = "a registry with its own certificate authority needs that authority's certificate"
        return Broken(f"its TLS certificate is not valid: {certificate.verify_message.lower()}", again=False, hint=hint)
    if (failure := first(ssl.SSLError)) is not None:
        reason = next((one.reason for one in chain if isinstance(one, ssl.SSLError) and one.reason), "")
        ended = isinstance(failure, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
        words = reason.replace("_", " ").lower() or ("the connection ended early" if ended else "no reason given")
        return Broken(f"TLS failed: {words}", again=False, language=not at_body and reason in _NOT_TLS)
    if first(PoolSSLError) is not None:
        return Broken("TLS failed", again=False)
    if (failed := first(ProxyError)) is not None:
        detail = broken(failed.original_error, policy).why if failed.original_error is not None else str(failed)
        return Broken(f"the proxy fails: {detail}", again=False, hint="see HTTPS_PROXY, HTTP_PROXY and NO_PROXY")
    if first(socket.gaierror, NameResolutionError) is not None:
        return Broken("the host name is not known", again=False, hint="is the name right, and the network up?")
    if first(ConnectionRefusedError) is not None:
        return Broken("connection refused", again=False, hint="is the registry running there?")
    if first(NewConnectionError) is not None:
        numbers = [one.errno for one in chain if isinstance(one, OSError) and one.errno]
        return Broken(os.strerror(numbers[0]).lower() if numbers else "the connection failed", again=False)
    if first(ConnectTimeoutError) is not None:
        return Broken(f"no connection within {policy.connect:g} s", again=False)
    if first(ReadTimeoutError, TimeoutError) is not None:
        return Broken(f"no answer within {policy.read:g} s", again=False)
    if first(http.client.LineTooLong) is not None or any("100 headers" in str(cause) for cause in chain):
        return Broken("the response header is too large", again=False)
    if first(http.client.RemoteDisconnected, http.client.IncompleteRead) is not None:
        return Broken("the connection ended early", again=True, language=not at_body)
    if (reset := first(ConnectionError)) is not None and reset.errno:
        return Broken(os.strerror(reset.errno).lower(), again=True, language=not at_body)
    if first(http.client.HTTPException) is not None:
        return Broken("the answer is not HTTP", again=False, language=not at_body)
    if first(ProtocolError) is not None:
        return Broken("the connection ended early", again=True)
    return Broken("the exchange failed", again=False)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and everything under it: causes, contexts, and the errors urllib3 keeps as arguments."""
    found: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        queue.extend(
            [one.__cause__, one.__context__, getattr(one, "reason", None) if isinstance(one, HTTPError) else None]
        )
        queue.extend(argument for argument in one.args if isinstance(argument, BaseException))
    return found

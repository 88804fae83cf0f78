"""Run the registry on a socket: uvicorn with one process, TLS if a certificate is given."""

from __future__ import annotations

import os
import socket
import stat
from errno import EINVAL

from knarr.base.errors import FileError, UsageError
from knarr.base.files import read_file
from knarr.content.store import Store
from knarr.service.registry.app import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.service.registry.upstream import Upstream


def read_login(path: str) -> tuple[str, str]:
    """User and password from a file with one line ``user:password`` that nobody else can read. Raises FileError."""
    facts = os.stat(path) if os.path.exists(path) else None
    if facts is not None and stat.S_IMODE(facts.st_mode) & 0o077:
        raise FileError("use", path, EINVAL, hint=f"others can read it: chmod 600 {path}")
    user, colon, password = read_file(path, 4096).decode("utf-8", "replace").rstrip("\n").partition(":")
    if not colon or not user or "\n" in password:
        raise FileError("use", path, EINVAL, hint="it must be one line: user:password")
    return user, password


def listen(address: str) -> socket.socket:
    """A listening socket for HOST:PORT. Raises UsageError, FileError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"address {address!r} is not HOST:PORT", hint="for instance 127.0.0.1:5000")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(128)
    except socket.gaierror as error:
        raise UsageError(f"address {address!r}: {(error.strerror or 'unknown host').lower()}") from None
    except OSError as error:
        raise FileError("listen on", address, error.errno or EINVAL) from None
    return sock


def serve(
    folder: str,
    *,
    address: str = "127.0.0.1:5000",
    certificate: str = "",
    key: str = "",
    login: tuple[str, str] | None = None,
    read_only: bool = False,
    proxy: str = "",
    insecure: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the store in ``folder`` (made if missing) until SIGINT or SIGTERM; ``ready`` is told the URL.

    ``proxy``: HOST[:PORT] of a registry to be a pull-through cache of; ``insecure`` lets that speak plain HTTP.
    Without a certificate it answers on loopback addresses only. Raises UsageError, FileError.
    """
    import uvicorn

    if bool(certificate) != bool(key):
        raise UsageError("a certificate and its key belong together", hint="give --tls-cert and --tls-key")
    for path in filter(None, (certificate, key)):
        if not os.access(path, os.R_OK):
            raise FileError("read", path, 2)
    store = Store.open(folder, create=not read_only)
    sock = listen(address)
    try:
        host = sock.getsockname()[0]
        if not certificate and not (host.startswith("127.") or host == "::1"):
            hint = "give --tls-cert and --tls-key, or listen on 127.0.0.1"
            raise UsageError(
                f"{address} can be reached from elsewhere, and without TLS everybody could listen", hint=hint
            )
        app = Registry(store, login=login, read_only=read_only, upstream=_upstream(store, proxy, insecure=insecure))
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            ssl_certfile=certificate or None,
            ssl_keyfile=key or None,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"{'https' if certificate else 'http'}://{shown}:{sock.getsockname()[1]}")
        server.run(sockets=[sock])
    finally:
        sock.close()


def _upstream(store: Store, proxy: str, *, insecure: bool) -> Upstream | None:
    if not proxy:
        return None
    from knarr.registry.client import Client
    from knarr.service.registry.upstream import Upstream

    return Upstream(store, lambda repository: Client(proxy, repository, insecure=insecure))

"""TLS: verified everywhere, never given up for plain HTTP by itself (docs/security.md I12)."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler, Sample, made_certificate

from knarr.base.errors import AuthError, RegistryError
from knarr.registry.client import Client
from knarr.registry.connections import Policy
from knarr.registry.credentials import Credentials
from knarr.registry.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Policy(connect=2, read=2, headers=2, backoff=0.01, longest_wait=0.05)
BOB = Credentials("bob", "hunter2")


@pytest.fixture
def secure(certificate: tuple[str, str]) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate) as server:
        server.add("v1", Sample())
        yield server


def test_threads_that_learn_together_that_it_is_plain_http(fake: FakeRegistry) -> None:
    """Each tries TLS; the first to fail goes over to plain HTTP, and the others go along instead of failing."""
    for _ in range(10):
        transport = Transport(fake.host, QUICK, insecure=True)
        together = threading.Barrier(6)

        def ask(_: int, transport: Transport = transport, together: threading.Barrier = together) -> int:
            together.wait()
            response = transport.get("/v2/", {})
            response.close()
            return response.status

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, range(6))) == [200] * 6
        transport.close()


def size(host: str, **options: Any) -> int:
    client = Client(host, REPOSITORY, **{"policy": QUICK, **options})
    try:
        return client.manifest("v1")[0]["size"]
    finally:
        client.close()


def test_a_trusted_authority(secure: FakeRegistry, certificate: tuple[str, str]) -> None:
    assert size(secure.host, ca_file=certificate[0])
    assert size(secure.host.replace("127.0.0.1", "localhost"), ca_file=certificate[0])


def test_a_self_signed_certificate_is_refused_and_plain_http_is_no_way_out(secure: FakeRegistry) -> None:
    with pytest.raises(
        RegistryError, match=r"GET https://.*: its TLS certificate is not valid: self.signed certificate"
    ):
        size(secure.host)
    assert secure.log == []


def test_insecure_is_the_users_word(secure: FakeRegistry, fake: FakeRegistry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert size(secure.host, insecure=True)
    fake.add("v1", Sample())
    assert size(fake.host, insecure=True)  # after TLS was tried


@pytest.fixture
def example_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let names below .example mean this machine, which their text does not show."""
    real = socket.getaddrinfo

    def lookup(host: str, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".example") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.usefixtures("example_is_here")
def test_a_certificate_for_another_host(secure: FakeRegistry, certificate: tuple[str, str]) -> None:
    host = secure.host.replace("127.0.0.1", "registry.example")
    with pytest.raises(RegistryError, match="its TLS certificate is not valid: hostname mismatch"):
        size(host, ca_file=certificate[0])


def test_an_expired_certificate(tmp_path: Path) -> None:
    certificate, key = made_certificate(tmp_path)
    made = subprocess.run(
        [
            "openssl",
            "x509",
            "-in",
            certificate,
            "-days",
            "-1",
            "-signkey",
            key,
            "-out",
            certificate + ".old",
            "-copy_extensions",
            "copyall",
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no expired certificates")
    with FakeRegistry((certificate + ".old", key)) as server:
        server.add("v1", Sample())
        with pytest.raises(RegistryError, match="certificate has expired"):
            size(server.host, ca_file=certificate + ".old")


def test_an_authority_speaks_tls_only(fake: FakeRegistry, certificate: tuple[str, str]) -> None:
    fake.add("v1", Sample())
    with pytest.raises(RegistryError, match="TLS failed: wrong version number"):
        size(fake.host, ca_file=certificate[0])
    assert fake.log == []


@pytest.mark.usefixtures("example_is_here")
def test_a_remote_registry_is_never_asked_in_plain(fake: FakeRegistry) -> None:
    """As with a registry whose TLS somebody on the way takes off."""
    fake.add("v1", Sample())
    with pytest.raises(RegistryError, match=r"GET https://registry.example:.*: TLS failed: wrong version number"):
        size(fake.host.replace("127.0.0.1", "registry.example"), credentials=BOB)
    assert fake.log == []


@pytest.mark.usefixtures("example_is_here")
def test_a_token_server_with_a_bad_certificate(
    secure: FakeRegistry, tmp_path: Path, certificate: tuple[str, str]
) -> None:
    """Also when the registry itself may be insecure: the user's word was for that host alone."""
    with FakeRegistry(made_certificate(tmp_path)) as tokens:
        port = tokens.host.partition(":")[2]
        challenge = f'Bearer realm="https://auth.example:{port}/token",service="s"'
        secure.rule("/v2/", lambda handler: handler.reply(401, WWW_Authenticate=challenge))
        for options in ({"ca_file": certificate[0]}, {"insecure": True}):
            with pytest.raises(
                RegistryError, match=r"GET https://auth.example:\d+/token: its TLS certificate is not valid"
            ):
                size(secure.host, credentials=BOB, **options)
        assert tokens.log == []


@pytest.mark.usefixtures("example_is_here")
def test_a_token_server_elsewhere_gets_the_login_and_that_is_logged(
    secure: FakeRegistry, certificate: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer top-token":
            return False
        return handler.reply(401, WWW_Authenticate=challenge)

    with FakeRegistry(certificate) as tokens:
        port = tokens.host.partition(":")[2]
        challenge = f'Bearer realm="https://auth.example:{port}/token",service="s"'
        secure.rule("/v2/", check)
        tokens.rule("/token", lambda handler: handler.reply(200, b'{"token": "top-token"}'))
        with caplog.at_level(logging.INFO, "knarr.registry"):
            assert size(secure.host, ca_file=certificate[0], credentials=BOB)
        assert [request.headers["authorization"][:6] for request in tokens.log] == ["Basic "]
    assert caplog.messages == [f"the login for {secure.host} is sent to its token server auth.example"]


def test_a_redirect_to_a_bad_certificate(secure: FakeRegistry, certificate: tuple[str, str], tmp_path: Path) -> None:
    with FakeRegistry(made_certificate(tmp_path)) as other:
        other.add("v1", Sample())
        secure.rule("/v2/", lambda handler: handler.reply(307, Location=other.url + handler.path))
        for options in ({"ca_file": certificate[0]}, {"insecure": True}):
            with pytest.raises(RegistryError, match="its TLS certificate is not valid"):
                size(secure.host, **options)
        assert other.log == []


def test_a_redirect_down_to_plain_http(secure: FakeRegistry, fake: FakeRegistry, certificate: tuple[str, str]) -> None:
    fake.add("v1", Sample())

    def down(handler: Handler) -> bool:
        return handler.reply(307, Location=fake.url + handler.path)

    secure.rule("/v2/", down)
    with pytest.raises(RegistryError, match="it leads from https to http"):
        size(secure.host, ca_file=certificate[0])
    assert fake.log == []


def test_basic_over_tls(secure: FakeRegistry, certificate: tuple[str, str]) -> None:
    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization"):
            return False
        return handler.reply(401, WWW_Authenticate='Basic realm="x"')

    secure.rule("/v2/", check)
    assert size(secure.host, ca_file=certificate[0], credentials=BOB)
    with pytest.raises(AuthError):
        size(secure.host, ca_file=certificate[0])


def test_old_tls_and_client_certificates(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for change, why in (
        ("old", "protocol version|unsupported|version|early|reset"),
        ("client", "certificate required|early|reset|bad certificate"),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if change == "old":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
                context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        else:
            context.verify_mode = ssl.CERT_REQUIRED
        monkeypatch.setattr(ssl, "SSLContext", lambda _protocol, context=context: context)
        server = FakeRegistry(certificate)
        monkeypatch.undo()
        with server:
            server.add("v1", Sample())
            with pytest.raises(RegistryError, match=why):
                size(server.host, ca_file=certificate[0], policy=Policy(tries=1, backoff=0.01))
            assert server.log == []


def test_a_server_that_says_nothing(certificate: tuple[str, str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        kept: list[socket.socket] = []
        thread = threading.Thread(target=lambda: kept.append(listener.accept()[0]), daemon=True)
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RegistryError, match=r"within 0.3 s"):
            size(host, ca_file=certificate[0], policy=Policy(connect=0.3, read=0.3, headers=0.3))
        thread.join()
        for one in kept:
            one.close()

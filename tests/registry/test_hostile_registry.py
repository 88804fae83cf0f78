"""Registries that send us elsewhere and want what is not theirs (docs/security.md I12)."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

import pytest
from fakeregistry import FakeRegistry, Handler, Sample, digest_of
from hostile import BLOBS, BOB, BOMB, MANIFESTS, bearers, pull, refused, wants_basic

from knarr.base.errors import (
    AuthError,
    NotFound,
    RegistryError,
)
from knarr.content.store import Store
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


# Where credentials go


def test_a_redirect_elsewhere_gets_no_credentials(store: Store, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(2000, 3000))
    elsewhere.blobs.update(sample.blobs)
    fake.rule("/v2/", wants_basic)
    fake.rule(BLOBS, lambda handler: handler.reply(307, Location=f"{elsewhere.url}{handler.path}?X-Signature=abc"))
    elsewhere.rule(BLOBS, lambda handler: strip_query(elsewhere, handler))
    pull(store, fake, credentials=BOB)
    assert len(elsewhere.log) == 3
    for request in elsewhere.log:
        assert not {"authorization", "cookie", "proxy-authorization"} & set(request.headers)
    assert "authorization" in fake.log[-1].headers


def strip_query(server: FakeRegistry, handler: Handler) -> bool:
    handler.path = handler.path.partition("?")[0]
    server.answer(handler)
    return True


def test_a_login_asked_for_elsewhere_is_not_given(store: Store, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", wants_basic)
    fake.rule(BLOBS, lambda handler: handler.reply(307, Location=elsewhere.url + handler.path))
    elsewhere.rule("/", wants_basic)
    refused(store, fake, AuthError, "401", credentials=BOB)
    assert elsewhere.log
    assert all("authorization" not in request.headers for request in elsewhere.log)


def test_credentials_stay_off_when_a_redirect_leads_back(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry
) -> None:
    fake.add("v1", Sample())

    def back(handler: Handler) -> bool:
        if "back" in handler.path:
            return handler.reply(401, WWW_Authenticate='Basic realm="x"')
        return handler.reply(307, Location=elsewhere.url + handler.path)

    fake.rule("/v2/", wants_basic)
    fake.rule(BLOBS, back)
    elsewhere.rule("/", lambda handler: handler.reply(307, Location=fake.url + handler.path + "?back"))
    refused(store, fake, AuthError, "401", credentials=BOB)
    assert all("authorization" not in request.headers for request in fake.asked("back"))


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("https://user:pw@cdn.invalid/x?s=hunter2", "it carries a user name or password"),
        ("file:///etc/passwd", "not http or https but file"),
        ("unix:/run/docker.sock", "not http or https but unix"),
        ("http://[::1/x", "it is not a URL"),
        ("http://169.254.169.254:1/latest", "its own link"),
    ],
)
def test_redirects_to_odd_places(store: Store, fake: FakeRegistry, location: str, why: str) -> None:
    fake.add("v1", Sample())
    fake.rule(BLOBS, lambda handler: handler.reply(307, Location=location))
    refused(store, fake, RegistryError, why)


def test_redirects_without_end(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    hops: list[str] = []

    def onward(handler: Handler) -> bool:
        hops.append(handler.path)
        return handler.reply(307, Location=f"{handler.path}x")

    fake.rule(BLOBS, onward)
    refused(store, fake, RegistryError, "more than 10 redirects")
    assert len(hops) == 11
    fake.rules.clear()
    fake.rule(MANIFESTS, lambda handler: handler.reply(302, Location=handler.path))
    refused(store, fake, RegistryError, "more than 10 redirects")


def test_ten_redirects_are_followed(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())

    def onward(handler: Handler) -> bool:
        path, _, count = handler.path.partition("?")
        if count == "10":
            handler.path = path
            return False
        return handler.reply(307, Location=f"./{path.rpartition('/')[2]}?{int(count or 0) + 1}")

    fake.rule(BLOBS, onward)
    pull(store, fake)
    assert store.resolve("x")["digest"] == sample.digest


def test_a_redirect_without_a_place(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    fake.rule(BLOBS, lambda handler: handler.reply(307))
    refused(store, fake, RegistryError, "307 the registry failed")


def test_bodies_of_redirects_are_not_read(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())

    def flood(handler: Handler) -> bool:
        if "?" in handler.path:
            return strip_query(fake, handler)
        handler.send_response(307)
        handler.send_header("Location", handler.path + "?now")
        handler.send_header("Content-Length", str(1 << 40))
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(BOMB)
        except OSError:
            pass
        handler.close_connection = True
        return True

    fake.rule(BLOBS, flood)
    began = time.monotonic()
    pull(store, fake)
    assert time.monotonic() - began < 10
    assert store.resolve("x")["digest"] == sample.digest


def test_foreign_urls_are_never_asked(store: Store, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    sample = Sample()
    layer = {**sample.layers[0], "mediaType": mediatypes.LAYER_FOREIGN_GZIP, "urls": [f"{elsewhere.url}/layer"]}
    fake.add("v1", sample.seal(layers=[layer]))
    del fake.blobs[layer["digest"]]
    refused(store, fake, NotFound, f"blob {layer['digest']}")
    assert elsewhere.log == []


# Token servers


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.invalid/token",
        "https://169.254.169.254/",
        "https://10.0.0.1/",
        "https://localhost/",
        "file:///x",
        "x",
        "https://u:p@a.invalid/",
    ],
)
def test_token_servers_that_may_not_be_asked(store: Store, fake: FakeRegistry, realm: str) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", bearers(realm))
    refused(store, fake, AuthError, "401 it sends logins to .* which is refused", credentials=BOB)


def test_a_realm_on_another_port_of_this_host_is_its_own(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry
) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", bearers(f"{elsewhere.url}/token"))
    elsewhere.rule("/token", lambda handler: handler.reply(200, b'{"token": "t"}'))
    refused(store, fake, AuthError, "401", credentials=BOB)  # the token is never right here


def test_a_redirecting_token_server_is_not_followed(store: Store, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", bearers(f"{fake.url}/token"))
    fake.rule("/token", lambda handler: handler.reply(307, Location=f"{elsewhere.url}/token"))
    refused(store, fake, RegistryError, "307 the token server does not give a token", credentials=BOB)
    assert elsewhere.log == []


@pytest.mark.parametrize(
    "challenge", ["", "Bearer", 'Bearer service="s"', "Negotiate", 'Digest realm="x"', "=,,=" * 100]
)
def test_challenges_that_cannot_be_answered(store: Store, fake: FakeRegistry, challenge: str) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", lambda handler: handler.reply(401, WWW_Authenticate=challenge))
    refused(store, fake, AuthError, "by no method knarr knows", credentials=BOB)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"x" * (10 << 20), "the token has more than 1048576 bytes"),
        (b"<html>", "is not JSON"),
        (b"{}", "holds no token"),
        (b'{"token": ""}', "holds no token"),
        (b'{"token": 5}', "holds no token"),
        (b"[]", "holds no token"),
        (b'{"token": "a\\r\\nX-Evil: y"}', "impossible characters"),
        (b'{"token": "a", "token": "b"}', "is not JSON"),
    ],
)
def test_tokens_that_are_none(store: Store, fake: FakeRegistry, body: bytes, why: str) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", bearers(f"{fake.url}/token"))
    fake.rule("/token", lambda handler: handler.reply(200, body))
    refused(store, fake, RegistryError, why)


@pytest.mark.parametrize("lasts", [0, -1, '"x"', 10**18, "true", "1.5", "null"])
def test_odd_lifetimes_of_tokens(store: Store, fake: FakeRegistry, lasts: object) -> None:
    fake.add("v1", Sample(1000, 1000, 1000))
    given: list[int] = []

    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer good":
            return False
        return bearers(f"{fake.url}/token")(handler)

    def give(handler: Handler) -> bool:
        given.append(1)
        return handler.reply(200, f'{{"token": "good", "access_token": "bad", "expires_in": {lasts}}}'.encode())

    fake.rule("/v2/", check)
    fake.rule("/token", give)
    pull(store, fake)
    assert len(given) == 1


def test_a_login_refused_again_and_again_ends(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    fake.rule("/v2/", bearers(f"{fake.url}/token"))
    fake.rule("/token", lambda handler: handler.reply(200, b'{"token": "t"}'))
    refused(store, fake, AuthError, "401 it wants a login")
    assert len(fake.asked("/token")) == 2


# What is said


def test_nothing_secret_is_logged(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    sample = fake.add("v1", Sample())
    elsewhere.blobs.update(sample.blobs)

    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer top-token":
            return False
        return bearers(f"{fake.url}/token")(handler)

    fake.rule("/v2/", check)
    fake.rule("/token", lambda handler: handler.reply(200, b'{"token": "top-token", "refresh_token": "top-refresh"}'))
    with caplog.at_level(logging.DEBUG):
        pull(store, fake, credentials=BOB)
    for secret in ("hunter2", "Ym9iOmh1bnRlcjI", "top-token", "top-refresh"):
        assert secret not in caplog.text


def test_presigned_addresses_are_not_repeated(store: Store, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    fake.add("v1", Sample())
    fake.rule(BLOBS, lambda handler: handler.reply(307, Location=f"{elsewhere.url}/x?X-Signature=hunter2"))
    elsewhere.rule("/", lambda handler: handler.reply(403, b"<Error>hunter2</Error>"))
    refused(store, fake, AuthError, f"GET {elsewhere.url}/x: 403 access is denied")
    elsewhere.rules.clear()
    elsewhere.rule("/", lambda handler: handler.drop())
    refused(store, fake, RegistryError, "connection|early")


def test_echoed_secrets_are_hidden(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())

    def echo(handler: Handler) -> bool:
        sent = handler.headers.get("Authorization", "")
        if not sent:
            return wants_basic(handler)
        body = json.dumps({"errors": [{"code": "X", "message": f"bad: {sent} hunter2"}]}).encode()
        return handler.reply(403, body)

    fake.rule("/v2/", echo)
    said = refused(store, fake, AuthError, "403 access is denied: bad: Basic …", credentials=BOB)
    assert "Ym9iOmh1bnRlcjI" not in said
    assert digest_of(b"") not in said

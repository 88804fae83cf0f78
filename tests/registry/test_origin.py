"""Where a registry may send us: redirects, token servers, next pages (docs/security.md I12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.registry.origin import (
    Origin,
    Refused,
    check_next,
    check_realm,
    check_redirect,
    is_internal,
    is_loopback,
    shown,
    split,
)

REMOTE = Origin("https", "registry.example", 443)
LOCAL = Origin("http", "127.0.0.1", 5000)
BLOB = "https://registry.example/v2/a/blobs/x"

LOOPBACKS = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "127.1",
    "0x7f.1",
    "2130706433",
    "0",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "0.0.0.0",  # noqa: S104  # a name to be refused, not an address to listen on
]
INTERNALS = [
    *LOOPBACKS,
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "[fe80::1]",
    "[fd00::1]",
    "0xa9fea9fe",
    "2852039166",
]
PUBLIC = ["example.com", "auth.docker.io", "8.8.8.8", "[2001:4860:4860::8888]", "1.2.3.4.example", "0x.example"]


@pytest.mark.parametrize("host", INTERNALS)
def test_internal_hosts_in_every_spelling(host: str) -> None:
    assert is_internal(host.strip("[]"))
    assert is_loopback(host.strip("[]")) == (host in LOOPBACKS)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_hosts(host: str) -> None:
    assert not is_internal(host.strip("[]"))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
        ("https://cdn.example/x#fragment", "https://cdn.example/x"),
        ("/other", "https://registry.example/other"),
        ("other", "https://registry.example/v2/a/blobs/other"),
        ("//cdn.example/y", "https://cdn.example/y"),
        ("https://registry.example:444/x", "https://registry.example:444/x"),
        ("https://10.0.0.1/x", "https://10.0.0.1/x"),  # on-premises storage
    ],
)
def test_redirects_followed(location: str, target: str) -> None:
    assert check_redirect(BLOB, location, REMOTE) == target


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://registry.example/x", "from https to http"),
        ("https://user:pw@cdn.example/x", "user name or password"),
        ("https://a:80@evil/x", "user name or password"),
        ("file:///etc/passwd", "not http or https but file"),
        ("unix:/run/x.sock", "not http or https but unix"),
        ("ftp://cdn.example/x", "not http or https but ftp"),
        ("javascript:x", "not http or https"),
        ("https://cdn.example:99999/x", "not a URL"),
        ("https://cdn.example:x/x", "not a URL"),
        ("https://[::1/x", "not a URL"),
        ("https://bücher.example/x", "characters no URL"),
        ("https://cdn.example/a\r\nX: y", "characters no URL"),
        ("https://cdn.example/a b", "characters no URL"),
        *((f"https://{host}/x", "its own link") for host in [*LOOPBACKS, "169.254.169.254", "[fe80::1]", "0xa9fea9fe"]),
    ],
)
def test_redirects_refused(location: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        check_redirect(BLOB, location, REMOTE)


def test_a_registry_on_this_machine_may_stay_here() -> None:
    url = "http://127.0.0.1:5000/v2/a/blobs/x"
    assert check_redirect(url, "http://127.0.0.1:9000/x", LOCAL) == "http://127.0.0.1:9000/x"
    assert check_redirect(url, "https://localhost/x", LOCAL) == "https://localhost/x"


@pytest.mark.parametrize(
    "realm",
    [
        "https://auth.example/token",
        "https://registry.example/token",
        "https://registry.example:5001/t?a=b",
        "https://8.8.8.8/",
    ],
)
def test_token_servers_asked(realm: str) -> None:
    assert check_realm(realm, REMOTE) == realm


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example/token",
        "http://registry.example/token",
        "file:///x",
        "",
        "token",
        "https://user:pw@auth.example/",
        *(f"https://{host}/token" for host in INTERNALS),
    ],
)
def test_token_servers_refused(realm: str) -> None:
    with pytest.raises(Refused):
        check_realm(realm, REMOTE)


def test_token_servers_of_a_plain_registry_here() -> None:
    assert check_realm("http://127.0.0.1:5001/token", LOCAL) == "http://127.0.0.1:5001/token"
    assert check_realm("https://auth.example/", LOCAL) == "https://auth.example/"
    for realm in ("http://auth.example/", "https://10.0.0.1/", "https://localhost/"):
        with pytest.raises(Refused):
            check_realm(realm, LOCAL)


def test_next_pages_stay_at_the_registry() -> None:
    url = "https://registry.example/v2/a/tags/list"
    assert check_next(url, "/v2/a/tags/list?last=x", REMOTE) == f"{url}?last=x"
    for link in ("https://evil.example/x", "http://registry.example/x", "https://registry.example:444/x", "file:///x"):
        with pytest.raises(Refused):
            check_next(url, link, REMOTE)


def test_urls_are_shown_without_secrets() -> None:
    assert shown("https://user:pw@h/x?sig=secret#f") == "https://h/x"
    assert shown("https://h/a\x1b[31m") == "https://h/a?[31m"
    assert len(shown("https://h/" + "x" * 5000)) == 300
    assert shown("h/x?y") == "h/x"


@given(st.text(max_size=60))
def test_nothing_but_refused_comes_out(text: str) -> None:
    for check in (check_realm, lambda value, origin: check_redirect(BLOB, value, origin)):
        try:
            target = check(text, REMOTE)
        except Refused:
            continue
        parts, origin = split(target)
        assert origin.scheme == "https"
        assert not parts.fragment
    assert "@" not in shown("https://" + text).partition("://")[2].partition("/")[0]

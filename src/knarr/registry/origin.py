"""Origins and where a registry may send us: what binds credentials to a place (docs/security.md I12).

A registry's answers name other addresses: redirects, token servers, next pages. These rules decide, on the text
of the URL and before any name is looked up, which of them are asked at all.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urljoin, urlsplit

from knarr.base.record import Record

_PORTS = {"http": 80, "https": 443}


class Origin(Record):
    """Scheme, host and port: credentials belong to one of these (RFC 6454)."""

    scheme: str
    host: str
    port: int


class Refused(Exception):  # a reason on its way to a sentence, not an error of its own
    """An address the registry names must not be asked; the text says why."""


def split(url: str) -> tuple[SplitResult, Origin]:
    """Take an http or https URL apart; raises Refused for anything else, credentials in it included."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise Refused("it has characters no URL may have")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("it is not a URL") from None
    if parts.scheme not in _PORTS:
        raise Refused(f"it is not http or https but {parts.scheme[:20] or 'nothing'}")
    if "@" in parts.netloc:
        raise Refused("it carries a user name or password")
    if not parts.hostname:
        raise Refused("it has no host")
    return parts, Origin(parts.scheme, parts.hostname.lower().rstrip("."), port or _PORTS[parts.scheme])


def shown(url: str) -> str:
    """Return a URL fit for messages: without query (signatures, tokens), fragment and credentials, and not endless."""
    head = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = head.partition("://")
    if mark:
        host, slash, path = rest.partition("/")
        head = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    head = "".join(c if c.isprintable() else "?" for c in head)
    return head if len(head) <= 300 else head[:299] + "…"


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address a host literally is, in every spelling the resolver takes (127.1, 0x7f.1, 2130706433)."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        last = host.rpartition(".")[2].lower()
        if not (last[:1].isdigit() or last.startswith("0x")):
            return None
        try:
            return ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its name alone."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = address_of(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_internal(host: str) -> bool:
    """Say whether a host is literally this machine, its link, or a private network."""
    address = address_of(host)
    return is_loopback(host) or (address is not None and not address.is_global)


def _join(url: str, target: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        raise Refused("it is not a URL") from None


def check_redirect(url: str, location: str, registry: Origin) -> str:
    """Return the absolute URL a redirect leads to; raises Refused.

    Never from https down to http, never to credentials in the URL, and never to this machine or its link
    unless the registry is there itself.
    """
    parts, origin = split(_join(url, location))
    _, before = split(url)
    if before.scheme == "https" and origin.scheme == "http":
        raise Refused("it leads from https to http")
    address = address_of(origin.host)
    on_link = address is not None and (address.is_link_local or address.is_multicast)
    here = is_loopback(origin.host) and not is_loopback(registry.host)
    if (on_link or here) and origin.host != registry.host:
        raise Refused("it leads to this machine or its own link")
    return parts._replace(fragment="").geturl()


def check_realm(realm: str, registry: Origin) -> str:
    """Return the URL of a token server a registry names; raises Refused.

    https unless it is the registry's own host and that is http; no literal private address but the registry's own.
    """
    parts, origin = split(realm)
    if origin.host != registry.host:
        if origin.scheme != "https":
            raise Refused("a token server elsewhere must be https")
        if is_internal(origin.host):
            raise Refused("it is a private address")
    elif registry.scheme == "https" and origin.scheme != "https":
        raise Refused("the registry is https, its token server is not")
    return parts._replace(fragment="").geturl()


def check_next(url: str, link: str, registry: Origin) -> str:
    """Return the URL of the next page; raises Refused when it leaves the registry."""
    parts, origin = split(_join(url, link))
    if origin != registry:
        raise Refused("the next page is at another place")
    return parts._replace(fragment="").geturl()


def check_upload(url: str, location: str, registry: Origin) -> str:
    """Return the URL an upload goes on at; raises Refused when it leaves the registry.

    Whoever is there gets the login and the bytes (CVE-2026-50151).
    """
    parts, origin = split(_join(url, location))
    if origin != registry:
        raise Refused("an upload goes on at the registry itself or not at all")
    return parts._replace(fragment="").geturl()

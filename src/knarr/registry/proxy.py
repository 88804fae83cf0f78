"""Which proxy a URL goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in small letters too.

This machine itself is never asked through a proxy. In a CGI program HTTP_PROXY is a header of the caller's and does not
count (httpoxy).
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from knarr.base.errors import Unsupported
from knarr.registry.origin import address_of, is_loopback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def proxy_for(scheme: str, host: str, port: int, environ: Mapping[str, str] | None = None) -> str:
    """Return the URL of the proxy for an origin, "" for none; raises Unsupported for one that is not HTTP."""
    environ = os.environ if environ is None else environ
    if is_loopback(host):
        return ""
    found = ""
    for name in (f"{scheme}_proxy", "all_proxy"):
        upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper(), "")
        found = environ.get(name, "") or upper
        if found:
            break
    if not found or excepted(host, port, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return ""
    url = found if "://" in found else f"http://{found}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise Unsupported(f"the proxy in {name.upper()}", "it is not an http:// or https:// address")
    return url


def excepted(host: str, port: int, rules: str) -> bool:
    """Say whether NO_PROXY names a host: itself, a domain it is in, its address or network; ``*`` is all."""
    address = address_of(host)
    for rule in (word.strip().lower() for word in rules.split(",")):
        if not rule:
            continue
        if rule == "*":
            return True
        name, _, number = rule.rpartition(":")
        if name and number.isdigit() and "]" not in number and ":" not in name.strip("[]"):
            if int(number) != port:
                continue
            rule = name
        if address is not None:
            try:
                if address in ipaddress.ip_network(rule.strip("[]"), strict=False):
                    return True
            except (ValueError, TypeError):
                pass  # a name
        rule = rule.removeprefix("*")
        domain = rule if rule.startswith(".") else f".{rule}"
        if host == domain[1:] or host.endswith(domain):
            return True
    return False

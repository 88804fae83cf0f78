"""How slirp4netns is called for a container (pure)."""

from __future__ import annotations

import ipaddress

from knarr.base.errors import UsageError
from knarr.engine.networks import UserNetwork, switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.bundle.options import Port

API = "network"
"""The socket that ports are published by, in the container's directory of the state; gone when that is done."""
_KIND = "slirp4netns"
_OPTIONS = (
    "allow_host_loopback", "cidr", "enable_ipv6", "mtu", "outbound_addr", "outbound_addr6", "port_handler",
)  # fmt: skip
_MTU, _GUEST_MTU, _MOST = 65520, 1500, 65521


def slirp(program: str, options: Sequence[str], ports: Sequence[Port], *, guest: bool, ipv6: bool) -> UserNetwork:
    """The call for these options, which are Podman's. Raises UsageError.

    ``guest``: the container's devices are a guest's; ``ipv6``: this machine has IPv6.
    """
    given: dict[str, str] = {}
    for word in options:
        name, equals, value = word.partition("=")
        if name not in _OPTIONS or not equals:
            raise UsageError(f"network {_KIND}: {word!r} is not known", hint=f"there are {'=…, '.join(_OPTIONS)}=…")
        given[name] = value
    loopback = switch(given, "allow_host_loopback", otherwise=False, kind=_KIND)
    if guest and given.get("enable_ipv6") == "true":
        raise UsageError(f"network {_KIND}: a guest has no IPv6 there", hint="leave out enable_ipv6")
    ipv6 = switch(given, "enable_ipv6", otherwise=ipv6 and not guest, kind=_KIND)
    handler = given.pop("port_handler", _KIND)
    if handler != _KIND:
        hint = "leave it out: slirp4netns publishes the ports itself, and programs see who calls"
        raise UsageError(f"network {_KIND}: port_handler={handler} is not there", hint=hint)
    own, gateway, resolver = _addresses(given)
    words = [program, "--configure", "--ready-fd=3", "--enable-sandbox", "--enable-seccomp", "--netns-type=path"]
    words.append(f"--mtu={_mtu(given.pop('mtu', ''), guest=guest)}")
    if not loopback:
        words.append("--disable-host-loopback")
    if ipv6:
        words.append("--enable-ipv6")
    if "cidr" in given:
        words.append(f"--cidr={given['cidr']}")
    outbound = [name for name in ("outbound_addr", "outbound_addr6") if name in given]
    words += [f"--{name.replace('_', '-')}={given[name]}" for name in outbound]
    for port in ports:
        if ":" in port.ip:
            raise UsageError(f"network {_KIND} publishes at IPv4 addresses only, not at {port.ip}")
    if ports:
        words.append(f"--api-socket={API}")
    words += ["/proc/self/fd/0", "tap0"]
    return UserNetwork(program, tuple(words), True, bool(ports), own, resolver, gateway if loopback else "")


def _mtu(text: str, *, guest: bool) -> int:
    if not text:
        return _GUEST_MTU if guest else _MTU
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 68 <= int(text) <= _MOST):
        raise UsageError(f"network {_KIND}: mtu={text} should be a number from 68 to {_MOST}")
    return int(text)


def _addresses(given: dict[str, str]) -> tuple[str, str, str]:
    """The container's address, this machine's and the resolver's, as slirp4netns numbers them."""
    text = given.get("cidr", "10.0.2.0/24")
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        network = None
    if network is None or network.prefixlen > 25:
        raise UsageError(f"network {_KIND}: cidr={text} should be an IPv4 network such as 10.0.2.0/24, at most /25")
    return str(network[100]), str(network[2]), str(network[3])

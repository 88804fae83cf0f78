"""Networks of containers as people ask for them: ``--network``, ``--publish``, ``--dns``, ``--add-host`` (cold).

    none         the loopback device alone
    host         this machine's own
    slirp4netns  a program of an ordinary user's, which speaks TCP and UDP for the container: --network slirp4netns[:…]
    pasta        another one: --network pasta[:…]
    private      whichever of the two is installed

Texts become records here; what the two programs make of them is slirp.py and pasta.py, their processes usernet.py.
"""

from __future__ import annotations

import ipaddress
import os
import shutil

from knarr.base.errors import FileError, Unsupported, UsageError
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.engine.ports import ip_address, parse_publish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.bundle.options import RunOptions

PROGRAMS = {"slirp4netns": "slirp4netns", "pasta": "passt"}
"""Kinds of network that take a program, and Debian's package with it."""
KINDS = ("none", "host", "private", *PROGRAMS)
_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"
GATEWAY = "host-gateway"


class UserNetwork(Record):
    """A program that is the network of a container, and how it is called.

    ``argv`` as it is to be executed, where descriptor 0 is the network namespace. When all is ready descriptor 3 gets a
    byte if it ``tells``, else its first process ends with 0. ``address`` is the container's, "" where it is not known
    before; ``resolver`` and ``gateway`` likewise: the latter is this machine's loopback, if that may be reached.
    ``takes``: whether ports are published by its API socket.
    """

    program: str
    argv: tuple[str, ...]
    tells: bool = False
    takes: bool = False
    address: str = ""
    resolver: str = ""
    gateway: str = ""


def parse_network(text: str) -> tuple[str, tuple[str, ...]]:
    """The kind and the options of ``--network KIND[:OPTION,…]``. Raises UsageError."""
    kind, colon, rest = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"network {kind!r} is not known", hint=f"there are {', '.join(KINDS)}")
    if colon and kind not in PROGRAMS:
        raise UsageError(f"network {text!r}: {kind} takes no options")
    return kind, tuple(word for word in rest.split(",") if word)


def parse_dns(text: str) -> str:
    """The address of a resolver. Raises UsageError."""
    return ip_address(text, "dns")


def parse_host(text: str) -> tuple[str, str]:
    """``NAME:IP`` of ``--add-host``; the address may be ``host-gateway``. Raises UsageError."""
    name, colon, address = text.partition(":")
    if not colon or not name or not all(char.isalnum() or char in "-._" for char in name) or not name.isascii():
        raise UsageError(f"add-host {text!r} should be NAME:IP")
    return name, address if address == GATEWAY else ip_address(address.strip("[]"), f"add-host {text!r}")


def requested(
    options: RunOptions,
    network: str,
    publish: Iterable[str] = (),
    dns: Iterable[str] = (),
    search: Iterable[str] = (),
    hosts: Iterable[str] = (),
) -> RunOptions:
    """The options with what these texts say of the network. Raises UsageError."""
    kind, words = parse_network(network)
    for domain in search:
        if not domain or not domain.isascii() or any(char.isspace() for char in domain):
            raise UsageError(f"dns-search {domain!r} is not a domain")
    found: RunOptions = options.replace(
        network=kind,
        network_options=words,
        publish=tuple(port for text in publish for port in parse_publish(text)),
        dns=tuple(parse_dns(text) for text in dns),
        dns_search=tuple(search),
        hosts=tuple(parse_host(text) for text in hosts),
    )
    return found


def settled(options: RunOptions) -> RunOptions:
    """The options with ``private`` decided; what does not go together is refused. Raises UsageError, Unsupported."""
    kind = options.network
    if kind == "private":
        kind = next((each for each in PROGRAMS if find(each)), "slirp4netns")
        options = options.replace(network=kind)
    if kind in PROGRAMS:
        program(kind)
        return options
    hint = "--network slirp4netns or pasta gives it one whose ports can be published"
    if options.publish:
        what = "has no network" if kind == "none" else "shares this machine's network"
        raise UsageError(f"ports cannot be published: the container {what}", hint=hint)
    if kind == "none" and (options.dns or options.dns_search):
        raise UsageError("the container has no network to ask a resolver by", hint="choose one with --network")
    return options


def wanted(options: RunOptions, *, guest: bool) -> UserNetwork | None:
    """The program that is to be the network, and its call; None where there is none. Raises UsageError, Unsupported."""
    if options.network == "slirp4netns":
        from knarr.engine.slirp import slirp

        place = program(options.network)
        return slirp(place, options.network_options, options.publish, guest=guest, ipv6=_has_ipv6())
    if options.network == "pasta":
        from knarr.engine.pasta import pasta

        place, root = program(options.network), os.geteuid() == 0
        forward = not options.dns and not _resolvers(_of_host("/etc/resolv.conf"))
        return pasta(place, options.network_options, options.publish, guest=guest, root=root, forward=forward)
    return None


def _has_ipv6() -> bool:
    """Whether this machine has an IPv6 address that is good for more than its neighbours: proc(5), if_inet6."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    return any(row[3] == "00" and row[5] != "lo" for row in rows)


def find(kind: str) -> str:
    """Path of the program of a kind of network; "" where it is not installed."""
    return shutil.which(kind, path=f"{os.environ.get('PATH', '')}:{_PLACES}") or ""


def program(kind: str) -> str:
    """As ``find``. Raises Unsupported."""
    found = find(kind)
    if not found:
        hint = f"install the package {PROGRAMS[kind]}"
        raise Unsupported(f"the network {kind}", f"the program {kind} is not installed", hint=hint)
    return os.path.abspath(found)


def named_hosts(options: RunOptions, network: UserNetwork | None) -> tuple[tuple[str, str], ...]:
    """The (name, address) pairs of ``--add-host`` with ``host-gateway`` resolved. Raises UsageError."""
    if not any(address == GATEWAY for _, address in options.hosts):
        return options.hosts
    gateway = network.gateway if network else "127.0.0.1" if options.network == "host" else ""
    if not gateway:
        hint = "--network slirp4netns:allow_host_loopback=true lets it"
        raise UsageError(f"add-host …:{GATEWAY}: the container may not reach this machine's loopback", hint=hint)
    return tuple((name, gateway if address == GATEWAY else address) for name, address in options.hosts)


def switch(options: dict[str, str], name: str, *, otherwise: bool, kind: str) -> bool:
    """A yes or no among options, which is taken out. Raises UsageError."""
    text = options.pop(name, "")
    if text not in ("", "true", "false"):
        raise UsageError(f"network {kind}: {name}={text} should be true or false")
    return text == "true" if text else otherwise


def resolv_conf(of_host: str, *, first: str, dns: Iterable[str], search: Iterable[str]) -> str:
    """A resolv.conf: the resolvers that were named, or ``first`` and those of this machine that are no loopback. Pure.

    ``of_host`` is this machine's; its search list and options stay unless another list was named.
    """
    named = [f"nameserver {address}" for address in dns]
    searched = " ".join(search)
    lines = [f"search {searched}"] if searched and searched != "." else []
    kept = [line.split() for line in of_host.splitlines()]
    if not searched:
        lines += [" ".join(words) for words in kept if words[:1] in (["search"], ["domain"])]
    if not named:
        named = [f"nameserver {address}" for address in (first, *_resolvers(of_host)) if address]
    lines += named
    lines += [" ".join(words) for words in kept if words[:1] == ["options"]]
    return "".join(f"{line}\n" for line in lines)


def _resolvers(of_host: str) -> list[str]:
    """The resolvers in a resolv.conf that others than this machine can ask."""
    found = [line.split() for line in of_host.splitlines()]
    return [words[1] for words in found if words[:1] == ["nameserver"] and len(words) > 1 and _reachable(words[1])]


def _of_host(path: str) -> str:
    try:
        return read_file(path, 1 << 20).decode("utf-8", "replace")
    except FileError:
        return ""


def _reachable(address: str) -> bool:
    """Whether a resolver of this machine's is one for others too."""
    try:
        return not ipaddress.ip_address(address.partition("%")[0]).is_loopback and "%" not in address
    except ValueError:
        return False

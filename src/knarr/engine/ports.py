"""Ports of this machine that lead into a container: their texts, and whether they are free (cold)."""

from __future__ import annotations

import ipaddress
from errno import EADDRINUSE
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from knarr.base.errors import InUse, KernelError, Unsupported, UsageError
from knarr.bundle.options import Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal


def parse_publish(text: str) -> tuple[Port, ...]:
    """The ports of ``-p [[IP:][HOST]:]CONTAINER[/tcp|udp]``, of which HOST and CONTAINER may be ranges.

    Without IP all of this machine's IPv4 addresses are meant, without HOST any free port. Raises UsageError.
    """
    body, slash, protocol = text.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise UsageError(f"publish {text!r}: the protocol {protocol!r} is not tcp or udp")
    address = ""
    if body.startswith("["):
        address, bracket, body = body[1:].partition("]:")
        if not bracket:
            raise UsageError(f"publish {text!r}: an IPv6 address should be as in [::1]:8080:80")
    elif body.count(":") == 2:
        address, _, body = body.partition(":")
    if body.count(":") > 1:
        raise UsageError(f"publish {text!r} should be [[IP:][HOST]:]CONTAINER[/tcp|udp]")
    theirs, _, inside = body.rpartition(":")
    ports = _range(inside, text)
    hosts = _range(theirs, text) if theirs else [0] * len(ports)
    if len(hosts) != len(ports):
        raise UsageError(f"publish {text!r}: {len(hosts)} ports here and {len(ports)} in the container")
    shown = ip_address(address, f"publish {text!r}") if address else "0.0.0.0"  # noqa: S104  # what was asked for
    kind: Literal["tcp", "udp"] = "udp" if protocol == "udp" else "tcp"
    return tuple(Port(shown, host, port, kind) for host, port in zip(hosts, ports, strict=True))


def _range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(one.isascii() and one.isdigit() and len(one) <= 5 and 0 < int(one) < 65536 for one in numbers):
        raise UsageError(f"publish {whole!r}: {text!r} is not a port, or a range of them, from 1 to 65535")
    low, high = int(numbers[0]), int(numbers[1])
    if high < low or high - low >= 1000:
        raise UsageError(f"publish {whole!r}: the range {text} goes down, or has more than 1000 ports")
    return list(range(low, high + 1))


def ip_address(text: str, what: str) -> str:
    """An IP address in its usual form. Raises UsageError."""
    try:
        if "%" in text:  # a scope: no address of a port or a resolver, and any bytes may stand there
            raise ValueError
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise UsageError(f"{what}: {text!r} is not an IP address") from None


def shown(port: Port) -> str:
    """A port of this machine as people write it: ``127.0.0.1:8080/tcp``."""
    return f"{f'[{port.ip}]' if ':' in port.ip else port.ip}:{port.host}/{port.protocol}"


def free(port: Port) -> Port:
    """The port, with a number where any was wanted. Raises InUse, KernelError when it cannot be had."""
    kind = SOCK_STREAM if port.protocol == "tcp" else SOCK_DGRAM
    with socket(AF_INET6 if ":" in port.ip else AF_INET, kind, 0) as trial:
        if port.protocol == "tcp":
            trial.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if ":" in port.ip:
            trial.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        try:
            trial.bind((port.ip, port.host))
        except PermissionError:
            with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
                least = file.read().strip()
            raise Unsupported(f"publishing port {shown(port)}", f"an ordinary user's ports begin at {least}") from None
        except OSError as error:
            if error.errno == EADDRINUSE:
                raise InUse("port", shown(port), "another program") from None
            raise KernelError("publish a port at", shown(port), error.errno or 0) from None
        found: Port = port.replace(host=trial.getsockname()[1])
        return found

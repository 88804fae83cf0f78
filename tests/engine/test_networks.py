"""What people say of networks and ports -> records and calls of programs; what is refused, in one sentence."""

from __future__ import annotations

import socket

import pytest

from knarr.base.errors import InUse, KnarrError, Unsupported, UsageError
from knarr.bundle.options import Port, RunOptions
from knarr.engine import networks
from knarr.engine.networks import parse_host, parse_network, requested, resolv_conf, settled
from knarr.engine.pasta import pasta
from knarr.engine.ports import free, parse_publish, shown
from knarr.engine.slirp import slirp

ANY = "0.0.0.0"  # noqa: S104  # what people ask for


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [(ANY, 0, 80, "tcp")]),
        ("8080:80", [(ANY, 8080, 80, "tcp")]),
        ("127.0.0.1:8080:80/udp", [("127.0.0.1", 8080, 80, "udp")]),
        ("127.0.0.1::80", [("127.0.0.1", 0, 80, "tcp")]),
        ("[::1]:8080:80", [("::1", 8080, 80, "tcp")]),
        ("8080-8081:80-81", [(ANY, 8080, 80, "tcp"), (ANY, 8081, 81, "tcp")]),
        ("80-81/udp", [(ANY, 0, 80, "udp"), (ANY, 0, 81, "udp")]),
    ],
)
def test_published_ports(text: str, ports: list[tuple[str, int, int, str]]) -> None:
    assert [(port.ip, port.host, port.inside, port.protocol) for port in parse_publish(text)] == ports


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not a port"),
        ("0", "'0' is not a port"),
        ("65536", "'65536' is not a port"),
        ("80/sctp", "the protocol 'sctp' is not tcp or udp"),
        ("localhost:80:80", "'localhost' is not an IP address"),
        ("::1:80:80", "should be"),
        ("[::1:80", "an IPv6 address should be as in"),
        ("1-3:80", "3 ports here and 1 in the container"),
        ("90-80", "goes down"),
        ("1-9000", "more than 1000 ports"),
        ("\u0664:80", "is not a port"),
    ],
)
def test_ports_that_are_none(text: str, why: str) -> None:
    with pytest.raises(UsageError, match="publish") as caught:
        parse_publish(text)
    assert why in str(caught.value)


def test_kinds() -> None:
    assert parse_network("slirp4netns:mtu=1400,cidr=10.9.0.0/24") == ("slirp4netns", ("mtu=1400", "cidr=10.9.0.0/24"))
    assert parse_network("private") == ("private", ())
    for text, why in (("bridge", "network 'bridge' is not known"), ("none:x", "none takes no options")):
        with pytest.raises(UsageError, match=why):
            parse_network(text)


def test_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for network, why in (("none", "has no network"), ("host", "shares this machine's network")):
        with pytest.raises(UsageError, match=f"ports cannot be published: the container {why}"):
            settled(requested(RunOptions(), network, ["80"]))
    with pytest.raises(UsageError, match="no network to ask a resolver by"):
        settled(requested(RunOptions(), "none", dns=["192.0.2.1"]))
    assert settled(requested(RunOptions(), "host", dns=["192.0.2.1"])).dns == ("192.0.2.1",)
    monkeypatch.setattr(networks, "_PLACES", "")
    monkeypatch.setenv("PATH", "")
    for kind, package in (("slirp4netns", "slirp4netns"), ("pasta", "passt"), ("private", "slirp4netns")):
        with pytest.raises(Unsupported) as caught:
            settled(requested(RunOptions(), kind))
        assert "is not installed" in str(caught.value)
        assert f"install the package {package}" in str(caught.value)


def test_private_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find", lambda kind: f"/usr/bin/{kind}")
    assert settled(requested(RunOptions(), "private")).network == "slirp4netns"
    monkeypatch.setattr(networks, "find", lambda kind: "/usr/bin/pasta" if kind == "pasta" else "")
    assert settled(requested(RunOptions(), "private")).network == "pasta"


def test_lines_for_hosts() -> None:
    assert parse_host("db:192.0.2.1") == ("db", "192.0.2.1")
    assert parse_host("db:[::1]") == ("db", "::1")
    for text in ("db", ":192.0.2.1", "d b:192.0.2.1", "db:nowhere", "db\n:192.0.2.1", "db:fe80::1%a\nb", "x\tlocalhost:192.0.2.1"):
        with pytest.raises(UsageError, match="add-host"):
            parse_host(text)
    options = requested(RunOptions(), "slirp4netns", hosts=["up:host-gateway"])
    closed = slirp("/s", (), (), guest=False, ipv6=False)
    with pytest.raises(UsageError, match="may not reach this machine's loopback"):
        networks.named_hosts(options, closed)
    opened = slirp("/s", ("allow_host_loopback=true",), (), guest=False, ipv6=False)
    assert networks.named_hosts(options, opened) == (("up", "10.0.2.2"),)


def test_resolvers() -> None:
    here = "# made by hand\nsearch a.test b.test\nnameserver 127.0.0.53\nnameserver 192.0.2.7\nnameserver fe80::1%eth0\n"
    here += "nameserver\noptions edns0\nnameserver ::1\n"
    kept = "search a.test b.test\nnameserver 10.0.2.3\nnameserver 192.0.2.7\noptions edns0\n"
    assert resolv_conf(here, first="10.0.2.3", dns=(), search=()) == kept
    named = "search c.test\nnameserver 192.0.2.9\noptions edns0\n"
    assert resolv_conf(here, first="10.0.2.3", dns=("192.0.2.9",), search=("c.test",)) == named
    assert resolv_conf("", first="", dns=(), search=(".",)) == ""


def test_slirp4netns_is_closed_and_in_its_sandbox() -> None:
    made = slirp("/s", (), (), guest=False, ipv6=True)
    assert {"--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6"} <= set(made.argv)
    assert (made.address, made.resolver, made.gateway, made.takes) == ("10.0.2.100", "10.0.2.3", "", False)
    opened = slirp("/s", ("allow_host_loopback=true", "cidr=10.9.0.0/16"), (Port(ANY, 1, 2),), guest=True, ipv6=True)
    assert "--disable-host-loopback" not in opened.argv
    assert "--enable-ipv6" not in opened.argv
    assert "--mtu=1500" in opened.argv
    assert (opened.address, opened.gateway, opened.takes) == ("10.9.0.100", "10.9.0.2", True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("speed=fast",), "'speed=fast' is not known"),
        (("mtu",), "'mtu' is not known"),
        (("mtu=9",), "mtu=9 should be a number from 68 to 65521"),
        (("cidr=10.0.2.0/26",), "should be an IPv4 network"),
        (("cidr=fd00::/64",), "should be an IPv4 network"),
        (("cidr=10.0.2.1/24",), "should be an IPv4 network"),
        (("allow_host_loopback=perhaps",), "should be true or false"),
        (("port_handler=rootlesskit",), "port_handler=rootlesskit is not there"),
    ],
)
def test_options_of_slirp4netns_that_are_none(options: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        slirp("/s", options, (), guest=False, ipv6=False)
    assert why in str(caught.value)


def test_slirp4netns_and_ipv6() -> None:
    with pytest.raises(UsageError, match="publishes at IPv4 addresses only, not at ::1"):
        slirp("/s", (), (Port("::1", 80, 80),), guest=False, ipv6=True)
    with pytest.raises(UsageError, match="a guest has no IPv6 there"):
        slirp("/s", ("enable_ipv6=true",), (), guest=True, ipv6=True)


def words_of(*options: str, ports: tuple[Port, ...] = (), guest: bool = False, forward: bool = False) -> str:
    return " ".join(pasta("/p", options, ports, guest=guest, root=False, forward=forward).argv)


def test_pasta_is_closed() -> None:
    closed = words_of()
    assert "--no-map-gw -T none -U none -t none -u none" in closed
    assert "--dns-forward" not in closed
    ports = (Port("127.0.0.1", 8080, 80), Port("::1", 8080, 80), Port(ANY, 53, 5353, "udp"))
    assert "-t 127.0.0.1/8080:80 -t ::1/8080:80 -u 0.0.0.0/53:5353" in words_of(ports=ports)
    assert "--no-map-gw" not in words_of("--map-gw")
    assert " -T none" not in words_of("-T", "5432")
    assert "-T 5432" in words_of("-T", "5432")
    assert words_of("--mtu", "1400").endswith("--mtu 1400 --netns /proc/self/fd/0")
    assert "--mtu 1500" in words_of(guest=True)
    assert "--dns-forward 169.254.1.1" in words_of(forward=True)
    assert pasta("/p", (), (), guest=False, root=False, forward=True).resolver == "169.254.1.1"
    assert "--runas 0:0" in " ".join(pasta("/p", (), (), guest=False, root=True, forward=False).argv)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--pcap", "/tmp/x"), "'--pcap' is not known"),
        (("--log-file=/tmp/x",), "'--log-file=/tmp/x' is not known"),
        (("--netns", "/x"), "'--netns' is not known"),
        (("--runas", "0"), "'--runas' is not known"),
        (("-t", "auto"), "'-t' is not known"),
        (("--mtu",), "--mtu wants a value"),
        (("--mtu", "-f"), "--mtu wants a value"),
        (("--ipv4-only=yes",), "--ipv4-only takes none"),
        (("--map-gw=x",), "'--map-gw=x' is not known"),
    ],
)
def test_options_of_pasta_that_are_none(options: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        words_of(*options)
    assert why in str(caught.value)


def test_a_guests_ports_are_not_pastas() -> None:
    with pytest.raises(UsageError, match="ports of a guest cannot be published"):
        words_of(ports=(Port(ANY, 80, 80),), guest=True)


def test_a_port_is_looked_at_before_anything_is_made() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = Port("127.0.0.1", server.getsockname()[1], 80)
        with pytest.raises(InUse, match="is in use by another program"):
            free(taken)
    assert free(Port("127.0.0.1", 0, 80, "udp")).host > 0
    with pytest.raises(KnarrError, match=r"192\.0\.2\.1:7/udp"):
        free(Port("192.0.2.1", 7, 80, "udp"))
    assert shown(Port("::1", 1, 2)) == "[::1]:1/tcp"

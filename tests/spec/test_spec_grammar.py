"""spec.grammar and spec.signals: the small languages inside strings."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.spec.grammar import clean_path, cpu_list, interface_name, semver, sysctl_path
from knarr.spec.signals import SIGNALS, signal_number


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1.3.0", (1, 3, 0, "")),
        ("0.0.0", (0, 0, 0, "")),
        ("1.0.2-dev", (1, 0, 2, "dev")),
        ("1.2.1+dev", (1, 2, 1, "")),
        ("1.0.0-rc.1+build-5.007", (1, 0, 0, "rc.1")),
        ("10.20.30---x", (10, 20, 30, "--x")),
    ],
)
def test_versions(text: str, parts: tuple[int, int, int, str]) -> None:
    assert semver(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "v1.0.0",
        "01.0.0",
        "1.00.0",
        "1.0.0-",
        "1.0.0-a..b",
        "1.0.0-01",
        "1.0.0+",
        "1.0.0+a_b",
        "1.0.x",
        " 1.0.0",
        "1.0.0\n",
        "-1.0.0",
        "1.0.٣",
        "1.0." + "9" * 10,
    ],
)
def test_no_versions(text: str) -> None:
    assert semver(text) is None


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", []),
        ("  ", []),
        ("0", [(0, 0)]),
        ("0-3,7", [(0, 3), (7, 7)]),
        (" 1 - 2 , 5 ", [(1, 2), (5, 5)]),
        ("8191", [(8191, 8191)]),
        ("3,1,1-1", [(3, 3), (1, 1), (1, 1)]),
    ],
)
def test_cpu_lists(text: str, ranges: list[tuple[int, int]]) -> None:
    assert cpu_list(text) == ranges


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (",", "'' is neither"),
        ("1,", "'' is neither"),
        ("a", "'a' is neither"),
        ("1-", "'1-' is neither"),
        ("-1", "'-1' is neither"),
        ("1-2-3", "'1-2-3' is neither"),
        ("٣", "is neither"),
        ("0-99999", "99999 is more than 8191"),
        ("0-" + "9" * 5000, "is more than 8191"),
        ("3-1", "3-1 runs backwards"),
        ("0\n", "is neither"),
    ],
)
def test_no_cpu_lists(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cpu_list(text)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("kernel.msg-max", "kernel/msg-max"),
    ],
)
def test_sysctl_names(name: str, path: str) -> None:
    assert sysctl_path(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/",
        "net",
        "net.",
        ".net",
        "net..x",
        "net//x",
        "/net/x",
        "net/..",
        "net/../x",
        "net.../../x",
        "net/./x",
        "net.x/",
        "net./x",
        "net/.x/y",
        "net/x./y",
        "net.a b",
        "net.a\n",
        "net.a*",
        "net.ä",
        "net.\0",
    ],
)
def test_no_sysctl_names(name: str) -> None:
    assert sysctl_path(name) is None


@given(st.text(alphabet="./anet_-0", max_size=20))
def test_no_sysctl_leaves_its_tree(name: str) -> None:
    path = sysctl_path(name)
    if path is not None:
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/", "/"), ("", "/"), ("//.", "/"), ("/a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("a/..", "/"), ("/..", "/")],
)
def test_clean_paths(path: str, clean: str) -> None:
    assert clean_path(path) == clean


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "eth0.100", "veth@x", "ü"])
def test_interface_names(name: str) -> None:
    assert interface_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 16, "ü" * 8, "a/b", "a:b", "a b", "a\n", "a\t"])
def test_no_interface_names(name: str) -> None:
    assert not interface_name(name)


def test_signals_are_the_kernels() -> None:
    for name, number in SIGNALS.items():
        assert int(getattr(signal, name)) == number
    assert len(SIGNALS) == 31


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        ("sigkill", 9),
        ("15", 15),
        ("1", 1),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("RTMAX", 64),
        ("SIGRTMIN+3", 37),
        ("RTMIN+30", 64),
        ("SIGRTMAX-30", 34),
        ("SIGPOLL", 29),
        ("CLD", 17),
    ],
)
def test_signal_names(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIG",
        "SIGFOO",
        "0",
        "65",
        "-1",
        "+9",
        " 9",
        "９",
        "99999999999999999999",
        "SIGRTMIN+31",
        "SIGRTMAX-31",
        "SIGRTMIN+",
        "SIGRTMIN-1",
        "SIGRTMAX+1",
        "SIGRTMIN+x",
        "SIGSIGTERM",
        "TERM\n",
        "x" * 500,
    ],
)
def test_no_signals(text: str) -> None:
    with pytest.raises(ValueError, match="no signal"):
        signal_number(text)

"""plan/devices.py and plan/device_bpf.py: rules as v1 writes and as a program, against a naive reading."""

from __future__ import annotations

import stat
import struct
from typing import Any

import pytest
from bpf_machines import Extended
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.base.errors import SpecError, Unsupported
from knarr.plan.device_bpf import MAX_RULES, device_program
from knarr.plan.devices import ALL, MKNOD, READ, WRITE, Rule, device_nodes, device_rules, v1_writes

KINDS = {"b": 1, "c": 2}
Device = tuple[str, int, int]


def naive(rules: tuple[Rule, ...], device: Device, access: int) -> bool:
    """Bit by bit, the last rule that speaks of it."""
    for bit in (MKNOD, READ, WRITE):
        if access & bit:
            answers = [
                rule.allow
                for rule in rules
                if rule.access & bit
                and rule.kind in ("a", device[0])
                and rule.major in (-1, device[1])
                and rule.minor in (-1, device[2])
            ]
            if not (answers and answers[-1]):
                return False
    return True


def program_allows(program: bytes | None, device: Device, access: int) -> bool:
    if program is None:
        return True
    context = struct.pack("=III", access << 16 | KINDS[device[0]], device[1], device[2])
    result = Extended(program).run(context)
    assert result in (0, 1)
    return bool(result)


class V1:
    """The kernel's devices cgroup (security/device_cgroup.c) of a group whose parent allows everything."""

    def __init__(self) -> None:
        self.allow = True
        self.exceptions: dict[tuple[str, str, str], set[str]] = {}

    def write(self, file: str, line: str) -> None:
        assert file in ("devices.allow", "devices.deny")
        allow = file == "devices.allow"
        if line.startswith("a"):
            self.allow, self.exceptions = allow, {}
            return
        kind, numbers, letters = line.split(" ")
        major, minor = numbers.split(":")
        key = kind, major, minor
        assert letters
        assert set(letters) <= set("rwm")
        if allow == self.allow:
            self.exceptions[key] = self.exceptions.get(key, set()) - set(letters)
        else:
            self.exceptions[key] = self.exceptions.get(key, set()) | set(letters)

    def allows(self, device: Device, access: int) -> bool:
        wanted = {letter for letter, bit in (("r", READ), ("w", WRITE), ("m", MKNOD)) if access & bit}
        matching = [
            letters
            for (kind, major, minor), letters in self.exceptions.items()
            if kind == device[0] and major in ("*", str(device[1])) and minor in ("*", str(device[2]))
        ]
        if self.allow:
            return not any(letters & wanted for letters in matching)
        return any(wanted <= letters for letters in matching)


numbers = st.sampled_from([-1, 0, 1, 3, 0xFFFFFFFF])
rules = st.builds(
    lambda allow, kind, major, minor, access: (
        Rule(allow, "a", -1, -1, ALL) if kind == "a" else Rule(allow, kind, major, minor, access)
    ),
    st.booleans(),
    st.sampled_from("aabbbccc"),
    numbers,
    numbers,
    st.integers(1, 7),
)
lists = st.lists(rules, max_size=10).map(tuple)
DEVICES = [(kind, major, minor) for kind in "bc" for major in (0, 1, 2, 0xFFFFFFFF) for minor in (0, 1, 3, 0xFFFFFFFE)]


@settings(max_examples=300, deadline=None)
@given(lists)
def test_program_equals_naive_reading(given_rules: tuple[Rule, ...]) -> None:
    program = device_program(given_rules)
    for device in DEVICES:
        for access in range(1, 8):
            assert program_allows(program, device, access) == naive(given_rules, device, access), (device, access)


@settings(max_examples=300, deadline=None)
@given(lists)
def test_v1_writes_equal_naive_reading_or_are_refused(given_rules: tuple[Rule, ...]) -> None:
    try:
        writes = v1_writes(given_rules)
    except Unsupported:
        return
    group = V1()
    for file, line, _ in writes:
        group.write(file, line)
    for device in DEVICES:
        for access in range(1, 8):
            assert group.allows(device, access) == naive(given_rules, device, access), (device, access, writes)


def config(*entries: dict[str, Any], devices: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"linux": {"resources": {"devices": list(entries)}, "devices": devices or []}}


DENY_ALL = {"allow": False, "access": "rwm"}


@pytest.mark.parametrize("entries", [(), (DENY_ALL,)])
def test_the_default_is_eight_devices_and_the_terminals(entries: tuple[dict[str, Any], ...]) -> None:
    given_rules = device_rules(config(*entries))
    open_ones = [
        ("c", major, minor)
        for major, minor in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (136, 77)]
    ]
    program = device_program(given_rules)
    group = V1()
    for file, line, _ in v1_writes(given_rules):
        group.write(file, line)
    for device in open_ones:
        assert program_allows(program, device, ALL)
        assert group.allows(device, ALL)
    for device in [("b", 8, 0), ("c", 1, 1), ("c", 1, 4), ("c", 10, 200), ("c", 10, 229), ("c", 4, 0), ("b", 1, 3)]:
        for access in (READ, WRITE, MKNOD, ALL):
            assert not program_allows(program, device, access), device
            assert not group.allows(device, access), device
    assert v1_writes(given_rules)[0] == ("devices.deny", "a", "/linux/resources/devices")


def test_a_device_of_the_config_may_be_made_and_needs_a_rule_to_be_opened() -> None:
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    rules_ = device_rules(config(devices=[fuse, {"path": "/run/fifo", "type": "p"}]))
    assert naive(rules_, ("c", 10, 229), MKNOD)
    assert not naive(rules_, ("c", 10, 229), READ)
    assert rules_[-1] == Rule(True, "c", 10, 229, MKNOD, "/linux/devices/0")
    opened = device_rules(
        config({"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}, devices=[fuse])
    )
    assert naive(opened, ("c", 10, 229), ALL)


def test_allowing_everything_needs_no_program() -> None:
    everything = config({"allow": True, "access": "rwm"})
    assert device_program(device_rules(everything)) is None
    assert v1_writes(device_rules(everything)) == [("devices.allow", "a", "/linux/resources/devices")]


def test_a_wildcard_type_with_a_number_is_not_everything() -> None:
    given_rules = device_rules(config({"allow": True, "type": "a", "major": 7, "access": "rw"}))
    for kind in "bc":
        assert naive(given_rules, (kind, 7, 9), READ | WRITE)
        assert not naive(given_rules, (kind, 8, 9), READ)
    assert not any(line == "a" for file, line, _ in v1_writes(given_rules) if file == "devices.allow")


def test_v1_refuses_a_hole_in_a_wider_rule_and_v2_makes_it() -> None:
    hole = device_rules(
        config(
            {"allow": True, "type": "c", "major": 10, "access": "rw"},
            {"allow": False, "type": "c", "major": 10, "minor": 200, "access": "w"},
        )
    )
    with pytest.raises(Unsupported) as caught:
        v1_writes(hole)
    assert caught.value.pointer == "/linux/resources/devices/1"
    program = device_program(hole)
    assert program_allows(program, ("c", 10, 200), READ)
    assert not program_allows(program, ("c", 10, 200), READ | WRITE)


def test_a_wider_denial_takes_the_narrower_rule_back() -> None:
    """cgroup v1 alone would keep 1:11 open: it removes only what is spelled alike."""
    given_rules = device_rules(
        config(
            {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rw"},
            {"allow": False, "type": "c", "major": 1, "access": "w"},
        )
    )
    assert ("devices.allow", "c 1:11 r", "/linux/resources/devices/0") in v1_writes(given_rules)
    assert not program_allows(device_program(given_rules), ("c", 1, 11), WRITE)


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"allow": True, "type": "z", "access": "r"}, "type"),
        ({"allow": True, "access": "x"}, "access"),
        ({"allow": True, "access": ""}, "access"),
        ({"allow": True}, "access"),
        ({"allow": True, "access": "r", "major": -2}, "major"),
        ({"allow": True, "access": "r", "minor": 1 << 32}, "minor"),
    ],
)
def test_bad_rules_are_named(entry: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        device_rules(config(DENY_ALL, entry))
    assert caught.value.findings[0].pointer == f"/linux/resources/devices/1/{where}"


def test_too_many_rules_are_refused() -> None:
    many = tuple(Rule(True, "c", n, 0, READ) for n in range(MAX_RULES + 1))
    with pytest.raises(Unsupported, match="501 rules"):
        device_program(many)
    assert len(device_program(many[1:]) or b"") > 8 * MAX_RULES


# Nodes


def test_default_nodes() -> None:
    nodes = device_nodes({})
    assert [node["path"] for node, _ in nodes] == [
        f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")
    ]
    assert {pointer for _, pointer in nodes} == {""}
    assert nodes[0][0] == {
        "path": "/dev/null",
        "kind": "c",
        "mode": stat.S_IFCHR | 0o666,
        "major": 1,
        "minor": 3,
        "uid": 0,
        "gid": 0,
    }


def test_nodes_of_the_config() -> None:
    given_config = config(
        devices=[
            {"path": "/dev/tty", "type": "u", "major": 4, "minor": 1, "fileMode": 0o20620, "uid": 7, "gid": 5},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/run/fifo", "type": "p", "fileMode": 0o600},
        ]
    )
    by_path = {node["path"]: (node, pointer) for node, pointer in device_nodes(given_config)}
    assert len(by_path) == len(device_nodes(given_config)) == 8
    tty, pointer = by_path["/dev/tty"]
    assert pointer == "/linux/devices/0"
    assert (tty["kind"], tty["mode"], tty["major"], tty["uid"], tty["gid"]) == ("c", stat.S_IFCHR | 0o620, 4, 7, 5)
    assert by_path["/dev/sda"][0]["mode"] == stat.S_IFBLK | 0o666
    assert by_path["/run/fifo"][0]["mode"] == stat.S_IFIFO | 0o600


@pytest.mark.parametrize(
    ("device", "where"),
    [
        ({"path": "/dev/x", "type": "z", "major": 1, "minor": 1}, "type"),
        ({"path": "/dev/x", "type": "c", "major": 1}, "minor"),
        ({"path": "/dev/x", "type": "c", "major": 1 << 32, "minor": 1}, "major"),
        ({"path": "/dev/x", "type": "c", "major": 1, "minor": 1, "fileMode": 0o4755}, "fileMode"),
    ],
)
def test_bad_nodes_are_named(device: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        device_nodes(config(devices=[device]))
    assert caught.value.findings[0].pointer == f"/linux/devices/0/{where}"

"""The Plan's wire format and its printed form."""

from __future__ import annotations

import struct

import pytest

from knarr.plan import ops
from knarr.plan.ops import NO_SLOT, Op, encode


def test_header_counts_bytes_operations_and_slots() -> None:
    data = encode([Op("setsid"), Op("umask", (0o22,))], 3)
    assert data[:8] == b"KNARRPL1"
    total, count, slots, zero = struct.unpack_from("<IIII", data, 8)
    assert (total, count, slots, zero) == (len(data), 2, 3, 0)


def test_strings_are_counted_ended_and_padded() -> None:
    data = encode([Op("hostname", (), ("eightchr",))], 0)
    kind, numbers, strings, size = struct.unpack_from("<IIII", data, 24)
    assert (kind, numbers, strings) == (60, 0, 1)
    assert size == 16 + 8 + 16  # eight bytes and their NUL need two words
    assert data[40:] == struct.pack("<Q", 8) + b"eightchr" + bytes(8)


def test_a_text_with_a_nul_is_refused_but_a_filter_may_hold_any_byte() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode([Op("hostname", (), ("a\0b",))], 0)
    encode([Op("seccomp", (0,), (b"\0\1",))], 0)


def test_the_wrong_number_of_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="wrong number"):
        encode([Op("umask", ())], 0)
    with pytest.raises(ValueError, match="wrong number"):
        encode([Op("hostname", (), ("a", "b"))], 0)
    encode([Op("user", (1, 2, 0, 3, 4, 5))], 0)  # a list may be of any length
    encode([Op("user", (1, 2, 0))], 0)


def test_negative_numbers_travel_as_64_bits() -> None:
    data = encode([Op("rlimit", (7, -1, -1))], 0)
    assert struct.unpack_from("<3Q", data, 40) == (7, 2**64 - 1, 2**64 - 1)


def test_non_utf8_names_travel_unchanged() -> None:
    data = encode([Op("host_chdir", (), (b"/\xff".decode("utf-8", "surrogateescape"),))], 0)
    assert b"/\xff\0" in data


def test_operations_compare_by_value_and_describe_themselves() -> None:
    mount = Op("mount", (1, 0xE, 0, 1), ("tmpfs", "shm", "/dev/shm", "mode=1777"), "/mounts/3")
    assert mount == Op("mount", (1, 0xE, 0, 1), ("tmpfs", "shm", "/dev/shm", "mode=1777"), "/mounts/3")
    assert mount != Op("mount", (1, 0xE, 0, 1), ("tmpfs", "shm", "/dev/shm", "mode=1777"), "/mounts/4")
    assert mount.describe() == (
        "mount root=1 attr=0xe propagation=0 flags=1 fstype=tmpfs source=shm target=/dev/shm options=['mode=1777']"
    )
    assert Op("clone", (0x20000, NO_SLOT)).describe() == "clone flags=0x20000 cgroup_slot=none"


def test_every_kind_has_its_own_number() -> None:
    assert len(ops.NAMES) == len(ops.KINDS)

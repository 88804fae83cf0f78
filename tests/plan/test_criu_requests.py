"""plan/criu.py: protocol buffers on the wire, and what is asked of CRIU."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import UsageError
from knarr.plan.criu import (
    CLONE_NEWNET,
    DUMP,
    REQUEST,
    CriuOptions,
    common,
    decode,
    dump_request,
    encode,
    joined_namespaces,
    mounts_below,
    node_keys,
    outside_mounts,
)

HOST = """\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:5 / /dev rw shared:2 - devtmpfs udev rw
22 20 0:20 / /sys rw shared:3 - sysfs sysfs rw
23 20 0:30 / /srv rw shared:4 - tmpfs tmpfs rw
24 23 8:2 / /srv/with\\040blank rw shared:5 - ext4 /dev/sda2 rw
"""
INSIDE = """\
50 49 8:1 /bundle/rootfs / rw - ext4 /dev/sda1 rw
51 50 0:40 / /proc rw - proc proc rw
52 50 0:41 / /dev rw - tmpfs tmpfs rw
53 50 0:20 / /sys ro - sysfs sysfs rw
54 51 0:5 /null /proc/kcore ro - devtmpfs udev rw
55 50 0:30 /data /mnt/data rw - tmpfs tmpfs rw
56 55 8:2 / /mnt/data/with\\040blank rw - ext4 /dev/sda2 rw
57 52 0:5 /zero /dev/zero rw - devtmpfs udev rw
58 50 0:42 / /tmp rw - tmpfs tmpfs rw
"""


def test_the_wire_form() -> None:
    # By protoc: type: DUMP opts { images_dir_fd: 5 pid: 300 leave_running: true root: "/r" external: "a" external: "b" }
    message = {
        "type": DUMP,
        "opts": {"images_dir_fd": 5, "pid": 300, "leave_running": True, "root": "/r", "external": ["a", "b"]},
    }
    data = b"\x08\x01\x12\x13\x08\x05\x10\xac\x02\x18\x01\x6a\x02/r\xaa\x02\x01a\xaa\x02\x01b"
    assert encode(message, REQUEST) == data[:3] + bytes((len(data) - 4,)) + data[4:]


def test_messages_in_messages() -> None:
    data = encode(
        {"ext_mnt": [{"key": "/a", "val": "/b"}], "ps": {"address": "::1", "port": 9}}, REQUEST["opts"][1] or {}
    )
    fields = decode(data)
    assert decode(fields[23]) == {1: b"/a", 2: b"/b"}
    assert decode(fields[11]) == {1: b"::1", 2: 9}


def test_negative_numbers_have_ten_bytes() -> None:
    assert encode({"images_dir_fd": -1}, REQUEST["opts"][1] or {}) == b"\x08" + b"\xff" * 9 + b"\x01"


@given(st.binary(max_size=200))
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    try:
        fields = decode(data)
    except ValueError:
        return
    assert all(isinstance(value, int | bytes) for value in fields.values())


@given(st.dictionaries(st.sampled_from(["pid", "log_level", "empty_ns"]), st.integers(0, (1 << 32) - 1)))
def test_numbers_come_back(values: dict[str, int]) -> None:
    table = REQUEST["opts"][1] or {}
    assert decode(encode(values, table)) == {table[name][0]: value for name, value in values.items()}


def test_mounts_from_outside() -> None:
    assert outside_mounts(INSIDE, HOST) == [
        ("/proc/kcore", "/dev/null"),
        ("/mnt/data", "/mnt/data"),
        ("/mnt/data/with blank", "/mnt/data/with blank"),
        ("/dev/zero", "/dev/zero"),
    ]
    assert mounts_below(HOST, "/srv") == ["/srv/with blank"]


def test_a_pre_dump_goes_on_and_tracks_memory() -> None:
    more: dict[str, Any] = {"pid": 1, "root": "/r", "freezer": "", "mounts": [("/a", "/a")], "external": []}
    wanted = dump_request(CriuOptions("/i", pre_dump=True), **more)
    assert (wanted["leave_running"], wanted["track_mem"], "ext_mnt" in wanted) == (True, True, False)
    wanted = dump_request(CriuOptions("/i", parent="../a", page_server=("::1", 9)), **more)
    assert (wanted["leave_running"], wanted["track_mem"], wanted["parent_img"]) == (False, True, "../a")
    assert wanted["ps"] == {"address": "::1", "port": 9}
    assert wanted["ext_mnt"] == [{"key": "/a", "val": "/a"}]


@pytest.mark.parametrize(("mode", "number"), [("", 6), ("ignore", 0), ("soft", 3), ("full", 4), ("strict", 5)])
def test_cgroup_modes(mode: str, number: int) -> None:
    wanted = common(CriuOptions("/i", cgroups_mode=mode), {}, images_fd=4, work_fd=5, log="l")
    assert wanted["manage_cgroups_mode"] == number
    assert wanted["empty_ns"] == CLONE_NEWNET
    assert wanted["config_file"] == "/etc/criu/knarr.conf"


def test_an_unknown_cgroup_mode() -> None:
    with pytest.raises(UsageError, match="--manage-cgroups-mode: 'x'"):
        common(CriuOptions("/i", cgroups_mode="x"), {}, images_fd=4, work_fd=5, log="l")


def test_an_own_configuration_of_criu() -> None:
    for given_file, expected in (("/my", "/my"), ("", None)):
        config = {"annotations": {"org.criu.config": given_file}}
        assert common(CriuOptions("/i"), config, images_fd=4, work_fd=5, log="l").get("config_file") == expected


def test_namespaces_and_nodes() -> None:
    config = {
        "linux": {
            "namespaces": [{"type": "ipc", "path": "/p"}, {"type": "network", "path": "/n"}, {"type": "uts"}],
            "devices": [{"path": "/dev/fuse"}],
            "maskedPaths": ["/proc/kcore"],
        }
    }
    assert joined_namespaces(config) == [{"ns": "ipc", "ns_file": "/p"}]
    assert ("/dev/fuse", "/dev/fuse") in node_keys(config)
    assert ("/proc/kcore", "/dev/null") in node_keys(config)


@pytest.mark.parametrize(
    "flag",
    ["tcp_established", "ext_unix_sk", "shell_job", "file_locks", "auto_dedup", "lazy_pages"],
)
def test_flags_reach_criu(flag: str) -> None:
    for value in (False, True):
        wanted = common(CriuOptions("/i").replace(**{flag: value}), {}, images_fd=4, work_fd=5, log="l")
        assert wanted[flag] is value

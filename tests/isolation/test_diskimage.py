"""Images as a container's root: which file system they hold, what is refused, and a hostile header."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from disks import CLUSTER, qcow2
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import KnarrError, Unsupported
from knarr.isolation.diskimage import look
from knarr.isolation.qemu import Machine, disk

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = {
    "ext4": (0x438, b"\x53\xef"),
    "erofs": (1024, b"\xe2\xe1\xf5\xe0"),
    "squashfs": (0, b"hsqs"),
    "xfs": (0, b"XFSB"),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "f2fs": (1024, b"\x10\x20\xf5\xf2"),
}


def raw_of(fstype: str) -> bytes:
    at, magic = MAGIC[fstype]
    return (bytes(at) + magic).ljust(1 << 18, b"\0")


@pytest.mark.parametrize("fstype", MAGIC)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_file_system_is_found(tmp_path: Path, fstype: str, format: str) -> None:
    data = raw_of(fstype)
    (tmp_path / "image").write_bytes(qcow2(data) if format == "qcow2" else data)
    found = look(str(tmp_path / "image"), format, writable=False)
    assert (found.fstype, found.format, found.writable) == (fstype, format, False)


def test_a_compressed_cluster_is_read(tmp_path: Path) -> None:
    data = bytearray(qcow2(raw_of("ext4")))
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(raw_of("ext4")[:CLUSTER]) + packer.flush()
    data[5 * CLUSTER :] = packed.ljust(CLUSTER, b"\0")
    shift = 62 - (16 - 8)
    data[4 * CLUSTER : 4 * CLUSTER + 8] = struct.pack(">Q", 1 << 62 | (len(packed) // 512) << shift | 5 * CLUSTER)
    (tmp_path / "image").write_bytes(data)
    assert look(str(tmp_path / "image"), "qcow2", writable=False).fstype == "ext4"


def refused(tmp_path: Path, data: bytes, format: str = "qcow2", *, writable: bool = False) -> Unsupported:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(Unsupported) as told:
        look(str(tmp_path / "image"), format, writable=writable)
    return told.value


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (qcow2(raw_of("ext4"), backing="/etc/shadow"), "needs another file"),
        (qcow2(raw_of("ext4"), features=4), "needs another file"),
        (qcow2(raw_of("ext4"), features=2), "marked as damaged"),
        (qcow2(raw_of("ext4"), features=16), "of a kind that is not known"),
        (qcow2(raw_of("ext4"), encrypted=2, version=2), "encrypted"),
        (raw_of("ext4"), "is no QCOW2 image"),
        (b"", "is no QCOW2 image"),
        (qcow2(bytes(1 << 18)), "no file system that is known"),
    ],
)
def test_what_cannot_be_a_root_is_refused(tmp_path: Path, image: bytes, why: str) -> None:
    error = refused(tmp_path, image)
    assert why in str(error)
    assert error.pointer.startswith("/vm/image/")


def test_a_format_is_not_guessed(tmp_path: Path) -> None:
    assert "no file system that is known" in str(refused(tmp_path, qcow2(raw_of("ext4")), "raw"))


def test_partitions_are_told(tmp_path: Path) -> None:
    assert "has partitions" in str(refused(tmp_path, bytes(510) + b"\x55\xaa" + bytes(100_000), "raw"))


def test_what_is_never_written_to(tmp_path: Path) -> None:
    assert refused(tmp_path, raw_of("erofs"), "raw", writable=True).pointer == "/root/readonly"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="is no file"):
        look("/dev/null", "raw", writable=False)
    with pytest.raises(KnarrError, match="no such file"):
        look(str(tmp_path / "none"), "raw", writable=False)


@given(st.binary(min_size=100, max_size=400), st.integers(9, 21))
def test_any_header_ends(tmp_path_factory: pytest.TempPathFactory, data: bytes, bits: int) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(b"QFI\xfb" + struct.pack(">IQII", 2, 0, 0, bits) + data)
    try:
        look(str(path), "qcow2", writable=False)
    except KnarrError:
        pass


@pytest.mark.parametrize("table", [(1 << 64) - 1, (1 << 63) - 1, 1 << 62, 0])
def test_a_table_that_lies_nowhere(tmp_path: Path, table: int) -> None:
    data = bytearray(qcow2(raw_of("ext4")))
    struct.pack_into(">Q", data, 40, table)
    assert "no file system that is known" in str(refused(tmp_path, bytes(data)))


def test_qemu_is_told_all_and_may_open_nothing_else() -> None:
    machine = Machine("/kernel", "/initramfs", 1 << 28, 1, "tcg", channel=3, console=4, image=6, image_format="qcow2")
    words = disk(machine)
    assert words[:2] == ["-add-fd", "fd=6,set=2"]
    assert words[3] == "driver=file,node-name=file,filename=/dev/fdset/2,read-only=on"
    assert words[5] == '{"driver":"qcow2","node-name":"image","file":"file","read-only":true,"backing":null}'
    writable = disk(machine.replace(image_format="raw", image_writable=True))
    assert writable[5] == '{"driver":"raw","node-name":"image","file":"file","read-only":false}'

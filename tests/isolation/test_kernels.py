"""Kernels of guests: which one, what is inside, its modules; with made-up files, and with the one that is installed."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard

from knarr.base.errors import FileError, KnarrError, Unsupported
from knarr.isolation import kernels

if TYPE_CHECKING:
    from pathlib import Path


def lz4(data: bytes) -> bytes:
    """LZ4's legacy frame: what comes before the longest run of a byte, the run as a match with itself, and the rest."""
    at, run = max(
        ((found.start(), len(found[0])) for found in re.finditer(rb"(.)\1*", data, re.DOTALL)), key=lambda x: x[1]
    )
    block = sequence(data[: at + 1], run - 1) + sequence(data[at + run :])
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


def sequence(literals: bytes, match: int = 0) -> bytes:
    """One sequence of an LZ4 block; the last one has no match."""
    token = min(len(literals), 15) << 4 | min(max(match - 4, 0), 15)
    made = bytes([token]) + more(len(literals)) + literals
    return made + (b"\x01\x00" + more(match - 4) if match else b"")


def more(count: int) -> bytes:
    return b"" if count < 15 else b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])


PACKERS = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4,
}


def elf(*, pvh: bool = True) -> bytes:
    """As much of an ELF file as is looked at: one PT_NOTE header and Xen's note."""
    note = struct.pack("<III", 4, 4, 18 if pvh else 17) + b"Xen\0" + bytes(4)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return head + program + note + b"Linux version 9.8.7-test (x)\n" + b"A" * 3000 + b"end"


def bzimage(inside: bytes, packer: str = "gzip", release: str = "9.8.7-test") -> bytes:
    packed = PACKERS[packer](inside) + struct.pack("<I", len(inside))
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    setup[0x20E:0x210] = struct.pack("<H", 0x300)
    text = f"{release} (me@here) #1\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    setup[0x248:0x250] = struct.pack("<II", 16, len(packed))
    return bytes(setup) + b"decompressor----" + packed


@pytest.mark.parametrize("packer", PACKERS)
def test_what_a_bzimage_unpacks_is_taken_out(packer: str) -> None:
    data = bzimage(elf(), packer)
    assert kernels.payload(data) == elf()
    assert kernels.release_of(data) == "9.8.7-test"
    assert kernels.release_of(elf()) == "9.8.7-test"


@pytest.mark.parametrize("packer", PACKERS)
def test_no_more_than_the_limit_is_unpacked(packer: str) -> None:
    """A bomb is cut off; LZ4's says so at once."""
    bomb = PACKERS[packer](b"head" + b"\0" * 3_000_000)
    with pytest.raises(Unsupported, match="too far") if packer == "lz4" else contextlib.nullcontext():
        assert len(kernels.expand(bomb, 100_000)) == 100_000


@pytest.mark.parametrize("packer", PACKERS)
def test_a_damaged_one_is_an_error(packer: str) -> None:
    packed = bytearray(PACKERS[packer](elf()))
    packed[8:] = bytes(each ^ 0x5A for each in packed[8:])
    with pytest.raises(Unsupported, match="damaged"):
        kernels.expand(bytes(packed), 1 << 20)


def test_one_that_is_cut_short_is_an_error() -> None:
    for length in (100, 0x248, 3 * 512 + 20, len(bzimage(elf())) - 10):
        with pytest.raises(Unsupported, match="cut short"):
            kernels.payload(bzimage(elf())[:length])


def test_an_unknown_compression_is_said() -> None:
    with pytest.raises(Unsupported, match="not known"):
        kernels.expand(b"what is this", 100)


def test_pvh_is_a_note() -> None:
    assert kernels.has_pvh(elf())
    assert not kernels.has_pvh(elf(pvh=False))
    assert not kernels.has_pvh(b"\x7fELF")
    assert not kernels.has_pvh(b"")


def test_an_efi_zboot_file_is_opened() -> None:
    packed = gzip.compress(b"ARM\x64 Linux version 6.12-arm64 x")
    image = b"MZ\0\0zimg" + struct.pack("<II", 64, len(packed)) + bytes(48) + packed
    assert kernels.release_of(kernels.zboot(image)) == "6.12-arm64"
    with pytest.raises(Unsupported, match="cut short"):
        kernels.zboot(image[:-1])


def test_the_newest_with_modules_is_taken_and_a_cloud_flavour_first() -> None:
    files = [
        "vmlinuz-6.1.0-9-amd64",
        "vmlinuz-6.1.0-10-amd64",
        "vmlinuz-6.12.0-1-amd64",
        "initrd.img-6.1.0-9-amd64",
        "config",
    ]
    releases = ["6.1.0-9-amd64", "6.1.0-10-amd64"]
    assert kernels.newest(files, releases) == "vmlinuz-6.1.0-10-amd64"
    cloud = "6.1.0-2-cloud-amd64"
    assert kernels.newest([*files, f"vmlinuz-{cloud}"], [*releases, cloud]) == f"vmlinuz-{cloud}"
    assert kernels.newest(files, []) is None


def host(tmp_path: Path, kernel: bytes) -> Path:
    """A host with one kernel and three modules, of which one is compressed and one built in."""
    folder = tmp_path / "lib/modules/9.8.7-test"
    (folder / "kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-9.8.7-test").write_bytes(kernel)
    (folder / "kernel/ring.ko").write_bytes(b"\x7fELF ring")
    (folder / "kernel/virtio-mmio.ko.xz").write_bytes(PACKERS["xz"](b"\x7fELF mmio"))
    (folder / "modules.builtin").write_text("kernel/fs/overlay.ko\n")
    (folder / "modules.dep").write_text("kernel/ring.ko:\nkernel/virtio-mmio.ko.xz: kernel/ring.ko\n")
    return tmp_path


def test_a_kernel_is_made_ready_and_kept(tmp_path: Path) -> None:
    top = host(tmp_path, bzimage(elf()))
    cache = tmp_path / "cache"
    cache.mkdir()
    found = kernels.find(str(top))
    assert found == f"{top}/boot/vmlinuz-9.8.7-test"
    ready = kernels.prepare(found, str(cache), ("virtio_mmio", "overlay"), str(top))
    assert ready.release == "9.8.7-test"
    assert kernels.read_modules(ready.modules) == [("ring.ko", b"\x7fELF ring"), ("virtio_mmio.ko", b"\x7fELF mmio")]
    assert os.path.dirname(ready.path) == str(cache)
    with open(ready.path, "rb") as file:
        assert file.read() == elf()
    again = kernels.prepare(found, str(cache), ("virtio_mmio",), str(top))
    assert again.path == ready.path
    # Another kernel in its place is another file; of old ones few are kept.
    for count in range(5):
        (top / "boot/vmlinuz-9.8.7-test").write_bytes(bzimage(elf() + b"x" * count))
        os.utime(found, (count, count))
        assert kernels.prepare(found, str(cache), (), str(top)).path != ready.path
    assert len(list(cache.iterdir())) == 3


def test_a_kernel_without_pvh_boots_as_it_is(tmp_path: Path) -> None:
    top = host(tmp_path, bzimage(elf(pvh=False)))
    (tmp_path / "cache").mkdir()
    found = kernels.find(str(top))
    assert kernels.prepare(found, str(tmp_path / "cache"), (), str(top)).path == found


def test_a_kernel_that_lacks_a_module_says_which(tmp_path: Path) -> None:
    top = host(tmp_path, bzimage(elf()))
    with pytest.raises(Unsupported, match="has no virtiofs"):
        kernels.prepare(kernels.find(str(top)), "", ("virtiofs",), str(top))


def test_a_kernel_of_ones_own_has_all_built_in(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage(elf(), release="1.2.3-mine"))
    ready = kernels.prepare(str(tmp_path / "kernel"), "", ("virtiofs",), str(tmp_path))
    assert ready == kernels.Kernel(str(tmp_path / "kernel"), "1.2.3-mine", ())


def test_missing_and_wrong_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="apt-get install"):
        kernels.find(str(tmp_path))
    with pytest.raises(FileError, match="no such file"):
        kernels.prepare(str(tmp_path / "none"), "", (), "")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Unsupported, match="no Linux kernel"):
        kernels.prepare(str(tmp_path / "text"), "", (), "")
    top = host(tmp_path, bzimage(elf()))
    (top / "lib/modules/9.8.7-test/modules.dep").unlink()
    with pytest.raises(FileError, match=r"depmod 9\.8\.7-test"):
        kernels.prepare(kernels.find(str(top)), "", ("virtio_mmio",), str(top))


def test_dependencies_are_loaded_first_and_once() -> None:
    needs = kernels.parse_dependencies(
        "a/one.ko: a/two.ko a/three.ko\na/two.ko: a/three.ko\na/three.ko:\na/vi-rt.ko.zst: a/two.ko a/three.ko\n"
    )
    assert needs["vi_rt"] == ("a/three.ko", "a/two.ko", "a/vi-rt.ko.zst")
    assert kernels.load_order(("vi_rt", "one", "four"), needs, {"four"}, "/x") == [
        *("a/three.ko", "a/two.ko", "a/vi-rt.ko.zst", "a/one.ko")
    ]


def test_what_a_file_system_sums_with_comes_before_it() -> None:
    """Debian's kernel for real machines has the checksum as a module, that for clouds built in, Linux 6.17 not at all."""
    needs = {"ext4": ("a/jbd2.ko", "a/ext4.ko"), "crc32c_generic": ("a/crc32c_generic.ko",)}
    bare = ["a/jbd2.ko", "a/ext4.ko"]
    assert kernels.load_order(("ext4",), needs, set(), "/x") == ["a/crc32c_generic.ko", *bare]
    assert kernels.load_order(("ext4",), needs, {"crc32c_generic"}, "/x") == bare
    assert kernels.load_order(("ext4",), {"ext4": needs["ext4"]}, set(), "/x") == bare


def test_the_installed_kernel(tmp_path: Path) -> None:
    try:
        found = kernels.find()
    except KnarrError as error:
        pytest.skip(str(error))
    if not os.access(found, os.R_OK):
        pytest.skip(f"{found} is root's")
    ready = kernels.prepare(found, str(tmp_path), kernels.BASE_MODULES)
    assert found.endswith(ready.release)
    assert all(data.startswith(b"\x7fELF") for _, data in kernels.read_modules(ready.modules))
    lz4_program = shutil.which("lz4")
    with open(found, "rb") as file:
        data = file.read()
    setup = (data[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    packed = data[setup + offset : setup + offset + length - 4]
    if lz4_program is None or packed[:4] != b"\x02\x21\x4c\x18":
        pytest.skip("nothing to compare it with: the kernel is not LZ4's, or lz4 is not installed")
    done = subprocess.run([lz4_program, "-dc"], input=packed, capture_output=True, check=False)
    with open(ready.path, "rb") as file:
        assert file.read() == done.stdout

"""The kernel of a guest: found in the host's packages or named in config.json, and the modules it needs (cold).

What QEMU boots is the ELF file inside of a bzImage: with the PVH entry (Xen's, CONFIG_PVH) it starts at once, while the
bzImage's own decompressor runs on the guest's processor, which costs an emulated one half a second. Taken out once, and
kept. Formats: Documentation/arch/x86/boot.rst, kmod's modules.dep(5).
"""

from __future__ import annotations

import os
from struct import error as StructError  # noqa: N812  # it is a name, and a class
from struct import unpack_from

from knarr.base.errors import FileError, Unsupported
from knarr.base.files import read_file, write_atomic
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

BASE_MODULES = ("virtio_mmio", "virtio_console", "virtiofs", "overlay")
"""What every guest needs: its devices, the channel, the shared directory, a root that can be written to."""
_SUMS = {**dict.fromkeys(("ext4", "xfs", "btrfs", "erofs"), "crc32c_generic"), "f2fs": "crc32_generic"}
"""Checksums that a file system asks the kernel's crypto layer for by another name, which no modules.dep has. Newer
kernels have them as plain functions, and no such module."""
_LARGEST_KERNEL = 512 << 20
_LARGEST_MODULE = 64 << 20
_SETUP_MAGIC = b"HdrS"
_LARGEST_WINDOW = 1 << 27  # what "zstd -19 --long" asks for
_PIECE = 1 << 20
_MOST_KEPT = 3
_ZBOOT_MAGIC = b"MZ\0\0zimg"


class Kernel(Record):
    """A kernel that QEMU can boot: the file, its release, the files of its modules in the order they are loaded."""

    path: str
    release: str
    modules: tuple[str, ...]


def find(prefix: str = "") -> str:
    """The path of the newest kernel of the host's packages that has modules; ``prefix`` stands before /boot and /lib.

    Raises Unsupported with the package to install.
    """
    prefix = prefix or os.environ.get("KNARR_KERNELS", "")
    try:
        files = os.listdir(f"{prefix}/boot")
        releases = os.listdir(f"{prefix}/lib/modules")
    except OSError:
        files = releases = []
    name = newest(files, releases)
    if name is None:
        package = "linux-image-cloud-arm64" if os.uname().machine == "aarch64" else "linux-image-cloud-amd64"
        raise Unsupported(
            "isolation vm",
            f"{prefix}/boot has no vmlinuz-VERSION whose modules are in {prefix}/lib/modules/VERSION",
            hint=f"on Debian: apt-get install --no-install-recommends {package}, or name one in config.json: vm.kernel",
        )
    return f"{prefix}/boot/{name}"


def newest(files: Iterable[str], releases: Iterable[str]) -> str | None:
    """Of the names in /boot the kernel to take, pure: a cloud flavour (made for virtual machines), then the newest."""
    known = set(releases)
    kernels = [name for name in files if name.startswith("vmlinuz-") and name.removeprefix("vmlinuz-") in known]
    return max(kernels, key=lambda name: ("cloud" in name or "kvm" in name, _numbers(name), name), default=None)


def _numbers(text: str) -> list[int]:
    digits = "".join(letter if letter.isdigit() else " " for letter in text)
    return [int(word) for word in digits.split()]


def prepare(path: str, cache: str, wanted: Sequence[str], prefix: str = "") -> Kernel:
    """Make the kernel in ``path`` ready to boot: ``cache`` keeps what was taken out of it; "" keeps nothing.

    ``wanted``: modules by name. Those it was built with are not loaded; a kernel without a directory of modules is
    taken to have all of them. Raises FileError, Unsupported.
    """
    prefix = prefix or os.environ.get("KNARR_KERNELS", "")
    try:
        data = read_file(path, _LARGEST_KERNEL)
    except FileError as error:
        if not error.hint:
            error.hint = "vm.kernel.path in config.json, or a kernel package, names a file that can be read"
        raise
    inside = data
    if data[:8] == _ZBOOT_MAGIC:
        inside = zboot(data)
    release = release_of(inside)
    if not release:
        raise Unsupported("isolation vm", f"{path} is no Linux kernel")
    modules = find_modules(module_folder(release, prefix), wanted)
    if cache and inside is not data:
        path = _kept(path, cache, "image", lambda: inside)
    elif cache and data[0x202:0x206] == _SETUP_MAGIC:
        try:
            path = _kept(path, cache, "vmlinux", lambda: _bootable(payload(data)))
        except Unsupported:
            pass  # the bzImage boots as well, only later
    return Kernel(path, release, modules)


def module_folder(release: str, prefix: str = "") -> str:
    """The directory of that release's modules; before it stands ``prefix`` or KNARR_KERNELS."""
    return f"{prefix or os.environ.get('KNARR_KERNELS', '')}/lib/modules/{release}"


def release_of(data: bytes) -> str:
    """The release (``uname -r``) of a kernel in memory; "" when it is none."""
    if data[0x202:0x206] == _SETUP_MAGIC:
        start = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    else:
        start = data.find(b"Linux version ")
        if start < 0:
            return ""
        start += len(b"Linux version ")
    words = data[start : start + 128].split(b"\0")[0].split()
    return words[0].decode("ascii", "replace") if words else ""


# -- the ELF file of a bzImage -----------------------------------------------------------------------------------------


def _kept(path: str, cache: str, kind: str, make: Callable[[], bytes]) -> str:
    """Where ``cache`` keeps what is made of the file ``path``, once. Raises FileError, Unsupported."""
    facts = os.stat(path)
    name = f"{kind}-{facts.st_dev:x}-{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"
    kept = f"{cache}/{name}"
    if not os.path.exists(kept):
        write_atomic(kept, make(), mode=0o600)
        others = [f"{cache}/{each}" for each in os.listdir(cache) if each.startswith(f"{kind}-") and each != name]
        for old in sorted(others, key=lambda each: os.stat(each).st_mtime, reverse=True)[_MOST_KEPT - 1 :]:
            os.unlink(old)
    return kept


def _bootable(elf: bytes) -> bytes:
    if not has_pvh(elf):
        raise Unsupported("isolation vm", "the kernel was built without CONFIG_PVH")
    return elf


def payload(data: bytes) -> bytes:
    """The ELF file that a bzImage unpacks when it boots. Raises Unsupported."""
    try:
        sectors = data[0x1F1] or 4
        offset, length = unpack_from("<II", data, 0x248)
    except (IndexError, StructError):
        raise Unsupported("isolation vm", "the kernel is cut short") from None
    begin = (sectors + 1) * 512 + offset
    packed = data[begin : begin + length]
    if len(packed) != length or length < 8:
        raise Unsupported("isolation vm", "the kernel is cut short")
    size = int.from_bytes(packed[-4:], "little")  # written behind it by the kernel's build, whatever the compression
    if size > _LARGEST_KERNEL:
        raise Unsupported("isolation vm", "the kernel says that it is too large")
    elf = expand(packed, size)
    if elf[:4] != b"\x7fELF":
        raise Unsupported("isolation vm", "the kernel's inside is no ELF file")
    return elf


def zboot(data: bytes) -> bytes:
    """The Image inside of an EFI zboot file, as arm64 kernels may come. Raises Unsupported."""
    offset, length = unpack_from("<II", data, 8) if len(data) >= 16 else (0, 0)
    packed = data[offset : offset + length]
    if not packed or len(packed) != length:
        raise Unsupported("isolation vm", "the kernel is cut short")
    return expand(packed, _LARGEST_KERNEL)


def expand(packed: bytes, limit: int) -> bytes:
    """Decompress a kernel or a module, whichever of gzip, xz, zstd, LZ4 it is; not more than ``limit`` bytes.

    Raises Unsupported.
    """
    import lzma
    import zlib

    import zstandard

    try:
        if packed[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(packed, limit)
        if packed[:6] == b"\xfd7zXZ\0":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed, limit)
        if packed[:4] == b"\x28\xb5\x2f\xfd":
            reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(packed)
            parts, length = [], 0
            while length < limit and (part := reader.read(min(_PIECE, limit - length))):
                parts.append(part)
                length += len(part)
            return b"".join(parts)
        if packed[:4] == b"\x02\x21\x4c\x18":
            return lz4(packed, limit)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, IndexError) as error:
        raise Unsupported("isolation vm", f"a compressed file is damaged ({error})") from None
    raise Unsupported("isolation vm", "a file is compressed in a way that is not known")


def lz4(packed: bytes, limit: int) -> bytes:
    """Decompress LZ4's legacy frame, which kernels use: blocks of 8 MiB, each with its length before it.

    Raises IndexError when it is damaged. Format: lz4_Block_format.md.
    """
    out = bytearray()
    at = 4
    while at + 4 <= len(packed) and len(out) < limit:
        length = int.from_bytes(packed[at : at + 4], "little")
        at += 4
        if length == 0x184C2102:  # another frame
            continue
        if at + length > len(packed):
            raise IndexError("the last block is cut short")
        _lz4_block(packed[at : at + length], out, limit)
        at += length
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray, limit: int) -> None:
    at, end = 0, len(block)
    base = len(out)  # blocks do not refer to those before them
    while at < end:
        token = block[at]
        at += 1
        count = token >> 4
        if count == 15:
            more = 255
            while more == 255:
                more = block[at]
                at += 1
                count += more
        if len(out) + count > limit:
            raise IndexError("there is more than it says")
        out += block[at : at + count]
        at += count
        if at >= end:
            return
        distance = block[at] | block[at + 1] << 8
        at += 2
        count = token & 15
        if count == 15:
            more = 255
            while more == 255:
                more = block[at]
                at += 1
                count += more
        count += 4
        start = len(out) - distance
        if distance == 0 or start < base or len(out) + count > limit:
            raise IndexError("a match reaches too far")
        if distance >= count:
            out += out[start : start + count]
        else:
            piece = bytes(out[start:])
            out += (piece * (count // distance + 1))[:count]


def has_pvh(elf: bytes) -> bool:
    """Whether an ELF kernel has the entry that QEMU boots by: Xen's note 18, XEN_ELFNOTE_PHYS32_ENTRY."""
    try:
        table = int.from_bytes(elf[32:40], "little")
        size, count = unpack_from("<HH", elf, 54)
        for index in range(count):
            kind, _, offset, _, _, length = unpack_from("<IIQQQQ", elf, table + index * size)
            if kind == 4 and _has_note(elf[offset : offset + length]):  # PT_NOTE
                return True
    except StructError:
        pass
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name, data, kind = unpack_from("<III", notes, at)
        if kind == 18 and notes[at + 12 : at + 16] == b"Xen\0":
            return True
        at += 12 + (name + 3 & ~3) + (data + 3 & ~3)
    return False


# -- modules -----------------------------------------------------------------------------------------------------------


def find_modules(folder: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The files of the modules to load for ``wanted``, each after those it needs.

    Empty for a kernel that has no such directory. Raises Unsupported, FileError.
    """
    if not os.path.isdir(folder):
        return ()
    needs = parse_dependencies(_text(f"{folder}/modules.dep"))
    builtin = {module_name(line) for line in _text(f"{folder}/modules.builtin").splitlines()}
    return tuple(f"{folder}/{path}" for path in load_order(wanted, needs, builtin, folder))


def read_modules(files: Sequence[str]) -> list[tuple[str, bytes]]:
    """Name and content of each, not compressed. Raises FileError, Unsupported."""
    found = []
    for path in files:
        data = read_file(path, _LARGEST_MODULE)
        if not data.startswith(b"\x7fELF"):
            data = expand(data, _LARGEST_MODULE)
        found.append((f"{module_name(path)}.ko", data))
    return found


def _text(path: str) -> str:
    try:
        return read_file(path, 64 << 20).decode("utf-8", "surrogateescape")
    except FileError as error:
        error.hint = f"depmod {os.path.basename(os.path.dirname(path))} makes it"
        raise


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep as a table: a module's name, and its file after the files it needs, the first to load first."""
    table = {}
    for line in text.splitlines():
        path, colon, others = line.partition(":")
        if colon:
            table[module_name(path)] = (*reversed(others.split()), path)
    return table


def module_name(path: str) -> str:
    """The module a file is, as the kernel calls it: kernel/drivers/char/hw_random/virtio-rng.ko.xz is virtio_rng."""
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def load_order(wanted: Sequence[str], needs: Mapping[str, Sequence[str]], builtin: set[str], folder: str) -> list[str]:
    """The files to load for ``wanted``, in order; pure. Raises Unsupported when the kernel has one in no form."""
    order: list[str] = []
    sums = [_SUMS[name] for name in wanted if name in _SUMS]
    for name in (*(each for each in sums if each in needs), *wanted):
        if name in builtin:
            continue
        if name not in needs:
            raise Unsupported("isolation vm", f"the kernel of {folder} has no {name}")
        order += [path for path in needs[name] if path not in order]
    return order

"""An EROFS image that is an index of tar files: the whole tree of an image, whose content stays in the layers' tars.

The kernel mounts it with the tars as its devices (EROFS multi-device, Linux 5.16; blocks of 512 bytes, 6.4; from files
without loop devices, 6.12), so nothing need be extracted. Pure: a model in, bytes out, the same for the same model.
Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux; all numbers little-endian.

    0     unused
    1024  superblock
    1152  device table, one slot for each tar
    …     inodes, in slots of 32 bytes, with attributes and what their kind needs (chunk indexes, a short target)
    …     blocks: directories, long targets
"""

from __future__ import annotations

from struct import Struct

from knarr.base.errors import Unsupported
from knarr.kernel.path import printable
from knarr.layer.metadata import is_allowed
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, SYMLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from knarr.layer.model import Model, Node
    from knarr.layer.tarball import Entry

BLOCK_BITS = 9
"""Blocks as tar has them; the kernel takes any size from 512 bytes to its page."""
_BLOCK = 1 << BLOCK_BITS
SUPER = 1024
MAGIC = 0xE0F5E1E2
_DEVICES = SUPER + 128
_SLOT = 128  # of a device
_MOST_DEVICES = 1 << 14  # the root's inode comes after them, and its number has 16 bits
INODE = 64  # extended: with nanoseconds and 32 bits of owner
_PLAIN, _INLINE, _CHUNKS = 0, 2, 4  # layouts of data
_INDEXES = 0x20  # chunk format: 8 bytes each, naming a device
HOLE = 0xFFFFFFFF
_CHUNKED, _DEVICE_TABLE = 0x4, 0x8  # features without which it cannot be read
_MOST_INDEXES = 1 << 20  # of one sparse file
_TYPES = {FILE: 1, DIR: 2, CHAR: 3, BLOCK: 4, FIFO: 5, SYMLINK: 7}
_MODES = {FILE: 0o100000, DIR: 0o040000, CHAR: 0o020000, BLOCK: 0o060000, FIFO: 0o010000, SYMLINK: 0o120000}
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_ACLS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}

_pack_inode = Struct("<HHHHQIIIIQII16x").pack
_pack_dirent = Struct("<QHBx").pack
_pack_index = Struct("<HHI").pack
_pack_attribute = Struct("<BBH").pack
_pack_device = Struct("<64sIIHH52x").pack
_pack_super = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x").pack


class _Inode:
    """What is written of one node."""

    __slots__ = ("address", "attributes", "layout", "links", "node", "number", "parent", "tail", "value")

    def __init__(self, node: Node, number: int, parent: _Inode | None) -> None:
        self.node = node
        self.number = number
        self.parent = parent or self
        self.links = 0
        self.address = 0  # in the image
        self.attributes = b""
        self.layout = _PLAIN
        self.tail = b""  # right behind the inode
        self.value = 0  # the inode's word: block, device number or chunk format

    def size(self) -> int:
        return INODE + len(self.attributes) + len(self.tail)


def write(model: Model, sizes: Sequence[int], out: BinaryIO, *, identity: bytes = bytes(16)) -> None:
    """Write the index of ``model`` into ``out``. ``sizes``: bytes of each layer's tar, bottom first.

    ``identity`` becomes the file system's UUID (16 bytes). Raises Unsupported for what such an index cannot say: more
    than 16,384 layers, a tar over 2 TiB, a sparse file whose parts are not in whole blocks. OSError from ``out``.
    """
    if len(sizes) > _MOST_DEVICES:
        raise Unsupported(f"an index of {len(sizes)} layers", f"{_MOST_DEVICES} are possible")
    if any(size >> (BLOCK_BITS + 32) for size in sizes):
        raise Unsupported("an index of a layer of over 2 TiB", "its blocks have 32 bits")
    inodes, names = _collect(model)
    at = _DEVICES + len(sizes) * _SLOT
    for inode in inodes:
        _place_in(inode, at)
        at = inode.address + (inode.size() + 31 & ~31)
    block = at + _BLOCK - 1 >> BLOCK_BITS
    blocks: list[bytes] = []
    for inode in inodes:
        if inode.layout == _PLAIN and (data := _data(inode, names)):
            inode.value = block
            blocks.append(data)
            block += len(data) >> BLOCK_BITS
    out.write(bytes(SUPER) + _superblock(inodes, len(sizes), block, identity))
    out.writelines(_pack_device(b"", size + _BLOCK - 1 >> BLOCK_BITS, 0, 0, 0) for size in sizes)
    at = _DEVICES + len(sizes) * _SLOT
    for inode in inodes:
        data = _inode(inode, names)
        out.write(bytes(inode.address - at) + data + bytes(-len(data) % 32))
        at = inode.address + (len(data) + 31 & ~31)
    out.write(bytes(-at % _BLOCK))
    for data in blocks:
        out.write(data)


def _superblock(inodes: list[_Inode], devices: int, blocks: int, identity: bytes) -> bytes:
    return _pack_super(
        MAGIC,
        0,  # checksum: that feature is not used, the file's digest is recorded beside it
        0,
        BLOCK_BITS,
        0,
        inodes[0].address >> 5,
        len(inodes),
        0,
        0,
        blocks,
        0,  # inodes are numbered from the start of the image
        0,
        identity,
        b"",
        _CHUNKED | _DEVICE_TABLE if devices else _CHUNKED,
        0,
        devices,
        _DEVICES // _SLOT,
        0,
        0,
        0,
        0,
    )


# -- inodes ------------------------------------------------------------------------------------------------------------


def _collect(model: Model) -> tuple[list[_Inode], dict[int, list[tuple[bytes, _Inode]]]]:
    """All inodes, the root first, and for each directory (by its number) its names and what they lead to, in order."""
    root = _Inode(model.root, 0, None)
    root.links = 2
    inodes = [root]
    known: dict[int, _Inode] = {}  # files with several names are one object
    names: dict[int, list[tuple[bytes, _Inode]]] = {}
    todo = [root]
    while todo:
        directory = todo.pop()
        listed: list[tuple[bytes, _Inode]] = [(b".", directory), (b"..", directory.parent)]
        for name, node in (directory.node.children or {}).items():
            inode = known.get(id(node))
            if inode is None:
                inode = _Inode(node, len(inodes), directory)
                inodes.append(inode)
                if node.children is None:
                    known[id(node)] = inode
                else:
                    inode.links = 1
                    directory.links += 1
                    todo.append(inode)
            inode.links += 1
            listed.append((name, inode))
        listed.sort(key=_name)
        names[directory.number] = listed
    return inodes, names


def _name(pair: tuple[bytes, _Inode]) -> bytes:
    return pair[0]


def _place_in(inode: _Inode, at: int) -> None:
    """Decide how an inode's data is kept, and where it lies: at ``at`` or a little behind."""
    entry = inode.node.entry
    inode.address = at
    if entry.xattrs:
        inode.attributes = _attributes(entry)
    kind = entry.kind
    if kind == FILE:
        if entry.size:
            inode.layout = _CHUNKS
            inode.value, inode.tail = _chunks(entry, inode.node.layer + 1)
            inode.tail = bytes(-len(inode.attributes) % 8) + inode.tail  # indexes are aligned to 8 bytes
    elif kind in (CHAR, BLOCK):
        major, minor = entry.device
        inode.value = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    elif kind == SYMLINK:
        whole = INODE + len(inode.attributes) + len(entry.link)
        if whole <= _BLOCK:  # a short target lies behind its inode, in the same block
            inode.layout = _INLINE
            inode.tail = entry.link
            if at >> BLOCK_BITS != at + whole - 1 >> BLOCK_BITS:
                inode.address = at + _BLOCK - 1 & -_BLOCK


def _chunks(entry: Entry, device: int) -> tuple[int, bytes]:
    """The chunk format and the indexes of a file's content."""
    first = entry.start
    if first % _BLOCK:
        raise Unsupported(f"an index of {printable(entry.name)!r}", "its content does not begin with a block")
    if entry.extents is None:
        bits = max(0, (entry.size - 1).bit_length() - BLOCK_BITS)
        return bits | _INDEXES, _pack_index(0, device, first >> BLOCK_BITS)
    # Chunks as large as all parts allow; what is no part is a hole.
    unit = 1 << 62
    stored = 0
    for offset, length in entry.extents:
        unit = min(unit, offset & -offset or unit, stored & -stored or unit)
        if offset + length < entry.size:
            unit = min(unit, length & -length)
        stored += length
    if not entry.extents:
        unit = max(1 << (entry.size - 1).bit_length(), _BLOCK)
    unit = min(unit, max(1 << (entry.size - 1).bit_length(), _BLOCK))
    count = (entry.size + unit - 1) // unit
    if unit < _BLOCK or count > _MOST_INDEXES:
        raise Unsupported(f"an index of {printable(entry.name)!r}", "its holes are not made of whole blocks")
    indexes = [_pack_index(0, 0, HOLE)] * count
    at = first >> BLOCK_BITS
    for offset, length in entry.extents:
        for number in range(offset // unit, (offset + length + unit - 1) // unit):
            indexes[number] = _pack_index(0, device, at)
            at += unit >> BLOCK_BITS
    return (unit.bit_length() - 1 - BLOCK_BITS) | _INDEXES, b"".join(indexes)


def _attributes(entry: Entry) -> bytes:
    """The attributes that a layer may carry, as they lie behind an inode."""
    parts = []
    for name, value in sorted((entry.xattrs or {}).items()):
        if not is_allowed(name.decode("utf-8", "surrogateescape")):
            continue
        index = _ACLS.get(name, 0)
        rest = b""
        if not index:
            for prefix, number in _PREFIXES:
                if name.startswith(prefix):
                    index, rest = number, name[len(prefix) :]
        entry_bytes = _pack_attribute(len(rest), index, len(value)) + rest + value
        parts.append(entry_bytes + bytes(-len(entry_bytes) % 4))
    if not parts:
        return b""
    return bytes(12) + b"".join(parts)


def _inode(inode: _Inode, names: dict[int, list[tuple[bytes, _Inode]]]) -> bytes:
    """The bytes of an inode with all that is behind it."""
    entry = inode.node.entry
    kind = entry.kind
    if kind == DIR:
        size = _directory_size(names[inode.number])
    elif kind == SYMLINK:
        size = len(entry.link)
    else:
        size = entry.size if kind == FILE else 0
    mode = 0o777 if kind == SYMLINK else entry.mode
    attributes = inode.attributes
    count = (len(attributes) - 12) // 4 + 1 if attributes else 0
    seconds, nanoseconds = divmod(entry.mtime, 1_000_000_000)
    head = _pack_inode(
        1 | inode.layout << 1,
        count,
        _MODES[kind] | mode,
        0,
        size,
        inode.value,
        inode.number + 1,
        entry.uid,
        entry.gid,
        seconds & 0xFFFFFFFFFFFFFFFF,
        nanoseconds,
        inode.links,
    )
    return head + attributes + inode.tail


# -- data that lies in the image ---------------------------------------------------------------------------------------


def _data(inode: _Inode, names: dict[int, list[tuple[bytes, _Inode]]]) -> bytes:
    """The blocks of a directory, or of a long target."""
    kind = inode.node.entry.kind
    if kind == DIR:
        return b"".join(_directory_block(part) for part in _directory_parts(names[inode.number]))
    if kind == SYMLINK:
        target = inode.node.entry.link
        return target + bytes(-len(target) % _BLOCK)
    return b""


def _directory_parts(listed: list[tuple[bytes, _Inode]]) -> list[list[tuple[bytes, _Inode]]]:
    """Names that fit one block each."""
    parts: list[list[tuple[bytes, _Inode]]] = []
    room = 0
    for pair in listed:
        need = 12 + len(pair[0])
        if need > room:
            parts.append([])
            room = _BLOCK
        parts[-1].append(pair)
        room -= need
    return parts


def _directory_size(listed: list[tuple[bytes, _Inode]]) -> int:
    parts = _directory_parts(listed)
    return (len(parts) - 1) * _BLOCK + sum(12 + len(name) for name, _ in parts[-1])


def _directory_block(part: list[tuple[bytes, _Inode]]) -> bytes:
    at = 12 * len(part)
    heads = []
    for name, inode in part:
        heads.append(_pack_dirent(inode.address >> 5, at, _TYPES[inode.node.entry.kind]))
        at += len(name)
    data = b"".join(heads) + b"".join(name for name, _ in part)
    return data + bytes(_BLOCK - len(data))

"""A read-only look at the tree of an image through its EROFS index (erofs.py), without mounting it.

The counterpart of ``MergedView`` for images that are not extracted: used to read /etc/passwd before anything runs and
to find where the image's volumes are. Reads what erofs.py writes, nothing more; whatever does not fit is an error.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL
from struct import Struct, error

from knarr.base.errors import FileError
from knarr.kernel.path import printable
from knarr.layer.erofs import BLOCK_BITS, HOLE, INODE, MAGIC, SUPER
from knarr.layer.view import resolve_links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

_BLOCK = 1 << BLOCK_BITS
_unpack_inode = Struct("<HHHHQIIIIQII").unpack_from
_unpack_dirent = Struct("<QHB").unpack_from
_unpack_index = Struct("<HHI").unpack_from


class Inode:
    """What the index says of a file: mode with its type, owner, bytes, and where its data is described."""

    __slots__ = ("_at", "_layout", "_value", "gid", "mode", "size", "uid")

    def __init__(self, mode: int, owner: tuple[int, int], size: int, layout: int, value: int, at: int) -> None:
        self.mode = mode
        self.uid, self.gid = owner
        self.size = size
        self._layout = layout
        self._value = value
        self._at = at  # right behind the attributes

    @property
    def place(self) -> tuple[int, int, int]:
        """Layout, word and address, for the view."""
        return self._layout, self._value, self._at


class ErofsView:
    """The tree in the file ``index``; ``tars`` are its devices, in order. Raises FileError."""

    def __init__(self, index: str, tars: Sequence[str]) -> None:
        self._path = index
        self._tars = tars
        self._fd = -1
        try:
            self._fd = os.open(index, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            head = os.pread(self._fd, 128, SUPER)
            if len(head) < 128 or int.from_bytes(head[:4], "little") != MAGIC or head[12] != BLOCK_BITS:
                raise self._damaged()
            self._root = int.from_bytes(head[14:16], "little")
        except OSError as problem:
            raise FileError("read", index, problem.errno or EINVAL) from None

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _damaged(self) -> FileError:
        return FileError("read", self._path, EINVAL, hint="it is damaged: remove the image and pull it again")

    # -- files ---------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """An inode by its number. Raises FileError."""
        try:
            form, count, mode, _, size, value, _, uid, gid, *_ = _unpack_inode(os.pread(self._fd, INODE, number << 5))
        except error:
            raise self._damaged() from None
        behind = (number << 5) + INODE + (12 + 4 * (count - 1) if count else 0)
        return Inode(mode, (uid, gid), size, form >> 1, value, behind)

    def names(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """The names in a directory and the numbers of their inodes."""
        _, block, _ = inode.place
        for at in range(0, inode.size, _BLOCK):
            data = os.pread(self._fd, min(_BLOCK, inode.size - at), (block << BLOCK_BITS) + at)
            try:
                _, first, _ = _unpack_dirent(data)
                heads = [_unpack_dirent(data, start) for start in range(0, first, 12)]
            except error:
                raise self._damaged() from None
            ends = [offset for _, offset, _ in heads[1:]] + [len(data)]
            for (number, offset, _), end in zip(heads, ends, strict=True):
                yield data[offset:end].rstrip(b"\0"), number

    def child(self, inode: Inode, name: bytes) -> Inode | None:
        """What a name in a directory leads to."""
        for found, number in self.names(inode):
            if found == name:
                return self.inode(number)
        return None

    def target(self, inode: Inode) -> bytes:
        """Where a symbolic link leads."""
        layout, block, behind = inode.place
        return os.pread(self._fd, inode.size, behind if layout == 2 else block << BLOCK_BITS)

    def content(self, inode: Inode) -> bytes:
        """The bytes of a file."""
        layout, form, behind = inode.place
        if layout != 4:
            return b""
        unit = 1 << BLOCK_BITS + (form & 0x1F)
        start = behind + 7 & ~7
        count = (inode.size + unit - 1) // unit
        table = os.pread(self._fd, 8 * count, start)
        parts = []
        for number in range(count):
            try:
                _, device, block = _unpack_index(table, 8 * number)
            except error:
                raise self._damaged() from None
            length = min(unit, inode.size - number * unit)
            parts.append(bytes(length) if block == HOLE else self._from_tar(device, block << BLOCK_BITS, length))
        return b"".join(parts)

    def _from_tar(self, device: int, at: int, length: int) -> bytes:
        if not 0 < device <= len(self._tars):
            raise self._damaged()
        fd = os.open(self._tars[device - 1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.pread(fd, length, at)
        finally:
            os.close(fd)
        if len(data) != length:
            raise self._damaged()
        return data

    # -- paths ---------------------------------------------------------------------------------------------

    def lookup(self, path: bytes) -> Inode | None:
        """What a path free of links and dots names; None if nothing. Raises FileError."""
        found: Inode | None = self.inode(self._root)
        for part in path.split(b"/") if path else ():
            found = self.child(found, part) if found is not None and stat.S_ISDIR(found.mode) else None
        return found

    def resolve(self, path: str | bytes) -> tuple[bytes, Inode]:
        """Follow every symbolic link inside the tree; return (path free of links, what it names).

        Raises NotFound, or FileError for a loop or for a component that is no directory.
        """
        return resolve_links(path, self.lookup, self._link, lambda found: stat.S_ISDIR(found.mode))

    def _link(self, inode: Inode) -> bytes | None:
        return self.target(inode) if stat.S_ISLNK(inode.mode) else None

    def read_file(self, path: str | bytes, limit: int) -> bytes:
        """Return a regular file of at most ``limit`` bytes; links resolve inside the tree.

        Raises NotFound when there is none by that name, FileError when it is something else, larger, or cannot be read.
        """
        shown = f"{printable(path)} in the image"
        found = self.resolve(path)[1]
        if not stat.S_ISREG(found.mode):
            raise FileError("read", shown, EINVAL, hint="it is not a regular file")
        if found.size > limit:
            raise FileError("read", shown, EINVAL, hint=f"it has {found.size} bytes, at most {limit} are read")
        try:
            return self.content(found)
        except OSError as problem:
            if isinstance(problem, FileError):
                raise
            raise FileError("read", shown, problem.errno or EINVAL) from None

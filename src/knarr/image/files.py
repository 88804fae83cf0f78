"""The files of an image layout, in a directory or within an archive, read in place.

Two providers with one face: ``open(name)`` gives (stream, size) or raises NotFound. Names come from checked
digests and constants only. A compressed archive is first unpacked into an unnamed temporary file, because its
members are read by position.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ENOENT, ENOSPC, ENOTDIR

from knarr.base.errors import FileError, FormatError, NotFound, Unsupported
from knarr.base.files import write_all
from knarr.content.compress import decompressor, sniff
from knarr.content.verify import CHUNK, FileStream, open_regular
from knarr.image.reference import STDIO
from knarr.image.tarindex import index_tar
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from knarr.content.verify import Readable

    class Files(Protocol):
        """Where the files of a layout come from; ``where`` names it in errors."""

        where: str

        def open(self, name: str) -> tuple[Readable, int]: ...

        def close(self) -> None: ...


class DirectoryFiles:
    """Files below a directory. Symbolic links are followed: some tools build layouts of links into a cache."""

    def __init__(self, path: str) -> None:
        self.where = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == ENOENT:
                raise NotFound("directory", path) from None
            hint = "an archive is named oci-archive:FILE or docker-archive:FILE" if error.errno == ENOTDIR else ""
            raise FileError("open", path, error.errno or EINVAL, hint=hint) from None
        except ValueError:
            raise FileError("open", path, EINVAL) from None

    def open(self, name: str) -> tuple[Readable, int]:
        """Return (stream, size in bytes) of a regular file; raises NotFound, FileError."""
        try:
            fd, size = open_regular(name, self._fd, follow=True)
        except FileError as error:
            if error.number == ENOENT:
                raise NotFound("file", f"{self.where}/{name}") from None
            raise FileError("read", f"{self.where}/{name}", error.number, hint=error.hint) from None
        return FileStream(fd, f"{self.where}/{name}"), size

    def close(self) -> None:
        """Let the directory go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ArchiveFiles:
    """Regular members of a tar archive, plain or compressed with gzip or zstd."""

    def __init__(self, path: str, *, fd: int = -1) -> None:
        """Read the archive at ``path``, - for standard input, or in a file that is open at ``fd``."""
        self.where = "standard input" if path == STDIO else path
        if fd >= 0:
            self._fd = fd
        elif path == STDIO:
            self._fd = _standard_input()
        else:
            try:
                self._fd, _ = open_regular(path, follow=True)
            except FileError as error:
                if error.number == ENOENT:
                    raise NotFound("file", path) from None
                raise
        try:
            self._unpack()
            self._index = index_tar(self._fd, self.where)
        except BaseException:
            self.close()
            raise

    def again(self) -> ArchiveFiles:
        """Return the same files, to be closed on their own."""
        other = object.__new__(ArchiveFiles)
        other.where, other._index, other._fd = self.where, self._index, os.dup(self._fd)
        return other

    def _unpack(self) -> None:
        """Replace a compressed archive by its plain bytes in a file without a name."""
        kind = sniff(os.pread(self._fd, 512, 0))
        if not kind:
            return
        if kind not in {"gzip", "zstd"}:
            raise Unsupported(f"{kind} archive {self.where}", "knarr reads plain, gzip and zstd archives")
        media_type = mediatypes.LAYER_GZIP if kind == "gzip" else mediatypes.LAYER_ZSTD
        source = decompressor(FileStream(self._fd, self.where, own=False), media_type, what=self.where)
        fd = unnamed_file(source, self.where)
        os.close(self._fd)
        self._fd = fd

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def open(self, name: str) -> tuple[Readable, int]:
        """Return (stream, size in bytes) of a regular member; raises NotFound, FormatError."""
        offset, size = self.find(name)
        return FileStream(self._fd, self.where, offset, size, own=False), size

    def find(self, name: str) -> tuple[int, int]:
        """Return (offset, size) of a regular member, or of the one a symbolic link beside it names.

        ``docker save`` links a layer it has already written, as ``../ID/layer.tar``. One such step is taken, by
        names only and within the archive; everything else that is not a regular member is refused.
        """
        member = self._index.get(name)
        if member is None:
            raise NotFound("file", f"{name} in {self.where}")
        if member.kind == "link":
            target = _beside(name, member.target)
            linked = self._index.get(target) if target else None
            if linked is None or linked.kind != "file":
                raise FormatError(self.where, name, f"is a symbolic link to {member.target!r}, not a file")
            return linked.offset, linked.size
        if member.kind != "file":
            raise FormatError(self.where, name, "is not a regular file")
        return member.offset, member.size

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unnamed_file(source: Readable, what: str) -> int:
    """Return the descriptor of a new file without a name that holds all of ``source``.

    It is in $TMPDIR or /var/tmp, of which a tenth is left free. Raises FileError, and what the source raises.
    """
    import tempfile

    folder = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: nobody can guess or open it
            fd = os.dup(file.fileno())
    except OSError as error:
        raise FileError("make a temporary file in", folder, error.errno or EINVAL) from None
    try:
        facts = os.fstatvfs(fd)
        room = facts.f_bavail * facts.f_frsize * 9 // 10
        while data := source.read(CHUNK):
            room -= len(data)
            if room < 0:
                hint = "the archive is unpacked there first; set TMPDIR to a place with more room"
                raise FileError(f"unpack {what} to", folder, ENOSPC, hint=hint)
            try:
                write_all(fd, data)
            except OSError as error:
                raise FileError(f"unpack {what} to", folder, error.errno or EINVAL) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _standard_input() -> int:
    """Return a descriptor of standard input that can be read anywhere: itself if it is a file, else a copy."""
    try:
        facts = os.fstat(0)
    except OSError as error:
        raise FileError("read", "standard input", error.errno or EINVAL) from None
    if stat.S_ISREG(facts.st_mode):
        return os.dup(0)
    if os.isatty(0):
        raise FileError("read", "standard input", EINVAL, hint="it is a terminal; an archive is expected, as a pipe")
    return unnamed_file(_Input(), "standard input")


class _Input:
    """Standard input as a stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; raises FileError."""
        try:
            return os.read(0, size)
        except OSError as error:
            raise FileError("read", "standard input", error.errno or EINVAL) from None

    def close(self) -> None:
        """It stays open."""


def read_document(files: Files, name: str, limit: int) -> bytes:
    """Return the whole of a small file; raises NotFound, FormatError when it has more than ``limit`` bytes."""
    stream, size = files.open(name)
    try:
        if size > limit:
            raise FormatError(f"{files.where}/{name}", "", f"it has {size} bytes, at most {limit} are read")
        parts = []
        while part := stream.read(limit + 1):
            parts.append(part)
            if sum(map(len, parts)) > limit:
                raise FormatError(f"{files.where}/{name}", "", f"it has more than the {limit} bytes that are read")
        return b"".join(parts)
    finally:
        stream.close()


def _beside(name: str, target: str) -> str:
    """Return the member a relative link names, "" when it leads out of the archive."""
    if target.startswith("/"):
        return ""
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)

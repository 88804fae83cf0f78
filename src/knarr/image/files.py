"""The files of an image layout, in a directory or within an archive, read in place.

Two providers with one face: ``open(name)`` gives (stream, size) or raises NotFound. Names come from checked
digests and constants only. A compressed archive is first unpacked into an unnamed temporary file, because its
members are read by position.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, ENOSPC, ENOTDIR

from knarr.base.errors import FileError, FormatError, NotFound, Unsupported
from knarr.content.compress import decompressor, sniff
from knarr.content.verify import CHUNK, FileStream, open_regular
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

    def __init__(self, path: str) -> None:
        self.where = path
        try:
            self._fd, _ = open_regular(path, follow=True)
        except FileError as error:
            if error.number == ENOENT:
                raise NotFound("file", path) from None
            raise
        try:
            self._unpack()
            self._index = index_tar(self._fd, path)
        except BaseException:
            self.close()
            raise

    def _unpack(self) -> None:
        """Replace a compressed archive by its plain bytes in a file without a name."""
        kind = sniff(os.pread(self._fd, 512, 0))
        if not kind:
            return
        if kind not in {"gzip", "zstd"}:
            raise Unsupported(f"{kind} archive {self.where}", "knarr reads plain, gzip and zstd archives")
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
            media_type = mediatypes.LAYER_GZIP if kind == "gzip" else mediatypes.LAYER_ZSTD
            source = decompressor(FileStream(self._fd, self.where, own=False), media_type, what=self.where)
            while data := source.read(CHUNK):
                if source.produced > room:
                    hint = "the archive is unpacked there first; set TMPDIR to a place with more room"
                    raise FileError(f"unpack {self.where} to", folder, ENOSPC, hint=hint)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
        except OSError as error:
            os.close(fd)
            raise FileError(f"unpack {self.where} to", folder, error.errno or EINVAL) from None
        except BaseException:
            os.close(fd)
            raise
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

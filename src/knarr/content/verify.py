"""Readers that know what they should read: never a byte past the promised size, never an end without the digest.

The size is looked at first, byte by byte as they come; the last chunk is handed out only when nothing
follows it and the digest of everything is right. So whoever has read to the end holds the promised bytes.
"""

from __future__ import annotations

import io
import os
import stat
from errno import EINVAL, EIO, EISDIR, ELOOP

from knarr.base.errors import DigestMismatch, FileError, FormatError, SizeMismatch
from knarr.content.digest import Digest, hasher, usable
from knarr.content.stopping import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from knarr.content.digest import Hasher

    class Readable(Protocol):
        """The least a source of bytes offers; an empty answer is the end."""

        def read(self, size: int, /) -> bytes: ...

        def close(self) -> None: ...


CHUNK = 1 << 20
"""Bytes read at a time where nothing asks otherwise: large enough that hashing runs without the GIL."""


class VerifiedReader(io.RawIOBase):
    """Reads a stream that must have exactly this size and digest.

    ``read`` raises SizeMismatch on the first byte too many or at an early end, and DigestMismatch before the
    last chunk is handed out. ``what`` names the thing in those errors. Closing closes the stream under it.
    ``known`` are bytes before the stream's first one, as a hash object that has been fed them and their number:
    then the stream is only the rest of the thing, and the digest is still that of the whole.
    """

    def __init__(
        self, stream: Readable, digest: str, size: int, what: str = "", *, known: tuple[Hasher, int] | None = None
    ) -> None:
        super().__init__()
        self.digest = usable(digest)
        self.size = size
        self.what = what or f"blob {digest}"
        self._stream = stream
        self._hash, before = known if known is not None else (hasher(self.digest.algorithm), 0)
        self._left = size - before
        self._checked = False
        self._stop = current()
        if size < 0:
            raise SizeMismatch(self.what, size, 0, more=True)

    def known(self) -> tuple[Hasher, int]:
        """Return what another reader needs to go on from here."""
        return self._hash.copy(), self.size - self._left

    def readable(self) -> bool:
        """Say that it can be read (io.RawIOBase asks)."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that remain for -1; b"" only once size and digest were right."""
        if size is None or size < 0:
            return self.readall()
        if self.closed:
            raise ValueError("read of a closed reader")
        if size == 0 or self._checked:
            return b""
        if self._stop is not None:
            self._stop.check()
        data = self._stream.read(min(size, self._left)) if self._left > 0 else b""
        if self._left and not data:
            raise SizeMismatch(self.what, self.size, self.size - self._left)
        if len(data) > self._left:  # a stream that gives more than it was asked for
            raise SizeMismatch(self.what, self.size, self.size, more=True)
        self._hash.update(data)
        self._left -= len(data)
        if not self._left:
            self._check()
        return data

    def readall(self) -> bytes:
        """Return everything that remains."""
        parts = []
        while part := self.read(CHUNK):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` (io.BufferedReader asks); returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _check(self) -> None:
        if self._stream.read(1):
            raise SizeMismatch(self.what, self.size, self.size, more=True)
        got = f"{self.digest.algorithm}:{self._hash.hexdigest()}"
        if got != self.digest:
            raise DigestMismatch(self.what, self.digest, got)
        self._checked = True

    def close(self) -> None:
        """Close it and the stream under it."""
        if not self.closed:
            super().close()
            self._stream.close()


class Resumable:
    """A blob that can be read from any byte on: ``open_from(offset)`` gives the rest, not verified.

    Whoever reads it keeps what came and, should it end early, asks for the rest another time.
    """

    __slots__ = ("open_from",)

    def __init__(self, open_from: Callable[[int], Readable]) -> None:
        self.open_from = open_from


class FileStream:
    """A part of an open regular file as a stream, read by position, so that threads can share the descriptor.

    With ``own`` the descriptor is closed with the stream. ``path`` is for errors.
    """

    def __init__(self, fd: int, path: str, start: int = 0, size: int | None = None, *, own: bool = True) -> None:
        self._fd = fd
        self._path = path
        self._at = start
        self._end = None if size is None else start + size
        self._own = own

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; raises FileError."""
        if self._end is not None:
            size = min(size, self._end - self._at)
        try:
            data = os.pread(self._fd, size, self._at) if size > 0 else b""
        except OSError as error:
            raise FileError("read", self._path, error.errno or EIO) from None
        self._at += len(data)
        return data

    def close(self) -> None:
        """Let the descriptor go."""
        if self._own and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def open_regular(path: str, dir_fd: int | None = None, *, follow: bool = False) -> tuple[int, int]:
    """Open a regular file for reading and return (descriptor, size in bytes).

    The last component may not be a symbolic link unless ``follow``, and a FIFO or device neither blocks nor is
    read: a blob directory made by somebody else may hold anything. Raises FileError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        hint = "it is a symbolic link" if error.errno == ELOOP else ""
        raise FileError("read", path, error.errno or EINVAL, hint=hint) from None
    try:
        facts = os.fstat(fd)
    except OSError as error:  # a network file system may fail here
        os.close(fd)
        raise FileError("read", path, error.errno or EINVAL) from None
    if stat.S_ISREG(facts.st_mode):
        return fd, facts.st_size
    os.close(fd)
    if stat.S_ISDIR(facts.st_mode):
        raise FileError("read", path, EISDIR)
    raise FileError("read", path, EINVAL, hint="it is not a regular file")


def read_all(stream: Readable, digest: str, size: int, limit: int, what: str = "") -> bytes:
    """Return the whole of a small document, verified, and close ``stream``.

    Raises FormatError when ``size`` is above ``limit`` bytes, before anything is read; SizeMismatch and
    DigestMismatch as VerifiedReader does.
    """
    try:
        if size > limit:
            raise FormatError(what or f"blob {digest}", "", f"it has {size} bytes, at most {limit} are read")
        return VerifiedReader(stream, digest, size, what).readall()
    finally:
        stream.close()


def verify_bytes(data: bytes, digest: str, size: int, what: str = "") -> Digest:
    """Check bytes at hand against a digest and size; raises SizeMismatch or DigestMismatch."""
    want = usable(digest)
    what = what or f"blob {digest}"
    if len(data) != size:
        raise SizeMismatch(what, size, len(data))
    made = hasher(want.algorithm)
    made.update(data)
    got = f"{want.algorithm}:{made.hexdigest()}"
    if got != want:
        raise DigestMismatch(what, want, got)
    return want

"""Blobs that are not whole yet: one file each, held by its writer, and gone on with where the source can do that."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from errno import EEXIST, EINVAL, ENOENT
from time import monotonic, sleep

from knarr.base.errors import DigestMismatch, FileError, InUse, SizeMismatch
from knarr.base.files import Lock, write_all
from knarr.content import locks
from knarr.content.digest import hasher
from knarr.content.locks import POLL, cannot_create, holder, store_hint
from knarr.content.verify import CHUNK, Resumable, VerifiedReader
from knarr.kernel.disk import Writeback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.content.digest import Digest, Hasher
    from knarr.content.verify import Readable

    Source = bytes | Readable | Callable[[], Readable] | Resumable

KEPT_LEAST = 1 << 20
"""Bytes of a broken-off blob that are worth keeping for the next try."""

TEMPORARY = ".tmp"


class Part:
    """The unfinished file of a blob, locked. ``keep``: what came is worth another try."""

    def __init__(self, root: str, fd: int, path: str) -> None:
        self.root = root
        self.fd = fd
        self.keep = False
        self.made: Hasher
        self._path = path

    def empty(self) -> None:
        """Throw away what a writer before us left; raises FileError."""
        self.keep = False
        try:
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
        except OSError as error:
            number = error.errno or EINVAL
            raise FileError("write", self._path, number, hint=store_hint(number)) from None

    def begun(self, digest: Digest, size: int, moved: Callable[[int], None] | None) -> int:
        """Hash what is there (into ``made``) and return how many bytes that is; 0 when it cannot be a beginning."""
        self.made = hasher(digest.algorithm)
        try:
            there = os.fstat(self.fd).st_size
            if there > size:
                there = 0
            done = 0
            self.keep = there >= KEPT_LEAST
            while done < there and (data := os.pread(self.fd, min(CHUNK, there - done), done)):
                self.made.update(data)
                done += len(data)
                if moved is not None:
                    moved(len(data))
            if not done:
                self.empty()
            os.lseek(self.fd, done, os.SEEK_SET)
        except OSError as error:
            raise FileError("read", self._path, error.errno or EINVAL) from None
        return done


@contextmanager
def locked_part(root: str, name: str, moved: Callable[[int], None] | None) -> Iterator[Part]:
    """Hold the unfinished file of that name, with what a killed writer left in it; take it away afterwards."""
    path = f"{root}/{TEMPORARY}/{name}"
    lock = Lock(path, wait=False)
    seen, deadline = -1, monotonic() + locks.LOCK_TIMEOUT
    tries = 0
    while True:
        try:
            lock.acquire()
            break
        except FileError as error:
            # The directory may come and go: another process makes the store, or a collection empties it.
            if error.number == ENOENT and tries < 100:
                tries += 1
                make_directory(os.path.dirname(path))
                continue
            number = cannot_create(path) or error.number
            raise FileError("write to", root, number, hint=store_hint(number)) from None
        except InUse:
            if moved is not None:
                moved(0)
            size = _size(path)
            if size != seen:
                seen, deadline = size, monotonic() + locks.LOCK_TIMEOUT
            elif monotonic() > deadline:
                raise InUse("unfinished blob", path, holder(path)) from None
            sleep(POLL)
    part = Part(root, lock.fd, path)
    try:
        yield part
    finally:
        # Still locked: nobody else has this file. After success it has been renamed and is not here.
        if not (part.keep and _size(path) >= KEPT_LEAST):
            _unlink_if_same(path, lock.fd)
        lock.release()


def fill(source: Source, part: Part, digest: Digest, size: int, moved: Callable[[int], None] | None) -> None:
    """Fill the locked file of a blob with exactly its bytes."""
    what = f"blob {digest}"
    if not isinstance(source, Resumable):
        part.empty()
        reader = verified(opened(source), digest, size)
        try:
            pour(reader, part, what, moved)
        finally:
            reader.close()
        return
    known = part.begun(digest, size, moved)
    try:
        _fill_rest(source, part, digest, size, known, moved)
    except (DigestMismatch, SizeMismatch):
        part.empty()
        if not known:
            raise
        # What was left may be wrong itself: after a crash of the machine a file can hold zeros.
        _fill_rest(source, part, digest, size, 0, None)


def _fill_rest(
    source: Resumable,
    part: Part,
    digest: Digest,
    size: int,
    known: int,
    moved: Callable[[int], None] | None,
) -> None:
    made = part.made if known else hasher(digest.algorithm)
    stream = io.BytesIO() if known == size else source.open_from(known)
    reader = VerifiedReader(stream, digest, size, f"blob {digest}", known=(made, known))
    try:
        part.keep = True
        pour(reader, part, f"blob {digest}", moved)
    except (DigestMismatch, SizeMismatch, FileError):
        part.keep = False
        raise
    finally:
        reader.close()


def pour(stream: Readable, part: Part, what: str, moved: Callable[[int], None] | None) -> None:
    """Write a stream to its end; raises FileError, and what the stream and ``moved`` raise."""
    writeback = None
    while data := stream.read(CHUNK):
        try:
            writeback = writeback or Writeback(part.fd, os.lseek(part.fd, 0, os.SEEK_CUR))
            write_all(part.fd, data)
            writeback.wrote(len(data))
        except OSError as error:
            number = error.errno or EINVAL
            raise FileError(f"write {what} to", part.root, number, hint=store_hint(number)) from None
        if moved is not None:
            moved(len(data))


def opened(source: bytes | Readable | Callable[[], Readable] | Resumable) -> Readable:
    """Return a source of bytes as a stream."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Resumable):
        return source.open_from(0)
    return source() if callable(source) else source


def verified(stream: Readable, digest: Digest, size: int) -> VerifiedReader:
    """Return a verified reader of ``stream``: itself, if it is one of just these bytes (hashing twice costs twice)."""
    if isinstance(stream, VerifiedReader) and (stream.digest, stream.size) == (digest, size):
        return stream
    return VerifiedReader(stream, digest, size, f"blob {digest}")


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make a directory unless it is there; raises FileError."""
    try:
        os.mkdir(path, mode)
    except OSError as error:
        if error.errno != EEXIST:
            raise FileError("make directory", path, error.errno or EINVAL) from None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _unlink_if_same(path: str, fd: int) -> None:
    try:
        ours, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            os.unlink(path)
    except OSError:
        pass  # renamed, or a file system that fails: the collection takes it

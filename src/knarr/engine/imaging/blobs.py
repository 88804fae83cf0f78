"""Where an image's bytes are: the source it was opened from, and what was made since; nothing is changed in place."""

from __future__ import annotations

import io
import os
import tempfile
from errno import EINVAL

from knarr.base.errors import FileError, NotFound
from knarr.content.digest import sha256_of
from knarr.content.verify import FileStream, VerifiedReader, read_all
from knarr.image.resolve import embedded, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from knarr.content.verify import Readable
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

    Opener = Callable[[], Readable]

LIMIT = 4 << 20
"""Most bytes of a document."""


class Blobs:
    """Blobs by descriptor: those made since (``added``: digest -> opener), then those of ``source``.

    Every reader verifies size and digest. Closing lets the source go; so does forgetting the last image that uses it.
    """

    def __init__(self, source: Counted | None, added: Mapping[str, Opener] | None = None) -> None:
        self.source = source
        self._added = dict(added or {})

    def also(self, added: Mapping[str, Opener]) -> Blobs:
        """The same blobs and some more."""
        return Blobs(self.source, {**self._added, **added})

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """A verified reader; raises NotFound, SizeMismatch, InvalidDigest, FileError, RegistryError."""
        digest, size = descriptor["digest"], descriptor["size"]
        opener = self._added.get(digest)
        if opener is not None:
            return VerifiedReader(opener(), digest, size, f"{kind_of(descriptor)} {digest}")
        if self.source is None:
            raise NotFound("blob", digest)
        return self.source.open_blob(descriptor)

    def open_range(self, descriptor: Descriptor, start: int, size: int) -> Readable | None:
        """A part of a blob of the source, not verified; None where parts are not to be had, or are no gain."""
        if descriptor["digest"] in self._added or self.source is None:
            return None
        return self.source.open_range(descriptor, start, size)

    def read(self, descriptor: Descriptor) -> bytes:
        """A document of at most 4 MiB, verified; out of the descriptor itself when it carries it."""
        kept = embedded(descriptor)
        if kept is not None:
            return kept
        what = f"{kind_of(descriptor)} {descriptor['digest']}"
        return read_all(self.open_blob(descriptor), descriptor["digest"], descriptor["size"], LIMIT, what)

    @property
    def fetched(self) -> int:
        """Bytes read from the source so far: manifests, configs and layers as they are stored."""
        return self.source.fetched if self.source is not None else 0

    def close(self) -> None:
        """Let the source go: files, archive, connections."""
        if self.source is not None:
            self.source.close()


class Counted:
    """An image source that counts the bytes read from it, and is closed with its last user."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.fetched = 0
        self._open = True

    def roots(self) -> list[Descriptor]:
        return self.source.roots()

    def open_blob(self, descriptor: Descriptor) -> Readable:
        return _CountedReader(self, self.source.open_blob(descriptor))

    def open_range(self, descriptor: Descriptor, start: int, size: int) -> Readable | None:
        opener: Callable[[Descriptor, int, int], Readable | None] | None = getattr(self.source, "open_range", None)
        stream = opener(descriptor, start, size) if opener is not None else None
        return None if stream is None else _CountedReader(self, stream)

    def close(self) -> None:
        """Close the source; fine if it is closed."""
        if self._open:
            self._open = False
            self.source.close()

    def __del__(self) -> None:
        self.close()


class _CountedReader(io.RawIOBase):
    """A reader that adds to its source's count."""

    def __init__(self, to: Counted, stream: Readable) -> None:
        super().__init__()
        self._to = to
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        data = self._stream.read(size)
        self._to.fetched += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream.close()


def in_memory(data: bytes, media_type: str) -> tuple[Descriptor, Opener]:
    """The descriptor of some bytes, and what opens them."""
    descriptor: Descriptor = {"mediaType": media_type, "digest": sha256_of(data), "size": len(data)}
    return descriptor, lambda: io.BytesIO(data)


class Spool:
    """A file without a name that holds a layer while no store has it; gone when nobody refers to it."""

    def __init__(self) -> None:
        self.folder = os.environ.get("TMPDIR") or "/var/tmp"
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise FileError("make a temporary file in", self.folder, error.errno or EINVAL) from None
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> None:
        """Add bytes; raises FileError."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            hint = "set TMPDIR to a place with more room"
            raise FileError("write a layer to", self.folder, error.errno or EINVAL, hint=hint) from None
        self.size += len(data)

    def open(self) -> Readable:
        """Read it from its start; any number of times, from any thread."""
        return _SpoolReader(self, self._fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class _SpoolReader(FileStream):
    """Keeps the spool while it is read."""

    def __init__(self, spool: Spool, fd: int) -> None:
        super().__init__(fd, f"a temporary file in {spool.folder}", own=False)
        self._spool = spool

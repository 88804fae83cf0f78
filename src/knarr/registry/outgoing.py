"""The bytes of a blob on their way to a registry: handed out piece by piece, and again from any byte on.

Nothing is kept for the case that a piece is lost: the source is read again, a file from its start, what can begin in
the middle (``Resumable``) from the piece's. So an upload costs the same memory whatever its pieces are.
"""

from __future__ import annotations

from knarr.base.errors import SizeMismatch
from knarr.content.digest import hasher
from knarr.content.part import opened, verified
from knarr.content.readahead import ReadAhead
from knarr.content.verify import CHUNK, Resumable, VerifiedReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.content.digest import Digest, Hasher
    from knarr.content.part import Source

_AHEAD = 4  # chunks read, and hashed, while others are sent
_ALONE = 1 << 20  # bytes for which a thread that reads ahead is not worth its start


class Outgoing:
    """A blob that is being sent, verified on the way. ``source`` is bytes or something that can be opened again.

    ``moved`` hears of each byte once, however often it is sent; ``sent`` counts those sent.
    """

    def __init__(self, source: Source, digest: Digest, size: int, moved: Callable[[int], None]) -> None:
        self.digest = digest
        self.size = size
        self.sent = 0
        self._source = source
        self._moved = moved
        self._told = 0
        self._known: tuple[Hasher, int] = hasher(digest.algorithm), 0  # what the last piece begins behind
        self._reader: VerifiedReader | None = None
        self._ahead: ReadAhead | None = None
        self._at = 0

    def piece(self, start: int, count: int) -> Iterator[bytes]:
        """Return ``count`` bytes from ``start`` on, which ``sent`` then counts; raises what reading raises.

        The last ones are given out only when all before them were right, too.
        """
        reader = self._from(start)
        return self._handed_out(reader, start, count) if count else iter(())

    def _from(self, start: int) -> VerifiedReader:
        """Have the reader at ``start``, and keep in mind what it has hashed until there."""
        self._end_ahead()
        reader = self._reader
        if reader is None or self._at != start:
            reader = self._opened(self._known if self._known[1] <= start else (hasher(self.digest.algorithm), 0))
            while self._at < start:
                data = reader.read(min(start - self._at, CHUNK))
                if not data:
                    raise SizeMismatch(reader.what, self.size, self._at)
                self._at += len(data)
                self._tell(self._at)
        self._known = reader.known()
        return reader

    def _opened(self, known: tuple[Hasher, int]) -> VerifiedReader:
        self.close()
        what = f"blob {self.digest}"
        if isinstance(self._source, Resumable) and known[1]:
            stream = self._source.open_from(known[1])
            reader = VerifiedReader(stream, self.digest, self.size, what, known=(known[0].copy(), known[1]))
            self._at = known[1]
        else:
            reader = verified(opened(self._source), self.digest, self.size)
            self._at = 0
        self._reader = reader
        return reader

    def _handed_out(self, reader: VerifiedReader, start: int, count: int) -> Iterator[bytes]:
        at, end = start, start + count
        self._at = -1  # until all of it was read: who stops in between reads it again
        stream = _Only(reader, count) if count <= _ALONE else ReadAhead(_Only(reader, count), depth=_AHEAD)
        if isinstance(stream, ReadAhead):
            self._ahead = stream
        while at < end:
            data = stream.read(CHUNK)
            if not data:
                raise SizeMismatch(reader.what, self.size, at)
            at += len(data)
            self.sent += len(data)
            if at == end:
                self._at = end
            self._tell(at)
            yield data

    def _tell(self, at: int) -> None:
        more, self._told = max(0, at - self._told), max(at, self._told)
        self._moved(more)

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def close(self) -> None:
        """End reading."""
        self._end_ahead()
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Only:
    """The next ``left`` bytes of a stream, which stays open."""

    def __init__(self, stream: VerifiedReader, left: int) -> None:
        self._stream = stream
        self._left = left

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Leave it to who opened it."""

"""Layers that are kept as tars while they still come: one pass from the registry to a tar that can be mounted.

What a blob's writer reads is also inflated, checked against its diffID, written and its entries noted, by a thread for
each layer. When the blob has arrived and was verified, and so was the tar, ``TarStore.ensure`` takes both over; until
then nobody sees them. Whatever comes between (a download another process began, a layer another process is making, a
wrong digest) only means that ``ensure`` reads that layer from the store of blobs, as if it had been there before; it is
also the one to say what is wrong.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

from knarr.base.errors import Interrupted, InUse, KnarrError
from knarr.base.files import Lock
from knarr.content.verify import Resumable
from knarr.layer.chain import chain_ids
from knarr.layer.model import Noted, Room
from knarr.layer.snapshot import NO_LAYERS
from knarr.layer.tarball import Reader
from knarr.layer.tarstore import Copied, forget, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from knarr.content.part import Source
    from knarr.content.verify import Readable
    from knarr.layer.source import Layer
    from knarr.layer.tarstore import TarStore

_AHEAD = 4  # chunks of a layer that wait to be inflated; then the connection waits


class Arrivals:
    """The layers of one image, on their way into ``store``; close it when ``ensure`` has been called, or never will be.

    ``expect`` once, then ``of`` for each blob, from any thread. While it is open nothing is collected there.
    """

    def __init__(self, store: TarStore) -> None:
        self.chain = ""
        """The image they are of, whose lock is held; "" when somebody else is making it, or it is there."""
        self._store = store
        self._held = ExitStack()
        self._expected: dict[str, Arrival] = {}  # by the digest of the blob
        self._room = Room()

    def expect(self, layers: Sequence[tuple[str, Layer]]) -> None:
        """Prepare for the blobs (by digest) of an image's layers; those that are there are not taken.

        Locks are taken in the order in which ``ensure`` does, first the image's, then those of its tars as sorted, and
        none after one that somebody else has: so nobody who waits for one of ours holds one we shall wait for.
        Raises InvalidDigest, FileError.
        """
        chain = (chain_ids([layer.diff_id for _, layer in layers]) or [NO_LAYERS])[-1]
        self._held.enter_context(self._store.hold())
        try:
            self._own(self._store.image_lock(chain))
            if self._store.has(chain):
                return
            self.chain = chain
            for digest, layer in sorted(
                {layer.diff_id: (digest, layer) for digest, layer in layers}.values(), key=_diff_id
            ):
                if not os.path.lexists(self._store.tar(layer.diff_id)):
                    self._own(self._store.tar_lock(layer.diff_id))
                    if not os.path.lexists(self._store.tar(layer.diff_id)):
                        self._expected[digest] = Arrival(layer, self._store.tar_made(layer.diff_id), self._room)
        except InUse:
            return

    def _own(self, path: str) -> None:
        lock = Lock(path, wait=False)
        lock.acquire()
        self._held.callback(forget, lock)

    def of(self, digest: str) -> Arrival | None:
        """The layer that a blob is, if it is to be taken as it comes."""
        return self._expected.get(digest)

    def all(self) -> dict[str, Arrival]:
        """By diffID those whose tars are this process's to make; what of them has come says ``Arrival.noted``."""
        return {arrival.layer.diff_id: arrival for arrival in self._expected.values()}

    def close(self) -> None:
        """Remove what nobody took over, and let others make it."""
        with self._held:
            for arrival in self._expected.values():
                arrival.end(whole=False)
                remove(arrival.place)
            self._expected.clear()
            self.chain = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _diff_id(pair: tuple[str, Layer]) -> str:
    return pair[1].diff_id


class Arrival:
    """One layer that comes: bytes are handed over by whoever reads them, and a thread makes its tar of them."""

    def __init__(self, layer: Layer, place: str, room: Room) -> None:
        self.layer = layer
        self.place = place
        self.size = 0
        self.noted: Noted | None = None
        """The entries, once all of the layer is there and was right."""
        self._room = room
        self._ready: list[bytes] = []
        self._rest = memoryview(b"")
        self._change = threading.Condition()
        self._at = 0
        self._ended = self._whole = self._over = False
        self._thread: threading.Thread | None = None

    # -- the side of the blob's writer -----------------------------------------------------------------------

    def follow(self, source: Source) -> Source:
        """Return ``source`` such that what is read of it comes here too."""
        if isinstance(source, Resumable):
            open_from = source.open_from
            return Resumable(lambda offset: self._followed(open_from(offset), offset))
        if callable(source):
            opener = source
            return lambda: self._followed(opener(), 0)
        return source  # bytes at hand: a small layer, inflated when it is there

    def _followed(self, stream: Readable, offset: int) -> Readable:
        if offset != self._at or self._ended:  # what an earlier process left was not seen here
            self.end(whole=False)
            return stream
        if self._thread is None:
            self._thread = threading.Thread(target=self._take, name="knarr-arriving", daemon=True)
            self._thread.start()
        return _Followed(stream, self)

    def hand_over(self, data: bytes) -> None:
        """Take the next bytes of the blob; waits while too many are waiting. Raises nothing."""
        with self._change:
            self._at += len(data)
            while len(self._ready) >= _AHEAD and not self._over:
                self._change.wait()
            if not self._over:
                self._ready.append(data)
                self._change.notify_all()

    def end(self, *, whole: bool) -> None:
        """Say that there are no more, ``whole`` if the blob is there and was right; waits until the tar is made."""
        with self._change:
            if not self._ended:
                self._ended, self._whole = True, whole
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- the thread --------------------------------------------------------------------------------------------

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` of the bytes that have come; b"" at the end."""
        if not self._rest:
            with self._change:
                while not self._ready and not self._ended:
                    self._change.wait()
                if self._ended and not self._whole:
                    raise Interrupted(f"{self.layer.what} has not come")
                if not self._ready:
                    return b""
                self._rest = memoryview(self._ready.pop(0))
                self._change.notify_all()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data.tobytes()

    def close(self) -> None:
        """End of the reader; nothing is held."""

    def _take(self) -> None:
        try:
            remove(self.place)
            with Copied(self.layer.replace(open=lambda: self).stream(ahead=False), self.place, self.layer.what) as copy:
                noted = Noted(Reader(copy, what=self.layer.what), self._room)
            self.size = copy.size
            self.noted = noted
        except (KnarrError, OSError, MemoryError):
            pass  # ensure() reads the layer again, and says what is wrong
        finally:
            with self._change:
                self._over = True
                self._ready.clear()
                self._change.notify_all()


class _Followed:
    """A stream whose bytes also go to an arrival."""

    def __init__(self, stream: Readable, arrival: Arrival) -> None:
        self._stream = stream
        self._arrival = arrival

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if data:
            self._arrival.hand_over(data)
        return data

    def close(self) -> None:
        self._stream.close()

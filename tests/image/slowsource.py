"""A source that is slow, counts what is opened and can be broken off."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from knarr.base.errors import Interrupted
from knarr.image.reference import parse_reference
from knarr.image.source import open_source

if TYPE_CHECKING:
    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor


class Slow:
    """A source that hands out a layout's blobs slowly and counts what was opened."""

    def __init__(self, text: str, delay: float, chunk: int = 64 << 10) -> None:
        self._source = open_source(parse_reference(text))
        self.what = self._source.what
        self.delay = delay
        self.chunk = chunk
        self.opened: list[str] = []
        self.aborted = False

    def roots(self) -> list[Descriptor]:
        return self._source.roots()

    def names(self) -> list[str]:
        return self._source.names()

    def open_blob(self, descriptor: Descriptor) -> Readable:
        self.opened.append(descriptor["digest"])
        return SlowStream(self._source.open_blob(descriptor), self)

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self._source.close()


class SlowStream:
    def __init__(self, stream: Readable, source: Slow) -> None:
        self._stream = stream
        self._source = source

    def read(self, size: int, /) -> bytes:
        if self._source.aborted:
            raise Interrupted("aborted")
        time.sleep(self._source.delay)
        return self._stream.read(min(size, self._source.chunk))

    def close(self) -> None:
        self._stream.close()

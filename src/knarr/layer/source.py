"""The layers of an image as streams of plain tar bytes, with digest and diffID verified at their end."""

from __future__ import annotations

import io

from knarr.base.errors import DigestMismatch, Interrupted, SpecError, SpecFinding
from knarr.base.record import Record
from knarr.content.compress import compression_of, decompressor
from knarr.content.digest import hasher, usable
from knarr.content.readahead import HashAside, ReadAhead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor

    class Blobs(Protocol):
        """What is needed of a blob store: a reader that verifies size and digest."""

        def open_blob(self, descriptor: Descriptor, /) -> Readable: ...


CHUNK = 1 << 20
_WORTH_A_THREAD = 1 << 18  # compressed bytes
_AHEAD = 16  # chunks: small files hold unpacking up for longer than inflating four takes


class Layer(Record):
    """One layer: its diffID, media type, compressed size in bytes, and how to open the verified compressed bytes."""

    diff_id: str
    media_type: str
    size: int
    open: Callable[[], Readable]
    what: str = "layer"

    def stream(
        self, *, stopped: Callable[[], bool] | None = None, progress: Progress | None = None, ahead: bool = True
    ) -> Readable:
        """Open it as plain tar bytes, read in a second thread when it is large (unless not ``ahead``).

        The end is only reported when digest and diffID were right (DigestMismatch, SizeMismatch, FormatError).
        ``stopped`` makes ``read`` raise Interrupted; ``progress`` is told of compressed bytes read.
        """
        raw = _Counted(self, self.open(), stopped, progress)
        try:
            plain = _Plain(self, raw)
        except BaseException:
            raw.close()
            raise
        return ReadAhead(plain, depth=_AHEAD) if ahead and self.size >= _WORTH_A_THREAD else plain


if TYPE_CHECKING:
    Progress = Callable[[Layer, int], None]
    """Called with a layer and the compressed bytes of it read so far, from any thread."""


class _Counted:
    """The compressed bytes, counted."""

    def __init__(
        self, layer: Layer, stream: Readable, stopped: Callable[[], bool] | None, progress: Progress | None
    ) -> None:
        self._layer = layer
        self._stream = stream
        self._stopped = stopped
        self._progress = progress
        self._done = 0

    def read(self, size: int, /) -> bytes:
        if self._stopped is not None and self._stopped():
            raise Interrupted(f"unpacking {self._layer.what} was stopped")
        data = self._stream.read(size)
        if self._progress is not None and data:
            self._done += len(data)
            self._progress(self._layer, self._done)
        return data

    def close(self) -> None:
        self._stream.close()


class _Plain(io.RawIOBase):
    """The plain bytes, hashed on the way."""

    def __init__(self, layer: Layer, raw: Readable) -> None:
        super().__init__()
        self._want = usable(layer.diff_id)
        self._what = layer.what
        self._raw = raw
        self._source = decompressor(raw, layer.media_type, what=layer.what)
        made = hasher(self._want.algorithm)
        self._aside = HashAside(made) if layer.size >= _WORTH_A_THREAD else None
        self._hash = self._aside or made
        self._ended = False

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes; b"" once everything was right."""
        if size is None or size < 0:
            return self.readall()
        if self._ended:
            return b""
        data = self._source.read(size)
        if data:
            self._hash.update(data)
            return data
        while self._raw.read(CHUNK):  # so that the compressed bytes are verified to their end, too
            pass
        got = f"{self._want.algorithm}:{self._hash.hexdigest()}"
        if got != self._want:
            raise DigestMismatch(f"{self._what} once decompressed", self._want, got)
        self._ended = True
        return b""

    def close(self) -> None:
        """Close the streams under it."""
        if not self.closed:
            super().close()
            if self._aside is not None:
                self._aside.close()
            self._source.close()


def layers_of(store: Blobs, manifest: dict[str, Any], config: dict[str, Any]) -> list[Layer]:
    """The layers of an image, bottom first, from its manifest and config documents and the store of its blobs.

    Raises SpecError when their numbers differ, Unsupported for a media type that is no layer's.
    """
    descriptors = manifest.get("layers") or []
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(descriptors) != len(diff_ids):
        why = f"has {len(diff_ids)} entries for {len(descriptors)} layers"
        raise SpecError("image config", [SpecFinding("/rootfs/diff_ids", why)])
    layers = []
    for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
        compression_of(descriptor["mediaType"])
        layers.append(
            Layer(
                usable(diff_id),
                descriptor["mediaType"],
                descriptor["size"],
                _opener(store, descriptor),
                f"layer {descriptor['digest']}",
            )
        )
    return layers


def _opener(store: Blobs, descriptor: Descriptor) -> Callable[[], Readable]:
    return lambda: store.open_blob(descriptor)

"""Layers compressed another way, on their way from a source: each into a file without a name, checked at both ends.

What comes has the layer's digest, what is inside has the diffID its config promises; the new digest is only known when
all of it is written, which is why it waits in a file.
"""

from __future__ import annotations

import os
from errno import EINVAL

from knarr.base import fastjson
from knarr.base.errors import DigestMismatch, FileError, Interrupted
from knarr.base.files import write_all
from knarr.content.compress import compression_of, decompressor
from knarr.content.compressor import Compression, LayerWriter
from knarr.content.part import opened
from knarr.content.verify import CHUNK, FileStream
from knarr.image.convert import Other
from knarr.image.files import unnamed_file
from knarr.image.resolve import embedded
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from knarr.content.compressor import Writable
    from knarr.content.verify import Readable
    from knarr.image.source import ImageSource
    from knarr.image.transfer import Report
    from knarr.image.tree import Node
    from knarr.spec.image import Descriptor

    Writer = Callable[[Readable, Writable, Compression, str], tuple[Descriptor, str, str]]
    """Plain bytes, where to, how, a name for errors -> descriptor, the tar's digest as it came, and as it is now."""


def to_change(nodes: Sequence[Node], how: Compression) -> dict[str, tuple[Descriptor, str]]:
    """Return the layers of images that are compressed otherwise: digest -> (descriptor, diffID)."""
    found: dict[str, tuple[Descriptor, str]] = {}
    for node in nodes:
        if node.config is None:
            continue
        diff_ids = fastjson.loads(node.config, f"config of {node.digest}")["rootfs"]["diff_ids"]
        for layer, diff_id in zip(node.document["layers"], diff_ids, strict=True):
            foreign = layer["mediaType"] in mediatypes.FOREIGN_LAYERS
            if not foreign and not _is_so(layer, how):
                found[layer["digest"]] = layer, diff_id
    return found


def _is_so(layer: Descriptor, how: Compression) -> bool:
    """Say whether a layer is compressed so, whatever the level."""
    notes = layer.get("annotations") or {}
    return compression_of(layer["mediaType"]) == how.kind and (not how.table or mediatypes.TABLES[how.kind] in notes)


class Recompressed:
    """The layers made anew: what stands for each (by its old digest), and their bytes. To be closed."""

    def __init__(self) -> None:
        self.layers: dict[str, Other] = {}
        self._files: dict[str, int] = {}

    def open(self, digest: str) -> Callable[[], Readable] | None:
        """Return what opens a new layer by its new digest, None for what is not one."""
        fd = self._files.get(digest)
        return None if fd is None else lambda: FileStream(fd, f"layer {digest}", own=False)

    def keep(self, old: str, new: Other, fd: int) -> None:
        """Take a finished file."""
        self.layers[old] = new
        if new.descriptor["digest"] in self._files:
            os.close(fd)
        else:
            self._files[new.descriptor["digest"]] = fd

    def close(self) -> None:
        """Let all files go."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def recompress(
    source: ImageSource,
    wanted: dict[str, tuple[Descriptor, str]],
    how: Compression,
    report: Report,
    jobs: int,
    writer: Writer | None = None,
) -> Recompressed:
    """Make layers anew, several at once. Raises what reading raises, DigestMismatch, FileError.

    ``writer`` writes those that get a table of contents.
    """
    from concurrent.futures import ThreadPoolExecutor

    done = Recompressed()
    pool = ThreadPoolExecutor(max(1, min(jobs, os.cpu_count() or 1)), "knarr-compress")
    write = writer if how.table and writer is not None else _plainly
    started: list[Future[tuple[Other, int]]] = []
    try:
        started += [pool.submit(_one, source, layer, diff_id, how, report, write) for layer, diff_id in wanted.values()]
        for old, future in zip(wanted, started, strict=True):
            new, fd = future.result()
            done.keep(old, new, fd)
    except BaseException:
        report.stopped = True
        source.abort()
        pool.shutdown(cancel_futures=True)
        for future in started:
            if not future.cancelled() and future.exception() is None:
                new, fd = future.result()
                if new.descriptor["digest"] not in {one.descriptor["digest"] for one in done.layers.values()}:
                    os.close(fd)
        done.close()
        raise
    pool.shutdown()
    return done


def _plainly(plain: Readable, out: Writable, how: Compression, what: str) -> tuple[Descriptor, str, str]:
    del what
    writer = LayerWriter(out, how)
    while data := plain.read(CHUNK):
        writer.write(data)
    writer.close()
    return writer.descriptor(), writer.diff_id, writer.diff_id


class _Stoppable:
    """Plain bytes until the copy is stopped."""

    def __init__(self, stream: Readable, report: Report, what: str) -> None:
        self._stream = stream
        self._report = report
        self._what = what

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; raises Interrupted."""
        if self._report.stopped:
            raise Interrupted(f"compressing {self._what} was stopped")
        return self._stream.read(size)

    def close(self) -> None:
        """It is closed where it was opened."""


def _one(
    source: ImageSource, layer: Descriptor, diff_id: str, how: Compression, report: Report, write: Writer
) -> tuple[Other, int]:
    data = embedded(layer)
    stream = opened(data) if data is not None else source.open_blob(layer)
    what = f"layer {layer['digest']}"
    reader = decompressor(stream, layer["mediaType"], what=what)
    try:
        fd = unnamed_file(opened(b""), what)
        try:
            descriptor, came, is_now = write(_Stoppable(reader, report, what), _Out(fd), how, what)
            if came != diff_id:
                raise DigestMismatch(f"{what}, decompressed,", diff_id, came)
            return Other(descriptor, is_now if is_now != diff_id else ""), fd
        except BaseException:
            os.close(fd)
            raise
    finally:
        reader.close()


class _Out:
    """An open file to write to."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of it; raises FileError."""
        try:
            write_all(self._fd, bytes(data))
        except OSError as error:
            hint = "set TMPDIR to a place with more room"
            raise FileError(
                "write to", os.environ.get("TMPDIR") or "/var/tmp", error.errno or EINVAL, hint=hint
            ) from None

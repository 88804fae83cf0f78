"""Changes to the layers of an image: append, add, remove, squash, rebase. Image in, new image out.

Reproducible: no clock and no random number goes into a layer, a config or a manifest. New history entries have the
time in SOURCE_DATE_EPOCH, else the time the image says it was created; times of files are kept, or with
SOURCE_DATE_EPOCH no later than that (reproducible-builds.org).
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT

from knarr.base.clock import rfc3339
from knarr.base.errors import FileError, FormatError, NotFound, UsageError
from knarr.content.compress import decompressor, sniff
from knarr.content.compressor import LayerWriter, parse_compression
from knarr.content.readahead import ReadAhead
from knarr.content.verify import CHUNK, FileStream, open_regular
from knarr.engine.imaging.blobs import Spool
from knarr.image import edit
from knarr.image.edit import NewLayer
from knarr.kernel.path import printable
from knarr.layer.changeset import Changes, changes, from_layers, is_node, whiteout_of
from knarr.layer.model import Model
from knarr.layer.scan import add_tree
from knarr.layer.tarwriter import Writer, header
from knarr.layer.whiteout import BadName, components
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from knarr.content.compressor import Compression
    from knarr.content.verify import Readable
    from knarr.engine.imaging.image import Image
    from knarr.layer.model import Change, Node


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH in nanoseconds, None when it is not set; raises UsageError when it is no number."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}, which is no number of seconds since 1970")
    return int(text) * 1_000_000_000


def moment(image: Image) -> str:
    """The time to give to what is new in an image; "" for none."""
    fixed = epoch()
    if fixed is not None:
        return rfc3339(fixed)
    return str((image.config or {}).get("created") or "")


def history_entry(image: Image, created_by: str, comment: str = "") -> dict[str, Any]:
    """What the history says of a new layer."""
    made = {"created": moment(image), "created_by": created_by, "comment": comment}
    return {key: value for key, value in made.items() if value}


def model_of(
    image: Image,
    *,
    hashed: bool = False,
    layers: int | None = None,
    seen: Callable[[Change], None] | None = None,
    index: bool = False,
) -> Model:
    """The image's tree in memory, of the lowest ``layers`` (all, if None); reads those layers whole, verified.

    ``hashed``: with digests of file contents. ``seen`` is told of every change. ``index``: of a layer that has a table
    of contents, and whose source gives parts, that is read alone. Raises FormatError, DigestMismatch, ….
    """
    model = Model()
    for layer in image.layers[:layers]:
        table = layer.index() if index and not hashed else None
        if table is not None:
            model.apply_entries(table.entries, what=table.what, seen=seen)
            continue
        stream = layer.stream()
        try:
            model.apply(stream, hashed=hashed, what=layer.what, seen=seen)
        finally:
            stream.close()
    return model


class Making:
    """A layer in the making: write plain tar bytes to ``out``, then ``finish``."""

    def __init__(self, image: Image, compression: str | Compression) -> None:
        how = parse_compression(compression) if isinstance(compression, str) else compression
        if image.docker and how.kind == "zstd":
            raise UsageError("Docker's manifests have no zstd layers", hint="use gzip, or copy it with --format oci")
        self._docker = image.docker
        self._spool = Spool()
        self.out = LayerWriter(self._spool, how)

    def finish(self, history: Mapping[str, Any]) -> tuple[NewLayer, dict[str, Callable[[], Readable]]]:
        """The finished layer, and what opens it."""
        self.out.close()
        descriptor = self.out.descriptor(docker=self._docker)
        return NewLayer(descriptor, self.out.diff_id, dict(history)), {descriptor["digest"]: self._spool.open}


def put_on_top(image: Image, making: Making, created_by: str, comment: str = "") -> Image:
    """The image with a finished layer on top."""
    layer, added = making.finish(history_entry(image, created_by, comment))
    count = len(image.manifest["layers"])
    return image.with_layers(count, count, [layer], added)


# -- append ------------------------------------------------------------------------------------------------


def append(
    image: Image, tar: str | Readable, *, compression: str = "gzip", created_by: str = "", comment: str = ""
) -> Image:
    """Put a tar on top as it is, byte by byte, recompressed; see ``Image.append``."""
    what = tar if isinstance(tar, str) else "the tar"
    stream = _plain(tar)
    making = Making(image, compression)
    try:
        # Its entries are judged as if the layer were applied alone; what it means to the layers below is theirs.
        _check(_Tee(stream, making.out), what)
    finally:
        stream.close()
    return put_on_top(image, making, created_by or f"knarr image append {os.path.basename(what)}", comment)


class _Tee:
    """A stream that is copied on its way."""

    def __init__(self, stream: Readable, out: LayerWriter) -> None:
        self._stream = stream
        self._out = out

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._out.write(data)
        return data

    def close(self) -> None:
        self._stream.close()


def _check(stream: Readable, what: str) -> None:
    """Read a tar to its end; raises FormatError for what no layer can hold."""
    from knarr.layer.tarball import HARDLINK, Reader
    from knarr.layer.whiteout import PREFIX, hidden_name, inside_meta, split

    reader = Reader(stream, what=what)
    name = b""
    try:
        for entry in reader:
            name = entry.name
            parent, base = split(name)
            inside_meta(components(parent))
            if base.startswith(PREFIX) and base != b".wh..wh..opq":
                hidden_name(base)
            if entry.kind == HARDLINK:
                components(entry.link)
        reader.drain()
    except BadName as error:
        raise reader.fail(str(error), name) from None


def _plain(tar: str | Readable) -> Readable:
    """The plain bytes of a tar in any usual compression, by its first bytes. Raises FileError, FormatError."""
    if isinstance(tar, str):
        if tar == "-":
            import sys

            return _plain(_File(sys.stdin.buffer, "standard input"))
        try:
            fd, _size = open_regular(tar, follow=True)
        except FileError as error:
            if error.number == ENOENT:
                raise NotFound("file", tar) from None
            raise
        return _plain(FileStream(fd, tar))
    stream = _Peeked(tar)
    kind = sniff(stream.head)
    if kind in ("gzip", "zstd"):
        media_type = mediatypes.LAYER_GZIP if kind == "gzip" else mediatypes.LAYER_ZSTD
        return ReadAhead(decompressor(stream, media_type, what="the tar"))
    if kind in ("xz", "bzip2"):
        return _Python(stream, kind)
    if kind:
        stream.close()
        raise FormatError("the tar", "", f"is compressed with {kind}, which is not read")
    return stream


class _Peeked:
    """A stream whose first bytes were looked at."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < 512 and (data := stream.read(512 - len(self.head))):
            self.head += data
        self._held = self.head

    def read(self, size: int, /) -> bytes:
        if self._held:
            data, self._held = self._held[:size], self._held[size:]
            return data
        return self._stream.read(size)

    def close(self) -> None:
        self._stream.close()


class _File:
    """A file object of Python's as a stream; not closed."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except OSError as error:
            raise FileError("read", self._name, error.errno or EINVAL) from None
        return data

    def close(self) -> None:
        """It is somebody else's."""


class _Python:
    """xz and bzip2 by the standard library, a chunk at a time; several streams in a row, as the programs write them."""

    def __init__(self, stream: Readable, kind: str) -> None:
        import bz2
        import lzma

        self._new: Callable[[], Any] = lzma.LZMADecompressor if kind == "xz" else bz2.BZ2Decompressor
        self._errors = (lzma.LZMAError, OSError, EOFError)
        self._kind = kind
        self._stream = stream
        self._coder = self._new()
        self._ended = False

    def read(self, size: int, /) -> bytes:
        try:
            while True:
                if self._coder.eof:
                    rest = self._coder.unused_data or self._stream.read(CHUNK)
                    if not rest.strip(b"\0"):  # xz pads with zeros
                        return b""
                    self._coder = self._new()
                    data = self._coder.decompress(rest, size)
                elif self._coder.needs_input:
                    more = self._stream.read(CHUNK)
                    if not more:
                        raise FormatError("the tar", "", f"the {self._kind} stream ends too early")
                    data = self._coder.decompress(more, size)
                else:
                    data = self._coder.decompress(b"", size)
                if data:
                    return bytes(data)
        except self._errors as error:
            raise FormatError("the tar", "", f"is damaged: {error}") from None

    def close(self) -> None:
        self._stream.close()


# -- add and remove ----------------------------------------------------------------------------------------


def add(
    image: Image,
    source: str,
    target: str,
    *,
    owner: tuple[int, int] | None = (0, 0),
    mode: int | None = None,
    compression: str = "gzip",
    created_by: str = "",
) -> Image:
    """Put a file or directory of this machine at ``target`` in the image, without unpacking it.

    ``target`` ends with "/" to mean a directory that gets ``source`` under its own name. Directories above it that
    the image lacks come to be 0755, root's. ``owner`` (None: as on disk) and ``mode`` (files only) hold for all that is
    added. Owners' names, access times and security labels are not taken over. Raises NotFound, FileError, UsageError.
    """
    place = _inside(target)
    if target.endswith("/"):
        place = b"/".join([*([place] if place else []), os.fsencode(os.path.basename(os.path.abspath(source)))])
    if not place and not os.path.isdir(source):
        raise UsageError(f"{source} cannot be the root of an image", hint="it is not a directory")
    making = Making(image, compression)
    add_tree(source, place, Writer(making.out), owner=owner, mode=mode, latest=epoch())
    return put_on_top(image, making, created_by or f"knarr image add {os.path.basename(source)} {target}")


def remove(
    image: Image,
    paths: Sequence[str],
    *,
    missing: bool = False,
    compression: str = "gzip",
    created_by: str = "",
) -> Image:
    """Hide paths by a layer of whiteouts on top; what lower layers hold stays in them (``squash`` takes it out).

    Links in the directories above a path are followed; a link itself is removed, not what it leads to. Raises
    NotFound for a path the image has not, unless ``missing`` is fine; UsageError for the root.
    """
    model = model_of(image)
    gone: dict[bytes, None] = {}
    for text in paths:
        path = _inside(text)
        if not path:
            raise UsageError("the root of an image cannot be removed")
        try:
            found = model.find(path, follow=False)
        except BadName as error:
            raise FormatError(image.name or "the image", printable(path), str(error)) from None
        if found is None or not found[0]:
            if missing:
                continue
            raise NotFound("path", f"/{printable(path)} in {image.name or 'the image'}")
        gone[found[0]] = None
    if not gone:
        return image
    making = Making(image, compression)
    for path in sorted(gone):
        if not any(path.startswith(above + b"/") for above in gone):
            making.out.write(header(whiteout_of(path)))
    making.out.write(bytes(1024))
    return put_on_top(image, making, created_by or f"knarr image remove {' '.join(paths)}")


def _inside(text: str) -> bytes:
    """A path in an image, canonical as far as that goes without looking. Raises UsageError."""
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise UsageError(f"{text!r} has a NUL in it, which no path can")
    try:
        return b"/".join(components(raw))
    except BadName as error:
        raise UsageError(f"{text!r} is no path in an image: {error}") from None


# -- squash and rebase -------------------------------------------------------------------------------------


def squash(image: Image, start: int = 0, *, compression: str = "gzip") -> Image:
    """Make layers ``start`` and up one layer, with the same tree as before; see ``Image.squash``.

    The history keeps one entry for it. An image with one such layer stays as it is. Raises UsageError for a
    ``start`` there is not.
    """
    layers = image.layers
    if not 0 <= start < max(len(layers), 1):
        raise UsageError(f"there is no layer {start}", hint=f"the image has {len(layers)}, the lowest is 0")
    if len(layers) - start <= 1:
        return image
    model = Model()
    base: Mapping[bytes, Node] = {}
    for number, layer in enumerate(layers):
        if number == start and start:
            base = model.flat()
        stream = layer.stream()
        try:
            model.apply(stream, what=layer.what)
        finally:
            stream.close()
    new = model.flat()
    making = Making(image, compression)
    found: Changes = changes(base, new, is_node)
    from_layers(found, new, making.out, lambda number: layers[number].stream())
    what = "all" if not start else f"{start} to {len(layers) - 1}"
    layer_, added = making.finish(history_entry(image, f"knarr image squash: layers {what}"))
    return image.with_layers(start, len(layers), [layer_], added)


def rebase(image: Image, old: Image, new: Image) -> Image:
    """Replace the layers of an old base by those of a new one; no layer is read.

    The image notes its new base in the annotations image-spec has for that. Raises UsageError when it is not built
    on ``old``, or ``new`` is for another platform.
    """
    manifest, config = edit.rebased(
        (image.manifest, image.image_config()), (old.manifest, old.image_config()), (new.manifest, new.image_config())
    )
    noted = {mediatypes.BASE_DIGEST: new.digest, mediatypes.BASE_NAME: new.name.removeprefix("docker://") or None}
    return image.with_documents(edit.annotated(manifest, noted), config, {one.digest: one.open for one in new.layers})

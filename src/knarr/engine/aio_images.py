"""Images from asyncio: the awaitable twins of ``Image``, ``Layer``, ``Index``, ``pull``, ``copy``, ``diff``….

The work is done in the loop's default executor. Cancelling a call ends it at its next block, breaks off what waits
for a registry, undoes what was half done, and only then raises CancelledError.
"""

from __future__ import annotations

import asyncio

from knarr.content.stopping import Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self, TypeVar, Unpack

    from knarr.content.verify import Readable
    from knarr.engine.imaging import image as blocking
    from knarr.engine.imaging.compare import Difference
    from knarr.engine.imaging.rules import Finding
    from knarr.engine.registries import CopyOptions
    from knarr.engine.storekeeping import Damage
    from knarr.engine.stores import Removed, Usage
    from knarr.image.catalog import Listed
    from knarr.image.copy import Copied
    from knarr.image.platform import Platform
    from knarr.layer.tarball import Entry
    from knarr.spec.image import Descriptor

    T = TypeVar("T")

_CHUNK = 1 << 20
_ENTRIES = 256
"""Headers of a tar fetched from the other thread at a time."""


async def stoppable(what: str | Stop, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Do some work in the shared pool; cancelling stops it and waits until it has ended.

    ``undo`` gets a result that nobody will have, because the work was done before it could be stopped. Work that is
    done in several calls has one ``Stop`` for all: what one has opened, another reads.
    """
    stop = Stop(what) if isinstance(what, str) else what
    future = asyncio.get_running_loop().run_in_executor(None, stop.run, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.ask()
        if not future.done():
            await asyncio.wait([future])
        if not future.cancelled() and future.exception() is None and undo is not None:
            undo(future.result())
        raise


async def pull(image: str, *, platform: str = "", store: str | None = None) -> str:
    """As ``knarr.pull``. Cancelling ends it; what was fetched whole is found by the next try, no name is given."""
    from knarr.engine import api

    return await stoppable(f"the pull of {image}", lambda: api.pull(image, platform=platform, store=store))


async def copy(source: str, target: str, **options: Unpack[CopyOptions]) -> Copied:
    """As ``knarr.copy``. Cancelling ends the copy and leaves nothing of it."""
    from knarr.engine import registries

    return await stoppable(f"the copy of {source}", lambda: registries.copy(source, target, **options))


async def diff(one: Image, two: Image, *, mtime: bool = True) -> list[Difference]:
    """As ``knarr.diff``."""
    from knarr.engine.imaging import compare

    return await stoppable("comparing images", lambda: compare.diff(one.blocking, two.blocking, mtime=mtime))


async def validate(text: str, *, store: str | None = None, layers: bool = True) -> list[Finding]:
    """As ``knarr.validate``."""
    from knarr.engine.imaging import validate as checks

    return await stoppable(f"checking {text}", lambda: checks.validate(text, store=store, layers=layers))


class _Twin:
    """What stands for an object of the blocking library, and is equal as that is."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Twin) and type(other) is type(self) and bool(self.blocking == other.blocking)

    def __hash__(self) -> int:
        return hash(self.blocking)

    def __repr__(self) -> str:
        return f"<aio.{repr(self.blocking)[1:]}"


class _Opened(_Twin):
    """What images and indexes have in common; a context that closes them."""

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest or index."""
        found: Descriptor = self.blocking.descriptor
        return found

    @property
    def digest(self) -> str:
        """The digest of the manifest or index."""
        return str(self.blocking.digest)

    @property
    def name(self) -> str:
        """The reference it was opened by or saved as."""
        return str(self.blocking.name)

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of the manifest or index itself."""
        return dict(self.blocking.annotations)

    def close(self) -> None:
        """Let files and connections go."""
        self.blocking.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Layer(_Twin):
    """As ``knarr.Layer``, read with ``async for``. ``blocking`` is the layer itself."""

    def __init__(self, layer: blocking.Layer) -> None:
        self.blocking: blocking.Layer = layer

    @property
    def descriptor(self) -> Descriptor:
        """What the manifest says of the blob."""
        return self.blocking.descriptor

    @property
    def diff_id(self) -> str:
        """The digest of the plain tar."""
        return self.blocking.diff_id

    @property
    def history(self) -> dict[str, Any]:
        """What the config tells of it, empty if nothing."""
        return self.blocking.history

    @property
    def digest(self) -> str:
        """The digest of the blob."""
        return self.blocking.digest

    @property
    def size(self) -> int:
        """Bytes of the blob, compressed."""
        return self.blocking.size

    @property
    def media_type(self) -> str:
        """The media type, which says how it is compressed."""
        return self.blocking.media_type

    def open(self) -> AsyncIterator[bytes]:
        """Chunks of the blob as stored; the end comes only when size and digest were right."""
        return _chunks(self.blocking.what, self.blocking.open)

    def stream(self) -> AsyncIterator[bytes]:
        """Chunks of plain tar; the end comes only when digest and diffID were right (DigestMismatch, FormatError)."""
        return _chunks(self.blocking.what, self.blocking.stream)

    async def entries(self) -> AsyncIterator[Entry]:
        """The headers of its tar, in order; reads the whole layer. Raises FormatError, DigestMismatch."""
        from itertools import islice

        found, stop = self.blocking.entries(), Stop(self.blocking.what)
        try:
            while some := await stoppable(stop, lambda: list(islice(found, _ENTRIES))):
                for entry in some:
                    yield entry
        finally:
            found.close()


async def _chunks(what: str, open_it: Callable[[], Readable]) -> AsyncIterator[bytes]:
    stop = Stop(what)
    reader = await stoppable(stop, open_it, lambda late: late.close())
    try:
        while data := await stoppable(stop, lambda: reader.read(_CHUNK)):
            yield data
    finally:
        reader.close()


class Image(_Opened):
    """As ``knarr.Image``; what reads or writes is awaited. ``blocking`` is the image itself.

    Immutable: any number of tasks may use one. What a cancelled call waits for is broken off, and nothing that others
    read.
    """

    def __init__(self, image: blocking.Image) -> None:
        self.blocking: blocking.Image = image

    @classmethod
    async def open(cls, reference: str, *, platform: str = "", store: str | None = None) -> Self:
        """As ``knarr.Image.open``."""
        from knarr.engine.imaging.image import Image as Blocking

        def work() -> blocking.Image:
            return Blocking.open(reference, platform=platform, store=store)

        return cls(await stoppable(f"opening {reference}", work, lambda late: late.close()))

    @classmethod
    def empty(cls, *, platform: str = "") -> Self:
        """An image without layers, to append to."""
        from knarr.engine.imaging.image import Image as Blocking

        return cls(Blocking.empty(platform=platform))

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        return self.blocking.manifest

    @property
    def config(self) -> dict[str, Any] | None:
        """The config; None for an artifact."""
        return self.blocking.config

    @property
    def id(self) -> str:
        """The digest of the config."""
        return self.blocking.id

    @property
    def platform(self) -> Platform:
        """What it is for."""
        return self.blocking.platform

    @property
    def docker(self) -> bool:
        """Whether its documents have Docker's media types."""
        return self.blocking.docker

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers as stored; a layer used twice counts once."""
        return self.blocking.size

    @property
    def fetched(self) -> int:
        """Bytes read so far from where it was opened."""
        return self.blocking.fetched

    def image_config(self) -> dict[str, Any]:
        """The config document; raises Unsupported for an artifact."""
        return self.blocking.image_config()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, bottom first; raises Unsupported for an artifact."""
        return tuple(map(Layer, self.blocking.layers))

    # Documents are in memory: changing them waits for nothing.

    def with_config(self, **changes: Any) -> Self:
        """As ``knarr.Image.with_config``."""
        return type(self)(self.blocking.with_config(**changes))

    def with_annotations(self, changes: Mapping[str, str | None]) -> Self:
        """As ``knarr.Image.with_annotations``."""
        return type(self)(self.blocking.with_annotations(changes))

    def with_history(
        self,
        changes: Mapping[int, Mapping[str, str | None]] | None = None,
        *,
        add: Sequence[Mapping[str, str]] = (),
        clear: bool = False,
    ) -> Self:
        """As ``knarr.Image.with_history``."""
        return type(self)(self.blocking.with_history(changes, add=add, clear=clear))

    def rebase(self, old: Image, new: Image) -> Self:
        """As ``knarr.Image.rebase``, which reads no layer."""
        return type(self)(self.blocking.rebase(old.blocking, new.blocking))

    async def _changed(self, how: str, work: Callable[[], blocking.Image]) -> Self:
        return type(self)(await stoppable(f"{how} {self.name or self.digest}", work))

    async def append(
        self, tar: str | Readable, *, compression: str = "gzip", created_by: str = "", comment: str = ""
    ) -> Self:
        """As ``knarr.Image.append``."""
        wishes = {"compression": compression, "created_by": created_by, "comment": comment}
        return await self._changed("appending to", lambda: self.blocking.append(tar, **wishes))

    async def add(self, source: str, target: str, **options: Any) -> Self:
        """As ``knarr.Image.add``."""
        return await self._changed("adding to", lambda: self.blocking.add(source, target, **options))

    async def remove(self, paths: Sequence[str], **options: Any) -> Self:
        """As ``knarr.Image.remove``."""
        return await self._changed("removing from", lambda: self.blocking.remove(paths, **options))

    async def squash(self, start: int = 0, *, compression: str = "gzip") -> Self:
        """As ``knarr.Image.squash``."""
        return await self._changed("squashing", lambda: self.blocking.squash(start, compression=compression))

    async def save(self, reference: str, *, store: str | None = None) -> Self:
        """As ``knarr.Image.save``; nothing is there if it fails or is cancelled."""
        return await self._changed("saving", lambda: self.blocking.save(reference, store=store))


class Index(_Opened):
    """As ``knarr.Index``; what reads or writes is awaited. ``blocking`` is the index itself."""

    def __init__(self, index: blocking.Index) -> None:
        self.blocking: blocking.Index = index

    @classmethod
    async def open(cls, reference: str, *, store: str | None = None) -> Self:
        """As ``knarr.Index.open``."""
        from knarr.engine.imaging.image import Index as Blocking

        def work() -> blocking.Index:
            return Blocking.open(reference, store=store)

        return cls(await stoppable(f"opening {reference}", work, lambda late: late.close()))

    @classmethod
    async def of(cls, images: Sequence[Image | Index], *, annotations: Mapping[str, str] | None = None) -> Self:
        """As ``knarr.Index.of``."""
        from knarr.engine.imaging.image import Index as Blocking

        own = [one.blocking for one in images]
        return cls(await stoppable("making an index", lambda: Blocking.of(own, annotations=annotations)))

    @property
    def document(self) -> dict[str, Any]:
        """The index."""
        return self.blocking.document

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        """The descriptors it holds."""
        return self.blocking.entries

    def matching(self, text: str) -> list[str]:
        """The digests of the entries a text means: a digest, or a platform. Raises NotFound, UsageError."""
        return self.blocking.matching(text)

    async def image(self, entry: Descriptor) -> Image:
        """The image of one entry; raises Unsupported when that is another index, NotFound when it is not there."""
        return Image(await stoppable(f"opening {entry['digest']}", lambda: self.blocking.image(entry)))

    async def images(self) -> AsyncIterator[Image]:
        """Every image it names and that is there; one that is not was not copied."""
        found = self.blocking.images()
        while (image := await stoppable(f"opening {self.name}", lambda: next(found, None))) is not None:
            yield Image(image)

    async def add(self, image: Image | Index, *, platform: str = "") -> Self:
        """As ``knarr.Index.add``."""

        def work() -> blocking.Index:
            return self.blocking.add(image.blocking, platform=platform)

        return type(self)(await stoppable("adding to an index", work))

    def remove(self, *digests: str) -> Self:
        """The index without these entries; raises NotFound."""
        return type(self)(self.blocking.remove(*digests))

    def with_annotations(self, changes: Mapping[str, str | None], *, entry: str = "") -> Self:
        """As ``knarr.Index.with_annotations``."""
        return type(self)(self.blocking.with_annotations(changes, entry=entry))

    async def save(self, reference: str, *, store: str | None = None) -> Self:
        """As ``knarr.Index.save``; nothing is there if it fails or is cancelled."""
        return type(self)(await stoppable(f"saving {reference}", lambda: self.blocking.save(reference, store=store)))


class Store:
    """As ``knarr.Store``; what reads or writes is awaited. ``blocking`` is the store itself."""

    def __init__(self, path: str = "") -> None:
        from knarr.engine.stores import Store as Blocking

        self.blocking = Blocking(path)

    async def images(self) -> list[Listed]:
        """As ``knarr.Store.images``."""
        return await stoppable("listing the images", self.blocking.images)

    async def image(self, name: str, *, platform: str = "") -> Image:
        """As ``knarr.Store.image``."""

        def work() -> blocking.Image:
            return self.blocking.image(name, platform=platform)

        return Image(await stoppable(f"opening {name}", work, lambda late: late.close()))

    async def remove(self, name: str, *, force: bool = False) -> Removed:
        """As ``knarr.Store.remove``."""
        return await stoppable(f"removing {name}", lambda: self.blocking.remove(name, force=force))

    async def prune(self, *, everything: bool = False) -> Removed:
        """As ``knarr.Store.prune``."""
        return await stoppable("removing images", lambda: self.blocking.prune(everything=everything))

    async def usage(self) -> list[Usage]:
        """As ``knarr.Store.usage``."""
        return await stoppable("measuring the store", self.blocking.usage)

    async def check(self, *, repair: bool = False) -> list[Damage]:
        """As ``knarr.Store.check``."""
        return await stoppable("checking the store", lambda: self.blocking.check(repair=repair))

    def __repr__(self) -> str:
        return f"aio.{self.blocking!r}"

"""``Image``, ``Layer`` and ``Index``: what an OCI image is, from wherever it comes; immutable.

Every change makes a new object. Layers made meanwhile lie in files without names, documents in memory, until ``save``
puts them somewhere. Nothing is fetched but what is asked for.
"""

from __future__ import annotations

from copy import deepcopy

from knarr.base import fastjson
from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.content.names import printable
from knarr.engine.imaging.blobs import in_memory
from knarr.image import edit
from knarr.image.edit import KEEP
from knarr.image.platform import Platform, platform_of
from knarr.layer.source import Layer as Stream
from knarr.layer.tarball import Reader
from knarr.spec import mediatypes
from knarr.spec.image_validate import matching_findings, parse_config, parse_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self

    from knarr.content.verify import Readable
    from knarr.engine.imaging.blobs import Blobs, Opener
    from knarr.image.edit import NewLayer
    from knarr.layer.chunked import LayerIndex
    from knarr.layer.tarball import Entry
    from knarr.spec.image import Descriptor


class Layer(Record):
    """One layer of an image; ``history`` is what the config tells of it, empty if nothing."""

    descriptor: Descriptor
    diff_id: str
    history: dict[str, Any]
    blobs: Blobs

    @property
    def digest(self) -> str:
        """The digest of the blob."""
        return self.descriptor["digest"]

    @property
    def size(self) -> int:
        """Bytes of the blob, compressed."""
        return self.descriptor["size"]

    @property
    def media_type(self) -> str:
        """The media type, which says how it is compressed."""
        return self.descriptor["mediaType"]

    def open(self) -> Readable:
        """The bytes as stored; the end comes only when size and digest were right."""
        return self.blobs.open_blob(self.descriptor)

    def stream(self) -> Readable:
        """Plain tar bytes; the end comes only when digest and diffID were right (DigestMismatch, FormatError)."""
        return self.source().stream()

    def source(self) -> Stream:
        """The layer as the layer room takes it, to be unpacked."""
        return Stream(self.diff_id, self.media_type, self.size, self.open, self.what)

    def index(self) -> LayerIndex | None:
        """Its table of contents (eStargz, zstd:chunked), where the source gives parts of blobs; fetches that alone.

        None when there is none to be used; then the layer is read whole. Raises DigestMismatch, FormatError, SpecError
        for one that is wrong.
        """
        annotations = self.descriptor.get("annotations")
        if not annotations:
            return None
        from knarr.layer.chunked import open_index

        def ranges(start: int, size: int) -> Readable | None:
            return self.blobs.open_range(self.descriptor, start, size)

        return open_index(annotations, self.media_type, self.size, ranges, self.what)

    @property
    def what(self) -> str:
        """What to call it in errors."""
        return f"layer {self.digest}"

    def entries(self) -> Generator[Entry, None, None]:
        """The headers of its tar, in order; reads the whole layer. Raises FormatError, DigestMismatch."""
        stream = self.stream()
        try:
            reader = Reader(stream, what=self.what)
            yield from reader
            reader.drain()
        finally:
            stream.close()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and (self.digest, self.diff_id) == (other.digest, other.diff_id)

    def __hash__(self) -> int:
        return hash((self.digest, self.diff_id))

    def __repr__(self) -> str:
        return f"<Layer {self.digest} {self.size} B>"


class Opened(Record):
    """A manifest or index and where its parts are read; equal by digest. A context manager, or to be closed."""

    blobs: Blobs
    descriptor: Descriptor

    @property
    def digest(self) -> str:
        """The digest of the document."""
        return self.descriptor["digest"]

    def close(self) -> None:
        """Let files and connections go."""
        self.blobs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opened) and type(other) is type(self) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class Image(Opened):
    """An image for one platform. ``config`` is None for an artifact. Equal when the manifests are, by digest.

    ``name`` is the reference it was opened by or saved as. Use it as a context manager, or ``close`` it, to let files
    and connections go early.
    """

    manifest: dict[str, Any]
    config: dict[str, Any] | None
    name: str = ""

    @classmethod
    def open(cls, reference: str, *, platform: str = "", store: str | None = None) -> Image:
        """Open an image of the store (by name, id or digest), or ``oci:DIR[:TAG]``, ``oci-archive:FILE``, ….

        Only ``docker://NAME`` asks a registry. ``platform``, as linux/arm64, is this machine's if not given. ``store``
        is another store directory. Raises NotFound, InvalidReference, SpecError, DigestMismatch, RegistryError, ….
        """
        from knarr.engine.imaging.opening import open_image

        return open_image(reference, platform=platform, store=store)

    @classmethod
    def empty(cls, *, platform: str = "") -> Image:
        """An image without layers, to append to."""
        from knarr.engine.imaging.opening import empty_image

        return empty_image(platform)

    @property
    def id(self) -> str:
        """The digest of the config."""
        digest: str = self.manifest["config"]["digest"]
        return digest

    @property
    def platform(self) -> Platform:
        """What it is for."""
        return platform_of(self.config if self.config is not None else self.descriptor.get("platform", {}))

    @property
    def annotations(self) -> dict[str, str]:
        """The manifest's annotations."""
        return dict(self.manifest.get("annotations") or {})

    @property
    def docker(self) -> bool:
        """Whether its documents have Docker's media types."""
        return self.descriptor["mediaType"] == mediatypes.DOCKER_MANIFEST

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers as stored; a layer used twice counts once."""
        parts = (self.descriptor, self.manifest["config"], *self.manifest["layers"])
        return sum({part["digest"]: part["size"] for part in parts}.values())

    @property
    def fetched(self) -> int:
        """Bytes read so far from where it was opened."""
        return self.blobs.fetched

    def image_config(self) -> dict[str, Any]:
        """The config document; raises Unsupported for an artifact."""
        if self.config is None:
            kind = self.manifest.get("artifactType") or self.manifest["config"]["mediaType"]
            raise Unsupported(f"this of {self.name or self.digest}", f"it is {printable(kind)!r}, not an image")
        return self.config

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, bottom first; raises Unsupported for an artifact."""
        config = self.image_config()
        history = config.get("history") or []
        places = edit.history_places(config)
        return tuple(
            Layer(descriptor, diff_id, history[place] if place >= 0 else {}, self.blobs)
            for descriptor, diff_id, place in zip(
                self.manifest["layers"], config["rootfs"]["diff_ids"], places, strict=True
            )
        )

    # -- changes -------------------------------------------------------------------------------------------

    def with_documents(
        self,
        manifest: Mapping[str, Any],
        config: Mapping[str, Any] | None,
        added: Mapping[str, Opener] | None = None,
    ) -> Image:
        """The image of other documents; the config's descriptor is made anew when the config is another one."""
        made = deepcopy(dict(manifest))
        openers: dict[str, Opener] = dict(added or {})
        if config is not None and config != self.config:
            descriptor, opener = in_memory(fastjson.dumps(config), made["config"]["mediaType"])
            openers[descriptor["digest"]] = opener
            kept = {key: value for key, value in made["config"].items() if key == "annotations"}
            made["config"] = {**descriptor, **kept}
        edit.checked_manifest(made)
        if config is not None:
            found = matching_findings(made, dict(config))
            if found:
                from knarr.base.errors import SpecError

                raise SpecError("the changed image config", found)
        descriptor, opener = in_memory(fastjson.dumps(made), self.descriptor["mediaType"])
        openers[descriptor["digest"]] = opener
        return Image(self.blobs.also(openers), descriptor, made, None if config is None else dict(config), self.name)

    def with_config(self, **changes: Any) -> Image:
        """The image with another config.

        ``env={"A": "1", "B": None}``, ``labels``, ``ports={"80/tcp": True}``, ``volumes``, ``cmd``, ``entrypoint``,
        ``user``, ``workdir``, ``stop_signal``, ``author``, ``created``, ``os``, ``architecture``, ``variant``,
        ``os_version``, ``os_features``, ``healthcheck``; None takes a field away. Raises UsageError for other names,
        SpecError for values an image cannot have.
        """
        return self.with_documents(self.manifest, edit.configured(self.image_config(), **changes))

    def with_annotations(self, changes: Mapping[str, str | None]) -> Image:
        """The image with annotations on its manifest set or (None) taken away."""
        return self.with_documents(edit.annotated(self.manifest, changes), self.config)

    def with_history(
        self,
        changes: Mapping[int, Mapping[str, str | None]] | None = None,
        *,
        add: Sequence[Mapping[str, str]] = (),
        clear: bool = False,
    ) -> Image:
        """The image with another history; see ``knarr.image.edit.edited_history``."""
        config = edit.edited_history(self.image_config(), changes or {}, add=add, clear=clear)
        return self.with_documents(self.manifest, config)

    def with_layers(
        self, start: int, stop: int, new: Sequence[NewLayer], added: Mapping[str, Opener] | None = None
    ) -> Image:
        """The image with layers ``start`` to ``stop`` replaced, the history along with them."""
        manifest, config = edit.replaced_layers(self.manifest, self.image_config(), start, stop, new)
        return self.with_documents(manifest, config, added)

    def append(
        self, tar: str | Readable, *, compression: str = "gzip", created_by: str = "", comment: str = ""
    ) -> Image:
        """The image with a layer on top made of a tar, a path or a stream: plain, gzip, zstd, bzip2 or xz.

        Every entry is checked first as if it were applied. Raises FormatError, FileError, UsageError.
        """
        from knarr.engine.imaging.layers import append

        return append(self, tar, compression=compression, created_by=created_by, comment=comment)

    def add(self, source: str, target: str, **options: Any) -> Image:
        """The image with a layer on top that has ``source``, a file or directory, at ``target``; see layers.add."""
        from knarr.engine.imaging.layers import add

        return add(self, source, target, **options)

    def remove(self, paths: Sequence[str], **options: Any) -> Image:
        """The image with a layer on top that hides paths; see layers.remove."""
        from knarr.engine.imaging.layers import remove

        return remove(self, paths, **options)

    def squash(self, start: int = 0, *, compression: str = "gzip") -> Image:
        """The image with layers ``start`` and up (all, if not given) made one, and the same tree."""
        from knarr.engine.imaging.layers import squash

        return squash(self, start, compression=compression)

    def rebase(self, old: Image, new: Image) -> Image:
        """The image with the layers of its base ``old`` replaced by those of ``new``; see layers.rebase."""
        from knarr.engine.imaging.layers import rebase

        return rebase(self, old, new)

    # -- elsewhere -----------------------------------------------------------------------------------------

    def save(self, reference: str, *, store: str | None = None) -> Image:
        """Put it under a name into the store, ``oci:DIR[:TAG]``, an archive, ``docker://NAME``, …; return it so named.

        Nothing is there if it fails. Raises UsageError, InvalidReference, FileError, InUse, RegistryError.
        """
        from knarr.engine.imaging.opening import save_image

        return save_image(self, reference, store=store)

    def __repr__(self) -> str:
        return f"<Image {self.name or '(no name)'} {self.digest} {self.platform}>"


class Index(Opened):
    """An image index: images for several platforms, artifacts, further indexes. Equal by digest."""

    document: dict[str, Any]
    name: str = ""

    @classmethod
    def open(cls, reference: str, *, store: str | None = None) -> Index:
        """Open an index as ``Image.open`` does an image; raises Unsupported when the name means one manifest."""
        from knarr.engine.imaging.opening import open_index

        return open_index(reference, store=store)

    @classmethod
    def of(cls, images: Sequence[Image | Index], *, annotations: Mapping[str, str] | None = None) -> Index:
        """A new index of these, in this order."""
        from knarr.engine.imaging.opening import new_index

        return new_index(images, annotations=annotations)

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        """The descriptors it holds."""
        return tuple(self.document["manifests"])

    @property
    def annotations(self) -> dict[str, str]:
        """The index's own annotations."""
        return dict(self.document.get("annotations") or {})

    def matching(self, text: str) -> list[str]:
        """The digests of the entries a text means: a digest, or a platform. Raises NotFound, UsageError."""
        if ":" in text:
            return [text]
        from knarr.image.platform import parse_platform

        wanted = parse_platform(text)
        found = [one["digest"] for one in self.entries if "platform" in one and platform_of(one["platform"]) == wanted]
        if not found:
            from knarr.base.errors import NotFound

            there = sorted(str(platform_of(one["platform"])) for one in self.entries if "platform" in one)
            raise NotFound("entry for", str(wanted), among=", ".join(there) or "no entry with a platform")
        return found

    def image(self, entry: Descriptor) -> Image:
        """The image of one entry; raises Unsupported when that is another index, NotFound when it is not there."""
        return image_of(self.blobs, entry, self.name)

    def images(self) -> Iterator[Image]:
        """Every image it names and that is there; one that is not was not copied."""
        from knarr.base.errors import NotFound

        for entry in self.entries:
            if entry["mediaType"] in mediatypes.MANIFESTS:
                try:
                    yield self.image(entry)
                except NotFound:
                    continue

    def with_document(self, document: Mapping[str, Any], added: Mapping[str, Opener] | None = None) -> Index:
        """The index of another document."""
        made = edit.checked_index(deepcopy(dict(document)))
        descriptor, opener = in_memory(fastjson.dumps(made), self.descriptor["mediaType"])
        return Index(self.blobs.also({**(added or {}), descriptor["digest"]: opener}), descriptor, made, self.name)

    def add(self, image: Image | Index, *, platform: str = "") -> Index:
        """The index with one more entry; ``platform`` says what it is for, if not the image's config."""
        from knarr.engine.imaging.opening import entry_of, openers_of

        return self.with_document(edit.index_with(self.document, entry_of(image, platform)), openers_of(image))

    def remove(self, *digests: str) -> Index:
        """The index without these entries; raises NotFound."""
        return self.with_document(edit.index_without(self.document, digests))

    def with_annotations(self, changes: Mapping[str, str | None], *, entry: str = "") -> Index:
        """The index with annotations set or (None) taken away: its own, or those of the entry with that digest."""
        if not entry:
            return self.with_document(edit.annotated(self.document, changes))
        found = [one for one in self.entries if one["digest"] == entry]
        if not found:
            return self.remove(entry)  # raises NotFound with what there is
        made: Any = edit.annotated(dict(found[0]), changes)
        return self.with_document(edit.index_with(self.document, made))

    def save(self, reference: str, *, store: str | None = None) -> Index:
        """Put it with all that it names, as far as it is there, under a name; as ``Image.save``."""
        from knarr.engine.imaging.opening import save_index

        return save_index(self, reference, store=store)

    def __repr__(self) -> str:
        return f"<Index {self.name or '(no name)'} {self.digest} of {len(self.entries)}>"


def image_of(blobs: Blobs, descriptor: Descriptor, name: str = "") -> Image:
    """Read the manifest and config a descriptor means; raises Unsupported for an index, SpecError, …."""
    if descriptor["mediaType"] not in mediatypes.MANIFESTS:
        raise Unsupported(f"{name or descriptor['digest']} as an image", f"it is {descriptor['mediaType']}")
    manifest = parse_manifest(blobs.read(descriptor), f"manifest {descriptor['digest']}", descriptor["mediaType"])
    config = None
    if manifest["config"]["mediaType"] in mediatypes.CONFIGS:
        config = parse_config(blobs.read(manifest["config"]), f"config {manifest['config']['digest']}")
        found = matching_findings(manifest, config)
        if found:
            from knarr.base.errors import SpecError

            raise SpecError(f"config {manifest['config']['digest']}", found)
    return Image(blobs, descriptor, manifest, config, name)


__all__ = ["KEEP", "Image", "Index", "Layer", "image_of"]

"""Opening images by reference, and saving them: the store, layouts, archives, registries.

A name without a transport is looked up in the store and nowhere else; only ``docker://`` asks a registry.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import InvalidReference, NotFound, Unsupported, UsageError
from knarr.content.stopping import breaking
from knarr.content.store import Store
from knarr.engine.imaging.blobs import Blobs, Counted, in_memory
from knarr.engine.imaging.image import Image, Index, image_of
from knarr.engine.paths import open_store, places
from knarr.image import edit
from knarr.image.platform import host_platform, parse_platform
from knarr.image.reference import DEFAULT_TAG, parse_reference
from knarr.image.resolve import resolve
from knarr.image.source import open_source
from knarr.spec import mediatypes
from knarr.spec.image_validate import parse_index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.engine.imaging.blobs import Opener
    from knarr.image.reference import Reference
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

REMOTE = "docker://"
STORED = "store:"
_OTHERS = frozenset(("oci", "oci-archive", "docker-archive", "docker-daemon", "dir", "-"))


def source_of(text: str, *, store: str | None = None) -> ImageSource:
    """The source a reference names; a registry's only if it says ``docker://``."""
    if text.startswith(REMOTE):
        from knarr.engine.images import remote

        return remote(parse_reference(text))
    if not _is_stored(text):
        return open_source(parse_reference(text))
    from knarr.image.catalog import entries_of
    from knarr.image.storesource import StoreSource

    opened = open_store(places(store))
    return StoreSource(opened, entries_of(opened, text.removeprefix(STORED)), text)


def _is_stored(text: str) -> bool:
    """Whether a reference means the store: ``name:tag``, an id, a digest; not another transport."""
    if text.startswith((STORED, "sha256:")):
        return True
    try:
        return parse_reference(text).transport == "docker"
    except InvalidReference:
        return text.partition(":")[0] not in _OTHERS


def open_image(text: str, *, platform: str = "", store: str | None = None) -> Image:
    """Open the image a reference means for a platform; see ``Image.open``."""
    return resolved(Counted(source_of(text, store=store)), text, platform)


def resolved(source: Counted, text: str, platform: str = "") -> Image:
    """The image of an open source, which is closed when there is none."""
    try:
        with breaking(source.source.abort):
            return _resolved(source, text, platform)
    except BaseException:
        source.close()
        raise


def _resolved(source: Counted, text: str, platform: str) -> Image:
    roots = source.roots()
    if not platform and len(roots) == 1 and roots[0]["mediaType"] in mediatypes.MANIFESTS:
        # The name means one image: looking at it needs no machine it runs on.
        return image_of(Blobs(source), roots[0], text)
    found = resolve(source.source, parse_platform(platform) if platform else host_platform())
    # Read already, and not to be fetched again.
    added: dict[str, Opener] = {digest: _bytes_opener(data) for digest, data in found.documents.items()}
    source.fetched += sum(map(len, found.documents.values()))
    return image_of(Blobs(source, added), found.descriptor, text)


def _bytes_opener(data: bytes) -> Opener:
    import io

    return lambda: io.BytesIO(data)


def open_any(text: str, *, store: str | None = None) -> Image | Index:
    """Open what a reference means, an index as an index; raises as ``open_image``."""
    source = Counted(source_of(text, store=store))
    try:
        with breaking(source.source.abort):
            root = _root(source, text)
            if root["mediaType"] in mediatypes.INDEXES:
                return _index(Blobs(source), root, text)
            return image_of(Blobs(source), root, text)
    except BaseException:
        source.close()
        raise


def open_index(text: str, *, store: str | None = None) -> Index:
    """Open an index; see ``Index.open``."""
    found = open_any(text, store=store)
    if isinstance(found, Index):
        return found
    found.close()
    raise Unsupported(f"{text} as an index", "it is one image", hint="knarr image index create makes an index of it")


def _root(source: Counted, text: str) -> Descriptor:
    roots = source.roots()
    if len(roots) != 1:
        raise Unsupported(f"{text} as one thing", f"it names {len(roots)} manifests without an index of them")
    return roots[0]


def _index(blobs: Blobs, root: Descriptor, text: str) -> Index:
    data = blobs.read(root)
    document = parse_index(data, f"index {root['digest']}", root["mediaType"])
    return Index(blobs.also({root["digest"]: _bytes_opener(data)}), root, document, text)


def empty_image(platform: str = "") -> Image:
    """An image without layers; the same bytes for the same platform."""
    wanted = parse_platform(platform) if platform else host_platform()
    config: dict[str, Any] = {
        "architecture": wanted.architecture,
        "os": wanted.os,
        **({"variant": wanted.variant} if wanted.variant else {}),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    descriptor, opener = in_memory(fastjson.dumps(config), mediatypes.CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": descriptor, "layers": []}
    made, document = in_memory(fastjson.dumps(manifest), mediatypes.MANIFEST)
    return Image(Blobs(None, {descriptor["digest"]: opener, made["digest"]: document}), made, manifest, config)


# -- indexes -----------------------------------------------------------------------------------------------


def entry_of(image: Image | Index, platform: str = "") -> Descriptor:
    """The descriptor that stands for an image or index in an index."""
    made: Descriptor = {
        "mediaType": image.descriptor["mediaType"],
        "digest": image.digest,
        "size": image.descriptor["size"],
    }
    if platform:
        wanted = parse_platform(platform)
        made["platform"] = {"architecture": wanted.architecture, "os": wanted.os}
        if wanted.variant:
            made["platform"]["variant"] = wanted.variant
    elif isinstance(image, Image) and image.config is not None:
        config = image.config
        stated: Any = {"architecture": config["architecture"], "os": config["os"]}
        stated |= {key: config[key] for key in ("variant", "os.version", "os.features") if config.get(key)}
        made["platform"] = stated
    if isinstance(image, Image) and image.config is None and image.manifest.get("artifactType"):
        made["artifactType"] = image.manifest["artifactType"]
        made["annotations"] = image.annotations  # distribution-spec, Listing Referrers, has them so
    return made


def openers_of(image: Image | Index) -> dict[str, Opener]:
    """What opens every blob of an image or index, by digest."""
    return {part["digest"]: _opener(image.blobs, part) for part in parts_of(image)}


def _opener(blobs: Blobs, part: Descriptor) -> Opener:
    return lambda: blobs.open_blob(part)


def parts_of(image: Image | Index) -> Iterator[Descriptor]:
    """Every descriptor of an image or index, children first; those of an index that are not there are left out."""
    if isinstance(image, Image):
        yield from (image.manifest["config"], *image.manifest["layers"], image.descriptor)
        return
    for entry in image.entries:
        try:
            if entry["mediaType"] in mediatypes.MANIFESTS:
                yield from parts_of(image.image(entry))
            elif entry["mediaType"] in mediatypes.INDEXES:
                yield from parts_of(_index(image.blobs, entry, image.name))
        except NotFound:
            continue
    yield image.descriptor


def new_index(images: Sequence[Image | Index], *, annotations: Mapping[str, str] | None = None) -> Index:
    """An index of some images; see ``Index.of``."""
    document = edit.new_index([entry_of(image) for image in images], annotations=annotations)
    openers: dict[str, Opener] = {}
    for image in images:
        openers |= openers_of(image)
    descriptor, opener = in_memory(fastjson.dumps(document), mediatypes.INDEX)
    return Index(Blobs(None, {**openers, descriptor["digest"]: opener}), descriptor, document)


# -- saving ------------------------------------------------------------------------------------------------


class Made:
    """An image or index made here as a source to copy from. See ``image.source.ImageSource``."""

    def __init__(self, what: Image | Index) -> None:
        self.what = what.name or what.digest
        self._root = entry_of(what)
        self._blobs = what.blobs

    def roots(self) -> list[Descriptor]:
        """Its own descriptor, with the platform its config says."""
        return [self._root]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """A verified reader."""
        return self._blobs.open_blob(descriptor)

    def names(self) -> list[str]:
        """None: whoever saves it says what it is called."""
        return []

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        """The blobs are the image's."""


def destination(text: str) -> Reference:
    """The reference of a place to save to; a bare name is the store's. Raises UsageError, InvalidReference."""
    bare = _is_stored(text) and not text.startswith((STORED, REMOTE))
    reference = parse_reference(f"{STORED}{text}" if bare else text)
    if reference.digest:
        raise UsageError(f"{text} is a digest", hint="a changed image has another one: give it a name")
    if reference.transport == "oci" and not reference.tag:
        return reference.replace(tag=_only_name(reference.path) or DEFAULT_TAG)  # type: ignore[no-any-return]
    return reference


def _only_name(path: str) -> str:
    """The name of the only image of a layout, "" when there are more or none."""
    try:
        names = list(Store.open(path, create=False).tags())
    except NotFound:
        return ""
    return names[0] if len(names) == 1 else ""


def save(what: Image | Index, text: str, *, store: str | None = None) -> None:
    """Put an image or index with all that it names under a name, wherever that is, its digest kept.

    Only docker's archives, and its daemon, cannot hold OCI documents: there the digest changes. Nothing is there if
    it fails. Raises UsageError, InvalidReference, FileError, InUse, RegistryError.
    """
    from knarr.engine.copying import open_sink
    from knarr.image.copy import Options, copy_image

    where = places(store)
    reference = destination(text)
    converted = reference.transport in ("docker-archive", "docker-daemon")
    with open_sink(where, reference, names=[]) as sink:
        copy_image(Made(what), sink, Options(all=not converted, preserve_digests=not converted))
        sink.finish()


def save_image(image: Image, text: str, *, store: str | None = None) -> Image:
    """Put an image under a name; see ``Image.save``."""
    save(image, text, store=store)
    return Image(image.blobs, entry_of(image), image.manifest, image.config, text)


def save_index(index: Index, text: str, *, store: str | None = None) -> Index:
    """Put an index and what it names under a name; see ``Index.save``."""
    save(index, text, store=store)
    return Index(index.blobs, entry_of(index), index.document, text)

"""Artifacts: files in a manifest of their own, alone or attached to an image; and what refers to an image.

image-spec manifest.md, "Guidelines for Artifact Usage"; distribution-spec, "Referrers". Names of files are annotations
(org.opencontainers.image.title), which a stranger wrote: they are taken for paths below the directory that was asked
for and for nothing else.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, FormatError, NotFound, UsageError
from knarr.content.digest import hasher
from knarr.content.verify import CHUNK, FileStream, open_regular
from knarr.engine.imaging.blobs import Blobs, in_memory
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.opening import REMOTE, Made, destination, open_any
from knarr.engine.paths import open_store, places
from knarr.image import edit
from knarr.kernel.path import BENEATH, mkdir_all, openat2, printable
from knarr.layer.whiteout import BadName, components
from knarr.spec import mediatypes
from knarr.spec.image_validate import parse_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.engine.imaging.blobs import Opener
    from knarr.engine.imaging.image import Index
    from knarr.image.sink import ImageSink
    from knarr.spec.image import Descriptor

DEFAULT_TYPE = "application/octet-stream"


def artifact_of(
    files: Sequence[tuple[str, str]],
    *,
    kind: str,
    annotations: Mapping[str, str] | None = None,
    config: tuple[bytes, str] | None = None,
    subject: Descriptor | None = None,
) -> Image:
    """An artifact of (path, media type) files, under the names they have; of the type ``kind``. The same each time.

    ``subject`` is what it refers to. Raises NotFound, FileError, UsageError.
    """
    added: dict[str, Opener] = {}
    layers = []
    for path, media_type in files:
        descriptor, opener = _file(path, media_type or DEFAULT_TYPE)
        added[descriptor["digest"]] = opener
        layers.append(descriptor)
    return artifact(layers, added, kind=kind, annotations=annotations, config=config, subject=subject)


def artifact(
    layers: Sequence[Descriptor],
    added: Mapping[str, Opener],
    *,
    kind: str,
    annotations: Mapping[str, str] | None = None,
    config: tuple[bytes, str] | None = None,
    subject: Descriptor | None = None,
) -> Image:
    """An artifact of blobs that ``added`` opens; see ``artifact_of``."""
    if not kind:
        raise UsageError("an artifact needs a type", hint="a media type, as application/vnd.example.report+json")
    openers = dict(added)
    empty, opener = in_memory(mediatypes.EMPTY_BYTES, mediatypes.EMPTY)
    described = empty
    if config is not None:
        described, opener = in_memory(*config)
    openers[described["digest"]] = opener
    if not layers:  # manifest.md: an artifact without files has the empty one
        openers[empty["digest"]] = in_memory(mediatypes.EMPTY_BYTES, mediatypes.EMPTY)[1]
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.MANIFEST,
        "artifactType": kind,
        "config": described,
        "layers": list(layers) or [empty],
    }
    if subject is not None:
        manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    if annotations:
        manifest["annotations"] = dict(annotations)
    descriptor, document = in_memory(fastjson.dumps(edit.checked_manifest(manifest)), mediatypes.MANIFEST)
    openers[descriptor["digest"]] = document
    descriptor["artifactType"] = kind
    return Image(Blobs(None, openers), descriptor, manifest, None)


def _file(path: str, media_type: str) -> tuple[Descriptor, Opener]:
    """The descriptor of a file, and what opens it again."""
    try:
        fd, _size = open_regular(path, follow=True)
    except FileError as error:
        if error.number == ENOENT:
            raise NotFound("file", path) from None
        raise
    made, size = hasher("sha256"), 0
    stream = FileStream(fd, path)
    try:
        while data := stream.read(CHUNK):
            made.update(data)
            size += len(data)
    finally:
        stream.close()
    descriptor: Descriptor = {
        "mediaType": media_type,
        "digest": f"sha256:{made.hexdigest()}",
        "size": size,
        "annotations": {mediatypes.TITLE: os.path.basename(path)},
    }
    return descriptor, lambda: FileStream(open_regular(path, follow=True)[0], path)


def attach(made: Image, reference: str, *, store: str | None = None) -> None:
    """Put an artifact beside what it refers to, under no name: its subject leads to it. Raises as ``Image.save``."""
    from knarr.image.copy import Options, copy_image

    sink = _beside(reference, made.digest, store)
    try:
        copy_image(Made(made), sink, Options(all=True, preserve_digests=True))
        sink.finish()
    finally:
        sink.close()


def _beside(reference: str, digest: str, store: str | None) -> ImageSink:
    """The sink for what has no name, where ``reference`` is: a repository, a layout, the store. Raises UsageError."""
    from knarr.image.reference import parse_reference
    from knarr.image.sink import LayoutSink, StoreSink

    if reference.startswith(REMOTE):
        from knarr.registry.sink import open_sink

        place = parse_reference(reference)
        return open_sink(place.registry, place.repository, "", digest)
    place = destination(reference) if "@" not in reference else parse_reference(reference)
    if place.transport == "oci":
        return LayoutSink(place.path, "", reference)
    if place.transport in ("store", "docker"):
        return StoreSink(open_store(places(store)), [], reference)
    hint = "as oci:DIR:TAG, docker://NAME or a name of the store"
    raise UsageError(f"nothing can be attached to what lies in {reference}", hint=hint)


def subject_of(reference: str, platform: str = "", *, store: str | None = None) -> Image | Index:
    """What a reference means, as something to refer to: an index itself, unless a platform of it is asked for."""
    if platform:
        return Image.open(reference, platform=platform, store=store)
    return open_any(reference, store=store)


def referrers(reference: str, *, kind: str = "", platform: str = "", store: str | None = None) -> list[Descriptor]:
    """The descriptors of what refers to an image or index, in the order they are found; of one artifact type, if given.

    Raises NotFound, RegistryError, ….
    """
    subject = subject_of(reference, platform, store=store)
    try:
        return [one for one in _referrers(subject) if not kind or one.get("artifactType") == kind]
    finally:
        subject.close()


def _referrers(subject: Image | Index) -> list[Descriptor]:
    source = subject.blobs.source
    known: Any = getattr(source.source, "referrers", None) if source is not None else None
    if known is None:
        return []
    found: list[Descriptor] = known(subject.digest)
    return found


def referring(subject: Image | Index, kind: str) -> list[Image]:
    """The artifacts of a type that refer to an image or index, read. Raises what reading them does."""
    found = []
    for one in _referrers(subject):
        if one.get("artifactType") == kind and one["mediaType"] in mediatypes.MANIFESTS:
            manifest = parse_manifest(subject.blobs.read(one), f"manifest {one['digest']}", one["mediaType"])
            # What a list of referrers says of it is believed no further than that: its own subject decides.
            if (manifest.get("subject") or {}).get("digest") == subject.digest:
                found.append(Image(subject.blobs, one, manifest, None))
    return found


# -- fetching ----------------------------------------------------------------------------------------------


def pull(reference: str, folder: str, *, overwrite: bool = False, store: str | None = None) -> list[str]:
    """Write an artifact's files below ``folder``, under the names it gives them; return their paths. All are verified.

    A file without a name gets its digest's. Raises FormatError for a name that is no path below the directory,
    FileError for a file that is there already (unless ``overwrite``), NotFound, DigestMismatch, ….
    """
    with Image.open(reference, store=store) as image:
        wanted = [(_name(layer), layer) for layer in image.manifest["layers"] if layer["mediaType"] != mediatypes.EMPTY]
        names = [name for name, _layer in wanted]
        if len(set(names)) != len(names):
            raise FormatError(image.name, "layers", "two files have the same name")
        try:
            os.makedirs(folder, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FileError("write to", folder, error.errno or EINVAL) from None
        try:
            return [_fetch(image, layer, fd, name, folder, overwrite=overwrite) for name, layer in wanted]
        finally:
            os.close(fd)


def _name(layer: Descriptor) -> bytes:
    """The path of a file below the directory. Raises FormatError."""
    title = (layer.get("annotations") or {}).get(mediatypes.TITLE)
    if title is None:
        return layer["digest"].replace(":", "-").encode()
    raw = os.fsencode(title)
    try:
        parts = components(raw)
    except BadName as error:
        raise FormatError(f"layer {layer['digest']}", f"title {printable(title)!r}", str(error)) from None
    if not parts or raw.startswith(b"/") or b"\0" in raw:
        raise FormatError(f"layer {layer['digest']}", f"title {printable(title)!r}", "it is no relative path")
    return b"/".join(parts)


def _fetch(image: Image, layer: Descriptor, root_fd: int, name: bytes, folder: str, *, overwrite: bool) -> str:
    """Write one file: under a name of its own until it is complete and verified."""
    shown = f"{folder}/{printable(name)}"
    parent, _slash, base = name.rpartition(b"/")
    temporary = b"." + base[:200] + b"." + os.urandom(6).hex().encode()
    try:
        at = mkdir_all(root_fd, parent) if parent else os.dup(root_fd)
        try:
            fd = openat2(at, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, BENEATH, 0o644)
            try:
                _write(image.blobs.open_blob(layer), fd)
                if not overwrite and os.access(base, os.F_OK, dir_fd=at, follow_symlinks=False):
                    raise FileError("write", shown, EEXIST, hint="say --overwrite to replace it")
                os.rename(temporary, base, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                os.unlink(temporary, dir_fd=at)
                raise
            finally:
                os.close(fd)
        finally:
            os.close(at)
    except OSError as error:
        raise FileError("write", shown, error.errno or EINVAL) from None
    return shown


def _write(stream: Readable, fd: int) -> None:
    try:
        while data := stream.read(CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
    finally:
        stream.close()

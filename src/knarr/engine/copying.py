"""Images from anywhere to anywhere: opens what references name, on both sides. Joins image and registry.

``docker://``, ``oci:``, ``oci-archive:``, ``docker-archive:``, ``dir:``, ``docker-daemon:``, ``store:`` and ``-``.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from knarr.base.errors import UsageError
from knarr.base.record import Record
from knarr.content.compressor import parse_compression
from knarr.engine.paths import open_store
from knarr.engine.trust import check_source
from knarr.image.copy import Options, copy_image
from knarr.image.platform import parse_platform
from knarr.image.reference import STDIO, parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from knarr.content.compressor import Compression, Writable
    from knarr.content.store import Store
    from knarr.content.verify import Readable
    from knarr.engine.paths import Places
    from knarr.image.copy import Copied
    from knarr.image.reference import Reference
    from knarr.image.sink import ImageSink
    from knarr.image.source import ImageSource
    from knarr.image.transfer import Progress
    from knarr.registry.credentials import Credentials
    from knarr.spec.image import Descriptor


class Access(Record):
    """How to reach registries: ``credentials`` ("" host for any), ``insecure`` allows plain HTTP and unverified TLS."""

    credentials: Credentials | None = None
    insecure: bool = False


def uploads_of(where: Places) -> str:
    """Return the directory in which uploads that were begun are kept."""
    return f"{where.store}/uploads"


def options_of(
    platforms: Sequence[str] = (),
    *,
    all: bool = False,
    format: str = "",
    compress: str = "",
    preserve_digests: bool = False,
    referrers: bool = False,
    dry_run: bool = False,
    jobs: int = 4,
) -> Options:
    """Return the options of a copy from words; raises UsageError."""
    if all and platforms:
        raise UsageError("all platforms and some platforms cannot both be asked for")
    if not 1 <= jobs <= 64:
        raise UsageError(f"{jobs} blobs at the same time make no sense", hint="from 1 to 64")
    how = parse_compression(compress, tables=True) if compress else None
    return Options(
        platforms=tuple(dict.fromkeys(map(parse_platform, platforms))),
        all=all,
        format=format,
        compress=how,
        writer=_with_table if how is not None and how.table else None,
        preserve_digests=preserve_digests,
        referrers=referrers,
        dry_run=dry_run,
        jobs=jobs,
    )


def _with_table(plain: Readable, out: Writable, how: Compression, what: str) -> tuple[Descriptor, str, str]:
    from knarr.layer.chunkwriter import write_chunked

    made = write_chunked(plain, out, how, what)
    return made.descriptor, made.came, made.diff_id


@contextmanager
def open_source(where: Places, ref: Reference, access: Access | None = None) -> Iterator[ImageSource]:
    """Give the source a reference names, held against the policy, closed afterwards; a store is held meanwhile."""
    from knarr.image.source import open_source as open_other

    if ref.transport == "store":
        from knarr.image.catalog import entries_of
        from knarr.image.storesource import StoreSource

        store = open_store(where)
        with store.lock(shared=True):
            yield StoreSource(store, entries_of(store, _stored_text(store, ref)), str(ref))
        return
    source = open_other(ref, lambda ref: _remote(ref, access or Access()))
    try:
        check_source(source, ref)
        yield source
    finally:
        source.close()


def _stored_text(store: Store, ref: Reference) -> str:
    """Return what the catalog knows an image by: its full name, or the start of an id that looked like a name."""
    if ref.path:
        return ref.path
    short = ref.familiar.removesuffix(":latest")
    is_id = len(short) < 64 and all(character in "0123456789abcdef" for character in short)
    return short if is_id and ref.name not in store.tags() else ref.name


def _remote(ref: Reference, access: Access) -> ImageSource:
    from knarr.registry.source import open_image

    return open_image(
        ref.registry,
        ref.repository,
        ref.tag,
        ref.digest,
        credentials=access.credentials,
        insecure=access.insecure,
    )


@contextmanager
def open_sink(
    where: Places,
    ref: Reference,
    access: Access | None = None,
    *,
    mount_from: str = "",
    names: Sequence[str] = (),
    docker: bool = False,
) -> Iterator[ImageSink]:
    """Give the sink a reference names, closed afterwards, but finished by the caller.

    ``names`` are full names for what keeps them and was not given one. ``docker``: an archive is to be docker's.
    """
    sink = _sink(where, ref, access or Access(), mount_from, list(names), docker=docker)
    try:
        yield sink
    finally:
        sink.close()


def _sink(
    where: Places, ref: Reference, access: Access, mount_from: str, names: list[str], *, docker: bool
) -> ImageSink:
    what = str(ref)
    if ref.transport == "docker":
        from knarr.registry.sink import open_sink as open_registry
        from knarr.registry.uploads import Uploads

        return open_registry(
            ref.registry,
            ref.repository,
            ref.tag,
            ref.digest,
            mount_from=mount_from,
            uploads=Uploads(uploads_of(where)),
            credentials=access.credentials,
            insecure=access.insecure,
        )
    if ref.transport == "store":
        from knarr.image.sink import StoreSink

        if ref.path or ref.digest:
            raise UsageError(f"{ref} is no name for an image of the store", hint="as store:myimage:1")
        return StoreSink(open_store(where), [ref.name], what)
    if ref.transport == "oci":
        from knarr.image.sink import LayoutSink

        if ref.digest:
            raise UsageError(f"{ref} is a digest, not a tag to give", hint=f"as oci:{ref.path}:latest")
        return LayoutSink(ref.path, ref.tag, what)
    if ref.transport in ("oci-archive", "docker-archive", STDIO):
        return _archive(ref, names, docker=docker)
    if ref.transport == "dir":
        from knarr.image.directory import DirectorySink

        return DirectorySink(ref.path, what)
    if ref.transport == "docker-daemon":
        from knarr.image.dockerdaemon import open_daemon_sink

        if ref.path:
            raise UsageError(f"{ref} is no name for an image of the docker daemon")
        return open_daemon_sink(ref)
    raise UsageError(f"{ref} is no place to copy an image to")


def _archive(ref: Reference, names: list[str], *, docker: bool) -> ImageSink:
    from knarr.image.archive import ArchiveSink, Pipe

    output = None
    if ref.path == STDIO:
        if os.isatty(1):
            raise UsageError("an archive is not written to a terminal", hint="name a file, or use a pipe")
        output = Pipe(1, "standard output", own=False)
    if ref.transport == "docker-archive":
        names = [ref.name] if ref.name else names
        docker = True
    what = "standard output" if output is not None else str(ref)
    tag = ref.tag if ref.transport == "oci-archive" else ""
    return ArchiveSink(ref.path, what, docker=docker, tag=tag, names=names, output=output)


def copy(
    where: Places,
    source: str,
    target: str,
    options: Options | None = None,
    *,
    source_access: Access | None = None,
    target_access: Access | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy the image ``source`` names to ``target``; see ``image.copy``. Nothing is there if it fails.

    Raises InvalidReference, UsageError, NotFound, and what reading and writing raise.
    """
    chosen = options or Options()
    from_ref, to_ref = parse_reference(source), parse_reference(target)
    if chosen.dry_run and to_ref.transport != "docker":
        return _looked(where, from_ref, to_ref, chosen, source_access)
    mount_from = from_ref.repository if to_ref.registry and to_ref.registry == from_ref.registry else ""
    docker = to_ref.transport == STDIO and chosen.format == "docker"
    if docker:
        chosen = chosen.replace(format="")
    with open_source(where, from_ref, source_access) as opened:
        names = _names(from_ref, opened)
        with open_sink(where, to_ref, target_access, mount_from=mount_from, names=names, docker=docker) as sink:
            copied = copy_image(opened, sink, chosen, progress=progress)
            if not chosen.dry_run:
                sink.finish()
    return copied


def _names(ref: Reference, source: ImageSource) -> list[str]:
    """Return the full names an image takes along into an archive: those it was asked for by or has."""
    if ref.transport in ("docker", "docker-daemon") and ref.tag:
        return [ref.name]
    return [name for name in source.names() if "@" not in name] if ref.transport in ("store", "docker-archive") else []


def _looked(where: Places, from_ref: Reference, to_ref: Reference, options: Options, access: Access | None) -> Copied:
    """Return what a copy would do, having made nothing."""
    from knarr.image.sink import Nothing

    folder = where.store if to_ref.transport == "store" else to_ref.path if to_ref.transport == "oci" else ""
    with open_source(where, from_ref, access) as opened:
        return copy_image(opened, Nothing(str(to_ref), to_ref.transport, folder), options)


def push_target(where: Places, image: str, target: str = "") -> tuple[str, str]:
    """Return source and target of a push: ``image`` of the store, under its own name if no other is given.

    Raises NotFound, InvalidReference, UsageError when it has no name.
    """
    from knarr.image.catalog import lookup

    name = image.removeprefix("store:")
    found = lookup(open_store(where), name)
    if not target and not found.name:
        raise UsageError(f"image {image} has no name to push it by", hint="name the target, too")
    return f"store:{found.name or found.digest}", target or f"docker://{found.name}"


def signable(target: str) -> str:
    """Return what ``target`` is called where images are opened, without tag; UsageError where none can be signed."""
    from knarr.engine.imaging.opening import REMOTE, STORED
    from knarr.engine.imaging.signing import signature_reference

    ref = parse_reference(target)
    if ref.transport == "oci":
        return f"oci:{ref.path}"
    start = {"docker": REMOTE, "store": STORED}.get(ref.transport, "")
    if not start:
        signature_reference(target, f"sha256:{'0' * 64}")  # says why not
    return f"{start}{ref.registry}/{ref.repository}"


def sign_copy(target: str, digest: str, key: Any, *, store: str | None = None) -> None:
    """Sign what was just copied to ``target``, by its digest: a tag may mean another image by now."""
    from knarr.engine.imaging.artifacts import subject_of
    from knarr.engine.imaging.signing import identity_of, sign

    copied = f"{signable(target)}@{digest}"
    subject = subject_of(copied, store=store)
    try:
        sign(subject, copied, key, identity=identity_of(target), store=store)
    finally:
        subject.close()


def into_store(
    where: Places, text: str, options: Options, access: Access | None = None, *, progress: Progress | None = None
) -> Copied:
    """Copy an image into the store under the name it was asked for by; without unpacking it."""
    from knarr.image.sink import StoreSink

    reference = parse_reference(text)
    store = open_store(where)
    with open_source(where, reference, access) as source:
        sink = StoreSink(store, source.names())
        try:
            copied = copy_image(source, sink, options, progress=progress, store=store)
            sink.finish()
        finally:
            sink.close()
    return copied

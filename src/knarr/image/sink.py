"""Where images go: one small protocol, and the sinks that are stores or layouts."""

from __future__ import annotations

import os
from contextlib import ExitStack
from errno import ENOENT

from knarr.base.errors import FileError, KnarrError
from knarr.base.files import Lock
from knarr.content.part import TEMPORARY
from knarr.content.store import Store
from knarr.image.catalog import INDEX_DIGEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from knarr.content.part import Source
    from knarr.spec.image import Descriptor

    class ImageSink(Protocol):
        """One place images are written to. Nothing is visible there before ``finish``, but what a registry takes in.

        ``what`` is the text people know it by. ``jobs`` is the most blobs it takes at the same time. ``formats`` are
        the kinds of documents it can hold, oci and docker, the one it wants first; with ``keeps`` it holds what
        comes as it is. ``indexes``: it can hold images for several platforms. ``compression`` is the one it needs
        layers to have, None for any.

        For each image: ``begin`` with all its blobs; ``has`` and ``put_blob``, from several threads; ``put_document``
        for manifests and indexes, what they refer to first; ``put_name`` for what the image's name shall mean, or
        ``put_referrer`` for what refers to another. Then ``finish``. ``abort``, from another thread, breaks off what
        is under way; ``close`` ends it, and takes away what was not finished.
        """

        what: str
        jobs: int
        formats: tuple[str, ...]
        keeps: bool
        indexes: bool
        compression: str | None

        def begin(self, blobs: Sequence[Descriptor]) -> None: ...

        def has(self, descriptor: Descriptor) -> bool: ...

        def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None: ...

        def put_document(self, descriptor: Descriptor, data: bytes) -> None: ...

        def put_name(self, descriptor: Descriptor, index: str) -> None: ...

        def put_referrer(self, descriptor: Descriptor, subject: str) -> None: ...

        def finish(self) -> None: ...

        def abort(self) -> None: ...

        def close(self) -> None: ...


JOBS = 4
"""Blobs copied at the same time."""


class StoreSink:
    """A store: blobs and then names, which are full references. The store is held until ``close``."""

    keeps = True
    indexes = True
    formats: tuple[str, ...] = ("oci", "docker")
    compression: str | None = None
    jobs = JOBS

    def __init__(self, store: Store, names: Sequence[str], what: str = "") -> None:
        self.what = what or f"store:{names[0] if names else ''}"
        self.store = store
        self.entry: Descriptor | None = None
        self._names = list(names)
        self._referrers: list[Descriptor] = []
        self._documents: list[tuple[Descriptor, bytes]] = []
        self._held = ExitStack()
        self._hold()

    def _hold(self) -> None:
        self._held.enter_context(self.store.lock(shared=True))

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Nothing to prepare."""

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there."""
        return self.store.has(descriptor["digest"], descriptor["size"])

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Add a blob; see ``Store.put``."""
        self.store.put(source, descriptor, moved=moved)

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Take a manifest or index; it is added with the others of its image, before that gets a name."""
        self._documents.append((descriptor, data))

    def _put_documents(self) -> None:
        documents, self._documents = self._documents, []
        self.store.put_all(documents)

    def put_name(self, descriptor: Descriptor, index: str) -> None:
        """Let the names mean a manifest or index; ``index`` is the digest of the one it was found in, or ""."""
        self._put_documents()
        self.entry = entry_of(descriptor, index)

    def put_referrer(self, descriptor: Descriptor, subject: str) -> None:  # noqa: ARG002  # it says so itself
        """Keep what refers to an image: index.json must name it, or the next collection takes it."""
        self._put_documents()
        self._referrers.append(entry_of(descriptor, ""))

    def finish(self) -> None:
        """Write the names, and not before."""
        with self.store.changing() as changes:
            for descriptor in self._referrers:
                changes.note(descriptor)
            if self.entry is not None and not self._names:
                changes.note(self.entry)
            if self.entry is not None:
                for name in self._names:
                    changes.tag(name, self.entry)

    def abort(self) -> None:
        """Nothing here lasts."""

    def close(self) -> None:
        """Let the store go."""
        self._held.close()


class LayoutSink(StoreSink):
    """An ``oci:`` directory: a store of its own, whose name is the tag, open for others to read.

    Older readers of layouts, umoci and skopeo among them, know OCI documents only, so those of Docker are
    converted unless digests are to stay.
    """

    keeps = False

    def __init__(self, path: str, tag: str, what: str) -> None:
        self._begun = False
        super().__init__(Store(path), [tag] if tag else [], what)

    def _hold(self) -> None:
        """Nothing is there to hold before something is copied."""

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Make the layout, if it is not there, and hold it."""
        super().begin(blobs)
        if not self._begun:
            self.store = Store.open(self.store.path, create=True, mode=0o755)
            super()._hold()
            self._begun = True

    def close(self) -> None:
        """Let it go, and take away what only a store needs: locks nobody waits for, an empty directory."""
        super().close()
        if self._begun:
            tidy(self.store.path)


class Nothing:
    """A sink that is only looked at: what would have to be copied to a place of that transport."""

    jobs = 1

    def __init__(self, what: str, transport: str, folder: str = "") -> None:
        self.what = what
        docker = transport in ("docker-archive", "docker-daemon")
        self.formats: tuple[str, ...] = ("oci",) if docker else ("oci", "docker")
        self.keeps = transport in ("store", "dir")
        self.indexes = not docker
        self.compression: str | None = "" if docker else None
        self._store = Store(folder) if folder else None

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Nothing to prepare."""

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there."""
        return self._store is not None and self._store.has(descriptor["digest"], descriptor["size"])

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Never called."""

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Never called."""

    def put_name(self, descriptor: Descriptor, index: str) -> None:
        """Never called."""

    def put_referrer(self, descriptor: Descriptor, subject: str) -> None:
        """Never called."""

    def finish(self) -> None:
        """Nothing to write."""

    def abort(self) -> None:
        """Nothing to break off."""

    def close(self) -> None:
        """Nothing is held."""


def tidy(path: str) -> None:
    """Remove a layout's lock files and empty temporary directory, where nobody else uses them."""
    try:
        with Lock(f"{path}/.lock", wait=False), Lock(f"{path}/.index.lock", wait=False):
            try:
                os.rmdir(f"{path}/{TEMPORARY}")
            except OSError:
                return  # what came of a blob is in it, for the next try
            for name in (".index.lock", ".lock"):
                os.unlink(f"{path}/{name}")
    except FileError as error:
        if error.number != ENOENT:
            return
    except (KnarrError, OSError):
        return  # somebody else is using it


def entry_of(descriptor: Descriptor, index: str) -> Descriptor:
    """Return what an index.json says of a manifest: what identifies it, and the index it came out of."""
    entry: Descriptor = {
        "mediaType": descriptor["mediaType"],
        "digest": descriptor["digest"],
        "size": descriptor["size"],
    }
    if "platform" in descriptor:
        entry["platform"] = descriptor["platform"]
    if "artifactType" in descriptor:
        entry["artifactType"] = descriptor["artifactType"]
    if index and index != descriptor["digest"]:
        entry["annotations"] = {INDEX_DIGEST: index}
    return entry

"""Garbage collection: what index.json does not reach, directly or through manifests, goes.

References are computed, never counted or stored (docs/security.md I9). Collecting holds the store's lock alone, so
no blob is removed that a pull under way has just found present; a manifest that cannot be read stops it,
because what it refers to is then unknown.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ENOENT

from knarr.base.errors import FileError, NotFound, SpecError
from knarr.base.files import TEMPORARY
from knarr.base.record import Record
from knarr.content.facts import facts_of
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from knarr.content.store import Store
    from knarr.spec.image import Descriptor


class Collected(Record):
    """What a collection removed: the digests of blobs, and bytes in all."""

    digests: tuple[str, ...]
    size: int


def children(descriptor: Descriptor, data: bytes) -> list[Descriptor]:
    """Return the descriptors a manifest or index refers to (not its subject: that is somebody else's image).

    Other blobs refer to nothing. Raises SpecError.
    """
    kind = descriptor["mediaType"]
    document = f"{'index' if kind in mediatypes.INDEXES else 'manifest'} {descriptor['digest']}"
    if kind in mediatypes.INDEXES:
        from knarr.spec.image_validate import parse_index

        return list(parse_index(data, document, kind)["manifests"])
    if kind in mediatypes.MANIFESTS:
        from knarr.spec.image_validate import parse_manifest

        manifest = parse_manifest(data, document, kind)
        return [manifest["config"], *manifest["layers"]]
    return []


def reachable(store: Store, roots: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Yield every descriptor reached from ``roots``, each digest once, whether its blob is there or not.

    Raises SpecError, SizeMismatch, DigestMismatch or FileError for a manifest or index that is there but
    cannot be believed. (A collection has its own walk, which remembers; see ``_wanted``.)
    """
    seen: set[str] = set()
    stack = list(roots)
    while stack:
        descriptor = stack.pop()
        if descriptor["digest"] in seen:
            continue
        seen.add(descriptor["digest"])
        yield descriptor
        if descriptor["mediaType"] in mediatypes.INDEXES or descriptor["mediaType"] in mediatypes.MANIFESTS:
            try:
                data = store.read_blob(descriptor)
            except NotFound:
                continue  # an index of which only one platform was pulled
            stack.extend(children(descriptor, data))


def collect(store: Store, keep: frozenset[str] = frozenset(), *, timeout: float = 60.0) -> Collected:
    """Remove the blobs nothing in index.json reaches, except ``keep`` (digests), and what killed writers left.

    Whatever ``keep`` names as a manifest keeps its config and layers too. Raises InUse when others use the
    store for longer than ``timeout`` seconds; SpecError, SizeMismatch or DigestMismatch, having removed
    nothing, when a manifest cannot be read.
    """
    with store.lock(shared=False, timeout=timeout):
        roots = store.entries()
        for digest in keep:
            roots.extend(_as_root(store, digest))
        there = store.digests()
        wanted = _wanted(store, roots, there) | keep
        gone: list[str] = []
        size = 0
        for digest in there - wanted:
            try:
                found = os.stat(store.blob_path(digest), follow_symlinks=False)
            except OSError as error:
                raise FileError("read", store.blob_path(digest), error.errno or EINVAL) from None
            if stat.S_ISREG(found.st_mode):
                store.delete(digest)
                gone.append(digest)
                size += found.st_size
        size += _clear_temporary(store)
        facts_of(store).save(wanted)
        return Collected(tuple(sorted(gone)), size)


def _wanted(store: Store, roots: list[Descriptor], there: set[str]) -> set[str]:
    """Return the digests ``reachable`` would yield, without opening the manifests whose references are known."""
    facts = facts_of(store)
    rows = facts.rows
    wanted: set[str] = set()
    seen: set[str] = set()  # of these the references are in wanted too; a layer may have a manifest's digest
    stack = list(roots)
    manifests = mediatypes.MANIFESTS
    while stack:
        descriptor = stack.pop()
        digest, kind = descriptor["digest"], descriptor["mediaType"]
        wanted.add(digest)
        if digest in seen or digest not in there:  # an index of which only one platform was pulled
            continue
        if kind in manifests:
            seen.add(digest)
            found = rows.get(digest)
            if found is None or found.get("type") != kind:
                found = facts.manifest(descriptor, look=False)
            if found["nested"]:
                stack.extend(children(descriptor, store.read_blob(descriptor)))
            else:
                wanted.update(found["parts"])
        elif kind in mediatypes.INDEXES:
            seen.add(digest)
            stack.extend(children(descriptor, store.read_blob(descriptor)))
    return wanted


def _as_root(store: Store, digest: str) -> list[Descriptor]:
    """Return ``digest`` as a manifest's descriptor if that is what its blob is."""
    from knarr.base import fastjson
    from knarr.content.store import DOCUMENT_LIMIT

    try:
        size = os.stat(store.blob_path(digest)).st_size
    except OSError:
        return []
    if size > DOCUMENT_LIMIT:
        return []
    made: Descriptor = {"mediaType": mediatypes.MANIFEST, "digest": digest, "size": size}
    try:
        value = fastjson.loads(store.read_blob(made), digest)
    except SpecError:
        return []  # a layer or another blob
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        return []
    media_type = value.get("mediaType")
    if media_type in mediatypes.MANIFESTS:
        made["mediaType"] = media_type
    return [made]


def _clear_temporary(store: Store) -> int:
    """Remove unfinished files; returns bytes. No blob is written while we hold the store's lock alone."""
    from knarr.content.locks import held

    with held(f"{store.path}/.index.lock", shared=False):  # nor, now, index.json
        return _clear(f"{store.path}/.tmp", "") + _clear(store.path, TEMPORARY)


def _clear(folder: str, prefix: str) -> int:
    size = 0
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if entry.name.startswith(prefix)]
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                size += entry.stat(follow_symlinks=False).st_size
                os.unlink(entry.path)
    except OSError as error:
        if error.errno != ENOENT:
            raise FileError("clear", folder, error.errno or EINVAL) from None
    return size

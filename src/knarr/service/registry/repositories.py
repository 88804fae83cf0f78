"""Repositories over a store: the store's names are ``repository:tag`` and ``repository@digest``.

So a store that ``knarr pull`` filled can be served as it is (its images are called docker.io/library/…), and what was
pushed here can be listed, run and collected by knarr. Blobs are shared by all repositories.
"""

from __future__ import annotations

import os
from threading import Lock as ThreadLock

from knarr.base import fastjson
from knarr.base.errors import InvalidDigest, KnarrError, NotFound, SpecError
from knarr.content.digest import usable
from knarr.content.names import name_of
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import verify_bytes
from knarr.service.registry.problems import Problem
from knarr.service.registry.routes import TAG
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from knarr.content.store import Store
    from knarr.spec.image import Descriptor

_REMEMBERED = 100_000  # manifests whose subject is known


class Repositories:
    """What the registry holds. May be used from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = ThreadLock()
        self._signature: tuple[int, ...] = ()
        self._names: dict[str, dict[str, Descriptor]] = {}  # repository -> tag or digest -> descriptor
        self._subjects: dict[str, tuple[str, Descriptor] | None] = {}

    # -- looking -------------------------------------------------------------------------------------------

    def names(self) -> dict[str, dict[str, Descriptor]]:
        """Repositories, and for each its tags and digests; read again when the store's index changed."""
        facts = os.stat(f"{self.store.path}/{mediatypes.INDEX_FILE}")
        signature = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        with self._lock:
            if signature != self._signature:
                found: dict[str, dict[str, Descriptor]] = {}
                for entry in self.store.entries():
                    repository, reference = split(name_of(entry))
                    if repository:
                        found.setdefault(repository, {})[reference] = entry
                self._names, self._signature = found, signature
            return self._names

    def references(self, repository: str) -> dict[str, Descriptor]:
        """Tags and digests of one repository. Raises Problem."""
        found = self.names().get(repository)
        if found is None:
            raise Problem("NAME_UNKNOWN", repository)
        return found

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository in lexical order. Raises Problem."""
        return sorted(reference for reference in self.references(repository) if ":" not in reference)

    def manifest(self, repository: str, reference: str) -> tuple[Descriptor, bytes]:
        """Descriptor and bytes of a manifest or index by tag or digest. Raises Problem."""
        references = self.names().get(repository, {})
        entry = references.get(reference)
        if entry is None and ":" in reference:
            entry = next((one for one in references.values() if one["digest"] == reference), None)
            entry = entry or self._inside(references.values(), reference)
        if entry is None:
            raise Problem("MANIFEST_UNKNOWN", f"{repository} {reference}")
        bare: Descriptor = {"mediaType": entry["mediaType"], "digest": entry["digest"], "size": entry["size"]}
        try:
            return bare, self.store.read_blob(bare)
        except NotFound:
            raise Problem("MANIFEST_UNKNOWN", f"{repository} {reference}") from None

    def _inside(self, entries: Any, digest: str) -> Descriptor | None:
        """A manifest that only an index of this repository names."""
        for entry in entries:
            if entry["mediaType"] in mediatypes.INDEXES:
                for child in self._children(entry):
                    if child["digest"] == digest and self.store.has(digest, child["size"]):
                        return child
        return None

    def _children(self, entry: Descriptor) -> list[Descriptor]:
        try:
            document = fastjson.loads(self.store.read_blob(entry), "index")
            children: list[Descriptor] = document.get("manifests", [])  # checked when it was pushed
        except KnarrError:
            return []
        return children

    def referrers(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor]:
        """Descriptors of all manifests of a repository whose subject is ``digest``; in the order of their digests."""
        found: dict[str, Descriptor] = {}
        for entry in self.names().get(repository, {}).values():
            known = self._subject(entry)
            if known is not None and known[0] == digest:
                found[entry["digest"]] = known[1]
        listed = [found[key] for key in sorted(found)]
        return [one for one in listed if not artifact_type or one.get("artifactType") == artifact_type]

    def _subject(self, entry: Descriptor) -> tuple[str, Descriptor] | None:
        """The subject of a manifest, and how it is listed among that one's referrers."""
        digest = entry["digest"]
        if digest not in self._subjects:
            made = None
            try:
                document = fastjson.loads(self.store.read_blob(entry), "manifest")
                subject = (document.get("subject") or {}).get("digest")
                if subject:
                    made = (subject, _listed(entry, document))
            except KnarrError:
                pass
            if len(self._subjects) > _REMEMBERED:
                self._subjects.clear()
            self._subjects[digest] = made
        return self._subjects[digest]

    # -- changing ------------------------------------------------------------------------------------------

    def put_manifest(
        self, repository: str, reference: str, media_type: str, data: bytes, tags: Sequence[str] = ()
    ) -> tuple[Descriptor, str]:
        """Take a manifest or index; return its descriptor and the digest of its subject, if it has one.

        Everything a manifest needs must be there; an index may be sparse. Raises Problem.
        """
        document = _checked(data, media_type)
        descriptor: Descriptor = {"mediaType": document["mediaType"], "digest": "", "size": len(data)}
        if ":" in reference:
            try:
                verify_bytes(data, usable(reference), len(data), "manifest")
            except InvalidDigest as error:
                raise Problem("DIGEST_INVALID", str(error)) from None
            except KnarrError as error:
                raise Problem("DIGEST_INVALID", str(error)) from None
            descriptor["digest"] = reference
        else:
            tags = (reference, *tags)
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise Problem("TAG_INVALID", tag)
        with self.store.lock():
            missing = [one["digest"] for one in _needed(document) if not self.store.has(one["digest"], one["size"])]
            if missing:
                raise Problem("MANIFEST_BLOB_UNKNOWN", ", ".join(missing[:5]))
            put = self.store.put(data, descriptor if descriptor["digest"] else None, media_type=descriptor["mediaType"])
            bare: Descriptor = {"mediaType": descriptor["mediaType"], "digest": put["digest"], "size": len(data)}
            self.store.tag(f"{repository}@{bare['digest']}", bare)
            for tag in tags:
                self.store.tag(f"{repository}:{tag}", bare)
        return bare, str((document.get("subject") or {}).get("digest", ""))

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Take a tag away, or a manifest with all its tags in this repository. Raises Problem."""
        references = self.references(repository)
        if ":" not in reference:
            gone = [reference] if reference in references else []
        else:
            gone = [name for name, entry in references.items() if entry["digest"] == reference]
        if not gone:
            raise Problem("MANIFEST_UNKNOWN", f"{repository} {reference}")
        for name in gone:
            try:
                self.store.untag(f"{repository}{'@' if ':' in name else ':'}{name}")
            except NotFound:
                continue  # somebody else was faster

    def delete_blob(self, digest: str) -> None:
        """Remove a blob that no manifest needs. Raises Problem."""
        from knarr.content.gc import reachable

        with self.store.lock(shared=False):  # no manifest that needs it may come in between
            if not self.store.has(digest):
                raise Problem("BLOB_UNKNOWN", digest)
            if any(one["digest"] == digest for one in reachable(self.store, self.store.entries())):
                raise Problem("DENIED", f"{digest} is needed by a manifest; delete that first", status=405)
            self.store.delete(digest)


def split(name: str) -> tuple[str, str]:
    """(repository, tag or digest) of a name of the store; ("", "") for one that is no repository's."""
    repository, at, digest = name.partition("@")
    if at:
        return (repository.rpartition(":")[0] if ":" in repository.rpartition("/")[2] else repository), digest
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else ("", "")


def _checked(data: bytes, media_type: str) -> dict[str, Any]:
    """The document of a manifest, with its media type filled in. Raises Problem."""
    try:
        document = fastjson.loads(data, "manifest", limit=DOCUMENT_LIMIT)
    except SpecError as error:
        raise Problem("MANIFEST_INVALID", str(error)) from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise Problem("MANIFEST_INVALID", "schemaVersion is not 2")
    said = document.get("mediaType")
    given = media_type or said
    if not isinstance(given, str) or (said is not None and said != given):
        raise Problem("MANIFEST_INVALID", f"mediaType is {said!r}, Content-Type {media_type!r}")
    if given not in mediatypes.INDEXES and given not in mediatypes.MANIFESTS:
        raise Problem("MANIFEST_INVALID", f"{given!r} is not the type of a manifest or index")
    from knarr.spec.image_validate import parse_index, parse_manifest

    try:
        (parse_index if given in mediatypes.INDEXES else parse_manifest)(data, "manifest")
    except KnarrError as error:
        raise Problem("MANIFEST_INVALID", str(error)) from None
    document["mediaType"] = given
    return document


def _needed(document: dict[str, Any]) -> Iterator[Descriptor]:
    """The blobs that must be there before a manifest: its config and its layers, but those kept elsewhere."""
    if document["mediaType"] in mediatypes.INDEXES:
        return
    for one in (document["config"], *document.get("layers", ())):
        if not one.get("urls"):
            yield one


def _listed(entry: Descriptor, document: dict[str, Any]) -> Descriptor:
    """A referrer as the list shows it (distribution-spec, "Listing Referrers")."""
    listed: Descriptor = {"mediaType": entry["mediaType"], "digest": entry["digest"], "size": entry["size"]}
    artifact = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    if artifact:
        listed["artifactType"] = artifact
    if document.get("annotations"):
        listed["annotations"] = document["annotations"]
    return listed

"""From what a reference means to one manifest: platforms, nested indexes, embedded data, one document at a time.

Every document is verified before it is parsed and must be what its descriptor says it is (docs/security.md I11).
"""

from __future__ import annotations

from knarr.base.errors import DigestMismatch, FileError, FormatError, NotFound, SpecError, SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.content.digest import usable
from knarr.content.names import printable, some
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import read_all, verify_bytes
from knarr.image.platform import Platform, accepted, platform_of
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.content.store import Store
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

NESTING_LIMIT = 4
"""Levels of indexes below the first that are searched."""

OPENED_LIMIT = 32
"""Indexes, manifests and configs opened in search of a platform."""


class Resolved(Record):
    """The manifest that was found: its descriptor, its parsed form, and the bytes of documents read on the way.

    ``index`` is the digest of the index the name meant, "" when it meant the manifest itself; ``documents`` maps
    digest to bytes (the manifest's own, perhaps the config's).
    """

    descriptor: Descriptor
    manifest: dict[str, Any]
    index: str
    documents: dict[str, bytes]


def read_blob(source: ImageSource, descriptor: Descriptor, store: Store | None = None) -> bytes:
    """Return the verified bytes of a document: out of the descriptor's own ``data``, the store, or the source.

    Raises FormatError when it has more than 4 MiB, before anything is opened; what the source raises.
    """
    kept = embedded(descriptor)
    if kept is not None:
        return kept
    digest, size = usable(descriptor["digest"]), descriptor["size"]
    what = f"{kind_of(descriptor)} {digest}"
    if size > DOCUMENT_LIMIT:
        raise FormatError(what, "", f"it has {size} bytes, at most {DOCUMENT_LIMIT} are read")
    if store is not None and store.has(digest, size):
        try:
            return store.read_blob(descriptor)
        except (DigestMismatch, FileError, NotFound):
            pass  # damaged: the source has it better
    return read_all(source.open_blob(descriptor), digest, size, DOCUMENT_LIMIT, what)


def embedded(descriptor: Descriptor) -> bytes | None:
    """Return the bytes a descriptor carries in ``data``, verified; None when it carries none.

    Raises SpecError for what is not base64, SizeMismatch, DigestMismatch (descriptor.md, Embedded Content).
    """
    text = descriptor.get("data")
    if text is None:
        return None
    import binascii

    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise SpecError(f"descriptor {descriptor['digest']}", [SpecFinding("/data", "must be base64")]) from None
    verify_bytes(data, descriptor["digest"], descriptor["size"], f"embedded data of {descriptor['digest']}")
    return data


def kind_of(descriptor: Descriptor) -> str:
    """Name the kind of thing a descriptor means, for errors."""
    media_type = descriptor["mediaType"]
    if media_type in mediatypes.INDEXES:
        return "index"
    if media_type in mediatypes.MANIFESTS:
        return "manifest"
    return "config" if media_type in mediatypes.CONFIGS else "blob"


def refuse_schema1(media_type: str, what: str) -> None:
    """Raise Unsupported for Docker's first image format."""
    if media_type in mediatypes.SCHEMA1:
        hint = "pull and push it with Docker 1.10 or newer, or skopeo"
        raise Unsupported(f"schema 1 image {what}", "Docker replaced it in 2016", hint=hint)


class _Search:
    """One search for a manifest; counts what it opens."""

    def __init__(self, source: ImageSource, wanted: Platform, store: Store | None) -> None:
        self.source = source
        self._store = store
        self.wanted = wanted
        self.seen: list[str] = []  # platforms that exist
        self.documents: dict[str, bytes] = {}
        self._opened = 0

    def read(self, descriptor: Descriptor) -> bytes:
        digest = usable(descriptor["digest"])
        if digest not in self.documents:
            self._opened += 1
            if self._opened > OPENED_LIMIT:
                why = f"more than {OPENED_LIMIT} indexes and manifests would have to be read to find {self.wanted}"
                raise Unsupported(f"image {self.source.what}", why)
            self.documents[digest] = read_blob(self.source, descriptor, self._store)
        return self.documents[digest]

    def manifest(self, descriptor: Descriptor) -> dict[str, Any]:
        from knarr.spec.image_validate import parse_manifest

        return dict(parse_manifest(self.read(descriptor), f"manifest {descriptor['digest']}", descriptor["mediaType"]))

    def fits(self, descriptor: Descriptor) -> bool:
        """Say whether a manifest without a stated platform runs here, by its config; what is no image always does."""
        from knarr.spec.image_validate import parse_config

        config = self.manifest(descriptor)["config"]
        if config["mediaType"] not in mediatypes.CONFIGS:
            return True
        platform = platform_of(parse_config(self.read(config), f"config {config['digest']}"))
        self.see(platform)
        return platform in accepted(self.wanted)

    def see(self, platform: Platform) -> None:
        if str(platform) not in self.seen:
            self.seen.append(str(platform))

    def among(self, entries: list[Descriptor], depth: int) -> Descriptor | None:
        """Return the manifest among an index's entries, None when there is none for the platform.

        A stated platform decides first, the best variant before others and the first of equals; then what lies
        in nested indexes; then manifests that state nothing.
        """
        ranks = accepted(self.wanted)
        best: tuple[int, Descriptor] | None = None
        indexes, unstated = [], []
        for entry in entries:
            media_type = entry["mediaType"]
            refuse_schema1(media_type, self.source.what)
            stated = entry.get("platform")
            if media_type in mediatypes.INDEXES:
                if stated is None or platform_of(stated) in ranks:
                    indexes.append(entry)
                else:
                    self.see(platform_of(stated))
            elif media_type in mediatypes.MANIFESTS:
                if stated is None:
                    unstated.append(entry)
                    continue
                platform = platform_of(stated)
                if platform in ranks:
                    rank = ranks.index(platform)
                    if best is None or rank < best[0]:
                        best = rank, entry
                elif platform.os != "unknown":  # attestations say unknown/unknown
                    self.see(platform)
        if best is not None:
            return best[1]
        for entry in indexes:
            found = self.below(entry, depth + 1)
            if found is not None:
                return found
        for entry in unstated:
            if self.fits(entry):
                return entry
        return None

    def below(self, index: Descriptor, depth: int) -> Descriptor | None:
        from knarr.spec.image_validate import parse_index

        if depth > NESTING_LIMIT:
            raise Unsupported(f"image {self.source.what}", f"its indexes are nested deeper than {NESTING_LIMIT} levels")
        entries = parse_index(self.read(index), f"index {index['digest']}", index["mediaType"])["manifests"]
        return self.among(entries, depth)


def resolve(source: ImageSource, wanted: Platform, store: Store | None = None) -> Resolved:
    """Find the manifest of ``source`` for a platform and return it, verified and parsed.

    Documents that ``store`` has are read there.
    Raises NotFound listing the platforms there are; Unsupported for schema 1 and for indexes without end; SpecError,
    SizeMismatch, DigestMismatch for documents that are not what they should be; what the source raises.
    """
    roots = source.roots()
    search = _Search(source, wanted, store)
    for root in roots:
        refuse_schema1(root["mediaType"], source.what)
        if root["mediaType"] not in mediatypes.INDEXES and root["mediaType"] not in mediatypes.MANIFESTS:
            raise Unsupported(f"media type {printable(root['mediaType'])!r} of {source.what}", "it is not an image's")
    found = search.among(roots, 0) if len(roots) > 1 else _single(search, roots[0])
    if found is None:
        there = some(search.seen, "no other platform either")
        raise NotFound("image", f"{source.what} for {wanted}", among=there, hint=_hint(search.seen))
    index = roots[0]["digest"] if roots[0]["mediaType"] in mediatypes.INDEXES else ""
    return Resolved(found, search.manifest(found), index, search.documents)


def _single(search: _Search, root: Descriptor) -> Descriptor | None:
    if root["mediaType"] in mediatypes.INDEXES:
        return search.below(root, 0)
    return root if search.fits(root) else None


def _hint(seen: list[str]) -> str:
    return f"ask for one with --platform {seen[0]}" if seen else ""

"""What the store holds, as images: list, look up by name, digest or id, describe, remove.

An image's id is the digest of its config, as Docker and Podman have it; an id or digest may be shortened to a
prefix that fits one image only.
"""

from __future__ import annotations

from knarr.base.errors import InUse, InvalidReference, KnarrError, NotFound, Unsupported
from knarr.base.record import Record
from knarr.content.facts import facts_of
from knarr.content.names import name_of, printable, some
from knarr.image.platform import Platform, platform_of
from knarr.image.reference import parse_name
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from knarr.content.facts import Facts
    from knarr.content.store import Store
    from knarr.spec.image import Descriptor

_HEX = frozenset("0123456789abcdef")
_SHORTEST = 4  # characters of an id that are taken for one
INDEX_DIGEST = "dev.knarr.index.digest"
"""Annotation in the store's index.json: the digest of the index the name meant where it was pulled from."""


class Image(Record):
    """One image of the store. ``config`` is None for an artifact, which cannot be run."""

    name: str
    descriptor: Descriptor
    manifest: dict[str, Any]
    config: dict[str, Any] | None

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return self.descriptor["digest"]

    @property
    def id(self) -> str:
        """The digest of the config."""
        digest: str = self.manifest["config"]["digest"]
        return digest

    @property
    def layers(self) -> list[Descriptor]:
        """The descriptors of the layers, lowest first."""
        layers: list[Descriptor] = self.manifest["layers"]
        return layers

    @property
    def diff_ids(self) -> list[str]:
        """The digests of the uncompressed layers, lowest first; raises Unsupported for an artifact."""
        ids: list[str] = self.image_config()["rootfs"]["diff_ids"]
        return ids

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers as stored; a layer used twice counts once."""
        parts = {part["digest"]: part["size"] for part in (self.descriptor, self.manifest["config"], *self.layers)}
        return sum(parts.values())

    @property
    def created(self) -> str:
        """When it was made, RFC 3339, "" when it does not say."""
        return str(
            (self.config or {}).get("created") or self.manifest.get("annotations", {}).get(mediatypes.CREATED, "")
        )

    @property
    def platform(self) -> Platform:
        """What it runs on; of an artifact, what the index said, or nothing."""
        return platform_of(self.config if self.config is not None else self.descriptor.get("platform", {}))

    def image_config(self) -> dict[str, Any]:
        """Return the config of an image that can be run; raises Unsupported for an artifact."""
        if self.config is None:
            kind = self.manifest.get("artifactType") or self.manifest["config"]["mediaType"]
            raise Unsupported(f"running {self.name or self.digest}", f"it is {printable(kind)!r}, not an image")
        return self.config


def load(store: Store, descriptor: Descriptor, name: str = "", platform: Platform | None = None) -> Image:
    """Read manifest and config of a descriptor in the store; raises NotFound, SpecError, DigestMismatch, ….

    Of an index it is the image for ``platform`` (this machine's, if None; then the first that is there, if none fits).
    """
    from knarr.spec.image_validate import parse_config, parse_manifest

    if descriptor["mediaType"] in mediatypes.INDEXES:
        name = name or name_of(descriptor)
        descriptor = _in_index(store, descriptor, platform)
    manifest = parse_manifest(store.read_blob(descriptor), f"manifest {descriptor['digest']}", descriptor["mediaType"])
    config = None
    if manifest["config"]["mediaType"] in mediatypes.CONFIGS:
        config = parse_config(store.read_blob(manifest["config"]), f"config {manifest['config']['digest']}")
    return Image(name or name_of(descriptor), descriptor, dict(manifest), None if config is None else dict(config))


def _in_index(store: Store, index: Descriptor, platform: Platform | None) -> Descriptor:
    """Return the entry of one image of an index in the store."""
    from knarr.content.gc import reachable
    from knarr.image.platform import host_platform
    from knarr.image.resolve import resolve
    from knarr.image.storesource import StoreSource

    try:
        found = resolve(StoreSource(store, [index], name_of(index)), platform or host_platform(), store).descriptor
    except NotFound:
        if platform is not None:
            raise
        there = [
            one
            for one in reachable(store, [index])
            if one["mediaType"] in mediatypes.MANIFESTS and store.has(one["digest"], one["size"])
        ]
        if not there:
            raise
        found = there[-1]  # reachable goes through an index from its end
    entry: Descriptor = {**found, "annotations": {**index.get("annotations", {}), INDEX_DIGEST: index["digest"]}}
    return entry


class Listed(Record):
    """What a list shows of one image; see ``Image``. ``layers`` is how many."""

    name: str
    digest: str
    id: str
    created: str
    size: int
    platform: Platform
    labels: Mapping[str, str]
    layers: int


def images(store: Store) -> tuple[list[Listed], list[KnarrError]]:
    """Return every named or unnamed image in the order of index.json, and the errors of those that are damaged.

    What an earlier list has read is not read again while its file has the same size and time.
    """
    facts = facts_of(store)
    found, broken = [], []
    for entry in store.entries():
        if not _is_image(entry):
            continue
        try:
            found.append(_listed(facts, _as_manifest(store, entry)))
        except KnarrError as error:
            broken.append(error)
    facts.save()
    return found, broken


def _as_manifest(store: Store, entry: Descriptor) -> Descriptor:
    return _in_index(store, entry, None) if entry["mediaType"] in mediatypes.INDEXES else entry


def _listed(facts: Facts, entry: Descriptor) -> Listed:
    manifest = facts.manifest(entry)
    size = entry["size"] + sum(manifest["parts"].values())
    config = None if manifest["kind"] else facts.config(manifest["config"], manifest["configSize"])
    return Listed(
        name_of(entry),
        entry["digest"],
        manifest["config"],
        (config["created"] if config else "") or manifest["created"],
        size,
        platform_of(config["platform"] if config else entry.get("platform", {})),
        config["labels"] if config else {},
        manifest["layers"],
    )


def stacks(store: Store) -> set[tuple[str, ...]]:
    """Return the layers of every image, as diffIDs, lowest first; of one that cannot be read, none."""
    facts, found = facts_of(store), set()
    rows = facts.rows
    for entry in store.entries():
        row = rows.get(entry["digest"])
        if row is None or "artifactType" in entry:
            pass  # it takes a closer look
        elif row.get("type") == entry["mediaType"] and not row["kind"]:
            config = rows.get(row["config"])
            if config is not None and "diffIds" in config:
                found.add(tuple(config["diffIds"]))
                continue
        if not _is_image(entry):
            continue
        try:
            manifest = facts.manifest(_as_manifest(store, entry), look=False)
            if manifest["kind"]:
                continue
            found.add(tuple(facts.config(manifest["config"], manifest["configSize"], look=False)["diffIds"]))
        except KnarrError:
            continue
    facts.save()
    return found - {()}


def names_for(store: Store, digest: str) -> int:
    """Return how many entries of index.json mean a manifest, as itself or as this machine's image of an index."""
    count = 0
    for entry in store.entries():
        try:
            count += _is_image(entry) and _as_manifest(store, entry)["digest"] == digest
        except KnarrError:
            continue
    return count


def _is_image(entry: Descriptor) -> bool:
    """Say whether an entry of index.json stands for an image: not if it only refers to one."""
    if entry["mediaType"] in mediatypes.INDEXES:
        return bool(name_of(entry))  # without a name it is another tool's
    return entry["mediaType"] in mediatypes.MANIFESTS and not (entry.get("artifactType") and not name_of(entry))


def lookup(store: Store, text: str, platform: Platform | None = None) -> Image:
    """Return the image of a name, of name@digest, or of the start of an id or digest.

    Of a name that means several platforms it is the one for ``platform``; see ``load``.

    Raises NotFound listing some names there are, InvalidReference when the text fits several images or is
    neither a name nor an id.
    """
    return load(store, _find(store, text)[0], platform=platform)


def entries_of(store: Store, text: str) -> list[Descriptor]:
    """Return the entries of index.json that ``text`` means; as ``lookup``, which reads what they mean."""
    return _find(store, text)


def _find(store: Store, text: str) -> list[Descriptor]:
    """Return the entries ``text`` means: one for a name, all of one image (by manifest) for an id."""
    try:
        ref = parse_name(text)
    except InvalidReference:
        if not _prefix(text):
            raise
        named = []
    else:
        named = [entry for entry in store.named(ref.name) if _is_image(entry)]
        if not named and ref.digest:
            start = f"{ref.registry}/{ref.repository}"
            named = [
                entry
                for name, entry in store.tags().items()
                if name.startswith((f"{start}:", f"{start}@"))
                and ref.digest in {entry["digest"], entry.get("annotations", {}).get(INDEX_DIGEST)}
            ][:1]
    by_id = _with_prefix(store, text) if _prefix(text) else []
    digests = {entry["digest"] for entry in (*named, *by_id)}
    if len(digests) > 1:
        shown = some(sorted(digests), "")
        kind = "a name and the start of an id" if named else "the start of several ids"
        raise InvalidReference(text, f"it is ambiguous: {kind}", hint=f"it fits {shown}")
    if named or by_id:
        return named or by_id
    names = sorted(name for name, entry in store.tags().items() if _is_image(entry))
    raise NotFound("image", text, among=some(names, "nothing in the store"))


def _prefix(text: str) -> str:
    """Return the hexadecimal digits of an id or digest, or of the start of one; "" when it is neither."""
    digits = text.removeprefix("sha256:")
    return digits if _SHORTEST <= len(digits) <= 64 and _HEX.issuperset(digits) else ""


def _with_prefix(store: Store, text: str) -> list[Descriptor]:
    start, facts = f"sha256:{_prefix(text)}", facts_of(store)
    found = [
        entry
        for entry in store.entries()
        if _is_image(entry) and (entry["digest"].startswith(start) or _id(store, facts, entry).startswith(start))
    ]
    facts.save()
    return found


def _id(store: Store, facts: Facts, entry: Descriptor) -> str:
    """Return the image id of an entry, "" when its manifest cannot be read (then it has none to be found by)."""
    try:
        return facts.manifest(_as_manifest(store, entry), look=False)["config"]
    except KnarrError:
        return ""


class Removed(Record):
    """What ``remove`` took away: names, blobs, and bytes freed."""

    names: tuple[str, ...]
    digests: tuple[str, ...]
    size: int


def remove(
    store: Store, text: str, *, force: bool = False, keep: Collection[str] = (), timeout: float = 60.0
) -> Removed:
    """Take a name, or with an id all names, away, and every blob nothing needs any more.

    ``keep`` are digests of manifests still in use (by containers, the engine knows). Raises NotFound,
    InvalidReference as ``lookup`` does; InUse when an id has several names and not ``force``, or when others use
    the store for ``timeout`` seconds (the names are gone then, the blobs stay until the next collection).
    """
    entries = _find(store, text)
    names = [name for entry in entries if (name := name_of(entry))]
    if len(names) > 1 and not force:
        raise InUse("image", text, f"several names: {some(names, '')}", hint="remove them by name, or use force")
    if len(names) == len(entries):
        with store.changing() as changes:
            for name in names:
                changes.untag(name)
    else:  # another tool put it there without a name
        store.forget(entries[0]["digest"])
    collected = store.gc(frozenset(keep), timeout=timeout)
    return Removed(tuple(names), collected.digests, collected.size)


def describe(image: Image) -> dict[str, Any]:
    """Return everything about an image as one JSON-ready object, for ``knarr inspect``."""
    config = image.config or {}
    return {
        "name": image.name,
        "digest": image.digest,
        "id": image.id,
        "mediaType": image.descriptor["mediaType"],
        "platform": str(image.platform) if image.platform.os else None,
        "created": image.created or None,
        "size": image.size,
        "layers": [
            {"digest": layer["digest"], "diffId": diff_id, "mediaType": layer["mediaType"], "size": layer["size"]}
            for layer, diff_id in zip(
                image.layers, image.diff_ids if image.config else [None] * len(image.layers), strict=True
            )
        ],
        "config": config.get("config") or {},
        "history": config.get("history") or [],
        "annotations": image.manifest.get("annotations", {}),
        "indexDigest": image.descriptor.get("annotations", {}).get(INDEX_DIGEST),
    }

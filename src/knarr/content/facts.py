r"""What manifests and configs say, remembered by their digest: a list of ten thousand images opens no file of theirs.

A digest fixes the content, so what was once read out of a verified document stays true for good; it says nothing about
whether the document is still there and undamaged. Therefore each fact carries the size and the time of change of the
file it was read from, and whoever asks for more than references has them compared.

    .facts    <sha256 of the rest>\n{"version": 1, "documents": {digest: facts, …}}

The file is a cache: missing, damaged, of another version or unwritable, the documents are read instead. It is written
when a sixteenth of what it should have is new, so a small store has none.
"""

from __future__ import annotations

import os

from knarr.base import fastjson
from knarr.base.errors import FileError
from knarr.base.files import read_file, write_atomic
from knarr.content.digest import sha256_of
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet
    from typing import Any, TypedDict

    from knarr.content.store import Store
    from knarr.spec.image import Descriptor

    class ManifestFacts(TypedDict):
        """Of a manifest. ``parts`` are config and layers, by digest, with their sizes.

        ``kind`` is "" for an image, else an artifact's type. ``nested``: a part is itself a manifest or index.
        """

        stamp: list[int]
        type: str
        config: str
        configType: str
        configSize: int
        parts: dict[str, int]
        nested: bool
        layers: int
        kind: str
        created: str

    class ConfigFacts(TypedDict):
        """Of an image config: what a list shows."""

        stamp: list[int]
        created: str
        platform: dict[str, str]
        labels: dict[str, str]
        diffIds: list[str]


VERSION = 1
FILE = ".facts"
_LIMIT = 64 << 20
_LARGEST = 4096  # bytes of one document's facts; a document with more is read each time
_FEW = 16  # this many new ones are not worth a file
_KEPT = 8
_SAID = ("os", "architecture", "variant")

_known: dict[str, Facts] = {}


def facts_of(store: Store) -> Facts:
    """Return what this process knows of a store's documents."""
    found = _known.get(store.path)
    if found is None:
        if len(_known) >= _KEPT:
            _known.clear()
        found = _known[store.path] = Facts(store)
    return found


class Facts:
    """The facts of one store; see the module. Threads may share it: two may read one document, and find the same."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._blobs = f"{store.path}/{mediatypes.BLOBS_DIRECTORY}"
        self._rows: dict[str, Any] = _read(f"{store.path}/{FILE}")
        self._changes = 0  # rows that the file lacks or has in vain

    @property
    def rows(self) -> Mapping[str, Any]:
        """All rows by digest, as they were read once: for who goes through thousands. Others use the methods."""
        return self._rows

    def manifest(self, descriptor: Descriptor, *, look: bool = True) -> ManifestFacts:
        """Return the facts of a manifest that is there; raises as reading it does, NotFound, SpecError, ….

        Damage is noticed unless it kept the file's size and time (``Store.open_blob`` notices any); without ``look``
        what was read once is believed.
        """
        row: ManifestFacts | None = self._current(descriptor) if look else self._rows.get(descriptor["digest"])
        if row is not None and row.get("type") == descriptor["mediaType"]:
            return row
        made: ManifestFacts = self._add(descriptor, _manifest_facts)
        return made

    def config(self, digest: str, size: int, *, look: bool = True) -> ConfigFacts:
        """Return the facts of an image config; as ``manifest``."""
        descriptor: Descriptor = {"mediaType": mediatypes.CONFIG, "digest": digest, "size": size}
        row: ConfigFacts | None = self._current(descriptor) if look else self._rows.get(digest)
        if row is not None and "diffIds" in row:
            return row
        made: ConfigFacts = self._add(descriptor, _config_facts)
        return made

    def save(self, keep: AbstractSet[str] | None = None) -> None:
        """Write the file if enough is new in it; with ``keep``, all digests there are, without the others' facts."""
        if keep is not None:
            for digest in self._rows.keys() - keep:
                self._rows.pop(digest, None)
                self._changes += 1
        if self._changes <= max(_FEW, len(self._rows) // 16):
            return
        rows = dict(self._rows)
        body = fastjson.dumps({"version": VERSION, "documents": rows})
        if len(body) > _LIMIT - 100:
            return
        try:
            write_atomic(f"{self._store.path}/{FILE}", sha256_of(body).encode() + b"\n" + body)
        except FileError:
            return  # a store that is read-only, or full, is read as if there were none
        self._changes = 0

    def _current(self, descriptor: Descriptor) -> Any:
        """The row of a document whose file has the size and time it was read with."""
        digest = descriptor["digest"]
        row = self._rows.get(digest)
        if row is None or row["stamp"][0] != descriptor["size"]:
            return None
        try:
            found = os.stat(f"{self._blobs}/{digest.replace(':', '/', 1)}", follow_symlinks=False)
        except OSError:
            return None
        return row if [found.st_size, found.st_mtime_ns] == row["stamp"] else None

    def _add(self, descriptor: Descriptor, read: Callable[[Descriptor, bytes], Any]) -> Any:
        data = self._store.read_blob(descriptor)
        row = read(descriptor, data)
        try:
            found = os.stat(self._store.blob_path(descriptor["digest"]), follow_symlinks=False)
        except OSError:  # gone meanwhile, or a network file system that fails: nothing to compare with later
            row["stamp"] = [-1, -1]
            return row
        row["stamp"] = [found.st_size, found.st_mtime_ns]
        if len(fastjson.dumps(row)) <= _LARGEST:
            self._rows[descriptor["digest"]] = row
            self._changes += 1
        return row


def _manifest_facts(descriptor: Descriptor, data: bytes) -> Any:
    from knarr.spec.image_validate import parse_manifest

    kind = descriptor["mediaType"]
    manifest = parse_manifest(data, f"manifest {descriptor['digest']}", kind)
    config, layers = manifest["config"], manifest["layers"]
    is_image = config["mediaType"] in mediatypes.CONFIGS
    parts = [config, *layers]
    return {
        "type": kind,
        "config": config["digest"],
        "configType": config["mediaType"],
        "configSize": config["size"],
        "parts": {part["digest"]: part["size"] for part in parts},
        "nested": any(part["mediaType"] in mediatypes.MANIFESTS | mediatypes.INDEXES for part in parts),
        "layers": len(layers),
        "kind": "" if is_image else manifest.get("artifactType") or config["mediaType"],
        "created": manifest.get("annotations", {}).get(mediatypes.CREATED, ""),
    }


def _config_facts(descriptor: Descriptor, data: bytes) -> Any:
    from knarr.spec.image_validate import parse_config

    config = parse_config(data, f"config {descriptor['digest']}")
    return {
        "created": config.get("created") or "",
        "platform": {name: config[name] for name in _SAID if config.get(name)},
        "labels": (config.get("config") or {}).get("Labels") or {},
        "diffIds": config["rootfs"]["diff_ids"],
    }


def _read(path: str) -> dict[str, Any]:
    """Return the rows of a file, none when it cannot be believed."""
    try:
        data = read_file(path, _LIMIT)
    except FileError:
        return {}
    digest, _, body = data.partition(b"\n")
    if sha256_of(body).encode() != digest:
        return {}
    document = fastjson.loads_own(body)
    rows: dict[str, Any] = document["documents"] if document["version"] == VERSION else {}
    return rows

"""Images made in memory, right or wrong, and written as the layouts and archives that sources read."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import zstandard

from knarr.image.pull import copy
from knarr.image.reference import parse_reference
from knarr.image.source import open_source
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from pathlib import Path

    from knarr.content.store import Store
    from knarr.image.catalog import Image as Stored

COMPRESSED = {"": mediatypes.LAYER, "gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}


def digest_of(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


def tar_of(entries: dict[str, bytes]) -> bytes:
    """A tar of plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def layer_of(name: str, size: int = 1000, seed: int = 0) -> bytes:
    """A layer with one file of random bytes."""
    return tar_of({name: random.Random(seed or name).randbytes(size)})


def compress(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if kind == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


class Image:
    """One image: blobs by digest, and the descriptor of its manifest. ``put`` adds a blob, ``seal`` writes anew."""

    def __init__(
        self, *layers: bytes, kind: str = "gzip", platform: str = "linux/amd64", config: dict[str, Any] | None = None
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        self.plain = list(layers)
        parts = platform.split("/")
        self.config: dict[str, Any] = {
            "created": "2026-01-02T03:04:05Z",
            "os": parts[0],
            "architecture": parts[1],
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": None},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "history": [{"created_by": "a test"}],
            **({"variant": parts[2]} if len(parts) > 2 else {}),
            **(config or {}),
        }
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "config": {},
            "layers": [self.put(compress(layer, kind), COMPRESSED[kind]) for layer in layers],
        }
        self.descriptor: dict[str, Any] = {}
        self.seal()

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def seal(self, **changes: Any) -> Image:
        """Write config and manifest, the manifest with ``changes``, and point the descriptor there."""
        self.manifest["config"] = self.put(json.dumps(self.config).encode(), mediatypes.CONFIG)
        self.manifest.update(changes)
        media_type = self.manifest.get("mediaType", mediatypes.MANIFEST)
        self.descriptor = self.put(json.dumps(self.manifest).encode(), media_type)
        return self

    def index(self, *entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Add an index of ``entries`` and return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": list(entries), **changes}
        return self.put(json.dumps(document).encode(), mediatypes.INDEX)


def platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def named(descriptor: dict[str, Any], name: str) -> dict[str, Any]:
    annotations = {**descriptor.get("annotations", {}), mediatypes.REF_NAME: name}
    return {**descriptor, "annotations": annotations}


def layout_files(entries: list[dict[str, Any]], *images: Image) -> dict[str, bytes]:
    """The files of a layout with ``entries`` in its index."""
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
    }
    for image in images:
        for digest, data in image.blobs.items():
            files["blobs/" + digest.replace(":", "/")] = data
    return files


def fetch(text: str, store: Store, **options: Any) -> Stored:
    """Copy the image that a reference to a file or directory names into a store."""
    source = open_source(parse_reference(text))
    try:
        return copy(source, store, source.names(), **options)
    finally:
        source.close()


def write_layout(path: Path, entries: list[dict[str, Any]], *images: Image) -> Path:
    for name, data in layout_files(entries, *images).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def docker_files(*tags: str, image: Image, newer: bool = False, kind: str = "") -> dict[str, bytes]:
    """The files of ``docker save``: old (ID/layer.tar) or ``newer`` (blobs/sha256/HEX)."""
    config = json.dumps(image.config).encode()
    name = f"blobs/sha256/{digest_of(config)[7:]}" if newer else f"{digest_of(config)[7:]}.json"
    files = {name: config}
    layers = []
    for number, layer in enumerate(image.plain):
        data = compress(layer, kind)
        member = f"blobs/sha256/{digest_of(data)[7:]}" if newer else f"{number:064}/layer.tar"
        files[member] = data
        layers.append(member)
    entry = {"Config": name, "RepoTags": list(tags) or None, "Layers": layers}
    return {**files, "manifest.json": json.dumps([entry]).encode()}

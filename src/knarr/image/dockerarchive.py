"""Images in what ``docker save`` writes: a tar with manifest.json, image configs and layers.

    manifest.json   [{"Config": NAME, "RepoTags": [NAME:TAG, …], "Layers": [NAME, …]}, …]

Both forms are read: the old one (ID/layer.tar, HEX.json) and the one since Docker 25, which is also an OCI
layout. An archive has no manifests of its own kind, so an OCI manifest is made, the same for the same archive on
every machine: config and layers keep their bytes, a layer's media type is what its first bytes show. Only names
of members are followed; nothing is extracted (docs/security.md I1).
"""

from __future__ import annotations

import io

from knarr.base import fastjson
from knarr.base.errors import InvalidReference, KnarrError, NotFound, SpecError, SpecFinding, Unsupported
from knarr.content.compress import sniff
from knarr.content.digest import Digest, hasher, sha256_of
from knarr.content.names import some
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import CHUNK, VerifiedReader
from knarr.image.files import ArchiveFiles, read_document
from knarr.image.reference import local_name, parse_name
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.image.reference import Reference
    from knarr.spec.image import Descriptor

_DOCUMENT = "manifest.json"
_TYPES = {"": mediatypes.LAYER, "gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}


class DockerArchive:
    """One image of a docker-archive. See ``source.ImageSource``."""

    def __init__(self, ref: Reference, files: ArchiveFiles | None = None, position: int = -1) -> None:
        """Read the archive ``ref`` names, or ``files``, which is closed with this; ``position``: that image of it."""
        self.what = str(ref)
        self._position = position
        self._ref = ref
        self._files = files or ArchiveFiles(ref.path)
        try:
            entries = self._manifest()
            self.count = len(entries)
            self._entry = self._choose(entries)
            self._members: dict[str, str] = {}  # digest -> member
            self._config = self._read_config()
            self._descriptor, self._bytes = self._make_manifest()
        except BaseException:
            self._files.close()
            raise

    def _manifest(self) -> list[dict[str, Any]]:
        where = f"{self._ref.path}/{_DOCUMENT}"
        try:
            data = read_document(self._files, _DOCUMENT, DOCUMENT_LIMIT)
        except NotFound:
            hint = ""
            if mediatypes.LAYOUT_FILE in self._files:
                hint = f"it is an OCI archive: name it oci-archive:{self._ref.path}"
            elif "repositories" in self._files:
                hint = "Docker before 1.10 wrote it; load and save it with a newer one"
            raise NotFound("a docker archive's manifest.json in", self._ref.path, hint=hint) from None
        if "repositories" in self._files and self._files.find("repositories")[1] > DOCUMENT_LIMIT:
            raise SpecError(
                f"{self._ref.path}/repositories", [SpecFinding("", f"has more than {DOCUMENT_LIMIT} bytes")]
            )
        value = fastjson.loads(data, where)
        findings = _findings(value)
        if findings:
            raise SpecError(where, findings)
        entries: list[dict[str, Any]] = value
        return entries

    def _choose(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        if self._position >= 0:
            return entries[self._position]
        tags = [tag for entry in entries for tag in entry.get("RepoTags") or []]
        if self._ref.name:
            for entry in entries:
                if self._ref.name in _full_names(entry):
                    return entry
            among = some(tags, f"{len(entries)} without a name")
            raise NotFound(f"image {self._ref.familiar} in", self._ref.path, among=among)
        if len(entries) != 1:
            hint = f"name one as {self._ref}:NAME; there is {some(tags, 'none with a name')}"
            raise InvalidReference(self.what, f"it holds {len(entries)} images", hint=hint)
        return entries[0]

    def _read_config(self) -> bytes:
        name = self._entry["Config"]
        data = read_document(self._files, name, DOCUMENT_LIMIT)
        self._members[sha256_of(data)] = name
        return data

    def _make_manifest(self) -> tuple[Descriptor, bytes]:
        from knarr.spec.image_validate import parse_config

        where = f"{self._ref.path}/{self._entry['Config']}"
        config = parse_config(self._config, where)
        diff_ids = config["rootfs"]["diff_ids"]
        layers = self._entry["Layers"]
        if len(diff_ids) != len(layers):
            why = f"names {len(diff_ids)} layers, {_DOCUMENT} names {len(layers)}"
            raise SpecError(where, [SpecFinding("/rootfs/diff_ids", why)])
        manifest = {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "config": {
                "mediaType": mediatypes.CONFIG,
                "digest": sha256_of(self._config),
                "size": len(self._config),
            },
            "layers": [self._layer(name, diff_id) for name, diff_id in zip(layers, diff_ids, strict=True)],
        }
        data = fastjson.dumps(manifest)
        return {"mediaType": mediatypes.MANIFEST, "digest": sha256_of(data), "size": len(data)}, data

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        stream, size = self._files.open(name)
        with_head = stream.read(512)
        kind = sniff(with_head)
        media_type = _TYPES.get(kind)
        if media_type is None:
            raise Unsupported(f"{kind} layer {name} in {self._ref.path}", "knarr reads gzip, zstd and plain layers")
        if not kind:
            # The promise of the config; whoever copies the layer checks it against the bytes.
            digest = Digest.parse(diff_id)
        else:
            made = hasher("sha256")
            while with_head:
                made.update(with_head)
                with_head = stream.read(CHUNK)
            digest = Digest.parse(f"sha256:{made.hexdigest()}")
        self._members[digest] = name
        return {"mediaType": media_type, "digest": digest, "size": size}

    def roots(self) -> list[Descriptor]:
        """Return the descriptor of the manifest made for the image."""
        return [self._descriptor]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader; raises NotFound, and when read SizeMismatch, DigestMismatch."""
        digest = descriptor["digest"]
        what = f"blob {digest} in {self._ref.path}"
        if digest == self._descriptor["digest"]:
            return VerifiedReader(io.BytesIO(self._bytes), digest, descriptor["size"], what)
        if digest not in self._members:
            raise NotFound("blob", f"{digest} in {self._ref.path}")
        name = self._members[digest]
        stream, _ = self._files.open(name)
        return VerifiedReader(stream, digest, descriptor["size"], f"{name} in {self._ref.path}")

    def names(self) -> list[str]:
        """Return the name asked for, else all names the archive gives the image, else localhost/FILE:latest."""
        if self._ref.name:
            return [self._ref.name]
        if self._position >= 0:
            return sorted(_full_names(self._entry))
        return sorted(_full_names(self._entry)) or [local_name(self._ref.path, "")]

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        """Let the archive go."""
        self._files.close()


def _findings(value: Any) -> list[SpecFinding]:
    """Check the shape of manifest.json."""
    if not isinstance(value, list) or not value:
        return [SpecFinding("", "must be an array with at least one image")]
    if len(value) > 10_000:
        return [SpecFinding("", f"names {len(value)} images, at most 10000 are read")]
    found = []
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            found.append(SpecFinding(f"/{number}", "must be an object"))
            continue
        if not isinstance(entry.get("Config"), str) or not _plain(entry["Config"]):
            found.append(SpecFinding(f"/{number}/Config", "must name a file of the archive"))
        layers = entry.get("Layers")
        if layers is None:
            entry["Layers"] = layers = []  # an image without layers: Go writes null
        if not isinstance(layers, list) or not all(isinstance(name, str) and _plain(name) for name in layers):
            found.append(SpecFinding(f"/{number}/Layers", "must be an array of names of files of the archive"))
        tags = entry.get("RepoTags")
        if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
            found.append(SpecFinding(f"/{number}/RepoTags", "must be an array of names"))
    return found


def _plain(name: str) -> bool:
    """Say whether a member's name stays within the archive."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and name.isprintable()


def _full_names(entry: dict[str, Any]) -> set[str]:
    names = set()
    for tag in entry.get("RepoTags") or []:
        try:
            names.add(parse_name(tag).name)
        except KnarrError:
            continue  # not a name anybody could ask for
    return names

"""Checks of images, indexes, layouts and archives by the rules in ``rules.py``.

``validate`` runs all of them on whatever a reference names and returns all findings; it stops at nothing that can still
be looked at. The shapes of documents are ``spec/image_validate.py``'s, entries of layers are judged as
``layer/model.py`` applies them.
"""

from __future__ import annotations

import os

from knarr.base import fastjson
from knarr.base.errors import (
    DigestMismatch,
    FormatError,
    InvalidDigest,
    KnarrError,
    NotFound,
    SizeMismatch,
    SpecError,
    SpecFinding,
    Unsupported,
)
from knarr.content.digest import USABLE, Digest, hasher
from knarr.content.names import name_of
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import CHUNK
from knarr.engine.imaging.rules import GOARCH, GOOS, Finding
from knarr.image.platform import platform_of
from knarr.layer.model import Model
from knarr.layer.source import Layer as Stream
from knarr.spec import mediatypes
from knarr.spec.image_validate import (
    config_warnings,
    image_findings,
    matching_findings,
    parse_config,
    parse_index,
    parse_manifest,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.engine.imaging.blobs import Blobs
    from knarr.layer.tarball import Entry
    from knarr.spec.image import Descriptor

_REF = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class Validator:
    """Collects findings about what one root reaches; each digest is looked at once. ``layers``: read them too."""

    def __init__(self, blobs: Blobs, *, layers: bool = True) -> None:
        self.found: list[Finding] = []
        self._blobs = blobs
        self._layers = layers
        self._seen: set[str] = set()
        self._read: set[str] = set()  # layers whose bytes were found to be right

    def add(self, rule: str, where: str, at: str, why: str) -> None:
        finding = Finding(rule, where, at, why)
        if finding not in self.found:
            self.found.append(finding)

    def caught(self, error: KnarrError, where: str) -> None:
        """File an error of reading under its rule."""
        if isinstance(error, SpecError):
            for finding in error.findings:
                self.add(_shape_rule(finding), where, finding.pointer, finding.why)
            return
        kinds: tuple[tuple[type[KnarrError], str], ...] = (
            (NotFound, "blob-present"),
            (SizeMismatch, "blob-size"),
            (DigestMismatch, "blob-digest"),
            (InvalidDigest, "digest-grammar"),
        )
        for kind, rule in kinds:
            if isinstance(error, kind):
                self.add(rule, where, "", str(error))
                return
        self.add("blob-present", where, "", str(error))

    # -- documents -----------------------------------------------------------------------------------------

    def root(self, descriptor: Descriptor, *, missing: bool = False) -> None:
        """Check what a descriptor reaches; ``missing``: it may be absent, being another platform's."""
        digest = descriptor["digest"]
        self.descriptor(descriptor, digest, "")
        if digest in self._seen:
            return
        self._seen.add(digest)
        kind = descriptor["mediaType"]
        if kind in mediatypes.INDEXES:
            self.index(descriptor, missing=missing)
        elif kind in mediatypes.MANIFESTS:
            self.manifest(descriptor, missing=missing)
        else:
            self.blob(descriptor, digest)

    def descriptor(self, descriptor: Descriptor, where: str, at: str) -> None:
        """What a descriptor itself must be, beyond its shape."""
        self.annotations(descriptor.get("annotations"), where, at)
        algorithm = descriptor["digest"].partition(":")[0]
        if algorithm not in USABLE:
            self.add("digest-algorithm", where, f"{at}/digest", f"{algorithm} cannot be checked here")
        if descriptor["mediaType"] == mediatypes.EMPTY and (
            descriptor["digest"] != mediatypes.EMPTY_DIGEST or descriptor["size"] != 2
        ):
            self.add("empty-descriptor", where, at, "the empty media type, but not the bytes {}")

    def annotations(self, annotations: dict[str, str] | None, where: str, at: str) -> None:
        for key, value in (annotations or {}).items():
            place = f"{at}/annotations{fastjson.pointer_token(key)}"
            if not key:
                self.add("annotation-keys", where, place, "has an empty key")
            if key == mediatypes.CREATED and not _is_date(value):
                self.add("annotation-created", where, place, f"{value[:60]!r} is no date-time of RFC 3339")
            if key == mediatypes.REF_NAME and not _is_ref(value):
                self.add("ref-name", where, place, f"{value[:80]!r} does not follow the grammar")

    def _document(self, descriptor: Descriptor, *, missing: bool, parse: Callable[..., Any]) -> Any:
        """A document, read and parsed; None when that is not possible, which is filed."""
        where = descriptor["digest"]
        try:
            data = self._blobs.read(descriptor)
        except NotFound as error:
            if not missing:
                self.caught(error, where)
            return None
        except KnarrError as error:
            self.caught(error, where)
            return None
        try:
            return parse(data, where, descriptor["mediaType"])
        except SpecError as error:
            self.caught(error, where)
            return None

    def index(self, descriptor: Descriptor, *, missing: bool = False) -> None:
        """An image index (image-index.md) and all that it names."""
        document = self._document(descriptor, missing=missing, parse=parse_index)
        if document is not None:
            if "mediaType" not in document:  # index.json of a layout mostly has none
                self.add("media-type-stated", descriptor["digest"], "/mediaType", "is missing")
            self.index_document(document, descriptor["digest"])

    def index_document(self, document: dict[str, Any], where: str) -> None:
        """An index that was read, and all that it names."""
        self.annotations(document.get("annotations"), where, "")
        entries = document["manifests"]
        if not entries:
            self.add("index-not-empty", where, "/manifests", "is empty")
        images = [entry for entry in entries if entry["mediaType"] in mediatypes.MANIFESTS]
        for number, entry in enumerate(entries):
            at = f"/manifests/{number}"
            self.descriptor(entry, where, at)
            if entry["mediaType"] not in mediatypes.MANIFESTS and entry["mediaType"] not in mediatypes.INDEXES:
                self.add("index-entries", where, at, f"is {entry['mediaType']!r}, neither a manifest nor an index")
                continue
            names = [name_of(one) for one in images]
            if len(images) > 1 and entry in images and "platform" not in entry and len(set(names)) < len(names):
                self.add("platform-stated", where, at, "has no platform, and there are others of the same name")
            self.root(entry, missing="platform" in entry)
            self._platform(entry, where, at)

    def _platform(self, entry: Descriptor, where: str, at: str) -> None:
        """What the index says of a manifest's platform against its config."""
        stated = entry.get("platform")
        if stated is None or entry["mediaType"] not in mediatypes.MANIFESTS:
            return
        try:
            manifest = parse_manifest(self._blobs.read(entry), entry["digest"], entry["mediaType"])
            if manifest["config"]["mediaType"] not in mediatypes.CONFIGS:
                return
            config = parse_config(self._blobs.read(manifest["config"]))
        except KnarrError:
            return  # told where it stands
        if stated["os"] == stated["architecture"] == "unknown":
            return  # an attestation, as BuildKit writes it
        said, real = platform_of(stated), platform_of(config)
        if (said.os, said.architecture) != (real.os, real.architecture):
            self.add("platform-matches", where, f"{at}/platform", f"is {said}, the config says {real}")

    def manifest(self, descriptor: Descriptor, *, missing: bool = False) -> None:
        """An image manifest (manifest.md), its config and its layers."""
        where = descriptor["digest"]
        manifest = self._document(descriptor, missing=missing, parse=parse_manifest)
        if manifest is None:
            return
        if "mediaType" not in manifest:
            self.add("media-type-stated", where, "/mediaType", "is missing")
        self.annotations(manifest.get("annotations"), where, "")
        config_descriptor, layers = manifest["config"], manifest["layers"]
        self.descriptor(config_descriptor, where, "/config")
        for number, layer in enumerate(layers):
            self.descriptor(layer, where, f"/layers/{number}")
        kind = config_descriptor["mediaType"]
        if kind == mediatypes.EMPTY and not manifest.get("artifactType"):
            self.add("artifact-type", where, "/artifactType", "is missing, and the config is empty")
        if {layer["mediaType"] for layer in layers} & mediatypes.SIGSTORE:
            for part in (config_descriptor, *layers):  # signatures in an image's clothes
                self.blob(part, part["digest"])
            return
        if kind not in mediatypes.CONFIGS:
            if not manifest.get("artifactType") and kind != mediatypes.EMPTY:
                self.add("config-media-type", where, "/config/mediaType", f"is {kind}: an artifact, not an image")
            for part in (config_descriptor, *layers):
                self.blob(part, part["digest"])
            return
        if not layers:
            self.add("layers-not-empty", where, "/layers", "is empty")
        for finding in image_findings(manifest):
            self.add("layer-media-type", where, finding.pointer, finding.why)
        for number, layer in enumerate(layers):
            if layer["mediaType"] in mediatypes.FOREIGN_LAYERS:
                self.add("layer-distributable", where, f"/layers/{number}", f"is {layer['mediaType']}")
        config = self._config(config_descriptor)
        if config is None:
            for layer in layers:
                self.blob(layer, layer["digest"])
            return
        wrong = matching_findings(manifest, config)
        for finding in wrong:
            self.add("diff-ids-match", config_descriptor["digest"], finding.pointer, finding.why)
        history = config.get("history") or []
        filled = [entry for entry in history if not entry.get("empty_layer")]
        if history and len(filled) != len(layers):
            why = f"{len(filled)} entries made a layer, there are {len(layers)} layers"
            self.add("history-matches", config_descriptor["digest"], "/history", why)
        if self._layers:
            self.layers(layers, config["rootfs"]["diff_ids"], whole=not wrong)

    def _config(self, descriptor: Descriptor) -> dict[str, Any] | None:
        where = descriptor["digest"]
        config = self._document(descriptor, missing=False, parse=lambda data, name, _type: parse_config(data, name))
        if config is None:
            return None
        for finding in config_warnings(config):
            self.add("exposed-ports", where, finding.pointer, finding.why)
        for field, known in (("architecture", GOARCH), ("os", GOOS)):
            if config[field] not in known:
                self.add("config-platform", where, f"/{field}", f"{config[field]!r} is not one that Go knows")
        made: dict[str, Any] = config
        return made

    def blob(self, descriptor: Descriptor, where: str) -> None:
        """Bytes that nobody parses: size and digest."""
        if not self._layers or where in self._read or where.partition(":")[0] not in USABLE:
            return
        try:
            stream = self._blobs.open_blob(descriptor)
        except KnarrError as error:
            self.caught(error, where)
            return
        try:
            while stream.read(CHUNK):
                pass
            self._read.add(where)
        except KnarrError as error:
            self.caught(error, where)
        finally:
            stream.close()

    # -- layers --------------------------------------------------------------------------------------------

    def layers(self, descriptors: list[Descriptor], diff_ids: list[str], *, whole: bool) -> None:
        """Layers, bottom first, applied to each other in memory; after one that cannot be, the rest each alone."""
        model: Model | None = Model() if whole else None
        for number, descriptor in enumerate(descriptors):
            where = descriptor["digest"]
            known = whole and {text.partition(":")[0] for text in (where, diff_ids[number])} <= USABLE.keys()
            if descriptor["mediaType"] not in mediatypes.LAYERS or not known:
                self.blob(descriptor, where)
                model = None
                continue
            try:
                opener = self._opener(descriptor)
                stream = Stream(diff_ids[number], descriptor["mediaType"], descriptor["size"], opener, where).stream()
            except KnarrError as error:
                self._layer_error(error, where)
                model = None
                continue
            try:
                look = _Entries(self, where)
                if model is None:
                    look.alone(stream)
                else:
                    model.apply(stream, what=where, entries=look.one)
                self._read.add(where)
            except KnarrError as error:
                self._layer_error(error, where)
                model = None
            finally:
                stream.close()

    def _opener(self, descriptor: Descriptor) -> Callable[[], Any]:
        return lambda: self._blobs.open_blob(descriptor)

    def _layer_error(self, error: KnarrError, where: str) -> None:
        if isinstance(error, DigestMismatch) and "decompressed" in error.what:
            self.add("diff-id", where, "", str(error))
        elif isinstance(error, FormatError):
            packed = any(word in error.why for word in ("gzip", "zstd", "compress", "deflate"))
            self.add("layer-compression" if packed else "layer-tar", where, error.where, error.why)
        elif isinstance(error, Unsupported):
            self.add("layer-media-type", where, "", str(error))
        else:
            self.caught(error, where)


class _Entries:
    """What is said of the entries of one layer, one by one."""

    def __init__(self, to: Validator, where: str) -> None:
        self._to = to
        self._where = where
        self._paths: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._hidden: set[bytes] = set()

    def alone(self, stream: Any) -> None:
        """Judge a layer whose lower ones are not known."""
        from knarr.layer.tarball import Reader

        reader = Reader(stream, what=self._where)
        for entry in reader:
            self.one(entry)
        reader.drain()

    def one(self, entry: Entry) -> None:
        from knarr.engine.imaging.look import text_of
        from knarr.layer.metadata import is_allowed
        from knarr.layer.tarball import FILE
        from knarr.layer.whiteout import META, OPAQUE, PREFIX

        path = b"/".join(part for part in entry.name.split(b"/") if part not in (b"", b"."))
        shown = f"entry {text_of(path)!r}"
        if path in self._paths:
            self._to.add("layer-entries-unique", self._where, shown, "is there more than once")
        self._paths.add(path)
        if entry.extents is not None:
            self._to.add("layer-no-sparse", self._where, shown, "is a sparse file")
        for name in entry.xattrs or {}:
            if not is_allowed(os.fsdecode(name)):
                self._to.add("layer-attributes", self._where, shown, f"has {text_of(name)}, which is left out")
        parent, _slash, base = path.rpartition(b"/")
        if not base.startswith(PREFIX):
            return
        if entry.kind != FILE or entry.size:
            self._to.add("layer-whiteouts", self._where, shown, "is a whiteout that is no empty file")
        if base == OPAQUE:
            self._opaque.add(parent)
        elif not base.startswith(META):
            self._hidden.add(parent)
        if parent in self._opaque and parent in self._hidden:
            why = "stands beside an opaque whiteout"
            self._to.add("layer-one-whiteout", self._where, shown, why)


def _shape_rule(finding: SpecFinding) -> str:
    """The rule that a finding of ``spec/image_validate.py`` breaks."""
    why = finding.why
    if "taken for two things" in why or "in other case" in why:
        return "one-kind"
    if finding.pointer.endswith("/data"):
        return "embedded-data"
    if finding.pointer.endswith("/mediaType") and ("announced" in why or "which is no image" in why):
        return "media-type-agrees"
    if "announced" in why:
        return "media-type-agrees"
    if finding.pointer.endswith("/digest") or "/diff_ids/" in finding.pointer:
        return "digest-grammar"
    if "/annotations" in finding.pointer:
        return "annotation-keys"
    return "document-shape"


def _is_date(text: str) -> bool:
    from knarr.base.clock import parse_rfc3339

    try:
        parse_rfc3339(text)
    except ValueError:
        return False
    return True


def _is_ref(text: str) -> bool:
    """annotations.md: ref ::= component ("/" component)*, component ::= alphanum (separator alphanum)*."""
    for component in text.split("/"):
        rest = component.replace("--", "-")
        if not rest or not (rest[0] in _REF and rest[-1] in _REF):
            return False
        before = ""
        for char in rest:
            if char not in _REF and (char not in "-._:@+" or before not in _REF):
                return False
            before = char
    return True


# -- what a reference names --------------------------------------------------------------------------------


def validate(text: str, *, store: str | None = None, layers: bool = True) -> list[Finding]:
    """Check what a reference names, all platforms: an image, ``oci:DIR`` (the whole layout), an archive, the store.

    Without ``layers`` documents only. Raises NotFound when there is nothing by that name, and what makes looking
    impossible; all else is a finding.
    """
    from knarr.engine.imaging.blobs import Blobs, Counted
    from knarr.engine.imaging.opening import source_of
    from knarr.image.reference import parse_reference

    if text.startswith("oci:"):
        reference = parse_reference(text)
        if not reference.tag and not reference.digest:
            return validate_layout(reference.path, layers=layers)
    source = Counted(source_of(text, store=store))
    blobs = Blobs(source)
    try:
        check = Validator(blobs, layers=layers)
        for root in source.roots():
            check.root(root)
        return check.found
    finally:
        blobs.close()


def validate_layout(path: str, *, layers: bool = True) -> list[Finding]:
    """Check a whole image layout: its own files, every blob by name, every image in index.json."""
    from knarr.engine.imaging.blobs import Blobs, Counted

    if not os.path.isdir(path):
        raise NotFound("directory", path)
    layout = _Layout(path)
    check = Validator(Blobs(Counted(layout)), layers=layers)
    index = layout.own_files(check)
    layout.blob_names(check, read=layers)
    if index is not None:
        check.index_document(index, f"{path}/{mediatypes.INDEX_FILE}")
    # index.json's entries are roots: each must be there, whatever platform it is for.
    for entry in (index or {}).get("manifests", ()):
        try:
            layout.open_blob(entry).close()
        except KnarrError as error:
            check.caught(error, entry["digest"])
    return check.found


class _Layout:
    """A layout directory as it is, whatever is wrong with it."""

    def __init__(self, path: str) -> None:
        from knarr.image.files import DirectoryFiles

        self.what = path
        self._files = DirectoryFiles(path)

    def own_files(self, check: Validator) -> dict[str, Any] | None:
        """Judge oci-layout and index.json; return the latter when it can be read."""
        from knarr.image.files import read_document
        from knarr.spec.image_validate import parse_layout

        found: dict[str, Any] | None = None
        for name, rule, parse in (
            (mediatypes.LAYOUT_FILE, "layout-file", parse_layout),
            (mediatypes.INDEX_FILE, "layout-index", parse_index),
        ):
            where = f"{self.what}/{name}"
            try:
                document = parse(read_document(self._files, name, DOCUMENT_LIMIT), where)
            except NotFound:
                check.add(rule, where, "", "is missing")
            except SpecError as error:
                for finding in error.findings:
                    check.add(rule, where, finding.pointer, finding.why)
            except KnarrError as error:
                check.add(rule, where, "", str(error))
            else:
                if name == mediatypes.INDEX_FILE:
                    found = document
        return found

    def blob_names(self, check: Validator, *, read: bool) -> None:
        """Judge every file below blobs by its name."""
        top = f"{self.what}/{mediatypes.BLOBS_DIRECTORY}"
        try:
            algorithms = sorted(os.listdir(top))
        except OSError as error:
            check.add("layout-blobs", top, "", os.strerror(error.errno or 0).lower())
            return
        for algorithm in algorithms:
            if not os.path.isdir(f"{top}/{algorithm}"):
                check.add("layout-blob-names", f"{top}/{algorithm}", "", "is no directory of an algorithm's blobs")
                continue
            for name in sorted(os.listdir(f"{top}/{algorithm}")):
                where = f"{top}/{algorithm}/{name}"
                try:
                    digest = Digest.parse(f"{algorithm}:{name}")
                except InvalidDigest as error:
                    check.add("layout-blob-names", where, "", error.rule)
                    continue
                if read and digest.usable:
                    self._blob(check, digest, where)

    def _blob(self, check: Validator, digest: Digest, where: str) -> None:
        try:
            stream, _size = self._files.open(f"{mediatypes.BLOBS_DIRECTORY}/{digest.algorithm}/{digest.encoded}")
        except KnarrError as error:
            check.add("layout-blob-names", where, "", str(error))
            return
        made = hasher(digest.algorithm)
        try:
            while data := stream.read(CHUNK):
                made.update(data)
        except KnarrError as error:
            check.add("layout-blob-names", where, "", str(error))
            return
        finally:
            stream.close()
        if made.hexdigest() != digest.encoded:
            why = f"its content has digest {digest.algorithm}:{made.hexdigest()}"
            check.add("layout-blob-names", where, "", why)

    def roots(self) -> list[Descriptor]:
        """Nothing: validate_layout goes through index.json itself."""
        return []

    def open_blob(self, descriptor: Descriptor) -> Any:
        from knarr.content.digest import usable
        from knarr.content.verify import VerifiedReader

        digest = usable(descriptor["digest"])
        stream, size = self._files.open(f"{mediatypes.BLOBS_DIRECTORY}/{digest.algorithm}/{digest.encoded}")
        if size != descriptor["size"]:
            stream.close()
            raise SizeMismatch(f"blob {digest}", descriptor["size"], size)
        return VerifiedReader(stream, digest, size, f"blob {digest}")

    def names(self) -> list[str]:
        return []

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        self._files.close()

"""Reading and validating the image specification's documents (cold): descriptor, manifest, index, config, layout.

image-spec 1.1, and Docker's manifest schema 2 and manifest list, which are the same but for their media types. One
document is one kind: fields of another kind, or known names in other case (Go's readers do not care), are refused,
so that no two readers see different images in the same bytes (CVE-2021-41190). Everything wrong is reported at
once, each finding with its JSON pointer. Documents come back as they were written, unknown members included; only
a required list that a Go program wrote as ``null`` comes back empty.
"""

from __future__ import annotations

import binascii
import hashlib

from knarr.base import fastjson
from knarr.base.clock import parse_rfc3339
from knarr.base.errors import SpecError, SpecFinding
from knarr.base.fastjson import pointer_token
from knarr.spec import mediatypes
from knarr.spec.grammar import clean_path
from knarr.spec.shape import (
    anything,
    array,
    findings,
    flag,
    integer,
    mapping,
    members,
    one_of,
    shown,
    strings,
    text,
)
from knarr.spec.signals import signal_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.spec.shape import Check, Fault

LIMIT = 4 << 20
"""Most bytes of a manifest, index or config: 4 MiB, as registries and other tools have it."""

MOST_LAYERS = 127
LONGEST_VARIABLE = (128 << 10) - 1  # MAX_ARG_STRLEN of the kernel, less the final NUL

# algorithm -> length of its hexadecimal text (descriptor.md, Registered algorithms)
_ALGORITHMS = {"sha256": 64, "sha512": 128, "blake3": 64}
_BROKEN = ("md5", "sha1")  # well-formed, but whoever names them promises nothing
_LONGEST_DIGEST = 255  # it becomes a file name
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TYPE_CHARS = _ALNUM | frozenset("!#$&^_.+-")
_HEX = frozenset("0123456789abcdef")


def _media_type(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    parts = value.split("/")
    if len(parts) == 2 and all(
        0 < len(part) <= 127 and part[0] in _ALNUM and _TYPE_CHARS.issuperset(part) for part in parts
    ):
        return None
    return [("", f"{shown(value)} is not a media type")]


def digest_fault(value: str) -> str:
    """Say what keeps ``value`` from being a digest that may be carried (descriptor.md, Digests); "" if nothing does."""
    algorithm, colon, encoded = value.partition(":")
    if not colon:
        return "has no algorithm before a colon"
    if len(value) > _LONGEST_DIGEST:
        return f"is longer than {_LONGEST_DIGEST} characters"
    for part in algorithm.replace("+", ".").replace("_", ".").replace("-", ".").split("."):
        if not part or not _LOWER.issuperset(part):
            return f"{shown(algorithm)} is not the name of an algorithm"
    if not encoded or not (_ALNUM | frozenset("=_-")).issuperset(encoded):
        return "has characters after the colon that no encoding uses" if encoded else "has nothing after the colon"
    length = _ALGORITHMS.get(algorithm)
    if length is not None and (len(encoded) != length or not _HEX.issuperset(encoded)):
        return f"{algorithm} needs {length} lower-case hexadecimal digits"
    if algorithm in _BROKEN:
        return f"{algorithm} is broken and not accepted"
    return ""


def _digest(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    why = digest_fault(value)
    return [("", f"{shown(value)}: {why}")] if why else None


def _optional(check: Check) -> Check:
    """``check``, or null: config.md lets any optional member be null, which is the same as absent."""

    def lenient(value: Any) -> Fault:
        return None if value is None else check(value)

    return lenient


def _other_case(known: dict[str, Check], value: Any) -> list[tuple[str, str]]:
    """Find members whose name is a known one but for its case."""
    if type(value) is not dict:
        return []
    lower = {name.lower(): name for name in known}
    return [
        (pointer_token(name), f"is {lower[name.lower()]} in other case, which some programs would read as that")
        for name in value
        if name not in known and name.lower() in lower
    ]


_annotations = mapping(text)
_platform = members(
    {"architecture": text, "os": text, "os.version": text, "os.features": strings, "variant": text},
    "architecture os",
)
_DESCRIPTOR: dict[str, Check] = {
    "mediaType": _media_type,
    "digest": _digest,
    "size": integer(0, (1 << 63) - 1),
    "urls": strings,
    "annotations": _annotations,
    "data": text,
    "artifactType": _media_type,
    "platform": _platform,
}
_PLAIN_TYPES = frozenset((*mediatypes.MANIFESTS, *mediatypes.INDEXES, *mediatypes.CONFIGS, *mediatypes.LAYERS))
_descriptor_shape = members(_DESCRIPTOR, "mediaType digest size")


def _plain(value: Any) -> bool:
    """Whether this is surely a valid descriptor: known type, sha256, size, annotations or none. Ten times as fast."""
    try:
        media_type, digest, size = value["mediaType"], value["digest"], value["size"]
        annotations = value.get("annotations")
        known = media_type in _PLAIN_TYPES
    except (TypeError, KeyError, AttributeError):  # not an object, a member is missing, a type that cannot be hashed
        return False
    if not known or type(digest) is not str or len(digest) != 71 or digest[:7] != "sha256:":
        return False
    if digest[7:].strip("0123456789abcdef") or type(size) is not int or not 0 <= size < 1 << 63:
        return False
    if annotations is None:
        return len(value) == 3
    return len(value) == 4 and type(annotations) is dict and not any(map(text, annotations.values()))


def _descriptor(value: Any) -> Fault:
    if _plain(value):
        return None
    bad = (_descriptor_shape(value) or []) + _other_case(_DESCRIPTOR, value)
    if not bad and "data" in value:
        why = _data_fault(value["data"], value["digest"], value["size"])
        if why:
            bad = [("/data", why)]
    return bad or None


def _data_fault(data: str, digest: str, size: int) -> str:
    """Check embedded content (descriptor.md, Embedded Content): the size first, then the digest."""
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except (ValueError, binascii.Error):
        return "is not base64"
    if len(content) != size:
        return f"holds {len(content)} bytes, but size says {size}"
    algorithm, _, encoded = digest.partition(":")
    if algorithm in ("sha256", "sha512") and hashlib.new(algorithm, content).hexdigest() != encoded:
        return f"has another digest than {digest}"
    return ""


_OLD = "is 1: a Docker schema 1 manifest, a format given up in 2019 that knarr does not read"
_SCHEMA1 = tuple(mediatypes.SCHEMA1)  # "in" a set would fail for what cannot be hashed


def _is_schema_1(value: Any) -> bool:
    return type(value) is int and value == 1


def _schema_version(value: Any) -> Fault:
    return None if type(value) is int and value == 2 else [("", "must be the integer 2")]


_layers = array(_descriptor)


def _layer_list(value: Any) -> Fault:
    if value is None:
        return None
    bad = _layers(value)
    if type(value) is list and len(value) > MOST_LAYERS:
        return [("", f"has {len(value)} layers, at most {MOST_LAYERS} are possible")]
    return bad


_MANIFEST: dict[str, Check] = {
    "schemaVersion": _schema_version,
    "mediaType": _media_type,
    "artifactType": _media_type,
    "config": _descriptor,
    "layers": _layer_list,
    "subject": _descriptor,
    "annotations": _annotations,
}
_INDEX: dict[str, Check] = {
    "schemaVersion": _schema_version,
    "mediaType": _media_type,
    "artifactType": _media_type,
    "manifests": _optional(_layers),
    "subject": _descriptor,
    "annotations": _annotations,
}
_manifest = members(_MANIFEST, "schemaVersion config layers")
_index = members(_INDEX, "schemaVersion manifests")

# Fields that say what a document is; those of another kind make it two documents in one.
_KINDS = {
    "manifest": ("manifests", "fsLayers", "history", "signatures"),
    "index": ("config", "layers", "fsLayers", "history", "signatures"),
}


def _document(
    data: bytes,
    document: str,
    kind: str,
    media_type: str | None,
    limit: int = LIMIT,
) -> dict[str, Any]:
    known, check = (_MANIFEST, _manifest) if kind == "manifest" else (_INDEX, _index)
    own_types = mediatypes.MANIFESTS if kind == "manifest" else mediatypes.INDEXES
    value = fastjson.loads(data, document, limit=limit)
    found: list[SpecFinding] = []

    def add(pointer: str, why: str) -> None:
        found.append(SpecFinding(pointer, why))

    if type(value) is dict and (_is_schema_1(value.get("schemaVersion")) or value.get("mediaType") in _SCHEMA1):
        # Nothing else that a document of schema 1 lacks or has is worth saying.
        raise SpecError(document, [SpecFinding("/schemaVersion", _OLD)])
    found += findings(check, value)
    found += [SpecFinding(pointer, why) for pointer, why in _other_case(known, value)]
    if type(value) is dict:
        other = {name.lower(): name for name in _KINDS[kind]}
        for name in value:
            if name.lower() in other:
                add(
                    pointer_token(name),
                    f"does not belong into an image {kind}: the document could be taken for two things",
                )
        said = value.get("mediaType")
        if type(said) is str and said not in own_types:
            add("/mediaType", f"is {shown(said)}, which is no image {kind}")
        elif type(said) is str and media_type is not None and said != media_type:
            add("/mediaType", f"is {said}, but the document was announced as {shown(media_type)}")
    if media_type is not None and media_type not in own_types:
        add("", f"was announced as {shown(media_type)}, which is no image {kind}")
    if found:
        raise SpecError(document, found)
    lists = "layers" if kind == "manifest" else "manifests"
    checked: dict[str, Any] = value
    return checked if checked[lists] is not None else {**checked, lists: []}


def parse_manifest(data: bytes, document: str = "manifest", media_type: str | None = None) -> dict[str, Any]:
    """Read and validate an image manifest (manifest.md) or Docker's schema 2 manifest, of at most 4 MiB.

    ``media_type`` is what the descriptor or the Content-Type says; the document's own must agree. Any config and
    layer types are accepted, for copying; ``image_findings`` says whether it is an image. Raises SpecError.
    """
    return _document(data, document, "manifest", media_type)


def parse_index(
    data: bytes, document: str = "index", media_type: str | None = None, *, limit: int = LIMIT
) -> dict[str, Any]:
    """Read and validate an image index (image-index.md) or Docker's manifest list, of at most ``limit`` bytes.

    ``media_type`` as for ``parse_manifest``. Raises SpecError.
    """
    return _document(data, document, "index", media_type, limit)


def parse_descriptor(data: bytes, document: str = "descriptor") -> dict[str, Any]:
    """Read and validate one content descriptor (descriptor.md). Raises SpecError."""
    return _parsed(data, document, _descriptor)


def descriptor_findings(value: Any) -> list[SpecFinding]:
    """Return what is wrong with a descriptor that was already read."""
    return findings(_descriptor, value)


def _parsed(data: bytes, document: str, check: Check) -> dict[str, Any]:
    value = fastjson.loads(data, document, limit=LIMIT)
    found = findings(check, value)
    if found:
        raise SpecError(document, found)
    checked: dict[str, Any] = value
    return checked


_layout = members({"imageLayoutVersion": one_of((mediatypes.LAYOUT_VERSION,))}, "imageLayoutVersion")


def parse_layout(data: bytes, document: str = "oci-layout") -> dict[str, Any]:
    """Read and validate the header of an image layout (image-layout.md, oci-layout file). Raises SpecError."""
    return _parsed(data, document, _layout)


def image_findings(manifest: dict[str, Any]) -> list[SpecFinding]:
    """Return what keeps a valid manifest from being an image that can be unpacked and run."""
    found: list[SpecFinding] = []
    kind = manifest["config"]["mediaType"]
    if kind not in mediatypes.CONFIGS:
        what = manifest.get("artifactType") or kind
        found.append(
            SpecFinding("/config/mediaType", f"is {shown(kind)}: this is no image but an artifact, {shown(what)}")
        )
    for index, layer in enumerate(manifest["layers"]):
        media_type = layer["mediaType"]
        if media_type not in mediatypes.LAYERS:
            why = "is encrypted" if media_type.endswith(mediatypes.ENCRYPTED_SUFFIX) else "is no known kind of layer"
            found.append(SpecFinding(f"/layers/{index}/mediaType", f"{shown(media_type)} {why}"))
    return found


def matching_findings(manifest: dict[str, Any], config: dict[str, Any]) -> list[SpecFinding]:
    """Return where a config does not belong to its manifest: each layer needs one diffID (config.md, rootfs)."""
    layers, diff_ids = len(manifest["layers"]), len(config["rootfs"]["diff_ids"])
    if layers == diff_ids:
        return []
    return [SpecFinding("/rootfs/diff_ids", f"has {diff_ids} items, but the manifest has {layers} layers")]


def to_oci(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a manifest or index with Docker's media types replaced by their OCI names.

    By media-types.md, Compatibility Matrix. Types without an OCI name stay. The copy has another digest, of course.
    """

    def named(item: Any) -> Any:
        if type(item) is dict:
            new = {
                name: named(each) if name in ("config", "layers", "manifests") else each for name, each in item.items()
            }
            if "mediaType" in new:
                new["mediaType"] = mediatypes.TO_OCI.get(new["mediaType"], new["mediaType"])
            return new
        return [named(each) for each in item] if type(item) is list else item

    made: dict[str, Any] = named(document)
    return made


def _date(value: Any) -> Fault:
    bad = text(value)
    if bad:
        return bad
    try:
        parse_rfc3339(value)
    except ValueError as error:
        return [("", str(error))]
    return None


def _variables(value: Any) -> Fault:
    """Env: entries without a name or without "=" would take the host's variables in some engines (CVE-2026-57231)."""
    bad = strings(value)
    if bad:
        return bad
    found: list[tuple[str, str]] = []
    for index, entry in enumerate(value):
        if entry.find("=") < 1:
            found.append(
                (f"/{index}", f"{shown(entry)} has no " + ('name before the "="' if entry[:1] == "=" else '"="'))
            )
        elif len(entry.encode()) > LONGEST_VARIABLE:
            found.append((f"/{index}", f"is longer than the {LONGEST_VARIABLE} bytes the kernel takes"))
    return found or None


def _volumes(value: Any) -> Fault:
    bad = list(mapping(anything)(value) or [])
    if type(value) is dict:
        for path in value:
            where, clean = pointer_token(path), clean_path(path)
            if not path.startswith("/"):
                bad.append((where, "is not an absolute path"))
            elif clean in ("/", "/dev", "/proc", "/sys") or clean.startswith(("/proc/", "/sys/")):
                bad.append((where, f"a volume cannot cover {clean}"))
    return bad or None


def _working_dir(value: Any) -> Fault:
    bad = text(value)
    if bad or not value or value.startswith("/"):
        return bad
    return [("", f"{shown(value)} is not an absolute path")]


def _stop_signal(value: Any) -> Fault:
    bad = text(value)
    if bad or not value:
        return bad
    try:
        signal_number(value)
    except ValueError as error:
        return [("", str(error))]
    return None


def _user(value: Any) -> Fault:
    bad = text(value)
    if bad or not any(char in "\r\n" for char in value):
        return bad
    return [("", "must not hold a line break")]


def _diff_ids(value: Any) -> Fault:
    return None if value is None else array(_digest)(value)


_nanoseconds = _optional(integer(0, (1 << 63) - 1))
_RUN = members(
    {
        "User": _optional(_user),
        "ExposedPorts": _optional(mapping(anything)),
        "Env": _optional(_variables),
        "Entrypoint": _optional(strings),
        "Cmd": _optional(strings),
        "Volumes": _optional(_volumes),
        "WorkingDir": _optional(_working_dir),
        "Labels": _optional(_annotations),
        "StopSignal": _optional(_stop_signal),
        "StopTimeout": _optional(integer(-1, (1 << 31) - 1)),  # Docker's, in seconds
        "ArgsEscaped": _optional(flag),
        "Shell": _optional(strings),  # Docker's
        "Healthcheck": _optional(  # Docker's; times in nanoseconds
            members(
                {
                    "Test": _optional(strings),
                    "Interval": _nanoseconds,
                    "Timeout": _nanoseconds,
                    "StartPeriod": _nanoseconds,
                    "StartInterval": _nanoseconds,
                    "Retries": _optional(integer(0, (1 << 31) - 1)),
                }
            )
        ),
    }
)
_config = members(
    {
        "created": _optional(_date),
        "author": _optional(text),
        "architecture": text,
        "os": text,
        "os.version": _optional(text),
        "os.features": _optional(strings),
        "variant": _optional(text),
        "config": _optional(_RUN),
        "rootfs": members({"type": one_of(("layers",)), "diff_ids": _diff_ids}, "type diff_ids"),
        "history": _optional(
            array(
                members(
                    {
                        "created": _optional(_date),
                        "author": _optional(text),
                        "created_by": _optional(text),
                        "comment": _optional(text),
                        "empty_layer": _optional(flag),
                    }
                )
            )
        ),
    },
    "architecture os rootfs",
)


def parse_config(data: bytes, document: str = "image config") -> dict[str, Any]:
    """Read and validate an image config (config.md), OCI's or Docker's, of at most 4 MiB. Raises SpecError.

    Optional members may be null. What could do harm or make no sense in a container is refused: variables without
    "=" or without a name, volumes over / and the kernel's file systems, a relative working directory, signals that do
    not exist. ``config_warnings`` names what is only ignored.
    """
    config = _parsed(data, document, _config)
    if config["rootfs"]["diff_ids"] is None:
        return {**config, "rootfs": {**config["rootfs"], "diff_ids": []}}
    return config


def config_warnings(config: dict[str, Any]) -> list[SpecFinding]:
    """Return what is ignored in a valid image config: exposed ports that are none."""
    ports = (config.get("config") or {}).get("ExposedPorts") or {}
    return [
        SpecFinding(f"/config/ExposedPorts{pointer_token(name)}", f"{shown(name)} is no port")
        for name in ports
        if not _is_port(name)
    ]


def _is_port(name: str) -> bool:
    number, slash, protocol = name.partition("/")
    if slash and protocol not in ("tcp", "udp", "sctp"):
        return False
    return number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65_535

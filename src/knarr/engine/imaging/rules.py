"""Every invariant of the image specification, stated once: what it says, where, and how bad a breach is.

``validate.py`` checks them; docs/validate.md has the same table with the tests.
"""

from __future__ import annotations

from knarr.base.record import Record

ERROR, WARNING = "error", "warning"


class Rule(Record):
    """One invariant: a short name for programs, the specification's page, its sentence in our words, how bad."""

    page: str
    sentence: str
    level: str = ERROR


RULES = {
    "blob-present": Rule("image-layout.md, Blobs", "what a descriptor names must be there to be read"),
    "blob-size": Rule("descriptor.md, Properties", "the content must have as many bytes as size says"),
    "blob-digest": Rule("descriptor.md, Digests", "the content must have the digest, recalculated"),
    "digest-grammar": Rule("descriptor.md, Digests", "a digest must follow the grammar and its algorithm's encoding"),
    "digest-algorithm": Rule(
        "descriptor.md, Registered algorithms", "sha256 must be known, sha512 may; others are not checked", WARNING
    ),
    "document-shape": Rule(
        "manifest.md, image-index.md, config.md, descriptor.md", "required members are there and each has its type"
    ),
    "media-type-agrees": Rule(
        "manifest.md, image-index.md, Properties", "mediaType, when it is there, must be the document's own"
    ),
    "media-type-stated": Rule("manifest.md, image-index.md, Properties", "mediaType should be used", WARNING),
    "one-kind": Rule("considerations.md; CVE-2021-41190", "a document must not be a manifest and an index in one"),
    "artifact-type": Rule("manifest.md, artifactType", "artifactType must be set when config has the empty media type"),
    "empty-descriptor": Rule(
        "manifest.md, Guidance for an Empty Descriptor", "the empty media type is that of the bytes {}"
    ),
    "embedded-data": Rule("descriptor.md, Embedded Content", "data must decode to bytes of just that size and digest"),
    "layers-not-empty": Rule("manifest.md, layers", "for portability, layers should have at least one entry", WARNING),
    "layer-media-type": Rule("manifest.md, layers", "layers of an image have one of the layer media types"),
    "layer-distributable": Rule(
        "layer.md, Non-Distributable Layers", "non-distributable layers should not be used", WARNING
    ),
    "config-media-type": Rule("manifest.md, config", "an image's config has the image config media type", WARNING),
    "config-platform": Rule(
        "config.md, Properties", "architecture and os should be words Go knows as GOARCH and GOOS", WARNING
    ),
    "diff-ids-match": Rule("config.md, rootfs", "there is one diffID for each layer, from first to last"),
    "diff-id": Rule("config.md, Layer DiffID", "a diffID must be the digest of the layer's uncompressed tar"),
    "history-matches": Rule("config.md, history", "entries that are not empty_layer are as many as layers", WARNING),
    "exposed-ports": Rule("config.md, ExposedPorts", "keys are port, port/tcp or port/udp", WARNING),
    "platform-matches": Rule("image-index.md, platform", "what an index says of a platform is what the config says"),
    "platform-stated": Rule(
        "image-index.md, platform", "entries of an index for several platforms should say which", WARNING
    ),
    "index-entries": Rule("image-index.md, manifests", "an index names manifests and indexes", WARNING),
    "index-not-empty": Rule("image-index.md, manifests", "an index without entries names no image", WARNING),
    "layer-compression": Rule(
        "media-types.md", "a layer is compressed as its media type says, whole and without a rest"
    ),
    "layer-tar": Rule(
        "layer.md, Distributable Format", "a layer must be a tar archive that all readers understand alike"
    ),
    "layer-entries-unique": Rule("layer.md, Distributable Format", "there must not be two entries of one path"),
    "layer-no-sparse": Rule("layer.md, File Types", "sparse files should not be used", WARNING),
    "layer-attributes": Rule(
        "layer.md, File Attributes", "attributes that belong to a host's security module or to overlayfs", WARNING
    ),
    "layer-whiteouts": Rule("layer.md, Whiteouts", "a whiteout is an empty regular file", WARNING),
    "layer-one-whiteout": Rule(
        "layer.md, Whiteouts", "an opaque whiteout hides all; others beside it say nothing", WARNING
    ),
    "layout-file": Rule(
        "image-layout.md, oci-layout file", "oci-layout must be there, be a JSON object and name the version"
    ),
    "layout-index": Rule("image-layout.md, index.json file", "index.json must be there and be an image index"),
    "layout-blobs": Rule("image-layout.md, Blobs", "the directory blobs must be there; it may be empty"),
    "layout-blob-names": Rule(
        "image-layout.md, Blobs", "blobs/ALGORITHM/ENCODED must have the content that its name says"
    ),
    "ref-name": Rule("annotations.md, ref.name", "a reference name follows the grammar of image-spec", WARNING),
    "annotation-keys": Rule(
        "annotations.md, Rules", "keys must be text and should not be empty; values must be strings"
    ),
    "annotation-created": Rule("annotations.md, Pre-Defined Annotation Keys", "created is a date-time of RFC 3339"),
}


class Finding(Record):
    """One breach: of which rule, where (a digest or path, and a JSON pointer or entry), and why."""

    rule: str
    where: str
    at: str
    why: str

    @property
    def level(self) -> str:
        """Error or warning."""
        return RULES[self.rule].level

    def told(self) -> dict[str, str]:
        """For JSON."""
        rule = RULES[self.rule]
        return {
            "level": rule.level,
            "rule": self.rule,
            "where": self.where,
            "at": self.at,
            "why": self.why,
            "specification": rule.page,
        }

    def __str__(self) -> str:
        at = f" {self.at}" if self.at else ""
        return f"{self.level}: {self.where}{at}: {self.why} [{self.rule}]"


GOARCH = frozenset(
    (
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mipsle",
        "mips64",
        "mips64le",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    )
)
GOOS = frozenset(
    (
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "ios",
        "js",
        "linux",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "wasip1",
        "windows",
    )
)

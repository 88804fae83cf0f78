"""Media types and annotation keys of the image specification, and Docker's own names for the same things (hot).

image-spec 1.1 media-types.md (with its compatibility matrix), annotations.md, conversion.md, image-layout.md.
"""

from __future__ import annotations

DESCRIPTOR = "application/vnd.oci.descriptor.v1+json"
LAYOUT_HEADER = "application/vnd.oci.layout.header.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
LAYER_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
LAYER_FOREIGN_GZIP = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
LAYER_FOREIGN_ZSTD = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_LAYER_FOREIGN_GZIP = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEXES = frozenset((INDEX, DOCKER_LIST))
MANIFESTS = frozenset((MANIFEST, DOCKER_MANIFEST))
CONFIGS = frozenset((CONFIG, DOCKER_CONFIG))
SCHEMA1 = frozenset((DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED))
# In the order a client prefers them, for an Accept header.
ACCEPTED = (INDEX, DOCKER_LIST, MANIFEST, DOCKER_MANIFEST)

# layer media type -> compression: "", "gzip" or "zstd"
LAYERS = {
    LAYER: "",
    LAYER_GZIP: "gzip",
    LAYER_ZSTD: "zstd",
    LAYER_FOREIGN: "",
    LAYER_FOREIGN_GZIP: "gzip",
    LAYER_FOREIGN_ZSTD: "zstd",
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_LAYER_FOREIGN: "",
    DOCKER_LAYER_FOREIGN_GZIP: "gzip",
}
FOREIGN_LAYERS = frozenset(
    (
        LAYER_FOREIGN,
        LAYER_FOREIGN_GZIP,
        LAYER_FOREIGN_ZSTD,
        DOCKER_LAYER_FOREIGN,
        DOCKER_LAYER_FOREIGN_GZIP,
    )
)

# What cosign puts into manifests that call themselves images: they are none, and their layers no layers.
SIGSTORE = frozenset(("application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.dsse.envelope.v1+json"))

# Docker's name -> the OCI name (media-types.md, compatibility matrix)
TO_OCI = {
    DOCKER_LIST: INDEX,
    DOCKER_MANIFEST: MANIFEST,
    DOCKER_CONFIG: CONFIG,
    DOCKER_LAYER: LAYER,
    DOCKER_LAYER_GZIP: LAYER_GZIP,
    DOCKER_LAYER_ZSTD: LAYER_ZSTD,
    DOCKER_LAYER_FOREIGN: LAYER_FOREIGN,
    DOCKER_LAYER_FOREIGN_GZIP: LAYER_FOREIGN_GZIP,
}
TO_DOCKER = {
    INDEX: DOCKER_LIST,
    MANIFEST: DOCKER_MANIFEST,
    CONFIG: DOCKER_CONFIG,
    LAYER: DOCKER_LAYER,
    LAYER_GZIP: DOCKER_LAYER_GZIP,
    LAYER_ZSTD: DOCKER_LAYER_ZSTD,
    LAYER_FOREIGN: DOCKER_LAYER_FOREIGN,
    LAYER_FOREIGN_GZIP: DOCKER_LAYER_FOREIGN_GZIP,
}

ENCRYPTED_SUFFIX = "+encrypted"

# The two-byte document {} and its digest (manifest.md, Guidance for an Empty Descriptor).
EMPTY_BYTES = b"{}"
EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

# annotations.md, Pre-Defined Annotation Keys
CREATED = "org.opencontainers.image.created"
AUTHORS = "org.opencontainers.image.authors"
URL = "org.opencontainers.image.url"
DOCUMENTATION = "org.opencontainers.image.documentation"
SOURCE = "org.opencontainers.image.source"
VERSION = "org.opencontainers.image.version"
REVISION = "org.opencontainers.image.revision"
VENDOR = "org.opencontainers.image.vendor"
LICENSES = "org.opencontainers.image.licenses"
REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
DESCRIPTION = "org.opencontainers.image.description"
BASE_DIGEST = "org.opencontainers.image.base.digest"
BASE_NAME = "org.opencontainers.image.base.name"

# Where a layer has a table of contents: stargz-snapshotter, docs/estargz.md; containers-storage, pkg/chunked.
ESTARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
ZSTD_DIGEST = "io.github.containers.zstd-chunked.manifest-checksum"
ZSTD_PLACE = "io.github.containers.zstd-chunked.manifest-position"
ZSTD_TARSPLIT = "io.github.containers.zstd-chunked.tarsplit-position"
# As containers-storage before 1.44 (Podman 4.3) has them; newer ones look at the names above alone.
OLD_ZSTD_DIGEST = "io.containers.zstd-chunked.manifest-checksum"
OLD_ZSTD_PLACE = "io.containers.zstd-chunked.manifest-position"
TABLES = {"gzip": ESTARGZ_DIGEST, "zstd": ZSTD_DIGEST}
TABLE_PREFIXES = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
)
"""Annotations that say something of one blob's bytes, and nothing of another's."""

# conversion.md, Annotation Fields
OS = "org.opencontainers.image.os"
ARCHITECTURE = "org.opencontainers.image.architecture"
VARIANT = "org.opencontainers.image.variant"
OS_VERSION = "org.opencontainers.image.os.version"
OS_FEATURES = "org.opencontainers.image.os.features"
AUTHOR = "org.opencontainers.image.author"
EXPOSED_PORTS = "org.opencontainers.image.exposedPorts"
STOP_SIGNAL = "org.opencontainers.image.stopSignal"

# What containerd and Docker write beside ref.name in an index.json: the whole reference.
IMAGE_NAME = "io.containerd.image.name"

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
BLOBS_DIRECTORY = "blobs"
LAYOUT_VERSION = "1.0.0"

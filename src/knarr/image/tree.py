"""What of a source is to be copied: one manifest, an index with some of its manifests, or all of it.

The documents are read, verified and checked here, before the first layer is asked for; layers are not looked at.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import FormatError, NotFound, SpecError, SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.content.compress import compression_of
from knarr.content.digest import sha256_of, usable
from knarr.content.names import printable, some
from knarr.image.platform import accepted, platform_of
from knarr.image.resolve import NESTING_LIMIT, read_blob, refuse_schema1, resolve
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from knarr.content.store import Store
    from knarr.image.platform import Platform
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

NODES_LIMIT = 1_000
"""Manifests and indexes of one copy."""

BYTES_LIMIT = 64 << 20
"""Bytes of manifests, indexes and configs of one copy."""

# What BuildKit puts on the manifest of an attestation: the digest of the image it is about.
_ABOUT = "vnd.docker.reference.digest"


class Node(Record):
    """A manifest, or an index with those of its manifests that come along.

    ``config`` are the bytes of an image's config, None for an index or an artifact.
    """

    descriptor: Descriptor
    data: bytes
    document: dict[str, Any]
    config: bytes | None = None
    children: tuple[Node, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether it is an index."""
        return self.descriptor["mediaType"] in mediatypes.INDEXES

    @property
    def digest(self) -> str:
        """Its digest."""
        return self.descriptor["digest"]

    def walk(self) -> Iterator[Node]:
        """Yield all manifests and indexes, what is referred to first."""
        for child in self.children:
            yield from child.walk()
        yield self

    def manifests(self) -> list[Node]:
        """Return the manifests among them, each digest once."""
        found = {node.digest: node for node in self.walk() if not node.is_index}
        return list(found.values())

    def parts(self) -> list[tuple[str, Descriptor]]:
        """Return (kind, descriptor) of the config and layers of a manifest."""
        return [("config", self.document["config"]), *(("layer", layer) for layer in self.document["layers"])]


class Reader:
    """Reads the documents of one copy, within bounds."""

    def __init__(self, source: ImageSource, store: Store | None, documents: dict[str, bytes] | None = None) -> None:
        self._source = source
        self._store = store
        self._documents = dict(documents or {})
        self._count = 0
        self._bytes = 0

    def read(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a document; raises Unsupported when there are too many."""
        digest = usable(descriptor["digest"])
        if digest not in self._documents:
            self._documents[digest] = read_blob(self._source, descriptor, self._store)
        data = self._documents[digest]
        self._count += 1
        self._bytes += len(data)
        if self._count > 2 * NODES_LIMIT or self._bytes > BYTES_LIMIT:
            raise Unsupported(f"image {self._source.what}", "its manifests and configs are too many or too large")
        return data

    def manifest(self, descriptor: Descriptor) -> Node:
        """Read a manifest, and the config if it is an image's."""
        from knarr.spec.image_validate import parse_manifest

        data = self.read(descriptor)
        document = parse_manifest(data, f"manifest {descriptor['digest']}", descriptor["mediaType"])
        return checked(Node(descriptor, data, dict(document)), self.read)

    def index(self, descriptor: Descriptor, children: Sequence[Node] | None = None, depth: int = 0) -> Node:
        """Read an index and all it names, or only note ``children``."""
        from knarr.spec.image_validate import parse_index

        if depth > NESTING_LIMIT:
            why = f"its indexes are nested deeper than {NESTING_LIMIT} levels"
            raise Unsupported(f"image {self._source.what}", why)
        data = self.read(descriptor)
        document = parse_index(data, f"index {descriptor['digest']}", descriptor["mediaType"])
        if children is None:
            children = [self.node(entry, depth + 1) for entry in document["manifests"]]
        return Node(descriptor, data, dict(document), None, tuple(children))

    def node(self, descriptor: Descriptor, depth: int = 0) -> Node:
        """Read whatever a descriptor means."""
        media_type = descriptor["mediaType"]
        refuse_schema1(media_type, self._source.what)
        if media_type in mediatypes.INDEXES:
            return self.index(descriptor, depth=depth)
        if media_type in mediatypes.MANIFESTS:
            return self.manifest(descriptor)
        raise Unsupported(f"media type {printable(media_type)!r} of {self._source.what}", "it is not an image's")


def checked(node: Node, read: Callable[[Descriptor], bytes]) -> Node:
    """Return a manifest's node with its config, checked against each other; an artifact may hold what it likes."""
    config: Descriptor = node.document["config"]
    _same_sizes(node)
    if config["mediaType"] not in mediatypes.CONFIGS:
        return node
    if {layer["mediaType"] for layer in node.document["layers"]} & mediatypes.SIGSTORE:
        return node  # signatures in an image's clothes
    from knarr.spec.image_validate import matching_findings, parse_config

    for layer in node.document["layers"]:
        compression_of(layer["mediaType"])
    data: bytes = read(config)
    name = f"config {config['digest']}"
    findings = matching_findings(node.document, parse_config(data, name))
    if findings:
        raise SpecError(name, findings)
    made: Node = node.replace(config=data)
    return made


def _same_sizes(node: Node) -> None:
    """Raise SpecError when one digest is given two sizes."""
    found: dict[str, int] = {}
    for number, layer in enumerate(node.document["layers"]):
        known = found.setdefault(layer["digest"], layer["size"])
        if known != layer["size"]:
            why = f"gives {layer['digest']} {layer['size']} bytes, another layer {known}"
            raise SpecError("manifest", [SpecFinding(f"/layers/{number}/size", why)])


def one(source: ImageSource, platform: Platform, store: Store | None = None) -> tuple[Node, str]:
    """Return the manifest for a platform, and the digest of the index it was found in, "" for none.

    Raises as ``resolve`` does.
    """
    found = resolve(source, platform, store)
    reader = Reader(source, store, found.documents)
    return reader.manifest(found.descriptor), found.index


def everything(source: ImageSource, store: Store | None = None) -> Node:
    """Return all of what the source's name means; several roots get an index of their own."""
    reader = Reader(source, store)
    roots = source.roots()
    if len(roots) == 1:
        return reader.node(roots[0])
    return _joined([(root, reader.node(root)) for root in roots])


def some_platforms(source: ImageSource, platforms: Sequence[Platform], store: Store | None = None) -> Node:
    """Return an index with the best manifest for each of several platforms, and what attests to them.

    Raises NotFound naming the platforms there are.
    """
    reader = Reader(source, store)
    roots = source.roots()
    entries: list[Descriptor] = list(roots)
    index: Node | None = None
    if len(roots) == 1:
        refuse_schema1(roots[0]["mediaType"], source.what)
        if roots[0]["mediaType"] not in mediatypes.INDEXES:
            raise NotFound("index", source.what, among="one image only", hint="ask for one platform")
        index = reader.index(roots[0], [])
        entries = index.document["manifests"]
    chosen = [_best(source.what, entries, platform) for platform in platforms]
    digests = {entry["digest"] for entry in chosen}
    wanted = [
        entry for entry in entries if entry["digest"] in digests or entry.get("annotations", {}).get(_ABOUT) in digests
    ]
    nodes = [(entry, reader.node(entry, 1)) for entry in wanted]
    if index is None:
        return _joined(nodes)
    made: Node = index.replace(children=tuple(node for _, node in nodes))
    return made


def _best(what: str, entries: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    ranks = accepted(wanted)
    best: tuple[int, Descriptor] | None = None
    seen: list[str] = []
    for entry in entries:
        if "platform" not in entry:
            continue
        platform = platform_of(entry["platform"])
        seen.append(str(platform))
        if platform in ranks and (best is None or ranks.index(platform) < best[0]):
            best = ranks.index(platform), entry
    if best is None:
        raise NotFound("image", f"{what} for {wanted}", among=some(list(dict.fromkeys(seen)), "none with a platform"))
    return best[1]


def _joined(nodes: list[tuple[Descriptor, Node]]) -> Node:
    """Return a new index of nodes, as their descriptors have it."""
    entries = []
    for entry, _ in nodes:
        kept: dict[str, Any] = {key: entry[key] for key in ("mediaType", "digest", "size")}
        if "platform" in entry:
            kept["platform"] = entry["platform"]
        entries.append(kept)
    return index_of({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": entries}, [n for _, n in nodes])


def index_of(document: dict[str, Any], children: Sequence[Node]) -> Node:
    """Return the node of an index document; raises FormatError when it is too large."""
    data = fastjson.dumps(document)
    if len(data) > 4 << 20:
        raise FormatError("index", "", f"it would have {len(data)} bytes")
    media_type = document["mediaType"]
    descriptor: Descriptor = {"mediaType": media_type, "digest": sha256_of(data), "size": len(data)}
    return Node(descriptor, data, document, None, tuple(children))

"""Manifests in another form: OCI or Docker types, other layers, an index with fewer images. Pure.

What needs no change keeps its bytes, and so its digest. media-types.md, Compatibility Matrix.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.content.digest import sha256_of
from knarr.content.names import printable
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from knarr.image.tree import Node
    from knarr.spec.image import Descriptor

FORMATS = ("oci", "docker")
_TABLES = {"oci": mediatypes.TO_OCI, "docker": mediatypes.TO_DOCKER}
_OWN = {
    "oci": frozenset((mediatypes.MANIFEST, mediatypes.INDEX)),
    "docker": frozenset((mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_LIST)),
}


def format_of(node: Node) -> str:
    """Return oci or docker."""
    return "docker" if node.descriptor["mediaType"] in _OWN["docker"] else "oci"


class Other(Record):
    """What stands for a layer: its descriptor, and its diffID where that is another one, too."""

    descriptor: Descriptor
    diff_id: str = ""


def converted(node: Node, format: str, layers: Mapping[str, Other] | None = None) -> Node:
    """Return ``node`` with documents of ``format`` ("" keeps each as it is) and layers replaced.

    ``layers`` maps the digest of a layer to what stands for it. An index keeps only the entries of its children.
    Raises Unsupported for what Docker's types cannot say: artifacts, subjects, entries without a platform.
    """
    if node.is_index:
        return _index(node, format, layers or {})
    return _manifest(node, format, layers or {})


def _manifest(node: Node, format: str, layers: Mapping[str, Other]) -> Node:
    target = format or format_of(node)
    document = dict(node.document)
    media_type = node.descriptor["mediaType"]
    if target != format_of(node):
        if target == "docker":
            _refuse_docker(node)
            document.pop("annotations", None)
        media_type = _TABLES[target][media_type]
        document["mediaType"] = media_type
        document["config"] = _typed(document["config"], target)
    config = _config(node, layers)
    if config is not None:
        kept = {key: value for key, value in document["config"].items() if key != "data"}
        document["config"] = {**kept, "digest": sha256_of(config), "size": len(config)}
        node = node.replace(config=config)
    document["layers"] = [_layer(layer, target, layers) for layer in document["layers"]]
    return node if document == node.document else _remade(node, document, media_type)


def _config(node: Node, layers: Mapping[str, Other]) -> bytes | None:
    """Return a config that names the layers' new diffIDs; None when none has another one."""
    others = [layers.get(layer["digest"]) for layer in node.document["layers"]]
    if node.config is None or not any(other is not None and other.diff_id for other in others):
        return None
    config = fastjson.loads(node.config, f"config of {node.digest}")
    old = config["rootfs"]["diff_ids"]
    new = [
        other.diff_id if other is not None and other.diff_id else was for other, was in zip(others, old, strict=True)
    ]
    config["rootfs"] = {**config["rootfs"], "diff_ids": new}
    return fastjson.dumps(config)


def _layer(layer: dict[str, Any], target: str, layers: Mapping[str, Other]) -> dict[str, Any]:
    other = layers.get(layer["digest"])
    if other is not None:
        kept = {key: value for key, value in layer.items() if key not in ("data", "urls", "annotations")}
        notes = {
            name: value
            for name, value in (layer.get("annotations") or {}).items()
            if not name.startswith(mediatypes.TABLE_PREFIXES)
        } | other.descriptor.get("annotations", {})
        layer = {**kept, **other.descriptor, **({"annotations": notes} if notes else {})}
    return _typed(layer, target) if layer["mediaType"] in mediatypes.LAYERS else layer


def _typed(descriptor: dict[str, Any], target: str) -> dict[str, Any]:
    media_type = descriptor["mediaType"]
    if media_type in _TABLES[target]:
        return {**descriptor, "mediaType": _TABLES[target][media_type]}
    if target == "docker" and media_type == mediatypes.LAYER_FOREIGN_ZSTD:
        raise Unsupported(f"{printable(media_type)} {descriptor['digest']}", "Docker's format has no name for it")
    return descriptor


def _refuse_docker(node: Node) -> None:
    """Raise Unsupported for a manifest that Docker's format cannot hold."""
    what = f"{node.digest} in Docker's image format"
    if node.config is None:
        kind = node.document.get("artifactType") or node.document["config"]["mediaType"]
        raise Unsupported(what, f"it is {printable(kind)!r}, not an image")
    if "subject" in node.document:
        raise Unsupported(what, "it has a subject")


def _index(node: Node, format: str, layers: Mapping[str, Other]) -> Node:
    children = tuple(converted(child, format, layers) for child in node.children)
    changed = {old.digest: new for old, new in zip(node.children, children, strict=True)}
    target = format or format_of(node)
    media_type = node.descriptor["mediaType"]
    document = dict(node.document)
    if target != format_of(node):
        media_type = _TABLES[target][media_type]
        document["mediaType"] = media_type
        if target == "docker":
            document.pop("annotations", None)
    entries = []
    for entry in document["manifests"]:
        new = changed.get(entry["digest"])
        if new is None:
            continue
        if new.descriptor["digest"] != entry["digest"]:
            entry = {key: value for key, value in entry.items() if key != "data"}
            entry.update(mediaType=new.descriptor["mediaType"], digest=new.digest, size=new.descriptor["size"])
        if target == "docker" and "platform" not in entry:
            raise Unsupported(f"index {node.digest} in Docker's format", f"{entry['digest']} states no platform")
        entries.append(entry)
    document["manifests"] = entries
    node = node.replace(children=children)
    return node if document == node.document else _remade(node, document, media_type)


def _remade(node: Node, document: dict[str, Any], media_type: str) -> Node:
    data = fastjson.dumps(document)
    descriptor: Descriptor = {"mediaType": media_type, "digest": sha256_of(data), "size": len(data)}
    if "platform" in node.descriptor:
        descriptor["platform"] = node.descriptor["platform"]
    if "artifactType" in node.descriptor:
        descriptor["artifactType"] = node.descriptor["artifactType"]
    made: Node = node.replace(descriptor=descriptor, data=data, document=document)
    return made

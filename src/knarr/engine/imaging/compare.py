"""What differs between two images: files by content and metadata, config, history, annotations; and the first entry.

``diff`` compares what people see: the merged trees and the documents. ``first_difference`` compares how the
images were built: layer by layer, entry by entry in the order of the archives, for two builds that should have been
one.
"""

from __future__ import annotations

from itertools import zip_longest

from knarr.base.record import Record
from knarr.engine.imaging.layers import model_of
from knarr.engine.imaging.look import text_of
from knarr.layer.model import content_digest
from knarr.layer.tarball import FILE, KINDS, SYMLINK, Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from knarr.engine.imaging.image import Image, Layer
    from knarr.layer.model import Node
    from knarr.layer.tarball import Entry


class Difference(Record):
    """One difference. ``kind``: file, config, history, annotation, manifest. ``what``: added, removed, changed.

    ``name`` is a path or a field; ``fields`` maps what changed of a file to (before, after), for others it has "".
    """

    kind: str
    what: str
    name: str
    fields: dict[str, tuple[Any, Any]]

    def told(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: {"before": pair[0], "after": pair[1]} for name, pair in self.fields.items()}
        return {"kind": self.kind, "what": self.what, "name": self.name, "fields": fields}


def diff(one: Image, two: Image, *, mtime: bool = True) -> list[Difference]:
    """Everything that differs, documents first, then files by path; ``mtime`` False leaves times of files out.

    Reads all layers of both but those they share from the bottom are read once. Raises as reading images does.
    """
    found = [*_documents(one, two)]
    if one.config is None or two.config is None:
        return found
    if one.image_config()["rootfs"]["diff_ids"] == two.image_config()["rootfs"]["diff_ids"]:
        return found
    before, after = model_of(one, hashed=True).flat(), model_of(two, hashed=True).flat()
    before_links, after_links = _links(before), _links(after)
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        name = "/" + text_of(path)
        if old is None or new is None:
            found.append(Difference("file", "added" if old is None else "removed", name, {}))
            continue
        fields = _fields(old.entry, new.entry, mtime=mtime)
        if old.entry.kind == new.entry.kind == FILE and old.digest != new.digest:
            fields["content"] = (f"sha256:{old.digest}", f"sha256:{new.digest}")
        if before_links.get(path) != after_links.get(path):
            fields["links"] = (_names(before_links.get(path)), _names(after_links.get(path)))
        if fields:
            found.append(Difference("file", "changed", name, fields))
    return found


def _links(tree: Mapping[bytes, Node]) -> dict[bytes, tuple[bytes, ...]]:
    """All names of the file a path is, by path, for files with several."""
    names: dict[int, list[bytes]] = {}
    for path, node in tree.items():
        if node.children is None:
            names.setdefault(id(node), []).append(path)
    return {path: tuple(sorted(group)) for group in names.values() if len(group) > 1 for path in group}


def _names(paths: tuple[bytes, ...] | None) -> list[str]:
    return ["/" + text_of(path) for path in paths or ()]


def _fields(one: Entry, two: Entry, *, mtime: bool) -> dict[str, tuple[Any, Any]]:
    """What two headers say differently of a file."""
    pairs: dict[str, tuple[Any, Any]] = {
        "type": (KINDS[one.kind], KINDS[two.kind]),
        "mode": (f"{one.mode:04o}", f"{two.mode:04o}"),
        "uid": (one.uid, two.uid),
        "gid": (one.gid, two.gid),
        "size": (one.size, two.size) if one.kind == two.kind == FILE else (0, 0),
        "mtime": (one.mtime, two.mtime) if mtime else (0, 0),
        "target": (text_of(one.link), text_of(two.link)) if one.kind == two.kind == SYMLINK else ("", ""),
        "device": (list(one.device), list(two.device)),
        "xattrs": (_attributes(one), _attributes(two)),
    }
    if one.kind == two.kind == SYMLINK:
        del pairs["mode"]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _attributes(entry: Entry) -> dict[str, str]:
    return {text_of(name): value.hex() for name, value in sorted((entry.xattrs or {}).items())}


def _documents(one: Image, two: Image) -> Iterator[Difference]:
    for field in ("mediaType", "artifactType", "subject"):
        yield from _member("manifest", field, one.manifest.get(field), two.manifest.get(field))
    yield from _map("annotation", "", one.annotations, two.annotations)
    before, after = one.config or {}, two.config or {}
    skipped = {"config", "rootfs", "history"}
    yield from _map("config", "", {k: v for k, v in before.items() if k not in skipped},
                    {k: v for k, v in after.items() if k not in skipped})  # fmt: skip
    run_before, run_after = before.get("config") or {}, after.get("config") or {}
    for name in dict.fromkeys((*run_before, *run_after)):
        left, right = run_before.get(name), run_after.get(name)
        if name == "Env":
            left, right = _variables(left), _variables(right)
        if isinstance(left or right, dict) and name != "Healthcheck":
            yield from _map("config", f"{name}.", left or {}, right or {})
        else:
            yield from _member("config", name, left or None, right or None)
    for number, (old, new) in enumerate(zip_longest(before.get("history") or (), after.get("history") or ())):
        yield from _member("history", str(number), old, new)


def _variables(entries: list[str] | None) -> dict[str, str]:
    return {name: value for name, _equals, value in (entry.partition("=") for entry in entries or ())}


def _map(kind: str, start: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted({*one, *two}):
        yield from _member(kind, start + name, one.get(name), two.get(name))


def _member(kind: str, name: str, old: Any, new: Any) -> Iterator[Difference]:
    if old == new:
        return
    what = "added" if old is None else "removed" if new is None else "changed"
    yield Difference(kind, what, name, {"": (old, new)})


# -- two builds that should be one -------------------------------------------------------------------------


class First(Record):
    """The first thing in which two builds differ: in which layer (-1: none), which entry, and how."""

    layer: int
    entry: int
    path: str
    fields: dict[str, tuple[Any, Any]]
    why: str

    def told(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: {"before": pair[0], "after": pair[1]} for name, pair in self.fields.items()}
        return {"layer": self.layer, "entry": self.entry, "path": self.path, "fields": fields, "why": self.why}


def first_difference(one: Image, two: Image) -> First | None:
    """The first entry of the first layer that differs; else the first field of the documents; None for equal images."""
    if one.digest == two.digest:
        return None
    layers = (one.layers, two.layers)
    for number, (left, right) in enumerate(zip(*layers, strict=False)):
        if left.diff_id != right.diff_id:
            return _first_in(number, left, right)
    if len(layers[0]) != len(layers[1]):
        number = min(map(len, layers))
        why = f"one has {len(layers[0])} layers, the other {len(layers[1])}"
        return First(number, -1, "", {}, why)
    for difference in _documents(one, two):
        why = f"{difference.kind} {difference.name}" if difference.name else difference.kind
        return First(-1, -1, "", difference.fields, f"{why} is {difference.what}; all layers have the same files")
    for number, (left, right) in enumerate(zip(*layers, strict=True)):
        if left.descriptor != right.descriptor:
            pair = {"descriptor": (dict(left.descriptor), dict(right.descriptor))}
            return First(number, -1, "", pair, "the layer is the same, but compressed or described otherwise")
    return First(-1, -1, "", {}, "the documents say the same but are written otherwise: spaces, order of members")


def _first_in(number: int, left: Layer, right: Layer) -> First:
    streams = (left.stream(), right.stream())
    try:
        readers = (Reader(streams[0], what=left.what), Reader(streams[1], what=right.what))
        count = 0
        while True:
            old, new = readers[0].next(), readers[1].next()
            if old is None or new is None:
                if old is new:
                    break
                there = old or new
                path = text_of(there.name) if there else ""
                why = f"only {'the first' if new is None else 'the second'} has this entry"
                return First(number, count, path, {}, why)
            fields = _fields(old, new, mtime=True)
            if old.name != new.name:
                fields = {"name": (text_of(old.name), text_of(new.name)), **fields}
            elif text_of(old.link) != text_of(new.link):
                fields["target"] = (text_of(old.link), text_of(new.link))
            if old.kind == new.kind == FILE and not fields:
                digests = (content_digest(old, readers[0]), content_digest(new, readers[1]))
                if digests[0] != digests[1]:
                    fields["content"] = (f"sha256:{digests[0]}", f"sha256:{digests[1]}")
            if fields:
                return First(number, count, text_of(old.name), fields, f"{', '.join(fields)} differ")
            count += 1
    finally:
        for stream in streams:
            stream.close()
    why = "all entries are the same; the archives differ in what no file has: names of owners, padding, kind of headers"
    return First(number, count, "", {}, why)

"""Looking into images without unpacking them: list, read a file, which layer, how much. Local and remote alike.

Layers are read from the top down and only as far as the answer needs: a file is looked for in the uppermost layer
first, and layers below the one that has or hides it are never fetched. A layer that was begun is read to its end, so
that what is told of it is verified; ``quick`` stops at the first entry instead, whose bytes nobody has verified then.
"""

from __future__ import annotations

import os
from errno import EFBIG, EINVAL, EISDIR

from knarr.base.errors import FileError, FormatError, NotFound, Unsupported
from knarr.base.record import Record
from knarr.engine.imaging.layers import model_of
from knarr.kernel.path import printable
from knarr.layer.model import MOST_ENTRIES, directory, expanded
from knarr.layer.tarball import DIR, FILE, HARDLINK, SYMLINK, Reader
from knarr.layer.view import LINKS_LIMIT
from knarr.layer.whiteout import OPAQUE, PREFIX, BadName, components, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from knarr.engine.imaging.image import Image, Layer
    from knarr.layer.model import Change, Model, Node
    from knarr.layer.tarball import Entry

_PARTIAL = b"\0"  # no name has a NUL: marks a layer whose rest was not read
FILE_LIMIT = 1 << 30
"""Most bytes of a file that is read into memory."""
_LETTERS = {FILE: "-", DIR: "d", SYMLINK: "l", 3: "c", 4: "b", 6: "p"}
_NAMES = {FILE: "file", DIR: "directory", SYMLINK: "symlink", 3: "char", 4: "block", 6: "fifo"}


def described(path: bytes, entry: Entry) -> dict[str, Any]:
    """One file for JSON: bytes that are not UTF-8 as surrogates are escaped when printed."""
    told: dict[str, Any] = {
        "path": "/" + text_of(path),
        "type": _NAMES[entry.kind],
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": entry.mtime,
    }
    if entry.kind == SYMLINK:
        told["target"] = text_of(entry.link)
    if entry.kind in (3, 4):
        told["device"] = f"{entry.device[0]}:{entry.device[1]}"
    if entry.xattrs:
        told["xattrs"] = {text_of(name): value.hex() for name, value in sorted(entry.xattrs.items())}
    return told


def text_of(raw: bytes) -> str:
    """A name as text; bytes that are not UTF-8 are escaped, so that it can be JSON."""
    return raw.decode("utf-8", "backslashreplace")


def mode_text(entry: Entry) -> str:
    """``-rw-r--r--`` and the like."""
    import stat

    return _LETTERS[entry.kind] + stat.filemode(entry.mode)[1:]


def files(image: Image, path: str = "/", *, recursive: bool = True, hashed: bool = False) -> list[tuple[bytes, Node]]:
    """The files at and below a path of the image, in order; a last link is followed when it leads to a directory.

    Reads all layers. Raises NotFound, FormatError.
    """
    model = model_of(image, hashed=hashed)
    start, node = located(model, image, path)
    if node.children is None:
        return [(start, node)]
    if recursive:
        return list(model.walk(start))
    begin = start + b"/" if start else b""
    return [(begin + name, node.children[name]) for name in sorted(node.children)]


def located(model: Model, image: Image, path: str, *, follow: bool = True) -> tuple[bytes, Node]:
    """The canonical path and node of a path; raises NotFound, FormatError when its links go in circles."""
    raw = os.fsencode(path)
    try:
        found = model.find(raw, follow=follow)
    except BadName as error:
        raise FormatError(image.name or "the image", f"path {printable(path)!r}", str(error)) from None
    if found is None:
        raise NotFound("file", f"{printable(path)} in {image.name or 'the image'}")
    return found


def read_file(image: Image, path: str, *, quick: bool = False, limit: int = FILE_LIMIT) -> bytes:
    """A file's content, links followed inside the image; at most ``limit`` bytes. Raises NotFound, FileError, ….

    The layers are read from the top, down to the one that has the file; ``quick`` stops at the file, before the
    layer could be verified.
    """
    found = Finder(image, quick=quick, content=limit).find(path)
    if found.entry.kind != FILE or found.content is None:
        what = f"/{printable(found.path)} of {image.name or 'the image'}"
        raise FileError("read", what, EISDIR if found.entry.kind == DIR else EINVAL, hint="it is not a regular file")
    return found.content


def touches(
    image: Image, path: str, *, everything: bool = False, quick: bool = False
) -> tuple[bytes, list[Touch], tuple[int, ...]]:
    """What layers do to a path: the canonical path, what each layer does, the top first, and which layers were read.

    Without ``everything`` only the uppermost that does something. Links above the path are followed, not the last.
    """
    finder = Finder(image, quick=quick)
    parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
    where = b""
    if parts:
        above = b"/".join(parts[:-1])
        try:
            start = finder.find(os.fsdecode(above)).path if above else b""
        except NotFound:
            start = above  # the directory is gone, too: some layer may have taken it away
        where = start + b"/" + parts[-1] if start else parts[-1]
    found = []
    for touch in finder.touches(where):
        found.append(touch)
        if not everything:
            break
    return where, found, finder.read


def usage(image: Image) -> dict[str, Any]:
    """How many bytes each layer holds, and how many of them no file of the image has any more.

    ``wasted`` of a layer are the bytes of its files that layers above replace or hide; ``kept`` what is seen.
    """
    stored: dict[int, int] = {}
    counts: dict[int, int] = {}
    hidden: dict[int, int] = {}

    def seen(change: Change) -> None:
        if change.what != "set":
            hidden[change.layer] = hidden.get(change.layer, 0) + 1
            return
        counts[change.layer] = counts.get(change.layer, 0) + 1
        if change.node is not None and change.node.layer == change.layer and change.node.entry.kind == FILE:
            stored[id(change.node)] = change.layer
            sizes[id(change.node)] = change.node.entry.size
            held.append(change.node)

    sizes: dict[int, int] = {}
    held: list[Node] = []  # so that no id is given twice
    model = model_of(image, seen=seen)
    kept = {id(node) for node in model.flat().values()}
    rows = []
    for number, layer in enumerate(image.layers):
        own = [key for key, of in stored.items() if of == number]
        size = sum(sizes[key] for key in own)
        wasted = sum(sizes[key] for key in own if key not in kept)
        rows.append(
            {
                "layer": number,
                "digest": layer.digest,
                "compressed": layer.size,
                "entries": counts.get(number, 0),
                "whiteouts": hidden.get(number, 0),
                "size": size,
                "wasted": wasted,
                "created_by": str(layer.history.get("created_by") or ""),
            }
        )
    return {
        "layers": rows,
        "compressed": sum(row["compressed"] for row in rows),
        "size": sum(row["size"] for row in rows),
        "wasted": sum(row["wasted"] for row in rows),
    }


# -- one path, top down ------------------------------------------------------------------------------------


class Touch(Record):
    """What one layer does to a path: ``what`` is set, hidden, opaque (the directory above hides it) or replaced.

    replaced: something that is no directory stands in place of a directory above it.
    """

    layer: int
    what: str
    path: bytes
    entry: Entry | None = None


class Sighting(Record):
    """Where a path was found: canonical ``path``, its header, the layer, and the layers that were read for it."""

    path: bytes
    entry: Entry
    layer: int
    read: tuple[int, ...]
    content: bytes | None = None


class Finder:
    """Looks paths up from the top layer down. What was read once is remembered: names and headers, no contents.

    ``quick``: stop reading a layer at the entry that was looked for; ``content``: at most so many bytes of the file
    that was looked for are kept as they pass by.
    """

    def __init__(self, image: Image, *, quick: bool = False, content: int = -1) -> None:
        self.image = image
        self.layers = image.layers
        self.quick = quick
        self._limit = content
        self._known: dict[int, dict[bytes, Entry]] = {}
        self._content: tuple[int, bytes, bytes] | None = None

    @property
    def read(self) -> tuple[int, ...]:
        """The layers that were read, by number."""
        return tuple(sorted(self._known))

    def _names(self, number: int, wanted: bytes) -> dict[bytes, Entry]:
        """The entries of a layer by path; with ``quick`` perhaps only those up to ``wanted``."""
        known = self._known.get(number)
        if known is None or (self.quick and wanted not in known and _PARTIAL in known):
            known = self._known[number] = self._list(self.layers[number], number, wanted)
        return known

    def _list(self, layer: Layer, number: int, wanted: bytes) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        stream = layer.stream()
        name = b""
        try:
            reader = Reader(stream, what=layer.what)
            for entry in reader:
                name = entry.name
                if reader.count > MOST_ENTRIES:
                    raise Unsupported(f"a layer of more than {MOST_ENTRIES} entries", "they would not fit into memory")
                parent, base = split(entry.name)
                path = b"/".join([*components(parent), base]) if base else b""
                found[path] = entry
                if path != wanted:
                    continue
                if entry.kind == FILE and self._limit >= 0:
                    self._content = (number, path, self._take(entry, reader))
                if self.quick:
                    found[_PARTIAL] = entry
                    return found
            reader.drain()
        except BadName as error:
            raise FormatError(layer.what, f"entry {printable(name)!r}", str(error)) from None
        finally:
            stream.close()
        return found

    def _take(self, entry: Entry, reader: Reader) -> bytes:
        if entry.size > self._limit:
            hint = f"it has {entry.size} bytes, at most {self._limit} are read"
            raise FileError("read", f"{printable(entry.name)} in the image", EFBIG, hint=hint)
        return b"".join(bytes(part) for part in expanded(entry, reader))

    def touches(self, path: bytes) -> Iterator[Touch]:
        """What each layer does to a path (links are not followed), the top first; lower ones are read as asked for."""
        for number in reversed(range(len(self.layers))):
            touch = self._touch(number, path)
            if touch is not None:
                yield touch

    def _touch(self, number: int, path: bytes) -> Touch | None:
        names = self._names(number, path)
        own = names.get(path)
        if own is not None:
            return Touch(number, "set", path, own)
        parent, slash, base = path.rpartition(b"/")
        if parent + slash + PREFIX + base in names:
            return Touch(number, "hidden", path)
        # Something further up may end what is below: a whiteout, an opaque directory, a file in a directory's place.
        while True:
            if (parent + b"/" + OPAQUE if parent else OPAQUE) in names:
                return Touch(number, "opaque", parent)
            if not parent:
                return None
            above = names.get(parent)
            if above is not None and above.kind != DIR:
                return Touch(number, "replaced", parent, above)
            folder, slash, name = parent.rpartition(b"/")
            if folder + slash + PREFIX + name in names:
                return Touch(number, "hidden", parent)
            parent = folder

    def entry(self, path: bytes) -> tuple[int, Entry] | None:
        """The layer and header that show at a path free of links, None when there is nothing.

        A layer that only has files below the path implies a directory; the header of that is made up.
        """
        for number in reversed(range(len(self.layers))):
            touch = self._touch(number, path)
            if touch is not None:
                if touch.what == "set" and touch.entry is not None:
                    return number, touch.entry
                if not self._implied(number, path):
                    return None
            if self._implied(number, path):
                lower = self._lower(number, path) if touch is None else None
                return lower if lower is not None else (number, _folder(path))
        return None

    def _lower(self, number: int, path: bytes) -> tuple[int, Entry] | None:
        """A directory's header from below a layer that only implies it."""
        for below in reversed(range(number)):
            touch = self._touch(below, path)
            if touch is not None:
                ok = touch.what == "set" and touch.entry is not None and touch.entry.kind in (DIR, SYMLINK)
                return (below, touch.entry) if ok and touch.entry is not None else None
        return None

    def _implied(self, number: int, path: bytes) -> bool:
        if not path:
            return True
        start = path + b"/"
        return any(
            name.startswith(start) and not name.rpartition(b"/")[2].startswith(PREFIX)
            for name in self._names(number, path)
        )

    def find(self, path: str, *, follow: bool = True) -> Sighting:
        """Find a path, links followed inside the root (the last only if ``follow``). Raises NotFound, FormatError."""
        shown = f"{printable(path)} in {self.image.name or 'the image'}"
        at: list[bytes] = []
        todo = os.fsencode(path).split(b"/")[::-1]
        links = 0
        found = self.entry(b"") or (0, _folder(b""))
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if at:
                    at.pop()
                continue
            here = b"/".join((*at, part))
            there = self.entry(here)
            if there is None:
                raise NotFound("file", shown)
            number, entry = found = there
            last = not any(rest not in (b"", b".") for rest in todo)
            if entry.kind == SYMLINK and (follow or not last):
                links += 1
                if links > LINKS_LIMIT:
                    place = f"path {printable(path)!r}"
                    raise FormatError(self.image.name or "the image", place, "its links go in circles")
                if entry.link.startswith(b"/"):
                    at.clear()
                todo.extend(entry.link.split(b"/")[::-1])
                continue
            if not last and entry.kind != DIR:
                raise NotFound("file", shown)
            at.append(part)
        where = b"/".join(at)
        found = self.entry(where) or found
        number, entry = found
        hops = 0
        name = where
        while entry.kind == HARDLINK:  # the file it is lies in the same layer or below, under its own name
            hops += 1
            target = b"/".join(components(entry.link))
            deeper = self._target(number, target)
            if deeper is None or hops > LINKS_LIMIT:
                raise NotFound("file", f"{printable(target)}, to which {shown} is a hard link")
            number, entry = deeper
            name = target
        content = self._content[2] if self._content and self._content[:2] == (number, name) else None
        if content is None and entry.kind == FILE and self._limit >= 0:
            self._list(self.layers[number], number, _name_in(self._known[number], entry))
            content = self._content[2] if self._content else None
        return Sighting(where, entry, number, self.read, content)

    def _target(self, number: int, path: bytes) -> tuple[int, Entry] | None:
        """What a hard link of layer ``number`` leads to: that layer's own file, else what shows below it."""
        own = self._names(number, path).get(path)
        if own is not None:
            return number, own
        for below in reversed(range(number)):
            touch = self._touch(below, path)
            if touch is not None:
                return (below, touch.entry) if touch.what == "set" and touch.entry is not None else None
        return None


def _name_in(names: dict[bytes, Entry], entry: Entry) -> bytes:
    return next(name for name, one in names.items() if one is entry)


def _folder(path: bytes) -> Entry:
    made = directory()
    made.name = path
    return made

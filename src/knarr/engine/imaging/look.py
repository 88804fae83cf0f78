"""Looking into images without unpacking them: list, read a file, which layer, how much. Local and remote alike.

Layers are read from the top down and only as far as the answer needs: a file is looked for in the uppermost layer
first, and layers below the one that has or hides it are never fetched. A layer that was begun is read to its end, so
that what is told of it is verified; ``quick`` stops at the first entry instead, whose bytes nobody has verified then.
"""

from __future__ import annotations

import os
from errno import EFBIG, EINVAL, EISDIR, ELOOP, ENOTDIR

from knarr.base.errors import FileError, FormatError, NotFound, Unsupported
from knarr.base.record import Record
from knarr.engine.imaging.layers import model_of
from knarr.kernel.path import printable
from knarr.layer.model import MOST_ENTRIES, directory, expanded
from knarr.layer.tarball import DIR, FILE, HARDLINK, SYMLINK, Reader
from knarr.layer.view import resolve_links
from knarr.layer.whiteout import OPAQUE, PREFIX, BadName, components, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from knarr.engine.imaging.image import Image
    from knarr.layer.chunked import LayerIndex
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


def files(
    image: Image, path: str = "/", *, recursive: bool = True, hashed: bool = False, whole: bool = False
) -> list[tuple[bytes, Node]]:
    """The files at and below a path of the image, in order; a last link is followed when it leads to a directory.

    Reads all layers; of a registry's that have a table of contents that alone, unless ``whole`` or ``hashed``.
    Raises NotFound, FormatError.
    """
    model = model_of(image, hashed=hashed, index=not whole)
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


def read_file(image: Image, path: str, *, quick: bool = False, whole: bool = False, limit: int = FILE_LIMIT) -> bytes:
    """A file's content, links followed inside the image; at most ``limit`` bytes. Raises NotFound, FileError, ….

    The layers are read from the top, down to the one that has the file; of a registry's layer that has a table of
    contents that and the file, unless ``whole``. ``quick`` stops at the file, before the layer could be verified.
    """
    found = Finder(image, quick=quick, content=limit, whole=whole).find(path)
    if found.entry.kind != FILE or found.content is None:
        what = f"/{printable(found.path)} of {image.name or 'the image'}"
        raise FileError("read", what, EISDIR if found.entry.kind == DIR else EINVAL, hint="it is not a regular file")
    return found.content


def touches(
    image: Image, path: str, *, everything: bool = False, quick: bool = False, whole: bool = False
) -> tuple[bytes, list[Touch], tuple[int, ...]]:
    """What layers do to a path: the canonical path, what each layer does, the top first, and which layers were read.

    Without ``everything`` only the uppermost that does something. Links above the path are followed, not the last.
    """
    finder = Finder(image, quick=quick, whole=whole)
    parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
    where = b"/".join(parts)
    found = _touches(finder, where, everything=everything) if b".." not in parts else []
    if len(parts) > 1 and (not found or found[0].what == "replaced"):  # a directory above it may be a link
        try:
            where = finder.find(os.fsdecode(b"/".join(parts[:-1]))).path + b"/" + parts[-1]
        except NotFound:
            return where, found, finder.read
        found = _touches(finder, where, everything=everything)
    return where, found, finder.read


def _touches(finder: Finder, where: bytes, *, everything: bool) -> list[Touch]:
    found = []
    for touch in finder.touches(where):
        found.append(touch)
        if not everything:
            break
    return found


def usage(image: Image, *, whole: bool = False) -> dict[str, Any]:
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
    model = model_of(image, seen=seen, index=not whole)
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


class _Names:
    """The entries of one layer by path, as they come; ``places`` says which entry a header was (the first is 1)."""

    def __init__(self, what: str) -> None:
        self.found: dict[bytes, Entry] = {}
        self.places: dict[int, int] = {}
        self._what = what
        self._folders: set[bytes] = set()

    def add(self, entry: Entry, place: int) -> tuple[bytes, Entry]:
        """Take an entry; its path, and the header that shows there. Raises FormatError, Unsupported."""
        if place > MOST_ENTRIES:
            raise Unsupported(f"a layer of more than {MOST_ENTRIES} entries", "they would not fit into memory")
        found, folders = self.found, self._folders
        try:
            parent, base = split(entry.name)
            parent = b"/".join(components(parent))
            target = b"/".join(components(entry.link)) if entry.kind == HARDLINK else b""
        except BadName as error:
            raise FormatError(self._what, f"entry {printable(entry.name)!r}", str(error)) from None
        path = parent + b"/" + base if parent else base
        if entry.kind == HARDLINK:
            entry = found.get(target, entry)  # a link to a layer below stays one
        else:
            self.places[id(entry)] = place
        before = found.get(path)
        found[path] = entry
        if entry.kind == DIR and before is not None and before.kind != DIR:
            found[path + b"/" + OPAQUE] = entry  # the file hid what is below, and nothing brings it back
        if entry.kind != DIR and path in folders:  # a file in place of a directory of this very layer
            for gone in [name for name in found if name.startswith(path + b"/")]:
                del found[gone]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition(b"/")[0]
        return path, entry


class Finder:
    """Looks paths up from the top layer down. What was read once is remembered: names and headers, no contents.

    ``quick``: stop reading a layer at the entry that was looked for; ``content``: at most so many bytes of the file
    that was looked for are kept as they pass by. ``whole``: do without tables of contents.
    """

    def __init__(self, image: Image, *, quick: bool = False, content: int = -1, whole: bool = False) -> None:
        self.image = image
        self.layers = image.layers
        self.quick = quick
        self._limit = content
        self._whole = whole
        self._indexes: dict[int, LayerIndex | None] = {}
        self._known: dict[int, dict[bytes, Entry]] = {}
        self._content: tuple[int, int, bytes] | None = None  # layer, entry, bytes
        self._places: dict[int, dict[int, int]] = {}  # layer -> id of a header -> which entry it is

    @property
    def read(self) -> tuple[int, ...]:
        """The layers that were read, by number."""
        return tuple(sorted(self._known))

    def _names(self, number: int, wanted: bytes) -> dict[bytes, Entry]:
        """The entries of a layer by path; with ``quick`` perhaps only those up to ``wanted``."""
        known = self._known.get(number)
        if known is None or (self.quick and wanted not in known and _PARTIAL in known):
            known = self._known[number] = self._list(number, wanted)
        return known

    def _list(self, number: int, wanted: bytes) -> dict[bytes, Entry]:
        """Read a layer: its files by path; if one at ``wanted`` passes by, its content is kept."""
        layer = self.layers[number]
        names = _Names(layer.what)
        self._places[number] = names.places
        index = self._index(number)
        if index is not None:
            for place, entry in enumerate(index.entries, 1):
                names.add(entry, place)
            return names.found
        stream = layer.source().stream(ahead=not self.quick)
        try:
            reader = Reader(stream, what=layer.what)
            for entry in reader:
                path, shown = names.add(entry, reader.count)
                if path == wanted:
                    if shown.kind == FILE and self._limit >= 0 and names.places[id(shown)] == reader.count:
                        self._content = (number, reader.count, self._take(shown, reader))
                    if self.quick:
                        names.found[_PARTIAL] = shown
                        return names.found
            reader.drain()
        finally:
            stream.close()
        return names.found

    def _index(self, number: int) -> LayerIndex | None:
        """The layer's table of contents, asked for once; None when it is to be read whole."""
        if number not in self._indexes:
            self._indexes[number] = None if self._whole else self.layers[number].index()
        return self._indexes[number]

    def _read(self, number: int, place: int) -> bytes:
        """The content of entry ``place`` (the first is 1) of a layer, which is read once more for it."""
        layer = self.layers[number]
        index = self._index(number)
        if index is not None:
            self._fits(index.entries[place - 1])
            return index.read(place - 1, self._limit)
        stream = layer.source().stream(ahead=not self.quick)
        try:
            reader = Reader(stream, what=layer.what)
            data = b""
            for entry in reader:
                if reader.count == place:
                    data = self._take(entry, reader)
                    if self.quick:
                        return data
            reader.drain()
            return data
        finally:
            stream.close()

    def _take(self, entry: Entry, reader: Reader) -> bytes:
        self._fits(entry)
        return b"".join(bytes(part) for part in expanded(entry, reader))

    def _fits(self, entry: Entry) -> None:
        if entry.size > self._limit:
            hint = f"it has {entry.size} bytes, at most {self._limit} are read"
            raise FileError("read", f"{printable(entry.name)} in the image", EFBIG, hint=hint)

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
        where, number, entry = self._resolve(path, follow=follow)
        while entry.kind == HARDLINK:  # to a file of a layer below
            name = b"/".join(components(entry.link))
            deeper = self._target(number, name)
            if deeper is None:
                raise NotFound("file", f"{printable(name)}, to which {self._shown(path)} is a hard link")
            number, entry = deeper
        if entry.kind != FILE or self._limit < 0:
            return Sighting(where, entry, number, self.read)
        place = self._places[number][id(entry)]
        if self._content is not None and self._content[:2] == (number, place):
            return Sighting(where, entry, number, self.read, self._content[2])
        return Sighting(where, entry, number, self.read, self._read(number, place))

    def _shown(self, path: str) -> str:
        return f"{printable(path)} in {self.image.name or 'the image'}"

    def _resolve(self, path: str, *, follow: bool) -> tuple[bytes, int, Entry]:
        """The canonical path, layer and header of a path."""
        raw = os.fsencode(path)
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if parts and b".." not in parts:
            # Mostly nothing above it is a link; then the directories above need not be looked for in lower layers.
            direct = b"/".join(parts)
            found = self.entry(direct)
            if found is not None and not (follow and found[1].kind == SYMLINK):
                return direct, found[0], found[1]
        try:
            canonical, (number, entry) = resolve_links(
                raw, self._found, _link, _is_directory, follow=follow, where=self.image.name or "the image"
            )
        except FileError as error:
            if error.number == ELOOP:
                where = f"path {printable(path)!r}"
                raise FormatError(self.image.name or "the image", where, "its links go in circles") from None
            if error.number == ENOTDIR:
                raise NotFound("file", self._shown(path)) from None
            raise
        return canonical, number, entry

    def _found(self, path: bytes) -> tuple[int, Entry] | None:
        """As ``entry``; the root is there even if no layer has it."""
        return self.entry(path) or (None if path else (0, _folder(path)))

    def _target(self, number: int, path: bytes) -> tuple[int, Entry] | None:
        """What a hard link of layer ``number`` leads to, which that layer has not: what shows below it."""
        for below in reversed(range(number)):
            touch = self._touch(below, path)
            if touch is not None:
                return (below, touch.entry) if touch.what == "set" and touch.entry is not None else None
        return None


def _link(found: tuple[int, Entry]) -> bytes | None:
    return found[1].link if found[1].kind == SYMLINK else None


def _is_directory(found: tuple[int, Entry]) -> bool:
    return found[1].kind == DIR


def _folder(path: bytes) -> Entry:
    made = directory()
    made.name = path
    return made

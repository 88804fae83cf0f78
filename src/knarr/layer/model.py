"""Layers applied in memory: which file comes from which layer, without writing any. image-spec layer.md.

``Model`` takes changesets one after the other, as ``apply.py`` in its mode *merge* does, and keeps for every path its
header and the place of its content (layer, number of the entry). Hypothesis holds the two together. Looking into an
image, comparing, squashing and checking are all done on this.
"""

from __future__ import annotations

from errno import ELOOP

from knarr.base.errors import FileError, FormatError, NotFound, Unsupported
from knarr.kernel.path import printable
from knarr.layer.tarball import CHAR, DIR, FILE, HARDLINK, SYMLINK, Entry, Reader
from knarr.layer.view import LINKS_LIMIT, resolve_links
from knarr.layer.whiteout import OPAQUE, PREFIX, BadName, components, hidden_name, inside_meta, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from knarr.content.verify import Readable

MOST_ENTRIES = 1_000_000
"""Entries of one image that are kept in memory, half a kilobyte each; the largest images have a third of that."""
_STEPS = 500_000  # that following links may take in one layer, as in tree.py
_STEP = 1000  # entries counted at a time
_HASHED = 1 << 30  # a sparse file's holes count as bytes when it is hashed; above this it is hashed as stored


class Node:
    """A file of the model. One that has several names is one object. Never changed but for its ``children``.

    ``layer`` and ``number`` say which entry it came from (number -1: a directory that a layer only implied).
    ``digest`` is the sha256 of a file's content when it was asked for, "" otherwise.
    """

    __slots__ = ("children", "digest", "entry", "layer", "number")

    def __init__(self, entry: Entry, layer: int, number: int, digest: str = "") -> None:
        self.entry = entry
        self.layer = layer
        self.number = number
        self.digest = digest
        self.children: dict[bytes, Node] | None = {} if entry.kind == DIR else None


class Change:
    """What an entry did: ``path`` is canonical; ``what`` is set, hidden (a whiteout) or opaque."""

    __slots__ = ("layer", "node", "path", "what")

    def __init__(self, path: bytes, what: str, layer: int, node: Node | None) -> None:
        self.path = path
        self.what = what
        self.layer = layer
        self.node = node


def directory(mode: int = 0o755, mtime: int = 0) -> Entry:
    """The header of a directory that nobody described."""
    entry = Entry()
    entry.kind = DIR
    entry.mode = mode
    entry.mtime = mtime
    return entry


class Model:
    """An image's tree. ``root`` is its root, ``layers`` how many were applied."""

    def __init__(self, *, limit: int = MOST_ENTRIES) -> None:
        self.root = Node(directory(), -1, -1)
        self.layers = 0
        self._limit = limit
        self._left = limit

    # -- looking -------------------------------------------------------------------------------------------

    def get(self, path: bytes) -> Node | None:
        """The node at a canonical path, following no link."""
        node: Node | None = self.root
        for part in path.split(b"/") if path else ():
            if node is None or node.children is None:
                return None
            node = node.children.get(part)
        return node

    def find(self, path: bytes, *, follow: bool = True) -> tuple[bytes, Node] | None:
        """The canonical path and node of what a path names, links followed inside the root (the last if ``follow``).

        None when there is none. Raises BadName when links go in circles.
        """
        try:
            return resolve_links(path, self.get, _link, _is_directory, follow=follow)
        except NotFound:
            return None
        except FileError as error:
            if error.number == ELOOP:
                raise BadName("links in its path go in circles") from None
            return None  # in what is no directory

    def walk(self, start: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Every (canonical path, node) from ``start`` down, itself first, each directory's names in order."""
        top = self.get(start)
        todo = [(start, top)] if top is not None else []
        while todo:
            path, node = todo.pop()
            yield path, node
            if node.children:
                begin = path + b"/" if path else b""
                todo.extend((begin + name, node.children[name]) for name in sorted(node.children, reverse=True))

    def flat(self) -> dict[bytes, Node]:
        """Every path and its node: a picture that later layers do not change."""
        return dict(self.walk())

    # -- applying ------------------------------------------------------------------------------------------

    def apply(
        self,
        stream: Readable,
        *,
        hashed: bool = False,
        what: str = "layer",
        seen: Callable[[Change], None] | None = None,
        entries: Callable[[Entry], None] | None = None,
    ) -> None:
        """Apply the changeset in ``stream`` (plain tar), read to its end; ``hashed``: with digests of files.

        ``seen`` is told of every change as it is read, ``entries`` of every header before it is applied. Raises
        FormatError, Unsupported when the image has more entries than are kept, and what the stream raises; the model
        is then half changed and of no more use.
        """
        self._apply(Reader(stream, what=what), _Work(self, hashed, what, seen), entries)

    def replay(self, noted: Noted) -> None:
        """Apply a changeset whose entries were noted before; as ``apply``, without digests."""
        self._apply(noted, _Work(self, False, noted.what, None), None)

    def _apply(self, reader: Reader | Noted, work: _Work, entries: Callable[[Entry], None] | None) -> None:
        name = b""
        try:
            while (entry := reader.next()) is not None:
                name = entry.name
                self._left -= 1
                if self._left < 0:
                    raise Unsupported(f"an image of more than {self._limit} entries", "they would not fit into memory")
                if entries is not None:
                    entries(entry)
                work.one(entry, reader, reader.count - 1)
            reader.drain()
        except BadName as error:
            raise reader.fail(str(error), name) from None
        self.layers += 1

    def apply_entries(
        self, found: Iterable[Entry], *, what: str = "layer", seen: Callable[[Change], None] | None = None
    ) -> None:
        """Apply a changeset of which only the headers are at hand; as ``apply``."""
        work = _Work(self, False, what, seen)
        for number, entry in enumerate(found):
            self._left -= 1
            if self._left < 0:
                raise Unsupported(f"an image of more than {self._limit} entries", "they would not fit into memory")
            try:
                work.one(entry, None, number)
            except BadName as error:
                raise FormatError(what, f"entry {printable(entry.name)!r}", str(error)) from None
        self.layers += 1


def _link(node: Node) -> bytes | None:
    return node.entry.link if node.entry.kind == SYMLINK else None


def _is_directory(node: Node) -> bool:
    return node.children is not None


class Room:
    """How many entries of an image may still be noted; shared by the threads that note its layers."""

    def __init__(self) -> None:
        self._left = MOST_ENTRIES

    def take(self, entries: int) -> None:
        """Take room for so many; raises Unsupported."""
        self._left -= entries  # a step lost between two threads is one of thousands
        if self._left < 0:
            raise Unsupported(f"an image of more than {MOST_ENTRIES} entries", "they would not fit into memory")


class Noted:
    """The entries of a layer, read to its end and noted, to be applied when those below it are: no content.

    Raises what the reader raises, and Unsupported when there are more than there is ``room`` for.
    """

    def __init__(self, reader: Reader, room: Room) -> None:
        self.what = reader.what
        self.count = 0
        self._entries: list[Entry] = []
        while (entry := reader.next()) is not None:
            if len(self._entries) % _STEP == 0:
                room.take(_STEP)
            self._entries.append(entry)
        reader.drain()

    def next(self) -> Entry | None:
        """The next entry, as ``Reader.next``."""
        if self.count == len(self._entries):
            return None
        self.count += 1
        return self._entries[self.count - 1]

    def drain(self) -> None:
        """Nothing is left to read."""

    def fail(self, why: str, entry: bytes = b"") -> FormatError:
        """The error for an entry."""
        return FormatError(self.what, f"entry {printable(entry)!r}", why)


def content_digest(entry: Entry, reader: Reader) -> str:
    """The sha256 of a file's content, read from ``reader``; of a sparse one with its holes as zeros."""
    import hashlib

    made = hashlib.sha256()
    if entry.extents is None:
        for part in reader.chunks():
            made.update(part)
        return made.hexdigest()
    if entry.size > _HASHED:
        made.update(repr((entry.size, entry.extents)).encode())
        for part in reader.chunks():
            made.update(part)
        return f"sparse {made.hexdigest()}"
    for piece in expanded(entry, reader):
        made.update(piece)
    return made.hexdigest()


def expanded(entry: Entry, reader: Reader) -> Iterator[bytes | memoryview]:
    """A file's content with its holes as zeros."""
    if entry.extents is None:
        yield from reader.chunks()
        return
    zeros = bytes(1 << 20)
    at = left = 0
    extents = iter(entry.extents)
    for chunk in reader.chunks():
        taken = 0
        while taken < len(chunk):
            if not left:
                start, left = next(extents)
                while at < start:
                    step = min(start - at, len(zeros))
                    yield zeros[:step]
                    at += step
            step = min(left, len(chunk) - taken)
            yield chunk[taken : taken + step]
            at += step
            left -= step
            taken += step
    while at < entry.size:
        step = min(entry.size - at, len(zeros))
        yield zeros[:step]
        at += step


class _InMeta(Exception):
    """The entry lies in AUFS's book-keeping and is skipped."""


class _Work:
    """One layer being applied."""

    def __init__(
        self,
        model: Model,
        hashed: bool,  # noqa: FBT001  # called once, above
        what: str,
        seen: Callable[[Change], None] | None,
    ) -> None:
        self.model = model
        self.layer = model.layers
        self.hashed = hashed
        self.what = what
        self.seen = seen
        self.fresh = self.layer == 0
        self.mtime = 0
        self.created: set[bytes] = set()  # paths this layer made something at or below: its whiteouts spare them
        self.opaque: set[bytes] = set()  # directories in which nothing from below is left
        self.known: dict[bytes, tuple[bytes, Node]] = {}  # parents by their name in the archive
        self.steps = _STEPS

    def tell(self, path: bytes, what: str, node: Node | None = None) -> None:
        if self.seen is not None:
            self.seen(Change(path, what, self.layer, node))

    def one(self, entry: Entry, reader: Reader | Noted | None, number: int) -> None:
        literal, base = split(entry.name)
        self.mtime = entry.mtime
        model = self.model
        if not base:
            if entry.kind != DIR:
                raise BadName("the root entry must be a directory")
            old = model.root
            model.root = Node(entry, self.layer, number)
            model.root.children = old.children
            self.known.clear()
            self.tell(b"", "set", model.root)
            return
        try:
            if base.startswith(PREFIX):
                self.whiteout(literal, base)
                return
            path, parent = self.parent(literal)
        except _InMeta:
            return
        children = parent.children
        if children is None:
            raise BadName("a component of its path is not a directory")
        full = path + b"/" + base if path else base
        if not self.fresh:
            self.note(path)
            self.created.add(full)
        old_node = children.get(base)
        kind = entry.kind
        if kind == DIR:
            node = Node(entry, self.layer, number)
            if old_node is not None and old_node.children is not None:
                node.children = old_node.children
            self.put(children, base, node, old_node)
        elif kind == HARDLINK:
            target = self.target(entry, full)
            if target is old_node:
                self.tell(full, "set", target)
                return
            node = target
            self.put(children, base, node, old_node)
        else:
            self.check(entry)
            node = Node(entry, self.layer, number)
            if kind == FILE and self.hashed and isinstance(reader, Reader):
                node.digest = content_digest(entry, reader)
            self.put(children, base, node, old_node)
        self.tell(full, "set", node)

    def put(self, children: dict[bytes, Node], base: bytes, node: Node, old: Node | None) -> None:
        """Give a name to a node; what had it goes."""
        if old is not None and (old.children is not None or old.entry.kind == SYMLINK):
            self.known.clear()
        children[base] = node

    def check(self, entry: Entry) -> None:
        """What apply.py refuses in an entry."""
        if entry.kind == SYMLINK and not entry.link:
            raise BadName("the symbolic link leads nowhere: its target is empty")
        major, minor = entry.device
        if not 0 <= major < 1 << 12 or not 0 <= minor < 1 << 20:
            raise BadName(f"device number {major}:{minor} is out of range")
        if entry.kind == CHAR and entry.device == (0, 0):
            raise BadName("device 0:0 is overlayfs's whiteout, which a layer must write as .wh.NAME")

    def target(self, entry: Entry, full: bytes) -> Node:
        """What a hard link at ``full`` leads to."""
        shown = printable(entry.link)
        try:
            literal, name = split(entry.link)
            if not name or name.startswith(PREFIX):
                raise BadName("not a file")
            where = self.search(literal)
        except (BadName, _InMeta) as error:
            raise BadName(f"it links to {shown!r}: {str(error) or 'not a file'}") from None
        node = where[1].children.get(name) if where is not None and where[1].children is not None else None
        # In place of a directory that the link leads into: that goes first, and the target with it.
        gone = where is not None and (where[0] + b"/").startswith(full + b"/")
        if node is None or gone:
            raise BadName(f"it links to {shown!r}, which does not exist in the image")
        if node.children is not None:
            raise BadName("it links to a directory")
        return node

    # -- directories ---------------------------------------------------------------------------------------

    def parent(self, literal: bytes) -> tuple[bytes, Node]:
        """The directory an entry is to be made in; made if missing."""
        known = self.known.get(literal)
        if known is None:
            parts = components(literal)
            if PREFIX in literal and inside_meta(parts):
                raise _InMeta
            found = self.follow(parts, make=True)
            if found is None:  # with make it is there
                raise BadName("a component of its path does not exist")
            known = self.known[literal] = found
        return known

    def search(self, literal: bytes) -> tuple[bytes, Node] | None:
        """The same, made by nobody; None if there is none."""
        parts = components(literal)
        if PREFIX in literal and inside_meta(parts):
            raise _InMeta
        return self.follow(parts, make=False)

    def follow(self, parts: list[bytes], *, make: bool) -> tuple[bytes, Node] | None:
        at: list[bytes] = []
        nodes = [self.model.root]
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if at:
                    at.pop()
                    nodes.pop()
                continue
            if links:
                self.steps -= 1
                if self.steps < 0:
                    raise BadName(f"links in the layer's paths need more than {_STEPS} steps")
            children = nodes[-1].children
            node = children.get(part) if children is not None else None
            if node is None:
                if not make:
                    return None
                if b".." in todo:
                    raise BadName("a link in its path goes up from a directory that does not exist")
                node = self.imply(nodes[-1], part)
            elif node.entry.kind == SYMLINK:
                links += 1
                if links > LINKS_LIMIT:
                    raise BadName("too many symbolic links in its path")
                if node.entry.link.startswith(b"/"):
                    at.clear()
                    del nodes[1:]
                todo.extend(node.entry.link.split(b"/")[::-1])
                continue
            elif node.children is None:
                if not make:
                    return None
                raise BadName("a component of its path is not a directory")
            at.append(part)
            nodes.append(node)
        return b"/".join(at), nodes[-1]

    def imply(self, where: Node, name: bytes) -> Node:
        """Make a directory the layer has no entry for."""
        entry = directory(0o755, self.mtime)
        entry.name = name
        node = Node(entry, self.layer, -1)
        if where.children is not None:
            where.children[name] = node
        return node

    def note(self, path: bytes) -> None:
        """Note that this layer made something in ``path``: it and all above it count as made by it."""
        while path and path not in self.created:
            self.created.add(path)
            path = path.rpartition(b"/")[0]

    # -- whiteouts -----------------------------------------------------------------------------------------

    def whiteout(self, literal: bytes, base: bytes) -> None:
        name = b"" if base == OPAQUE else hidden_name(base)
        if base != OPAQUE and not name:
            return
        where = self.search(literal)
        if where is None:
            return
        path, node = where
        if not name:
            self.tell(path, "opaque")
            if not self.fresh and not self.hidden(path):
                for child in list(node.children or ()):
                    self.remove_lower(path + b"/" + child if path else child, node, child)
                self.opaque.add(path)
            return
        full = path + b"/" + name if path else name
        self.tell(full, "hidden")
        if not self.fresh:
            self.remove_lower(full, node, name)

    def hidden(self, path: bytes) -> bool:
        """Whether nothing from below is left at or in ``path``, so that nobody need search it again."""
        if not self.opaque:
            return False
        while path and path not in self.opaque:
            path = path.rpartition(b"/")[0]
        return path in self.opaque

    def remove_lower(self, path: bytes, where: Node, name: bytes) -> None:
        """Remove what this layer has not made; directories it made are searched, but only once."""
        searched: list[bytes] = []
        todo = [(path, where, name)]
        if self.hidden(path.rpartition(b"/")[0]):
            return
        while todo:
            path, where, name = todo.pop()
            node = where.children.get(name) if where.children is not None else None
            if node is None or where.children is None:
                continue
            if path not in self.created:
                del where.children[name]
                if node.children is not None or node.entry.kind == SYMLINK:
                    self.known.clear()
            elif node.children is not None and path not in self.opaque:
                todo.extend((path + b"/" + child, node, child) for child in node.children)
                searched.append(path)
        self.opaque.update(searched)

"""What leads from one tree to another, as a layer: entries, whiteouts, hard links. image-spec layer.md, "Change Types".

``changes`` is pure: it compares two pictures of trees (path -> Node) and says what a layer needs. Writing it is
another matter: content comes out of layers (``from_layers``) or from a directory (scan.py). Everything is written in
an order of its own, never the order it was found in, so the same trees give the same bytes.
"""

from __future__ import annotations

from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.kernel.path import printable
from knarr.layer.model import expanded
from knarr.layer.tarball import DIR, FILE, HARDLINK, SYMLINK, Entry, Reader
from knarr.layer.tarwriter import header, padding
from knarr.layer.whiteout import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from knarr.content.verify import Readable
    from knarr.layer.model import Node
    from knarr.layer.tarwriter import Writable

    Tree = Mapping[bytes, Node]

_MOST_HOLES = 1 << 30  # a sparse file is written out; above this that would be a bomb


class Changes(Record):
    """What a layer holds: ``hidden`` paths, ``made`` (path, node) that are no links, ``links`` (path, target path)."""

    hidden: tuple[bytes, ...]
    made: tuple[tuple[bytes, Node], ...]
    links: tuple[tuple[bytes, bytes], ...]

    def __bool__(self) -> bool:
        return bool(self.hidden or self.made or self.links)


def is_node(old: Node, new: Node) -> bool:
    """Whether two nodes are one: how pictures of the same model are compared."""
    return old is new


def is_equal(old: Node, new: Node) -> bool:
    """Whether two nodes look the same, content by digest: how trees of different origin are compared."""
    return (old.digest == new.digest or old.entry.kind != FILE) and same_metadata(old.entry, new.entry)


def same_metadata(one: Entry, two: Entry) -> bool:
    """Whether two headers describe the same file, apart from its content; the mode of a symbolic link is nobody's."""
    return (
        one.kind == two.kind
        and (one.mode == two.mode or one.kind == SYMLINK)
        and one.uid == two.uid
        and one.gid == two.gid
        and (one.size == two.size or one.kind != FILE)
        and one.mtime == two.mtime
        and one.link == two.link
        and one.device == two.device
        and (one.xattrs or {}) == (two.xattrs or {})
    )


def changes(base: Tree, new: Tree, same: Callable[[Node, Node], bool]) -> Changes:
    """What makes ``base`` into ``new``. Applied to the first it gives the second, hard links included."""
    kept = _kept(base, new, same)
    made: list[tuple[bytes, Node]] = []
    links: list[tuple[bytes, bytes]] = []
    leaders: dict[int, bytes] = {}
    for path in kept:
        leaders.setdefault(id(new[path]), path)
    for path in sorted(new):
        node = new[path]
        if path in kept:
            continue
        if node.entry.kind == DIR:
            old = base.get(path)
            # A root nobody described is what every empty tree has.
            if (old is None and (path or node.number >= 0)) or (old is not None and not same(old, node)):
                made.append((path, node))
            continue
        leader = leaders.setdefault(id(node), path)
        if leader == path:
            made.append((path, node))
        else:
            links.append((path, leader))
    return Changes(tuple(_hidden(base, new)), tuple(made), tuple(links))


def _kept(base: Tree, new: Tree, same: Callable[[Node, Node], bool]) -> set[bytes]:
    """The paths of files that stay as they are below.

    Names of one file in ``new`` must be names of one file in the end, and of no other: each file below may be kept
    for one file of ``new`` only.
    """
    kept: set[bytes] = set()
    owner: dict[int, int] = {}  # file below -> file of new that keeps it
    chosen: dict[int, int] = {}  # and the other way round
    for path in sorted(new.keys() & base.keys()):
        old, node = base[path], new[path]
        if DIR in (node.entry.kind, old.entry.kind) or not same(old, node):
            continue
        if owner.setdefault(id(old), id(node)) == id(node) and chosen.setdefault(id(node), id(old)) == id(old):
            kept.add(path)
    return kept


def _hidden(base: Tree, new: Tree) -> list[bytes]:
    """The paths to hide: gone from a directory that both have."""
    gone = []
    for path in base.keys() - new.keys():
        parent = path.rpartition(b"/")[0]
        there = new.get(parent)
        if there is not None and there.entry.kind == DIR:
            gone.append(path)
    return sorted(gone)


# -- writing -----------------------------------------------------------------------------------------------


def named(entry: Entry, path: bytes, *, latest: int | None = None) -> Entry:
    """A copy of a header for another path; its time no later than ``latest`` (ns), if given."""
    made = Entry()
    for field in Entry.__slots__:
        setattr(made, field, getattr(entry, field))
    made.name = path or b"./"
    made.extents = None
    if latest is not None:
        made.mtime = min(made.mtime, latest)
    return made


def whiteout_of(path: bytes) -> Entry:
    """The header of a whiteout."""
    parent, slash, name = path.rpartition(b"/")
    entry = Entry()
    entry.name = parent + slash + PREFIX + name
    return entry


def link_to(path: bytes, node: Node, target: bytes) -> Entry:
    """The header of a hard link; its metadata are the file's, for those who set them once more."""
    entry = named(node.entry, path)
    entry.kind = HARDLINK
    entry.link = target
    entry.size = 0
    entry.xattrs = None
    return entry


def write_ends(what: Changes, new: Tree, out: Writable, files: Callable[[list[tuple[bytes, Node]]], None]) -> None:
    """Write everything in its order: directories and whiteouts, then links and devices, files, hard links, the end.

    ``files`` writes the regular files, with their content, in whatever order it reads them best.
    """
    first: list[tuple[bytes, Entry]] = [(path, whiteout_of(path)) for path in what.hidden]
    first += [(path, named(node.entry, path)) for path, node in what.made if node.entry.kind == DIR]
    for _path, entry in sorted(first, key=lambda pair: pair[0]):
        out.write(header(entry))
    for path, node in what.made:
        if node.entry.kind not in (DIR, FILE):
            out.write(header(named(node.entry, path)))
    files([(path, node) for path, node in what.made if node.entry.kind == FILE])
    for path, target in what.links:
        out.write(header(link_to(path, new[path], target)))
    out.write(bytes(1024))


def from_layers(what: Changes, new: Tree, out: Writable, layer: Callable[[int], Readable]) -> None:
    """Write ``what`` as a tar to ``out``; ``layer`` opens the plain bytes of a layer by its number, each at most once.

    Only layers with content that is needed are opened; each is read to its end, so that it is verified.
    Raises Unsupported for a sparse file that would become too large, and what the streams raise.
    """

    def files(wanted: list[tuple[bytes, Node]]) -> None:
        by_layer: dict[int, dict[int, tuple[bytes, Node]]] = {}
        for path, node in wanted:
            by_layer.setdefault(node.layer, {})[node.number] = (path, node)
        for number in sorted(by_layer):
            stream = layer(number)
            try:
                _pick(by_layer[number], stream, out)
            finally:
                stream.close()

    write_ends(what, new, out, files)


def _pick(wanted: Mapping[int, tuple[bytes, Node]], stream: Readable, out: Writable) -> None:
    reader = Reader(stream)
    for entry in reader:
        found = wanted.get(reader.count - 1)
        if found is None:
            continue
        path, node = found
        if entry.extents is not None and entry.size > _MOST_HOLES:
            why = f"it has {entry.size} bytes with its holes, at most {_MOST_HOLES} are written out"
            raise Unsupported(f"the sparse file {printable(path)}", why)
        out.write(header(named(node.entry, path)))
        copy(expanded(entry, reader), entry.size, out)
    reader.drain()


def copy(parts: Iterable[bytes | memoryview], size: int, out: Writable) -> None:
    """Write a file's content and what pads it to whole blocks."""
    for part in parts:
        out.write(part)
    out.write(padding(size))

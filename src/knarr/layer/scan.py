"""Directories of this machine as trees and layers: by descriptor, no link followed, no mount crossed.

What was unpacked is remembered as one short text a path (``record``): inode number and change time, which the kernel
sets at every change of content or metadata and nobody else can. Finding what changed is then one look at each file
(``changed``), and reading it only where the two differ.
"""

from __future__ import annotations

import os
import stat
from binascii import hexlify
from errno import EINVAL, ENODATA, ENOENT, ENOTSUP, EXDEV

from knarr.base.errors import FileError, FormatError, NotFound
from knarr.base.record import Record
from knarr.kernel.path import BENEATH, openat2, printable
from knarr.layer.changeset import Changes, named, write_ends
from knarr.layer.metadata import allowed_xattrs
from knarr.layer.model import Node
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, Entry
from knarr.layer.tarwriter import Writer
from knarr.layer.whiteout import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from knarr.kernel.userns import IdMap
    from knarr.layer.tarwriter import Writable

    Facts = os.stat_result

KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK,
    stat.S_IFIFO: FIFO,
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Masks:
    """Paths that are nobody's business, with all below them."""

    def __init__(self, paths: Sequence[bytes] = ()) -> None:
        self._paths = frozenset(paths)

    def __contains__(self, path: bytes) -> bool:
        if not self._paths:
            return False
        while path:
            if path in self._paths:
                return True
            path = path.rpartition(b"/")[0]
        return False


class Ids:
    """Owners on disk back to owners in the image. What is mapped to nobody is root's, as an only id stands for all."""

    def __init__(self, ids: IdMap | None) -> None:
        self._ids = ids
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        if self._ids is None:
            return uid, gid
        found = self._known.get((uid, gid))
        if found is None:
            found = self._known[uid, gid] = (_back(self._ids.uids, uid), _back(self._ids.gids, gid))
        return found


def _back(ranges: Sequence[tuple[int, int, int]], outside: int) -> int:
    for first, start, count in ranges:
        if start <= outside < start + count:
            return first + outside - start
    return 0


# -- walking -----------------------------------------------------------------------------------------------


def walk(root_fd: int, where: str, masks: Masks) -> Iterator[tuple[bytes, Facts, int]]:
    """Yield (path, facts, descriptor of its directory) of all below a directory, each directory's names sorted.

    The root itself comes first, as b"", with its own descriptor. Descriptors are good until the next step only.
    Raises FileError, also for another file system mounted in it.
    """
    top = os.fstat(root_fd)
    yield b"", top, root_fd
    todo = [b""]
    while todo:
        folder = todo.pop()
        try:
            fd = openat2(root_fd, folder or b".", _DIRECTORY, BENEATH)
        except OSError as error:
            raise FileError("read", f"{where}/{printable(folder)}", error.errno or EINVAL) from None
        try:
            below = []
            with os.scandir(fd) as found:
                names = sorted((os.fsencode(entry.name), entry) for entry in found)
            start = folder + b"/" if folder else b""
            for name, entry in names:
                path = start + name
                if path in masks:
                    continue
                facts = entry.stat(follow_symlinks=False)
                if facts.st_dev != top.st_dev:
                    hint = "something is mounted there: unmount it first"
                    raise FileError("read", f"{where}/{printable(path)}", EXDEV, hint=hint)
                yield path, facts, fd
                if stat.S_ISDIR(facts.st_mode):
                    below.append(path)
            todo.extend(reversed(below))
        except OSError as error:
            raise FileError("read", f"{where}/{printable(folder)}", error.errno or EINVAL) from None
        finally:
            os.close(fd)


def entry_of(path: bytes, facts: Facts, dir_fd: int, ids: Ids, where: str) -> Entry | None:
    """The header of a file on disk; None for a socket, which no archive can hold. Raises FileError, FormatError."""
    kind = KINDS.get(stat.S_IFMT(facts.st_mode))
    if kind is None:
        return None
    base = path.rpartition(b"/")[2]
    if base.startswith(PREFIX):
        raise FormatError(where, printable(path), "its name would hide another file: no layer can hold it")
    entry = Entry()
    entry.name = path
    entry.kind = kind
    entry.mode = stat.S_IMODE(facts.st_mode)
    entry.uid, entry.gid = ids.inside(facts.st_uid, facts.st_gid)
    entry.mtime = facts.st_mtime_ns
    try:
        if kind == FILE:
            entry.size = facts.st_size
        elif kind == SYMLINK:
            entry.link = os.readlink(base, dir_fd=dir_fd)
        elif kind in (CHAR, BLOCK):
            entry.device = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
            if kind == CHAR and entry.device == (0, 0):
                raise FormatError(where, printable(path), "device 0:0 is overlayfs's whiteout: no layer can hold it")
        if kind in (FILE, DIR):
            entry.xattrs = _attributes(dir_fd, base, kind)
    except OSError as error:
        raise FileError("read", f"{where}/{printable(path)}", error.errno or EINVAL) from None
    return entry


def _attributes(dir_fd: int, base: bytes, kind: int) -> dict[bytes, bytes] | None:
    """The attributes that go into a layer, sorted; None when there are none."""
    fd = openat2(dir_fd, base or b".", _DIRECTORY if kind == DIR else _FILE, BENEATH)
    try:
        found = allowed_xattrs(fd)
    except OSError as error:
        if error.errno in (ENOTSUP, ENODATA):
            return None
        raise
    finally:
        os.close(fd)
    made = {}
    for name in sorted(found):
        value = found[name]
        if name == "security.capability" and len(value) == 24 and value[3] == 3:
            value = value[:3] + b"\x02" + value[4:20]  # VFS_CAP_REVISION_3 names a user namespace's root
        made[os.fsencode(name)] = value
    return made or None


# -- what was unpacked -------------------------------------------------------------------------------------


def record(root_fd: int, where: str, masks: Masks | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, what it looks like now) of everything below a directory; raises FileError."""
    for path, facts, dir_fd in walk(root_fd, where, masks or Masks()):
        yield path, _looks(path, facts, dir_fd)


def _looks(path: bytes, facts: Facts, dir_fd: int) -> bytes:
    if not stat.S_ISDIR(facts.st_mode):
        return b"%x %x" % (facts.st_ino, facts.st_ctime_ns)
    # A directory changes with what is in it: so its own metadata are kept too.
    name = path.rpartition(b"/")[2]
    return b"%x %x %s" % (facts.st_ino, facts.st_ctime_ns, _directory_looks(facts, dir_fd, name))


def _directory_looks(facts: Facts, dir_fd: int, name: bytes) -> bytes:
    metadata = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns)
    attributes = (_attributes(dir_fd, name, DIR) or {}).items()
    return b"%x %x %x %x" % metadata + b"".join(b" %b=%b" % (hexlify(key), hexlify(value)) for key, value in attributes)


def pack_record(pairs: Iterator[tuple[bytes, bytes]]) -> bytes:
    """A record as bytes for a file: no path and no look has a NUL in it."""
    return b"\0".join(part for pair in pairs for part in pair)


def unpack_record(data: bytes) -> dict[bytes, bytes]:
    """The opposite; raises ValueError."""
    parts = data.split(b"\0")
    if len(parts) % 2:
        raise ValueError("it has a path without a look")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def changed(
    root_fd: int, where: str, known: Mapping[bytes, bytes], ids: Ids, masks: Masks
) -> tuple[Changes, dict[bytes, Node], list[str]]:
    """What changed since ``known`` was recorded: the changes, their nodes by path, and sockets left out.

    A file whose inode or change time is another one counts as changed, whatever is in it. Raises FileError,
    FormatError.
    """
    made: list[tuple[bytes, Node]] = []
    links: list[tuple[bytes, bytes]] = []
    nodes: dict[bytes, Node] = {}
    left_out: list[str] = []
    leaders: dict[int, bytes] = {}
    seen: set[bytes] = set()
    folders: set[bytes] = set()
    get, isdir = known.get, stat.S_ISDIR
    for path, facts, dir_fd in walk(root_fd, where, masks):
        seen.add(path)
        before = get(path)
        if isdir(facts.st_mode):
            folders.add(path)
            if before is not None:
                start = b"%x %x " % (facts.st_ino, facts.st_ctime_ns)
                if before.startswith(start):
                    continue
                old = before.split(b" ", 2)
                name = path.rpartition(b"/")[2]
                if len(old) == 3 and old[2] == _directory_looks(facts, dir_fd, name):
                    continue
        elif before == b"%x %x" % (facts.st_ino, facts.st_ctime_ns):
            continue
        if facts.st_nlink > 1 and not isdir(facts.st_mode):
            leader = leaders.setdefault(facts.st_ino, path)
            if leader != path and leader in nodes:
                nodes[path] = nodes[leader]
                links.append((path, leader))
                continue
        entry = entry_of(path, facts, dir_fd, ids, where)
        if entry is None:
            left_out.append(f"{printable(path)} is a socket and left out")
            seen.discard(path)  # should there have been a file by that name, it is gone
            continue
        nodes[path] = Node(entry, -1, 0)
        made.append((path, nodes[path]))
    gone = sorted(path for path in known.keys() - seen if path.rpartition(b"/")[0] in folders and path not in masks)
    return Changes(tuple(gone), tuple(made), tuple(links)), nodes, left_out


# -- writing -----------------------------------------------------------------------------------------------


def write(
    what: Changes,
    nodes: Mapping[bytes, Node],
    root_fd: int,
    where: str,
    out: Writable,
    *,
    latest: int | None = None,
) -> None:
    """Write changes as a tar, contents out of the directory; times no later than ``latest`` (ns). Raises FileError."""
    if latest is not None:
        for _path, node in what.made:
            node.entry.mtime = min(node.entry.mtime, latest)
    writer = Writer(out)

    def files(wanted: list[tuple[bytes, Node]]) -> None:
        for path, node in wanted:
            try:
                fd = openat2(root_fd, path, _FILE, BENEATH)
            except OSError as error:
                raise FileError("read", f"{where}/{printable(path)}", error.errno or EINVAL) from None
            try:
                writer.add_file(named(node.entry, path), fd, f"{where}/{printable(path)}")
            finally:
                os.close(fd)

    write_ends(what, nodes, out, files)


class Packed(Record):
    """What was written: files made or changed, paths hidden, and what was left out."""

    made: int
    hidden: int
    notes: tuple[str, ...]


def record_of(root_fd: int, where: str) -> bytes:
    """The record of a directory, as ``pack`` takes it; raises FileError."""
    return pack_record(record(root_fd, where))


def pack(
    root_fd: int,
    where: str,
    out: Writable,
    *,
    known: bytes | None,
    masks: Sequence[bytes],
    ids: IdMap | None,
    latest: int | None,
) -> Packed:
    """Write a directory as a tar: what changed since ``known`` was recorded, or (None) everything.

    Owners are turned back by ``ids``; times are no later than ``latest`` (ns); what lies at ``masks`` is left alone.
    Raises FileError, FormatError; ValueError for a record that is none.
    """
    looks = {} if known is None else unpack_record(known)
    found, nodes, notes = changed(root_fd, where, looks, Ids(ids), Masks(masks))
    write(found, nodes, root_fd, where, out, latest=latest)
    return Packed(len(found.made) + len(found.links), len(found.hidden), tuple(notes))


def add_tree(
    source: str,
    place: bytes,
    out: Writer,
    *,
    owner: tuple[int, int] | None,
    mode: int | None,
    latest: int | None,
) -> None:
    """Write a file or a directory with all below it as entries at ``place``; a link as the link it is.

    Raises NotFound, FileError, FormatError; sockets in it are left out.
    """
    folder, name = os.path.split(os.path.abspath(source))
    try:
        dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("read", folder, error.errno or EINVAL) from None
    try:
        try:
            facts = os.stat(name or ".", dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == ENOENT:
                raise NotFound("file", source) from None
            raise FileError("read", source, error.errno or EINVAL) from None
        raw = os.fsencode(name)
        ids = Ids(None)
        if not stat.S_ISDIR(facts.st_mode):
            entry = entry_of(raw, facts, dir_fd, ids, folder)
            _add(out, entry, place, dir_fd, raw, source, (owner, mode, latest), {}, 0)
        else:
            root = os.open(name or ".", _DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                links: dict[int, bytes] = {}
                for path, seen, fd in walk(root, source, Masks()):
                    entry = entry_of(path, seen, fd, ids, source)
                    target = b"/".join(part for part in (place, path) if part)
                    ino = seen.st_ino if seen.st_nlink > 1 else 0
                    base = path.rpartition(b"/")[2]
                    _add(out, entry, target, fd, base, source, (owner, mode, latest), links, ino)
            finally:
                os.close(root)
    finally:
        os.close(dir_fd)
    out.close()


def _add(
    out: Writer,
    entry: Entry | None,
    target: bytes,
    dir_fd: int,
    base: bytes,
    where: str,
    how: tuple[tuple[int, int] | None, int | None, int | None],
    links: dict[int, bytes],
    ino: int,
) -> None:
    if entry is None:
        return
    owner, mode, latest = how
    entry = named(entry, target, latest=latest)
    if owner is not None:
        entry.uid, entry.gid = owner
    if mode is not None and entry.kind == FILE:
        entry.mode = mode
    if ino and entry.kind != DIR:
        first = links.setdefault(ino, target)
        if first != target:
            entry.kind, entry.link, entry.size, entry.xattrs = HARDLINK, first, 0, None
            out.add(entry)
            return
    if entry.kind != FILE:
        out.add(entry)
        return
    try:
        fd = openat2(dir_fd, base, _FILE, BENEATH)
    except OSError as error:
        raise FileError("read", f"{where}/{printable(base)}", error.errno or EINVAL) from None
    try:
        out.add_file(entry, fd, f"{where}/{printable(base)}")
    finally:
        os.close(fd)

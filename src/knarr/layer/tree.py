"""The tree that a layer is applied to: directories by descriptor, and what the layers below have.

Every directory has one canonical path: relative to the root, free of links and dots. An entry's parent is
opened by openat2 without following any link; only when that fails are its components walked one by one, links
resolved against the root (docs/security.md I1, I8). Two ways to keep layers (snapshot.py, unpack.py):

- merge: all layers in one directory; what is below lies in the same tree and is removed by whiteouts;
- overlay: a directory a layer; what is below is asked of a MergedView; whiteouts are stored as overlayfs
  stores them. What a layer only mentions (a parent it has no entry for) is copied up from below.

Mounting the second gives the first, entry by entry; tests hold the two together.
"""

from __future__ import annotations

import os
import stat
from _weakrefset import WeakSet
from errno import ELOOP, ENOENT, ENOTDIR

from knarr.kernel.path import BENEATH, openat2, remove_tree
from knarr.layer.metadata import allowed_xattrs, copy_up, has_default_acl
from knarr.layer.view import LINKS_LIMIT, is_whiteout
from knarr.layer.whiteout import PREFIX, BadName, components, inside_meta

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.layer.view import Found, MergedView

    Meta = tuple[int, int, int, int, dict[str, bytes]]
    """mode, uid, gid (as stored), mtime (ns), extended attributes."""

_CACHE = 128  # directories kept open
# What one layer may cost in time and memory, whatever its links and directories are (docs/security.md I10).
_STEPS = 500_000
_NAMES = 128 << 20
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NOT_THERE = (ENOENT, ELOOP, ENOTDIR)

_DIR, _LINK, _ABSENT, _OTHER = range(4)


class InMeta(Exception):
    """The entry lies in AUFS's book-keeping and is skipped."""


class Dir:
    """An open directory, closed when nothing refers to it any more, or with the tree.

    ``plain``: what is made in it gets our own ids and exactly the mode asked for.
    """

    __slots__ = ("__weakref__", "fd", "path", "plain")

    def __init__(self, fd: int, path: bytes, *, plain: bool) -> None:
        self.fd = fd
        self.path = path
        self.plain = plain

    def close(self) -> None:
        """Close it; fine if it is closed."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def child(self, name: bytes) -> bytes:
        """The canonical path of ``name`` in it."""
        return self.path + b"/" + name if self.path else name


class Tree:
    """See the module. ``root_fd`` stays the caller's; ``below`` gives the view of what is below, in overlay mode."""

    def __init__(
        self,
        root_fd: int,
        *,
        overlay: bool,
        below: Callable[[], MergedView] | None,
        opaque_xattr: str,
        fresh: bool,
        exact: bool,
        owner: tuple[int, int],
    ) -> None:
        self.root_fd = root_fd
        self.overlay = overlay
        self.opaque_xattr = opaque_xattr
        self.owner = owner
        """Who owns what nobody says the owner of."""
        self.mtime = 0
        """The modification time of the entry at hand, for directories it implies."""
        self.final: dict[bytes, Meta] = {}
        """What directories shall be in the end: set last, because making files in them changes their mtime."""
        self.touched: dict[bytes, int] = {}
        """Directories from below that something changes in, and the mtime they shall keep (merge mode)."""
        self.followed: set[bytes] = set()
        """Links that led somewhere: when something comes in place of one, ``flush``."""
        self.created: set[bytes] | None = None if fresh or overlay else set()
        """What this layer has made, so that its whiteouts spare it (merge mode upon something)."""
        self._below = below
        self._exact = exact
        self._gid = os.getegid()
        self.known: dict[bytes, Dir] = {}
        """Open directories by their path, as the archive writes it and canonical."""
        self._all: WeakSet[Dir] = WeakSet()
        self._steps = _STEPS
        self._names = _NAMES
        self._opaque: set[bytes] = set()  # directories that hide all that is below
        self._searched: list[bytes] = []
        # Overlay mode: canonical paths in this layer.
        self._white: set[bytes] = set()
        self._copied: set[bytes] = set()  # files that are here only because a hard link needed them
        self.bare: set[bytes] = set()
        """Directories that are here only for whiteouts and such copies; ``parent`` must hear of their use."""

    def close(self) -> None:
        """Close all directories, also those that the traceback of an error still refers to."""
        self.flush()
        for opened in list(self._all):
            opened.close()

    def flush(self) -> None:
        """Forget where directories are: one was removed, or a link that may have led to one."""
        self.known.clear()
        self.followed.clear()

    def settle(self, path: bytes, meta: Meta) -> None:
        """Say what a directory shall be in the end. Raises BadName when there are too many to remember."""
        self._names -= len(path)
        if self._names < 0:
            raise BadName(f"the names of its directories need more than {_NAMES >> 20} MiB")
        self.final[path] = meta

    @property
    def is_opaque_root(self) -> bool:
        """Whether the layer hides everything below."""
        return b"" in self._opaque

    # -- finding directories -------------------------------------------------------------------------------

    def parent(self, literal: bytes) -> Dir:
        """The directory an entry is to be made in, by its parent's name in the archive; made if missing.

        Raises BadName, InMeta, OSError.
        """
        known = self.known.get(literal)
        if known is None:
            parts = components(literal)
            if PREFIX in literal and inside_meta(parts):
                raise InMeta
            known = self._here(b"/".join(parts))
            if known is None:
                path = self._walk(parts, make=True)
                known = self.open(path if path is not None else b"")
            if self.created is not None:
                self.note(known.path)
            self._put(literal, known)
        if self.bare:
            self._inhabit(known.path)
        return known

    def find(self, literal: bytes) -> bytes | None:
        """The canonical path of a directory named in the archive; None if there is none. Makes nothing."""
        known = self.known.get(literal)
        if known is not None:
            return known.path
        parts = components(literal)
        if PREFIX in literal and inside_meta(parts):
            raise InMeta
        here = self._here(b"/".join(parts))
        return here.path if here is not None else self._walk(parts, make=False)

    def open(self, path: bytes, *, bare: bool = False) -> Dir:
        """The directory at a canonical path that exists, here or below; copied up if it is only below."""
        here = self._here(path)
        if here is not None:
            return here
        at = b""
        where = self._root()
        for part in path.split(b"/"):
            at = at + b"/" + part if at else part
            deeper = self._here(at, where, part)
            if deeper is None:
                self._imply(where, part, at)
                if bare:
                    self.bare.add(at)
                deeper = self._entered(where, part, at)
            where = deeper
        return where

    def _put(self, key: bytes, opened: Dir) -> None:
        """Remember a directory under a further name; forget the oldest."""
        cache = self.known
        cache[key] = opened
        if len(cache) > _CACHE:
            del cache[next(iter(cache))]

    def _root(self) -> Dir:
        root = self._here(b"")
        if root is None:  # it is an open descriptor
            raise OSError(ENOENT, os.strerror(ENOENT))
        return root

    def _entered(self, where: Dir, name: bytes, path: bytes) -> Dir:
        """A directory that was just made in another."""
        made = self._here(path, where, name)
        if made is None:
            raise OSError(ENOENT, os.strerror(ENOENT))
        return made

    def _here(self, path: bytes, where: Dir | None = None, name: bytes = b"") -> Dir | None:
        """The directory of this tree (in overlay mode: of this layer) at a path without links; None if none.

        ``where`` and ``name``: the same by its parent, when that is open.
        """
        known = self.known.get(path)
        if known is not None:
            return known
        try:
            if where is None:
                fd = openat2(self.root_fd, path or b".", _OPEN, BENEATH)
            else:
                fd = openat2(where.fd, name, _OPEN, BENEATH)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        try:
            facts = os.fstat(fd)
            plain = not self._exact and not facts.st_mode & stat.S_ISGID and facts.st_gid == self._gid
            if plain:
                plain = not has_default_acl(fd)
        except BaseException:
            os.close(fd)
            raise
        opened = Dir(fd, path, plain=plain)
        self._all.add(opened)
        if not self.overlay and path not in self.final:
            self.touched.setdefault(path, facts.st_mtime_ns)
        self._put(path, opened)
        return opened

    def _walk(self, parts: list[bytes], *, make: bool) -> bytes | None:
        """Follow a path component by component, links against the root; return the canonical path of its end.

        Missing directories are made; with ``make`` False it is None where one is missing. Raises OSError, BadName.
        """
        # From the deepest directory that is here: else a small archive of deep paths would cost hours.
        # Its own path may be another: it is known by the archive's names for it too, through links.
        there, here = len(parts) - 1, None
        while there > 0 and (here := self._here(b"/".join(parts[:there]))) is None:
            there -= 1
        at = here.path.split(b"/") if here is not None and here.path else []
        todo = parts[max(there, 0) :][::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if at:
                    at.pop()
                continue
            if links:
                self._steps -= 1
                if self._steps < 0:
                    raise BadName(f"links in the layer's paths need more than {_STEPS} steps")
            path = b"/".join(at)
            kind, target = self._look(path, part)
            if kind == _LINK:
                links += 1
                if links > LINKS_LIMIT:
                    raise OSError(ELOOP, os.strerror(ELOOP))
                self.followed.add(path + b"/" + part if path else part)
                if target.startswith(b"/"):
                    at.clear()
                todo.extend(target.split(b"/")[::-1])
                continue
            if kind == _OTHER:
                if not make:  # umoci writes whiteouts for what was in a directory that is a file now
                    return None
                raise OSError(ENOTDIR, os.strerror(ENOTDIR))
            if kind == _ABSENT:
                if not make:
                    return None
                if b".." in todo:
                    raise BadName("a link in its path goes up from a directory that does not exist")
                where = self.open(path)
                while True:  # what is new is empty: the rest is made without looking
                    path = where.child(part)
                    self.make_directory(where, part, path)
                    self.settle(path, (0o755, *self.owner, self.mtime, {}))
                    at.append(part)
                    if not todo or todo[-1] in (b"", b"."):
                        break
                    where = self._entered(where, part, path)
                    part = todo.pop()
                continue
            at.append(part)
        return b"/".join(at)

    def _look(self, path: bytes, name: bytes) -> tuple[int, bytes]:
        """What ``name`` is in the directory at ``path``, in the tree as a whole; with a link's target."""
        where = self._here(path)
        if where is not None:
            try:
                facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if stat.S_ISDIR(facts.st_mode):
                    return _DIR, b""
                if stat.S_ISLNK(facts.st_mode):
                    return _LINK, os.readlink(name, dir_fd=where.fd)
                return (_ABSENT if self.overlay and is_whiteout(facts) else _OTHER), b""
        found = self.below(path + b"/" + name if path else name)
        if found is None:
            return _ABSENT, b""
        if found.stack:
            return _DIR, b""
        if stat.S_ISLNK(found.facts.st_mode):
            return _LINK, os.readlink(found.name, dir_fd=found.dir_fd)
        return _OTHER, b""

    def below(self, path: bytes) -> Found | None:
        """What the layers below have at a canonical path and this layer does not hide (overlay mode)."""
        if self._below is None or self.is_hidden(path):
            return None
        return self._below().lookup(path)

    def is_hidden(self, path: bytes) -> bool:
        """Whether this layer hides all that is below at ``path``, by an opaque directory or a whiteout above it."""
        if not self._opaque and not self._white:
            return False
        at = path
        while at:
            if at in self._white:
                return True
            at = at.rpartition(b"/")[0]
            if at in self._opaque:
                return True
        return False

    # -- making and removing -------------------------------------------------------------------------------

    def _imply(self, where: Dir, name: bytes, path: bytes) -> None:
        """Make a directory that the layer has no entry for, as it is below."""
        found = self.below(path)
        if found is None:
            raise OSError(ENOENT, os.strerror(ENOENT))
        facts = found.facts
        attributes = allowed_xattrs(found.stack[0])
        self.make_directory(where, name, path)
        self.settle(path, (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_mtime_ns, attributes))

    def make_directory(self, where: Dir, name: bytes, path: bytes) -> None:
        """Make a directory, or keep one that is there; anything else in its place goes. Metadata comes last."""
        try:
            os.mkdir(name, 0o700, dir_fd=where.fd)
            return
        except FileExistsError:
            facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            if self.bare:
                self.bare.discard(path)
            return
        self._remove(where, name, path, facts)
        os.mkdir(name, 0o700, dir_fd=where.fd)
        if self.overlay:  # what was here hid what is below; so must this
            self._set_opaque(path)

    def clear(self, where: Dir, name: bytes, *, lower: bool = False) -> bool:
        """Remove whatever this tree (in overlay mode: this layer) has by that name, to make room.

        ``lower``: this layer made nothing of it. Returns whether it was more than a trace of what is below.
        """
        try:
            facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        path = where.child(name)
        trace = path in self._white or path in self._copied or path in self.bare
        self._remove(where, name, path, facts, lower=lower)
        return not trace

    def _remove(self, where: Dir, name: bytes, path: bytes, facts: os.stat_result, *, lower: bool = False) -> None:
        if stat.S_ISDIR(facts.st_mode):
            # ``final`` may keep what is no longer there; whoever makes it again sets it again.
            if not lower and (self._white or self._copied or self.bare or self._opaque):
                for gone in (path, *self._listing(path, skip_opaque=False)):
                    for paths in (self._opaque, self._white, self._copied, self.bare):
                        paths.discard(gone)
            self.flush()
            remove_tree(where.fd, name)
            return
        if stat.S_ISLNK(facts.st_mode):
            self.flush()
        os.unlink(name, dir_fd=where.fd)
        self._white.discard(path)
        self._copied.discard(path)

    def note(self, path: bytes) -> None:
        """Note that this layer made something in ``path``: it and all above it count as made by it."""
        created = self.created
        if created is not None:
            while path and path not in created:
                created.add(path)
                path = path.rpartition(b"/")[0]

    def _inhabit(self, path: bytes) -> None:
        while path and self.bare:
            self.bare.discard(path)
            path = path.rpartition(b"/")[0]

    # -- whiteouts -----------------------------------------------------------------------------------------

    def hide(self, literal: bytes, name: bytes) -> None:
        """Hide what the layers below have as ``name`` in a directory; what this layer has there stays."""
        parent = self.find(literal)
        if parent is None:
            return
        path = parent + b"/" + name if parent else name
        if path in self.followed:
            self.flush()
        if not self.overlay:
            self._remove_lower(path)
            return
        if path in self._white:
            return
        where = self._here(parent)
        if where is not None and self._shows(where, name, path):
            return
        if self.below(path) is None:
            return  # overlayfs would show a whiteout of nothing when it lists a directory of one layer
        where = self.open(parent, bare=True)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=where.fd)
        self._white.add(path)

    def _shows(self, where: Dir, name: bytes, path: bytes) -> bool:
        """Whether this layer has something of its own by that name; if a directory, it is made opaque."""
        if path in self._copied:
            os.unlink(name, dir_fd=where.fd)
            self._copied.discard(path)
            return False
        try:
            facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(facts.st_mode):
            if path not in self._opaque:
                self._purge(path)
            if path in self.bare:
                self._drop_bare(where, name, path)
                return False
            if path not in self._opaque:
                self._set_opaque(path)
        return True  # a file hides what is below by itself

    def hide_all(self, literal: bytes) -> None:
        """Hide all that the layers below have in a directory: the opaque whiteout."""
        path = self.find(literal)
        if path is None:
            return
        if path in self._opaque or self.is_hidden(path):
            return
        if self.followed:
            self.flush()
        if not self.overlay:
            if self.created is not None:
                where = self.open(path)
                for name in os.listdir(where.fd):
                    self._remove_lower(where.child(os.fsencode(name)))
            self._opaque.add(path)
            return
        self.open(path, bare=True)
        self._purge(path)
        self._set_opaque(path)

    def _remove_lower(self, path: bytes) -> None:
        """Merge mode: remove what this layer has not made; directories it made are searched, but only once."""
        if self.created is None:
            return
        todo = [path]
        while todo:
            path = todo.pop()
            if self.is_hidden(path):
                continue
            parent, _slash, name = path.rpartition(b"/")
            where = self.open(parent)
            if path not in self.created:
                self.clear(where, name, lower=True)
                continue
            if path in self._opaque:
                continue
            try:
                facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(facts.st_mode):
                inner = self.open(path)
                todo.extend(inner.child(os.fsencode(child)) for child in os.listdir(inner.fd))
                self._searched.append(path)
        self._opaque.update(self._searched)
        self._searched.clear()

    def _set_opaque(self, path: bytes) -> None:
        where = self.open(path)
        os.setxattr(where.fd, self.opaque_xattr, b"y")
        self._opaque.add(path)

    def _listing(self, path: bytes, *, skip_opaque: bool) -> list[bytes]:
        """All canonical paths in this tree below a directory, parents first; not those inside opaque ones."""
        found: list[bytes] = []
        todo = [path]
        while todo:
            folder = todo.pop()
            where = self._here(folder)
            if where is None:
                continue
            for entry in os.scandir(where.fd):
                child = where.child(os.fsencode(entry.name))
                found.append(child)
                if entry.is_dir(follow_symlinks=False) and not (skip_opaque and child in self._opaque):
                    todo.append(child)
        return found

    def _purge(self, path: bytes) -> None:
        """Overlay mode: drop what lies below ``path`` only for the sake of the layers below."""
        if not (self._white or self._copied or self.bare):
            return
        for key in sorted(self._listing(path, skip_opaque=True), reverse=True):  # children first
            folder, _slash, name = key.rpartition(b"/")
            if key in self._white or key in self._copied:
                os.unlink(name, dir_fd=self.open(folder).fd)
                self._white.discard(key)
                self._copied.discard(key)
            elif key in self.bare:
                self._drop_bare(self.open(folder), name, key)

    def _drop_bare(self, where: Dir, name: bytes, path: bytes) -> None:
        self.flush()
        os.rmdir(name, dir_fd=where.fd)
        self.bare.discard(path)
        self._opaque.discard(path)
        self.final.pop(path, None)

    def source(self, path: bytes, name: bytes) -> Dir | None:
        """The directory that holds the target of a hard link, by the canonical path of its parent; None if none.

        In overlay mode a target that only the layers below have is copied up, for a link cannot cross layers.
        """
        where = self._here(path)
        if where is not None:
            try:
                facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                return None if self.overlay and is_whiteout(facts) else where
        if not self.overlay:
            return None
        target = path + b"/" + name if path else name
        found = self.below(target)
        if found is None:
            return None
        if found.stack:
            raise IsADirectoryError(21, os.strerror(21))
        where = self.open(path, bare=True)
        copy_up(found, where.fd, name)
        self._copied.add(target)
        return where

"""The tree that a layer is applied to: directories by descriptor, and what the layers below have.

Every directory has one canonical path: relative to the root, free of links and dots. An entry's parent is
opened by openat2 without following any link; only when that fails are its components walked one by one, links
resolved against the root (SECURITY.md I1, I8). Two ways to keep layers (snapshot.py, unpack.py):

- merge: all layers in one directory; what is below lies in the same tree and is removed by whiteouts;
- overlay: a directory a layer; what is below is asked of a MergedView; whiteouts are stored as overlayfs
  stores them. What a layer only mentions (a parent it has no entry for) is copied up from below.

Mounting the second gives the first, entry by entry; tests hold the two together.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, ELOOP, ENODATA, ENOENT, ENOTDIR, ENOTSUP, EPERM

from knarr.kernel.path import BENEATH, openat2, remove_tree
from knarr.layer.view import LINKS_LIMIT, is_whiteout
from knarr.layer.whiteout import PREFIX, components, inside_meta

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.layer.view import Found, MergedView

    Meta = tuple[int, int, int, int, dict[str, bytes]]
    """mode, uid, gid (as stored), mtime (ns), extended attributes."""

_CACHE = 128  # directories kept open
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NOT_THERE = (ENOENT, ELOOP, ENOTDIR)
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")

_DIR, _LINK, _ABSENT, _OTHER = range(4)


class InMeta(Exception):
    """The entry lies in AUFS's book-keeping and is skipped."""


class Dir:
    """An open directory. ``plain``: what is made in it gets our own ids and exactly the mode asked for."""

    __slots__ = ("fd", "path", "plain")

    def __init__(self, fd: int, path: bytes, *, plain: bool) -> None:
        self.fd = fd
        self.path = path
        self.plain = plain

    def child(self, name: bytes) -> bytes:
        """The canonical path of ``name`` in it."""
        return self.path + b"/" + name if self.path else name


def allowed_xattrs(fd: int) -> dict[str, bytes]:
    """The extended attributes of an open file that a layer may carry."""
    found = {}
    for name in os.listxattr(fd):
        if is_allowed(name):
            found[name] = os.getxattr(fd, name)
    return found


def is_allowed(name: str) -> bool:
    """Whether a layer may set this attribute: never overlayfs's own, nor a security module's labels."""
    if name.startswith("user."):
        return not name.startswith("user.overlay.")
    return name == "security.capability" or name in _ACLS


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
        self.created: set[bytes] | None = None if fresh or overlay else set()
        """What this layer has made, so that its whiteouts spare it (merge mode upon something)."""
        self._below = below
        self._exact = exact
        self._gid = os.getegid()
        self._cache: dict[bytes, Dir] = {}
        self._doomed: set[Dir] = set()
        # Overlay mode: canonical paths in this layer.
        self._opaque: set[bytes] = set()
        self._white: set[bytes] = set()
        self._copied: set[bytes] = set()  # files that are here only because a hard link needed them
        self._bare: set[bytes] = set()  # directories that are here only for whiteouts and such copies

    def close(self) -> None:
        """Close all directories."""
        self.flush()
        self.bury()

    def flush(self) -> None:
        """Forget where directories are: one was removed, or a link that may have led to one."""
        self._doomed.update(self._cache.values())
        self._cache.clear()

    def bury(self) -> None:
        """Close directories that were forgotten; between entries, when nobody uses them any more."""
        while self._doomed:
            os.close(self._doomed.pop().fd)

    @property
    def stale(self) -> bool:
        """Whether ``bury`` has something to do."""
        return bool(self._doomed)

    # -- finding directories -------------------------------------------------------------------------------

    def parent(self, literal: bytes) -> Dir:
        """The directory an entry is to be made in, by its parent's name in the archive; made if missing.

        Raises BadName, InMeta, OSError.
        """
        known = self._cache.get(literal)
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
        if self._bare:
            self._inhabit(known.path)
        return known

    def find(self, literal: bytes) -> bytes | None:
        """The canonical path of a directory named in the archive; None if there is none. Makes nothing."""
        known = self._cache.get(literal)
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
            deeper = self._here(at)
            if deeper is None:
                self._imply(where, part, at)
                if bare:
                    self._bare.add(at)
                deeper = self._here(at)
                if deeper is None:
                    raise OSError(ENOENT, os.strerror(ENOENT))
            where = deeper
        return where

    def _put(self, key: bytes, opened: Dir) -> None:
        """Remember a directory under a further name; forget the oldest."""
        cache = self._cache
        if key not in cache or cache[key] is not opened:
            if key in cache:
                self._doomed.add(cache.pop(key))
            cache[key] = opened
            while len(cache) > _CACHE:
                old = cache.pop(next(iter(cache)))
                if old not in cache.values():
                    self._doomed.add(old)

    def _root(self) -> Dir:
        root = self._here(b"")
        if root is None:  # it is an open descriptor
            raise OSError(ENOENT, os.strerror(ENOENT))
        return root

    def _here(self, path: bytes) -> Dir | None:
        """The directory of this tree (in overlay mode: of this layer) at a path without links; None if none."""
        known = self._cache.get(path)
        if known is not None:
            return known
        try:
            fd = openat2(self.root_fd, path or b".", _OPEN, BENEATH)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        try:
            facts = os.fstat(fd)
            plain = not self._exact and not facts.st_mode & stat.S_ISGID and facts.st_gid == self._gid
            if plain:
                plain = not _has_default_acl(fd)
        except BaseException:
            os.close(fd)
            raise
        opened = Dir(fd, path, plain=plain)
        if not self.overlay and path not in self.final:
            self.touched.setdefault(path, facts.st_mtime_ns)
        self._put(path, opened)
        return opened

    def _walk(self, parts: list[bytes], *, make: bool) -> bytes | None:
        """Follow a path component by component, links against the root; the canonical path of where it ends.

        Missing directories are made, or with ``make`` False it is None. Raises OSError: ELOOP, ENOTDIR.
        """
        todo = parts[::-1]
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if at:
                    at.pop()
                continue
            path = b"/".join(at)
            kind, target = self._look(path, part)
            if kind == _LINK:
                links += 1
                if links > LINKS_LIMIT:
                    raise OSError(ELOOP, os.strerror(ELOOP))
                if target.startswith(b"/"):
                    at.clear()
                todo.extend(target.split(b"/")[::-1])
                if len(todo) > 1 << 16:
                    raise OSError(ELOOP, os.strerror(ELOOP))
                continue
            if kind == _OTHER:
                raise OSError(ENOTDIR, os.strerror(ENOTDIR))
            if kind == _ABSENT:
                if not make:
                    return None
                where = self.open(path)
                self._imply(where, part, where.child(part))
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
        """Make a directory that the layer has no entry for: as it is below, or an ordinary one."""
        found = self.below(path)
        meta: Meta
        if found is not None and found.stack:
            facts = found.facts
            attributes = allowed_xattrs(found.stack[0])
            meta = (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_mtime_ns, attributes)
        else:
            meta = (0o755, *self.owner, self.mtime, {})
        self.make_directory(where, name, path)
        self.final[path] = meta

    def make_directory(self, where: Dir, name: bytes, path: bytes) -> None:
        """Make a directory, or keep one that is there; anything else in its place goes. Metadata comes last."""
        try:
            os.mkdir(name, 0o700, dir_fd=where.fd)
            return
        except FileExistsError:
            facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            if self._bare:
                self._bare.discard(path)
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
        trace = path in self._white or path in self._copied or path in self._bare
        self._remove(where, name, path, facts, lower=lower)
        return not trace

    def _remove(self, where: Dir, name: bytes, path: bytes, facts: os.stat_result, *, lower: bool = False) -> None:
        if stat.S_ISDIR(facts.st_mode):
            self.flush()
            remove_tree(where.fd, name)
            if lower:
                return
            prefix = path + b"/"
            for table in (self.final, self.touched):
                for key in [key for key in table if key == path or key.startswith(prefix)]:
                    del table[key]
            for paths in (self._opaque, self._white, self._copied, self._bare):
                paths.difference_update([key for key in paths if key == path or key.startswith(prefix)])
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
        while path and self._bare:
            self._bare.discard(path)
            path = path.rpartition(b"/")[0]

    # -- whiteouts -----------------------------------------------------------------------------------------

    def hide(self, literal: bytes, name: bytes) -> None:
        """Hide what the layers below have as ``name`` in a directory; what this layer has there stays."""
        parent = self.find(literal)
        if parent is None:
            return
        path = parent + b"/" + name if parent else name
        if not self.overlay:
            self._remove_lower(self.open(parent), name, path)
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
            self._purge(path)
            if path in self._bare:
                self._bare.discard(path)
                self.flush()
                self.final.pop(path, None)
                self._opaque.discard(path)
                os.rmdir(name, dir_fd=where.fd)
                return False
            self._set_opaque(path)
        return True  # a file hides what is below by itself

    def hide_all(self, literal: bytes) -> None:
        """Hide all that the layers below have in a directory: the opaque whiteout."""
        path = self.find(literal)
        if path is None:
            return
        if not self.overlay:
            where = self.open(path)
            for name in os.listdir(where.fd):
                raw = os.fsencode(name)
                self._remove_lower(where, raw, where.child(raw))
            return
        self.open(path, bare=True)
        self._purge(path)
        self._set_opaque(path)

    def _remove_lower(self, where: Dir, name: bytes, path: bytes) -> None:
        """Merge mode: remove what this layer has not made; directories it made are searched in turn."""
        if self.created is None:
            return
        todo = [(path, where)]
        while todo:
            path, where = todo.pop()
            name = path.rpartition(b"/")[2]
            if path not in self.created:
                self.clear(where, name, lower=True)
                continue
            try:
                facts = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(facts.st_mode):
                continue
            inner = self.open(path)
            todo.extend((inner.child(os.fsencode(child)), inner) for child in os.listdir(inner.fd))

    def _set_opaque(self, path: bytes) -> None:
        where = self.open(path)
        os.setxattr(where.fd, self.opaque_xattr, b"y")
        self._opaque.add(path)

    def _purge(self, path: bytes) -> None:
        """Overlay mode: drop what lies below ``path`` only for the sake of the layers below."""
        prefix = path + b"/" if path else b""
        for paths in (self._white, self._copied):
            for key in [key for key in paths if key.startswith(prefix)]:
                folder, _slash, name = key.rpartition(b"/")
                os.unlink(name, dir_fd=self.open(folder).fd)
                paths.discard(key)
        for key in sorted((key for key in self._bare if key.startswith(prefix)), reverse=True):
            folder, _slash, name = key.rpartition(b"/")
            self.flush()
            os.rmdir(name, dir_fd=self.open(folder).fd)
            self._bare.discard(key)
            self.final.pop(key, None)
            self._opaque.discard(key)

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


def copy_up(found: Found, dir_fd: int, name: bytes) -> None:
    """Copy a file that is not a directory, with its metadata, under ``name`` into another directory."""
    facts = found.facts
    times = (facts.st_atime_ns, facts.st_mtime_ns)
    mode = stat.S_IMODE(facts.st_mode)
    if stat.S_ISREG(facts.st_mode):
        source = openat2(found.dir_fd, found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, BENEATH)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
            try:
                left = facts.st_size
                while left and (sent := os.sendfile(fd, source, facts.st_size - left, min(left, 1 << 30))):
                    left -= sent
                os.fchown(fd, facts.st_uid, facts.st_gid)
                os.fchmod(fd, mode)
                for key, value in allowed_xattrs(source).items():
                    os.setxattr(fd, key, value)
                os.utime(fd, ns=times)
            finally:
                os.close(fd)
        finally:
            os.close(source)
        return
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(found.name, dir_fd=found.dir_fd), name, dir_fd=dir_fd)
    else:
        os.mknod(name, facts.st_mode, facts.st_rdev, dir_fd=dir_fd)
    os.chown(name, facts.st_uid, facts.st_gid, dir_fd=dir_fd, follow_symlinks=False)
    os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def _has_default_acl(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, "system.posix_acl_default"))
    except OSError as error:
        if error.errno in (ENODATA, ENOTSUP, EPERM, EACCES):
            return False
        raise

"""A read-only look at stacked layer directories as one tree, by descriptor, without mounting anything.

Whiteouts and opaque directories count as overlayfs counts them; symbolic links resolve inside the tree, across
layers. Used to find what a layer builds upon, and to read /etc/passwd of an image before anything runs: only
regular files are ever opened, never a FIFO or device (docs/security.md I10).
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EINVAL, ELOOP, ENODATA, ENOENT, ENOTDIR, ENOTSUP, EPERM

from knarr.base.errors import FileError, NotFound
from knarr.kernel.path import BENEATH, openat2, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self, TypeVar

    T = TypeVar("T")

LINKS_LIMIT = 40  # MAXSYMLINKS of the kernel
OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")

_Stack = tuple[int, ...]


class Found:
    """What a look-up found: ``facts`` (lstat), and the directory descriptor and name to reach it by.

    A directory has ``stack``: its descriptors in all layers that show it, top first. All descriptors belong to
    the view and stay valid until it forgets them (``lookup`` is called again) or is closed.
    """

    __slots__ = ("dir_fd", "facts", "name", "stack")

    def __init__(self, facts: os.stat_result, dir_fd: int, name: bytes, stack: _Stack) -> None:
        self.facts = facts
        self.dir_fd = dir_fd
        self.name = name
        self.stack = stack


def is_whiteout(facts: os.stat_result) -> bool:
    """Whether it is overlayfs's whiteout: a character device 0:0."""
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0


def is_opaque(fd: int, names: Sequence[str] = OPAQUE_XATTRS) -> bool:
    """Whether a layer's directory hides what the layers below have in it; ``fd`` not O_PATH."""
    for name in names:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError as error:
            if error.errno not in (ENODATA, ENOTSUP, EPERM, EACCES):
                raise
    return False


def _shown(roots: Sequence[int]) -> _Stack:
    """The layers down to one whose root is opaque. Overlayfs itself merges all that it is given."""
    for count, fd in enumerate(roots, 1):
        if is_opaque(fd):
            return tuple(roots[:count])
    return tuple(roots)


class MergedView:
    """``roots``: open descriptors of layer directories, top first; they stay the caller's."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._root: _Stack = _shown(roots)
        self._owned: _Stack = ()
        # path -> descriptors, in order of use; the root's are not among them
        self._known: dict[bytes, _Stack | None] = {}
        self._held = 0  # descriptors in it

    @classmethod
    def of_paths(cls, paths: Sequence[str]) -> MergedView:
        """A view over directories by path, top first, that owns its descriptors; raises FileError."""
        view = cls(())
        roots: list[int] = []
        for path in paths:
            try:
                roots.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                for fd in roots:
                    os.close(fd)
                raise FileError("read", path, error.errno or EINVAL) from None
        view._owned = tuple(roots)
        view._root = _shown(roots)
        return view

    def close(self) -> None:
        """Let all descriptors go that are not the caller's."""
        for stack in (*self._known.values(), self._owned):
            for fd in stack or ():
                os.close(fd)
        self._known.clear()
        self._held = 0
        self._owned = self._root = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, path: bytes, stack: _Stack | None) -> None:
        """Remember a directory; forget the oldest so that descriptors stay few, but never the newest three."""
        self._known[path] = stack
        self._held += len(stack or ())
        while len(self._known) > 3 and (len(self._known) > 64 or self._held > 256):
            old = self._known.pop(next(iter(self._known))) or ()
            self._held -= len(old)
            for fd in old:
                os.close(fd)

    def directory(self, path: bytes) -> _Stack | None:
        """The descriptors, top first, of a directory by a path free of links and dots; None if there is none."""
        if not path:
            return self._root
        at = path
        while at and at not in self._known:
            at = at.rpartition(b"/")[0]
        stack: _Stack | None = self._root
        if at:
            stack = self._known.pop(at)
            self._known[at] = stack  # the newest again
        while stack and len(at) < len(path):
            start = len(at) + 1 if at else 0
            end = path.find(b"/", start)
            end = len(path) if end < 0 else end
            stack = self._descend(stack, path[start:end])[1]
            at = path[:end]
            self._keep(at, stack)
        return stack

    def _descend(self, stack: _Stack, name: bytes) -> tuple[Found | None, _Stack | None]:
        """What ``name`` is in a merged directory; a fresh stack of descriptors when it is a directory."""
        first: os.stat_result | None = None
        fds: list[int] = []
        owner = -1
        try:
            for fd in stack:
                try:
                    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError as error:
                    if error.errno == ENOENT:
                        continue
                    raise
                if stat.S_ISDIR(facts.st_mode):
                    if first is None:
                        first, owner = facts, fd
                    deeper = openat2(fd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, BENEATH)
                    fds.append(deeper)
                    if is_opaque(deeper):
                        break
                    continue
                if first is None and not is_whiteout(facts):
                    return Found(facts, fd, name, ()), None
                break
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        if first is None:
            return None, None
        made = tuple(fds)
        return Found(first, owner, name, made), made

    def lookup(self, path: bytes) -> Found | None:
        """What a path free of links and dots names, not following a last link; None if nothing. Raises OSError."""
        if not path:
            if not self._root:
                return None
            return Found(os.fstat(self._root[0]), self._root[0], b".", self._root)
        parent, _slash, name = path.rpartition(b"/")
        stack = self.directory(parent)
        if not stack:
            return None
        known = self._known.get(path)
        if known:
            return Found(os.fstat(known[0]), known[0], b".", known)
        found, fresh = self._descend(stack, name)
        if fresh is not None:
            self._known.pop(path, None)  # only ever "no directory", and somebody made one since
            self._keep(path, fresh)
        return found

    def resolve(self, path: str | bytes) -> tuple[bytes, Found]:
        """Follow every symbolic link inside the tree; return (path free of links, what it names).

        Raises NotFound, or FileError for a loop or for a component that is no directory.
        """
        return resolve_links(path, self.lookup, _target, lambda found: bool(found.stack))

    def read_file(self, path: str | bytes, limit: int) -> bytes:
        """Return a regular file of at most ``limit`` bytes; links resolve inside the tree.

        Raises NotFound when there is none by that name, FileError when it is something else, larger, or cannot
        be read.
        """
        shown = f"{printable(path)} in the image"
        try:
            _canonical, found = self.resolve(path)
            if not stat.S_ISREG(found.facts.st_mode):
                raise FileError("read", shown, EINVAL, hint="it is not a regular file")
            if found.facts.st_size > limit:
                why = f"it has {found.facts.st_size} bytes, at most {limit} are read"
                raise FileError("read", shown, EINVAL, hint=why)
            # O_NONBLOCK: should it have become a FIFO since, this does not hang; the identity is checked again.
            fd = openat2(found.dir_fd, found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, BENEATH)
            try:
                facts = os.fstat(fd)
                if (facts.st_dev, facts.st_ino) != (found.facts.st_dev, found.facts.st_ino):
                    raise FileError("read", shown, EINVAL, hint="it changed while it was looked at")
                parts = []
                left = limit + 1
                while left and (part := os.read(fd, min(left, 1 << 16))):
                    parts.append(part)
                    left -= len(part)
                if not left:
                    raise FileError("read", shown, EINVAL, hint=f"it has more than the {limit} bytes that are read")
                return b"".join(parts)
            finally:
                os.close(fd)
        except OSError as error:
            raise FileError("read", shown, error.errno or EINVAL) from None


def _target(found: Found) -> bytes | None:
    """Where it leads if it is a symbolic link."""
    return os.readlink(found.name, dir_fd=found.dir_fd) if stat.S_ISLNK(found.facts.st_mode) else None


def resolve_links(
    path: str | bytes,
    lookup: Callable[[bytes], T | None],
    target: Callable[[T], bytes | None],
    is_directory: Callable[[T], bool],
    *,
    follow: bool = True,
    where: str = "the image",
) -> tuple[bytes, T]:
    """Follow the symbolic links of a path inside an image's tree; return (path free of links, what it names).

    ``lookup`` gives what a path free of links and dots names, and is asked for no more than has to be known;
    ``target`` says where a symbolic link leads (None: it is none). Without ``follow`` a last link stays. Raises
    NotFound, or FileError for a loop (ELOOP) or a component that is no directory (ENOTDIR); ``where`` is for these.
    """
    shown = f"{printable(path)} in {where}"
    todo = os.fsencode(path).split(b"/")[::-1]
    at: list[bytes] = []
    links = 0
    found = None
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if at:
                at.pop()
            found = None
            continue
        found = lookup(b"/".join((*at, part)))
        if found is None:
            raise NotFound("file", shown)
        last = all(rest in (b"", b".") for rest in todo)
        leads = target(found)
        if leads is not None and (follow or not last):
            links += 1
            if links > LINKS_LIMIT:
                raise FileError("read", shown, ELOOP)
            if leads.startswith(b"/"):
                at.clear()
            todo.extend(leads.split(b"/")[::-1])
            found = None
            continue
        if not last and not is_directory(found):
            raise FileError("read", shown, ENOTDIR)
        at.append(part)
    canonical = b"/".join(at)
    if found is None:  # the root, or where the last link or ".." led
        found = lookup(canonical)
    if found is None:
        raise NotFound("file", shown)
    return canonical, found

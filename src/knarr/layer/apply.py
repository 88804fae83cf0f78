"""Apply one layer, a tar stream, to a directory: by descriptor only, refusing what would leave it.

image-spec layer.md, "Applying Changesets"; docs/security.md I8. New names are made with O_EXCL in an
open directory; metadata goes on the open file, in the order owner, mode, attributes, times; a directory's last
of all. Where an archive repeats a path the last entry counts, with a warning.
"""

from __future__ import annotations

import os
import stat
import struct
from errno import EDQUOT, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTSUP, EOPNOTSUPP, EPERM

from knarr.base.errors import FileError, Interrupted, KernelError, Unsupported
from knarr.base.record import Record
from knarr.kernel.path import BENEATH, openat2, printable
from knarr.kernel.userns import CLONE_FS, unshare
from knarr.layer.metadata import allowed_xattrs, is_allowed
from knarr.layer.tarball import CHAR, DIR, FIFO, FILE, HARDLINK, KINDS, SYMLINK, Entry, Reader
from knarr.layer.tree import Dir, InMeta, Tree
from knarr.layer.whiteout import OPAQUE, PREFIX, BadName, hidden_name, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from knarr.base.errors import KnarrError
    from knarr.content.verify import Readable
    from knarr.kernel.userns import IdMap
    from knarr.layer.tarball import Limits
    from knarr.layer.view import MergedView

    Mode = Literal["merge", "overlay"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_THE_IMAGE = {
    ENAMETOOLONG: "its name is too long for this file system",
    ELOOP: "too many symbolic links in its path",
    ENOTDIR: "a component of its path is not a directory",
    EISDIR: "it links to a directory",
    EMLINK: "it has more hard links than this file system allows",
}


class Applied(Record):
    """What came of a layer: entries, bytes of file content, what was left out or odd (once each).

    ``opaque``: it hides everything below. Overlayfs does not look for that at a layer's root.
    """

    entries: int
    size: int
    warnings: tuple[str, ...]
    opaque: bool = False


def apply_layer(
    stream: Readable,
    root_fd: int,
    *,
    ids: IdMap | None = None,
    mode: Mode = "merge",
    userxattr: bool = False,
    below: Callable[[], MergedView] | None = None,
    fresh: bool = False,
    what: str = "layer",
    limits: Limits | None = None,
) -> Applied:
    """Apply the changeset in ``stream`` (plain tar) to the directory ``root_fd``; reads the stream to its end.

    ``ids`` says how the layer's owners are stored here, and that no device may be made; None: as they are.
    Mode ``merge`` changes one tree, which ``fresh`` says is empty; ``overlay`` fills the directory of one layer
    for overlayfs (with ``userxattr``, for its option of that name), and ``below`` gives a view of the layers
    under it, called when first needed (it may wait for them).

    Raises FormatError (the layer breaks a rule), FileError (this machine cannot store it), Unsupported (an owner
    that is not mapped), and what the stream raises. The tree is then half done and the caller's to remove.
    """
    work = _Work(stream, root_fd, ids, mode, userxattr, below, fresh, what, limits)
    # A thread of its own, because the umask belongs to the process unless unshared: with umask 0 a file's mode
    # is right from the start, and other threads of the program keep theirs.
    import threading

    outcome: list[BaseException] = []

    def run() -> None:
        try:
            try:
                unshare(CLONE_FS)
                os.umask(0)
            except KernelError:  # seccomp filters of containers forbid it: then every mode is set explicitly
                work.exact = True
            work.run()
        except BaseException as error:  # noqa: BLE001  # raised again in the calling thread
            outcome.append(error)

    thread = threading.Thread(target=run, name="knarr-apply", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        work.stopped = True
        thread.join()
        raise
    if outcome:
        raise outcome[0]
    return Applied(work.reader.count, work.size, tuple(work.warnings), work.tree.is_opaque_root)


class _Work:
    """One call of apply_layer."""

    def __init__(
        self,
        stream: Readable,
        root_fd: int,
        ids: IdMap | None,
        mode: str,
        userxattr: bool,  # noqa: FBT001  # called once, above
        below: Callable[[], MergedView] | None,
        fresh: bool,  # noqa: FBT001
        what: str,
        limits: Limits | None,
    ) -> None:
        self.what = what
        self.ids = ids
        self.stopped = False
        self.exact = False
        self.size = 0
        self.warnings: dict[str, None] = {}
        self._stream = stream
        self._root_fd = root_fd
        self._overlay = mode == "overlay"
        self._fresh = fresh
        self._below = below
        self._opaque = "user.overlay.opaque" if userxattr else "trusted.overlay.opaque"
        self._devices = 0  # left out
        self._owners: dict[tuple[int, int], tuple[int, int]] = {}
        self._own = (os.geteuid(), os.getegid())
        self.reader = Reader(self, what=what, limits=limits)

    def read(self, size: int, /) -> bytes:
        """The reader's source: the stream, until somebody stops us."""
        if self.stopped:
            raise Interrupted(f"unpacking {self.what} was stopped")
        return self._stream.read(size)

    def close(self) -> None:
        """Nothing: the stream is the caller's."""

    def warn(self, text: str) -> None:
        if len(self.warnings) < 100:
            self.warnings[text] = None

    def run(self) -> None:
        reader = self.reader
        self.tree = Tree(
            self._root_fd,
            overlay=self._overlay,
            below=self._below,
            opaque_xattr=self._opaque,
            fresh=self._fresh,
            exact=self.exact,
            owner=self.owner(0, 0, b""),
        )
        name = b""
        try:
            while (entry := reader.next()) is not None:
                name = entry.name
                self.one(entry)
            reader.drain()
            name = b"./"
            self.finish()
        except BadName as error:
            raise reader.fail(str(error), name) from None
        except OSError as error:
            raise self.told(error, name) from None
        finally:
            self.tree.close()

    def told(self, error: OSError, name: bytes) -> KnarrError:
        """Say whether the layer or the machine is to blame for a failed system call."""
        number = error.errno or EINVAL
        if number in _OF_THE_IMAGE:
            return self.reader.fail(_OF_THE_IMAGE[number], name)
        hint = "the quota is used up" if number == EDQUOT else ""
        return FileError("unpack", f"{printable(name)} of {self.what}", number, hint=hint)

    def owner(self, uid: int, gid: int, name: bytes) -> tuple[int, int]:
        """The ids to store; raises Unsupported for one that is not mapped."""
        if self.ids is None:
            return uid, gid
        known = self._owners.get((uid, gid))
        if known is None:
            known = (self.ids.uid(uid), self.ids.gid(gid))
            for number, inside, kind, table in (
                (known[0], uid, "user", "/etc/subuid"),
                (known[1], gid, "group", "/etc/subgid"),
            ):
                if number < 0:
                    ranges = self.ids.uids if kind == "user" else self.ids.gids
                    there = sum(count for _inside, _outside, count in ranges)
                    raise Unsupported(
                        f"{kind} id {inside}, owner of {printable(name)} in {self.what},",
                        f"only {there} ids are mapped, {max(0, inside + 1 - there)} too few",
                        hint=f"give this user more in {table}",
                    )
            if len(self._owners) > 4096:
                self._owners.clear()
            self._owners[uid, gid] = known
        return known

    # -- entries -------------------------------------------------------------------------------------------

    def one(self, entry: Entry) -> None:
        """Apply one entry; raises BadName, OSError, FormatError."""
        literal, _slash, base = entry.name.rpartition(b"/")
        if not base or base[0] == 46 or len(base) > 255:  # 46: a dot
            literal, base = split(entry.name)
        tree = self.tree
        tree.mtime = entry.mtime
        kind = entry.kind
        if not base:
            if kind != DIR:
                raise BadName("the root entry must be a directory")
            tree.settle(b"", self.meta(entry))
            return
        where = tree.known.get(literal)
        if where is None or base[0] == 46 or tree.bare:
            try:
                if base[:4] == PREFIX:
                    if base == OPAQUE:
                        tree.hide_all(literal)
                    elif hidden := hidden_name(base):
                        tree.hide(literal, hidden)
                    return
                where = tree.parent(literal)
            except InMeta:
                return
        if tree.followed and where.child(base) in tree.followed:
            tree.flush()
        if tree.created is not None:
            path = where.child(base)
            if path in tree.created and kind != DIR:
                self.repeated(path)
            tree.created.add(path)
        if kind == FILE:
            self.file(entry, where, base)
        elif kind == SYMLINK:
            self.symlink(entry, where, base)
        elif kind == DIR:
            path = where.child(base)
            tree.make_directory(where, base, path)
            tree.settle(path, self.meta(entry))
        elif kind == HARDLINK:
            self.hardlink(entry, where, base)
        else:
            self.node(entry, where, base)

    def repeated(self, path: bytes) -> None:
        """Warn that a path is there twice; layer.md forbids it, yet real layers do it."""
        self.warn(f"{printable(path)} is in {self.what} more than once: the last one counts")

    def make_room(self, where: Dir, base: bytes) -> None:
        """Something has the name already: from below, or from this layer."""
        if self.tree.clear(where, base) and (self._fresh or self._overlay):
            self.repeated(where.child(base))

    def file(self, entry: Entry, where: Dir, base: bytes) -> None:
        mode = entry.mode
        try:
            fd = os.open(base, _NEW, mode & 0o777, dir_fd=where.fd)
        except FileExistsError:
            self.make_room(where, base)
            fd = os.open(base, _NEW, mode & 0o777, dir_fd=where.fd)
        try:
            if entry.extents is not None:
                self.sparse(entry, fd)
            elif size := entry.size:
                part = self.reader.whole()
                if part is None or os.write(fd, part) != size:
                    self.content(fd, part)
                self.size += size
            owner = (entry.uid, entry.gid)
            if self.ids is not None:
                owner = self.owner(*owner, entry.name)
            if owner != self._own or not where.plain:
                os.fchown(fd, *owner)
            if mode & 0o7000 or not where.plain:
                self.drop_acl(fd)
                os.fchmod(fd, mode)
            if entry.xattrs:
                for name, value in self.attributes(entry).items():
                    self.set_attribute(fd, name, value)
            mtime = entry.mtime
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def content(self, fd: int, start: memoryview | None) -> None:
        """Write what is too long for one go; of ``start``, all there is, the kernel has taken a part."""
        if start is not None:
            start = start[os.lseek(fd, 0, os.SEEK_CUR) :]
        for part in self.reader.chunks() if start is None else (start,):
            written = os.write(fd, part)
            while written < len(part):
                written += os.write(fd, part[written:])

    def sparse(self, entry: Entry, fd: int) -> None:
        """Write the stored parts where they belong; what lies between them stays a hole."""
        extents = iter(entry.extents or ())
        at = left = 0
        for chunk in self.reader.chunks():
            part = chunk
            while part:
                if not left:
                    at, left = next(extents)
                written = os.pwrite(fd, part[:left], at)
                at += written
                left -= written
                self.size += written
                part = part[written:]
        os.ftruncate(fd, entry.size)

    def drop_acl(self, fd: int) -> None:
        """Take off an access list that the file got from the directory it was made in."""
        for name in os.listxattr(fd):
            if name.startswith("system.posix_acl_"):
                os.removexattr(fd, name)

    def symlink(self, entry: Entry, where: Dir, base: bytes) -> None:
        if not entry.link:
            raise BadName("the symbolic link leads nowhere: its target is empty")
        try:
            os.symlink(entry.link, base, dir_fd=where.fd)
        except FileExistsError:
            self.make_room(where, base)
            os.symlink(entry.link, base, dir_fd=where.fd)
        if entry.xattrs and self.attributes(entry):
            self.warn(f"extended attributes of symbolic links in {self.what} are left out: Linux has none")
        self.finish_name(entry, where, base)

    def finish_name(self, entry: Entry, where: Dir, base: bytes) -> None:
        """Owner and times of what cannot be opened: by name, not following a link."""
        owner = self.owner(entry.uid, entry.gid, entry.name)
        if owner != self._own or not where.plain:
            os.chown(base, *owner, dir_fd=where.fd, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=where.fd, follow_symlinks=False)

    def hardlink(self, entry: Entry, where: Dir, base: bytes) -> None:
        try:
            literal, name = split(entry.link)
            if not name or name[:4] == PREFIX:
                raise BadName("not a file")
            parent = self.tree.find(literal)
        except (BadName, InMeta) as error:
            why = str(error) or "not a file"
            raise BadName(f"it links to {printable(entry.link)!r}: {why}") from None
        source = None if parent is None else self.tree.source(parent, name)
        if source is None:
            raise BadName(f"it links to {printable(entry.link)!r}, which does not exist in the image")
        try:
            facts = os.stat(name, dir_fd=source.fd, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
            if source.path == where.path and name == base:
                return
            try:
                os.link(name, base, src_dir_fd=source.fd, dst_dir_fd=where.fd, follow_symlinks=False)
            except FileExistsError:
                self.make_room(where, base)
                os.link(name, base, src_dir_fd=source.fd, dst_dir_fd=where.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise BadName(f"it links to {printable(entry.link)!r}, which does not exist in the image") from None

    def node(self, entry: Entry, where: Dir, base: bytes) -> None:
        """A FIFO or a device."""
        kind = entry.kind
        major, minor = entry.device
        if kind == FIFO:
            made, number = stat.S_IFIFO, 0
        else:
            if not 0 <= major < 1 << 12 or not 0 <= minor < 1 << 20:
                raise BadName(f"device number {major}:{minor} is out of range")
            if kind == CHAR and not major and not minor:
                raise BadName("device 0:0 is overlayfs's whiteout, which a layer must write as .wh.NAME")
            made, number = (stat.S_IFCHR if kind == CHAR else stat.S_IFBLK), os.makedev(major, minor)
        if kind != FIFO and self.ids is not None:
            self.skip_device(entry, where, base)
            return
        try:
            self.make_node(made | entry.mode, number, where, base)
        except PermissionError:
            if kind == FIFO:
                raise
            self.skip_device(entry, where, base)
            return
        self.finish_name(entry, where, base)
        if kind == FIFO and (entry.xattrs or not where.plain):
            fd = os.open(base, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where.fd)
            try:
                self.drop_acl(fd)
                os.fchmod(fd, entry.mode)
                for name, value in self.attributes(entry).items():
                    self.set_attribute(fd, name, value)
            finally:
                os.close(fd)

    def make_node(self, mode: int, number: int, where: Dir, base: bytes) -> None:
        try:
            os.mknod(base, mode, number, dir_fd=where.fd)
        except FileExistsError:
            self.make_room(where, base)
            os.mknod(base, mode, number, dir_fd=where.fd)

    def skip_device(self, entry: Entry, where: Dir, base: bytes) -> None:
        """Leave a device out; what it would have replaced goes all the same."""
        if not self._devices:
            self.warn(f"device nodes in {self.what} are left out ({KINDS[entry.kind]} {printable(entry.name)} is one)")
        self._devices += 1
        self.tree.clear(where, base)
        self.tree.hide(split(entry.name)[0], base)

    # -- metadata ------------------------------------------------------------------------------------------

    def meta(self, entry: Entry) -> tuple[int, int, int, int, dict[str, bytes]]:
        owner = self.owner(entry.uid, entry.gid, entry.name)
        return (entry.mode, *owner, entry.mtime, self.attributes(entry) if entry.xattrs else {})

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        """The entry's extended attributes that may be set, as they are stored here."""
        found = {}
        for raw, value in (entry.xattrs or {}).items():
            name = os.fsdecode(raw)
            if not is_allowed(name) or (name == "security.capability" and entry.kind != FILE):
                self.warn(f"extended attribute {printable(name)} in {self.what} is left out")
                continue
            if self.ids is not None and not name.startswith("user."):
                value = _mapped(name, value, self.ids)
            found[name] = value
        return found

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno in (ENOTSUP, EOPNOTSUPP):
                self.warn(f"extended attribute {name} in {self.what} is left out: this file system has none")
            elif error.errno == EPERM:
                self.warn(f"extended attribute {name} in {self.what} is left out: no permission to set it")
            elif error.errno == EINVAL:
                raise BadName(f"the value of its extended attribute {printable(name)} is not valid") from None
            else:
                raise

    def finish(self) -> None:
        """Give directories what they shall be in the end, the deepest first."""
        tree = self.tree
        final = tree.final
        if b"" not in final and (self._overlay or self._fresh):
            found = tree.below(b"")
            if found is not None:
                facts = found.facts
                mode = stat.S_IMODE(facts.st_mode)
                final[b""] = (mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns, allowed_xattrs(found.stack[0]))
            else:
                final[b""] = (0o755, *tree.owner, 0, {})
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        for path in sorted({*final, *tree.touched}, reverse=True):
            try:
                fd = openat2(self._root_fd, path or b".", flags, BENEATH)
            except OSError as error:
                if error.errno in (ENOENT, ENOTDIR, ELOOP):
                    continue  # it was replaced by something else
                raise
            try:
                meta = final.get(path)
                if meta is None:
                    os.utime(fd, ns=(tree.touched[path], tree.touched[path]))
                else:
                    self.set_meta(fd, meta)
            finally:
                os.close(fd)

    def set_meta(self, fd: int, meta: tuple[int, int, int, int, dict[str, bytes]]) -> None:
        mode, uid, gid, mtime, attributes = meta
        facts = os.fstat(fd)
        if (facts.st_uid, facts.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        for name in os.listxattr(fd):
            if name not in attributes and is_allowed(name):
                os.removexattr(fd, name)
        os.fchmod(fd, mode)
        for name, value in attributes.items():
            self.set_attribute(fd, name, value)
        os.utime(fd, ns=(mtime, mtime))


def _mapped(name: str, value: bytes, ids: IdMap) -> bytes:
    """An attribute that holds ids, for the ids it is stored with.

    Within a user namespace the map is an identity and the kernel translates; here it does so for a caller
    outside that stores the ids of a namespace to come.
    """
    if name == "security.capability":
        root = ids.uid(0)
        if root > 0 and len(value) == 20 and value[3] == 2:  # VFS_CAP_REVISION_2; 3 names its root user
            return value[:3] + b"\x03" + value[4:] + struct.pack("<I", root)
        return value
    if len(value) < 4 or (len(value) - 4) % 8:
        return value  # not an access list: the kernel will say so
    entries = []
    for tag, rights, number in struct.iter_unpack("<HHI", value[4:]):
        mapped = number
        if tag == 2:  # ACL_USER
            mapped = ids.uid(number)
        elif tag == 8:  # ACL_GROUP
            mapped = ids.gid(number)
        if mapped >= 0:
            entries.append(struct.pack("<HHI", tag, rights, mapped))
    return value[:4] + b"".join(entries)

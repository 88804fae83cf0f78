"""A layer made of this machine's own programs, each with what it needs to start. ``knarr image create --from-host``.

Symbolic links on the way to a file stay links, so that ``/bin -> usr/bin`` looks as it does here. What a program
opens only while it runs (plug-ins, data, a Python's modules) is not known and not taken along. The same files give
the same bytes: sorted, owned by 0, dated SOURCE_DATE_EPOCH or 1970, without setuid bits and attributes.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ELOOP

from knarr.base.errors import FileError, NotFound, Unsupported, UsageError
from knarr.layer.elf import Finder
from knarr.layer.tarball import DIR, FILE, SYMLINK, Entry
from knarr.layer.tarwriter import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.layer.elf import Elf
    from knarr.layer.tarwriter import Writable

_LINKS_LIMIT = 40
_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_FOLDERS = {"/dev": 0o755, "/etc": 0o755, "/proc": 0o555, "/root": 0o700, "/sys": 0o555, "/tmp": 0o1777, "/var": 0o755}
_FILES = {"/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "/etc/group": b"root:x:0:\n"}


def host_layer(programs: Sequence[str], out: Writable, *, epoch: int | None = None) -> list[str]:
    """Write a plain tar layer with these programs (absolute paths on this machine) to ``out``; return what is in it.

    Scripts bring their interpreter, ELF programs their loader and libraries. ``epoch``: the time of everything, in
    seconds; None means SOURCE_DATE_EPOCH, or 0. Directories to mount on and a passwd with root are put in, too.
    Raises NotFound, UsageError, FileError, Unsupported (a library that is not there).
    """
    taken = _Taken()
    for program in programs:
        taken.program(program, "")
    if taken.finder.through_cache:
        taken.take("/etc/ld.so.cache")
    return taken.write(out, _epoch() if epoch is None else epoch)


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdigit() or len(text) > 11:
        raise UsageError(f"SOURCE_DATE_EPOCH is {text[:40]!r}, not a number of seconds")
    return int(text)


class _Taken:
    """What goes into the layer, by absolute path: a link's target, or None for what is copied from the machine."""

    def __init__(self) -> None:
        self.finder = Finder()
        self._links: dict[str, str] = {}
        self._files: dict[str, os.stat_result] = {}
        self._folders: dict[str, int] = {}

    def take(self, path: str) -> str:
        """Take a file along, with the links that lead to it; return its path free of links."""
        todo = path.split("/")[::-1]
        at: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if at:
                    at.pop()
                continue
            here = "/" + "/".join((*at, part))
            try:
                facts = os.lstat(here)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound("file", path) from None
            except OSError as error:
                raise FileError("read", path, error.errno or EINVAL) from None
            if stat.S_ISLNK(facts.st_mode):
                links += 1
                if links > _LINKS_LIMIT:
                    raise FileError("read", path, ELOOP)
                target = os.readlink(here)
                self._links[here] = target
                if target.startswith("/"):
                    at.clear()
                todo.extend(target.split("/")[::-1])
                continue
            if any(rest not in ("", ".") for rest in todo):
                if not stat.S_ISDIR(facts.st_mode):
                    raise NotFound("file", path)
                self._folders[here] = stat.S_IMODE(facts.st_mode) & 0o777
            elif stat.S_ISREG(facts.st_mode):
                self._files[here] = facts
            else:
                raise FileError("copy", path, EINVAL, hint="it is not a regular file")
            at.append(part)
        return "/" + "/".join(at)

    def program(self, path: str, user: str) -> None:
        """Take a program and what it needs; ``user`` is the script that names it."""
        if not path.startswith("/"):
            raise UsageError(f"program {path!r} must be given by its absolute path")
        try:
            real = self.take(path)
        except NotFound:
            why = f"it is the interpreter of {user}" if user else ""
            raise NotFound("program", path, hint=why) from None
        elf = self.finder.elf(real)
        if elf is not None:
            self._needs(real, elf, [], {real})
            if elf.interpreter:
                self.take(elf.interpreter)
            return
        words = _interpreter(real)
        if not words:
            return  # data, or a script without a first line that says so: the caller's word counts
        if user:
            raise Unsupported(f"script {user}", f"its interpreter {path} is itself a script")
        self.program(words[0], path)
        if words[0].rpartition("/")[2] == "env" and len(words) > 1:
            name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
            for folder in _SEARCHED:
                if name and os.access(f"{folder}/{name}", os.X_OK):
                    self.program(f"{folder}/{name}", path)
                    return
            raise NotFound("program", name or "after env", hint=f"it is the interpreter of {path}")

    def _needs(self, path: str, elf: Elf, loaders: list[tuple[Elf, str]], seen: set[str]) -> None:
        origin = os.path.dirname(path)
        for name in elf.needed:
            library = self.finder.find(name, elf, origin, loaders)
            if not library:
                raise Unsupported(f"copying {path}", f"its library {name} is not on this machine")
            real = self.take(library)
            if real in seen:
                continue
            seen.add(real)
            inner = self.finder.elf(real)
            if inner is not None:
                self._needs(real, inner, [(elf, origin), *loaders], seen)

    def write(self, out: Writable, epoch: int) -> list[str]:
        """Write everything, sorted, so that a directory comes before what is in it."""
        for folder, mode in _FOLDERS.items():
            if folder not in self._links:
                self._folders[folder] = mode
        extra = {path: data for path, data in _FILES.items() if path not in self._files and "/etc" not in self._links}
        names = sorted({*self._links, *self._files, *self._folders, *extra})
        writer = Writer(out)
        for name in ("/", *names):
            entry = Entry()
            entry.name = b"./" if name == "/" else os.fsencode(name[1:])
            entry.mtime = epoch * 1_000_000_000
            if name in self._links:
                entry.kind, entry.mode, entry.link = SYMLINK, 0o777, os.fsencode(self._links[name])
                writer.add(entry)
            elif name in self._files:
                self._copy(writer, entry, name)
            elif name in extra:
                entry.mode = 0o644
                writer.add(entry, extra[name])
            else:
                entry.kind, entry.mode = DIR, self._folders.get(name, 0o755)
                writer.add(entry)
        writer.close()
        return names

    def _copy(self, writer: Writer, entry: Entry, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise FileError("read", name, error.errno or EINVAL) from None
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise FileError("copy", name, EINVAL, hint="it is not a regular file any more")
            entry.kind, entry.mode, entry.size = FILE, stat.S_IMODE(facts.st_mode) & 0o777, facts.st_size
            writer.add_file(entry, fd, name)
        finally:
            os.close(fd)


def _interpreter(path: str) -> list[str]:
    """The words of a script's first line; empty if it has none. execve(2), "Interpreter scripts"."""
    try:
        with open(path, "rb") as stream:
            line = stream.read(256)
    except OSError as error:
        raise FileError("read", path, error.errno or EINVAL) from None
    if line[:2] != b"#!":
        return []
    return os.fsdecode(line[2:].split(b"\n", 1)[0]).split()

"""What a program needs to start: its ELF interpreter and shared libraries, found as ld.so finds them. elf(5), ld.so(8).

Nothing is executed: ``ldd`` runs the program's own loader, which may be anybody's.
"""

from __future__ import annotations

import os
import struct
from errno import EINVAL

from knarr.base.errors import FileError, FormatError
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29
_CACHE = "/etc/ld.so.cache"
_LIMIT = 1 << 20

STANDARD = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
"""Where the loader looks without any cache; distributions with multiarch add a directory below /lib and /usr/lib."""

_MULTIARCH = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu", 3: "i386-linux-gnu", 40: "arm-linux-gnueabihf"}
_MACHINES = {62: "x86_64", 183: "aarch64", 3: "i386", 40: "armhf"}


class Elf(Record):
    """The part of an ELF file that tells what it needs."""

    wide: bool
    machine: int
    interpreter: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read_elf(path: str) -> Elf | None:
    """Read an ELF program or library; None when it is something else. Raises FileError, FormatError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise FileError("read", path, error.errno or EINVAL) from None
    try:
        return _read(fd, path)
    except (struct.error, ValueError, IndexError, OverflowError):
        raise FormatError(path, "", "it is a damaged ELF file") from None
    except OSError as error:
        if error.errno == EINVAL:  # an offset that no file has
            raise FormatError(path, "", "it is a damaged ELF file") from None
        raise FileError("read", path, error.errno or EINVAL) from None
    finally:
        os.close(fd)


def _read(fd: int, path: str) -> Elf | None:
    head = os.pread(fd, 64, 0)
    if head[:4] != b"\x7fELF":
        return None
    wide = head[4] == 2
    order = "<" if head[5] == 1 else ">"
    machine = struct.unpack_from(order + "H", head, 18)[0]
    if wide:
        table, size, count = *struct.unpack_from(order + "Q", head, 32), *struct.unpack_from(order + "HH", head, 54)
        form = order + "IIQQQQQQ"
    else:
        table, size, count = *struct.unpack_from(order + "I", head, 28), *struct.unpack_from(order + "HH", head, 42)
        form = order + "IIIIIIII"
    segments: list[tuple[int, int, int, int]] = []
    interpreter = ""
    dynamic = b""
    for index in range(count):
        fields = struct.unpack(form, os.pread(fd, struct.calcsize(form), table + index * size))
        kind = fields[0]
        offset, address, stored = (fields[2], fields[3], fields[5]) if wide else (fields[1], fields[2], fields[4])
        segments.append((kind, offset, address, stored))
        if kind == _PT_INTERP:
            interpreter = os.fsdecode(os.pread(fd, min(stored, 4096), offset).rstrip(b"\0"))
        elif kind == _PT_DYNAMIC:
            if stored > _LIMIT:
                raise FormatError(path, "", "its dynamic section is too large")
            dynamic = os.pread(fd, stored, offset)
    entry = order + ("qQ" if wide else "iI")
    tags = [struct.unpack_from(entry, dynamic, at) for at in range(0, len(dynamic), struct.calcsize(entry))]
    if (0, 0) in tags:
        tags = tags[: tags.index((0, 0))]
    values = dict(tags)
    strings = b""
    if _DT_STRTAB in values:
        where = values[_DT_STRTAB]
        for kind, offset, address, stored in segments:
            if kind == _PT_LOAD and address <= where < address + stored:
                length = values.get(_DT_STRSZ, 0)
                if length > 64 * _LIMIT:
                    raise FormatError(path, "", "its string table is too large")
                strings = os.pread(fd, length, offset + where - address)

    def text(at: int) -> str:
        return os.fsdecode(strings[at : strings.index(b"\0", at)])

    def paths(tag: int) -> tuple[str, ...]:
        return tuple(part for part in text(values[tag]).split(":") if part) if tag in values else ()

    needed = tuple(text(value) for tag, value in tags if tag == _DT_NEEDED)
    return Elf(wide, machine, interpreter, needed, paths(_DT_RPATH), paths(_DT_RUNPATH))


def read_cache(path: str = _CACHE) -> dict[str, list[str]]:
    """The loader's cache: library name -> paths, those for every processor first. Empty if there is none."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(64 * _LIMIT)
    except OSError:
        return {}
    start = data.find(b"glibc-ld.so.cache1.1")  # an older table may stand before it
    if start < 0:
        return {}
    found: dict[str, list[tuple[bool, str]]] = {}
    try:
        (count,) = struct.unpack_from("=I", data, start + 20)
        for index in range(min(count, 1 << 20)):
            _flags, key, value, _version, capabilities = struct.unpack_from("=iIIIQ", data, start + 48 + 24 * index)
            name = os.fsdecode(data[start + key : data.index(b"\0", start + key)])
            library = os.fsdecode(data[start + value : data.index(b"\0", start + value)])
            found.setdefault(name, []).append((capabilities != 0, library))
    except (struct.error, ValueError):
        return {}
    return {
        name: [library for _special, library in sorted(rows, key=lambda row: row[0])] for name, rows in found.items()
    }


class Finder:
    """Finds libraries for programs, with the cache read once. ``through_cache``: one was found only there."""

    def __init__(self, cache: dict[str, list[str]] | None = None) -> None:
        self._cache = read_cache() if cache is None else cache
        self._elves: dict[str, Elf | None] = {}
        self.through_cache = False

    def elf(self, path: str) -> Elf | None:
        """``read_elf``, remembered."""
        if path not in self._elves:
            self._elves[path] = read_elf(path)
        return self._elves[path]

    def find(self, name: str, user: Elf, origin: str, loaders: Sequence[tuple[Elf, str]]) -> str:
        """The path of a library that ``user``, an object in directory ``origin``, needs; "" if there is none.

        ``loaders``: the objects that led to it, each with its directory, the nearest first, for DT_RPATH.
        """
        if "/" in name:
            return name if self._fits(name, user) else ""
        for folder in self._folders(user, origin, loaders):
            if self._fits(f"{folder}/{name}", user):
                return f"{folder}/{name}"
        standard = _standard(user, loaders)
        for path in self._cache.get(name, ()):
            if self._fits(path, user):
                if os.path.dirname(path) not in standard:
                    self.through_cache = True
                return path
        for folder in standard:
            if self._fits(f"{folder}/{name}", user):
                return f"{folder}/{name}"
        return ""

    def _folders(self, user: Elf, origin: str, loaders: Sequence[tuple[Elf, str]]) -> list[str]:
        """DT_RUNPATH of the object, or else DT_RPATH of it and of those that loaded it."""
        if user.runpath:
            return [_expanded(part, origin, user) for part in user.runpath]
        return [
            _expanded(part, place, one)
            for one, place in ((user, origin), *loaders)
            if not one.runpath
            for part in one.rpath
        ]

    def _fits(self, path: str, user: Elf) -> bool:
        try:
            found = self.elf(path)
        except (FileError, FormatError):
            return False
        return found is not None and (found.wide, found.machine) == (user.wide, user.machine)


def _expanded(part: str, origin: str, user: Elf) -> str:
    for name, value in (
        ("ORIGIN", origin),
        ("LIB", f"lib/{_MULTIARCH.get(user.machine, '')}".rstrip("/")),
        ("PLATFORM", _MACHINES.get(user.machine, "")),
    ):
        part = part.replace("${" + name + "}", value).replace("$" + name, value)
    return part


def _standard(user: Elf, loaders: Sequence[tuple[Elf, str]]) -> list[str]:
    program = loaders[-1][0] if loaders else user
    if "ld-musl-" in program.interpreter:
        name = program.interpreter.rpartition("/")[2].removesuffix(".so.1")
        try:
            with open(f"/etc/{name}.path", encoding="utf-8") as stream:
                return [part for part in stream.read(_LIMIT).replace("\n", ":").split(":") if part]
        except OSError:
            return ["/lib", "/usr/local/lib", "/usr/lib"]
    folders: list[str] = [*STANDARD] if user.wide else ["/lib", "/usr/lib", "/lib32", "/usr/lib32"]
    multiarch = _MULTIARCH.get(user.machine)
    return [f"/lib/{multiarch}", f"/usr/lib/{multiarch}", *folders] if multiarch else folders

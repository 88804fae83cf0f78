"""What a container in a guest wrote to its root, brought into the root on the host (cold).

The guest shows the upper layer of its overlay (init/files.c); here it is made into a changeset, which layer/apply.py
applies as it does those of strangers' images. The guest may be anybody's by now: it is asked in steps of which each
has a bound, and whatever it answers can change nothing but files in that root. No device is made.
"""

from __future__ import annotations

import os
import stat
from struct import Struct
from time import monotonic

from knarr.base.errors import InitError, KnarrError, SafetyViolation
from knarr.base.record import Record
from knarr.isolation import frames
from knarr.kernel.path import printable
from knarr.kernel.userns import IdMap
from knarr.layer.apply import apply_layer
from knarr.layer.scan import KINDS
from knarr.layer.tarball import CHAR, DIR, FILE, HARDLINK, Entry, Limits
from knarr.layer.tarwriter import header, padding
from knarr.layer.whiteout import OPAQUE, PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.isolation.guest import Guest

_LOOKED = Struct("<QQqIIIIIIIIII")
_IS_OPAQUE, _IS_CAPABLE = 1, 2
_ENTRIES = 1_000_000
_NAMES = 128 << 20
"""Bytes of all paths together, of which many are kept at a time."""
_LONGEST_PATH = 4096
_PIECE = frames.REPLY_LIMIT - 8
_AHEAD = 16
"""Files whose beginning is asked for before it is wanted: under emulation a question takes a millisecond."""
_FULL = frames.REPLY_LIMIT - _LOOKED.size - 255 - 4096
"""A directory's answer that is shorter is the last one: every entry would have found room."""
_PATIENCE = 10.0
PATIENCE = 120.0
"""Seconds all of it may take."""


class _File(Record):
    """A file the guest showed: its path in the root, and as ``struct looked`` has it."""

    path: bytes
    inode: int
    size: int
    mtime: int
    mode: int
    uid: int
    gid: int
    links: int
    device: tuple[int, int]
    marks: int
    target: bytes


def keep(guest: Guest, upper: str, root: int, most: int) -> tuple[str, ...]:
    """Bring what lies in the guest's directory ``upper`` into ``root`` (a descriptor); what was left out, in sentences.

    ``most``: bytes of content, holes included. Blocks. Raises KnarrError; then a part of it may be there.
    """
    changes = _Changes(guest, upper, most, monotonic() + PATIENCE)
    blocks = changes.blocks()
    first = next(blocks, None)
    if first is None:
        return ()
    limits = Limits(entries=2 * _ENTRIES, file=most, total=2 * most)
    applied = apply_layer(_Stream(first, blocks), root, ids=_stored(), what="the container's root", limits=limits)
    return (*changes.notes, *applied.warnings)


def _stored() -> IdMap:
    """Whose files are: as the guest says; for who may not give files away, all are his own."""
    if os.geteuid() == 0:
        return IdMap(((0, 0, (1 << 32) - 1),), ((0, 0, (1 << 32) - 1),))
    return IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), squash=True)


class _Stream:
    """Blocks as a stream to read."""

    def __init__(self, first: bytes, more: Iterator[bytes]) -> None:
        self._kept = first
        self._more = more

    def read(self, size: int, /) -> bytes:
        while not self._kept:
            following = next(self._more, None)
            if following is None:
                return b""
            self._kept = following
        data, self._kept = self._kept[:size], self._kept[size:]
        return data

    def close(self) -> None:
        """Nothing is open."""


class _Changes:
    """The guest's upper layer as the blocks of a tar."""

    def __init__(self, guest: Guest, upper: str, most: int, deadline: float) -> None:
        self.notes: list[str] = []
        self._guest = guest
        self._upper = os.fsencode(upper)
        self._left = most
        self._most = most
        self._deadline = deadline
        self._entries = 0
        self._room = _NAMES
        self._names: dict[int, bytes] = {}  # of files with several names, by inode: the first

    def blocks(self) -> Iterator[bytes]:
        """The archive, a block or more at a time; nothing at all when nothing was written. Raises KnarrError."""
        waiting = [b""]
        any_ = False
        while waiting:
            folder = waiting.pop()
            files: list[_File] = []
            for file in self._entries_of(folder):
                any_ = True
                kind = KINDS.get(stat.S_IFMT(file.mode))
                name = file.path.rpartition(b"/")[2]
                if name.startswith(PREFIX):
                    self._note(f"{printable(file.path)} is left out: in a layer its name means something else")
                elif kind == CHAR and file.device == (0, 0):  # overlayfs's whiteout
                    yield header(_entry(file.path[: -len(name)] + PREFIX + name))
                elif kind == FILE:
                    files.append(file)
                elif kind is not None:  # a socket means nothing without its program
                    yield header(_entry(file.path, file, kind))
                if kind == DIR and not name.startswith(PREFIX):
                    waiting.append(file.path)
                    if file.marks & _IS_OPAQUE:
                        yield header(_entry(file.path + b"/" + OPAQUE))
            yield from self._contents(files)
        if any_:
            yield bytes(1024)

    # -- what the guest says -------------------------------------------------------------------------------------------

    def _call(self, kind: int, value: int, payload: bytes) -> bytes:
        answers: list[tuple[int, bytes]] = []
        self._guest.request(kind, value, payload, _into(answers))
        return self._answer(answers)

    def _answer(self, answers: list[tuple[int, bytes]]) -> bytes:
        self._guest.wait(lambda: bool(answers), min(monotonic() + _PATIENCE, self._deadline))
        error, data = answers[0]
        if error:
            raise InitError("", "read what the container wrote", error)
        return data

    def _place(self, path: bytes) -> bytes:
        return self._upper + (b"/" + path if path else b"") + b"\0"

    def _entries_of(self, folder: bytes) -> list[_File]:
        found: list[_File] = []
        while True:
            data = self._call(frames.LOOK, len(found), self._place(folder))
            more = looked(data, folder)
            found += more
            self._room -= sum(len(file.path) for file in more)
            if self._entries + len(found) > _ENTRIES or self._room < 0:
                raise KnarrError(f"it has more than {_ENTRIES} files, or too long paths")
            if len(data) <= _FULL:
                self._entries += len(found)
                return sorted(found, key=lambda file: file.path)

    # -- entries -------------------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        if len(self.notes) < 10:
            self.notes.append(text)

    def _contents(self, files: list[_File]) -> Iterator[bytes]:
        """Files with what they hold, their beginnings asked for ahead."""
        asked: list[list[tuple[int, bytes]]] = []
        todo = iter(files)
        for file in files:
            while len(asked) < _AHEAD and (following := next(todo, None)) is not None:
                answers: list[tuple[int, bytes]] = []
                if following.size:
                    self._guest.request(frames.PIECE, _PIECE, self._from(following, 0), _into(answers))
                else:
                    answers.append((0, b""))
                asked.append(answers)
            yield from self._content(file, asked.pop(0))

    def _from(self, file: _File, at: int) -> bytes:
        return self._place(file.path) + at.to_bytes(8, "little")

    def _content(self, file: _File, first: list[tuple[int, bytes]]) -> Iterator[bytes]:
        data = self._answer(first)
        if file.links > 1:
            known = self._names.setdefault(file.inode, file.path)
            if known != file.path:
                yield header(_entry(file.path, file, HARDLINK, link=known))
                return
        self._left -= file.size
        if self._left < 0:
            raise KnarrError(f"its files are larger than {self._most} bytes")
        made = _entry(file.path, file, FILE)
        if file.marks & _IS_CAPABLE:
            value = self._call(frames.ATTRIBUTE, 0, self._place(file.path) + b"security.capability\0")
            made.xattrs = {b"security.capability": value}
        yield header(made)
        at = 0
        while at < file.size:
            begin, part = _piece(data, at, file.size)
            yield from _zeros(begin - at)
            yield part
            at = begin + len(part)
            data = self._call(frames.PIECE, _PIECE, self._from(file, at)) if at < file.size else b""
        yield padding(file.size)


def _into(answers: list[tuple[int, bytes]]) -> Callable[[int, bytes], None]:
    return lambda error, data: answers.append((error, data))


def _piece(data: bytes, at: int, size: int) -> tuple[int, bytes]:
    """Where the next data of a file begin, and they; its end where only a hole is left. Raises SafetyViolation."""
    if not data:
        return size, b""
    begin = int.from_bytes(data[:8], "little")
    part = data[8:]
    if not at <= begin < size or not part:
        raise SafetyViolation("a file of the guest", "a piece of it", f"at {begin} of {size} bytes, after {at}")
    return begin, part[: size - begin]


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        step = min(count, 1 << 20)
        yield bytes(step)
        count -= step


def _entry(path: bytes, file: _File | None = None, kind: int = FILE, link: bytes = b"") -> Entry:
    made = Entry()
    made.name = path
    made.kind = kind
    if file is not None:
        made.mode = stat.S_IMODE(file.mode)
        made.uid, made.gid, made.mtime, made.device = file.uid, file.gid, file.mtime, file.device
        made.size = file.size if kind == FILE else 0
        made.link = link or file.target
    return made


def looked(data: bytes, folder: bytes) -> list[_File]:
    """The entries of a directory in an answer of the guest's. Raises SafetyViolation for what no directory has."""
    found = []
    at = 0
    while at < len(data):
        if len(data) - at < _LOOKED.size:
            raise SafetyViolation("a directory of the guest", printable(folder), "an entry is cut short")
        inode, size, seconds, nano, mode, uid, gid, links, major, minor, marks, length, more = _LOOKED.unpack_from(
            data, at
        )
        at += _LOOKED.size
        name, target = data[at : at + length], data[at + length : at + length + more]
        if at + length + more > len(data) or not _is_name(name) or b"\0" in target or nano > 999_999_999:
            raise SafetyViolation("a directory of the guest", printable(folder), "an entry of it is none")
        at += length + more
        path = folder + b"/" + name if folder else name
        if len(path) > _LONGEST_PATH:
            raise SafetyViolation("a directory of the guest", printable(folder), "its path is too long")
        mtime = min(max(seconds, 0), 1 << 33) * 1_000_000_000 + nano
        found.append(_File(path, inode, size, mtime, mode, uid, gid, links, (major, minor), marks, target))
    return found


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b"..")

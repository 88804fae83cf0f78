"""The entries of a store's index.json: read once, found by name at once, changed many at a time.

index.json is read again for every question, for any process may have replaced it; but parsed and checked only when its
bytes are not those of the last time: comparing two megabytes takes a hundredth of the time of checking ten thousand
descriptors. What is kept so is shared: entries are never changed in place.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import Exists, FileError, NotFound
from knarr.base.files import read_file, write_atomic
from knarr.base.record import Record
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from knarr.spec.image import Descriptor

INDEX_LIMIT = 16 << 20
"""Most bytes of the index.json of a store or ``oci:`` directory: 16 MiB, some 50,000 names."""

_KEPT = 8  # stores whose entries are kept in memory
_FEW = 16  # entries to be cut out of the bytes; more of them, and they are written anew


class Entries(Record):
    """What one index.json says: its bytes, the document without the entries, these, and those of each name.

    ``ours``: the bytes are what ``write_entries`` makes of them, so an entry can be cut out or put at the end.
    """

    data: bytes
    document: dict[str, Any]
    all: tuple[Descriptor, ...]
    by_name: Mapping[str, tuple[Descriptor, ...]]
    ours: bool = False

    def named(self, name: str) -> list[Descriptor]:
        """The entries with a name: none, one, or several when another tool wrote one for each platform."""
        return list(self.by_name.get(name, ()))


_known: dict[str, Entries] = {}


def read_entries(path: str) -> Entries:
    """Return what the index.json at ``path`` says, checked; raises SpecError, FileError."""
    data = read_file(path, INDEX_LIMIT)
    known = _known.get(path)
    if known is not None and known.data == data:
        return known
    from knarr.spec.image_validate import parse_index

    document = dict(parse_index(data, path, limit=INDEX_LIMIT))
    made = tuple(document.pop("manifests"))
    return _remember(path, Entries(data, document, made, _by_name(made)))


def _remember(path: str, entries: Entries) -> Entries:
    if len(_known) >= _KEPT and path not in _known:
        _known.clear()
    _known[path] = entries
    return entries


def _by_name(entries: tuple[Descriptor, ...]) -> dict[str, tuple[Descriptor, ...]]:
    found: dict[str, tuple[Descriptor, ...]] = {}
    none: dict[str, str] = {}
    for entry in entries:
        name = entry.get("annotations", none).get(mediatypes.REF_NAME)  # as name_of, of thousands
        if name:
            found[name] = (*found[name], entry) if name in found else (entry,)
    return found


def write_entries(path: str, document: dict[str, Any], entries: tuple[Descriptor, ...]) -> bytes:
    """Replace the index.json at ``path``, durably, and return its bytes; raises FileError."""
    return _write(path, fastjson.dumps({**document, "manifests": entries}))


def _write(path: str, data: bytes) -> bytes:
    from errno import EFBIG

    if len(data) > INDEX_LIMIT:  # nobody could read it again
        hint = f"it would have {len(data)} bytes, at most {INDEX_LIMIT} are read; remove images first"
        raise FileError("write", path, EFBIG, hint=hint)
    write_atomic(path, data, mode=0o644, sync=True)
    return data


def _edited(data: bytes, gone: list[Descriptor], added: list[Descriptor]) -> bytes | None:
    """Return bytes of ``write_entries`` without some entries and with others at the end: what it would make of these.

    A hundredth of the time that writing ten thousand anew takes. None where that is not simple: the first and the last
    entry have no comma on both sides, and the text of one may also be a part of another.
    """
    for entry in gone:
        text = fastjson.dumps(entry)
        begin = data.find(text)
        end = begin + len(text)
        if data.find(text, begin + 1) >= 0 or data[begin - 1 : begin] + data[end : end + 1] != b",,":
            return None
        data = data[:begin] + data[end + 1 :]
    if data.endswith(b"[]}"):
        return None
    return data[:-2] + b"".join(b"," + fastjson.dumps(entry) for entry in added) + b"]}"


class Changes:
    """Changes to the entries of a store, in memory; ``Store.changing`` gives it and writes all of them at once.

    Each costs the same however many names there are; only writing them takes longer with more.
    """

    def __init__(self, before: Entries, has: Callable[[str], bool]) -> None:
        self._before = before
        self._has = has
        self._by_name = dict(before.by_name)
        self._added: dict[int, Descriptor] = {}  # by identity: two entries may be equal
        self._gone: dict[int, Descriptor] = {}
        self._by_digest: dict[str, list[Descriptor]] | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._added or self._gone)

    def tag(self, name: str, descriptor: Descriptor, *, replace: bool = True) -> None:
        """Let ``name`` mean ``descriptor``. Raises NotFound, Exists, SpecError; see ``Store.tag``."""
        self._must_have(descriptor)
        there = self._by_name.get(name, ())
        if there and not replace:
            raise Exists("image", name)
        entry: Descriptor = descriptor.copy()
        entry["annotations"] = {**descriptor.get("annotations", {}), mediatypes.REF_NAME: name}
        if len(there) == 1 and there[0] == entry:
            return
        made = _checked(entry)
        self._take(there)
        self._add(made)
        self._by_name.pop(name, None)  # its place is at the end now
        self._by_name[name] = (made,)

    def untag(self, name: str) -> Descriptor:
        """Take a name away and return what it meant; raises NotFound."""
        gone = self._by_name.pop(name, ())
        if not gone:
            raise NotFound("image", name, among=some(sorted(self._by_name), "nothing in the store"))
        self._take(gone)
        return gone[0]

    def note(self, descriptor: Descriptor) -> None:
        """List a manifest or index without a name, unless it is there; raises NotFound, SpecError."""
        self._must_have(descriptor)
        if not self._with(descriptor["digest"]):
            self._add(_checked(descriptor))

    def forget(self, digest: str) -> None:
        """Take every entry of a manifest away, named or not; does nothing when there is none."""
        for entry in self._with(digest):
            name = name_of(entry)
            if name:
                others = tuple(one for one in self._by_name[name] if one is not entry)
                if others:
                    self._by_name[name] = others
                else:
                    del self._by_name[name]
            self._take((entry,))

    def write(self, path: str) -> None:
        """Replace index.json, durably; raises FileError."""
        before, added = self._before, list(self._added.values())
        stay = [entry for entry in before.all if id(entry) not in self._gone]
        entries = (*stay, *added)
        data = None
        if before.ours and len(before.all) - len(stay) <= _FEW:
            data = _edited(before.data, [entry for entry in before.all if id(entry) in self._gone], added)
        if data is None:
            data = write_entries(path, before.document, entries)
        else:
            _write(path, data)
        _remember(path, Entries(data, before.document, entries, self._by_name, ours=True))

    def _must_have(self, descriptor: Descriptor) -> None:
        if not self._has(descriptor["digest"]):
            raise NotFound("blob", descriptor["digest"])

    def _with(self, digest: str) -> list[Descriptor]:
        """The entries of a manifest that are there now."""
        if self._by_digest is None:
            self._by_digest = {}
            for entry in (*self._before.all, *self._added.values()):
                self._by_digest.setdefault(entry["digest"], []).append(entry)
        return [one for one in self._by_digest.get(digest, []) if id(one) not in self._gone]

    def _add(self, entry: Descriptor) -> None:
        self._added[id(entry)] = entry
        if self._by_digest is not None:
            self._by_digest.setdefault(entry["digest"], []).append(entry)

    def _take(self, entries: tuple[Descriptor, ...]) -> None:
        for entry in entries:
            self._added.pop(id(entry), None)
            self._gone[id(entry)] = entry


def _checked(entry: Descriptor) -> Descriptor:
    """Return an entry as it will be read again: what cannot be read must not be written. Raises SpecError."""
    from knarr.spec.image_validate import parse_descriptor

    made: Any = parse_descriptor(fastjson.dumps(entry), f"entry of {mediatypes.INDEX_FILE}")
    checked: Descriptor = made
    return checked


def name_of(descriptor: Descriptor) -> str:
    """Return the name a descriptor of an index.json carries, or ""."""
    name: str = descriptor.get("annotations", {}).get(mediatypes.REF_NAME, "")
    return name


def some(names: list[str], none: str, limit: int = 10) -> str:
    """Make a readable list of at most ``limit`` names, safe to print, or ``none`` when there are no names."""
    if not names:
        return none
    shown = ", ".join(printable(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def printable(text: str, limit: int = 200) -> str:
    """Return ``text`` from an image or registry fit for a terminal: control characters escaped, cut at ``limit``."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)

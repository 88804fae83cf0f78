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


class Entries(Record):
    """What one index.json says: its bytes, the document without the entries, these, and their places by name."""

    data: bytes
    document: dict[str, Any]
    all: tuple[Descriptor, ...]
    places: Mapping[str, tuple[int, ...]]

    def named(self, name: str) -> list[Descriptor]:
        """The entries with a name: none, one, or several when another tool wrote one for each platform."""
        return [self.all[at] for at in self.places.get(name, ())]


_known: dict[str, Entries] = {}


def read_entries(path: str) -> Entries:
    """Return what the index.json at ``path`` says, checked; raises SpecError, FileError."""
    data = read_file(path, INDEX_LIMIT)
    known = _known.get(path)
    if known is not None and known.data == data:
        return known
    from knarr.spec.image_validate import parse_index

    document = parse_index(data, path, limit=INDEX_LIMIT)
    made = tuple(document["manifests"])
    return _remember(path, Entries(data, {**document, "manifests": []}, made, _places(made)))


def _remember(path: str, entries: Entries) -> Entries:
    if len(_known) >= _KEPT and path not in _known:
        _known.clear()
    _known[path] = entries
    return entries


def _places(entries: tuple[Descriptor, ...]) -> dict[str, tuple[int, ...]]:
    places: dict[str, tuple[int, ...]] = {}
    none: dict[str, str] = {}
    for at, entry in enumerate(entries):
        name = entry.get("annotations", none).get(mediatypes.REF_NAME)  # as name_of, of thousands
        if name:
            places[name] = (*places[name], at) if name in places else (at,)
    return places


def write_entries(path: str, document: dict[str, Any], entries: tuple[Descriptor, ...]) -> bytes:
    """Replace the index.json at ``path``, durably, and return its bytes; raises FileError."""
    from errno import EFBIG

    data = fastjson.dumps({**document, "manifests": entries})
    if len(data) > INDEX_LIMIT:  # nobody could read it again
        hint = f"it would have {len(data)} bytes, at most {INDEX_LIMIT} are read; remove images first"
        raise FileError("write", path, EFBIG, hint=hint)
    write_atomic(path, data, mode=0o644, sync=True)
    return data


class Changes:
    """Changes to the entries of a store, in memory; ``Store.changing`` gives it and writes all of them at once.

    Each costs the same however many names there are; only writing them takes longer with more.
    """

    def __init__(self, before: Entries, has: Callable[[str], bool]) -> None:
        self.changed = False
        self._before = before
        self._has = has
        self._all: list[Descriptor | None] = list(before.all)
        self._places = dict(before.places)
        self._digests: dict[str, list[int]] | None = None

    def tag(self, name: str, descriptor: Descriptor, *, replace: bool = True) -> None:
        """Let ``name`` mean ``descriptor``. Raises NotFound, Exists, SpecError; see ``Store.tag``."""
        self._must_have(descriptor)
        there = self._places.get(name, ())
        if there and not replace:
            raise Exists("image", name)
        entry: Descriptor = descriptor.copy()
        entry["annotations"] = {**descriptor.get("annotations", {}), mediatypes.REF_NAME: name}
        if len(there) == 1 and self._all[there[0]] == entry:
            return
        made = _checked(entry)
        self._take(there)
        self._places[name] = (self._add(made),)

    def untag(self, name: str) -> Descriptor:
        """Take a name away and return what it meant; raises NotFound."""
        there = self._places.pop(name, ())
        gone = [entry for at in there if (entry := self._all[at]) is not None]
        if not gone:
            raise NotFound("image", name, among=some(sorted(self._places), "nothing in the store"))
        self._take(there)
        return gone[0]

    def note(self, descriptor: Descriptor) -> None:
        """List a manifest or index without a name, unless it is there; raises NotFound, SpecError."""
        self._must_have(descriptor)
        if not any(self._all[at] is not None for at in self._with(descriptor["digest"])):
            self._add(_checked(descriptor))

    def forget(self, digest: str) -> None:
        """Take every entry of a manifest away, named or not; does nothing when there is none."""
        for at in self._with(digest):
            entry = self._all[at]
            if entry is None:
                continue
            name = name_of(entry)
            if name:
                others = tuple(place for place in self._places[name] if place != at)
                if others:
                    self._places[name] = others
                else:
                    del self._places[name]
            self._take((at,))

    def write(self, path: str) -> None:
        """Replace index.json, durably; raises FileError."""
        entries = tuple(entry for entry in self._all if entry is not None)
        document = self._before.document
        data = write_entries(path, document, entries)
        places = self._places if len(entries) == len(self._all) else _places(entries)
        _remember(path, Entries(data, document, entries, places))

    def _must_have(self, descriptor: Descriptor) -> None:
        if not self._has(descriptor["digest"]):
            raise NotFound("blob", descriptor["digest"])

    def _with(self, digest: str) -> list[int]:
        if self._digests is None:
            self._digests = {}
            for at, entry in enumerate(self._all):
                if entry is not None:
                    self._digests.setdefault(entry["digest"], []).append(at)
        return self._digests.get(digest, [])

    def _add(self, entry: Descriptor) -> int:
        at = len(self._all)
        self._all.append(entry)
        if self._digests is not None:
            self._digests.setdefault(entry["digest"], []).append(at)
        self.changed = True
        return at

    def _take(self, places: tuple[int, ...]) -> None:
        for at in places:
            self._all[at] = None
            self.changed = True


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

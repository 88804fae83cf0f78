"""An image of a store as a source to copy from."""

from __future__ import annotations

from knarr.content.names import name_of
from knarr.image.referrers import referrers_among

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.content.store import Store
    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor


class StoreSource:
    """What entries of a store's index.json mean. See ``source.ImageSource``. Takes no lock: the caller holds it."""

    def __init__(self, store: Store, entries: Sequence[Descriptor], what: str) -> None:
        self.what = what
        self._store = store
        self._entries = list(entries)

    def roots(self) -> list[Descriptor]:
        """Return the entry, without what index.json alone says of it."""
        entry = self._entries[0].copy()
        entry.pop("annotations", None)
        return [entry]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader; raises NotFound, SizeMismatch, InvalidDigest."""
        return self._store.open_blob(descriptor)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the manifests of the store that refer to ``digest``."""
        return referrers_among(self._store.entries(), self._store.open_blob, digest)

    def names(self) -> list[str]:
        """Return the names the store has for it."""
        return [name for entry in self._entries if (name := name_of(entry))]

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        """Nothing is held."""

"""``knarr.Store``: an image store for programs: what is in it, opened, removed, measured, checked."""

from __future__ import annotations

from knarr.base.record import Record
from knarr.engine import images, storekeeping
from knarr.engine.paths import open_store, places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.imaging.image import Image
    from knarr.engine.storekeeping import Damage
    from knarr.image.catalog import Listed


class Usage(Record):
    """How much room one kind of thing takes, in bytes; ``active`` is how many of them are in use."""

    kind: str
    total: int
    active: int
    size: int
    reclaimable: int


class Removed(Record):
    """What went: names, digests of blobs, chainIDs of layers, and bytes of the blobs."""

    names: tuple[str, ...]
    blobs: tuple[str, ...]
    layers: tuple[str, ...]
    size: int


class Store(Record):
    """A store by its directory, "" for the one in force (KNARR_STORE, else the user's usual one).

    Immutable, holds nothing open, safe for threads; other processes may use the store meanwhile. Nothing is read or
    made before a method is called, and no method asks a registry. All raise FileError, SpecError.
    """

    path: str = ""

    def images(self) -> list[Listed]:
        """Return what there is under each name, in no order; what is damaged is left out, ``check`` tells of it."""
        from knarr.image.catalog import images as listed

        return listed(open_store(places(self.path)))[0]

    def image(self, name: str, *, platform: str = "") -> Image:
        """Open an image by name, id or the start of an id. Raises NotFound, InvalidReference when it is ambiguous."""
        from knarr.engine.imaging.image import Image
        from knarr.engine.imaging.opening import STORED

        return Image.open(STORED + name.removeprefix(STORED), platform=platform, store=self.path or None)

    def remove(self, name: str, *, force: bool = False) -> Removed:
        """Remove a name, or by id an image with all its names, and what nothing needs any more.

        Raises NotFound, and InUse when a container was made from it or an id has several names, unless ``force``.
        """
        return _removed(images.remove(places(self.path), name, force=force))

    def prune(self, *, everything: bool = False) -> Removed:
        """Remove images without a name, with ``everything`` all that no container was made from, and what is left."""
        return _removed(storekeeping.prune(places(self.path), everything=everything))

    def usage(self) -> list[Usage]:
        """Return what takes how much room."""
        return [
            Usage(row["Type"].lower(), row["Total"], row["Active"], row["Size"], row["Reclaimable"])
            for row in storekeeping.usage(places(self.path))
        ]

    def check(self, *, repair: bool = False) -> list[Damage]:
        """Read everything and return what is not as its digest says; with ``repair`` remove that."""
        return storekeeping.check(places(self.path), repair=repair)


def _removed(gone: dict[str, Any]) -> Removed:
    return Removed(tuple(gone["Untagged"]), tuple(gone["Deleted"]), tuple(gone["Layers"]), gone["Freed"])

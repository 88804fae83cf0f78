"""Keeping a store in order: what takes how much room, what can go, what is damaged.

Images and layers that a container was made from stay. Everything here takes the locks that pulls and runs take, so it
may be done while they are under way.
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError, KnarrError
from knarr.base.record import Record
from knarr.content.gc import children, reachable
from knarr.content.names import name_of
from knarr.content.verify import CHUNK
from knarr.engine import images, records
from knarr.engine.paths import open_store
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.content.store import Store
    from knarr.engine.paths import Places
    from knarr.layer.snapshot import Snapshot
    from knarr.spec.image import Descriptor


class Damage(Record):
    """One thing that is wrong in a store: what, why, and whether it was mended."""

    what: str
    why: str
    mended: bool = False


def usage(where: Places) -> list[dict[str, Any]]:
    """What takes how much room, in bytes: a row each for images, layers, containers and unfinished blobs.

    Reclaimable is what ``prune`` with ``everything`` would free. Raises FileError, SpecError.
    """
    store = open_store(where)
    entries = store.entries()
    used = _used(where)
    kept = {one["digest"] for one in reachable(store, [entry for entry in entries if entry["digest"] in used])}
    blobs = dict(store.blobs())
    chains = _chains_in_use(where)
    unpacked = {one.chain_id: one for one in images.snapshots(where).list()}
    shown = _with_parents(unpacked, chains)
    mountable = images.tars(where).list() if os.path.isdir(where.tars) else []
    tars = {tar: os.stat(tar).st_size for image in mountable for tar in image.tars}
    needed = {tar for image in mountable if image.chain_id in chains for tar in image.tars}
    all_layers = sum(one.size for one in unpacked.values()) + sum(tars.values())
    all_layers += sum(image.size for image in mountable)
    needless = sum(one.size for chain, one in unpacked.items() if chain not in shown)
    needless += sum(size for tar, size in tars.items() if tar not in needed)
    needless += sum(image.size for image in mountable if image.chain_id not in chains)
    everybody = list(records.all_records(where))
    parts = _tree_size(f"{where.store}/.tmp")
    return [
        {
            "Type": "Images",
            "Total": len({entry["digest"] for entry in entries}),
            "Active": len({entry["digest"] for entry in entries if entry["digest"] in used}),
            "Size": sum(blobs.values()),
            "Reclaimable": sum(size for digest, size in blobs.items() if digest not in kept),
        },
        {
            "Type": "Layers",
            "Total": len(unpacked) + len(tars),
            "Active": len(shown) + len(needed),
            "Size": all_layers,
            "Reclaimable": needless,
        },
        {
            "Type": "Containers",
            "Total": len(everybody),
            "Active": len(everybody),
            "Size": _tree_size(where.containers),
            "Reclaimable": 0,
        },
        {"Type": "Unfinished", "Total": int(parts > 0), "Active": 0, "Size": parts, "Reclaimable": parts},
    ]


def prune(where: Places, *, everything: bool = False) -> dict[str, Any]:
    """Remove images without a name (with ``everything`` all that no container was made from), and what nobody needs.

    Returns Untagged, Deleted (digests of blobs), Layers (chainIDs) and Freed (bytes of blobs). Raises InUse, FileError.
    """
    store = open_store(where)
    used = _used(where)
    untagged: dict[str, None] = {}
    with store.changing() as changes:
        for entry in store.entries():
            name = name_of(entry)
            if entry["digest"] in used or (name and not everything) or (name or entry["digest"]) in untagged:
                continue
            if name:
                changes.untag(name)
            else:
                changes.forget(entry["digest"])
            untagged[name or entry["digest"]] = None
    gone = store.gc(frozenset(used))
    layers = images.clear_layers(where, store)
    return {"Untagged": list(untagged), "Deleted": list(gone.digests), "Layers": layers, "Freed": gone.size}


def check(where: Places, *, repair: bool = False) -> list[Damage]:
    """Read everything in the store and compare it with its digests; return what is wrong.

    With ``repair`` damaged blobs and tars are removed, with the indexes over them: the next pull or run makes them
    anew. What is not damaged is not touched. Raises FileError, SpecError when index.json itself cannot be read.
    """
    store = open_store(where)
    found: list[Damage] = []
    with store.lock():
        for digest, size in store.blobs():
            try:
                _read_all(store, {"mediaType": "application/octet-stream", "digest": digest, "size": size})
            except KnarrError as error:
                found.append(Damage(f"blob {digest}", str(error), mended=repair))
                if repair:
                    store.delete(digest)
        found += _missing(store)
    if os.path.isdir(where.tars):
        found += [Damage(what, why, mended=repair) for what, why in images.tars(where).check(repair=repair)]
    return found


def _missing(store: Store) -> list[Damage]:
    """What names in index.json need and is not there. An index of which one platform was pulled is whole."""
    found = []
    for entry in store.entries():
        shown = name_of(entry) or entry["digest"]
        if not store.has(entry["digest"], entry["size"]):
            found.append(Damage(f"image {shown}", f"its manifest {entry['digest']} is missing"))
        elif entry["mediaType"] in mediatypes.MANIFESTS:
            try:
                needed = children(entry, store.read_blob(entry))
            except KnarrError as error:
                found.append(Damage(f"image {shown}", str(error)))
                continue
            found += [
                Damage(f"image {shown}", f"{one['digest']} is missing; pull it again")
                for one in needed
                if not one.get("urls") and not store.has(one["digest"], one["size"])
            ]
    return found


def _read_all(store: Store, descriptor: Descriptor) -> None:
    reader = store.open_blob(descriptor)
    try:
        while reader.read(CHUNK):
            pass
    finally:
        reader.close()


def _used(where: Places) -> set[str]:
    """The manifests that containers were made from."""
    return {record.image_digest for record in records.all_records(where) if record.image_digest}


def _chains_in_use(where: Places) -> set[str]:
    return {record.layers[-1] for record in records.all_records(where) if record.layers}


def _with_parents(unpacked: dict[str, Snapshot], chains: set[str]) -> set[str]:
    """Unpacked layers that these are or build upon."""
    result: set[str] = set()
    for chain in chains:
        while chain in unpacked and chain not in result:
            result.add(chain)
            chain = unpacked[chain].parent
    return result


def _tree_size(path: str) -> int:
    """Bytes that the files of a directory take on the disk.

    What vanishes meanwhile, or what this user may not look into (overlayfs's own work directory has mode 0, a
    container's files may belong to its ids), does not count.
    """
    total = 0
    todo = [path]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    total += facts.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue
        except OSError as error:
            raise FileError("read", path, error.errno or 0) from None
    return total

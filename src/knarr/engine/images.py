"""Images for people: find one in the store or pull it, unpack it, list, remove. Joins image, registry and layer.

A name without a transport is a registry's image; ``oci:``, ``oci-archive:`` and ``docker-archive:`` are copied into
the store first, by content, so a second run of the same archive copies nothing.
"""

from __future__ import annotations

import os

from knarr.base.errors import NotFound, RegistryError, Unsupported, UsageError
from knarr.base.record import Record
from knarr.content.stopping import checked
from knarr.engine.paths import open_store
from knarr.image.catalog import Image, lookup
from knarr.image.platform import host_platform, parse_platform, runs
from knarr.image.reference import parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol, Self

    from knarr.content.store import Store
    from knarr.engine.paths import Places
    from knarr.image.platform import Platform
    from knarr.image.reference import Reference
    from knarr.image.sink import StoreSink
    from knarr.image.source import ImageSource
    from knarr.image.transfer import BlobProgress
    from knarr.layer.arriving import Arrivals
    from knarr.layer.snapshot import Snapshots
    from knarr.layer.source import Layer
    from knarr.layer.tarstore import TarStore

    class Watcher(Protocol):
        """Whoever wants to see how far things are; every method may be called from any thread."""

        def blob(self, blob: BlobProgress) -> None: ...

        def unpacked(self, layer: Layer, done: int) -> None: ...

        def say(self, text: str) -> None: ...


PULL_POLICIES = ("missing", "always", "never", "newer")
_TRIES = 3
_snapshots: dict[str, Snapshots] = {}
_tars: dict[str, TarStore] = {}
_ready: dict[tuple[str, str, str], tuple[tuple[tuple[int, ...], ...], Ready]] = {}


class Ready(Record):
    """An image that can be run, with the chainID of its top layer: unpacked, or ``mounted`` from its tars."""

    image: Image
    chain: str
    reference: str
    mounted: bool = False


def snapshots(where: Places) -> Snapshots:
    """The unpacked layers of the store; one object per process and place."""
    from knarr.layer.snapshot import Snapshots

    if where.snapshots not in _snapshots:
        from knarr.engine import host, selinux

        made = Snapshots(where.snapshots, ids=host.id_map())
        selinux.label_layers(where.snapshots)
        _snapshots[where.snapshots] = made
    return _snapshots[where.snapshots]


def tars(where: Places) -> TarStore:
    """The tars of the store and the indexes over them; one object per process and place."""
    from knarr.layer.tarstore import TarStore

    if where.tars not in _tars:
        _tars[where.tars] = TarStore(where.tars)
    return _tars[where.tars]


def layers(where: Places, *, mounted: bool) -> Snapshots | TarStore:
    """Where the layers of an image are."""
    return tars(where) if mounted else snapshots(where)


class Arriving:
    """One ``find`` and ``unpacked``: layers that have to come are made ready to be mounted meanwhile.

    A context: at its end goes what nobody took.
    """

    def __init__(self, where: Places) -> None:
        self.where = where
        self.arrivals: Arrivals | None = None

    def sink(self, store: Store, names: Sequence[str]) -> StoreSink:
        """The sink of a pull."""
        from knarr.engine.arriving import ArrivingSink
        from knarr.engine.driver import MOUNTED, driver
        from knarr.image.sink import StoreSink

        return ArrivingSink(store, names, self) if driver(self.where) in MOUNTED else StoreSink(store, names)

    def expect(self, layers: Sequence[tuple[str, Layer]]) -> None:
        """These layers may come, each with the digest of its blob; not those of an image that is unpacked."""
        from knarr.layer.arriving import Arrivals
        from knarr.layer.chain import chain_ids

        chain = chain_ids([layer.diff_id for _, layer in layers])
        if chain and not snapshots(self.where).has(chain[-1]):
            self.arrivals = Arrivals(tars(self.where))
            self.arrivals.expect(layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.arrivals is not None:
            self.arrivals.close()


def remote(reference: Reference) -> ImageSource:
    """Open an image in a registry; nothing is asked yet."""
    from knarr.registry.source import open_image

    return open_image(reference.registry, reference.repository, reference.tag, reference.digest)


def find(
    where: Places,
    text: str,
    *,
    platform: str = "",
    pull: str = "missing",
    watcher: Watcher | None = None,
    arriving: Arriving | None = None,
) -> Image:
    """Return the image ``text`` means, copied or pulled into the store as the policy ``pull`` says.

    missing: only if it is not there (for this platform); always; never; newer: when the registry has another one,
    and the stored one when it cannot be asked. Layers that have to come are made ready to be mounted on the way by
    ``arriving``, for ``unpacked``. Raises InvalidReference, NotFound, and what pulling raises.
    """
    if pull not in PULL_POLICIES:
        raise UsageError(f"pull policy {pull!r} is not known", hint=f"there is {', '.join(PULL_POLICIES)}")
    wanted = parse_platform(platform) if platform else host_platform()
    store = open_store(where)
    stored, problem = _stored(store, text, wanted)
    if stored is not None and pull in ("missing", "never"):
        return stored
    reference = parse_reference(text)
    if reference.transport == "store" and problem is not None:
        raise problem
    if reference.transport in ("host", "bundle"):
        raise UsageError(f"{text} is not an image of the store")
    if pull == "never":
        if problem is not None:
            raise problem
        raise NotFound("image", f"{text} for {wanted}", hint="it was not pulled because of --pull=never")
    if pull == "newer" and stored is not None:
        try:
            return _fetch(store, reference, wanted, watcher, arriving)
        except RegistryError:
            return stored
    return _fetch(store, reference, wanted, watcher, arriving)


def _stored(store: Store, text: str, wanted: Platform) -> tuple[Image | None, NotFound | None]:
    """The image by name or id if it is there and runs on ``wanted``; else why not."""
    if text.startswith(("oci:", "oci-archive:", "docker-archive:")):
        return None, None
    try:
        image = lookup(store, text.removeprefix("docker://").removeprefix("store:"), wanted)
    except NotFound as error:
        return None, error
    if image.config is not None and not runs(image.platform, wanted):
        return None, None
    return image, None


def _fetch(
    store: Store, reference: Reference, wanted: Platform, watcher: Watcher | None, arriving: Arriving | None
) -> Image:
    from knarr.engine.trust import check_source
    from knarr.image.pull import copy
    from knarr.image.sink import StoreSink
    from knarr.image.source import open_source

    if watcher is not None:
        watcher.say(f"pulling {reference}" if reference.transport == "docker" else f"reading {reference}")
    progress: Callable[[BlobProgress], None] | None = watcher.blob if watcher else None
    try:
        source = open_source(reference, remote)
        try:
            check_source(source, reference)
            sink_type = StoreSink if arriving is None else arriving.sink
            return copy(source, store, source.names(), platform=wanted, progress=progress, sink_type=sink_type)
        finally:
            source.close()
    except (NotFound, RegistryError) as error:
        meant = _meant(store, reference) if reference.transport == "docker" else ""
        if meant:
            error.hint = f"{error.hint}; {meant}" if error.hint else meant
        raise


def _meant(store: Store, reference: Reference) -> str:
    """What may have been meant by a name no registry has: ``host:`` without its colon, an image of the store."""
    if reference.repository == "library/host":
        return "this machine's own root is written host:"
    last = reference.repository.rpartition("/")[2]
    found = [name for name in store.tags() if name.rpartition("@")[0].endswith(f"/{last}") or f"/{last}:" in name]
    return f"the store has {', '.join(sorted(found)[:3])}" if found else ""


def unpacked(
    where: Places, image: Image, *, watcher: Watcher | None = None, arriving: Arriving | None = None
) -> tuple[str, bool]:
    """Unpack what is missing of an image's layers, or index their tars; not for artifacts.

    Returns the chainID of the top one, and whether it is to be mounted from tars (driver.py says when).
    """
    from knarr.engine.driver import MOUNTED, driver
    from knarr.layer.chain import chain_ids
    from knarr.layer.snapshot import NO_LAYERS
    from knarr.layer.source import layers_of

    store = open_store(where)
    found = layers_of(store, image.manifest, image.image_config())
    progress = checked(watcher.unpacked if watcher else None)
    chain = (chain_ids([layer.diff_id for layer in found]) or [NO_LAYERS])[-1]
    if driver(where) in MOUNTED and not snapshots(where).has(chain):
        try:
            return tars(where).ensure(found, progress, arriving.arrivals if arriving else None), True
        except Unsupported:
            pass  # an index cannot say what it holds: it is unpacked
    return snapshots(where).ensure(found, progress=progress), False


def find_and_unpack(
    where: Places, text: str, *, platform: str = "", pull: str = "missing", watcher: Watcher | None = None
) -> tuple[Image, str, bool]:
    """``find`` and ``unpacked``; again when somebody removes the image between the two. An artifact has no chainID."""
    for left in range(_TRIES - 1, -1, -1):
        with Arriving(where) as arriving:
            try:
                image = find(where, text, platform=platform, pull=pull, watcher=watcher, arriving=arriving)
                if image.config is None:
                    return image, "", False
                return image, *unpacked(where, image, watcher=watcher, arriving=arriving)
            except NotFound as error:
                if error.kind != "blob" or not left:
                    raise
    raise AssertionError("the last try returns or raises")


def ready(
    where: Places, text: str, *, platform: str = "", pull: str = "missing", watcher: Watcher | None = None
) -> Ready:
    """``find`` and ``unpacked``; remembered as long as neither the store's names nor the archive changed."""
    key, signature = (where.store, text, platform), _signature(where, text)
    known = _ready.get(key)
    if (
        known is not None
        and signature
        and known[0] == signature
        and pull in ("missing", "never")
        and layers(where, mounted=known[1].mounted).has(known[1].chain)
    ):
        return known[1]
    image, chain, mounted = find_and_unpack(where, text, platform=platform, pull=pull, watcher=watcher)
    image.image_config()
    found = Ready(image, chain, text, mounted)
    if len(_ready) > 200:
        _ready.clear()
    _ready[key] = (_signature(where, text), found)
    return found


def _signature(where: Places, text: str) -> tuple[tuple[int, ...], ...]:
    """What changes when this name may mean another image: the files that say so. Empty when they are missing."""
    paths = [f"{where.store}/index.json"]
    transport = text.partition(":")[0]
    if transport == "oci":
        paths.append(f"{os.path.abspath(_path_of(text))}/index.json")
    elif transport in ("oci-archive", "docker-archive"):
        paths.append(os.path.abspath(_path_of(text)))
    try:
        facts = [os.stat(path) for path in paths]
    except OSError:
        return ()
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in facts)


def _path_of(text: str) -> str:
    return parse_reference(text).path


def listing(where: Places) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows for ``knarr images``, newest first, and one sentence for each image that is damaged."""
    from knarr.image.catalog import images

    found, broken = images(open_store(where))
    rows = []
    for image in found:
        repository, tag = _split(image.name)
        rows.append(
            {
                "Repository": repository,
                "Tag": tag,
                "ID": image.id.partition(":")[2][:12],
                "Created": image.created,
                "Size": image.size,
                "Platform": str(image.platform) if image.platform.os else "",
                "Name": image.name,
                "Digest": image.digest,
                "FullID": image.id,
                "Layers": image.layers,
                "Labels": image.labels,
            }
        )
    rows.sort(key=lambda row: str(row["Created"]), reverse=True)
    return rows, [str(error) for error in broken]


def _split(name: str) -> tuple[str, str]:
    """``docker.io/library/busybox:1`` -> (``busybox``, ``1``), as people write it."""
    from knarr.base.errors import InvalidReference

    if not name:
        return "<none>", "<none>"
    try:
        reference = parse_reference(name)
    except InvalidReference:
        return name, ""
    if reference.transport != "docker":
        return name, ""
    ending = f":{reference.tag}" if reference.tag else f"@{reference.digest}"
    return reference.familiar.removesuffix(ending), reference.tag or "<none>"


def clear_layers(where: Places, store: Store) -> list[str]:
    """Remove the layers, unpacked or as tars, that no image and no container builds on; return their chainIDs."""
    from knarr.engine import records
    from knarr.image.catalog import stacks
    from knarr.layer.chain import chain_ids

    of_images = {chain_ids(stack)[-1] for stack in stacks(store)}

    def keep() -> set[str]:
        """What containers need by now: one may have come while we waited for the lock."""
        return of_images | {record.layers[-1] for record in records.all_records(where) if record.layers}

    return [*snapshots(where).gc(keep), *(tars(where).gc(keep) if os.path.isdir(where.tars) else ())]


def remove(where: Places, text: str, *, force: bool = False) -> dict[str, Any]:
    """Remove a name, or by id an image, with all blobs and layers that nothing needs any more.

    Raises NotFound, InUse when a container was made from it (unless ``force``: its layers stay then).
    """
    from knarr.base.errors import InUse
    from knarr.engine import records
    from knarr.image.catalog import names_for
    from knarr.image.catalog import remove as remove_image

    store = open_store(where)
    image = lookup(store, text)
    users = [record for record in records.all_records(where) if record.image_digest == image.digest]
    if users and not force and names_for(store, image.digest) < 2:
        by = ", ".join(record.name or record.id[:12] for record in users[:5])
        raise InUse("image", text, f"container {by}", hint="remove the container first, or use --force")
    gone = remove_image(store, text, force=force)
    removed = clear_layers(where, store)
    return {
        "Untagged": list(gone.names),
        "Deleted": list(gone.digests),
        "Layers": removed,
        "Freed": gone.size,
    }

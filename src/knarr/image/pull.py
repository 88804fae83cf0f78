"""Images into the store: verified, in parallel, never half.

The order makes it safe to be stopped anywhere: config and layers, then the manifest, then the name. Until the
name is written the store knows nothing of the image, and what has already come is found by the next try.
"""

from __future__ import annotations

from knarr.base.errors import Interrupted, SpecError, SpecFinding
from knarr.base.record import Record
from knarr.content.compress import compression_of
from knarr.image.catalog import INDEX_DIGEST, load
from knarr.image.platform import host_platform
from knarr.image.resolve import embedded, read_blob, resolve
from knarr.image.source import open_source
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.content.store import Store
    from knarr.image.catalog import Image
    from knarr.image.platform import Platform
    from knarr.image.reference import Reference
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

    Progress = Callable[["BlobProgress"], None]

JOBS = 4
"""Blobs copied at the same time."""


class BlobProgress(Record):
    """How far one blob of an image is: ``done`` of ``size`` bytes, ``status`` waiting, copying, present or done.

    ``kind`` is config, layer or manifest. ``present`` was there before; the last word on each blob is present or
    done.
    """

    digest: str
    kind: str
    size: int
    done: int
    status: str


def fetch(
    ref: Reference,
    store: Store,
    *,
    platform: Platform | None = None,
    progress: Progress | None = None,
    remote: Callable[[Reference], ImageSource] | None = None,
    jobs: int = JOBS,
) -> Image:
    """Copy the image a reference names into ``store`` and return it; see ``copy`` and ``source.open_source``."""
    source = open_source(ref, remote)
    try:
        return copy(source, store, source.names(), platform=platform, progress=progress, jobs=jobs)
    finally:
        source.close()


def copy(
    source: ImageSource,
    store: Store,
    names: Sequence[str],
    *,
    platform: Platform | None = None,
    progress: Progress | None = None,
    jobs: int = JOBS,
) -> Image:
    """Copy an image for ``platform`` (this machine's, if None) into ``store`` under full ``names``; return it.

    Blobs that are there are not read again. ``progress`` is called with each blob's state, one call at a time,
    from several threads. On any error, Ctrl-C included, every thread has ended and no unfinished blob is left.
    Raises what ``resolve`` and ``Store.put`` raise; Unsupported for layers that are encrypted or of no known
    kind; SpecError when config and manifest do not fit together.
    """
    with store.lock(shared=True):
        found = resolve(source, platform or host_platform(), store)
        report = _Report(progress)
        manifest, descriptor = found.manifest, found.descriptor
        config: Descriptor = manifest["config"]
        layers: list[Descriptor] = manifest["layers"]
        if config["mediaType"] in mediatypes.CONFIGS:  # an artifact may hold what it likes
            for layer in layers:
                compression_of(layer["mediaType"])
        report.start(config, "config")
        for layer in layers:
            report.start(layer, "layer")
        # The config is small and says whether the layers are worth their time.
        _put_config(source, store, manifest, found.documents, report)
        _put_layers(source, store, _unique(layers), report, jobs)
        report.start(descriptor, "manifest")
        data = found.documents[descriptor["digest"]]
        _put(store, data, descriptor, report)
        entry = _entry(descriptor, found.index)
        for name in names:
            store.tag(name, entry)
        return load(store, entry, names[0] if names else "")


def _entry(descriptor: Descriptor, index: str) -> Descriptor:
    """Return what the store's index.json says of a manifest: what identifies it, and what it came out of."""
    entry: Descriptor = {
        "mediaType": descriptor["mediaType"],
        "digest": descriptor["digest"],
        "size": descriptor["size"],
    }
    if "platform" in descriptor:
        entry["platform"] = descriptor["platform"]
    if index and index != descriptor["digest"]:
        entry["annotations"] = {INDEX_DIGEST: index}
    return entry


def _unique(layers: list[Descriptor]) -> list[Descriptor]:
    """Return each blob once; raises SpecError when one digest is given two sizes."""
    found: dict[str, Descriptor] = {}
    for number, layer in enumerate(layers):
        known = found.setdefault(layer["digest"], layer)
        if known["size"] != layer["size"]:
            why = f"gives {layer['digest']} {layer['size']} bytes, another layer {known['size']}"
            raise SpecError("manifest", [SpecFinding(f"/layers/{number}/size", why)])
    return list(found.values())


def _put_config(
    source: ImageSource,
    store: Store,
    manifest: dict[str, Any],
    documents: dict[str, bytes],
    report: _Report,
) -> None:
    config: Descriptor = manifest["config"]
    if config["mediaType"] not in mediatypes.CONFIGS:
        data: bytes | None = embedded(config)
        _put(store, data if data is not None else lambda: source.open_blob(config), config, report)
        return
    from knarr.spec.image_validate import matching_findings, parse_config

    data = documents.get(config["digest"])
    if data is None:
        data = read_blob(source, config, store)
    document = f"config {config['digest']}"
    findings = matching_findings(manifest, parse_config(data, document))
    if findings:
        raise SpecError(document, findings)
    _put(store, data, config, report)


def _put_layers(source: ImageSource, store: Store, layers: list[Descriptor], report: _Report, jobs: int) -> None:
    """Copy blobs in at most ``jobs`` threads; the first error stops the others and is raised when all have ended."""
    missing = [layer for layer in layers if not report.note_present(store, layer)]
    if not missing:
        return
    if len(missing) == 1:
        _put_layer(source, store, missing[0], report)
        return
    import threading

    queue = list(reversed(missing))  # pop() takes the first one
    errors: list[BaseException] = []
    ended = threading.Condition()
    running = min(jobs, len(missing))

    def work() -> None:
        nonlocal running
        try:
            while not report.stopped:
                with ended:
                    if not queue:
                        return
                    layer = queue.pop()
                _put_layer(source, store, layer, report)
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that waits
            with ended:
                errors.append(error)
            report.stopped = True
            source.abort()
        finally:
            with ended:
                running -= 1
                ended.notify_all()

    threads = [threading.Thread(target=work, name=f"knarr-copy-{number}", daemon=True) for number in range(running)]
    for thread in threads:
        thread.start()
    try:
        with ended:
            while running:
                ended.wait()
    except BaseException:  # Ctrl-C: let every thread take its unfinished blob away first
        report.stopped = True
        source.abort()
        for thread in threads:
            thread.join()
        raise
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _put_layer(source: ImageSource, store: Store, layer: Descriptor, report: _Report) -> None:
    data = embedded(layer)
    _put(store, data if data is not None else lambda: source.open_blob(layer), layer, report)


def _put(store: Store, source: Any, descriptor: Descriptor, report: _Report) -> None:
    if not report.note_present(store, descriptor):
        store.put(source, descriptor, moved=report.mover(descriptor))
        report.finish(descriptor)


class _Report:
    """Counts bytes per blob and passes them on, one call at a time; ends copies when ``stopped``."""

    def __init__(self, progress: Progress | None) -> None:
        import threading

        self.stopped = False
        self._progress = progress
        self._lock = threading.Lock()
        self._blobs: dict[str, BlobProgress] = {}

    def _say(self, digest: str, status: str, more: int = 0, done: int | None = None) -> None:
        with self._lock:
            before = self._blobs[digest]
            now = before.replace(done=before.done + more if done is None else done, status=status)
            self._blobs[digest] = now
            if self._progress is not None:
                self._progress(now)

    def start(self, descriptor: Descriptor, kind: str) -> None:
        digest = descriptor["digest"]
        if digest not in self._blobs:
            self._blobs[digest] = BlobProgress(digest, kind, descriptor["size"], 0, "waiting")
            self._say(digest, "waiting")

    def note_present(self, store: Store, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already, and tell so once."""
        digest = descriptor["digest"]
        known = self._blobs[digest].status
        if known in {"present", "done"}:
            return True
        if known == "waiting" and store.has(digest, descriptor["size"]):
            self._say(digest, "present", done=descriptor["size"])
            return True
        return False

    def mover(self, descriptor: Descriptor) -> Callable[[int], None]:
        """Return what ``Store.put`` calls at each step."""
        digest = descriptor["digest"]

        def moved(count: int) -> None:
            if self.stopped:
                raise Interrupted(f"the copy of blob {digest} was stopped")
            self._say(digest, "copying", more=count)

        return moved

    def finish(self, descriptor: Descriptor) -> None:
        self._say(descriptor["digest"], "done", done=descriptor["size"])

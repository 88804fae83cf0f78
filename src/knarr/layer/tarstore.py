"""Layers kept as their plain tars, and for each image an EROFS index over them: nothing is extracted.

    tar/<hex of diffID>            a layer's tar, shared by all images that have it
    index/<hex of chainID>/index   the whole tree of an image (erofs.py), whose devices are those tars
    index/<hex>/image.json         chainID, diffIDs bottom first, bytes and digest of the index
    locks/<hex>, tmp/<hex>         while one is being made
    lock                           shared while they are made or looked up, exclusive while they are removed

All of it 0700 and 0400 (docs/security.md I18). What is made appears by rename, complete, verified and on disk (I9);
where the file system has fs-verity sealed, for these bytes the kernel hands to containers without asking us again.
Who mounts it sees what unpacking would give him: both come from one reader of tars, and tests hold the trees together.
"""

from __future__ import annotations

import os
from errno import EIO, ENOSPC, EPERM, EROFS

from knarr.base import fastjson
from knarr.base.errors import FileError, InUse, KnarrError, NotFound, Unsupported
from knarr.base.files import Lock, read_file, sync_directory, write_all, write_atomic
from knarr.base.record import Record
from knarr.content.digest import Digest, hasher, usable
from knarr.kernel.disk import Writeback, sync_file_system
from knarr.kernel.verity import seal_file
from knarr.layer.chain import chain_ids
from knarr.layer.snapshot import LAYERS_LIMIT, NO_LAYERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from knarr.content.verify import Readable
    from knarr.layer.arriving import Arrival, Arrivals
    from knarr.layer.erofsview import ErofsView
    from knarr.layer.model import Model, Noted, Room
    from knarr.layer.source import Layer, Progress

_RECORD_LIMIT = 1 << 20


class Mountable(Record):
    """An image that can be mounted: its index, and the tars that are its devices, bottom first, as absolute paths."""

    chain_id: str
    diff_ids: tuple[str, ...]
    index: str
    tars: tuple[str, ...]
    size: int  # bytes of the index
    digest: str = ""  # of the index; "" for one that was made when none was written down


if TYPE_CHECKING:  # the method ``list`` hides the type of that name from its class
    Found = list[Mountable]
    Strings = list[str]
    Wrong = list[tuple[str, str]]


class TarStore:
    """Tars and indexes in directory ``path``, made if missing. May be shared by threads and processes.

    Raises FileError.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            for name in ("", "/tar", "/index", "/tmp", "/locks"):
                try:
                    os.mkdir(self.path + name, 0o700)
                except FileExistsError:
                    pass
        except OSError as error:
            raise FileError("make", self.path, error.errno or EROFS) from None

    # -- looking up ----------------------------------------------------------------------------------------

    def _directory(self, chain_id: str) -> str:
        return f"{self.path}/index/{usable(chain_id).encoded}"

    def tar(self, diff_id: str) -> str:
        """Where a layer's tar is, or will be. Raises InvalidDigest."""
        return f"{self.path}/tar/{usable(diff_id).encoded}"

    def tar_made(self, diff_id: str) -> str:
        """Where a layer's tar is while it is being made, by whoever holds ``tar_lock``. Raises InvalidDigest."""
        return f"{self.path}/tmp/{usable(diff_id).encoded}.tar"

    def tar_lock(self, diff_id: str) -> str:
        """The lock of whoever makes a layer's tar. Raises InvalidDigest."""
        return f"{self.path}/locks/{usable(diff_id).encoded}.tar"

    def image_lock(self, chain_id: str) -> str:
        """The lock of whoever makes an image's index. Raises InvalidDigest."""
        return f"{self.path}/locks/{usable(chain_id).encoded}"

    def has(self, chain_id: str) -> bool:
        """Whether the image can be mounted. Raises InvalidDigest."""
        return os.path.lexists(f"{self._directory(chain_id)}/image.json")

    def get(self, chain_id: str) -> Mountable:
        """What is known of an image. Raises NotFound, FileError, SpecError, InvalidDigest."""
        folder = self._directory(chain_id)
        path = f"{folder}/image.json"
        try:
            data = read_file(path, _RECORD_LIMIT)
        except FileError:
            if os.path.lexists(path):
                raise
            raise NotFound("index of image", chain_id) from None
        record = fastjson.loads(data, path)
        diffs = tuple(record["diffs"])
        tars, made = tuple(map(self.tar, diffs)), record.get("digest", "")
        return Mountable(record["chain"], diffs, f"{folder}/index", tars, record["size"], made)

    def list(self) -> Found:
        """All images that can be mounted. Raises FileError, SpecError."""
        return [self.get(_digest(name)) for name in sorted(os.listdir(f"{self.path}/index"))]

    def view(self, chain_id: str) -> ErofsView:
        """A read-only look at the tree of an image, without a mount; close it. Raises NotFound, FileError."""
        from knarr.layer.erofsview import ErofsView

        image = self.get(chain_id)
        return ErofsView(image.index, image.tars)

    def hold(self) -> AbstractContextManager[object]:
        """Keep everything from being removed: held from ``ensure`` until the record of its user is written."""
        return Lock(f"{self.path}/lock", shared=True)

    # -- making --------------------------------------------------------------------------------------------

    def ensure(
        self, layers: Sequence[Layer], progress: Progress | None = None, arrived: Arrivals | None = None
    ) -> Digest:
        """Keep what is missing of an image's layers, make its index, and return the chainID of its top layer.

        Each layer is read once: verified, inflated, verified again, written and put into the index as it comes; not at
        all if it is among those that ``arrived``, whose tars are made already. Nothing becomes visible before all of it
        is on disk; after a failure nothing is left. Raises FormatError, DigestMismatch, SizeMismatch, FileError, and
        Unsupported for an image that no index can hold (erofs.write).
        """
        if len(layers) > LAYERS_LIMIT:
            raise Unsupported(f"an image of {len(layers)} layers", f"at most {LAYERS_LIMIT} can be mounted together")
        chain = (chain_ids([layer.diff_id for layer in layers]) or [NO_LAYERS])[-1]
        self._tidy()
        if arrived is not None and arrived.chain == chain:  # who holds the locks
            _Making(self, layers, chain, progress, arrived.all()).run()
            return chain
        if arrived is not None:
            arrived.close()  # of an image that it is not
        with self.hold():
            lock = Lock(self.image_lock(chain))
            lock.acquire()
            try:
                if not self.has(chain):
                    _Making(self, layers, chain, progress, {}).run()
            finally:
                forget(lock)
        return chain

    def _tidy(self) -> None:
        """Remove what a crashed process left, if there is something and nobody is at work."""
        if os.listdir(f"{self.path}/tmp"):
            try:
                with Lock(f"{self.path}/lock", wait=False):
                    self._empty_tmp()
            except InUse:
                pass  # or it is not left, but being made

    def _empty_tmp(self) -> None:
        for name in os.listdir(f"{self.path}/tmp"):
            remove(f"{self.path}/tmp/{name}")

    def check(self, *, repair: bool = False) -> Wrong:
        """What is wrong here, as (what, why): tars and indexes whose bytes are others or cannot be read, missing tars.

        ``repair`` removes these, and the indexes over wrong tars; they are made anew when they are needed.
        Raises FileError.
        """
        with Lock(f"{self.path}/lock", shared=not repair):
            found: Wrong = []
            wrong: set[str] = set()
            for name in sorted(os.listdir(f"{self.path}/tar")):
                path = f"{self.path}/tar/{name}"
                why = _differs(path, _digest(name))
                if why:
                    wrong.add(path)
                    found.append((f"tar {path}", why))
            for image in self.list():
                bad = [tar for tar in image.tars if tar in wrong or not os.path.lexists(tar)]
                why = f"{bad[0]} is missing or damaged" if bad else _differs(image.index, image.digest, image.size)
                if why:
                    found.append((f"index {image.index}", why))
                    if repair:
                        remove(os.path.dirname(image.index))
            for path in wrong if repair else ():
                remove(path)
            return found

    # -- removing ------------------------------------------------------------------------------------------

    def gc(self, keep: Collection[str] | Callable[[], Collection[str]] | None = None) -> Strings:
        """Remove leftovers, and, given chainIDs to ``keep``, every other index and the tars that no index needs.

        Returns the chainIDs removed. Waits for whoever holds them (``hold``), and calls a ``keep`` that is a function
        then. Raises FileError.
        """
        with Lock(f"{self.path}/lock"):
            if callable(keep):
                keep = keep()
            self._empty_tmp()
            known = self.list()
            gone = [] if keep is None else [image.chain_id for image in known if image.chain_id not in keep]
            needed = {os.path.basename(tar) for image in known if image.chain_id not in gone for tar in image.tars}
            try:
                for chain_id in gone:
                    name = usable(chain_id).encoded
                    os.rename(f"{self.path}/index/{name}", f"{self.path}/tmp/{name}.gone")
                if keep is not None:
                    for name in os.listdir(f"{self.path}/tar"):
                        if name not in needed:
                            os.unlink(f"{self.path}/tar/{name}")
                for name in os.listdir(f"{self.path}/locks"):
                    os.unlink(f"{self.path}/locks/{name}")
            except OSError as error:
                raise FileError("clean up", self.path, error.errno or EPERM) from None
            self._empty_tmp()
            return gone


class _Making:
    """One run of ``ensure`` that has something to do."""

    def __init__(
        self,
        store: TarStore,
        layers: Sequence[Layer],
        chain: Digest,
        progress: Progress | None,
        arrived: Mapping[str, Arrival],
    ) -> None:
        self.store = store
        self.layers = layers
        self.chain = chain
        self.progress = progress
        self.arrived = arrived
        self.new: dict[str, str] = {}  # where a tar is -> where it will be
        self.noted: dict[str, tuple[Noted, int]] = {}  # by diffID, with the tar's size
        self.failures: list[BaseException] = []
        self.locks: list[Lock] = []

    def run(self) -> None:
        from knarr.layer.erofs import write
        from knarr.layer.model import Model

        folder = f"{self.store.path}/tmp/{self.chain.encoded}"
        try:
            remove(folder)  # a crash may have left it
            model = Model()
            self.lock_tars()
            self.note_missing()
            sizes = [self.take(model, layer) for layer in self.layers]
            os.mkdir(folder, 0o700)
            with open(f"{folder}/index", "wb", opener=_private) as file:
                write(model, sizes, file, identity=bytes.fromhex(self.chain.encoded[:32]))
                size = file.tell()
            diffs = [layer.diff_id for layer in self.layers]
            document = {"chain": self.chain, "diffs": diffs, "size": size, "digest": _digest_of(f"{folder}/index")}
            write_atomic(f"{folder}/image.json", fastjson.dumps(document))
            for place in (*self.new, f"{folder}/index"):
                if not seal_file(place):
                    break  # nor the others: they are on one file system
            sync_file_system(self.store.path)
            for place, target in self.new.items():
                os.rename(place, target)
            os.rename(folder, f"{self.store.path}/index/{self.chain.encoded}")
            for name in ("tar", "index"):
                sync_directory(f"{self.store.path}/{name}")
        except BaseException as error:
            for place in (*self.new, folder):
                try:
                    remove(place)
                except KnarrError:
                    pass  # the first error is the one to tell; gc tries again
            if isinstance(error, OSError) and not isinstance(error, KnarrError):
                raise FileError("write", self.store.path, error.errno or ENOSPC) from None
            raise
        finally:
            for lock in self.locks:
                forget(lock)

    def lock_tars(self) -> None:
        """Be the only one to make those tars that are missing; sorted, so that nobody waits in a circle."""
        for diff_id in sorted({layer.diff_id for layer in self.layers}):
            if diff_id not in self.arrived and not os.path.lexists(self.store.tar(diff_id)):
                lock = Lock(self.store.tar_lock(diff_id))
                lock.acquire()
                self.locks.append(lock)

    def note_missing(self) -> None:
        """Have the tars that are not there, and note what is in them."""
        from knarr.layer.model import Room
        from knarr.layer.parallel import two_at_a_time

        missing: dict[str, Layer] = {}
        for layer in self.layers:
            made, target = self.store.tar_made(layer.diff_id), self.store.tar(layer.diff_id)
            if made in self.new or os.path.lexists(target):
                continue
            self.new[made] = target
            arrival = self.arrived.get(layer.diff_id)
            if arrival is None or arrival.noted is None:
                missing[made] = layer
                continue
            self.noted[layer.diff_id] = arrival.noted, arrival.size
            if self.progress is not None:
                self.progress(layer, layer.size)
        room = Room()
        two_at_a_time(lambda made: self.copy(missing[made], made, room), missing, self.failures)

    def copy(self, layer: Layer, place: str, room: Room) -> None:
        """Read a layer into a file, and note its entries."""
        from knarr.layer.model import Noted
        from knarr.layer.tarball import Reader

        remove(place)
        stream = layer.stream(stopped=lambda: bool(self.failures), progress=self.progress)
        with Copied(stream, place, layer.what) as copy:
            noted = Noted(Reader(copy, what=layer.what), room)
        self.noted[layer.diff_id] = noted, copy.size

    def take(self, model: Model, layer: Layer) -> int:
        """Put a layer into the model; the size of its tar in bytes."""
        from knarr.content.verify import FileStream, open_regular

        if layer.diff_id in self.noted:
            noted, size = self.noted.pop(layer.diff_id)
            model.replay(noted)
            return size
        made = self.store.tar_made(layer.diff_id)
        place = made if made in self.new else self.store.tar(layer.diff_id)  # an image may have a layer twice
        fd, size = open_regular(place)
        stream = FileStream(fd, place)
        try:
            model.apply(stream, what=layer.what)
        finally:
            stream.close()
        return size


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Copied:
    """A stream of a tar whose bytes are also written to a file, made at ``place``; both are closed with it.

    Raises Unsupported at the end of a ``with`` block for a tar that no index can be made of.
    """

    def __init__(self, stream: Readable, place: str, what: str) -> None:
        self.size = 0
        self._stream = stream
        self._what = what
        try:
            self._fd = os.open(place, _NEW, 0o400)
        except BaseException:
            stream.close()
            raise
        self._writeback = Writeback(self._fd)

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, which are in the file then."""
        data = self._stream.read(size)
        write_all(self._fd, data)
        self._writeback.wrote(len(data))
        self.size += len(data)
        return data

    def close(self) -> None:
        """Close stream and file."""
        self._stream.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self.close()
        if kind is None and self.size % 512:  # the kernel reads whole blocks
            raise Unsupported(f"an index of {self._what}", "its tar does not end with a whole block")


def forget(lock: Lock) -> None:
    """Let a lock go that nobody needs as a file."""
    try:
        os.unlink(lock.path)
    except OSError:
        pass  # it stays for the next one to use
    lock.release()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o400)


def remove(path: str) -> None:
    """Remove a file of ours, or a directory of such files; fine if there is none. Raises FileError."""
    try:
        try:
            os.unlink(path)
        except IsADirectoryError:
            for name in os.listdir(path):
                os.unlink(f"{path}/{name}")
            os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileError("remove", path, error.errno or EPERM) from None


def _digest(name: str) -> str:
    return f"{'sha256' if len(name) == 64 else 'sha512'}:{name}"


def _digest_of(path: str, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes; raises OSError."""
    made = hasher(algorithm)
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            made.update(data)
    return f"{algorithm}:{made.hexdigest()}"


def _differs(path: str, digest: str, size: int = -1) -> str:
    """What is wrong with a file that should have this digest, and size; "" if nothing is."""
    try:
        if size >= 0 and os.stat(path).st_size != size:
            return "it has another size than when it was made"
        found = _digest_of(path, digest.partition(":")[0]) if digest else ""
    except OSError as error:  # the disk; or the kernel, of what is sealed
        return f"it cannot be read: {os.strerror(error.errno or EIO).lower()}"
    return "" if found == digest else f"it has the digest {found}"

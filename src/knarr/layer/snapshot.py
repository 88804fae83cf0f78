"""Unpacked layers on disk, one directory each, for overlayfs; visible only when complete and verified.

    <hex of chainID>/fs          the layer's files, with overlayfs's whiteouts
    <hex of chainID>/layer.json  chainID, parent, diffID, the short names of it and those it shows
    l/<short>                    link to ../<hex>/fs: 127 of them fit the one page of mount options
    locks/<hex>, tmp/<hex>       while it is being made
    map.json                     the id map and attribute names that the files were stored with
    lock                         shared while layers are made or looked up, exclusive while they are removed

Everything lies in one directory of mode 0700 (docs/security.md I18), for layers hold setuid programs. A layer is
unpacked in tmp, put on disk by syncfs, once for an image, and appears by rename (I9); what a crash leaves in tmp
the next run removes. Identity is the whole chainID; the short names are given out under a lock and name nothing.

What only unpacking needs is imported when there is something to unpack: ``knarr run`` mostly finds it all here.
"""

from __future__ import annotations

import os
from errno import ENOSPC, EPERM, EROFS
from time import sleep

from knarr.base import fastjson
from knarr.base.errors import FileError, Interrupted, InUse, KnarrError, NotFound, SafetyViolation, Unsupported
from knarr.base.files import Lock, read_file, sync_directory, write_atomic
from knarr.base.record import Record
from knarr.content.digest import Digest, usable
from knarr.layer.chain import chain_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from knarr.kernel.userns import IdMap
    from knarr.layer.apply import Applied
    from knarr.layer.source import Layer, Progress
    from knarr.layer.unpack import Unpacker
    from knarr.layer.view import MergedView

LAYERS_LIMIT = 127
"""Layers of one image: what overlayfs's options hold, and the limit of the other engines."""

NO_LAYERS = Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""Stands for the chainID of an image without layers: an empty directory."""

_RECORD_LIMIT = 1 << 20
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Snapshot(Record):
    """One unpacked layer; ``links`` are the short names of it and those it shows, top first; ``size`` in bytes."""

    chain_id: str
    parent: str
    diff_id: str
    links: tuple[str, ...]
    size: int
    warnings: tuple[str, ...]


if TYPE_CHECKING:  # the method ``list`` hides the type of that name from its class
    Found = list[Snapshot]
    Strings = list[str]


class Snapshots:
    """The unpacked layers in directory ``path``, made if missing. May be shared by threads and processes.

    ``ids``: the id map files are stored with; None means unchanged for root, and for an ordinary user his
    subordinate ids. One directory serves one map. ``userxattr``: use the attributes that overlayfs reads with
    its option of that name; None finds out. Raises FileError, Unsupported.
    """

    def __init__(self, path: str, *, ids: IdMap | None = None, userxattr: bool | None = None) -> None:
        self.path = os.path.abspath(path)
        self.ids = ids
        self._make()
        self.userxattr = self._needs_userxattr() if userxattr is None else userxattr
        self._check_map()

    def _make(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            for name in ("", "l", "tmp", "locks"):
                try:
                    os.mkdir(f"{self.path}/{name}" if name else self.path, 0o700)
                except FileExistsError:
                    pass
            if os.stat(self.path).st_mode & 0o077:
                os.chmod(self.path, 0o700)
        except OSError as error:
            raise FileError("make", self.path, error.errno or EROFS) from None

    def _needs_userxattr(self) -> bool:
        if os.geteuid():
            return True
        try:
            os.setxattr(f"{self.path}/tmp", "trusted.overlay.opaque", b"n")
            os.removexattr(f"{self.path}/tmp", "trusted.overlay.opaque")
        except PermissionError:  # root of a user namespace
            return True
        except OSError:
            return False  # no attributes here at all: opaque directories will say so
        return False

    def _check_map(self) -> None:
        ids = self.ids
        if ids is None and os.geteuid():
            from knarr.kernel.userns import default_map

            ids = default_map(os.geteuid(), os.getegid())
        document = {
            "uids": None if ids is None else [list(row) for row in ids.uids],
            "gids": None if ids is None else [list(row) for row in ids.gids],
            "squash": ids is not None and ids.squash,
            "userxattr": self.userxattr,
        }
        path = f"{self.path}/map.json"
        with Lock(f"{self.path}/locks/map"):
            try:
                known = fastjson.loads(read_file(path, _RECORD_LIMIT), path)
            except FileError:
                if os.path.lexists(path):
                    raise
                write_atomic(path, fastjson.dumps(document, sort=True), sync=True)
                return
        if known != document:
            raise Unsupported(
                f"another id map for the layers in {self.path}",
                "they were unpacked with a different one",
                hint="remove the directory, or restore /etc/subuid and /etc/subgid",
            )

    # -- looking up ----------------------------------------------------------------------------------------

    def _directory(self, chain_id: str) -> str:
        return f"{self.path}/{usable(chain_id).encoded}"

    def has(self, chain_id: str) -> bool:
        """Whether the layer is unpacked. Raises InvalidDigest."""
        return os.path.lexists(f"{self._directory(chain_id)}/layer.json")

    def get(self, chain_id: str) -> Snapshot:
        """What is known of an unpacked layer. Raises NotFound, FileError, SpecError, InvalidDigest."""
        path = f"{self._directory(chain_id)}/layer.json"
        try:
            data = read_file(path, _RECORD_LIMIT)
        except FileError:
            if os.path.lexists(path):
                raise
            raise NotFound("unpacked layer", chain_id) from None
        record: dict[str, Any] = fastjson.loads(data, path)
        return Snapshot(
            record["chain"],
            record["parent"],
            record["diff"],
            tuple(record["links"]),
            record["size"],
            tuple(record["warnings"]),
        )

    def list(self) -> Found:
        """All unpacked layers. Raises FileError, SpecError."""
        return [self.get(_chain_of(name)) for name in sorted(os.listdir(self.path)) if _is_hex(name)]

    def lowers(self, chain_id: str) -> Strings:
        """The directories of an image for overlayfs's ``lowerdir``, top layer first, by absolute path."""
        return [f"{self.path}/l/{name}" for name in self.get(chain_id).links]

    def lower_names(self, chain_id: str) -> tuple[str, Strings]:
        """The same relative to a directory, which is the first value: for the working directory of who mounts.

        127 names take under 500 bytes, however long ``path`` is and whatever is in it.
        """
        return f"{self.path}/l", list(self.get(chain_id).links)

    def view(self, chain_id: str) -> MergedView:
        """A read-only look at the whole tree of an image; close it. Raises NotFound, FileError."""
        from knarr.layer.view import MergedView

        return MergedView.of_paths(self.lowers(chain_id))

    def hold(self) -> AbstractContextManager[object]:
        """Keep every layer from being removed: held from ``ensure`` until the record of its user is written."""
        return Lock(f"{self.path}/lock", shared=True)

    # -- making --------------------------------------------------------------------------------------------

    def ensure(self, layers: Sequence[Layer], progress: Progress | None = None) -> Digest:
        """Unpack what is missing of an image's layers, bottom first, and return the chainID of the top one.

        Nothing becomes visible before all of it is verified and on disk; after a failure nothing is left.
        Raises FormatError, DigestMismatch, SizeMismatch, FileError, Unsupported.
        """
        if len(layers) > LAYERS_LIMIT:
            raise Unsupported(f"an image of {len(layers)} layers", f"at most {LAYERS_LIMIT} can be mounted together")
        chain = chain_ids([layer.diff_id for layer in layers]) or [NO_LAYERS]
        self._tidy()
        with self.hold():
            locks: list[Lock] = []
            missing: list[int] = []
            try:
                for index, identity in enumerate(chain):
                    if self.has(identity):
                        continue
                    # Bottom first for everybody, and images that share a layer share all below it: no deadlock.
                    lock = Lock(f"{self.path}/locks/{identity.encoded}")
                    lock.acquire()
                    locks.append(lock)
                    if self.has(identity):  # another process was faster
                        locks.pop().release()
                        continue
                    missing.append(index)
                if missing:
                    _Making(self, layers, chain, missing, progress).run()
            finally:
                for lock in locks:
                    try:
                        os.unlink(lock.path)
                    except OSError:
                        pass  # it stays for the next one to use
                    lock.release()
        return chain[-1]

    def _tidy(self) -> None:
        """Remove what a crashed process left, if there is something and nobody is at work."""
        if os.listdir(f"{self.path}/tmp"):
            try:
                with Lock(f"{self.path}/lock", wait=False):
                    self._empty_tmp()
            except InUse:
                pass  # or it is not left, but being made

    def _empty_tmp(self) -> None:
        names = os.listdir(f"{self.path}/tmp")
        if names:
            from knarr.layer.unpack import unpacker

            worker = unpacker(self.ids)
            try:
                for name in names:
                    self._remove_left(worker, f"{self.path}/tmp/{name}")
            finally:
                worker.close()

    @staticmethod
    def _remove_left(worker: Unpacker, path: str) -> None:
        """Remove what a killed run left. Its helper ends soon after it, when its pipe does."""
        for _ in range(50):
            try:
                return worker.remove(path)
            except SafetyViolation:
                sleep(0.05)
        return worker.remove(path)

    def new_link(self, identity: Digest) -> str:
        """Give out the next short name for a layer that is about to appear."""
        folder = f"{self.path}/l"
        with Lock(f"{self.path}/locks/names"):
            taken = set(os.listdir(folder))
            number = len(taken)
            while (name := _short(number)) in taken:
                number += 1
            try:
                os.symlink(f"../{identity.encoded}/fs", f"{folder}/{name}")
            except OSError as error:
                raise FileError("make", f"{folder}/{name}", error.errno or ENOSPC) from None
        return name

    # -- removing ------------------------------------------------------------------------------------------

    def remove(self, chain_id: str) -> None:
        """Remove one unpacked layer; raises NotFound, and InUse while another layer builds on it."""
        with Lock(f"{self.path}/lock"):
            self.get(chain_id)
            above = [one.chain_id for one in self.list() if one.parent == chain_id]
            if above:
                raise InUse("unpacked layer", chain_id, f"layer {above[0]}")
            self._remove_all([chain_id])

    def gc(self, keep: Collection[str] | Callable[[], Collection[str]] | None = None) -> Strings:
        """Remove leftovers, and, given chainIDs to ``keep``, every layer that none of these is or builds upon.

        Returns the chainIDs removed. Waits for whoever holds the layers (``hold``); what comes to need layers while
        this waits is seen by a ``keep`` that is a function, called then. Raises FileError.
        """
        with Lock(f"{self.path}/lock"):
            if callable(keep):
                keep = keep()
            known = {one.chain_id: one for one in self.list()}
            gone: Strings = []

            def depth(identity: str) -> int:
                count = 0
                while identity in known:
                    count += 1
                    identity = known[identity].parent
                return count

            if keep is not None:
                kept: set[str] = set()
                for identity in keep:
                    while identity in known and identity not in kept:
                        kept.add(identity)
                        identity = known[identity].parent
                gone = sorted((one for one in known if one not in kept), key=depth, reverse=True)
            self._remove_all(gone)
            for name in os.listdir(f"{self.path}/l"):
                link = f"{self.path}/l/{name}"
                if not os.path.exists(link):
                    os.unlink(link)
            for name in os.listdir(f"{self.path}/locks"):
                if _is_hex(name):
                    os.unlink(f"{self.path}/locks/{name}")
            return gone

    def _remove_all(self, chain: Sequence[str]) -> None:
        """Make layers vanish, the top ones first, then remove their files; the exclusive lock is held."""
        for identity in chain:
            link = self.get(identity).links[0]
            name = usable(identity).encoded
            try:
                os.rename(f"{self.path}/{name}", f"{self.path}/tmp/{name}.gone")
                os.unlink(f"{self.path}/l/{link}")
            except FileNotFoundError:
                pass
            except OSError as error:
                raise FileError("remove", f"{self.path}/{name}", error.errno or EPERM) from None
        self._empty_tmp()


class _Making:
    """One run of ``ensure`` that has something to unpack."""

    def __init__(
        self,
        snapshots: Snapshots,
        layers: Sequence[Layer],
        chain: Sequence[Digest],
        missing: Sequence[int],
        progress: Progress | None,
    ) -> None:
        self.snapshots = snapshots
        self.layers = layers
        self.chain = chain
        self.missing = missing
        self.progress = progress
        self.failures: list[BaseException] = []
        self.done: dict[int, Applied] = {}

    def tmp(self, index: int) -> str:
        return f"{self.snapshots.path}/tmp/{self.chain[index].encoded}"

    def run(self) -> None:
        from knarr.kernel.disk import sync_file_system
        from knarr.layer.unpack import unpacker

        worker = unpacker(self.snapshots.ids)
        links: list[str] = []
        try:
            for index in self.missing:
                worker.remove(self.tmp(index))  # a crash may have left it
                for path in (self.tmp(index), f"{self.tmp(index)}/fs"):
                    try:
                        os.mkdir(path, 0o700)
                    except OSError as error:
                        raise FileError("make", path, error.errno or ENOSPC) from None
            self.unpack(worker)
            for index in self.missing:
                links.append(self.snapshots.new_link(self.chain[index]))
                self.record(index, links[-1])
            sync_file_system(self.snapshots.path)
            for index in self.missing:
                os.rename(self.tmp(index), f"{self.snapshots.path}/{self.chain[index].encoded}")
            sync_directory(self.snapshots.path)
        except BaseException as error:
            self.undo(worker, links)
            if isinstance(error, OSError) and not isinstance(error, KnarrError):
                raise FileError("write", self.snapshots.path, error.errno or ENOSPC) from None
            raise
        finally:
            worker.close()

    def undo(self, worker: Unpacker, links: Sequence[str]) -> None:
        """After a failure: nothing may be left, except a layer that is already visible and so complete."""
        for index, link in zip(self.missing, links, strict=False):
            if not self.snapshots.has(self.chain[index]):
                os.unlink(f"{self.snapshots.path}/l/{link}")
        for index in self.missing:
            try:
                worker.remove(self.tmp(index))
            except KnarrError:
                pass  # the first error is the one to tell; gc tries again

    def unpack(self, worker: Unpacker) -> None:
        """Apply the missing layers, two at a time where that is possible."""
        from threading import Event

        from knarr.layer.parallel import two_at_a_time

        self.finished = {index: Event() for index in self.missing}

        def one(index: int) -> None:
            try:
                self.apply(worker, index)
            except BaseException as error:
                self.failures.append(error)  # before those above, which wait for it, go on
                raise
            finally:
                self.finished[index].set()

        if worker.parallel:
            two_at_a_time(one, self.missing, self.failures)
            return
        for index in self.missing:
            one(index)

    def apply(self, worker: Unpacker, index: int) -> None:
        root = f"{self.tmp(index)}/fs"
        if not self.layers:
            os.chmod(root, 0o755)
            from knarr.layer.apply import Applied

            self.done[index] = Applied(0, 0, ())
            return
        layer = self.layers[index]
        stream = layer.stream(stopped=lambda: bool(self.failures), progress=self.progress)
        try:
            self.done[index] = worker.apply(
                stream,
                root,
                mode="overlay",
                userxattr=self.snapshots.userxattr,
                below=(lambda: self.below(index)) if index else None,
                fresh=True,
                what=layer.what,
            )
        finally:
            stream.close()

    def below(self, index: int) -> list[str]:
        """The directories of the layers under one, top first; waits until they are complete."""
        paths = []
        for lower in range(index - 1, -1, -1):
            if lower in self.finished:
                self.finished[lower].wait()
                if self.failures:
                    raise Interrupted("unpacking was stopped: a layer below failed")
                paths.append(f"{self.tmp(lower)}/fs")
            else:
                paths.append(f"{self.snapshots.path}/{self.chain[lower].encoded}/fs")
        return paths

    def record(self, index: int, link: str) -> None:
        below: tuple[str, ...] = ()
        parent = ""
        if index:
            parent = self.chain[index - 1]
            if not self.done[index].opaque:  # overlayfs does not look for that at a layer's root
                below = tuple(self.links_below(index))
        done = self.done[index]
        document = {
            "chain": self.chain[index],
            "parent": parent,
            "diff": self.layers[index].diff_id if self.layers else "",
            "links": [link, *below],
            "size": done.size,
            "warnings": list(done.warnings),
        }
        write_atomic(f"{self.tmp(index)}/layer.json", fastjson.dumps(document))

    def links_below(self, index: int) -> Iterator[str]:
        parent = index - 1
        path = f"{self.tmp(parent) if parent in self.done else self.snapshots.path + '/' + self.chain[parent].encoded}"
        record = fastjson.loads(read_file(f"{path}/layer.json", _RECORD_LIMIT), f"{path}/layer.json")
        yield from record["links"]


def _is_hex(name: str) -> bool:
    return len(name) in (64, 128) and all(char in "0123456789abcdef" for char in name)


def _chain_of(name: str) -> str:
    return f"{'sha256' if len(name) == 64 else 'sha512'}:{name}"


def _short(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _LETTERS[digit] + digits
        if not number:
            return digits
        number -= 1

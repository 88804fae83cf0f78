"""Who applies layers: this process, or a helper in a user namespace; and whole images to one directory.

``Direct`` works here: root, or an ordinary user who has no user namespaces and owns everything himself.
``helper.Helper`` has the same methods and works in a process of its own, as root of a user namespace.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EBUSY, EINVAL, ENOTEMPTY, EPERM, EROFS

from knarr.base.errors import FileError, KernelError, NotFound, Unsupported
from knarr.kernel.disk import sync_file_system
from knarr.kernel.path import remove_tree
from knarr.kernel.userns import IdMap, default_map
from knarr.layer.apply import Applied, apply_layer
from knarr.layer.view import MergedView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from knarr.content.verify import Readable
    from knarr.layer.apply import Mode
    from knarr.layer.scan import Packed
    from knarr.layer.source import Layer, Progress
    from knarr.layer.tarwriter import Writable

    class Unpacker(Protocol):
        """Applies layers to directories, packs them again, and removes what came of them."""

        parallel: bool

        def apply(
            self,
            stream: Readable,
            root: str,
            *,
            mode: Mode,
            userxattr: bool,
            below: Callable[[], list[str]] | None,
            fresh: bool,
            what: str,
        ) -> Applied: ...

        def remove(self, path: str) -> None: ...

        def record(self, root: str) -> bytes: ...

        def pack(
            self, root: str, out: Writable, *, known: bytes | None, masks: Sequence[bytes], latest: int | None
        ) -> Packed: ...

        def close(self) -> None: ...


class Direct:
    """Applies layers in this process; ``ids`` as for apply_layer."""

    parallel = True

    def __init__(self, ids: IdMap | None) -> None:
        self.ids = ids

    def apply(
        self,
        stream: Readable,
        root: str,
        *,
        mode: Mode,
        userxattr: bool,
        below: Callable[[], list[str]] | None,
        fresh: bool,
        what: str,
    ) -> Applied:
        """Apply a layer to the directory ``root``; ``below`` gives the directories under it, top first."""
        fd = open_directory(root)
        view: MergedView | None = None

        def look() -> MergedView:
            nonlocal view
            if view is None:
                view = MergedView.of_paths(below() if below is not None else [])
            return view

        try:
            return apply_layer(
                stream,
                fd,
                ids=self.ids,
                mode=mode,
                userxattr=userxattr,
                below=look if below is not None else None,
                fresh=fresh,
                what=what,
            )
        finally:
            if view is not None:
                view.close()
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove a tree; fine if it is not there."""
        remove_path(path)

    def record(self, root: str) -> bytes:
        """What everything below a directory looks like now; see scan.py. Raises FileError."""
        from knarr.layer.scan import record_of

        fd = open_directory(root)
        try:
            return record_of(fd, root)
        finally:
            os.close(fd)

    def pack(
        self, root: str, out: Writable, *, known: bytes | None, masks: Sequence[bytes], latest: int | None
    ) -> Packed:
        """Write a directory, or what changed in it since ``known`` was recorded, as a tar; see ``scan.pack``."""
        from knarr.layer.scan import pack

        fd = open_directory(root)
        try:
            return pack(fd, root, out, known=known, masks=masks, ids=self.ids, latest=latest)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing to do."""


def open_directory(path: str) -> int:
    """A descriptor of one of our own directories; raises FileError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open", path, error.errno or EINVAL) from None


def remove_path(path: str) -> None:
    """Remove the tree at one of our own paths; fine if it is not there. Raises FileError, SafetyViolation."""
    folder, name = os.path.split(path)
    try:
        fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError("remove", path, error.errno or EINVAL) from None
    try:
        remove_tree(fd, name)
    except KernelError as error:
        raise FileError("remove", path, error.errno or EINVAL) from None
    finally:
        os.close(fd)


def unpacker(ids: IdMap | None = None) -> Unpacker:
    """Return who applies layers for this user: root himself, an ordinary user's helper with the map ``ids``.

    An ordinary user's ``ids`` default to his subordinate ids. Where user namespaces are forbidden and there are
    none of these, files are made without one, all owned by the caller. Raises Unsupported.
    """
    if os.geteuid() == 0:
        return Direct(ids)
    from knarr.layer.helper import Helper  # only ordinary users need it

    mapped = ids or default_map(os.geteuid(), os.getegid())
    try:
        return Helper(mapped)
    except Unsupported:
        if not mapped.squash:
            raise
        return Direct(mapped)


def materialise(
    layers: Sequence[Layer],
    target: str,
    *,
    ids: IdMap | None = None,
    progress: Progress | None = None,
    sync: bool = False,
) -> tuple[str, ...]:
    """Unpack an image to one plain directory: all layers merged, no overlayfs needed. Returns the warnings.

    ``target`` must not exist or be an empty directory; it appears complete, by a rename, where its parent allows
    that. After a failure it is as it was. Raises FileError, NotFound, FormatError, DigestMismatch, SizeMismatch,
    Unsupported.
    """
    worker = unpacker(ids)
    try:
        place, renamed = _place(target)
        try:
            warnings = _merge(worker, layers, place, progress)
            if sync:
                sync_file_system(place)
            if renamed:
                _rename(place, target)
        except BaseException:
            if renamed:
                worker.remove(place)
            else:
                _empty(worker, place)
            raise
        return warnings
    finally:
        worker.close()


def _merge(worker: Unpacker, layers: Sequence[Layer], place: str, progress: Progress | None) -> tuple[str, ...]:
    warnings: list[str] = []
    streams: list[Readable] = []
    try:
        for index, layer in enumerate(layers):
            # The next layer is opened, and so inflated ahead, while this one is applied.
            while len(streams) < min(index + 2, len(layers)):
                streams.append(layers[len(streams)].stream(progress=progress))
            done = worker.apply(
                streams[index], place, mode="merge", userxattr=False, below=None, fresh=index == 0, what=layer.what
            )
            streams[index].close()
            warnings += done.warnings
    finally:
        for stream in streams:
            stream.close()
    return tuple(warnings)


def _place(target: str) -> tuple[str, bool]:
    """Where to unpack: a fresh directory beside ``target`` to be renamed, or, where that cannot be, ``target``."""
    path = os.path.abspath(target)
    folder, name = os.path.split(path)
    try:
        try:
            facts = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            there = False
        else:
            there = True
            if not stat.S_ISDIR(facts.st_mode):
                raise FileError("unpack to", target, ENOTEMPTY, hint="it exists and is not a directory")
            if os.listdir(path):
                raise FileError("unpack to", target, ENOTEMPTY)
            if os.path.ismount(path):
                return path, False
        fresh = f"{folder}/.{name[:200]}.{os.urandom(6).hex()}"
        try:
            os.mkdir(fresh, 0o755)
        except OSError as error:
            if there and error.errno in (EACCES, EPERM, EROFS):
                return path, False
            raise
        return fresh, True
    except FileNotFoundError:
        raise NotFound("directory", folder) from None
    except OSError as error:
        raise FileError("unpack to", target, error.errno or EINVAL) from None


def _rename(place: str, target: str) -> None:
    try:
        os.rename(place, os.path.abspath(target))
    except OSError as error:
        number = ENOTEMPTY if error.errno == EBUSY else error.errno or EINVAL
        raise FileError("unpack to", target, number) from None


def _empty(worker: Unpacker, place: str) -> None:
    for name in os.listdir(place):
        worker.remove(f"{place}/{name}")

"""The store: a directory that is an OCI image layout (image-layout.md), safe against crashes and other processes.

    oci-layout, index.json     the layout's own; index.json is the only record of what the store holds
    blobs/<algorithm>/<hex>    complete, verified, never changed, mode 0444
    .tmp/<algorithm>-<hex>     a blob being written, or what came of one; its writer holds flock on it
    .lock                      shared by whoever adds or reads, exclusive for garbage collection
    .index.lock                held while index.json is read, changed and replaced

The order of a write is the whole of its safety (docs/security.md I9): data into ``.tmp``, fsync, rename, and before
index.json names anything the blob directories are fsynced too. A process killed anywhere leaves a valid store:
at worst an unfinished file in ``.tmp``, from which the next writer of that blob goes on where its source can do that
(``Resumable``), and which the next collection takes away.
Names are annotations (org.opencontainers.image.ref.name) with the full reference, so umoci and skopeo find them.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOENT, ENOSPC

from knarr.base import fastjson
from knarr.base.errors import FileError, NotFound, SizeMismatch
from knarr.base.files import Lock, read_file, sync_directory, write_all, write_atomic
from knarr.content.digest import USABLE, Digest, hasher, sha256_of, usable
from knarr.content.locks import LOCK_TIMEOUT, held, store_hint
from knarr.content.names import Changes, read_entries, some, write_entries
from knarr.content.part import TEMPORARY, fill, locked_part, make_directory, opened, pour
from knarr.content.verify import FileStream, Resumable, VerifiedReader, open_regular, read_all, verify_bytes
from knarr.kernel.disk import sync_file_system
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from knarr.content.gc import Collected
    from knarr.content.part import Source
    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor

DOCUMENT_LIMIT = 4 << 20
"""Most bytes of a manifest, index or config: 4 MiB (distribution-spec and every peer)."""

_HEX = "0123456789abcdef"
_HEX_BYTES = _HEX.encode()
TOGETHER = 8
"""So many small blobs are put on disk by one syncfs(2) rather than an fsync(2) each."""


class Store:
    """A store at ``path``; holds no state but the path, so it may be shared by threads and processes."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str, *, create: bool = True, mode: int = 0o700) -> Store:
        """Return the store at ``path``, made there with directories of ``mode`` if missing and ``create``.

        Raises NotFound when there is none, SpecError when it is a layout of another version, FileError when it
        cannot be read or made.
        """
        store = cls(path)
        try:
            header = read_file(f"{path}/{mediatypes.LAYOUT_FILE}", DOCUMENT_LIMIT)
        except FileError as error:
            if error.number != ENOENT:
                raise
            if not create:
                raise NotFound("image store", path) from None
            store._make(mode)
            return store
        from knarr.spec.image_validate import parse_layout

        parse_layout(header, f"{path}/{mediatypes.LAYOUT_FILE}")
        return store

    def _make(self, mode: int) -> None:
        """Lay out an empty store; harmless where another process does the same. oci-layout, the mark, comes last."""
        try:
            os.makedirs(self.path, mode, exist_ok=True)
            for name in (mediatypes.BLOBS_DIRECTORY, f"{mediatypes.BLOBS_DIRECTORY}/sha256", TEMPORARY):
                make_directory(f"{self.path}/{name}", mode)
            with Lock(f"{self.path}/.index.lock"):
                if not os.path.lexists(self._index_path):
                    write_entries(self._index_path, {"schemaVersion": 2, "mediaType": mediatypes.INDEX}, ())
                header = fastjson.dumps({"imageLayoutVersion": mediatypes.LAYOUT_VERSION})
                write_atomic(f"{self.path}/{mediatypes.LAYOUT_FILE}", header, mode=0o644, sync=True)
        except OSError as error:
            raise FileError("make a store at", self.path, error.errno or EINVAL) from None

    # Blobs

    def blob_path(self, digest: str) -> str:
        """Return the path a blob has or would have; raises InvalidDigest."""
        want = usable(digest)
        return f"{self.path}/{mediatypes.BLOBS_DIRECTORY}/{want.algorithm}/{want.encoded}"

    def has(self, digest: str, size: int | None = None) -> bool:
        """Say whether the blob is there (with ``size`` bytes, if given); its bytes are checked when read."""
        try:
            found = os.stat(self.blob_path(digest), follow_symlinks=False)
        except OSError:
            return False
        return size is None or found.st_size == size

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """Return a reader of the blob; raises NotFound, SizeMismatch, FileError, and when read DigestMismatch."""
        digest, size = descriptor["digest"], descriptor["size"]
        path = self.blob_path(digest)
        try:
            fd, found = open_regular(path)
        except FileError as error:
            if error.number == ENOENT:
                raise NotFound("blob", digest, hint=f"it is missing from {self.path}; pull the image again") from None
            raise
        reader = VerifiedReader(FileStream(fd, path), digest, size, f"blob {path}")
        if found != size:
            reader.close()
            raise SizeMismatch(f"blob {path}", size, found)
        return reader

    def read_blob(self, descriptor: Descriptor, limit: int = DOCUMENT_LIMIT) -> bytes:
        """Return the verified bytes of a small blob; raises FormatError when it has more than ``limit`` bytes."""
        stream = self.open_blob(descriptor)
        return read_all(stream, descriptor["digest"], descriptor["size"], limit, stream.what)

    def digests(self) -> set[str]:
        """Return the digest of every blob, by their names alone; what cannot be one's name is passed over.

        Raises FileError.
        """
        found: set[str] = set()
        for algorithm, length in USABLE.items():
            begin = f"{algorithm}:"
            names = self._listed(algorithm)
            # Looked at together they take a tenth of the time.
            if set(map(len, names)) != {length} or os.fsencode("".join(names)).translate(None, _HEX_BYTES):
                names = [each for each in names if len(each) == length and not each.strip(_HEX)]
            found.update([begin + each for each in names])
        return found

    def _listed(self, algorithm: str) -> list[str]:
        try:
            return os.listdir(f"{self.path}/{mediatypes.BLOBS_DIRECTORY}/{algorithm}")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileError("read", self.path, error.errno or EINVAL) from None

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Yield (digest, size in bytes) of every blob, in no order; passes over what is no file. Raises FileError."""
        for digest in self.digests():
            try:
                found = os.stat(self.blob_path(digest), follow_symlinks=False)
            except FileNotFoundError:
                continue  # collected meanwhile
            if stat.S_ISREG(found.st_mode):
                yield Digest(digest), found.st_size

    def put(
        self,
        source: Source,
        want: Descriptor | None = None,
        *,
        media_type: str = "application/octet-stream",
        moved: Callable[[int], None] | None = None,
    ) -> Descriptor:
        """Add a blob and return its descriptor (``want`` itself, if given); does nothing when it is there.

        ``source`` is bytes, a stream (closed afterwards), or a function that opens one, called only when the
        blob has to be written; or a ``Resumable``: then what an earlier writer, killed or broken off, left of the
        blob is hashed again and only the rest is read. With ``want`` exactly those bytes are accepted; of several
        writers of one blob, also in other processes, one writes and the others wait for it. ``moved`` is told the
        bytes of each step (0 while waiting); what it raises ends the write. Nothing is left behind on failure, but
        for what came of a ``Resumable`` before it broke, if that is ``KEPT_LEAST`` bytes. Raises
        SizeMismatch, DigestMismatch, InvalidDigest, what the source raises, InUse when another writer makes no
        progress for a minute, FileError (full disk, read-only store).
        """
        if want is None and isinstance(source, bytes):
            want = {"mediaType": media_type, "digest": sha256_of(source), "size": len(source)}
        if want is None:
            return self._put_unknown(source, media_type, moved)
        digest = usable(want["digest"])
        try:
            if self.has(digest, want["size"]):
                return want
            # Shared locks nest: a collection must not take the unfinished file of a caller who holds none.
            with self.lock(), locked_part(self.path, f"{digest.algorithm}-{digest.encoded}", moved) as part:
                if not self.has(digest, want["size"]):
                    self._room_for(digest, want["size"])
                    fill(source, part, digest, want["size"], moved)
                    self._settle(part.fd, f"{digest.algorithm}-{digest.encoded}", digest)
        finally:
            if not isinstance(source, (bytes, Resumable)) and not callable(source):
                source.close()
        return want

    def _put_unknown(self, source: Source, media_type: str, moved: Callable[[int], None] | None) -> Descriptor:
        """Write a stream of unknown digest and name it by its sha256 afterwards."""
        stream = _Hashing(opened(source))
        name = f"new-{os.urandom(12).hex()}"
        try:
            with self.lock(), locked_part(self.path, name, moved) as part:
                part.empty()
                pour(stream, part, "blob", moved)
                digest = Digest.parse(f"sha256:{stream.hash.hexdigest()}")
                self._settle(part.fd, name, digest)
        finally:
            stream.close()
        return {"mediaType": media_type, "digest": digest, "size": stream.size}

    def put_all(self, blobs: Iterable[tuple[Descriptor, bytes]]) -> None:
        """Add many small blobs, verified: one wait for the disk for all of them.

        Each has a file that nobody else writes or waits for; they get their names when syncfs(2) has put them all on
        the disk. Few are put one by one, for it also waits for what others have written. Raises SizeMismatch,
        DigestMismatch, InvalidDigest, FileError.
        """
        new: dict[Digest, tuple[str, bytes]] = {}
        for descriptor, data in blobs:
            digest = verify_bytes(data, descriptor["digest"], descriptor["size"])
            if digest not in new and not self.has(digest, len(data)):
                new[digest] = f"new-{os.urandom(12).hex()}", data
        if len(new) < TOGETHER:
            for digest, (_, data) in new.items():
                self.put(data, {"mediaType": "application/octet-stream", "digest": digest, "size": len(data)})
            return
        with self.lock():
            try:
                for name, data in new.values():
                    self._written(name, data)
                sync_file_system(self.path)
                while new:
                    digest, (name, _) = next(iter(new.items()))
                    self._named(name, digest)
                    del new[digest]
            finally:
                for name, _ in new.values():
                    with suppress(OSError):  # not all were made
                        os.unlink(f"{self.path}/{TEMPORARY}/{name}")

    def _written(self, name: str, data: bytes) -> None:
        """Write a blob's file, not yet on disk."""
        path = f"{self.path}/{TEMPORARY}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, data)
                os.fchmod(fd, 0o444)
            finally:
                os.close(fd)
        except OSError as error:
            number = error.errno or EINVAL
            raise FileError("write blobs to", self.path, number, hint=store_hint(number)) from None

    def _settle(self, fd: int, name: str, digest: Digest) -> None:
        """Give the finished file its name: data on disk first, then the rename."""
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        except OSError as error:
            number = error.errno or EINVAL
            raise FileError(f"write blob {digest} to", self.path, number, hint=store_hint(number)) from None
        self._named(name, digest)

    def _named(self, name: str, digest: Digest) -> None:
        """Rename a file that is on disk."""
        target = self.blob_path(digest)
        try:
            try:
                os.rename(f"{self.path}/{TEMPORARY}/{name}", target)
            except FileNotFoundError:
                make_directory(os.path.dirname(target))
                os.rename(f"{self.path}/{TEMPORARY}/{name}", target)
        except OSError as error:
            number = error.errno or EINVAL
            raise FileError(f"write blob {digest} to", self.path, number, hint=store_hint(number)) from None

    def _room_for(self, digest: Digest, size: int) -> None:
        """Refuse a blob that cannot fit before its first byte is fetched."""
        try:
            facts = os.statvfs(self.path)
        except OSError:
            return  # writing will say what is wrong
        free = facts.f_bavail * facts.f_frsize
        if size > free and facts.f_blocks:
            hint = f"it needs {size} bytes, {free} are free"
            raise FileError(f"write blob {digest} to", self.path, ENOSPC, hint=hint)

    def delete(self, digest: str) -> None:
        """Remove a blob whatever refers to it; does nothing when it is not there. Raises FileError."""
        path = self.blob_path(digest)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FileError("remove", path, error.errno or EINVAL) from None

    # Names

    @property
    def _index_path(self) -> str:
        return f"{self.path}/{mediatypes.INDEX_FILE}"

    def entries(self) -> list[Descriptor]:
        """Return the descriptors of index.json, named or not, in its order; raises SpecError, FileError.

        They are shared: not to be changed.
        """
        return list(read_entries(self._index_path).all)

    def named(self, name: str) -> list[Descriptor]:
        """Return the entries with a name; none, or several where another tool wrote one for each platform."""
        return read_entries(self._index_path).named(name)

    def tags(self) -> dict[str, Descriptor]:
        """Return every name and its descriptor, in the order of index.json."""
        entries = read_entries(self._index_path)
        return {name: found[0] for name, found in entries.by_name.items()}

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor of a name; raises NotFound that lists some names there are."""
        found = self.named(name)
        if found:
            return found[0]
        raise NotFound("image", name, among=some(sorted(self.tags()), "nothing in the store"))

    def tag(self, name: str, descriptor: Descriptor, *, replace: bool = True) -> None:
        """Let ``name`` mean ``descriptor``, durably: this is the record, written after all it refers to is on disk.

        The caller holds ``lock(shared=True)`` since before it put or looked for the blobs. Raises NotFound when
        the manifest itself is not there, Exists when the name is taken and not ``replace``, SpecError when it is no
        descriptor, FileError.
        """
        with self.changing() as names:
            names.tag(name, descriptor, replace=replace)

    def untag(self, name: str) -> Descriptor:
        """Take a name away and return what it meant; the blobs stay until ``gc``. Raises NotFound, FileError."""
        with self.changing() as names:
            return names.untag(name)

    def note(self, descriptor: Descriptor) -> None:
        """List a manifest or index in index.json without a name, durably, unless it is there. As ``tag``."""
        with self.changing() as names:
            names.note(descriptor)

    def forget(self, digest: str) -> None:
        """Take every entry of a manifest out of index.json, named or not; does nothing when there is none."""
        with self.changing() as names:
            names.forget(digest)

    @contextmanager
    def changing(self) -> Iterator[Changes]:
        """Give the entries of index.json to change; they are written once, if they did change and nothing was raised.

        For many names at a time: index.json is read and written whole, whatever changes. Whoever tags has put the blobs
        and holds ``lock(shared=True)``, as for ``tag``. Other writers of names wait meanwhile.
        """
        with held(f"{self.path}/.index.lock", shared=False):
            changes = Changes(read_entries(self._index_path), self.has)
            yield changes
            if changes.changed:
                self._sync_blobs()
                changes.write(self._index_path)

    def _sync_blobs(self) -> None:
        """Put the names of all blobs on disk."""
        for name in ("", *(f"/{algorithm}" for algorithm in USABLE)):
            path = f"{self.path}/{mediatypes.BLOBS_DIRECTORY}{name}"
            try:
                sync_directory(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise FileError("write", path, error.errno or EINVAL) from None

    # Locks and collection

    @contextmanager
    def lock(self, *, shared: bool = True, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the store: shared while adding or using blobs, exclusive while removing them.

        Raises InUse with the holder's process id after ``timeout`` seconds. Not to be nested with the other
        kind in one process: it would wait for itself. On a read-only file system a shared lock is not needed
        and not taken.
        """
        with held(f"{self.path}/.lock", shared=shared, timeout=timeout):
            yield

    def gc(self, keep: frozenset[str] = frozenset(), *, timeout: float = LOCK_TIMEOUT) -> Collected:
        """Remove what nothing refers to; see ``gc.collect``."""
        from knarr.content.gc import collect

        return collect(self, keep, timeout=timeout)


class _Hashing:
    """A stream that hashes and counts what passes."""

    def __init__(self, stream: Readable) -> None:
        self.hash = hasher("sha256")
        self.size = 0
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.hash.update(data)
        self.size += len(data)
        return data

    def close(self) -> None:
        self._stream.close()

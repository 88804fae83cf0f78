"""Uploads under way: one file each in the store's directory, from the first request to the last.

distribution-spec, "Pushing a blob in chunks" and "monolithically". The name of a session is all that a client has to
know to go on, also after this program was started again.
"""

from __future__ import annotations

import os
import re
import time
from errno import EINVAL

from knarr.base.errors import DigestMismatch, FileError, InvalidDigest, SizeMismatch
from knarr.base.files import write_all
from knarr.content.digest import hasher, usable
from knarr.content.verify import CHUNK, FileStream
from knarr.service.registry.problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.content.digest import Hasher
    from knarr.content.store import Store

_SESSION = re.compile(r"[0-9a-f]{32}")
FORGOTTEN = 24 * 3600.0
"""Seconds after which an upload that nobody goes on with is removed, at the next start."""


class Uploads:
    """All uploads of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = f"{store.path}/.uploads"
        self._hashes: dict[str, tuple[Hasher, int]] = {}
        try:
            os.makedirs(self.folder, 0o700, exist_ok=True)
            for name in os.listdir(self.folder):
                path = f"{self.folder}/{name}"
                if _SESSION.fullmatch(name) and os.stat(path).st_mtime < time.time() - FORGOTTEN:
                    os.unlink(path)
        except OSError as error:
            raise FileError("make", self.folder, error.errno or EINVAL) from None

    def begin(self) -> Upload:
        """A new, empty upload."""
        session = os.urandom(16).hex()
        fd = os.open(f"{self.folder}/{session}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return Upload(self, session, fd, 0)

    def go_on(self, session: str) -> Upload:
        """An upload that was begun. Raises Problem."""
        if not _SESSION.fullmatch(session):
            raise Problem("BLOB_UPLOAD_UNKNOWN", session)
        try:
            fd = os.open(f"{self.folder}/{session}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            raise Problem("BLOB_UPLOAD_UNKNOWN", session) from None
        return Upload(self, session, fd, os.fstat(fd).st_size)

    def known_hash(self, session: str, size: int) -> Hasher:
        """The hash of the first ``size`` bytes as far as it was kept; of nothing otherwise."""
        made, counted = self._hashes.pop(session, (None, -1))
        if made is not None and counted == size:
            return made
        made = hasher("sha256")
        with open(f"{self.folder}/{session}", "rb") as file:
            while data := file.read(CHUNK):
                made.update(data)
        return made

    def keep_hash(self, session: str, made: Hasher, size: int) -> None:
        """Remember it for the next request."""
        if len(self._hashes) > 1000:
            self._hashes.clear()
        self._hashes[session] = (made, size)


class Upload:
    """One upload, open: write, then ``pause`` or ``finish`` or ``cancel``."""

    def __init__(self, uploads: Uploads, session: str, fd: int, size: int) -> None:
        self.session = session
        self.size = size
        self._uploads = uploads
        self._fd = fd
        self._hash: Hasher | None = None

    @property
    def path(self) -> str:
        """Its file."""
        return f"{self._uploads.folder}/{self.session}"

    def write(self, data: bytes) -> None:
        """Add bytes at the end. Raises FileError."""
        if self._hash is None:
            self._hash = self._uploads.known_hash(self.session, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise FileError("write", self.path, error.errno or EINVAL) from None
        self._hash.update(data)
        self.size += len(data)

    def pause(self) -> None:
        """Close it until the next request."""
        if self._hash is not None:
            self._uploads.keep_hash(self.session, self._hash, self.size)
            self._hash = None
        self.close()

    def cancel(self) -> None:
        """Remove it."""
        self._hash = None
        self.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def finish(self, digest: str) -> None:
        """Make it a blob of the store. Raises Problem when its bytes have another digest; it is then gone."""
        try:
            want = usable(digest)
        except InvalidDigest as error:
            self.cancel()
            raise Problem("DIGEST_INVALID", str(error)) from None
        got = f"sha256:{self._hash.hexdigest()}" if self._hash is not None else want
        if want.algorithm == "sha256" and got != want:  # known already: nothing need be copied
            self.cancel()
            raise Problem("DIGEST_INVALID", f"the bytes have {got}")
        try:
            stream = FileStream(os.dup(self._fd), self.path, 0, self.size)
            self._uploads.store.put(
                stream, {"mediaType": "application/octet-stream", "digest": want, "size": self.size}
            )
        except (DigestMismatch, SizeMismatch) as error:
            raise Problem("DIGEST_INVALID", str(error)) from None
        finally:
            self.cancel()

    def close(self) -> None:
        """Close its file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

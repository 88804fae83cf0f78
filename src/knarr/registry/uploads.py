"""Uploads that were begun: where each goes on, for another process, by registry, repository and digest.

One small private file each, for the address of an upload can hold a key to it. What cannot be read is passed over: then
the blob is sent from its start.
"""

from __future__ import annotations

import os
from hashlib import sha256

from knarr.base import fastjson
from knarr.base.errors import FileError, SpecError
from knarr.base.files import read_file, write_atomic

_LIMIT = 64 << 10
_MOST = 1_000
"""Files kept; the oldest go. A registry forgets an upload within days."""


class Uploads:
    """The uploads of a directory, made when first needed. Safe for threads and processes: each blob has its file."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find(self, registry: str, repository: str, digest: str) -> str:
        """Return the URL an upload goes on at, "" when none is known."""
        try:
            value = fastjson.loads(read_file(self._path(registry, repository, digest), _LIMIT), "upload")
        except (FileError, SpecError):
            return ""
        url = value.get("url") if isinstance(value, dict) else None
        return url if isinstance(url, str) else ""

    def note(self, registry: str, repository: str, digest: str, url: str) -> None:
        """Remember where an upload goes on; quietly not where nothing can be written."""
        path = self._path(registry, repository, digest)
        data = fastjson.dumps({"registry": registry, "repository": repository, "digest": digest, "url": url})
        try:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            write_atomic(path, data)
            self._prune()
        except (FileError, OSError):
            pass  # the upload itself matters more

    def forget(self, registry: str, repository: str, digest: str) -> None:
        """Forget an upload: it has ended."""
        try:
            os.unlink(self._path(registry, repository, digest))
        except OSError:
            pass  # it was not noted

    def _path(self, registry: str, repository: str, digest: str) -> str:
        name = sha256(f"{registry}/{repository}@{digest}".encode()).hexdigest()
        return f"{self._folder}/{name}.json"

    def _prune(self) -> None:
        names = os.listdir(self._folder)
        if len(names) > _MOST:
            paths = sorted((f"{self._folder}/{name}" for name in names), key=lambda path: os.stat(path).st_mtime)
            for path in paths[: len(names) - _MOST]:
                os.unlink(path)

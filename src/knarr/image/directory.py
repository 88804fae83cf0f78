"""``dir:``: one image as plain files in a directory, the way skopeo and podman have it.

version               Directory Transport Version: 1.1
manifest.json         the manifest or index
<hex>                 config and layers
<hex>.manifest.json   the manifests of an index
"""

from __future__ import annotations

import os
from errno import EINVAL

from knarr.base import fastjson
from knarr.base.errors import Exists, FileError, NotFound, SizeMismatch, SpecError, SpecFinding, UsageError
from knarr.base.files import TEMPORARY, sync_directory, write_all
from knarr.content.digest import sha256_of, usable
from knarr.content.part import opened, verified
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import CHUNK, VerifiedReader
from knarr.image.files import DirectoryFiles, read_document
from knarr.image.reference import local_name
from knarr.image.sink import JOBS
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.content.part import Source
    from knarr.content.verify import Readable
    from knarr.image.reference import Reference
    from knarr.spec.image import Descriptor

_VERSION = "version"
_VERSION_TEXT = b"Directory Transport Version: 1.1\n"
_VERSION_START = b"Directory Transport Version: 1"
_MANIFEST = "manifest.json"


class DirectorySource:
    """The image in a ``dir:``. See ``source.ImageSource``."""

    def __init__(self, ref: Reference) -> None:
        self.what = str(ref)
        self._ref = ref
        self._files = DirectoryFiles(ref.path)
        try:
            try:
                self._data = read_document(self._files, _MANIFEST, DOCUMENT_LIMIT)
            except NotFound:
                hint = f"it is an OCI image layout: name it oci:{ref.path}" if self._is_layout() else ""
                raise NotFound("manifest.json in", ref.path, hint=hint) from None
            kind = media_type_of(fastjson.loads(self._data, f"{ref.path}/{_MANIFEST}"), f"{ref.path}/{_MANIFEST}")
        except BaseException:
            self._files.close()
            raise
        self._root: Descriptor = {"mediaType": kind, "digest": sha256_of(self._data), "size": len(self._data)}

    def _is_layout(self) -> bool:
        return os.path.exists(f"{self._ref.path}/{mediatypes.LAYOUT_FILE}")

    def roots(self) -> list[Descriptor]:
        """Return the descriptor of the manifest or index."""
        return [self._root]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader; raises NotFound, SizeMismatch, InvalidDigest."""
        digest = usable(descriptor["digest"])
        name = digest.encoded
        if digest == self._root["digest"]:
            name = _MANIFEST
        elif descriptor["mediaType"] in mediatypes.MANIFESTS or descriptor["mediaType"] in mediatypes.INDEXES:
            name += f".{_MANIFEST}"
        what = f"blob {digest} in {self._ref.path}"
        try:
            stream, size = self._files.open(name)
        except NotFound:
            raise NotFound("blob", f"{digest} in {self._ref.path}") from None
        if size != descriptor["size"]:
            stream.close()
            raise SizeMismatch(what, descriptor["size"], size)
        return VerifiedReader(stream, digest, size, what)

    def names(self) -> list[str]:
        """Return localhost/DIRECTORY:latest: a directory names nothing."""
        return [local_name(self._ref.path, "")]

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        """Let the directory go."""
        self._files.close()


def media_type_of(document: Any, where: str) -> str:
    """Return what kind of manifest or index a document is; raises SpecError when it does not show."""
    if not isinstance(document, dict):
        raise SpecError(where, [SpecFinding("", "must be an object")])
    said = document.get("mediaType")
    if isinstance(said, str) and said:
        return said
    if document.get("schemaVersion") == 1:
        return mediatypes.DOCKER_SCHEMA1
    if "manifests" in document and "layers" not in document:
        return mediatypes.INDEX
    if "layers" in document and "manifests" not in document:
        return mediatypes.MANIFEST
    raise SpecError(where, [SpecFinding("", "is neither a manifest nor an index")])


class DirectorySink:
    """A ``dir:`` to write: filled beside its place and put there when it is whole. See ``sink.ImageSink``."""

    keeps = True
    indexes = True
    formats: tuple[str, ...] = ("oci", "docker")
    compression: str | None = None
    jobs = JOBS

    def __init__(self, path: str, what: str) -> None:
        self.what = what
        self._path = path.rstrip("/") or "/"
        self._there = _replaceable(self._path)
        self._root = ""
        self._documents: dict[str, bytes] = {}
        parent = os.path.dirname(os.path.abspath(self._path))
        self._folder = f"{parent}/{TEMPORARY}{os.urandom(8).hex()}"
        try:
            os.makedirs(parent, exist_ok=True)
            os.mkdir(self._folder)
        except OSError as error:
            raise FileError("make directory", self._path, error.errno or EINVAL) from None
        self._write(_VERSION, _VERSION_TEXT)

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Check that the names of the files differ."""
        names = [usable(blob["digest"]).encoded for blob in blobs]
        if len(set(names)) != len(names):
            raise UsageError(f"{self.what} cannot hold two blobs of one name")

    def has(self, descriptor: Descriptor) -> bool:  # noqa: ARG002  # always written anew
        """Say that it is not there."""
        return False

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Write a blob, verified."""
        digest = usable(descriptor["digest"])
        reader = verified(opened(source), digest, descriptor["size"])
        fd = self._create(digest.encoded)
        try:
            while data := reader.read(CHUNK):
                try:
                    write_all(fd, data)
                except OSError as error:
                    raise FileError("write", f"{self._path}/{digest.encoded}", error.errno or EINVAL) from None
                moved(len(data))
        finally:
            os.close(fd)
            reader.close()

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Keep a manifest or index until it is known which one the directory's is."""
        self._documents[descriptor["digest"]] = data

    def put_name(self, descriptor: Descriptor, index: str) -> None:  # noqa: ARG002  # nobody could find it here
        """Say which manifest or index it is."""
        if self._root:
            raise Exists("image", self.what, hint="such a directory holds one image")
        self._root = descriptor["digest"]

    def put_referrer(self, descriptor: Descriptor, subject: str) -> None:
        """Refuse: there is no place for one."""
        raise UsageError(f"{self.what} cannot hold {descriptor['digest']}, which refers to {subject}")

    def finish(self) -> None:
        """Write the manifests, and put the directory in its place."""
        for digest, data in self._documents.items():
            name = _MANIFEST if digest == self._root else f"{usable(digest).encoded}.{_MANIFEST}"
            self._write(name, data)
        try:
            sync_directory(self._folder)
            if self._there:
                old = f"{self._folder}.old"
                os.rename(self._path, old)
                os.rename(self._folder, self._path)
                _remove(old)
            else:
                os.rename(self._folder, self._path)
        except OSError as error:
            raise FileError("write", self._path, error.errno or EINVAL) from None
        self._folder = ""

    def _write(self, name: str, data: bytes) -> None:
        fd = self._create(name)
        try:
            write_all(fd, data)
        except OSError as error:
            raise FileError("write", f"{self._path}/{name}", error.errno or EINVAL) from None
        finally:
            os.close(fd)

    def _create(self, name: str) -> int:
        try:
            return os.open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise FileError("write", f"{self._path}/{name}", error.errno or EINVAL) from None

    def abort(self) -> None:
        """Nothing here lasts."""

    def close(self) -> None:
        """Take away what was not finished."""
        if self._folder:
            _remove(self._folder)
            self._folder = ""


def _replaceable(path: str) -> bool:
    """Say whether a directory is there that may be replaced: an empty one, or an image's; raises Exists, FileError."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None
    if not names:
        return True
    try:
        with open(f"{path}/{_VERSION}", "rb") as file:
            start = file.read(len(_VERSION_START))
    except OSError:
        start = b""
    if start != _VERSION_START or any(os.path.isdir(f"{path}/{name}") for name in names):
        raise Exists("directory", path, hint="it is not empty and holds no image; name another one")
    return True


def _remove(folder: str) -> None:
    """Remove a flat directory of ours as far as possible."""
    try:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:
        pass  # another error is on its way

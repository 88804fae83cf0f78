"""Archives written: ``oci-archive:``, ``docker-archive:``, standard output, a docker daemon. One tar serves them all.

    oci-layout               image-layout.md
    blobs/, blobs/<algorithm>/
    blobs/<algorithm>/<hex>  in the order they are announced
    index.json               what the names mean
    manifest.json            the same for ``docker load`` (docker and podman read it; containerd the index)

That is what ``docker save`` writes since version 25. In a file the place of every blob is known beforehand, because
its size is, so that blobs arrive at the same time; a pipe takes one after the other. The same images give the same
bytes.
"""

from __future__ import annotations

import os
import stat
import threading
from errno import EINVAL, EPIPE

from knarr.base import fastjson
from knarr.base.errors import FileError, NotFound
from knarr.base.files import TEMPORARY, write_all
from knarr.content.digest import usable
from knarr.content.part import opened, verified
from knarr.content.verify import CHUNK
from knarr.image.platform import host_platform, platform_of, runs
from knarr.image.sink import JOBS, entry_of
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from knarr.content.part import Source
    from knarr.spec.image import Descriptor

    class Output(Protocol):
        """Where a stream goes."""

        def write(self, data: bytes, /) -> object: ...

        def finish(self) -> None: ...

        def close(self) -> None: ...


_BLOCK = 512
_END = bytes(2 * _BLOCK)


class ArchiveSink:
    """An archive at ``path``, or sent to ``output``. See ``sink.ImageSink``.

    ``tag`` is the ref.name and ``names`` the full names of the next image; both may be changed between images.
    ``docker``: for ``docker load``, which wants plain layers and knows one platform.
    """

    keeps = False
    formats: tuple[str, ...] = ("oci", "docker")

    def __init__(
        self,
        path: str,
        what: str,
        *,
        docker: bool = False,
        tag: str = "",
        names: Sequence[str] = (),
        output: Output | None = None,
    ) -> None:
        self.what = what
        self.indexes = not docker
        self.compression: str | None = "" if docker else None
        if docker:
            self.formats = ("oci",)
        self.tag = tag
        self.names = list(names)
        self._place: _Stream | _File = _Stream(output, what) if output is not None else _place_for(path, what)
        self.jobs = self._place.jobs
        self._here: set[str] = set()
        self._documents: dict[str, tuple[Descriptor, dict[str, Any]]] = {}
        self._entries: list[Descriptor] = []
        self._images: list[dict[str, Any]] = []
        self._folders: set[str] = set()
        self._put_file(mediatypes.LAYOUT_FILE, fastjson.dumps({"imageLayoutVersion": mediatypes.LAYOUT_VERSION}))

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Give every new blob its place."""
        for blob in blobs:
            if blob["digest"] not in self._here:
                self._make_folders(blob["digest"])
                self._place.reserve(_blob_name(blob["digest"]), blob["size"])

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether an image before this one had the blob."""
        return descriptor["digest"] in self._here

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Write a blob to its place, verified."""
        digest, size = usable(descriptor["digest"]), descriptor["size"]
        reader = verified(opened(source), digest, size)
        try:
            self._place.fill(_blob_name(digest), size, reader, moved)
        finally:
            reader.close()
        self._here.add(digest)

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Write a manifest or index, unless an image before this one had it."""
        if descriptor["digest"] not in self._here:
            self._make_folders(descriptor["digest"])
            self._put_file(_blob_name(descriptor["digest"]), data)
            self._here.add(descriptor["digest"])
        self._documents[descriptor["digest"]] = descriptor, fastjson.loads(data, descriptor["digest"])

    def put_name(self, descriptor: Descriptor, index: str) -> None:  # noqa: ARG002  # nobody could find it here
        """Note what the tag and the names mean."""
        annotations = {mediatypes.REF_NAME: self.tag} if self.tag else {}
        entries = [{**annotations, mediatypes.IMAGE_NAME: name} for name in self.names] or [annotations]
        for each in entries:
            entry = entry_of(descriptor, "")
            if each:
                entry["annotations"] = each
            self._entries.append(entry)
        image = self._for_docker(descriptor["digest"])
        if image is not None:
            self._images.append(image)

    def put_referrer(self, descriptor: Descriptor, subject: str) -> None:  # noqa: ARG002  # it says so itself
        """Note what refers to an image."""
        self._entries.append(entry_of(descriptor, ""))

    def _for_docker(self, digest: str) -> dict[str, Any] | None:
        """Return an image's entry in manifest.json; of an index that of this machine's platform, if there is one."""
        known = self._documents.get(digest)
        if known is None:
            return None
        descriptor, document = known
        if descriptor["mediaType"] in mediatypes.INDEXES:
            for entry in document["manifests"]:
                if "platform" in entry and runs(platform_of(entry["platform"]), host_platform()):
                    return self._for_docker(entry["digest"])
            return None
        if document["config"]["mediaType"] not in mediatypes.CONFIGS:
            return None
        from knarr.image.reference import parse_name

        tags = [parse_name(name).familiar for name in self.names if "@" not in name]
        return {
            "Config": _blob_name(document["config"]["digest"]),
            "RepoTags": tags or None,
            "Layers": [_blob_name(layer["digest"]) for layer in document["layers"]],
        }

    def _make_folders(self, digest: str) -> None:
        """Write entries for the directories of a blob: without them skopeo, as a user, fails to make root's."""
        for name in (f"{mediatypes.BLOBS_DIRECTORY}/", f"{_blob_name(digest).rpartition('/')[0]}/"):
            if name not in self._folders:
                self._folders.add(name)
                self._put_file(name, b"")

    def _put_file(self, name: str, data: bytes) -> None:
        import io

        self._place.reserve(name, len(data))
        self._place.fill(name, len(data), io.BytesIO(data), lambda _count: None)

    def finish(self) -> None:
        """Write what names everything, and let the archive appear."""
        index = {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": self._entries}
        self._put_file(mediatypes.INDEX_FILE, fastjson.dumps(index))
        if self._images:
            self._put_file("manifest.json", fastjson.dumps(self._images))
        self._place.finish()

    def abort(self) -> None:
        """Nothing here lasts."""

    def close(self) -> None:
        """Let go; an archive that was not finished vanishes."""
        self._place.close()


def _blob_name(digest: str) -> str:
    return f"{mediatypes.BLOBS_DIRECTORY}/{digest.replace(':', '/')}"


def _header(name: str, size: int) -> bytes:
    """Return the tar header of a file, or of a directory for a name that ends so (pax(1), ustar): no time, no owner.

    A long name has a PAX header before it. Sizes above 8 GiB are in base 256, which GNU began and everybody reads.
    """
    plain = name.encode()
    before = b""
    if len(plain) > 100:  # blobs/sha512/…
        record = b" path=" + plain + b"\n"
        length = len(record) + 3  # three digits, for these names
        data = b"%d" % length + record
        before = _block(b"PaxHeaders/name", len(data), b"x") + data + bytes(-len(data) % _BLOCK)
        plain = plain[-100:]
    if name.endswith("/"):
        return before + _block(plain, 0, b"5", b"0000755")
    return before + _block(plain, size, b"0")


def _block(name: bytes, size: int, kind: bytes, mode: bytes = b"0000644") -> bytes:
    number = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    start = name.ljust(100, b"\0") + mode + b"\0" + b"0000000\0" * 2 + number + b"%011o\0" % 0
    rest = kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    total = sum(start) + sum(rest) + 8 * ord(" ")  # the checksum's own field counts as blanks
    return start + b"%06o\0 " % total + rest


def _place_for(path: str, what: str) -> _Stream | _File:
    """Return where an archive goes: a new file that takes the path's place, or a pipe or device that is there."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return _File(path)
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None
    if stat.S_ISREG(facts.st_mode):
        return _File(path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None
    return _Stream(Pipe(fd, path), what)


class Pipe:
    """Standard output, a pipe or a device."""

    def __init__(self, fd: int, path: str, *, own: bool = True) -> None:
        self._fd = fd
        self._path = path
        self._own = own

    def write(self, data: bytes, /) -> None:
        """Write all of it; raises FileError."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            if error.errno == EPIPE:
                raise BrokenPipeError from None
            raise FileError("write", self._path, error.errno or EINVAL) from None

    def finish(self) -> None:
        """Everything is written as it comes."""

    def close(self) -> None:
        """Let it go."""
        if self._own and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class _Stream:
    """A tar sent piece by piece."""

    jobs = 1

    def __init__(self, output: Output, what: str) -> None:
        self._output = output
        self._what = what
        self._sizes: dict[str, int] = {}

    def reserve(self, name: str, size: int) -> None:
        self._sizes[name] = size

    def fill(self, name: str, size: int, stream: Any, moved: Callable[[int], None]) -> None:
        self._output.write(_header(name, size))
        while data := stream.read(CHUNK):
            self._output.write(data)
            moved(len(data))
        self._output.write(bytes(-size % _BLOCK))

    def finish(self) -> None:
        self._output.write(_END)
        self._output.finish()

    def close(self) -> None:
        self._output.close()


class _File:
    """A tar file whose members are written at the same time, each to its place; named when it is finished."""

    jobs = JOBS

    def __init__(self, path: str) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self._at = 0
        self._lock = threading.Lock()
        folder = os.path.dirname(path)
        self._temporary = f"{folder}{'/' if folder else ''}{TEMPORARY}{os.urandom(8).hex()}"
        try:
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise FileError("write", path, error.errno or EINVAL) from None

    def reserve(self, name: str, size: int) -> None:
        with self._lock:
            self._places[name] = self._at
            self._at += len(_header(name, size)) + size + -size % _BLOCK

    def fill(self, name: str, size: int, stream: Any, moved: Callable[[int], None]) -> None:
        place = self._places.get(name)
        if place is None:
            raise NotFound("place for", name)
        header = _header(name, size)
        self._write(header, place)
        place += len(header)
        while data := stream.read(CHUNK):
            self._write(data, place)
            place += len(data)
            moved(len(data))

    def _write(self, data: bytes, place: int) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._fd, view, place)
                view, place = view[count:], place + count
        except OSError as error:
            raise FileError("write", self._path, error.errno or EINVAL) from None

    def finish(self) -> None:
        try:
            # Padding and the end are zeros, which is what a file has where nothing was written.
            os.ftruncate(self._fd, self._at + len(_END))
            os.fsync(self._fd)
            os.rename(self._temporary, self._path)
        except OSError as error:
            raise FileError("write", self._path, error.errno or EINVAL) from None
        self._temporary = ""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            try:
                os.unlink(self._temporary)
            except OSError:
                pass  # the error that brought us here is the one worth telling
            self._temporary = ""

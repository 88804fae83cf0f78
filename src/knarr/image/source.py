"""Where images come from: one small protocol, and which source a reference names."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.image.reference import STDIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from knarr.content.verify import Readable
    from knarr.image.reference import Reference
    from knarr.spec.image import Descriptor

    class ImageSource(Protocol):
        """One named image somewhere, nothing of it believed yet.

        ``what`` is the text people know it by. ``roots`` says what the name means: usually one descriptor, of a
        manifest or an index; several when the source holds one name for several platforms. ``open_blob`` opens
        a blob, manifest or index; its reader verifies size and digest. ``names`` are the full names the image
        should get in a store when nobody says otherwise. ``abort``, from another
        thread, breaks off reads under way; ``close`` ends it when nobody reads any more.

        A source that can begin in the middle of a blob also has ``open_from(descriptor, offset)``, whose reader does
        not verify; one that gives parts of blobs without reading the rest has ``open_range(descriptor, start,
        size)``, whose reader does not verify either, or None; one that knows what refers to an image has
        ``referrers(digest)``.
        """

        what: str

        def roots(self) -> list[Descriptor]: ...

        def open_blob(self, descriptor: Descriptor) -> Readable: ...

        def names(self) -> list[str]: ...

        def abort(self) -> None: ...

        def close(self) -> None: ...


def open_source(ref: Reference, remote: Callable[[Reference], ImageSource] | None = None) -> ImageSource:
    """Open what a reference names; ``remote`` opens docker:// ones (the registry room's part, wired in by the engine).

    Raises NotFound when the file or directory does not exist, UsageError for transports that are no image's,
    FileError, FormatError, SpecError.
    """
    if ref.transport == "docker":
        if remote is None:
            raise UsageError(f"{ref} is an image of a registry, and no registry can be asked here")
        return remote(ref)
    if ref.transport in {"oci", "oci-archive"}:
        from knarr.image.layout import open_layout

        return open_layout(ref)
    if ref.transport == "docker-archive":
        from knarr.image.dockerarchive import DockerArchive

        return DockerArchive(ref)
    if ref.transport == STDIO:
        return _archive(ref)
    if ref.transport == "dir":
        from knarr.image.directory import DirectorySource

        return DirectorySource(ref)
    if ref.transport == "docker-daemon":
        from knarr.image.dockerdaemon import DaemonImage

        return DaemonImage(ref)
    raise UsageError(f"{ref} names no image that could be copied")


def _archive(ref: Reference) -> ImageSource:
    """Open the archive on standard input: a layout if it is one (docker save's newer ones are both)."""
    from knarr.image.dockerarchive import DockerArchive
    from knarr.image.files import ArchiveFiles
    from knarr.image.layout import Layout
    from knarr.spec import mediatypes

    files = ArchiveFiles(STDIO)
    if mediatypes.LAYOUT_FILE not in files:
        return DockerArchive(ref, files)
    try:
        return Layout(files, ref)
    except BaseException:
        files.close()
        raise

"""Where images come from: one small protocol, and which source a reference names."""

from __future__ import annotations

from knarr.base.errors import UsageError

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
    raise UsageError(f"{ref} names no image that could be copied")

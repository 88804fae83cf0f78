"""Several images in one archive: ``knarr image save`` and ``knarr image load``."""

from __future__ import annotations

from knarr.base.errors import NotFound, UsageError
from knarr.engine.copying import open_sink, open_source
from knarr.engine.paths import open_store
from knarr.engine.trust import check_source
from knarr.image.copy import copy_image
from knarr.image.reference import Reference
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from knarr.engine.paths import Places
    from knarr.image.archive import ArchiveSink
    from knarr.image.copy import Copied, Options
    from knarr.image.source import ImageSource
    from knarr.image.transfer import Progress

FORMATS = ("docker", "oci")


def save(
    where: Places, images: Sequence[str], path: str, format: str, options: Options, *, progress: Progress | None = None
) -> list[Copied]:
    """Write images of the store into an archive at ``path``, - for standard output.

    ``format`` is docker (layers plain, one platform each) or oci. Raises NotFound, UsageError, FileError.
    """
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not known", hint=f"there are {' and '.join(FORMATS)}")
    done = []
    with open_sink(where, Reference(f"{format}-archive", path)) as opened:
        sink: ArchiveSink = opened  # type: ignore[assignment]  # what these two references open
        for text in images:
            with open_source(where, Reference("store", text)) as source:
                sink.names = [name for name in source.names() if "@" not in name]
                done.append(copy_image(source, sink, options, progress=progress))
        sink.finish()
    return done


def load(
    where: Places, path: str, options: Options, *, progress: Progress | None = None
) -> list[tuple[list[str], Copied]]:
    """Copy all images of an archive at ``path``, - for standard input, into the store: (names, what was copied).

    Each image is whole before its names are written; those before a broken one stay. Raises NotFound, FormatError,
    SpecError, FileError.
    """
    from knarr.image.sink import StoreSink

    store = open_store(where)
    done = []
    for source in _images_in(path):
        try:
            check_source(source, Reference(source.what.partition(":")[0], path))
            names = source.names()
            sink = StoreSink(store, names)
            try:
                done.append((names, copy_image(source, sink, options, progress=progress, store=store)))
                sink.finish()
            finally:
                sink.close()
        finally:
            source.close()
    return done


def _images_in(path: str) -> Iterator[ImageSource]:
    """Yield a source for each image of an archive; each is to be closed before the next."""
    from knarr.image.dockerarchive import DockerArchive
    from knarr.image.files import ArchiveFiles
    from knarr.image.layout import Layout

    files = ArchiveFiles(path)
    try:
        if mediatypes.LAYOUT_FILE in files:
            ref = Reference("oci-archive", path)
            layout = Layout(files, ref)
            if not layout.digests():
                raise NotFound("an image in", files.where, among="nothing")
            for digest in layout.digests():
                yield Layout(files.again(), ref, digest)
            return
        ref = Reference("docker-archive", path)
        position, count = 0, 1
        while position < count:
            archive = DockerArchive(ref, files.again(), position)
            count = archive.count
            yield archive
            position += 1
    finally:
        files.close()

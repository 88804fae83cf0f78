"""Images into the store: verified, in parallel, never half.

The order makes it safe to be stopped anywhere: config and layers, then the manifest, then the name. Until the
name is written the store knows nothing of the image, and what has already come is found by the next try.
"""

from __future__ import annotations

from knarr.image.catalog import load
from knarr.image.copy import Options, copy_image
from knarr.image.sink import JOBS, StoreSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.content.store import Store
    from knarr.image.catalog import Image
    from knarr.image.platform import Platform
    from knarr.image.source import ImageSource
    from knarr.image.transfer import Progress


def copy(
    source: ImageSource,
    store: Store,
    names: Sequence[str],
    *,
    platform: Platform | None = None,
    progress: Progress | None = None,
    jobs: int = JOBS,
    sink_type: Callable[[Store, Sequence[str]], StoreSink] = StoreSink,
) -> Image:
    """Copy an image for ``platform`` (this machine's, if None) into ``store`` under full ``names``; return it.

    ``sink_type`` makes the sink, if it is to do more than keep the blobs. See ``copy.copy_image``. On any error no
    unfinished blob is left, but for what is worth going on with.
    """
    options = Options(platforms=(platform,) if platform is not None else (), jobs=jobs)
    sink = sink_type(store, names)
    try:
        copied = copy_image(source, sink, options, progress=progress, store=store)
        sink.finish()
        return load(store, sink.entry or copied.descriptor, names[0] if names else "")
    finally:
        sink.close()

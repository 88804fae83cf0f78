"""How far a pull is: bars on standard error if that is a terminal, else nothing, so that errors stand out."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from knarr.cli.output import clean, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from knarr.engine.images import Watcher
    from knarr.image.transfer import BlobProgress
    from knarr.layer.source import Layer


@contextmanager
def watching(*, quiet: bool = False) -> Iterator[Watcher | None]:
    """A watcher for ``engine.images``, ended with the block; nothing is shown until there is something to tell."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    watcher = _Bars()
    try:
        yield watcher
    finally:
        watcher.close()


class _Bars:
    """For people: one bar a layer, first while it is copied, then while it is unpacked."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[tuple[str, str], Any] = {}

    def _show(self) -> Any:
        if self._progress is None:
            # rich costs 60 ms and more to load: only for a terminal, and only when there is something to show.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=False,
            )
            self._progress.start()
        return self._progress

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(clean(text), markup=False, highlight=False)
        else:
            say(clean(text))

    def blob(self, blob: BlobProgress) -> None:
        if blob.kind != "layer" or blob.status == "waiting":
            return
        short = blob.digest.partition(":")[2][:12]
        key = ("copy", blob.digest)
        if key not in self._tasks:
            word = "have" if blob.status == "present" else "copy"
            self._tasks[key] = self._show().add_task(f"{word:<6} {short}", total=blob.size)
        self._show().update(self._tasks[key], completed=blob.done)

    def unpacked(self, layer: Layer, done: int) -> None:
        key = ("unpack", layer.diff_id)
        if key not in self._tasks:
            short = layer.what.rpartition(":")[2][:12]
            self._tasks[key] = self._show().add_task(f"unpack {short}", total=layer.size)
        self._show().update(self._tasks[key], completed=done)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

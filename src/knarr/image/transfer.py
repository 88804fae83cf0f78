"""Blobs from a source into a sink: several at once, progress told, all ended when one fails."""

from __future__ import annotations

from time import monotonic, sleep

from knarr.base.errors import Interrupted
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.content.part import Source
    from knarr.image.sink import ImageSink
    from knarr.image.source import ImageSource
    from knarr.spec.image import Descriptor

    Progress = Callable[["BlobProgress"], None]

_STARTING = 1.0  # seconds a thread may take to begin, when nobody knows whether it was started


class BlobProgress(Record):
    """How far one blob of an image is: ``done`` of ``size`` bytes, ``status`` waiting, copying, present or done.

    ``kind`` is config, layer or manifest. ``present`` was there before; the last word on each blob is present or
    done.
    """

    digest: str
    kind: str
    size: int
    done: int
    status: str


class Report:
    """Counts bytes per blob and passes them on, one call at a time; ends copies when ``stopped``."""

    def __init__(self, progress: Progress | None) -> None:
        import threading

        self.stopped = False
        self._progress = progress
        self._lock = threading.Lock()
        self._blobs: dict[str, BlobProgress] = {}

    def _say(self, digest: str, status: str, more: int = 0, done: int | None = None) -> None:
        with self._lock:
            before = self._blobs[digest]
            now = before.replace(done=before.done + more if done is None else done, status=status)
            self._blobs[digest] = now
            if self._progress is not None:
                self._progress(now)

    def start(self, descriptor: Descriptor, kind: str) -> None:
        """Announce a blob."""
        digest = descriptor["digest"]
        if digest not in self._blobs:
            self._blobs[digest] = BlobProgress(digest, kind, descriptor["size"], 0, "waiting")
            self._say(digest, "waiting")

    def ended(self, descriptor: Descriptor) -> bool:
        """Say whether the last word on a blob was said."""
        return self._blobs[descriptor["digest"]].status in {"present", "done"}

    def present(self, descriptor: Descriptor) -> None:
        """Tell that the blob was there before."""
        self._say(descriptor["digest"], "present", done=descriptor["size"])

    def mover(self, descriptor: Descriptor) -> Callable[[int], None]:
        """Return what a sink calls at each step."""
        digest, size = descriptor["digest"], descriptor["size"]

        def moved(count: int) -> None:
            if self.stopped:
                raise Interrupted(f"the copy of blob {digest} was stopped")
            # What is sent twice, after an exchange that broke, is not counted twice.
            self._say(digest, "copying", more=min(count, size - self._blobs[digest].done))

        return moved

    def check(self) -> None:
        """Raise Interrupted when copies are to end."""
        if self.stopped:
            raise Interrupted("the copy was stopped")

    def finish(self, descriptor: Descriptor) -> None:
        """Tell that the blob has arrived."""
        self._say(descriptor["digest"], "done", done=descriptor["size"])

    def bytes(self, status: str) -> int:
        """Return the bytes of all blobs whose last word is ``status``."""
        return sum(blob.size for blob in self._blobs.values() if blob.status == status)

    def count(self, status: str) -> int:
        """Return the number of blobs whose last word is ``status``."""
        return sum(blob.status == status for blob in self._blobs.values())


def transfer(
    blobs: Sequence[tuple[Descriptor, Source]], source: ImageSource, sink: ImageSink, report: Report, jobs: int
) -> None:
    """Bring blobs to a sink in at most ``jobs`` threads.

    The first error, Ctrl-C included, stops the others and is raised when all have ended.
    """

    def one(descriptor: Descriptor, data: Source) -> None:
        if report.ended(descriptor):
            return
        if sink.has(descriptor):
            report.present(descriptor)
            return
        sink.put_blob(descriptor, data, report.mover(descriptor))
        report.finish(descriptor)

    jobs = min(jobs, sink.jobs, len(blobs))
    if jobs < 2:
        for descriptor, data in blobs:
            report.check()
            one(descriptor, data)
        return
    import threading

    queue = list(reversed(blobs))  # pop() takes the first one
    errors: list[BaseException] = []
    ended = threading.Condition()
    running = jobs

    def stop() -> None:
        report.stopped = True
        source.abort()
        sink.abort()

    def work() -> None:
        nonlocal running
        try:
            while not report.stopped:
                with ended:
                    if not queue:
                        return
                    descriptor, data = queue.pop()
                one(descriptor, data)
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that waits
            with ended:
                errors.append(error)
            stop()
        finally:
            with ended:
                running -= 1
                ended.notify_all()

    threads = [threading.Thread(target=work, name=f"knarr-copy-{number}", daemon=True) for number in range(running)]
    begun: list[threading.Thread] = []
    try:
        for thread in threads:
            begun.append(thread)
            thread.start()
        with ended:
            while running:
                ended.wait()
    except BaseException:  # Ctrl-C: let every thread take its unfinished blob away first
        stop()
        for thread in begun:
            # Ctrl-C within start(): the last of them is about to run, or will not, and Thread does not know which.
            deadline = monotonic() + _STARTING
            while thread.ident is None and monotonic() < deadline:
                sleep(0.01)
            if thread.ident is not None:
                thread.join()
        raise
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    report.check()

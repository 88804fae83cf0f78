"""A stream read in a second thread, so that inflating and hashing overlap with what the caller does.

hashlib, ISA-L, libzstd and read(2) release the GIL; with two cores the extraction of a large gzip layer
takes 0.7 of the time (docs/content.md). For small streams the thread is not worth its start.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any

    from knarr.content.verify import Readable


class ReadAhead(io.RawIOBase):
    """Reads ``stream`` in a thread of its own, at most ``depth`` chunks of ``chunk`` bytes ahead.

    What ``stream.read`` raises is raised by ``read`` here, after the bytes that came before it. ``close``
    ends the thread (waiting for a ``stream.read`` under way) and closes ``stream``.
    """

    def __init__(self, stream: Readable, *, chunk: int = 1 << 18, depth: int = 4) -> None:
        import threading  # cold: 1 ms; only for streams large enough to want it

        super().__init__()
        self._stream = stream
        self._chunk = chunk
        self._depth = depth
        self._ready: list[bytes] = []
        self._error: BaseException | None = None
        self._ended = False
        self._stopped = False
        self._change = threading.Condition()
        self._held = memoryview(b"")
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="knarr-readahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                data = self._stream.read(self._chunk)
                if not data:
                    break
                with self._change:
                    while len(self._ready) >= self._depth and not self._stopped:
                        self._change.wait()
                    if self._stopped:
                        return
                    self._ready.append(data)
                    self._change.notify_all()
        except BaseException as caught:  # noqa: BLE001  # raised by read() in the other thread, whatever it is
            error = caught
        finally:
            with self._change:
                self._error = error
                self._ended = True
                self._change.notify_all()

    def readable(self) -> bool:
        """Say that it can be read (io.RawIOBase asks)."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, everything for -1; b"" at the end; raises what the stream raised."""
        if size is None or size < 0:
            return self.readall()
        if self.closed:
            raise ValueError("read of a closed reader")
        if size and not self._held:
            self._next()
        data, self._held = self._held[:size], self._held[size:]
        return data.tobytes()

    def readall(self) -> bytes:
        """Return everything that remains."""
        parts = []
        while part := self.read(self._chunk):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` without a copy in between; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        if self.closed:
            raise ValueError("read of a closed reader")
        if view and not self._held:
            self._next()
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _next(self) -> None:
        """Wait for a chunk and hold it; hold nothing at the end."""
        with self._change:
            while not self._ready and not self._ended:
                self._change.wait()
            if self._ready:
                self._held = memoryview(self._ready.pop(0))
                self._change.notify_all()
            elif self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the thread and close the stream."""
        if self.closed:
            return
        super().close()
        with self._change:
            self._stopped = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stream.close()

"""A stream read in a second thread, and bytes hashed in one, so that these overlap with what the caller does.

hashlib, ISA-L, libzstd and read(2) release the GIL; with two cores the extraction of a large gzip layer
takes half of the time (docs/content.md). For small streams the threads are not worth their start.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from queue import SimpleQueue
    from typing import Any

    from knarr.content.digest import Hasher
    from knarr.content.verify import Readable


class ReadAhead(io.RawIOBase):
    """Reads ``stream`` in a thread of its own, at most ``depth`` chunks of ``chunk`` bytes ahead.

    What ``stream.read`` raises is raised by ``read`` here, after the bytes that came before it. ``close``
    ends the thread (waiting for a ``stream.read`` under way) and closes ``stream``.
    """

    def __init__(self, stream: Readable, *, chunk: int = 1 << 18, depth: int = 4) -> None:
        import threading  # cold: 1 ms; only for streams large enough to want it
        from queue import SimpleQueue

        super().__init__()
        self._stream = stream
        self._chunk = chunk
        self._ready: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._free: SimpleQueue[bool] = SimpleQueue()  # a chunk may be read; False: no more
        for _ in range(depth):
            self._free.put(True)
        self._ended: bytes | BaseException | None = None
        self._held = memoryview(b"")
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="knarr-readahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while self._free.get():
                data = self._stream.read(self._chunk)
                self._ready.put(data)
                if not data:
                    break
        except BaseException as error:  # noqa: BLE001  # raised by read() in the other thread, whatever it is
            self._ready.put(error)

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
            data = self._next()
            if len(data) <= size:
                return data
            self._held = memoryview(data)
        part, self._held = self._held[:size], self._held[size:]
        return part.tobytes()

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
            self._held = memoryview(self._next())
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _next(self) -> bytes:
        """Wait for a chunk; b"" at the end."""
        got = self._ready.get() if self._ended is None else self._ended
        if isinstance(got, BaseException):
            self._ended = got
            raise got
        if got:
            self._free.put(True)
        else:
            self._ended = got
        return got

    def close(self) -> None:
        """End the thread and close the stream."""
        if self.closed:
            return
        super().close()
        while not self._free.empty():
            self._free.get()
        self._free.put(False)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stream.close()


class HashAside:
    """A hash object that is fed in a thread of its own, at most ``depth`` updates behind.

    Close it, or ask for the digest. A buffer that was handed over must not be changed afterwards.
    """

    def __init__(self, made: Hasher, *, depth: int = 4) -> None:
        import threading
        from queue import SimpleQueue

        self._made = made
        self._waiting: SimpleQueue[bytes | bytearray | memoryview | None] = SimpleQueue()
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._free.put(None)
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="knarr-hash", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (data := self._waiting.get()) is not None:
            self._made.update(data)
            self._free.put(None)

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash more; waits while much is waiting."""
        self._free.get()
        self._waiting.put(data)

    def hexdigest(self) -> str:
        """Return the digest of all; there can be no more after that."""
        self.close()
        return self._made.hexdigest()

    def close(self) -> None:
        """End the thread, when it has hashed what it was given."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

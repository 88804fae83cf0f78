"""A tar without its files' contents, as tar-split writes it: what zstd:chunked keeps beside its table of contents.

github.com/vbatts/tar-split, tar/storage: a line of JSON for each run of bytes between contents (``type`` 2, in base64)
and for each entry (``type`` 1, with the size and a CRC-64 of its content). containers-storage takes a layer in part
only if this is there, for it gives the tar back, and with it the diffID.
"""

from __future__ import annotations

import base64

from knarr.base import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ONES = (1 << 64) - 1
_PIECE = 1 << 16  # longer integers do not stay in the processor's cache: a third of the speed


class Crc64:
    """CRC-64 of ISO 3309, reflected, as Go's hash/crc64 has it; of any number of pieces.

    The polynomial is x^64 + x^4 + x^3 + x + 1, and squared it is x^128 + x^8 + x^6 + x^2 + 1, and so on: so the front
    half of any message can be folded into the rest by four shifts of a long integer, which Python does fast, and
    what is left is half as long.
    """

    def __init__(self) -> None:
        self._state = _ONES

    def update(self, data: bytes | memoryview) -> None:
        """Take more of the message."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._take(view[start : start + _PIECE])

    def _take(self, data: memoryview) -> None:
        bits = 8 * len(data)
        # The first bit of the message is the lowest: reflected. 64 zeros follow, for the division; the state goes
        # into the first 64 bits, which is what carries it on.
        value = int.from_bytes(data, "little") ^ self._state
        left = bits + 64
        while left > 64:
            step = 1 << (((left - 1) // 64).bit_length() - 1)  # a power of two, 64 steps of which fit
            cut = min(60 * step, left - 64 * step)
            front = value & ((1 << cut) - 1)
            value >>= cut
            for shift in (60, 61, 63, 64):
                value ^= front << (shift * step - cut)
            left -= cut
        self._state = value

    def digest(self) -> bytes:
        """The eight bytes of the sum, the highest first."""
        return (self._state ^ _ONES).to_bytes(8, "big")


class TarSplit:
    """Writes the lines, in order, to ``out``."""

    def __init__(self, out: Callable[[bytes], object]) -> None:
        self._out = out
        self._position = 0
        self.size = 0
        """Bytes of the lines so far."""

    def _line(self, fields: dict[str, object]) -> None:
        line = fastjson.dumps({**fields, "position": self._position}) + b"\n"
        self._position += 1
        self.size += len(line)
        self._out(line)

    def segment(self, data: bytes) -> None:
        """Bytes that are no content."""
        if data:
            self._line({"type": 2, "payload": base64.b64encode(data).decode()})

    def entry(self, name: str, size: int, crc: bytes) -> None:
        """An entry; its content has this size and sum (none if it is empty)."""
        fields: dict[str, object] = {"type": 1, "name": name}
        if size:
            fields["size"] = size
        self._line({**fields, "payload": base64.b64encode(crc).decode() if size else None})

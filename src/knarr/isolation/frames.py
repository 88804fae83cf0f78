"""The frames between the host and knarr-init in guest mode: a codec that never trusts the guest (pure).

A frame is ``u32 length, u32 kind, u32 id, u32 value`` (little-endian) and ``length`` bytes. The same table is in
``init/guest.h`` (a test compares them); docs/isolation.md says what each one means. The guest's kernel may be the
workload's by now, so whatever comes from it is bounded here, and given a meaning only by guest.py, which knows what
it asked for.
"""

from __future__ import annotations

from struct import Struct

from knarr.base.errors import SafetyViolation
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 1

# host to guest: requests, each answered by one REPLY
MOUNT, UNMOUNT, MKDIR, RMDIR, WRITE, READ, MODULE, DEVICES, LIST, NETLINK, LOOK, PIECE, ATTRIBUTE = range(1, 14)
# host to guest: processes
PLAN, SPAWN, SIGNAL, RESIZE, CONNECT, END = range(16, 22)
# both ways
CONTROL, DATA, CLOSE, WINDOW = range(32, 36)
# guest to host
HELLO, REPLY, CONTROL_END, EXIT, TOOK = range(64, 69)

PACKET_LIMIT = 8 + (128 << 10)
"""Most bytes of a frame from the host: a control packet with the longest state document."""
DATA_LIMIT = 16 << 10
REPLY_LIMIT = 64 << 10
WINDOW_BYTES = 64 << 10
"""What either side may send of a stream before the other has said that it took some."""
PLAN_LIMIT = 16 << 20
SECTOR = 512
RING_PIECE = 32 << 10
"""Most bytes that are put into a ring at one time; each piece begins at a whole sector."""
RING_BYTES = 128 << 10
"""Size of a ring: of pieces of any length so many are under way that their numbers find room in a terminal's buffer."""

SLOT_CONSOLE, SLOT_DIRECTORY, SLOT_PIDFD, SLOT_START = range(1, 5)
SPAWN_TERMINAL, SPAWN_STDIN = 1, 2
WRITE_NEW, WRITE_MORE = 1, 2
STDIN, STDOUT, STDERR = range(3)

_HEAD = Struct("<IIII")
_LONGEST = {
    HELLO: 4 << 10,
    REPLY: REPLY_LIMIT,
    CONTROL: 16 + 8 + 4096 + 1024,
    CONTROL_END: 0,
    EXIT: 0,
    DATA: DATA_LIMIT,
    CLOSE: 0,
    WINDOW: 0,
    TOOK: 0,
}


class Frame(Record):
    """One frame; ``kind`` is one of this module's names."""

    kind: int
    id: int
    value: int
    payload: bytes


def encode(kind: int, id: int = 0, value: int = 0, payload: bytes = b"") -> bytes:
    """A frame for the guest. Raises ValueError for a payload beyond PACKET_LIMIT."""
    if len(payload) > PACKET_LIMIT:
        raise ValueError(f"a frame of {len(payload)} bytes")
    return _HEAD.pack(len(payload), kind, id, value) + payload


def texts(*words: str) -> bytes:
    """Words as the guest reads them, each with its NUL. Raises ValueError for a word with a NUL."""
    if any("\0" in word for word in words):
        raise ValueError("a text with a NUL byte")
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> tuple[int, int, bytes]:
    """A request to mount (mount(2))."""
    return MOUNT, 0, flags.to_bytes(8, "little") + texts(source, target, fstype, data)


def mkdir(path: str, mode: int = 0o755) -> tuple[int, int, bytes]:
    """A request to make a directory."""
    return MKDIR, mode, texts(path)


def write(path: str, value: str, how: int = 0) -> tuple[int, int, bytes]:
    """A request to write a file."""
    return WRITE, how, texts(path) + value.encode("utf-8", "surrogateescape")


def slot(kind: int, number: int = 0, path: str = "") -> bytes:
    """How the guest fills a slot of a plan, for SPAWN."""
    text = texts(path)
    return _HEAD.pack(kind, number, len(text), 0)[:12] + text


class Decoder:
    """Cuts what the guest sends into frames; keeps less than one frame of it."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The whole frames there are now. Raises SafetyViolation for a kind or a length that no guest of ours sends."""
        kept = self._kept + data
        at = 0
        try:
            while len(kept) - at >= _HEAD.size:
                length, kind, id, value = _HEAD.unpack_from(kept, at)
                longest = _LONGEST.get(kind)
                if longest is None or length > longest:
                    why = f"{length} bytes" if longest is not None else "there is no such kind"
                    raise SafetyViolation("a frame of the guest, of kind", str(kind), why)
                end = at + _HEAD.size + length
                if len(kept) < end:
                    break
                at, begin = end, at + _HEAD.size
                yield Frame(kind, id, value, kept[begin:end])
        finally:
            self._kept = kept[at:]

"""A container in a guest, asked through its monitor: what the host's kernel cannot tell or do (hot).

``knarr.isolation`` boots guests; here is only the other end of the monitor's socket, so that the verbs work on every
container. One question, one answer, both JSON, on a SOCK_SEQPACKET socket in the container's directory.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from errno import EAGAIN, EINTR
from select import POLLIN

from knarr.base import fastjson
from knarr.base.errors import InitError, KnarrError, Unsupported, WrongStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "guest"
"""The monitor's socket in the container's directory."""
PAUSED = "paused"
"""A file in that directory while the container is paused; made and removed by the monitor."""
OUT_OF_MEMORY = "out of memory"
"""How the reason begins when the guest's kernel killed processes of the container for want of memory."""
PATIENCE = 10.0
"""Seconds the monitor may take: the guest may be busy, and nobody waits for ever for what is not to be trusted."""
FAILED = 0xFFFFFFFE
"""Number of the operation in an ERROR that is the monitor's own; its detail is JSON: pointer, doing, why, hint."""
_LIMIT = 1 << 20
_MOST_KILLS = 1000


def told(index: int, number: int, detail: bytes) -> KnarrError | None:
    """What an ERROR of the monitor's own says; None for one of the init's."""
    if index != FAILED:
        return None
    facts = fastjson.loads(detail, "the monitor's error", limit=1 << 16)
    return InitError(facts["pointer"], facts["doing"] or "boot the guest", number, why=facts["why"], hint=facts["hint"])


def refuse(isolation: Any, operation: str) -> None:
    """Raise Unsupported if the container is in a guest, where this cannot be done."""
    if isolation is not None:
        raise Unsupported(f"{operation} of a container with isolation {isolation['kind']}", "it is in a guest")


def connect(fd: int, id: str) -> socket:
    """A connection to the monitor of the container whose directory is ``fd``. Raises WrongStatus when it is gone."""
    sock = socket(AF_UNIX, SOCK_SEQPACKET, 0)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{SOCKET}")
    except OSError:
        sock.close()
        raise WrongStatus(id, "reach", "stopped") from None
    return sock


def ask(fd: int, id: str, do: str, *, patience: float = PATIENCE, **more: Any) -> dict[str, Any]:
    """Have the monitor do something; its answer, within ``patience`` seconds.

    Raises WrongStatus, KnarrError with what it says of a failure.
    """
    sock = connect(fd, id)
    try:
        sock.settimeout(patience)
        sock.send(fastjson.dumps({"do": do, **more}))
        data = sock.recv(_LIMIT)
    except OSError as error:
        raise KnarrError(
            f"the monitor of container {id} does not answer: {error.strerror or 'it takes too long'}"
        ) from None
    finally:
        sock.close()
    if not data:
        raise WrongStatus(id, do, "stopped")
    answer: dict[str, Any] = fastjson.loads(data, f"the answer of the monitor of container {id}", limit=_LIMIT)
    if "error" in answer:
        raise KnarrError(f"cannot {do} container {id}: {answer['error']}")
    return answer


def end(fd: int, id: str) -> bool:
    """Have the monitor kill the container and end as after any other end; False when it does not answer at once."""
    try:
        ask(fd, id, "end", patience=1.0)
    except KnarrError:
        return False
    return True


class GuestOomWatch:
    """As ``oom.OomWatch`` of a container in a guest: its monitor says when processes were killed for want of memory."""

    __slots__ = ("_sock", "over")

    def __init__(self, fd: int, id: str) -> None:
        """Begin to watch the container whose directory is ``fd``. Raises WrongStatus when its monitor is gone."""
        self._sock = connect(fd, id)
        self._sock.setblocking(False)
        self._sock.send(fastjson.dumps({"do": "watch"}))
        self.over = False

    @property
    def fds(self) -> list[tuple[int, int]]:
        """What to poll."""
        return [(self._sock.fileno(), POLLIN)]

    def look(self) -> int:
        """How many processes were killed since the last look. Sets ``over`` when the container is."""
        try:
            data = self._sock.recv(_LIMIT)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return 0
            data = b""
        if not data:
            self.over = True
            return 0
        # It counts what a guest says: not more than there can be of processes.
        return min(int(fastjson.loads(data, "the monitor's word", limit=_LIMIT).get("oom", 0)), _MOST_KILLS)

    def close(self) -> None:
        """Let go of the monitor."""
        self._sock.close()

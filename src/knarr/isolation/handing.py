"""A container is handed to a monitor that waited with its guest: the other end of waiting.py (cold)."""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from struct import pack

from knarr.base.errors import InitError
from knarr.isolation.template import HANDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.template import Taken
    from knarr.runtime.create import Stdio


def hand_over(
    taken: Taken, slots: dict[str, int], stdio: Stdio, process: dict[str, Any], made: list[int]
) -> dict[str, int]:
    """Give the monitor its container; the slots of the plan of what stands before it, which are added to ``made``.

    Raises InitError.
    """
    streams = [stdio.stdin, stdio.stdout, stdio.stderr]
    given: dict[str, int] = {}
    if stdio.console >= 0:
        from knarr.isolation.monitor import make_terminal  # only for a terminal

        size = process.get("consoleSize") or {}
        given["terminal"] = make_terminal(stdio.console, [size.get("height", 0), size.get("width", 0)])
        made.append(given["terminal"])
        streams = [given["terminal"]] * 3
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
    given["stand"] = theirs.detach()
    given["space"] = taken.space  # a slot where the container enters it
    made.append(given["stand"])
    all_slots = {**slots, "stand": ours.fileno(), **dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))}
    _send(taken, b"container", [all_slots[name] for name in HANDED if name in all_slots])
    ours.close()
    return given


def tell_who_stands(taken: Taken, pidfd: int) -> None:
    """The process that stands for the container is there. Raises InitError."""
    _send(taken, b"stands", [pidfd])


def _send(taken: Taken, word: bytes, handed: list[int]) -> None:
    try:
        taken.connection.sendmsg([word], [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(handed)}i", *handed))])
    except OSError as error:
        raise InitError("", "take a guest that waits", 0, why=posix.strerror(error.errno or 0).lower()) from None

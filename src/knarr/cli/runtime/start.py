"""``knarr-runtime start`` (hot)."""

from __future__ import annotations

import posix

from knarr.base.paths import variable
from knarr.runtime.start import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Run the program of a created container."""
    address = variable("NOTIFY_SOCKET")  # without it bin/verbs.c may have begun
    if address:
        _start_and_notify(context.root, operands[0], address)
    else:
        start(context.root, operands[0], context.told)
    return 0


def _start_and_notify(root: str, id: str, address: str) -> None:
    """Start as a service of systemd's: stay until the container tells that it is ready, or has ended."""
    from knarr.kernel.process import open_pid
    from knarr.runtime import notify, record

    fd = record.open_container(root, id)
    try:
        state = record.load(fd, id)
        pidfd = open_pid(state.pid, state.starttime) if state.pid else None
        waiting = notify.listen(fd, address, state.pid) if record.startable(fd) else None
    finally:
        posix.close(fd)
    try:
        start(root, id)
        if waiting is not None and pidfd is not None:
            waiting.wait(pidfd)
    finally:
        if waiting is not None:
            waiting.close()
        if pidfd is not None:
            posix.close(pidfd)

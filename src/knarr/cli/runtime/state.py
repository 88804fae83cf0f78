"""``knarr-runtime state`` (hot)."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.runtime import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Print the state document, with the fields runc adds to it."""
    fd = record.open_container(context.root, operands[0])
    root_fd = record.open_root(context.root)
    state = record.load(fd, operands[0])
    shown = record.shown(state, record.status(fd, state, root_fd), "")
    if shown["status"] == "stopped" and state.isolation is not None and (reason := record.reason(fd)):
        shown["reason"] = reason
    posix.write(1, fastjson.dumps(shown, indent=True) + b"\n")
    return 0

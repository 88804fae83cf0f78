"""``knarr-runtime resume`` (hot)."""

from __future__ import annotations

from knarr.runtime.pause import resume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Let the processes of a paused container go on."""
    resume(context.root, operands[0])
    return 0

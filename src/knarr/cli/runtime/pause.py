"""``knarr-runtime pause`` (hot)."""

from __future__ import annotations

from knarr.runtime.pause import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Stop all processes of a container where they are."""
    pause(context.root, operands[0])
    return 0

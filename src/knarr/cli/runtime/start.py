"""``knarr-runtime start`` (hot)."""

from __future__ import annotations

from knarr.runtime.start import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Run the program of a created container."""
    start(context.root, operands[0])
    return 0

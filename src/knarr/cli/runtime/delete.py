"""``knarr-runtime delete`` (hot)."""

from __future__ import annotations

from knarr.runtime.delete import delete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Remove a container; with --force kill it first, and finish what a killed command left of it."""
    for warning in delete(context.root, operands[0], force=bool(options.get("force"))):
        context.log.warning(warning)
    return 0

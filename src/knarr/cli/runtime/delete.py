"""``knarr-runtime delete`` (hot)."""

from __future__ import annotations

from knarr.runtime.delete import delete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Remove a container; with --force kill it first, and finish what a killed command left of it."""
    force = bool(options.get("force"))

    def one(id: str) -> None:
        for warning in delete(context.root, id, force=force):
            context.log.warning(warning)

    if options.get("regex"):
        from knarr.cli.runtime.matching import each_matching  # cold: for people

        each_matching(context.root, operands[0], one)
    else:
        one(operands[0])
    return 0

"""``knarr-runtime kill`` (hot)."""

from __future__ import annotations

import _signal

from knarr.base.errors import UsageError
from knarr.runtime.kill import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context

HIGHEST = 64


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Signal a container's first process, SIGTERM unless told otherwise."""
    number = signal_number(operands[1] if len(operands) > 1 else "TERM")
    all = bool(options.get("all"))
    if options.get("regex"):
        from knarr.cli.runtime.matching import each_matching  # cold: for people

        each_matching(context.root, operands[0], lambda each: kill(context.root, each, number, all=all))
    else:
        kill(context.root, operands[0], number, all=all)
    return 0


def signal_number(text: str) -> int:
    """``15``, ``TERM``, ``SIGTERM``, ``sigterm``, ``RTMIN+3`` -> number. Raises UsageError."""
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= HIGHEST:
        return int(text)
    name = text.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = getattr(_signal, f"SIG{base}", None) if base.isalnum() else None
    if type(number) is int and number > 0 and base not in ("_BLOCK", "_DFL"):
        if not sign:
            return number
        if base in ("RTMIN", "RTMAX") and offset.isascii() and offset.isdigit() and len(offset) < 3:
            moved = number + int(offset) if sign == "+" else number - int(offset)
            if _signal.SIGRTMIN <= moved <= _signal.SIGRTMAX:
                return moved
    raise UsageError(f"unknown signal {text!r}")

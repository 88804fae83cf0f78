"""``knarr-runtime features`` (hot). runtime-spec features.md: what this version does, not what it knows of."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.runtime.features import features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(_options: dict[str, Any], _operands: list[str], _context: Context) -> int:
    """Print the features document."""
    posix.write(1, fastjson.dumps(features(), indent=True) + b"\n")
    return 0

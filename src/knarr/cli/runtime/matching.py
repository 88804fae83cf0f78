"""A verb for every container whose id matches a regular expression: ``--regex`` of kill and delete (cold)."""

from __future__ import annotations

import os
import re

from knarr.base.errors import FileError, KnarrError, UsageError
from knarr.runtime import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def each_matching(state_root: str, pattern: str, act: Callable[[str], None]) -> None:
    """Call ``act`` with each id that ``pattern`` is found in, also after one failed; the first error is raised then."""
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
    first: KnarrError | None = None
    for id in _ids(state_root):
        if found(id) is None:
            continue
        try:
            act(id)
        except KnarrError as error:
            if first is None:
                first = error
            else:
                first.add_note(str(error))
    if first is not None:
        raise first


def _ids(state_root: str) -> list[str]:
    try:
        fd = record.open_root(state_root)
    except FileError:
        return []  # nothing was ever created there
    try:
        return sorted(name for name in os.listdir(fd) if not name.startswith("."))
    finally:
        os.close(fd)

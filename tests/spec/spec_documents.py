"""Helpers of the spec tests: own documents, and changing one at a JSON pointer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

DOCUMENTS = Path(__file__).parent / "documents"
GONE = object()
"""As a value for ``changed``: remove the member."""


def read(name: str) -> Any:
    return json.loads((DOCUMENTS / name).read_bytes())


def parts_of(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def changed(document: Any, changes: dict[str, Any]) -> Any:
    """A copy of ``document`` with these values at these pointers; objects on the way are made, "-" appends."""
    made = copy.deepcopy(document)
    for pointer, value in changes.items():
        parts = parts_of(pointer)
        if not parts:
            made = copy.deepcopy(value)
            continue
        node = made
        for part in parts[:-1]:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        last = parts[-1]
        if isinstance(node, list):
            if last == "-":
                node.append(copy.deepcopy(value))
            elif value is GONE:
                del node[int(last)]
            else:
                node[int(last)] = copy.deepcopy(value)
        elif value is GONE:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return made

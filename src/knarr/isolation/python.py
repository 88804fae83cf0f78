"""How a process of knarr's own is started: this very Python, isolated from its user's settings (hot)."""

from __future__ import annotations

import sys


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that calls ``main`` of a module of this room; ``arguments`` are Python's words for values."""
    place = __file__.removesuffix("/knarr/isolation/python.py")
    call = f"from knarr.isolation.{module} import main; main({', '.join(arguments)})"
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", f"import sys; sys.path.append({place!r}); {call}"]

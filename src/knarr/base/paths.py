"""What hot modules need of ``os`` and ``os.path`` besides the system calls, which ``posix`` has (hot).

``os`` takes 0.7 ms to load, most of it the abstract classes behind ``os.environ``: a seventh of the interpreter's own
start. These do what their namesakes do.
"""

from __future__ import annotations

import posix
import sys
from stat import S_ISDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from typing import Any


def variable(name: str) -> str:
    """An environment variable, "" without it. Of ``os.environ`` where that is loaded: a program may have changed it."""
    if "os" in sys.modules:
        return str(sys.modules["os"].environ.get(name, ""))
    environment: Any = posix.environ  # bytes here, whatever typeshed says
    return fsdecode(environment.get(fsencode(name), b""))


def fsencode(path: str | bytes | PathLike[str]) -> bytes:
    """A file name as the kernel has it."""
    text = posix.fspath(path)
    return text.encode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(text, str) else text


def fsdecode(path: str | bytes | PathLike[str]) -> str:
    """A file name as Python has it."""
    text = posix.fspath(path)
    return text.decode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(text, bytes) else text


def exists(path: str) -> bool:
    """Whether something is there, links followed."""
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def lexists(path: str) -> bool:
    """Whether something is there, be it a link that leads nowhere."""
    try:
        posix.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def isdir(path: str) -> bool:
    """Whether it is a directory, links followed."""
    try:
        return S_ISDIR(posix.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def dirname(path: str) -> str:
    """What stands before the last slash, without slashes at its end."""
    head = path[: path.rfind("/") + 1]
    return head.rstrip("/") or head


def abspath(path: str) -> str:
    """The path from the root on, without ``.``, ``..`` and doubled slashes; links are not looked at."""
    if not path.startswith("/"):
        path = f"{posix.getcwd()}/{path}"
    # Two slashes in front, and not three, mean something of their own in POSIX.
    top = "//" if path.startswith("//") and not path.startswith("///") else "/"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return top + "/".join(parts)

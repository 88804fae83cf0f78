"""What only one container may have: a name in a directory that several stores share, as a link to whoever has it.

A name is taken by making a symbolic link ``REGISTRY/NAME`` -> the container's directory, so of several takers exactly
one has it, whatever store each works in. It belongs to the container for as long as that directory exists: what a kill
leaves behind is taken over by the next who comes upon it.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, EROFS

from knarr.base.errors import FileError
from knarr.base.files import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def take(registries: Sequence[str], name: str, folder: str) -> bool:
    """Take ``name`` for the container in ``folder``; False if another one has it. Raises FileError.

    The first of the ``registries`` counts; the next one where that lies on a file system which cannot be written.
    """
    path = f"{registries[0]}/{name}"
    for _ in range(3):
        try:
            os.symlink(folder, path)
            return True
        except FileNotFoundError:
            path = f"{_made(registries)}/{name}"
        except OSError as error:
            if error.errno == EROFS and path.startswith(registries[0]):
                path = f"{_made(registries[1:])}/{name}"
                continue
            if error.errno != EEXIST:
                raise FileError("take", path, error.errno or EINVAL) from None
            if os.path.isdir(_holder(path)):
                return False
            _free(path, "")
    return False


def release(registries: Sequence[str], name: str, folder: str) -> None:
    """Give a name back, before the container's directory goes; fine if it has it no more. Raises FileError."""
    for path in (f"{registry}/{name}" for registry in registries):
        if _holder(path) == folder:
            try:
                _free(path, folder)
            except OSError as error:
                raise FileError("give back", path, error.errno or EINVAL) from None


def _made(registries: Sequence[str]) -> str:
    """The first of these directories that is there or can be made."""
    for path in registries:
        try:
            os.makedirs(path, 0o700, exist_ok=True)
        except OSError as error:
            if path == registries[-1] or error.errno != EROFS:
                raise FileError("make", path, error.errno or EINVAL) from None
        else:
            return path
    return ""


def _holder(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _free(path: str, folder: str) -> None:
    """Remove a link if it is that container's, or ("") that of one which is gone."""
    # Or, of two who see it, the slower one would free what somebody has just taken.
    with Lock(os.path.dirname(path)):
        holder = _holder(path)
        if holder and (holder == folder if folder else not os.path.isdir(holder)):
            os.unlink(path)

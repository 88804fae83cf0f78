"""Names in a layer: split, checked, and what a whiteout name means; pure. image-spec layer.md, "Whiteouts".

``.wh.NAME`` hides NAME of the layers below, ``.wh..wh..opq`` hides all that the layers below have in its
directory, whatever comes before or after it in the same layer. Other names that begin with ``.wh..wh.`` are
AUFS's own book-keeping, which early Docker layers carry; they are skipped.
"""

from __future__ import annotations

PREFIX = b".wh."
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"

COMPONENT_LIMIT = 255
DEPTH_LIMIT = 1000


class BadName(ValueError):
    """A name that no entry may have; the text says why."""


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return (parent, base) of an entry's name, relative to the root; the root itself is (b"", b"").

    Leading and trailing slashes and ``.`` count for nothing. The parent's components are not checked here
    (``components`` does). Raises BadName for an empty name, ``..`` or a base that is too long.
    """
    if not name:
        raise BadName("its name is empty")
    if name[-1] == 47:
        name = name.rstrip(b"/")
    parent, _slash, base = name.rpartition(b"/")
    if base == b"." or not base:
        parts = components(name)
        if not parts:
            return b"", b""
        base = parts.pop()
        parent = b"/".join(parts)
    if base == b"..":
        raise BadName("its name goes up with '..'")
    if len(base) > COMPONENT_LIMIT:
        raise BadName(f"a component of its name has {len(base)} bytes, at most {COMPONENT_LIMIT} are possible")
    return parent, base


def components(path: bytes) -> list[bytes]:
    """The components of a path without ``.`` and empty ones; raises BadName for ``..`` and overlong ones."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if len(parts) > DEPTH_LIMIT:
        raise BadName(f"it is {len(parts)} directories deep, at most {DEPTH_LIMIT} are allowed")
    for part in parts:
        if part == b"..":
            raise BadName("its name goes up with '..'")
        if len(part) > COMPONENT_LIMIT:
            raise BadName(f"a component of its name has {len(part)} bytes, at most {COMPONENT_LIMIT} are possible")
    return parts


def inside_meta(parts: list[bytes]) -> bool:
    """Whether a parent path lies in AUFS's book-keeping; raises BadName if it has another whiteout as directory."""
    for part in parts:
        if part.startswith(META):
            return True
        if part.startswith(PREFIX):
            raise BadName("a whiteout cannot be a directory")
    return False


def hidden_name(base: bytes) -> bytes:
    """The name that a whiteout hides; b"" for one to be skipped. Raises BadName when it hides nothing nameable.

    ``base`` starts with ``.wh.`` and is not the opaque whiteout.
    """
    if base.startswith(META):
        return b""
    hidden = base[len(PREFIX) :]
    if not hidden:
        raise BadName("a whiteout without a name")
    if hidden in (b".", b".."):
        raise BadName(f"a whiteout of {hidden.decode()!r}")
    return hidden

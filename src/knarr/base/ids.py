"""Container ids and other names that become file names (hot)."""

from __future__ import annotations

import posix

from knarr.base.errors import InvalidId

LONGEST = 128
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("_.+-")


def check_id(text: str, kind: str = "container id") -> str:
    """Return ``text`` if it may serve as a file name: ``[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}``.

    ``kind`` names the thing in the error. Raises InvalidId with the rule that is broken.
    """
    if not text:
        raise InvalidId(kind, text, "it is empty")
    if len(text) > LONGEST:
        raise InvalidId(kind, f"{text[:40]}…", f"it has {len(text)} characters, at most {LONGEST} are allowed")
    if not _REST.issuperset(text):
        odd = next(char for char in text if char not in _REST)
        raise InvalidId(kind, text, f"{odd!r} is not allowed, only letters, digits and _ . + - are")
    if text[0] not in _FIRST:  # so neither "." nor "..", nor anything that looks like an option
        raise InvalidId(kind, text, "it must start with a letter or a digit")
    return text


def new_id() -> str:
    """Return a fresh random id: 64 hexadecimal digits (256 bits)."""
    return posix.urandom(32).hex()

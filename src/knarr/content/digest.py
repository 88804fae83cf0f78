"""Digests: the grammar of image-spec descriptor.md (Digests), and the algorithms knarr can check.

A well-formed digest of an unknown algorithm may be carried in a document (descriptor.md: implementations
SHOULD NOT fail on it), but bytes are only ever read under sha256 and sha512. Nothing else may become a
file name or a part of a URL (docs/security.md I11), so a Digest exists only checked.
"""

from __future__ import annotations

from knarr.base.errors import InvalidDigest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, Self

    class Hasher(Protocol):
        """What hashlib's objects offer."""

        def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

        def hexdigest(self) -> str: ...

        def copy(self) -> Self: ...


# algorithm -> length of the hexadecimal text
USABLE = {"sha256": 64, "sha512": 128}

_LONGEST = 255  # it becomes a file name
_COMPONENT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_SEPARATORS = frozenset("+._-")
_ENCODED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789=_-")
_HEX = frozenset("0123456789abcdef")


class Digest(str):
    """A checked digest, ``algorithm:encoded``; made by ``parse`` only."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return ``text`` as a Digest; raises InvalidDigest with the rule it breaks."""
        why = _fault(text)
        if why:
            raise InvalidDigest(text, why)
        return cls(text)

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]

    @property
    def usable(self) -> bool:
        """Whether bytes can be checked against it."""
        return self.algorithm in USABLE


def _fault(text: str) -> str:
    if len(text) > _LONGEST:
        return f"it has {len(text)} characters, at most {_LONGEST} make sense"
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        return "it has no colon between algorithm and value"
    if not algorithm:
        return "it names no algorithm"
    before = "+"
    for character in algorithm:
        if character in _SEPARATORS:
            if before in _SEPARATORS:
                return f"{character!r} in the algorithm does not follow a letter or digit"
        elif character not in _COMPONENT:
            return f"{character!r} cannot be part of an algorithm's name"
        before = character
    if before in _SEPARATORS:
        return f"the algorithm's name ends with {before!r}"
    if not encoded:
        return "it has no value after the colon"
    for character in encoded:
        if character not in _ENCODED:
            return f"{character!r} cannot be part of a digest's value"
    length = USABLE.get(algorithm)
    if length is not None:
        if len(encoded) != length:
            return f"{algorithm} needs {length} hexadecimal digits, it has {len(encoded)}"
        if not _HEX.issuperset(encoded):
            return f"{algorithm} is written in lower-case hexadecimal digits"
    return ""


def usable(text: str) -> Digest:
    """Return ``text`` as a Digest that bytes can be checked against; raises InvalidDigest."""
    digest = Digest.parse(text)
    if digest.algorithm not in USABLE:
        raise InvalidDigest(text, f"{digest.algorithm} is not an algorithm knarr can check, only sha256 and sha512 are")
    return digest


def hasher(algorithm: str) -> Hasher:
    """Return a fresh hash object; raises InvalidDigest for an algorithm that cannot be checked."""
    if algorithm not in USABLE:
        raise InvalidDigest(f"{algorithm}:", "only sha256 and sha512 can be checked")
    import hashlib  # cold: 1 ms; only when bytes are really read

    return hashlib.new(algorithm, usedforsecurity=False)


def sha256_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the sha256 digest of ``data``."""
    made = hasher("sha256")
    made.update(data)
    return Digest("sha256:" + made.hexdigest())

"""Checks of a document's shape, built from small functions: types, ranges, words, required members (hot).

A check takes a value and returns None when it is fine, else a list of ``(pointer below the value, why)``.
Nothing is built for a value that is fine, pointers least of all: that keeps the check of a config.json with a
seccomp profile of 400 names below half a millisecond. Members a check does not know are left alone
(config.md, Extensibility).
"""

from __future__ import annotations

from knarr.base.errors import SpecFinding
from knarr.base.fastjson import pointer_token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Fault = list[tuple[str, str]] | None
    Check = Callable[[Any], Fault]

_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    type(None): "null",
}


def _wrong(want: str, value: object) -> Fault:
    return [("", f"must be {want}, not {_KINDS.get(type(value), 'something JSON does not have')}")]


def text(value: Any) -> Fault:
    """A string without U+0000, which no system call could take whole."""
    if type(value) is not str:
        return _wrong("a string", value)
    return [("", "must not hold U+0000")] if "\0" in value else None


def flag(value: Any) -> Fault:
    """A boolean."""
    return None if value is True or value is False else _wrong("a boolean", value)


def anything(value: Any) -> Fault:
    """An object whose members are nobody's business."""
    return None if type(value) is dict else _wrong("an object", value)


def integer(low: int, high: int) -> Check:
    """An integer from ``low`` to ``high``; a boolean and 1.0 are none."""

    def check(value: Any) -> Fault:
        if type(value) is not int:
            return _wrong("an integer", value)
        return None if low <= value <= high else [("", f"is {value}, must be from {low} to {high}")]

    return check


int32 = integer(-(1 << 31), (1 << 31) - 1)
int64 = integer(-(1 << 63), (1 << 63) - 1)
uint16 = integer(0, (1 << 16) - 1)
uint32 = integer(0, (1 << 32) - 1)
uint64 = integer(0, (1 << 64) - 1)


def one_of(words: Iterable[str]) -> Check:
    """One of some words."""
    known = tuple(words)
    quick = frozenset(known)

    def check(value: Any) -> Fault:
        if type(value) is not str:
            return _wrong("a string", value)
        return None if value in quick else [("", f"is {shown(value)}, must be one of {', '.join(known)}")]

    return check


def shown(value: str) -> str:
    """``value`` quoted for a message, at most 60 characters of it."""
    return repr(value if len(value) <= 60 else value[:57] + "…")


def array(item: Check, *, least: int = 0) -> Check:
    """An array of at least ``least`` items, each of which passes ``item``."""

    def check(value: Any) -> Fault:
        if type(value) is not list:
            return _wrong("an array", value)
        bad: Fault = None if len(value) >= least else [("", f"must have at least {least} item")]
        for index, each in enumerate(value):
            below = item(each)
            if below:
                bad = (bad or []) + [(f"/{index}{at}", why) for at, why in below]
        return bad

    return check


def strings(value: Any) -> Fault:
    """An array of strings; what ``array(text)`` does, faster."""
    if type(value) is list:
        for each in value:
            if type(each) is not str or "\0" in each:
                break
        else:
            return None
    return _strings(value)


_strings = array(text)


def mapping(item: Check) -> Check:
    """An object with members of any name, each of which passes ``item``."""

    def check(value: Any) -> Fault:
        if type(value) is not dict:
            return _wrong("an object", value)
        bad: Fault = None
        for name, each in value.items():
            below = item(each)
            if below:
                bad = (bad or []) + [(pointer_token(name) + at, why) for at, why in below]
        return bad

    return check


def members(known: Mapping[str, Check], needs: str = "") -> Check:
    """An object whose members named in ``known`` pass their checks; those in ``needs`` (by spaces) must be there."""
    required = tuple(needs.split())

    def check(value: Any) -> Fault:
        if type(value) is not dict:
            return _wrong("an object", value)
        bad: Fault = None
        for name, each in value.items():
            item = known.get(name)
            if item is not None:
                below = item(each)
                if below:
                    bad = (bad or []) + [(pointer_token(name) + at, why) for at, why in below]
        for name in required:
            if name not in value:
                bad = [*(bad or []), (pointer_token(name), "is missing")]
        return bad

    return check


def findings(check: Check, value: Any) -> list[SpecFinding]:
    """Run ``check`` on a whole document and return what it found."""
    return [SpecFinding(pointer, why) for pointer, why in check(value) or ()]

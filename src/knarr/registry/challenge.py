"""WWW-Authenticate: which kind of login a registry asks for (RFC 9110 section 11, RFC 6750, Docker's token scheme)."""

from __future__ import annotations

from knarr.base.record import Record

_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~")
_LENGTH_LIMIT = 16 << 10
_COUNT_LIMIT = 10


class Challenge(Record):
    """One challenge: scheme in small letters, parameters with names in small letters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Return the challenges of all WWW-Authenticate headers in their order; what cannot be read ends a header.

    At most ten, and 16 KiB of each header, are read.
    """
    found: list[Challenge] = []
    for header in headers[:_COUNT_LIMIT]:
        found.extend(_parse(header[:_LENGTH_LIMIT]))
    return found[:_COUNT_LIMIT]


def choose(challenges: list[Challenge]) -> Challenge | None:
    """Return the challenge to answer: the first Bearer with a realm, else the first Basic."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme and (scheme == "basic" or challenge.parameters.get("realm")):
                return challenge
    return None


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while len(found) < _COUNT_LIMIT:
        at = _skip(text, at, " \t,")
        word, at = _word(text, at)
        if not word:
            break
        after = _skip(text, at, " \t")
        if text[after : after + 1] == "=" and found:
            value, at = _value(text, _skip(text, after + 1, " \t"))
            if value is None:
                break
            found[-1].parameters.setdefault(word.lower(), value)
        else:
            found.append(Challenge(word.lower(), {}))
    return found


def _skip(text: str, at: int, what: str) -> int:
    while at < len(text) and text[at] in what:
        at += 1
    return at


def _word(text: str, at: int) -> tuple[str, int]:
    start = at
    while at < len(text) and text[at] in _TOKEN:
        at += 1
    return text[start:at], at


def _value(text: str, at: int) -> tuple[str | None, int]:
    if text[at : at + 1] != '"':
        word, at = _word(text, at)
        return word or None, at
    at += 1
    value: list[str] = []
    while at < len(text):
        character = text[at]
        if character == '"':
            return "".join(value), at + 1
        if character == "\\" and at + 1 < len(text):
            at += 1
            character = text[at]
        value.append(character)
        at += 1
    return None, at

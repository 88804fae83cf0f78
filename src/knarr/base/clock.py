"""Points in time as RFC 3339 text, without ``datetime`` (hot)."""

from __future__ import annotations

import time

_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# 0001-01-01 and the end of 9999, in seconds since 1970: all that four digits of a year can say.
_FIRST = -62_135_596_800
_LAST = 253_402_300_799


def rfc3339(nanoseconds: int) -> str:
    """Return ``nanoseconds`` since 1970 (UTC) as RFC 3339, the fraction without trailing zeros.

    Raises ValueError outside the years 1 to 9999.
    """
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not _FIRST <= seconds <= _LAST:
        raise ValueError(f"{nanoseconds} ns is outside the years 1 to 9999")
    now = time.gmtime(seconds)
    text = f"{now[0]:04}-{now[1]:02}-{now[2]:02}T{now[3]:02}:{now[4]:02}:{now[5]:02}"
    return f"{text}.{f'{fraction:09}'.rstrip('0')}Z" if fraction else f"{text}Z"


def now_rfc3339() -> str:
    """Return the present moment as ``rfc3339`` writes it."""
    return rfc3339(time.time_ns())


def parse_rfc3339(text: str) -> int:
    """Return the nanoseconds since 1970 of an RFC 3339 date-time (section 5.6); digits past nanoseconds are dropped.

    A leap second counts as the second after it. Raises ValueError with the reason.
    """
    # 2026-11-24T03:37:00[.fraction](Z|+hh:mm)
    if len(text) < 20 or text[4] + text[7] + text[10].upper() + text[13] + text[16] != "--T::":
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 date and time")
    year, month, day = _number(text, 0, 4), _number(text, 5, 7), _number(text, 8, 10)
    hour, minute, second = _number(text, 11, 13), _number(text, 14, 16), _number(text, 17, 19)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1] + (1 if month == 2 and leap else 0):
        raise ValueError(f"{text[:10]} is not a day of the calendar")
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"{text[11:19]} is not a time of day")
    at, fraction = 19, 0
    if text[at] == ".":
        at += 1
        start = at
        while at < len(text) and text[at] in "0123456789":
            at += 1
        if at == start:
            raise ValueError(f"{text[:40]!r} has an empty fraction of a second")
        fraction = int(text[start : min(at, start + 9)].ljust(9, "0"))
    zone = text[at:]
    offset = 0
    if zone not in ("Z", "z"):
        if len(zone) != 6 or zone[0] not in "+-" or zone[3] != ":":
            raise ValueError(f"{text[:40]!r} has no valid offset from UTC")
        hours, minutes = _number(zone, 1, 3), _number(zone, 4, 6)
        if hours > 23 or minutes > 59:
            raise ValueError(f"{zone} is not an offset from UTC")
        offset = (hours * 60 + minutes) * (-60 if zone[0] == "-" else 60)
    days = _days(year, month, day)
    return (days * 86400 + hour * 3600 + minute * 60 + second - offset) * 1_000_000_000 + fraction


def _number(text: str, start: int, end: int) -> int:
    digits = text[start:end]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 date and time")
    return int(digits)


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01, proleptic Gregorian; years start in March, so the leap day comes last."""
    if month <= 2:
        year -= 1
        month += 12
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469

"""base.clock: RFC 3339 without datetime, checked against datetime."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.clock import now_rfc3339, parse_rfc3339, rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00Z"),
        (-62_135_596_800_000_000_000, "0001-01-01T00:00:00Z"),  # Go's zero time
        (253_402_300_799_999_999_999, "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_written_and_read(nanoseconds: int, text: str) -> None:
    assert rfc3339(nanoseconds) == text
    assert parse_rfc3339(text) == nanoseconds


@pytest.mark.parametrize("nanoseconds", [-62_135_596_800_000_000_001, 253_402_300_800_000_000_000])
def test_years_that_four_digits_cannot_say(nanoseconds: int) -> None:
    with pytest.raises(ValueError, match="outside the years"):
        rfc3339(nanoseconds)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)), st.integers(0, 999))
def test_agrees_with_datetime(moment: datetime, nanos: int) -> None:
    offset = moment.utcoffset() or timedelta()
    whole_minutes = timedelta(seconds=offset.total_seconds() // 60 * 60)
    moment = moment.replace(tzinfo=timezone(whole_minutes))
    if not datetime(1, 1, 2, tzinfo=UTC) < moment < datetime(9999, 12, 30, tzinfo=UTC):
        return
    since = (moment - EPOCH) // timedelta(microseconds=1) * 1000 + nanos
    text = moment.isoformat(timespec="microseconds")
    text = text[:26] + f"{nanos:03}" + text[26:]
    assert parse_rfc3339(text) == since
    assert parse_rfc3339(rfc3339(since)) == since
    assert rfc3339(since)[:19] == moment.astimezone(UTC).isoformat()[:19]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("1970-01-01T00:00:00.1234567891234Z", 123_456_789),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
    ],
)
def test_other_spellings(text: str, nanoseconds: int) -> None:
    assert parse_rfc3339(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01 00:00:00Z",
        "2023-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-00-01T00:00:00Z",
        "2024-01-00T00:00:00Z",
        "2024-04-31T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:60:00Z",
        "2024-01-01T00:00:61Z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00+1:00",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+01:60",
        "2024-01-01T00:00:00Zx",
        "2024-01-01T00:00:00X01:00",
        "2024-01-01T00:00:00+01x00",
        "2024-01-01T00:00:00+01:000",
        "+024-01-01T00:00:00Z",
        "２024-01-01T00:00:00Z",
        " 2024-01-01T00:00:00Z",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_rfc3339(text)


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_a_value_error(text: str) -> None:
    try:
        moment = parse_rfc3339(text)
    except ValueError:
        return
    assert parse_rfc3339(rfc3339(moment)) == moment


def test_now() -> None:
    before = time.time_ns()
    assert before <= parse_rfc3339(now_rfc3339()) <= time.time_ns()

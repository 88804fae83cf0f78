from __future__ import annotations

from typing import Any

import pytest

from knarr.base import fastjson
from knarr.base.errors import UsageError
from knarr.cli import output

ROWS: list[dict[str, Any]] = [
    {"Name": "a", "Size": 1, "Tags": ["x", "y"]},
    {"Name": "long name \033[31m", "Size": None, "Tags": []},
]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.put_rows(ROWS, ("Name", "Size", "Tags"), "")
    assert capsys.readouterr().out == (
        "NAME                 SIZE   TAGS\n"
        "a                    1      x, y\n"
        "long name \\x1b[31m\n"
    )  # fmt: skip


def test_wide_characters_stay_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.put_table(["A", "B"], [["漢字", "1"], ["e\u0301", "2"]])
    assert capsys.readouterr().out == "A      B\n漢字   1\ne\u0301      2\n"


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    output.put_rows(ROWS[:1], ("Name",), "json")
    assert fastjson.loads(capsys.readouterr().out.encode(), "output") == ROWS[:1]
    output.put_rows(ROWS[:1], ("Name",), "{{.Name}}={{.Size}}")
    assert capsys.readouterr().out == "a=1\n"
    output.put_rows(ROWS[:1], ("Name",), r"table {{.Name}}\t{{.Tags}}")
    assert capsys.readouterr().out == "NAME   TAGS\na      [x y]\n"
    output.put_rows(ROWS, ("Name",), "", quiet="Size")
    assert capsys.readouterr().out == "1\nNone\n"
    with pytest.raises(UsageError, match="there is"):
        output.put_rows(ROWS, ("Name",), "{{.Nope}}")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_090_000, "1.09 MB"), (56_700_000, "56.7 MB"),
     (123_400_000, "123 MB"), (999_600_000, "1 GB"), (5_000_000_000_000, "5 TB"), (10**18, "1000 PB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than a second"), (1, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (7200, "2 hours"),
     (86400 * 13, "13 days"), (86400 * 14, "2 weeks"), (86400 * 400, "13 months"), (86400 * 800, "2 years")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_moments() -> None:
    assert output.since("1970-01-01T00:01:00Z", now=180) == "2 minutes ago"
    assert output.since("1970-01-01T00:01:00Z", now=0) == "in the future"
    assert output.since("") == ""
    assert output.since("whenever\x07") == "whenever\\x07"

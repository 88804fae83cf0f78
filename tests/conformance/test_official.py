"""How the output of the official suite is read, and that docs/conformance.md has a cause for all that fails."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import official
import pytest

PAGE = Path(__file__).parents[2] / "docs/conformance.md"


@pytest.mark.parametrize(
    ("output", "code", "cell"),
    [
        ("TAP version 13\nok 1 - a\nok 2 - b\n  ---\n  not ok inside\n1..2\n", 0, "pass 2"),
        ("ok 1 - a\nnot ok 2 - b\n1..2\n", 0, "**fail** 1/2"),
        ("ok 1 # SKIP no such thing\nok 2 - b\n1..2\n", 0, "pass 1"),
        ("ok 1 - a\n1..1\n", 1, "**fail** 0/1, exit 1"),
        ("TAP version 13\n1..0\n", 0, "pass 0"),
        ('TAP version 13\n  ---\n  {\n    "error": "wrong"\n  }\n  ...\n1..0\n', 0, "**fail** 0/0"),
        ('ok 1 - a\n  ---\n    "error": "as expected"\n1..1\n', 0, "pass 1"),
    ],
)
def test_what_a_program_said(output: str, code: int, cell: str) -> None:
    assert official.Outcome(output, code).cell() == cell


def test_a_failed_fetch_is_tried_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "source/validation").mkdir(parents=True)
    (tmp_path / "source/built").touch()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(official, "REPOSITORY", str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            official.prepare(work, None, None)
    assert official.prepare(work, tmp_path / "source", None) == work / "runtime-tools"
    assert [path.name for path in work.iterdir()] == ["runtime-tools"]


def test_a_runtime_by_a_relative_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert official.found_runtimes(["knarr=bin/knarr-runtime"]) == {"knarr": f"{tmp_path}/bin/knarr-runtime"}


def test_the_table() -> None:
    results = {"a": {"x": official.Outcome("ok 1\n", 0)}, "b": {"x": official.Outcome("not ok 1\n", 0)}}
    assert official.table(results).splitlines()[2:] == [
        "| x | pass 1 | **fail** 1/1 |",
        "| all 1 | 1 programs pass, assertions 1 good, 0 bad | 0 programs pass, assertions 0 good, 1 bad |",
    ]


def test_every_failure_has_its_cause() -> None:
    text = PAGE.read_text()
    rows = dict(re.findall(r"^\| ([a-z_]+) \| ((?:pass|\*\*fail)[^|]*)", text, re.MULTILINE))
    assert len(rows) == 58
    causes = text.partition("## What fails")[2]
    named = {name for row in re.findall(r"^\| ([a-z_, ]+) \|", causes, re.MULTILINE) for name in row.split(", ")}
    assert named - {"program"} == {name for name, cell in rows.items() if not cell.startswith("pass")}

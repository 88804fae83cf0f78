"""Images in layouts, made byte by byte; the makers lie beside the tests of the rooms below."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.extend(str(Path(__file__).parents[1] / room) for room in ("layer", "image", "registry", "service"))

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of the test's own; no time from outside."""
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("KNARR_RUN", str(tmp_path / "run"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``knarr`` in this process; gives exit code, standard output, standard error."""
    from knarr.cli.command import run_command

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run

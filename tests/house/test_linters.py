"""Linters and type checkers are ordinary tests, so that one command checks everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT


@pytest.mark.parametrize("command", [["ruff", "check"], ["mypy"], ["pyright"]], ids=lambda command: command[0])
def test_linter_finds_nothing(command: list[str]) -> None:
    program = Path(sys.prefix, "bin", command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed in {sys.prefix} (make build)")
    result = subprocess.run([str(program), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

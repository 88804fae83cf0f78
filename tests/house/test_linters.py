"""Linters and type checkers are ordinary tests, so that one command checks everything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT, text_files


@pytest.mark.parametrize("command", [["ruff", "check"], ["mypy"], ["pyright"]], ids=lambda command: command[0])
def test_linter_finds_nothing(command: list[str]) -> None:
    program = Path(sys.prefix, "bin", command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed in {sys.prefix} (make build)")
    result = subprocess.run([str(program), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_shell_scripts_are_sound() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: it checks the shell scripts")
    shells = (b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash")
    names = [str(path.relative_to(ROOT)) for path in text_files() if path.read_bytes().startswith(shells)]
    scripts = [name for name in names if not name.startswith("tests/")]  # what runs inside containers is busybox'
    assert scripts
    result = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout

"""The kinds of isolation that are tested, and whether this machine has them."""

from __future__ import annotations

import platform
import shutil

import pytest

KINDS = ("namespace", "kernel")
ISOLATION = "org.knarr.isolation"


def need(kind: str) -> None:
    """Skip the test where this kind cannot be had."""
    if kind == "kernel" and platform.machine() != "x86_64":
        pytest.skip("user-mode Linux runs on x86_64 only")
    if kind == "kernel" and shutil.which("linux.uml") is None:
        pytest.skip("user-mode-linux is not installed")

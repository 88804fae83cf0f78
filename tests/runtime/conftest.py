"""Fixtures of the black-box tests: the runtimes, a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blackbox import NAMES, Bundle, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """Each runtime that is installed."""
    made = Runtime(request.param, tmp_path)
    yield made
    made.clean()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Runtime]:
    """knarr-runtime alone."""
    made = Runtime("knarr", tmp_path)
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of busybox, not written yet."""
    return Bundle(tmp_path / "bundle")

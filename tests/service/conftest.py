"""A directory to serve, and a registry of ours that serves it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ownregistry import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="knarr-test-") as top:
        yield Path(top) / "registry"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as started:
        yield started

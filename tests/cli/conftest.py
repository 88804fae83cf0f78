"""People at the command line; the kit lies beside the engine's tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import enginekit  # pyright: ignore[reportMissingImports]
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """Reference of a busybox image."""
    folder = enginekit.new_folder()
    try:
        yield enginekit.layout(folder / "image", Volumes={"/data": {}, "/fresh": {}}, StopSignal="SIGTERM")
    finally:
        enginekit.remove_folder(folder)


@pytest.fixture(params=enginekit.kinds())
def person(request: pytest.FixtureRequest) -> Iterator[enginekit.Person]:
    """Root, an ordinary user, and one with subordinate ids; or whoever runs the tests. Nothing may be left of them."""
    folder = enginekit.new_folder()
    try:
        yield enginekit.Person(request.param, folder)
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)


@pytest.fixture
def me() -> Iterator[enginekit.Person]:
    """Whoever runs the tests, for what does not depend on it."""
    folder = enginekit.new_folder()
    try:
        yield enginekit.Person(enginekit.kinds()[0], folder)
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)

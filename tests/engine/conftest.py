"""People who use the library, and an image for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import enginekit
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """Reference of a busybox image."""
    folder = enginekit.new_folder()
    try:
        yield enginekit.layout(folder / "image")
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

"""A pull whose layers are mounted, not unpacked, reads each layer once: while it comes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import enginekit
import pytest

from knarr.base.errors import DigestMismatch, KnarrError
from knarr.content.store import Store
from knarr.engine import api, images
from knarr.engine.paths import Places, places
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.content.verify import VerifiedReader
    from knarr.spec.image import Descriptor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an image")


@pytest.fixture
def top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="knarr-test-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Media types of the blobs that were read from the store."""
    types: list[str] = []
    original = Store.open_blob

    def spy(self: Store, descriptor: Descriptor) -> VerifiedReader:
        types.append(descriptor["mediaType"])
        return original(self, descriptor)

    monkeypatch.setattr(Store, "open_blob", spy)
    monkeypatch.setenv("KNARR_DRIVER", "erofs")
    return types


def left(where: Places) -> list[str]:
    return [*os.listdir(f"{where.tars}/tmp"), *os.listdir(f"{where.tars}/locks")]


def test_a_layer_is_read_while_it_comes_and_not_again(top: Path, opened: list[str]) -> None:
    text = enginekit.layout(top / "image")
    where = places(str(top / "store"), str(top / "run"))
    found = images.ready(where, text)
    assert found.mounted
    assert not set(opened) & set(mediatypes.LAYERS)
    assert images.tars(where).get(found.chain).tars
    assert left(where) == []
    # Blobs that are there do not come; then the layer is read in the store.
    images.tars(where).gc([])
    assert images.ready(where, text).chain == found.chain
    assert len(set(opened) & set(mediatypes.LAYERS)) == 1


def test_pull_does_the_same(top: Path, opened: list[str]) -> None:
    text = enginekit.layout(top / "image")
    digest = api.pull(text, store=str(top / "store"))
    assert digest.startswith("sha256:")
    assert not set(opened) & set(mediatypes.LAYERS)
    assert len(images.tars(places(str(top / "store"))).list()) == 1


def test_a_layer_with_a_wrong_digest_leaves_nothing(top: Path, opened: list[str]) -> None:
    text = enginekit.layout(top / "image")
    blobs = sorted((top / "image/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[-2000] ^= 1
    blobs[-1].write_bytes(data)
    where = places(str(top / "store"), str(top / "run"))
    with pytest.raises(DigestMismatch):
        images.ready(where, text)
    assert left(where) == []
    assert images.tars(where).list() == []
    assert opened == []


def test_what_is_not_made_ready_on_the_way_is_made_ready_afterwards(
    top: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong while a layer is made ready is said when it is needed, not before."""
    from knarr.layer import arriving

    class Broken(arriving.Arrivals):
        def expect(self, layers: object) -> None:  # noqa: ARG002  # as the real one
            raise KnarrError("for the test")

    monkeypatch.setattr(arriving, "Arrivals", Broken)
    where = places(str(top / "store"), str(top / "run"))
    assert images.ready(where, enginekit.layout(top / "image")).mounted
    assert len(set(opened) & set(mediatypes.LAYERS)) == 1

"""The corpus of hostile and odd layers, looked into and changed instead of unpacked: the same verdicts, and nothing on disk."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING

import pytest
from test_corpus import REF, ROWS

from knarr.base.errors import FormatError, KnarrError
from knarr.engine.imaging.image import Image
from knarr.layer.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from test_corpus import Row


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "sentinel"
    folder.mkdir()
    (folder / "f").write_bytes(b"sentinel")
    yield str(folder)
    assert os.listdir(folder) == ["f"]
    assert (folder / "f").read_bytes() == b"sentinel"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.name}")
def test_row(row: Row, sentinel: str) -> None:
    data = row.make(sentinel)
    start = time.monotonic()
    model = Model()
    try:
        model.apply(io.BytesIO(data), hashed=True)
        verdict = "taken"
    except FormatError:  # and no other error
        verdict = "refused"
    assert time.monotonic() - start < 20
    if row.verdict == REF:
        assert verdict == "refused"
    for path in model.flat():
        assert b".." not in path.split(b"/")
    try:
        made = Image.empty().append(io.BytesIO(data)).append(io.BytesIO(data)).squash()
        assert len(made.layers) == 1
    except KnarrError:
        pass

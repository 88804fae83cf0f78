"""Small images for the tests: layers from entries, in a layout."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import ocimake
import pytest
from tarbuilder import tar

from knarr.engine.imaging.image import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from knarr.layer.model import Node


def layout(path: Path, *layers: Sequence[bytes], tag: str = "v1", kind: str = "gzip", **more: Any) -> str:
    """A layout with one image of these layers; its reference."""
    history = [{"created": "2026-01-02T03:04:05Z", "created_by": f"layer {number}"} for number in range(len(layers))]
    config = {"history": history, **more.pop("config", {})}
    made = ocimake.Image(*(tar(*layer) for layer in layers), kind=kind, config=config, **more)
    ocimake.write_layout(path, [ocimake.named(made.descriptor, tag)], made)
    return f"oci:{path}:{tag}"


def opened(path: Path, *layers: Sequence[bytes], **more: Any) -> Image:
    return Image.open(layout(path, *layers, **more))


def flat(image: Image) -> dict[str, Node]:
    from knarr.engine.imaging.layers import model_of

    return {os.fsdecode(path): node for path, node in model_of(image, hashed=True).flat().items()}


def paths(image: Image) -> list[str]:
    return sorted(path for path in flat(image) if path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(data: Iterable[Any]) -> list[str]:
    return [entry.name.decode() for entry in data]


def stream(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def program(name: str) -> str:
    """Path of somebody else's program; skips the test when it is not here."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def call(*command: str, **more: Any) -> str:
    """Run somebody else's program, which must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return str(done.stdout)

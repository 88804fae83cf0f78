"""Fixtures of the isolation tests: a runtime, a bundle, the kinds that work on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from behind import ISOLATION, KINDS, need
from blackbox import Bundle, Runtime  # pyright: ignore[reportMissingImports]  # it lies in tests/runtime

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of isolation."""
    name: str = request.param
    need(name)
    return name


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """knarr-runtime."""
    made = Runtime("knarr", tmp_path)
    made.patience = 60  # a microVM that says nothing is given up after 30 s, with its last words
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of busybox, not written yet."""
    made = Bundle(tmp_path / "bundle")
    for applet in ("uname", "seq", "md5sum", "dmesg", "mv", "tail", "hostname", "df"):
        (made.rootfs / "bin" / applet).symlink_to("busybox")
    if os.geteuid():  # the host's network cannot be had in a guest
        made.config["linux"]["namespaces"].append({"type": "network"})
        made.config["mounts"][4] = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
    return made


@pytest.fixture
def isolated(bundle: Bundle, kind: str) -> Bundle:
    """The bundle, with the annotation that asks for the kind."""
    bundle.config["annotations"] = {ISOLATION: kind}
    return bundle


@pytest.fixture
def knarr_program(request: pytest.FixtureRequest) -> str:
    """Path of the installed ``knarr``, under a name that is not the package's."""
    path: str = request.getfixturevalue("knarr")
    return path

"""containerd with its own shim and knarr-runtime: ``ctr`` must say what it says with runc."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import scripts_containerd
from engine import Engine, same_with_each, scripts, title
from engine_containerd import Containerd
from enginebox import box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine import Script


@pytest.fixture(scope="module")
def daemons(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Engine] = {}
        for name, path in runtimes.items():
            inside = stack.enter_context(box(tmp_path_factory.mktemp(f"containerd-{name}")))
            made[name] = Containerd(inside, path, docker_archive)
        yield made


@pytest.mark.parametrize("script", scripts(vars(scripts_containerd)), ids=title)
def test_containerd_says_what_it_says_with_runc(daemons: dict[str, Engine], script: Script) -> None:
    same_with_each(daemons, script)

"""Docker, unmodified, with knarr-runtime as its runtime: what it says must be what it says with runc.

Each script runs twice, runc first, in two daemons that differ in nothing else; the transcripts are compared.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import scripts_docker
from engine import Engine, same_with_each, scripts, title
from engine_docker import Docker
from enginebox import box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine import Script


@pytest.fixture(scope="module")
def dockers(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Engine] = {}
        for name, path in runtimes.items():
            inside = stack.enter_context(box(tmp_path_factory.mktemp(f"docker-{name}")))
            made[name] = Docker(inside, path, docker_archive)
        yield made


@pytest.mark.parametrize("script", scripts(vars(scripts_docker)), ids=title)
def test_docker_says_what_it_says_with_runc(dockers: dict[str, Engine], script: Script) -> None:
    same_with_each(dockers, script)

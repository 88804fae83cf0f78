"""Docker, unmodified, with knarr-runtime as its runtime: what it says must be what it says with runc.

Each script runs twice, runc first, in two daemons that differ in nothing else; the transcripts are compared.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from engine_docker import Docker
from enginebox import box
from scripts_docker import all_scripts
from transcript import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transcript import Recorder


@pytest.fixture(scope="module")
def dockers(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Docker]]:
    with contextlib.ExitStack() as stack:
        made = {}
        for name, path in runtimes.items():
            made[name] = Docker(
                stack.enter_context(box(tmp_path_factory.mktemp(f"docker-{name}"))), path, docker_archive
            )
        yield made


@pytest.mark.parametrize("script", all_scripts(), ids=lambda script: script.__name__.removeprefix("script_"))
def test_docker_says_what_it_says_with_runc(dockers: dict[str, Docker], script: Callable[[Recorder], None]) -> None:
    steps = []
    for docker in dockers.values():
        recorder = docker.recorder()
        try:
            script(recorder)
        finally:
            recorder.close()
            left = recorder.quiet("ps", "-aq").stdout.split()
            if left:
                recorder.quiet("rm", "-f", "-v", *left)
        docker.check_nothing_left()
        steps.append(recorder.steps)
    assert not differences(*steps), differences(*steps)

"""Podman with conmon and knarr-runtime, as root and as an ordinary user: it must say what it says with runc."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import scripts_podman
import scripts_rootless
from engine import Engine, same_with_each, scripts, title
from engine_podman import Podman, RootlessPodman
from enginebox import box, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine import Script

Runtimes = dict[str, str]
Folders = pytest.TempPathFactory


@contextlib.contextmanager
def pair(folders: Folders, runtimes: Runtimes, archive: Path, subids: bool | None) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Engine] = {}
        for name, path in runtimes.items():
            inside = stack.enter_context(box(folders.mktemp(f"podman-{name}")))
            if subids is None:
                made[name] = Podman(inside, path, archive)
            else:
                made[name] = RootlessPodman(inside, path, archive, subids=subids)
        yield made


@pytest.fixture(scope="module")
def roots(tmp_path_factory: Folders, runtimes: Runtimes, docker_archive: Path) -> Iterator[dict[str, Engine]]:
    with pair(tmp_path_factory, runtimes, docker_archive, None) as made:
        yield made


@pytest.fixture(scope="module")
def users(tmp_path_factory: Folders, runtimes: Runtimes, docker_archive: Path) -> Iterator[dict[str, Engine]]:
    need("newuidmap", "slirp4netns")
    with pair(tmp_path_factory, runtimes, docker_archive, subids=True) as made:
        yield made


@pytest.fixture(scope="module")
def users_with_one_id(
    tmp_path_factory: Folders, runtimes: Runtimes, docker_archive: Path
) -> Iterator[dict[str, Engine]]:
    need("slirp4netns")
    with pair(tmp_path_factory, runtimes, docker_archive, subids=False) as made:
        yield made


@pytest.mark.parametrize("script", scripts(vars(scripts_podman)), ids=title)
def test_podman_says_what_it_says_with_runc(roots: dict[str, Engine], script: Script) -> None:
    same_with_each(roots, script)


@pytest.mark.parametrize("script", scripts(vars(scripts_rootless)), ids=title)
def test_rootless_podman_says_what_it_says_with_runc(users: dict[str, Engine], script: Script) -> None:
    same_with_each(users, script)


@pytest.mark.parametrize("script", scripts_rootless.ONE_ID, ids=title)
def test_with_one_id_podman_says_what_it_says_with_runc(users_with_one_id: dict[str, Engine], script: Script) -> None:
    same_with_each(users_with_one_id, script)

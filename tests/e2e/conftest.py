"""End to end: the installed ``knarr`` on images that other tools wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import foreign
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder for images, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-e2e-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image_of(workshop: Path) -> Callable[[str], str]:
    """name -> reference of an image made by that tool (once); skips when the tool is missing."""
    made: dict[str, str | foreign.Missing] = {}

    def make(name: str) -> str:
        if name.startswith("umoci"):
            return foreign.with_umoci(workshop)
        if name == "buildah":
            return foreign.with_buildah(workshop)
        if name == "docker":
            return foreign.with_docker(workshop)
        return foreign.with_skopeo(workshop, image_of("umoci"), name.removeprefix("skopeo-"))

    def image_of(name: str) -> str:
        if name not in made:
            try:
                made[name] = make(name)
            except foreign.Missing as error:
                made[name] = error
        found = made[name]
        if isinstance(found, foreign.Missing):
            pytest.skip(str(found))
        return found

    if os.geteuid() != 0:

        def skip(name: str) -> str:
            pytest.skip("other tools' images with owners and xattrs are made as root")

        return skip
    return image_of


@pytest.fixture
def cli(knarr: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Call the installed ``knarr`` with a store and run state of its own; everything is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-cli-", dir="/tmp"))
    home = folder / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "KNARR_STORE": str(folder / "store"),
        "KNARR_RUN": str(folder / "state"),
    }
    (folder / "run").mkdir(mode=0o700)

    def run(
        *words: str, input: str | None = None, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [knarr, *words],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**environment, **(env or {})},
        )

    run.folder = folder  # type: ignore[attr-defined]
    yield run
    before = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, text=True, check=False).stdout
    shutil.rmtree(folder, ignore_errors=True)
    assert str(folder) not in before, "a mount was left on the host"

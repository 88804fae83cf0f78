"""Fixtures of the init's tests: the program, built from this tree, and a launcher that cleans up."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("initlaunch")
from initlaunch import Launcher, compile_init  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """knarr-init, built from this tree with its own flags, where other users can execute it."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build knarr-init with")
    folder = Path(tempfile.mkdtemp(prefix="knarr-init-"))  # pytest's own is 0700
    folder.chmod(0o755)
    yield compile_init(compiler, folder / "knarr-init")
    shutil.rmtree(folder)


@pytest.fixture
def launcher(init_binary: Path) -> Iterator[Launcher]:
    made = Launcher(init_binary)
    yield made
    made.close()


@pytest.fixture(scope="session")
def namespaces() -> None:
    """For an ordinary user, mounts take a user namespace."""
    if os.geteuid() == 0:
        return
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("neither root nor user namespaces")

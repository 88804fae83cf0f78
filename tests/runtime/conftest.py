"""Fixtures of the black-box tests: the runtimes, a bundle."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blackbox import NAMES, SOMEBODY, Bundle, Rootless, Runtime, default_config, with_user_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """Each runtime that is installed."""
    made = Runtime(request.param, tmp_path)
    yield made
    made.clean()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Runtime]:
    """knarr-runtime alone."""
    made = Runtime("knarr", tmp_path)
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of busybox, not written yet."""
    return Bundle(tmp_path / "bundle")


@pytest.fixture
def rootless() -> Iterator[Rootless]:
    if not Path("/proc/sys/user/max_user_namespaces").exists():
        pytest.skip("this kernel has no user namespaces")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    config = default_config()
    config["linux"]["namespaces"] = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "network"]
    del config["linux"]["resources"]
    config["mounts"][2]["options"].remove("gid=5")
    config["mounts"][4] = {
        "destination": "/sys",
        "type": "none",
        "source": "/sys",
        "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
    }
    with_user_namespace(config, [{"containerID": 0, "hostID": SOMEBODY, "size": 1}])
    yield Rootless(folder, config)
    shutil.rmtree(folder)

"""Podman pulls our eStargz and zstd:chunked layers in part (enable_partial_images), and has the tree that we unpack."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from dockerregistry import docker_registry, need_docker_registry
from imagekit import call, layout
from ownregistry import serving
from tarbuilder import d, f, h, s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="podman mounts an image for root")

CONFIG = """[storage]
driver = "overlay"
runroot = "{0}/run"
graphroot = "{0}/graph"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""
# Its mounts end with the namespace.
SCRIPT = """
podman --log-level debug --cgroup-manager cgroupfs pull --tls-verify=false "$1" 2>&1 || exit
cd "$(podman image mount "$1")" && echo listing && find . -type f -print0 | xargs -0 sha256sum
"""
PROGRAM = (sys.executable, "-c", "import sys; from knarr.cli.main import main; sys.exit(main())")


@pytest.fixture(params=["knarr", "docker-registry"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry of each kind; host:port."""
    need_docker_registry("podman")
    if request.param == "knarr":
        with serving(tmp_path / "registry") as server:
            yield server.host
    else:
        with docker_registry(tmp_path / "registry") as address:
            yield address


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_podman_pulls_in_part(tmp_path: Path, host: str, kind: str) -> None:
    noise = random.Random(5)
    big, small = noise.randbytes(5_000_000), noise.randbytes(3000)
    lower = [d("etc"), f("etc/big", big), f("etc/small", small), s("etc/link", "small"), h("etc/other", "etc/small")]
    upper = [d("srv"), f("srv/new", b"new\n" * 5000), f("etc/small", b"changed")]
    ref = layout(tmp_path / "plain", lower, upper)
    call(*PROGRAM, "image", "copy", "-q", "--compress", kind, ref, f"oci:{tmp_path}/made:v1")
    call(*PROGRAM, "image", "copy", "-q", f"oci:{tmp_path}/made:v1", f"docker://{host}/a/b:v1")
    call(*PROGRAM, "image", "unpack", "--bare", ref, str(tmp_path / "ours"))
    (tmp_path / "storage.conf").write_text(CONFIG.format(tmp_path / "podman"))
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", SCRIPT, "sh", f"{host}/a/b:v1"],
        env={**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"), "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if "is not supported over" in done.stdout:
        pytest.skip(f"podman has no overlay here: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    told, _, listing = done.stdout.partition("listing\n")
    assert told.count("Retrieved partial blob") == 2, told
    ours = sorted(path for path in (tmp_path / "ours").rglob("*") if path.is_file() and not path.is_symlink())
    assert sorted(listing.splitlines()) == sorted(
        f"{sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(tmp_path / 'ours')}" for path in ours
    )

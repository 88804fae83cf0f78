"""oras-py, the ORAS project's client: artifacts it pushes are ours to pull, ours are its, from both registries."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from dockerregistry import docker_registry, need_docker_registry
from ownregistry import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

oras_client = pytest.importorskip("oras.client", reason="oras is not installed")

BIG = random.Random(7).randbytes(3_000_000)


@pytest.fixture(params=["knarr", "docker-registry"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry of each kind; host:port."""
    if request.param == "knarr":
        with serving(tmp_path / "registry") as server:
            yield server.host
    else:
        need_docker_registry()
        with docker_registry(tmp_path / "registry") as address:
            yield address


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files in the current directory, where oras wants them; nobody's logins."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.bin").write_bytes(BIG)
    (folder / "notes.txt").write_text("hello\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "store"))
    return folder


def client(host: str) -> Any:
    return oras_client.OrasClient(hostname=host, insecure=True)


def knarr(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "knarr.cli.main", "image", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def same(one: Path, two: Path) -> None:
    assert sorted(os.listdir(one)) == sorted(os.listdir(two)) == ["model.bin", "notes.txt"]
    for name in os.listdir(one):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in pieces"])
def test_what_oras_pushes(host: str, files: Path, tmp_path: Path, *, chunked: bool) -> None:
    target = f"{host}/oras/model:1"
    answer = client(host).push(
        target,
        files=["model.bin:application/vnd.example.model", "notes.txt:text/plain"],
        do_chunked=chunked,
        chunk_size=1 << 20,
        quiet=True,
        manifest_annotations={"org.example.by": "oras"},
    )
    assert answer.status_code == 201
    knarr("artifact", "pull", f"docker://{target}", str(tmp_path / "ours"))
    same(files, tmp_path / "ours")
    # And a copy of it by us is what it was: the same digest, and oras reads it.
    knarr("copy", f"docker://{target}", f"docker://{host}/copied/model:1")
    assert client(host).get_manifest(f"{host}/copied/model:1") == client(host).get_manifest(target)
    assert client(host).get_manifest(target)["annotations"] == {"org.example.by": "oras"}
    client(host).pull(f"{host}/copied/model:1", outdir=str(tmp_path / "theirs"))
    same(files, tmp_path / "theirs")
    assert knarr("validate", f"docker://{target}").count("error") == 0


def test_what_knarr_pushes(host: str, files: Path, tmp_path: Path) -> None:
    target = f"{host}/knarr/model:1"
    knarr(
        "artifact",
        "push",
        "--type",
        "application/vnd.example.model",
        f"docker://{target}",
        "model.bin:application/octet-stream",
        "notes.txt:text/plain",
    )
    oras = client(host)
    assert oras.get_tags(f"{host}/knarr/model") == ["1"]
    manifest = oras.get_manifest(target)  # held against its own schema
    assert [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]] == [
        "model.bin",
        "notes.txt",
    ]
    oras.pull(target, outdir=str(tmp_path / "theirs"))
    same(files, tmp_path / "theirs")


@pytest.mark.usefixtures("files")
def test_oras_removes_a_tag(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as server:
        name, oras = f"{server.host}/oras/t", client(server.host)
        for tag in ("1", "2", "3"):
            oras.push(f"{name}:{tag}", files=["notes.txt:text/plain"], quiet=True, manifest_annotations={"n": tag})
        assert oras.get_tags(name, N=2) == ["1", "2"]
        assert oras.delete_tags(name, ["2"]) == ["2"]
        assert oras.get_tags(name) == ["1", "3"]

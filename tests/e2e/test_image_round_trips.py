"""What knarr writes, others load and have the same image; what they have, knarr takes: docker, podman, containerd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import pytest
from foreign import Docker, Missing, call, tool

import knarr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "docker.io/round/trip:1"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A layout with one image of two gzip layers that runs, made by umoci."""
    if shutil.which("umoci") is None or shutil.which("busybox") is None:
        pytest.skip("umoci or busybox is not installed")
    where = tmp_path_factory.mktemp("round") / "layout"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    busybox = str(shutil.copy(shutil.which("busybox") or "", where.parent / "busybox"))
    motd = where.parent / "motd"
    motd.write_text("hello\n")
    image = f"{where}:v1"
    for words in (
        ["init", "--layout", str(where)],
        ["new", "--image", image],
        ["insert", *rootless, "--image", image, busybox, "/bin/busybox"],
        ["insert", *rootless, "--image", image, str(motd), "/etc/motd"],
        [
            "config",
            "--image",
            image,
            "--config.cmd",
            "/bin/busybox",
            "--config.cmd",
            "cat",
            "--config.cmd",
            "/etc/motd",
        ],
    ):
        call("umoci", *words)
    return f"oci:{where}:v1"


def config_of(reference: str) -> str:
    """The image id: what stays whatever becomes of the manifest."""
    with knarr.Image.open(reference) as image:
        return str(image.manifest["config"]["digest"])


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    try:
        daemon = Docker(tmp_path_factory.mktemp("docker"))
    except Missing as missing:
        pytest.skip(str(missing))
    yield daemon
    daemon.close()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_docker_load_and_save(docker: Docker, layout: str, tmp_path: Path, kind: str) -> None:
    knarr.copy(layout, f"store:{NAME}")
    knarr.copy(f"store:{NAME}", f"{kind}:{tmp_path}/x.tar")
    said = docker("load", "-i", f"{tmp_path}/x.tar")
    assert "Loaded image: round/trip:1" in said
    assert docker("inspect", "--format", "{{.Id}}", NAME).strip() == config_of(layout)
    docker("save", "-o", f"{tmp_path}/back.tar", NAME)
    back = knarr.copy(f"docker-archive:{tmp_path}/back.tar", f"oci:{tmp_path}/back:1")
    assert config_of(f"oci:{tmp_path}/back:1") == config_of(layout)
    again = knarr.copy(f"docker-archive:{tmp_path}/x.tar", f"oci:{tmp_path}/again:1")
    assert kind == "oci-archive" or again.digest == back.digest
    docker("rmi", NAME)


def test_a_docker_daemon_both_ways(
    docker: Docker, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker.socket)
    knarr.copy(layout, "docker-daemon:round/daemon:2")
    assert docker("inspect", "--format", "{{.Id}}", "round/daemon:2").strip() == config_of(layout)
    back = knarr.copy("docker-daemon:round/daemon:2", f"oci:{tmp_path}/back:1", compress="gzip")
    assert config_of(f"oci:{tmp_path}/back:1") == config_of(layout)
    by_id = knarr.copy(f"docker-daemon:{config_of(layout)}", f"oci:{tmp_path}/id:1", compress="gzip")
    assert by_id.digest == back.digest
    knarr.copy("docker-daemon:round/daemon:2", "docker-daemon:round/other:3")
    assert docker("inspect", "--format", "{{.Id}}", "round/other:3").strip() == config_of(layout)
    with pytest.raises(knarr.errors.NotFound, match=r"image docker\.io/no/such:1 of the docker daemon"):
        knarr.copy("docker-daemon:no/such:1", f"oci:{tmp_path}/no:1")
    assert not (tmp_path / "no").exists()
    docker("rmi", "round/daemon:2", "round/other:3")


def test_a_docker_daemon_that_is_not_there(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, why in (
        (f"unix://{tmp_path}/none.sock", "cannot connect to .*none.sock: no such file.*is dockerd running"),
        ("tcp://127.0.0.1:2375", "DOCKER_HOST=tcp.*only sockets on this machine"),
    ):
        monkeypatch.setenv("DOCKER_HOST", host)
        for source, target in ((layout, "docker-daemon:a:1"), ("docker-daemon:a:1", f"oci:{tmp_path}/x:1")):
            with pytest.raises(knarr.KnarrError, match=why):
                knarr.copy(source, target)
    assert not (tmp_path / "x").exists()


def test_docker_py(docker: Docker, layout: str, tmp_path: Path) -> None:
    library = pytest.importorskip("docker", reason="docker-py is not installed")
    client = library.DockerClient(base_url=docker.socket)
    try:
        knarr.copy(layout, f"docker-archive:{tmp_path}/x.tar:round/py:1")
        with (tmp_path / "x.tar").open("rb") as file:
            (image,) = client.images.load(file)
        assert image.id == config_of(layout)
        assert image.tags == ["round/py:1"]
        with (tmp_path / "back.tar").open("wb") as file:
            for part in image.save(named=True):
                file.write(part)
        knarr.copy(f"docker-archive:{tmp_path}/back.tar", f"oci:{tmp_path}/back:1")
        assert config_of(f"oci:{tmp_path}/back:1") == config_of(layout)
        client.images.remove("round/py:1")
    finally:
        client.close()


@pytest.fixture
def short() -> Iterator[str]:
    """A directory with a short name: podman wants that for its runroot."""
    folder = tempfile.mkdtemp(prefix="knarr-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci", "dir"])
def test_podman_load_and_save(layout: str, tmp_path: Path, short: str, kind: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("podman's own places need root here")
    places = ["--root", f"{tmp_path}/podman", "--runroot", short, "--storage-driver", "vfs"]
    podman = [tool_or_skip("podman"), *places]
    knarr.copy(layout, f"store:{NAME}")
    there = {"docker-archive": "x.tar", "oci-archive": "x.tar", "oci": "x", "dir": "x"}[kind]
    knarr.copy(f"store:{NAME}", f"{kind}:{tmp_path}/{there}")
    if kind.endswith("archive"):
        call(*podman, "load", "-i", f"{tmp_path}/{there}")
        found = NAME
    else:
        found = call(*podman, "pull", "-q", f"{kind}:{tmp_path}/{there}").strip()
    assert call(*podman, "inspect", "--format", "{{.Id}}", found).strip() == config_of(layout).removeprefix("sha256:")
    for form in ("docker-archive", "oci-archive"):
        call(*podman, "save", "--format", form, "-o", f"{tmp_path}/{form}.tar", found)
        knarr.copy(f"{form}:{tmp_path}/{form}.tar", f"oci:{tmp_path}/{form}-back:1")
        assert config_of(f"oci:{tmp_path}/{form}-back:1") == config_of(layout)


def test_podmans_storage_both_ways(layout: str, tmp_path: Path, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers-storage is reached through Podman's service, which speaks the Docker API."""
    if os.geteuid() != 0:
        pytest.skip("podman's own places need root here")
    places = ["--root", f"{tmp_path}/podman", "--runroot", short, "--storage-driver", "vfs"]
    podman = [tool_or_skip("podman"), *places]
    address = f"unix://{short}/api.sock"
    service = subprocess.Popen(
        [*podman, "system", "service", "--time=0", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 30
        while not os.path.exists(f"{short}/api.sock"):
            assert service.poll() is None, "podman system service ended"
            assert time.monotonic() < until, "podman system service gave no socket"
            time.sleep(0.05)
        monkeypatch.setenv("DOCKER_HOST", address)
        knarr.copy(layout, "docker-daemon:round/pod:2")
        found = call(*podman, "inspect", "--format", "{{.Id}}", "round/pod:2").strip()
        assert f"sha256:{found}" == config_of(layout)
        knarr.copy("docker-daemon:round/pod:2", f"oci:{tmp_path}/back:1")
        assert config_of(f"oci:{tmp_path}/back:1") == config_of(layout)
        with pytest.raises(knarr.KnarrError, match="no/such:1: image not known"):
            knarr.copy("docker-daemon:no/such:1", f"oci:{tmp_path}/no:1")
    finally:
        service.terminate()
        service.wait(30)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_buildah(layout: str, tmp_path: Path, kind: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("buildah's own places need root here")
    places = ["--root", f"{tmp_path}/buildah", "--runroot", f"{tmp_path}/buildah-run", "--storage-driver", "vfs"]
    buildah = [tool_or_skip("buildah"), *places]
    knarr.copy(layout, f"{kind}:{tmp_path}/x" + (":v1" if kind == "oci" else ""))
    found = call(*buildah, "pull", "-q", f"{kind}:{tmp_path}/x" + (":v1" if kind == "oci" else "")).strip()
    assert found == config_of(layout).removeprefix("sha256:")
    call(*buildah, "push", found, f"oci:{tmp_path}/back:1")
    knarr.copy(f"oci:{tmp_path}/back:1", f"dir:{tmp_path}/mine")
    if kind != "docker-archive":  # from one buildah has Docker's config, which it writes anew as OCI's
        manifest = json.loads((tmp_path / "mine/manifest.json").read_bytes())
        assert manifest["config"]["digest"] == config_of(layout)


def tool_or_skip(name: str) -> str:
    try:
        return tool(name)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def ctr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """``ctr`` with a containerd of our own, without containers."""
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    where = tmp_path_factory.mktemp("containerd")
    (where / "config.toml").write_text(
        f'version = 2\nroot = "{where}/root"\nstate = "{where}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{where}/sock"\n'
    )
    command = [tool_or_skip("containerd"), "--config", str(where / "config.toml")]
    with (where / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    words = [tool_or_skip("ctr"), "--address", f"{where}/sock"]
    for _ in range(300):
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            break
        time.sleep(0.05)
    else:
        process.kill()
        process.wait()
        pytest.skip("containerd does not start here")
    yield words
    process.terminate()
    process.wait()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_ctr_import_and_export(ctr: list[str], layout: str, tmp_path: Path, kind: str) -> None:
    knarr.copy(layout, f"store:{NAME}")
    copied = knarr.copy(f"store:{NAME}", f"{kind}:{tmp_path}/x.tar")
    call(*ctr, "image", "import", "--no-unpack", f"{tmp_path}/x.tar")
    rows = [line.split() for line in call(*ctr, "image", "ls").splitlines()[1:]]
    assert [row[2] for row in rows if row[0] == NAME] == [copied.digest]
    call(*ctr, "image", "export", f"{tmp_path}/back.tar", NAME)
    back = knarr.copy(f"oci-archive:{tmp_path}/back.tar", f"oci:{tmp_path}/back:1")
    assert back.digest == copied.digest
    call(*ctr, "image", "rm", NAME)


def test_pipes_between_processes(layout: str, tmp_path: Path) -> None:
    knarr.copy(layout, f"store:{NAME}")
    command = [sys.executable, "-m", "knarr.cli.main", "image"]
    first = subprocess.Popen([*command, "save", NAME], stdout=subprocess.PIPE)
    done = subprocess.run(
        [*command, "copy", "-", f"oci:{tmp_path}/x:1"], stdin=first.stdout, capture_output=True, check=False
    )
    assert first.stdout is not None
    first.stdout.close()
    assert (first.wait(), done.returncode) == (0, 0), done.stderr
    assert config_of(f"oci:{tmp_path}/x:1") == config_of(layout)

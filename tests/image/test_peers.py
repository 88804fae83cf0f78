"""Images written by umoci, buildah, skopeo and docker save arrive whole; what we store, they read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ocimake import fetch

from knarr.content.compress import decompressor
from knarr.content.digest import sha256_of
from knarr.content.store import Store
from knarr.image.platform import host_platform
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.image.catalog import Image


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


def run(*command: str, where: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def check(store: Store, image: Image) -> None:
    """Every layer decompresses to its diffID, and umoci and skopeo find the image in our store.

    Images with Docker's manifest type stay as they are, byte by byte, and these two look for OCI ones only.
    """
    assert image.layers
    for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
        plain = decompressor(store.open_blob(layer), layer["mediaType"]).readall()
        assert sha256_of(plain) == diff_id
    if image.descriptor["mediaType"] != mediatypes.MANIFEST:
        return
    if shutil.which("umoci"):
        assert image.name in run("umoci", "ls", "--layout", store.path).split()
        kinds = {mediatypes.LAYERS[layer["mediaType"]] for layer in image.layers}
        if os.geteuid() == 0 and "zstd" not in kinds:  # umoci 0.4 knows no zstd
            target = f"{store.path}.unpacked"
            run("umoci", "unpack", "--image", f"{store.path}:{image.name}", target)
            assert os.listdir(f"{target}/rootfs")
            shutil.rmtree(target)
    if shutil.which("skopeo"):
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{store.path}:{image.name}"], capture_output=True, check=True
        )
        assert sha256_of(raw.stdout) == image.digest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "bin").mkdir()
    (root / "bin" / "program").write_bytes(os.urandom(200_000))
    (root / "etc").mkdir()
    (root / "etc" / "motd").write_text("hello\n")
    return root


@pytest.fixture(scope="module")
def umoci_layout(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """A layout with one image of two gzip layers, tagged v1."""
    need("umoci")
    where = tmp_path_factory.mktemp("umoci") / "layout"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "init", "--layout", str(where))
    run("umoci", "new", "--image", f"{where}:v1")
    run("umoci", "insert", *rootless, "--image", f"{where}:v1", str(tree / "bin"), "/bin")
    run("umoci", "insert", *rootless, "--image", f"{where}:v1", str(tree / "etc"), "/etc")
    run("umoci", "config", "--image", f"{where}:v1", "--config.cmd", "/bin/program")
    return where


def pull(store: Store, text: str) -> Image:
    return fetch(text, store)


def test_umoci(store: Store, umoci_layout: Path) -> None:
    image = pull(store, f"oci:{umoci_layout}:v1")
    assert [layer["mediaType"] for layer in image.layers] == [mediatypes.LAYER_GZIP] * 2
    assert image.image_config()["config"]["Cmd"] == ["/bin/program"]
    check(store, image)


@pytest.mark.parametrize("packed", [False, True])
def test_skopeo_oci_archive(store: Store, umoci_layout: Path, tmp_path: Path, packed: bool) -> None:
    need("skopeo", "gzip")
    where = tmp_path / "a.tar"
    run("skopeo", "copy", "-q", f"oci:{umoci_layout}:v1", f"oci-archive:{where}:v1")
    if packed:
        run("gzip", str(where))
        where = tmp_path / "a.tar.gz"
    image = pull(store, f"oci-archive:{where}")
    assert image.name == "localhost/a:v1"
    check(store, image)


@pytest.mark.parametrize("packed", [False, True])
def test_skopeo_docker_archive(store: Store, umoci_layout: Path, tmp_path: Path, packed: bool) -> None:
    need("skopeo", "gzip")
    where = tmp_path / "a.tar"
    run("skopeo", "copy", "-q", f"oci:{umoci_layout}:v1", f"docker-archive:{where}:busybox:1.36")
    if packed:
        run("gzip", str(where))
        where = tmp_path / "a.tar.gz"
    image = pull(store, f"docker-archive:{where}:busybox:1.36")
    assert image.name == "docker.io/library/busybox:1.36"
    assert [layer["mediaType"] for layer in image.layers] == [mediatypes.LAYER] * 2
    check(store, image)


def test_skopeo_zstd_and_docker_types(store: Store, umoci_layout: Path, tmp_path: Path) -> None:
    need("skopeo")
    zstd = tmp_path / "zstd"
    run("skopeo", "copy", "-q", "--dest-compress-format", "zstd", f"oci:{umoci_layout}:v1", f"oci:{zstd}:v1")
    image = pull(store, f"oci:{zstd}:v1")
    check(store, image)
    # v2s2 exists in dir: and registries only; the manifest goes into a layout byte by byte here
    where = tmp_path / "dir"
    run("skopeo", "copy", "-q", "--format", "v2s2", f"oci:{umoci_layout}:v1", f"dir:{where}")
    data = (where / "manifest.json").read_bytes()
    manifest = json.loads(data)
    layout = Store.open(str(tmp_path / "docker"))
    for part in (manifest["config"], *manifest["layers"]):
        layout.put((where / part["digest"][7:]).read_bytes(), part)
    layout.tag("v2", layout.put(data, media_type=mediatypes.DOCKER_MANIFEST))
    docker = pull(store, f"oci:{layout.path}:v2")
    assert docker.descriptor["mediaType"] == mediatypes.DOCKER_MANIFEST
    assert docker.digest == sha256_of(data)
    assert docker.layers[0]["mediaType"] == mediatypes.DOCKER_LAYER_GZIP
    check(store, docker)


def test_buildah(store: Store, tmp_path: Path, tree: Path) -> None:
    need("buildah")
    if os.geteuid() != 0:
        pytest.skip("buildah as a user needs a user namespace set up")
    storage = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]

    def buildah(*words: str) -> str:
        return run("buildah", *storage, *words).strip()

    container = buildah("from", "scratch")
    try:
        buildah("copy", container, str(tree / "bin"), "/bin")
        buildah("config", "--cmd", "/bin/program", "--env", "A=b", "--label", "k=v", container)
        for number, (option, media_type) in enumerate(
            (("--format=oci", mediatypes.MANIFEST), ("--format=docker", mediatypes.DOCKER_MANIFEST))
        ):
            buildah("commit", option, container, f"localhost/made:{number}")
            target = f"{tmp_path}/out{number}"
            if media_type == mediatypes.MANIFEST:
                buildah("push", f"localhost/made:{number}", f"oci:{target}:v1")
                image = pull(store, f"oci:{target}:v1")
            else:
                buildah("push", f"localhost/made:{number}", f"docker-archive:{target}:made:v1")
                image = pull(store, f"docker-archive:{target}")
            config = image.image_config()["config"]
            assert config["Cmd"] == ["/bin/program"]
            assert "A=b" in config["Env"]
            assert config["Labels"]["k"] == "v"
            assert image.platform == host_platform()
            check(store, image)
    finally:
        buildah("rm", "--all")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A function that runs ``docker`` against a daemon of our own, without network."""
    need("dockerd", "docker")
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    where = tmp_path_factory.mktemp("docker")
    socket = f"unix://{where}/s"
    command = ["dockerd", "--data-root", f"{where}/data", "--exec-root", f"{where}/exec", "--pidfile", f"{where}/pid"]
    command += ["-H", socket, "--iptables=false", "--bridge=none", "--storage-driver=vfs"]
    with (where / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        ready = False
        for _ in range(120):
            ready = (
                subprocess.run(["docker", "-H", socket, "version"], capture_output=True, check=False).returncode == 0
            )
            if ready or daemon.poll() is not None:
                break
            time.sleep(0.25)
        if not ready:
            last = (where / "log").read_text(errors="replace").splitlines()[-1:]
            pytest.skip(f"dockerd does not start here: {' '.join(last)[:200]}")
        yield lambda *words: run("docker", "-H", socket, *words).strip()
    finally:
        daemon.terminate()
        daemon.wait()
        left = [row.split()[4] for row in Path("/proc/self/mountinfo").read_text().splitlines() if str(where) in row]
        for mount in reversed(left):
            subprocess.run(["umount", "-l", mount], check=False)


def test_docker_save_and_import(store: Store, docker: Callable[..., str], tree: Path, tmp_path: Path) -> None:
    tar = tmp_path / "tree.tar"
    run("tar", "-C", str(tree), "-cf", str(tar), ".")
    imported = docker("import", "-c", "CMD /bin/program", str(tar), "imported:1")
    container = docker("create", "imported:1")
    docker("cp", str(tree / "etc" / "motd"), f"{container}:/motd")
    committed = docker("commit", "-c", "ENV A=b", container, "committed:2")
    docker("rm", container)
    docker("save", "-o", str(tmp_path / "one.tar"), "imported:1")
    docker("save", "-o", str(tmp_path / "two.tar"), "imported:1", "committed:2")
    one = pull(store, f"docker-archive:{tmp_path}/one.tar")
    assert (one.name, one.id) == ("docker.io/library/imported:1", imported)
    check(store, one)
    two = pull(store, f"docker-archive:{tmp_path}/two.tar:committed:2")
    assert two.id == committed
    assert len(two.layers) == 2
    assert two.layers[0] == one.layers[0]  # docker save wrote it once, and a link to it
    assert "A=b" in two.image_config()["config"]["Env"]
    check(store, two)
    again = pull(store, f"docker-archive:{tmp_path}/two.tar:imported:1")
    assert again.digest == one.digest


def test_our_store_is_a_source_for_us_and_them(store: Store, umoci_layout: Path, tmp_path: Path) -> None:
    need("skopeo")
    first = pull(store, f"oci:{umoci_layout}:v1")
    second = Store.open(str(tmp_path / "second"))
    image = fetch(f"oci:{store.path}:{first.name}", second)
    assert (image.name, image.digest) == (first.name, first.digest)
    run("skopeo", "copy", "-q", f"oci:{store.path}:{first.name}", f"oci:{tmp_path}/third:x")
    assert fetch(f"oci:{tmp_path}/third:x", second).digest == first.digest


def test_umoci_collects_our_store_as_we_do(store: Store, umoci_layout: Path) -> None:
    image = pull(store, f"oci:{umoci_layout}:v1")
    loose = store.put(b"loose")
    run("umoci", "gc", "--layout", store.path)
    assert not store.has(loose["digest"])
    assert {digest for digest, _ in store.blobs()} == {
        image.digest,
        image.id,
        *(layer["digest"] for layer in image.layers),
    }
    assert store.gc().digests == ()

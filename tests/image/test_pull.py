"""Copies into the store: complete or not at all, in parallel, once; wrong bytes refused (docs/security.md I9, I11)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ocimake import Image, digest_of, docker_files, fetch, layer_of, named, platform, tar_of, write_layout
from slowsource import Slow

from knarr.base.errors import (
    DigestMismatch,
    FormatError,
    Interrupted,
    KnarrError,
    NotFound,
    SizeMismatch,
    SpecError,
    Unsupported,
)
from knarr.content.store import Store
from knarr.image.catalog import INDEX_DIGEST, lookup
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from knarr.image.catalog import Image as Stored
    from knarr.image.transfer import BlobProgress

AMD64 = parse_platform("linux/amd64")
ONE, TWO = layer_of("one"), layer_of("two")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def pull(store: Store, text: str, **options: Any) -> Stored:
    return fetch(text, store, **{"platform": AMD64, **options})


def blobs(store: Store) -> set[str]:
    return {digest for digest, _ in store.blobs()}


def clean(store: Store) -> None:
    """Assert that nothing was left: no name, no unfinished blob."""
    assert store.tags() == {}
    assert os.listdir(f"{store.path}/.tmp") == []


@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_an_image_arrives_whole_and_unchanged(tmp_path: Path, store: Store, kind: str) -> None:
    image = Image(ONE, TWO, ONE, kind=kind)
    where = write_layout(tmp_path / "l", [named(image.descriptor, "v1")], image)
    steps: list[BlobProgress] = []
    got = pull(store, f"oci:{where}:v1", progress=steps.append)
    assert got.name == "localhost/l:v1"
    assert got.digest == image.descriptor["digest"]
    assert got.id == image.manifest["config"]["digest"]
    assert [layer["digest"] for layer in got.layers] == [layer["digest"] for layer in image.manifest["layers"]]
    assert got.diff_ids == [digest_of(ONE), digest_of(TWO), digest_of(ONE)]
    assert got.created == "2026-01-02T03:04:05Z"
    assert str(got.platform) == "linux/amd64"
    assert got.size == sum(map(len, image.blobs.values()))
    for digest, data in image.blobs.items():
        assert Path(store.blob_path(digest)).read_bytes() == data
    assert blobs(store) == set(image.blobs)
    last = {step.digest: step for step in steps}
    assert set(last) == set(image.blobs)
    assert all(step.status == "done" and step.done == step.size for step in last.values())
    assert {step.kind for step in last.values()} == {"config", "layer", "manifest"}


def test_what_is_there_is_not_read_again(tmp_path: Path, store: Store) -> None:
    first, second = Image(ONE), Image(ONE, TWO)
    pull(store, f"oci:{write_layout(tmp_path / 'a', [first.descriptor], first)}")
    where = write_layout(tmp_path / "b", [second.descriptor], second)
    shared = second.manifest["layers"][0]["digest"]
    (where / "blobs" / shared.replace(":", "/")).unlink()  # reading it would fail
    steps: list[BlobProgress] = []
    pull(store, f"oci:{where}", progress=steps.append)
    assert [step.status for step in steps if step.digest == shared] == ["waiting", "present"]
    steps.clear()
    pull(store, f"oci:{where}", progress=steps.append)
    assert {step.status for step in steps} == {"waiting", "present"}


def test_of_an_index_only_the_platform_comes_and_the_index_is_remembered(tmp_path: Path, store: Store) -> None:
    amd, arm = Image(ONE), Image(TWO, platform="linux/arm64")
    top = amd.index(
        {**amd.descriptor, "platform": platform("linux/amd64")}, {**arm.descriptor, "platform": platform("linux/arm64")}
    )
    where = write_layout(tmp_path / "l", [named(top, "x")], amd, arm)
    got = pull(store, f"oci:{where}:x", platform=parse_platform("linux/arm64"))
    assert got.digest == arm.descriptor["digest"]
    assert blobs(store) == set(arm.blobs)
    entry = store.resolve("localhost/l:x")
    assert entry.get("annotations", {})[INDEX_DIGEST] == top["digest"]
    assert entry.get("platform") == platform("linux/arm64")
    assert lookup(store, f"localhost/l@{top['digest']}").digest == got.digest
    assert lookup(store, f"localhost/l@{got.digest}").digest == got.digest


def test_a_docker_archive_becomes_the_same_image_everywhere(tmp_path: Path) -> None:
    image = Image(ONE, TWO)
    (tmp_path / "d.tar").write_bytes(tar_of(docker_files("a:1", "b:2", image=image)))
    digests = set()
    for name in ("s", "t"):
        store = Store.open(str(tmp_path / name))
        got = pull(store, f"docker-archive:{tmp_path}/d.tar")
        assert set(store.tags()) == {"docker.io/library/a:1", "docker.io/library/b:2"}
        assert got.name == "docker.io/library/a:1"
        digests.add(got.digest)
    assert len(digests) == 1


# What is wrong


def broken(tmp_path: Path, image: Image) -> str:
    return f"oci:{write_layout(tmp_path / 'l', [image.descriptor], image)}"


@pytest.mark.parametrize("how", ["flip", "longer", "shorter", "gone"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_layer_leaves_no_image(tmp_path: Path, store: Store, how: str, which: int) -> None:
    image = Image(layer_of("big", 3 << 20), TWO)
    text = broken(tmp_path, image)
    victim = image.manifest["layers"][which]["digest"]
    path = tmp_path / "l" / "blobs" / victim.replace(":", "/")
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": data[:-1] + b"\xff", "longer": data + b"\0", "shorter": data[:-1]}[how])
    error = {"flip": DigestMismatch, "gone": NotFound}.get(how, SizeMismatch)
    with pytest.raises(error, match=victim):
        pull(store, text)
    clean(store)
    assert victim not in blobs(store)
    path.write_bytes(data)
    pull(store, text)
    assert blobs(store) == set(image.blobs)


def test_layers_of_unknown_kind_are_refused_before_any_is_read(tmp_path: Path, store: Store) -> None:
    for media_type, why in (
        (mediatypes.LAYER_GZIP + "+encrypted", "the layer is encrypted"),
        ("application/vnd.docker.image.rootfs.diff.tar.xz", "knarr reads gzip, zstd"),
        ("application/octet-stream", "not a layer of an image"),
    ):
        image = Image(ONE)
        image.seal(layers=[{**image.manifest["layers"][0], "mediaType": media_type}])
        with pytest.raises(Unsupported, match=why):
            pull(store, broken(tmp_path, image))
        clean(store)
        assert blobs(store) == set()


def test_config_and_manifest_must_fit(tmp_path: Path, store: Store) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rootfs": {"type": "layers", "diff_ids": []}}, "the manifest has 1 layers"),
        ({"rootfs": {"type": "layers", "diff_ids": [digest_of(ONE)] * 2}}, "has 2 items"),
        ({"rootfs": {"type": "other", "diff_ids": [digest_of(ONE)]}}, "/rootfs/type"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}}, "/rootfs/diff_ids/0"),
        ({"os": None}, "/os"),
        ({"architecture": 1}, "/architecture"),
        ({"config": {"Env": ["no equals sign"]}}, "/config/Env/0"),
        ({"config": {"Cmd": "a string"}}, "/config/Cmd"),
    ]
    for change, why in cases:
        image = Image(ONE)
        image.config.update(change)
        with pytest.raises(SpecError, match=why):
            pull(store, broken(tmp_path, image.seal()))
        clean(store)
        assert blobs(store) == set()
    image = Image(ONE)
    image.config["history"] *= 10  # longer than the layers: tolerated
    pull(store, broken(tmp_path, image.seal()))


def test_how_many_layers(tmp_path: Path, store: Store) -> None:
    for count in (127, 128):
        image = Image(*[ONE] * count)
        if count == 127:
            assert len(pull(store, broken(tmp_path, image)).layers) == 127
        else:
            with pytest.raises(SpecError, match="has 128 layers, at most 127"):
                pull(store, broken(tmp_path, image))


def test_one_layer_with_two_sizes(tmp_path: Path, store: Store) -> None:
    image = Image(ONE, ONE)
    layer = image.manifest["layers"][0]
    image.seal(layers=[layer, {**layer, "size": layer["size"] + 1}])
    with pytest.raises(SpecError, match="/layers/1/size"):
        pull(store, broken(tmp_path, image))
    clean(store)


def test_what_says_it_is_too_large_is_not_even_opened(tmp_path: Path, store: Store) -> None:
    image = Image(ONE).seal(annotations={"a": "x" * (5 << 20)})
    source = Slow(broken(tmp_path, image), 0)
    with pytest.raises(FormatError, match="at most 4194304 are read"):
        copy(source, store, ["x"], platform=AMD64)
    assert source.opened == []


def test_the_same_layer_compressed_twice(tmp_path: Path, store: Store) -> None:
    gzipped, zstd = Image(ONE, kind="gzip"), Image(ONE, kind="zstd")
    gzipped.blobs.update(zstd.blobs)
    gzipped.config["rootfs"]["diff_ids"] *= 2
    gzipped.seal(layers=[*gzipped.manifest["layers"], *zstd.manifest["layers"]])
    got = pull(store, broken(tmp_path, gzipped))
    assert len({layer["digest"] for layer in got.layers}) == 2
    assert len(set(got.diff_ids)) == 1


def test_an_artifact_is_copied_but_is_no_image(tmp_path: Path, store: Store) -> None:
    image = Image(ONE)
    empty = image.put(mediatypes.EMPTY_BYTES, mediatypes.EMPTY)
    thing = image.put(b"a drawing", "image/x-drawing")
    image.manifest.update({"artifactType": "application/x-drawing", "config": empty, "layers": [thing]})
    image.descriptor = image.put(json.dumps(image.manifest).encode(), mediatypes.MANIFEST)
    got = pull(store, broken(tmp_path, image))
    assert got.config is None
    assert store.read_blob(got.layers[0]) == b"a drawing"
    with pytest.raises(Unsupported, match="'application/x-drawing', not an image"):
        got.image_config()
    with pytest.raises(Unsupported):
        _ = got.diff_ids


def test_subjects_and_urls_are_carried_never_followed(tmp_path: Path, store: Store) -> None:
    image = Image(ONE)
    layer = {
        **image.manifest["layers"][0],
        "mediaType": mediatypes.LAYER_FOREIGN_GZIP,
        "urls": ["http://127.0.0.1:1/x"],
    }
    subject = {"mediaType": mediatypes.MANIFEST, "digest": digest_of(b"other"), "size": 5}
    image.seal(layers=[layer], subject=subject)
    got = pull(store, broken(tmp_path, image))
    assert got.layers[0].get("urls") == ["http://127.0.0.1:1/x"]
    assert digest_of(b"other") not in blobs(store)


# Being stopped


def copiers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("knarr-copy")]


@pytest.mark.parametrize("layers", [1, 6])
def test_ctrl_c_in_the_middle(tmp_path: Path, store: Store, layers: int) -> None:
    image = Image(*(layer_of(str(number), 1 << 20) for number in range(layers)), kind="")
    source = Slow(broken(tmp_path, image), 0.02)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        copy(source, store, ["x"], platform=AMD64)
    source.close()
    assert copiers() == []
    clean(store)
    pull(store, f"oci:{tmp_path}/l")
    assert blobs(store) == set(image.blobs)


def test_an_error_stops_the_other_threads(tmp_path: Path, store: Store) -> None:
    image = Image(layer_of("small"), *(layer_of(str(number), 1 << 20) for number in range(12)), kind="")
    text = broken(tmp_path, image)
    victim = image.manifest["layers"][0]
    (tmp_path / "l" / "blobs" / victim["digest"].replace(":", "/")).write_bytes(bytes(victim["size"]))
    source = Slow(text, 0.02)
    with pytest.raises(DigestMismatch, match=victim["digest"]):
        copy(source, store, ["x"], platform=AMD64)
    assert source.aborted
    assert len(set(source.opened)) < len(image.blobs)  # not all layers were begun
    assert copiers() == []
    clean(store)


def test_a_progress_callback_may_stop_the_copy(tmp_path: Path, store: Store) -> None:
    image = Image(*(layer_of(str(number), 1 << 18) for number in range(4)), kind="")

    def stop(progress: BlobProgress) -> None:
        if progress.kind == "layer" and progress.done:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        pull(store, broken(tmp_path, image), progress=stop)
    clean(store)


def test_progress_comes_one_call_at_a_time(tmp_path: Path, store: Store) -> None:
    image = Image(*(layer_of(str(number), 1 << 20) for number in range(6)), kind="")
    inside: list[int] = []
    worst: list[int] = []

    def progress(step: BlobProgress) -> None:
        inside.append(1)
        time.sleep(0.001)
        worst.append(len(inside))
        inside.pop()
        assert step.done <= step.size

    pull(store, broken(tmp_path, image), progress=progress)
    assert set(worst) == {1}


def test_two_pulls_at_once_copy_each_blob_once(tmp_path: Path, store: Store) -> None:
    image = Image(*(layer_of(str(number), 1 << 20) for number in range(3)), kind="")
    text = broken(tmp_path, image)
    sources = [Slow(text, 0.005) for _ in range(4)]
    errors: list[BaseException] = []

    def work(source: Slow) -> None:
        try:
            copy(source, store, ["x"], platform=AMD64)
        except KnarrError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    opened = [digest for source in sources for digest in source.opened]
    for layer in image.manifest["layers"]:
        assert opened.count(layer["digest"]) == 1
    assert blobs(store) == set(image.blobs)


KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
from slowsource import Slow
from knarr.content.store import Store
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
store = Store.open(sys.argv[1])
print("ready", flush=True)
copy(Slow(sys.argv[2], 0.0005, 32 << 10), store, ["localhost/x:latest"], platform=parse_platform("linux/amd64"))
print("done", flush=True)
"""


def test_killed_pulls_leave_a_valid_store_and_the_next_one_succeeds(tmp_path: Path) -> None:
    """docs/security.md I9, quick: 24 pulls killed at points spread over a pull's length."""
    image = Image(*(layer_of(str(number), 1 << 20) for number in range(5)), kind="")
    text = broken(tmp_path, image)
    path = str(tmp_path / "store")
    Store.open(path)
    done = halfway = 0
    points = 24
    for number in range(points):
        command = [sys.executable, "-c", KILLED, path, text, str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.12 * number / points)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += process.stdout.read() == "done\n"
        process.stdout.close()
        store = Store.open(path)
        halfway += bool(os.listdir(f"{path}/.tmp"))
        valid(store, image)
        if number % 6 == 5:
            store.gc(timeout=1)
            assert os.listdir(f"{path}/.tmp") == []
            valid(store, image)
            if store.tags():
                store.untag("localhost/x:latest")
                store.gc(timeout=1)
                assert blobs(store) == set()
    assert halfway >= 5  # the test is live: blobs were being written
    assert done < points
    store = Store.open(path)
    pull(store, text)
    assert blobs(store) == set(image.blobs)
    assert os.listdir(f"{path}/.tmp") == []


def valid(store: Store, image: Image) -> None:
    """Assert: every blob is one of the image's and whole, and if the name is there, so is everything it means."""
    found = blobs(store)
    for digest in found:
        assert Path(store.blob_path(digest)).read_bytes() == image.blobs[digest]
    if "localhost/x:latest" in store.tags():
        assert found == set(image.blobs)
        assert lookup(store, "localhost/x").digest == image.descriptor["digest"]

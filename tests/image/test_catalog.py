"""What the store holds, as images: names, ids, prefixes, descriptions, removal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ocimake import Image, layer_of, named, write_layout

from knarr.base.errors import DigestMismatch, InUse, InvalidReference, NotFound
from knarr.content.store import Store
from knarr.image.catalog import describe, images, lookup, remove
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.image.reference import parse_reference
from knarr.image.source import open_source

ONE, TWO, THREE = layer_of("one"), layer_of("two"), layer_of("three")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def add(store: Store, image: Image, *names: str) -> None:
    where = write_layout(Path(store.path).parent / f"l{image.descriptor['digest'][7:15]}", [image.descriptor], image)
    source = open_source(parse_reference(f"oci:{where}"))
    copy(source, store, names, platform=parse_platform("linux/amd64"))
    source.close()


def test_by_name_by_digest_and_by_id(store: Store) -> None:
    one, two = Image(ONE), Image(ONE, TWO)
    add(store, one, "docker.io/library/busybox:latest", "docker.io/library/busybox:1.36")
    add(store, two, "quay.io/x/y:z")
    digest, identity = two.descriptor["digest"], two.manifest["config"]["digest"]
    for text in (
        "quay.io/x/y:z",
        "docker://quay.io/x/y:z".removeprefix("docker://"),
        f"quay.io/x/y@{digest}",
        digest,
        digest[7:],
        digest[7:19],
        identity,
        identity[7:],
        identity[7:11],
        f"sha256:{identity[7:12]}",
    ):
        assert lookup(store, text).digest == digest
    assert lookup(store, "busybox").name == "docker.io/library/busybox:latest"
    assert lookup(store, "busybox:1.36").digest == one.descriptor["digest"]
    assert lookup(store, one.descriptor["digest"]).digest == one.descriptor["digest"]
    for text in ("busybox:2", "y", identity[7:10], f"busybox@{digest}", f"sha256:{'0' * 64}", "0" * 64):
        with pytest.raises(
            NotFound, match=r"there is docker.io/library/busybox:1.36, docker.io/library/busybox:latest, quay"
        ):
            lookup(store, text)
    for text in ("Busybox", "", "a b", "a:"):
        with pytest.raises(InvalidReference):
            lookup(store, text)


def test_what_fits_twice_is_ambiguous(store: Store) -> None:
    one, two = Image(ONE), Image(TWO)
    prefix = one.descriptor["digest"][7:13]
    add(store, one, "docker.io/library/one:latest")
    add(store, two, f"docker.io/library/{prefix}:latest")
    with pytest.raises(InvalidReference, match="ambiguous: a name and the start of an id") as caught:
        lookup(store, prefix)
    assert one.descriptor["digest"] in str(caught.value)
    assert two.descriptor["digest"] in str(caught.value)
    assert lookup(store, f"{prefix}:latest").digest == two.descriptor["digest"]
    # A name that is the start of its own id is not ambiguous.
    own = Image(THREE)
    add(store, own, f"docker.io/library/{own.descriptor['digest'][7:13]}:latest")
    assert lookup(store, own.descriptor["digest"][7:13]).digest == own.descriptor["digest"]


def test_list_goes_on_past_damage(store: Store) -> None:
    one, two = Image(ONE), Image(TWO)
    add(store, one, "localhost/one:1")
    add(store, two, "localhost/two:2")
    path = Path(store.blob_path(one.descriptor["digest"]))
    path.chmod(0o644)
    path.write_bytes(b" " * one.descriptor["size"])
    found, damaged = images(store)
    assert [image.name for image in found] == ["localhost/two:2"]
    assert [type(error) for error in damaged] == [DigestMismatch]
    assert str(path) in str(damaged[0])


def test_describe_is_json_with_every_layer(store: Store) -> None:
    image = Image(ONE, TWO, config={"config": None, "history": None})
    add(store, image, "localhost/one:1")
    said = describe(lookup(store, "localhost/one:1"))
    assert json.loads(json.dumps(said)) == said
    assert said["digest"] == image.descriptor["digest"]
    assert said["platform"] == "linux/amd64"
    assert [layer["diffId"] for layer in said["layers"]] == image.config["rootfs"]["diff_ids"]
    assert said["config"] == {}
    assert said["history"] == []


def test_removal_takes_exactly_what_nobody_needs(store: Store) -> None:
    one, two = Image(ONE), Image(ONE, TWO)
    add(store, one, "localhost/one:1", "localhost/one:2")
    add(store, two, "localhost/two:1")
    assert remove(store, "localhost/one:1").names == ("localhost/one:1",)
    assert lookup(store, "localhost/one:2").digest == one.descriptor["digest"]
    gone = remove(store, "localhost/two:1")
    assert set(gone.digests) == set(two.blobs) - set(one.blobs)
    assert gone.size == sum(len(two.blobs[digest]) for digest in gone.digests)
    assert {digest for digest, _ in store.blobs()} == set(one.blobs)
    remove(store, one.descriptor["digest"][7:15])
    assert list(store.blobs()) == []
    assert store.tags() == {}
    with pytest.raises(NotFound, match="nothing in the store"):
        remove(store, "localhost/one:1")


def test_an_id_with_several_names_wants_force(store: Store) -> None:
    one = Image(ONE)
    add(store, one, "localhost/one:1", "localhost/one:2")
    with pytest.raises(
        InUse, match=r"several names: localhost/one:1, localhost/one:2 \(remove them by name, or use force"
    ):
        remove(store, one.descriptor["digest"])
    assert len(store.tags()) == 2
    assert remove(store, one.descriptor["digest"], force=True).names == ("localhost/one:1", "localhost/one:2")
    assert list(store.blobs()) == []


def test_what_is_in_use_stays_without_a_name(store: Store) -> None:
    one = Image(ONE)
    add(store, one, "localhost/one:1")
    assert remove(store, "localhost/one:1", keep=[one.descriptor["digest"]]).digests == ()
    assert {digest for digest, _ in store.blobs()} == set(one.blobs)
    store.gc()
    assert list(store.blobs()) == []


def test_images_another_tool_put_there_without_a_name(store: Store) -> None:
    one = Image(ONE)
    add(store, one, "x")
    index = json.loads(Path(store.path, "index.json").read_text())
    top = one.index(one.descriptor)
    store.put(one.blobs[top["digest"]])
    index["manifests"] = [one.descriptor, named(top, "an index")]
    Path(store.path, "index.json").write_text(json.dumps(index))
    found, damaged = images(store)
    assert [image.name for image in found] == ["", "an index"]
    assert found[1].id == found[0].id
    assert damaged == []
    assert remove(store, one.descriptor["digest"]).names == ()
    assert os.listdir(f"{store.path}/.tmp") == []

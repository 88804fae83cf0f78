"""Layouts and archives as sources: what a reference means, and what is refused (docs/security.md I11)."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from ocimake import (
    Image,
    compress,
    digest_of,
    docker_files,
    layer_of,
    layout_files,
    named,
    platform,
    tar_of,
    write_layout,
)

from knarr.base.errors import (
    DigestMismatch,
    FileError,
    FormatError,
    InvalidReference,
    KnarrError,
    NotFound,
    SizeMismatch,
    SpecError,
    Unsupported,
    UsageError,
)
from knarr.image.platform import parse_platform
from knarr.image.reference import parse_reference
from knarr.image.resolve import resolve
from knarr.image.source import open_source
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knarr.image.source import ImageSource

AMD64 = parse_platform("linux/amd64")
ONE, TWO = layer_of("one"), layer_of("two")


def source(text: str) -> ImageSource:
    return open_source(parse_reference(text))


def found(text: str, wanted: str = "linux/amd64") -> str:
    """The digest of the manifest that a reference means."""
    opened = source(text)
    try:
        return str(resolve(opened, parse_platform(wanted)).descriptor["digest"])
    finally:
        opened.close()


def read(opened: ImageSource, descriptor: Any) -> bytes:
    stream = opened.open_blob(descriptor)
    parts = []
    while part := stream.read(1000):
        parts.append(part)
    stream.close()
    return b"".join(parts)


# Layouts: which image is meant


def test_tags_digests_and_the_only_one(tmp_path: Path) -> None:
    one, two = Image(ONE), Image(ONE, TWO)
    where = write_layout(
        tmp_path / "l", [named(one.descriptor, "1.0"), named(two.descriptor, "docker.io/library/b:2")], one, two
    )
    digest = one.descriptor["digest"]
    assert found(f"oci:{where}:1.0") == digest
    assert found(f"oci:{where}@{digest}") == digest
    assert found(f"oci:{where}:docker.io/library/b:2") == two.descriptor["digest"]
    assert found(f"oci:{where}:b:2") == two.descriptor["digest"]
    with pytest.raises(
        InvalidReference, match=r"several images \(name one as oci:.*:TAG; there is 1.0, docker.io/library/b:2"
    ):
        found(f"oci:{where}")
    with pytest.raises(NotFound, match=r"tag 3 in .* does not exist; there is 1.0, docker.io/library/b:2"):
        found(f"oci:{where}:3")
    with pytest.raises(NotFound, match=f"there is {digest}"):
        found(f"oci:{where}@sha256:{'0' * 64}")
    assert source(f"oci:{where}:1.0").names() == ["localhost/l:1.0"]
    assert source(f"oci:{where}:b:2").names() == ["localhost/l:b-2"]
    assert source(f"oci:{where}:docker.io/library/b:2").names() == ["docker.io/library/b:2"]


def test_one_image_needs_no_tag(tmp_path: Path) -> None:
    image = Image(ONE)
    for entries in (
        [image.descriptor],
        [named(image.descriptor, "x")],
        [named(image.descriptor, "x"), named(image.descriptor, "y")],
    ):
        where = write_layout(tmp_path / "l", entries, image)
        assert found(f"oci:{where}") == image.descriptor["digest"]


def test_latest_among_several(tmp_path: Path) -> None:
    one, two = Image(ONE), Image(TWO)
    where = write_layout(tmp_path / "l", [named(one.descriptor, "latest"), named(two.descriptor, "x")], one, two)
    assert found(f"oci:{where}") == one.descriptor["digest"]
    assert source(f"oci:{where}").names() == ["localhost/l:latest"]


def test_names_of_containerd(tmp_path: Path) -> None:
    image, other = Image(ONE), Image(TWO)
    entry = named(image.descriptor, "latest")
    entry["annotations"][mediatypes.IMAGE_NAME] = "docker.io/library/c:latest"
    where = write_layout(tmp_path / "l", [entry, named(other.descriptor, "z")], image, other)
    assert found(f"oci:{where}:c") == image.descriptor["digest"]


def test_no_image_at_all(tmp_path: Path) -> None:
    where = write_layout(tmp_path / "l", [])
    with pytest.raises(NotFound, match=r"an image in .* does not exist; there is nothing"):
        found(f"oci:{where}")
    with pytest.raises(NotFound, match="there is 0 without a tag"):
        found(f"oci:{where}:x")
    with pytest.raises(NotFound, match=r"directory .*/no does not exist"):
        source(f"oci:{tmp_path}/no")
    with pytest.raises(NotFound, match="an OCI image layout in"):
        source(f"oci:{tmp_path}")
    (tmp_path / "f").write_text("")
    with pytest.raises(FileError, match="not a directory"):
        source(f"oci:{tmp_path}/f")
    with pytest.raises(NotFound, match=r"file .*/no.tar does not exist"):
        source(f"oci-archive:{tmp_path}/no.tar")
    for text in ("host:", "bundle:/x"):
        with pytest.raises(UsageError, match="names no image"):
            source(text)
    with pytest.raises(UsageError, match="no registry can be asked"):
        source("busybox")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "imageLayoutVersion"),
        ("oci-layout", b"{}", "imageLayoutVersion"),
        ("oci-layout", b"\xff\xfe", "UTF-8"),
        ("index.json", b'{"schemaVersion": 2, "manifests": [], "layers": []}', "layers"),
        ("index.json", b'{"schemaVersion": 1}', "schema 1"),
        ("index.json", b'{"schemaVersion": 2, "schemaVersion": 2, "manifests": []}', "schemaVersion"),
        ("index.json", b'{"schemaVersion": 2, "manifests": []} x', "index"),
    ],
)
def test_layout_documents_are_checked(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    image = Image(ONE)
    where = write_layout(tmp_path / "l", [image.descriptor], image)
    (where / name).write_bytes(data)
    with pytest.raises(SpecError, match=why):
        found(f"oci:{where}")


def test_a_huge_index_is_not_read(tmp_path: Path) -> None:
    where = write_layout(tmp_path / "l", [])
    with (where / "index.json").open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(FormatError, match="it has 104857600 bytes, at most"):
        found(f"oci:{where}")


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "blob"])
def test_a_fifo_does_not_block(tmp_path: Path, name: str) -> None:
    image = Image(ONE)
    where = write_layout(tmp_path / "l", [image.descriptor], image)
    path = where / (name if name != "blob" else "blobs/" + image.descriptor["digest"].replace(":", "/"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match="not a regular file"):
        found(f"oci:{where}")


def test_blobs_may_be_links_to_the_right_bytes_only(tmp_path: Path) -> None:
    image = Image(ONE)
    where = write_layout(tmp_path / "l", [image.descriptor], image)
    path = where / ("blobs/" + image.descriptor["digest"].replace(":", "/"))
    path.rename(tmp_path / "cache")
    path.symlink_to(tmp_path / "cache")
    assert found(f"oci:{where}") == image.descriptor["digest"]
    (tmp_path / "cache").write_bytes(b"x" * image.descriptor["size"])
    with pytest.raises(DigestMismatch):
        found(f"oci:{where}")


# Wrong digests and sizes, level by level


@pytest.mark.parametrize("level", ["index", "manifest", "config", "layer"])
@pytest.mark.parametrize("how", ["flip", "longer", "shorter", "empty", "gone"])
def test_wrong_bytes_at_every_level(tmp_path: Path, level: str, how: str) -> None:
    image = Image(ONE)
    top = image.index({**image.descriptor, "platform": platform("linux/amd64")})
    victim = {
        "index": top,
        "manifest": image.descriptor,
        "config": image.manifest["config"],
        "layer": image.manifest["layers"][0],
    }[level]
    data = image.blobs[victim["digest"]]
    changed = {
        "flip": data[:-1] + bytes([data[-1] ^ 1]),
        "longer": data + b"\n",
        "shorter": data[:-1],
        "empty": b"",
        "gone": None,
    }[how]
    if changed is None:
        del image.blobs[victim["digest"]]
    else:
        image.blobs[victim["digest"]] = changed
    where = write_layout(tmp_path / "l", [top], image)
    error = {"flip": DigestMismatch, "gone": NotFound}.get(how, SizeMismatch)
    opened = source(f"oci:{where}")
    with pytest.raises(error, match=victim["digest"]):
        read_everything(opened)
    opened.close()


def read_everything(opened: ImageSource) -> None:
    manifest = resolve(opened, AMD64).manifest
    for descriptor in (manifest["config"], *manifest["layers"]):
        read(opened, descriptor)


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("level", ["manifest", "config"])
def test_wrong_sizes_in_descriptors(tmp_path: Path, level: str, change: int) -> None:
    image = Image(ONE)
    if level == "config":
        config = dict(image.manifest["config"])
        config["size"] += change
        image.manifest["config"] = config
        image.descriptor = image.put(json.dumps(image.manifest).encode(), mediatypes.MANIFEST)
        where = write_layout(tmp_path / "l", [image.descriptor], image)
    else:
        where = write_layout(tmp_path / "l", [{**image.descriptor, "size": image.descriptor["size"] + change}], image)
    with pytest.raises(SizeMismatch):
        found(f"oci:{where}")


@pytest.mark.parametrize("size", [-1, 2**63, "12", 12.0, True, None])
def test_sizes_that_are_none(tmp_path: Path, size: object) -> None:
    image = Image(ONE)
    where = write_layout(tmp_path / "l", [{**image.descriptor, "size": size}], image)
    with pytest.raises(SpecError, match="/manifests/0/size"):
        found(f"oci:{where}")


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:", "../x", "sha256:" + "A" * 64, "sha1:" + "a" * 40, "a" * 64]
)
def test_digests_that_are_none(tmp_path: Path, digest: str) -> None:
    image = Image(ONE)
    where = write_layout(tmp_path / "l", [{**image.descriptor, "digest": digest}], image)
    with pytest.raises(SpecError, match="/manifests/0/digest"):
        found(f"oci:{where}")


def test_an_unknown_algorithm_is_carried_until_it_is_needed(tmp_path: Path) -> None:
    image = Image(ONE)
    odd = {"mediaType": mediatypes.MANIFEST, "digest": "foo:abc", "size": 3, "platform": platform("linux/s390x")}
    where = write_layout(tmp_path / "l", [{**image.descriptor, "platform": platform("linux/amd64")}, odd], image)
    assert found(f"oci:{where}") == image.descriptor["digest"]
    with pytest.raises(KnarrError, match="foo is not an algorithm knarr can check"):
        found(f"oci:{where}", "linux/s390x")


def test_a_manifest_above_four_mebibytes(tmp_path: Path) -> None:
    for padding, fits in ((4 << 20, False), ((4 << 20) - 5000, True)):
        image = Image(ONE).seal(annotations={"a": "x" * padding})
        where = write_layout(tmp_path / "l", [image.descriptor], image)
        if fits:
            assert found(f"oci:{where}") == image.descriptor["digest"]
        else:
            with pytest.raises(FormatError, match="at most 4194304 are read"):
                found(f"oci:{where}")


# Embedded data


def test_embedded_data_is_used_and_checked(tmp_path: Path) -> None:
    import base64

    image = Image(ONE)
    data = image.blobs.pop(image.descriptor["digest"])
    entry = {**image.descriptor, "data": base64.b64encode(data).decode()}
    where = write_layout(tmp_path / "l", [entry], image)
    assert found(f"oci:{where}") == image.descriptor["digest"]
    for wrong in (base64.b64encode(data[:-1] + b"x").decode(), base64.b64encode(data + b"x").decode(), "not base64!"):
        write_layout(tmp_path / "l", [{**entry, "data": wrong}], image)
        with pytest.raises(SpecError, match="/manifests/0/data"):
            found(f"oci:{where}")


# Kinds of documents


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"manifests": []}, "manifests"),
        ({"mediaType": mediatypes.INDEX}, "mediaType"),
        ({"mediaType": mediatypes.DOCKER_MANIFEST}, "mediaType"),
        ({"Layers": []}, "Layers"),
        ({"fsLayers": []}, "fsLayers"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": 3}, "schemaVersion"),
        ({"schemaVersion": "2"}, "schemaVersion"),
        ({"layers": "x"}, "layers"),
    ],
)
def test_manifests_that_are_two_things_or_none(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    image = Image(ONE).seal(**changes)
    where = write_layout(tmp_path / "l", [{**image.descriptor, "mediaType": mediatypes.MANIFEST}], image)
    with pytest.raises(SpecError, match=why):
        found(f"oci:{where}")


def test_an_index_named_as_manifest_and_the_other_way_round(tmp_path: Path) -> None:
    image = Image(ONE)
    index = image.index(image.descriptor)
    for entry in (
        {**index, "mediaType": mediatypes.MANIFEST},
        {**index, "mediaType": mediatypes.DOCKER_LIST},
        {**image.descriptor, "mediaType": mediatypes.INDEX},
        {**image.descriptor, "mediaType": mediatypes.DOCKER_MANIFEST},
    ):
        where = write_layout(tmp_path / "l", [entry], image)
        with pytest.raises(SpecError):
            found(f"oci:{where}")


def test_schema_1_and_unknown_types_are_named(tmp_path: Path) -> None:
    image = Image(ONE)
    for media_type, why in (
        (mediatypes.DOCKER_SCHEMA1_SIGNED, "schema 1 image"),
        ("application/x", "media type 'application/x'"),
    ):
        where = write_layout(tmp_path / "l", [{**image.descriptor, "mediaType": media_type}], image)
        with pytest.raises(Unsupported, match=why):
            found(f"oci:{where}")


# Platforms


def test_an_index_chooses_by_platform(tmp_path: Path) -> None:
    names = ["linux/amd64", "linux/arm64", "linux/arm/v5", "linux/arm/v6", "windows/amd64"]
    images = {name: Image(layer_of(name), platform=name) for name in names}
    holder = Image(ONE)
    top = holder.index(*({**image.descriptor, "platform": platform(name)} for name, image in images.items()))
    where = write_layout(tmp_path / "l", [top], holder, *images.values())
    for wanted, got in (
        ("linux/amd64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v6"),
    ):
        assert found(f"oci:{where}", wanted) == images[got].descriptor["digest"]
    with pytest.raises(
        NotFound,
        match=r"for linux/s390x does not exist; there is linux/amd64, linux/arm64, linux/arm/v5, linux/arm/v6, windows",
    ):
        found(f"oci:{where}", "linux/s390x")
    # without an index of its own, the same
    write_layout(
        tmp_path / "l",
        [{**image.descriptor, "platform": platform(name)} for name, image in images.items()],
        *images.values(),
    )
    assert found(f"oci:{where}", "linux/arm64") == images["linux/arm64"].descriptor["digest"]


def test_the_first_of_two_that_fit(tmp_path: Path) -> None:
    one, two = Image(ONE), Image(TWO)
    stated = platform("linux/amd64")
    top = one.index({**two.descriptor, "platform": stated}, {**one.descriptor, "platform": stated})
    where = write_layout(tmp_path / "l", [top], one, two)
    assert found(f"oci:{where}") == two.descriptor["digest"]


def test_without_a_stated_platform_the_config_says(tmp_path: Path) -> None:
    arm, amd = Image(ONE, platform="linux/arm64"), Image(TWO)
    top = arm.index(arm.descriptor, amd.descriptor)
    where = write_layout(tmp_path / "l", [top], arm, amd)
    assert found(f"oci:{where}") == amd.descriptor["digest"]
    assert found(f"oci:{where}", "linux/arm64") == arm.descriptor["digest"]
    with pytest.raises(NotFound, match="there is linux/arm64, linux/amd64"):
        found(f"oci:{where}", "linux/386")


def test_a_single_image_of_another_platform(tmp_path: Path) -> None:
    image = Image(ONE, platform="linux/arm64")
    where = write_layout(tmp_path / "l", [image.descriptor], image)
    with pytest.raises(
        NotFound,
        match=r"for linux/amd64 does not exist; there is linux/arm64 \(ask for one with --platform linux/arm64\)",
    ):
        found(f"oci:{where}")
    assert found(f"oci:{where}", "linux/arm64") == image.descriptor["digest"]


def test_odd_platforms_are_shown_safely_and_attestations_are_not(tmp_path: Path) -> None:
    image = Image(ONE)
    entries = [
        {**image.descriptor, "platform": {"os": "../x", "architecture": "a\x1b[31m"}},
        {**image.descriptor, "platform": platform("unknown/unknown")},
    ]
    where = write_layout(tmp_path / "l", [image.index(*entries)], image)
    with pytest.raises(NotFound) as caught:
        found(f"oci:{where}")
    assert caught.value.among == r"../x/a\x1b[31m"


def test_nested_indexes(tmp_path: Path) -> None:
    image = Image(ONE)
    top = {**image.descriptor, "platform": platform("linux/amd64")}
    for depth in range(1, 8):
        top = image.index(top)
        where = write_layout(tmp_path / f"l{depth}", [top], image)
        if depth <= 5:
            assert found(f"oci:{where}") == image.descriptor["digest"]
        else:
            with pytest.raises(Unsupported, match="nested deeper than 4 levels"):
                found(f"oci:{where}")


def test_an_index_that_would_open_too_much(tmp_path: Path) -> None:
    images = [Image(layer_of(str(number)), platform="linux/s390x") for number in range(40)]
    top = images[0].index(*(image.descriptor for image in images))
    where = write_layout(tmp_path / "l", [top], *images)
    with pytest.raises(Unsupported, match="more than 32 indexes and manifests"):
        found(f"oci:{where}")
    big = images[0].index(*({**images[0].descriptor, "platform": platform("linux/s390x")} for _ in range(20_000)))
    where = write_layout(tmp_path / "m", [big], images[0])
    with pytest.raises((FormatError, SpecError)):
        found(f"oci:{where}")


# Archives


def archive(path: Path, files: dict[str, bytes], pack: Callable[[bytes], bytes] = bytes) -> str:
    path.write_bytes(pack(tar_of(files)))
    return str(path)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["tar", "gzip", "zstd"]
)
def test_an_oci_archive_is_its_layout(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    image = Image(ONE, TWO, kind="zstd")
    where = archive(tmp_path / "Some Image.tar", layout_files([named(image.descriptor, "v1")], image), pack)
    opened = source(f"oci-archive:{where}:v1")
    resolved = resolve(opened, AMD64)
    assert resolved.descriptor["digest"] == image.descriptor["digest"]
    for descriptor in resolved.manifest["layers"]:
        assert read(opened, descriptor) == image.blobs[descriptor["digest"]]
    assert opened.names() == ["localhost/some-image:v1"]
    opened.close()
    with pytest.raises(NotFound, match=r"tag v2 in .* there is v1"):
        found(f"oci-archive:{where}:v2")


def test_archives_that_are_something_else(tmp_path: Path) -> None:
    image = Image(ONE)
    docker = archive(tmp_path / "d.tar", docker_files("x:1", image=image))
    oci = archive(tmp_path / "o.tar", layout_files([image.descriptor], image))
    with pytest.raises(NotFound, match=f"name it docker-archive:{docker}"):
        source(f"oci-archive:{docker}")
    with pytest.raises(NotFound, match=f"name it oci-archive:{oci}"):
        source(f"docker-archive:{oci}")
    old = archive(tmp_path / "v.tar", {"repositories": b"{}"})
    with pytest.raises(NotFound, match=r"Docker before 1\.10"):
        source(f"docker-archive:{old}")
    xz = archive(tmp_path / "x.tar.xz", {"a": b""}, lzma.compress)
    with pytest.raises(Unsupported, match="xz archive"):
        source(f"oci-archive:{xz}")
    bad = archive(tmp_path / "b.tar.gz", {"a": b"x" * 9000}, lambda data: gzip.compress(data)[:-9])
    with pytest.raises(FormatError, match=r"b\.tar\.gz.*ends in the middle"):
        source(f"oci-archive:{bad}")
    with pytest.raises(FileError, match="is a directory"):
        source(f"oci-archive:{tmp_path}")


def test_an_archive_bomb_stops_at_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    facts = os.statvfs(tmp_path)
    small = os.statvfs_result((*facts[:3], 100, 100, *facts[5:]))
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: small)
    where = archive(tmp_path / "bomb.tar.gz", {"a": bytes(64 << 20)}, gzip.compress)
    with pytest.raises(FileError, match=r"no space left on device \(the archive is unpacked there first; set TMPDIR"):
        source(f"oci-archive:{where}")
    assert os.listdir(tmp_path) == ["bomb.tar.gz"]


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_docker_archives(tmp_path: Path, newer: bool, kind: str) -> None:
    image = Image(ONE, TWO)
    files = docker_files("busybox:1.36", "quay.io/x/y:z", image=image, newer=newer, kind=kind)
    where = archive(tmp_path / "d.tar", files)
    opened = source(f"docker-archive:{where}")
    resolved = resolve(opened, AMD64)
    manifest = resolved.manifest
    config = json.dumps(image.config).encode()
    assert manifest["config"] == {"mediaType": mediatypes.CONFIG, "digest": digest_of(config), "size": len(config)}
    media_type = {"": mediatypes.LAYER, "gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}[kind]
    for layer, plain in zip(manifest["layers"], (ONE, TWO), strict=True):
        data = compress(plain, kind)
        assert layer == {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
        assert read(opened, layer) == data
    assert opened.names() == ["docker.io/library/busybox:1.36", "quay.io/x/y:z"]
    opened.close()
    again = source(f"docker-archive:{where}:busybox:1.36")
    assert again.roots()[0]["digest"] == resolved.descriptor["digest"]  # made alike each time
    assert again.names() == ["docker.io/library/busybox:1.36"]
    again.close()
    with pytest.raises(NotFound, match=r"image nope:latest in .* there is busybox:1.36, quay.io/x/y:z"):
        source(f"docker-archive:{where}:nope")


def docker_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None, twice: str = "") -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [*files.items(), *([(twice, files[twice])] if twice else [])]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    path.write_bytes(buffer.getvalue())
    return f"docker-archive:{path}"


def test_a_layer_linked_beside_it_as_docker_save_does(tmp_path: Path) -> None:
    image = Image(ONE, ONE)
    files = docker_files("x:1", image=image)
    second = json.loads(files["manifest.json"])[0]["Layers"][1]
    del files[second]
    text = docker_archive(tmp_path / "d.tar", files, {second: f"../{0:064}/layer.tar"})
    opened = source(text)
    layers = resolve(opened, AMD64).manifest["layers"]
    assert [read(opened, layer) for layer in layers] == [ONE, ONE]
    opened.close()


HOSTILE_LINKS = [
    "/etc/passwd",
    "../../etc/passwd",
    "../../../../../../etc/passwd",
    "../nothing/layer.tar",
    ".",
    "",
    "layer.tar",
]


@pytest.mark.parametrize("target", HOSTILE_LINKS)
def test_other_links_are_refused(tmp_path: Path, target: str) -> None:
    files = docker_files("x:1", image=Image(ONE))
    layer = json.loads(files["manifest.json"])[0]["Layers"][0]
    del files[layer]
    with pytest.raises(FormatError, match="is a symbolic link to"):
        source(docker_archive(tmp_path / "d.tar", files, {layer: target}))


def test_a_link_that_leads_out_of_the_archive_and_back_in_is_refused(tmp_path: Path) -> None:
    files = docker_files("x:1", image=Image(ONE))
    layer = json.loads(files["manifest.json"])[0]["Layers"][0]
    files["real"] = files.pop(layer)
    for target, right in (("../real", True), ("../../real", False), ("../../../tmp/../real", False)):
        text = docker_archive(tmp_path / "d.tar", files, {layer: target})
        if right:
            source(text).close()
        else:
            with pytest.raises(FormatError, match="is a symbolic link to"):
                source(text)


def test_links_to_links_and_links_as_documents_are_refused(tmp_path: Path) -> None:
    files = docker_files("x:1", image=Image(ONE))
    layer = json.loads(files["manifest.json"])[0]["Layers"][0]
    data = files.pop(layer)
    text = docker_archive(tmp_path / "d.tar", {**files, "real": data}, {layer: "../a", "a": "real"})
    with pytest.raises(FormatError, match="symbolic link"):
        source(text)
    del files["manifest.json"]
    with pytest.raises(FormatError, match=r"manifest\.json.*symbolic link"):
        source(docker_archive(tmp_path / "d.tar", files, {"manifest.json": "/etc/passwd"}))


@pytest.mark.parametrize("twice", ["manifest.json", "Config", "Layers"])
def test_members_twice_are_refused(tmp_path: Path, twice: str) -> None:
    files = docker_files("x:1", image=Image(ONE))
    entry = json.loads(files["manifest.json"])[0]
    name = {"Config": entry["Config"], "Layers": entry["Layers"][0]}.get(twice, twice)
    with pytest.raises(FormatError, match="is in the archive twice"):
        source(docker_archive(tmp_path / "d.tar", files, twice=name))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"Config": "../x"}, "/0/Config: must name a file of the archive"),
        ({"Config": "/etc/passwd"}, "/0/Config"),
        ({"Config": 5}, "/0/Config"),
        ({"Layers": ["../x"]}, "/0/Layers: must be an array of names"),
        ({"Layers": ["a/../../x"]}, "/0/Layers"),
        ({"Layers": [""]}, "/0/Layers"),
        ({"Layers": "x"}, "/0/Layers"),
        ({"RepoTags": [1]}, "/0/RepoTags"),
        ({"Layers": []}, "names 1 layers, manifest.json names 0"),
        ({"Layers": None}, "names 1 layers, manifest.json names 0"),
        ({"Layers": ["nothing"]}, "file nothing in .* does not exist"),
        ({"Config": "nothing"}, "file nothing in .* does not exist"),
    ],
)
def test_manifest_json_is_checked(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    files = docker_files("x:1", image=Image(ONE))
    files["manifest.json"] = json.dumps([{**json.loads(files["manifest.json"])[0], **change}]).encode()
    with pytest.raises((SpecError, NotFound), match=why):
        source(docker_archive(tmp_path / "d.tar", files))


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", "null", "[", '[{"Config":"a","Config":"b"}]'])
def test_manifest_json_of_another_shape(tmp_path: Path, text: str) -> None:
    files = {**docker_files("x:1", image=Image(ONE)), "manifest.json": text.encode()}
    with pytest.raises(SpecError, match=r"manifest\.json"):
        source(docker_archive(tmp_path / "d.tar", files))


def test_huge_documents_in_archives(tmp_path: Path) -> None:
    for name in ("manifest.json", "repositories"):
        files = {**docker_files("x:1", image=Image(ONE)), name: b" " * (5 << 20)}
        with pytest.raises((SpecError, FormatError), match=r"at most|more than 4194304"):
            source(docker_archive(tmp_path / "d.tar", files))


def test_a_layer_that_is_not_what_the_config_promises(tmp_path: Path) -> None:
    image = Image(ONE)
    files = docker_files("x:1", image=image)
    name = json.loads(files["manifest.json"])[0]["Layers"][0]
    files[name] = TWO
    opened = source(docker_archive(tmp_path / "d.tar", files))
    layer = resolve(opened, AMD64).manifest["layers"][0]
    with pytest.raises(DigestMismatch, match=r"layer\.tar in"):
        read(opened, layer)
    opened.close()
    files[name] = lzma.compress(ONE)
    with pytest.raises(Unsupported, match="xz layer"):
        source(docker_archive(tmp_path / "d.tar", files))


def test_several_images_in_one_docker_archive(tmp_path: Path) -> None:
    one, two = Image(ONE), Image(ONE, TWO)
    first, second = docker_files("a:1", image=one), docker_files("b:1", image=two)
    both = {**first, **second}
    both["manifest.json"] = json.dumps(
        [*json.loads(first["manifest.json"]), *json.loads(second["manifest.json"])]
    ).encode()
    text = docker_archive(tmp_path / "d.tar", both)
    with pytest.raises(
        InvalidReference, match=r"it holds 2 images \(name one as docker-archive:.*:NAME; there is a:1, b:1"
    ):
        source(text)
    opened = source(f"{text}:b:1")
    assert len(resolve(opened, AMD64).manifest["layers"]) == 2
    opened.close()


def test_an_archive_without_a_name(tmp_path: Path) -> None:
    opened = source(docker_archive(tmp_path / "My.tar", docker_files(image=Image(ONE))))
    assert opened.names() == ["localhost/my:latest"]
    opened.close()

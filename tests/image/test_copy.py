"""From every kind of place to every other: nothing changed where nothing was asked to change, read by other tools."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from hashlib import sha512
from typing import TYPE_CHECKING, Any

import pytest
from ocimake import Image, compress, digest_of, layer_of, layout_files, named, platform, tar_of, write_layout

from knarr.base.errors import DigestMismatch, Exists, KnarrError, NotFound, Unsupported, UsageError
from knarr.content.compress import decompressor
from knarr.content.compressor import parse_compression
from knarr.engine.copying import copy, options_of
from knarr.engine.paths import Places
from knarr.image.archive import _header
from knarr.image.catalog import images, lookup
from knarr.image.copy import Options
from knarr.image.platform import host_platform
from knarr.image.reference import parse_reference
from knarr.image.source import open_source
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from pathlib import Path

    from knarr.image.copy import Copied

ONE, TWO = layer_of("one"), layer_of("two", 3 << 20)
HERE = str(host_platform())
OTHER = "linux/s390x"


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(str(tmp_path / "store"), str(tmp_path / "run"))


def go(where: Places, source: str, target: str, **options: Any) -> Copied:
    return copy(where, source, target, options_of(**options))


def put(kind: str, tmp_path: Path, where: Places, image: Image) -> str:
    """Put an image somewhere and return its reference."""
    first = f"oci:{write_layout(tmp_path / 'first', [named(image.descriptor, 'v1')], image)}:v1"
    if kind == "oci":
        return first
    there = place(kind, tmp_path / "source")
    go(where, first, there)
    return there


def place(kind: str, base: Path) -> str:
    return {
        "oci": f"oci:{base}.layout:v1",
        "oci-archive": f"oci-archive:{base}.tar:v1",
        "docker-archive": f"docker-archive:{base}.docker.tar:some/thing:v1",
        "dir": f"dir:{base}.dir",
        "store": f"store:some/{base.name}:v1",
    }[kind]


KINDS = ("oci", "oci-archive", "docker-archive", "dir", "store")


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_all_pairs(source: str, target: str, tmp_path: Path, where: Places) -> None:
    # A docker-archive holds plain layers only, so there the digest can stay only if they were.
    image = Image(ONE, TWO, kind="" if "docker-archive" in {source, target} else "gzip", platform=HERE)
    if "docker-archive" in {source, target}:  # it writes its own manifest: in the form it writes them
        image.manifest = json.loads(json.dumps(image.manifest))
        image.seal()
    there = put(source, tmp_path, where, image)
    copied = go(where, there, place(target, tmp_path / "target"))
    opened = open_source(parse_reference(place(target, tmp_path / "target"))) if target != "store" else None
    if opened is not None:
        if target != "docker-archive":  # whose manifest is made by whoever reads it
            assert [one["digest"] for one in opened.roots()] == [copied.digest]
        opened.close()
    if "docker-archive" not in {source, target}:
        assert copied.digest == image.descriptor["digest"]
    back = go(where, place(target, tmp_path / "target"), f"oci:{tmp_path}/back:x")
    assert back.digest == copied.digest or target == "docker-archive"
    blobs = {f"{path.parent.name}:{path.name}" for path in (tmp_path / "back" / "blobs").glob("*/*")}
    assert {digest_of(ONE), digest_of(TWO)} <= blobs or "docker-archive" not in {source, target}
    assert sorted(os.listdir(tmp_path / "back")) == ["blobs", "index.json", "oci-layout"]
    leftovers = [name for name in os.listdir(tmp_path) if name.startswith(".knarr-")]
    assert leftovers == []


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "dir"])
def test_skopeo_reads_what_we_write(kind: str, tmp_path: Path, where: Places) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    image = Image(ONE, TWO, kind="gzip", platform=HERE)
    there = place(kind, tmp_path / "x")
    copied = go(where, put("oci", tmp_path, where, image), there)
    raw = subprocess.run(["skopeo", "inspect", "--raw", there], capture_output=True, check=True).stdout
    if kind == "docker-archive":  # skopeo makes a manifest of its own for one
        assert [one["digest"] for one in json.loads(raw)["layers"]] == [digest_of(ONE), digest_of(TWO)]
    else:
        assert digest_of(raw) == copied.digest
    # and all of it, not only the manifest
    subprocess.run(["skopeo", "copy", "-q", there, f"dir:{tmp_path}/again"], capture_output=True, check=True)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "dir"])
def test_we_read_what_skopeo_writes(kind: str, tmp_path: Path, where: Places) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    image = Image(ONE, TWO, kind="gzip", platform=HERE)
    first, there = put("oci", tmp_path, where, image), place(kind, tmp_path / "x")
    subprocess.run(["skopeo", "copy", "-q", first, there], capture_output=True, check=True)
    copied = go(where, there, f"oci:{tmp_path}/mine:1")
    if kind != "docker-archive":
        assert copied.digest == image.descriptor["digest"]
    assert copied.platforms == (HERE,)


def several(tmp_path: Path) -> tuple[str, Image, Image, dict[str, Any]]:
    here, other = Image(ONE, platform=HERE), Image(TWO, platform=OTHER)
    top = here.index(
        {**here.descriptor, "platform": platform(HERE)},
        {**other.descriptor, "platform": platform(OTHER)},
        annotations={"a": "b"},
    )
    return f"oci:{write_layout(tmp_path / 'many', [named(top, 'x')], here, other)}:x", here, other, top


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "dir", "store"])
def test_all_platforms(kind: str, tmp_path: Path, where: Places) -> None:
    source, here, other, top = several(tmp_path)
    there = place(kind, tmp_path / "t")
    copied = go(where, source, there, all=True)
    assert copied.digest == top["digest"]
    assert copied.platforms == (HERE, OTHER)
    back = go(where, there, f"oci:{tmp_path}/back:x", all=True)
    assert back.digest == top["digest"]
    assert go(where, there, f"oci:{tmp_path}/one:x", platforms=[OTHER]).digest == other.descriptor["digest"]
    if shutil.which("skopeo") and kind != "store":
        done = subprocess.run(["skopeo", "inspect", "--raw", there], capture_output=True, check=True)
        assert digest_of(done.stdout) == top["digest"]
    if kind == "store":
        from knarr.engine.paths import open_store

        store = open_store(where)
        assert lookup(store, "some/t:v1").digest == here.descriptor["digest"]
        assert [image.name for image in images(store)[0]] == ["docker.io/some/t:v1"]
        assert store.gc().digests == ()


def test_some_platforms_make_an_index_of_them(tmp_path: Path, where: Places) -> None:
    third = Image(layer_of("three"), platform="linux/riscv64")
    here, other = Image(ONE, platform=HERE), Image(TWO, platform=OTHER)
    about = Image(layer_of("attestation"), platform="unknown/unknown")
    top = here.index(
        *({**one.descriptor, "platform": platform(text)}
          for one, text in ((here, HERE), (other, OTHER), (third, "linux/riscv64"))),
        {**about.descriptor, "platform": platform("unknown/unknown"),
         "annotations": {"vnd.docker.reference.digest": other.descriptor["digest"]}},
    )  # fmt: skip
    source = f"oci:{write_layout(tmp_path / 'l', [named(top, 'x')], here, other, third, about)}:x"
    copied = go(where, source, f"oci:{tmp_path}/t:x", platforms=[OTHER, "linux/riscv64"])
    assert copied.platforms == (OTHER, "linux/riscv64")
    assert copied.digest != top["digest"]
    index = json.loads((tmp_path / "t/blobs" / copied.digest.replace(":", "/")).read_bytes())
    digests = [entry["digest"] for entry in index["manifests"]]
    assert digests == [one.descriptor["digest"] for one in (other, third, about)]
    with pytest.raises(UsageError, match="digests were to be preserved"):
        go(where, source, f"oci:{tmp_path}/u:x", platforms=[OTHER, "linux/riscv64"], preserve_digests=True)
    with pytest.raises(NotFound, match="linux/arm/v6 does not exist; there is"):
        go(where, source, f"oci:{tmp_path}/u:x", platforms=[OTHER, "linux/arm/v6"])
    with pytest.raises(UsageError, match="one platform only"):
        go(where, source, f"docker-archive:{tmp_path}/u.tar", all=True)
    assert not (tmp_path / "u.tar").exists()


def docker_image(*layers: bytes, kind: str = "gzip") -> Image:
    image = Image(*layers, kind=kind, platform=HERE)
    image.seal()
    names = mediatypes.TO_DOCKER
    image.manifest["mediaType"] = mediatypes.DOCKER_MANIFEST
    image.manifest["config"] = {**image.manifest["config"], "mediaType": mediatypes.DOCKER_CONFIG}
    image.manifest["layers"] = [{**one, "mediaType": names[one["mediaType"]]} for one in image.manifest["layers"]]
    image.descriptor = image.put(json.dumps(image.manifest).encode(), mediatypes.DOCKER_MANIFEST)
    return image


def test_formats(tmp_path: Path, where: Places) -> None:
    image = docker_image(ONE, TWO)
    source = f"oci:{write_layout(tmp_path / 'l', [named(image.descriptor, 'x')], image)}:x"
    # Other tools look for OCI documents in a layout.
    copied = go(where, source, f"oci:{tmp_path}/oci:x")
    assert copied.descriptor["mediaType"] == mediatypes.MANIFEST
    if shutil.which("umoci"):
        listed = subprocess.run(["umoci", "ls", "--layout", f"{tmp_path}/oci"], capture_output=True, check=True)
        assert listed.stdout == b"x\n"
    kept = go(where, source, f"oci:{tmp_path}/kept:x", preserve_digests=True)
    assert kept.digest == image.descriptor["digest"]
    back = go(where, f"oci:{tmp_path}/oci:x", f"dir:{tmp_path}/docker", format="docker")
    assert back.descriptor["mediaType"] == mediatypes.DOCKER_MANIFEST
    types = json.loads((tmp_path / "docker/manifest.json").read_bytes())
    assert [one["mediaType"] for one in types["layers"]] == [mediatypes.DOCKER_LAYER_GZIP] * 2
    assert go(where, source, f"dir:{tmp_path}/as-it-is").digest == image.descriptor["digest"]
    zstd = Image(ONE, kind="zstd", platform=HERE)
    source = f"oci:{write_layout(tmp_path / 'z', [zstd.descriptor], zstd)}"
    made = go(where, source, f"dir:{tmp_path}/zstd", format="docker")
    assert made.descriptor["mediaType"] == mediatypes.DOCKER_MANIFEST
    thing = Image(ONE)
    thing.manifest.update(artifactType="application/x-drawing", config=thing.put(b"{}", mediatypes.EMPTY))
    thing.descriptor = thing.put(json.dumps(thing.manifest).encode(), mediatypes.MANIFEST)
    source = f"oci:{write_layout(tmp_path / 'artifact', [thing.descriptor], thing)}"
    with pytest.raises(Unsupported, match="'application/x-drawing', not an image"):
        go(where, source, f"dir:{tmp_path}/no", format="docker")
    with pytest.raises(UsageError, match="format 'rpm' is not known"):
        go(where, source, f"dir:{tmp_path}/no", format="rpm")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
@pytest.mark.parametrize("how", ["none", "gzip", "gzip:9", "zstd", "zstd:7"])
def test_compressions(kind: str, how: str, tmp_path: Path, where: Places) -> None:
    image = Image(ONE, TWO, kind=kind, platform=HERE)
    source = put("oci", tmp_path, where, image)
    copied = go(where, source, f"oci:{tmp_path}/t:x", compress=how)
    wanted = parse_compression(how).kind
    manifest = json.loads((tmp_path / "t/blobs" / copied.digest.replace(":", "/")).read_bytes())
    for layer, plain in zip(manifest["layers"], (ONE, TWO), strict=True):
        assert mediatypes.LAYERS[layer["mediaType"]] == wanted
        with (tmp_path / "t/blobs" / layer["digest"].replace(":", "/")).open("rb") as file:
            assert decompressor(file, layer["mediaType"]).readall() == plain
    if wanted == kind:  # nothing to do: nothing changed, whatever the level
        assert copied.digest == image.descriptor["digest"]
    else:
        assert copied.recompressed == 2
        assert go(where, source, f"oci:{tmp_path}/u:x", compress=how).digest == copied.digest
        with pytest.raises(UsageError, match="digests were to be preserved"):
            go(where, source, f"oci:{tmp_path}/v:x", compress=how, preserve_digests=True)


def test_a_layer_that_is_not_what_its_config_says_is_found_when_made_anew(tmp_path: Path, where: Places) -> None:
    image = Image(ONE, platform=HERE)
    image.config["rootfs"]["diff_ids"] = [digest_of(TWO)]
    source = f"oci:{write_layout(tmp_path / 'l', [image.seal().descriptor], image)}"
    with pytest.raises(DigestMismatch, match="decompressed"):
        go(where, source, f"docker-archive:{tmp_path}/t.tar")
    assert os.listdir(tmp_path) == ["l"]


def with_referrers(tmp_path: Path) -> tuple[str, Image, list[str]]:
    """An image, a signature of it, and a signature of that."""
    image = Image(ONE, platform=HERE)
    found = []
    entries = [named(image.descriptor, "x")]
    subject = image.descriptor
    for text in (b"signature", b"countersignature"):
        empty = image.put(b"{}", mediatypes.EMPTY)
        manifest = {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "artifactType": "application/x-sig",
            "config": empty,
            "layers": [image.put(text, "text/plain")],
            "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
        }
        subject = image.put(json.dumps(manifest).encode(), mediatypes.MANIFEST)
        found.append(subject["digest"])
        entries.append(subject)
    return f"oci:{write_layout(tmp_path / 'signed', entries, image)}:x", image, found


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "store"])
def test_what_refers_to_an_image_comes_along(kind: str, tmp_path: Path, where: Places) -> None:
    source, image, notes = with_referrers(tmp_path)
    there = place(kind, tmp_path / "t")
    copied = go(where, source, there, referrers=True)
    assert copied.referrers == tuple(notes)
    assert copied.digest == image.descriptor["digest"]
    back = go(where, there, f"oci:{tmp_path}/back:x", referrers=True)
    assert back.referrers == tuple(notes)
    assert go(where, there, f"oci:{tmp_path}/without:x").referrers == ()
    with pytest.raises(UsageError, match=r"would become .* and what refers to it"):
        go(where, there, f"oci:{tmp_path}/changed:x", referrers=True, compress="zstd")
    with pytest.raises(UsageError, match="cannot hold sha256:"):
        go(where, there, f"dir:{tmp_path}/dir", referrers=True)
    if kind == "store":
        from knarr.engine.paths import open_store

        store = open_store(where)
        assert [one.name for one in images(store)[0]] == ["docker.io/some/t:v1"]  # what only refers is no image
        assert store.gc().digests == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_makes_nothing(kind: str, tmp_path: Path, where: Places) -> None:
    image = Image(ONE, TWO, kind="", platform=HERE)
    source = put("oci", tmp_path, where, image)
    before = sorted(os.listdir(tmp_path))
    copied = go(where, source, place(kind, tmp_path / "t"), dry_run=True)
    assert sorted(os.listdir(tmp_path)) == before
    assert copied.copied[0] == 4
    go(where, source, place(kind, tmp_path / "t"))
    again = go(where, source, place(kind, tmp_path / "t"), dry_run=True)
    assert again.present[0] == (3 if kind in {"oci", "store"} else 0)


def test_archives_come_out_the_same(tmp_path: Path, where: Places) -> None:
    image = Image(*(layer_of(str(number), 200_000) for number in range(6)), platform=HERE)
    source = put("oci", tmp_path, where, image)
    for kind in ("oci-archive", "docker-archive"):
        for name in ("a", "b"):
            go(where, source, f"{kind}:{tmp_path}/{name}.tar", jobs=4)
        assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
        with tarfile.open(tmp_path / "a.tar") as tar:
            names = tar.getnames()
        assert names[0] == "oci-layout"
        assert names[-2:] == ["index.json", "manifest.json"]
        assert len(names) == len(set(names)) == 6 + 2 + 3 + 2


def test_headers_of_archives() -> None:
    for name in ("oci-layout", f"blobs/sha512/{'a' * 128}", "b" * 100, "c" * 101):
        for size in (0, 511, (1 << 33) - 1, 1 << 33, 5 << 40):
            block = _header(name, size)
            assert len(block) % 512 == 0
            with tarfile.open(fileobj=io.BytesIO(block + bytes(1024)), mode="r:") as tar:
                entry = next(iter(tar))
            assert (entry.name, entry.size, entry.mode, entry.type) == (name, size, 0o644, b"0")


def test_sha512(tmp_path: Path, where: Places) -> None:
    image = Image(ONE, platform=HERE)
    layer = compress(ONE, "gzip")
    digest = f"sha512:{sha512(layer).hexdigest()}"
    image.blobs[digest] = layer
    image.seal(layers=[{**image.manifest["layers"][0], "digest": digest}])
    source = put("oci", tmp_path, where, image)
    for kind in ("oci-archive", "dir", "store"):
        assert go(where, source, place(kind, tmp_path / "t")).digest == image.descriptor["digest"]
        assert go(where, place(kind, tmp_path / "t"), f"oci:{tmp_path}/{kind}:x").digest == image.descriptor["digest"]


def test_a_directory_of_somebody_else_is_not_replaced(tmp_path: Path, where: Places) -> None:
    source = put("oci", tmp_path, where, Image(ONE, platform=HERE))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(Exists, match="holds no image"):
        go(where, source, f"dir:{tmp_path}/mine")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    (tmp_path / "mine" / "letter").unlink()
    first = go(where, source, f"dir:{tmp_path}/mine")
    other = Image(TWO, platform=HERE)
    source = f"oci:{write_layout(tmp_path / 'o', [other.descriptor], other)}"
    second = go(where, source, f"dir:{tmp_path}/mine")
    assert first.digest != second.digest
    assert digest_of((tmp_path / "mine" / "manifest.json").read_bytes()) == second.digest
    assert len(os.listdir(tmp_path / "mine")) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flip", "gone", "short"])
def test_a_broken_source_leaves_nothing(kind: str, how: str, tmp_path: Path, where: Places) -> None:
    image = Image(ONE, TWO, platform=HERE)
    source = put("oci", tmp_path, where, image)
    victim = tmp_path / "first/blobs" / image.manifest["layers"][1]["digest"].replace(":", "/")
    data = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] + (b"\xff" if how == "flip" else b""))
    there = place(kind, tmp_path / "t")
    with pytest.raises(KnarrError, match=image.manifest["layers"][1]["digest"]):
        go(where, source, there)
    left = set(os.listdir(tmp_path)) - {"first", "store", "t.layout"}
    assert left == set()
    if kind == "oci":
        assert json.loads((tmp_path / "t.layout/index.json").read_bytes())["manifests"] == []
    victim.write_bytes(data)
    go(where, source, there)


CASES: dict[str, tuple[str, type[KnarrError], str]] = {
    "oci:{t}/none": ("oci:{t}/x", NotFound, "directory .*/none does not exist"),
    "dir:{t}/first": ("oci:{t}/x", NotFound, "manifest.json in .*first.*name it oci:"),
    "store:nosuch:1": ("oci:{t}/x", NotFound, "image docker.io/library/nosuch:1 does not exist"),
    "docker-archive:{t}/none.tar": ("oci:{t}/x", NotFound, "none.tar does not exist"),
    "oci:{t}/first:v1": ("host:", UsageError, "no place to copy an image to"),
    "oci:{t}/first:v1 ": ("store:x@sha256:" + "a" * 64, UsageError, "no name for an image"),
    "host:": ("oci:{t}/x", UsageError, "names no image that could be copied"),
}  # fmt: skip


@pytest.mark.parametrize("source", CASES)
def test_mistakes(source: str, tmp_path: Path, where: Places) -> None:
    put("oci", tmp_path, where, Image(ONE, platform=HERE))
    target, error, why = CASES[source]
    with pytest.raises(error, match=why):
        go(where, source.strip().replace("{t}", str(tmp_path)), target.replace("{t}", str(tmp_path)))
    assert not (tmp_path / "x").exists()


def test_options_that_do_not_go_together(tmp_path: Path, where: Places) -> None:
    source = put("oci", tmp_path, where, Image(ONE, platform=HERE))
    with pytest.raises(UsageError, match="cannot both be asked for"):
        go(where, source, f"oci:{tmp_path}/x", all=True, platforms=[HERE])
    with pytest.raises(UsageError, match="make no sense"):
        options_of(jobs=0)
    with pytest.raises(UsageError, match="'lzma' is not known"):
        options_of(compress="lzma")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", [b"", b"x" * 600, tar_of({"a": b"b"}), b"[]"])
def test_directories_and_archives_that_are_none(text: bytes, tmp_path: Path, where: Places) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_bytes(text)
    (tmp_path / "a.tar").write_bytes(text)
    for source in (f"dir:{tmp_path}/d", f"oci-archive:{tmp_path}/a.tar", f"docker-archive:{tmp_path}/a.tar"):
        with pytest.raises(KnarrError) as caught:
            go(where, source, f"oci:{tmp_path}/x")
        assert not isinstance(caught.value, UsageError)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_layout_can_have_an_index_of_too_many(tmp_path: Path, where: Places) -> None:
    image = Image(ONE, platform=HERE)
    entries = []
    for number in range(1001):
        extra = Image(ONE, platform=HERE).seal(annotations={"n": str(number)})
        image.blobs.update(extra.blobs)
        entries.append(extra.descriptor)
    top = image.index(*entries)
    files = layout_files([named(top, "x")], image)
    for name, data in files.items():
        (tmp_path / "l" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "l" / name).write_bytes(data)
    with pytest.raises(Unsupported, match="too many or too large"):
        go(where, f"oci:{tmp_path}/l:x", f"oci:{tmp_path}/t:x", all=True)


def test_options_are_records() -> None:
    assert Options() == options_of()

"""Artifacts and referrers: what is put is what comes back, wherever; names of files from strangers stay names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from dockerregistry import docker_registry, need_docker_registry
from imagekit import call, layout, opened, program
from tarbuilder import f

from knarr.base.errors import DigestMismatch, FileError, FormatError, KnarrError, NotFound, UsageError
from knarr.engine.imaging.artifacts import artifact, artifact_of, attach, pull, referrers
from knarr.engine.imaging.blobs import in_memory
from knarr.engine.imaging.image import Image, Index
from knarr.engine.imaging.validate import validate
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

SBOM = "application/spdx+json"


def files(tmp_path: Path) -> list[tuple[str, str]]:
    (tmp_path / "a.json").write_bytes(b"{}\n")
    (tmp_path / "b").write_bytes(b"b" * 3_000_000)
    return [(str(tmp_path / "a.json"), "application/json"), (str(tmp_path / "b"), "")]


def test_pushed_and_pulled(tmp_path: Path) -> None:
    made = artifact_of(files(tmp_path), kind="application/x-thing", annotations={"k": "v"})
    assert made == artifact_of(files(tmp_path), kind="application/x-thing", annotations={"k": "v"})
    made.save(f"oci:{tmp_path}/l:v1")
    assert validate(f"oci:{tmp_path}/l") == []
    back = Image.open(f"oci:{tmp_path}/l:v1")
    assert back.digest == made.digest
    assert back.manifest["artifactType"] == "application/x-thing"
    assert pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out")) == [f"{tmp_path}/out/a.json", f"{tmp_path}/out/b"]
    assert (tmp_path / "out/b").read_bytes() == b"b" * 3_000_000
    with pytest.raises(FileError, match="--overwrite"):
        pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "b"]
    pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize(
    "title", ["../x", "/etc/x", "a/../../x", "", ".", "..", "a/..", "x" * 256], ids=lambda text: repr(text)[:12]
)
def test_titles_that_leave_the_directory(title: str, tmp_path: Path) -> None:
    descriptor, opener = in_memory(b"evil", "application/x")
    descriptor["annotations"] = {mediatypes.TITLE: title}
    artifact([descriptor], {descriptor["digest"]: opener}, kind="application/x").save(f"oci:{tmp_path}/l:v1")
    with pytest.raises(FormatError):
        pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out" / "deep"))
    assert not list((tmp_path / "out").rglob("*x*")) or title == "x" * 256


def test_a_title_may_be_a_path_and_follows_no_link_out(tmp_path: Path) -> None:
    descriptor, opener = in_memory(b"content", "application/x")
    descriptor["annotations"] = {mediatypes.TITLE: "sub/dir/file"}
    artifact([descriptor], {descriptor["digest"]: opener}, kind="application/x").save(f"oci:{tmp_path}/l:v1")
    assert pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out")) == [f"{tmp_path}/out/sub/dir/file"]
    (tmp_path / "sentinel").mkdir()
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sub").symlink_to(tmp_path / "sentinel")
    with pytest.raises(KnarrError):
        pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "trap"))
    assert list((tmp_path / "sentinel").iterdir()) == []


def test_damaged_files_are_not_kept(tmp_path: Path) -> None:
    made = artifact_of(files(tmp_path), kind="application/x")
    made.save(f"oci:{tmp_path}/l:v1")
    blob = tmp_path / "l/blobs/sha256" / made.manifest["layers"][1]["digest"].partition(":")[2]
    blob.chmod(0o644)
    blob.write_bytes(b"c" * 3_000_000)
    with pytest.raises(DigestMismatch):
        pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.json"]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    parts = []
    for data in (b"1", b"2"):
        descriptor, opener = in_memory(data, "application/x")
        descriptor["annotations"] = {mediatypes.TITLE: "same"}
        parts.append((descriptor, opener))
    made = artifact([one for one, _ in parts], {one["digest"]: opener for one, opener in parts}, kind="application/x")
    made.save(f"oci:{tmp_path}/l:v1")
    with pytest.raises(FormatError, match="same name"):
        pull(f"oci:{tmp_path}/l:v1", str(tmp_path / "out"))


@pytest.mark.parametrize("place", ["layout", "store"])
def test_attached_is_found(place: str, tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    if place == "store":
        ref = "app:1"
        image.save(ref)
    made = artifact_of(files(tmp_path)[:1], kind=SBOM, subject=image.descriptor, annotations={"k": "v"})
    attach(made, ref)
    assert Image.open(ref).digest == image.digest, "the name means something else now"
    found = referrers(ref)
    assert [(one["digest"], one.get("artifactType"), one.get("annotations")) for one in found] == [
        (made.digest, SBOM, {"k": "v"})
    ]
    assert referrers(ref, kind="application/other") == []
    assert [one["digest"] for one in referrers(ref, kind=SBOM)] == [made.digest]
    if place == "layout":
        assert validate(f"oci:{tmp_path}/l") == []
        assert pull(f"oci:{tmp_path}/l@{made.digest}", str(tmp_path / "out")) == [f"{tmp_path}/out/a.json"]


def test_attached_to_an_index(tmp_path: Path) -> None:
    amd, arm = opened(tmp_path / "a", [f("amd")]), opened(tmp_path / "b", [f("arm")], platform="linux/arm64")
    index = Index.of([amd, arm]).save(f"oci:{tmp_path}/l:v1")
    attach(artifact_of([], kind=SBOM, subject=index.descriptor), f"oci:{tmp_path}/l:v1")
    attach(artifact_of([], kind=SBOM, subject=arm.descriptor, annotations={"p": "arm"}), f"oci:{tmp_path}/l:v1")
    assert len(referrers(f"oci:{tmp_path}/l:v1")) == 1
    assert referrers(f"oci:{tmp_path}/l:v1", platform="linux/arm64")[0]["annotations"] == {"p": "arm"}
    assert referrers(f"oci:{tmp_path}/l:v1", platform="linux/amd64") == []


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        artifact_of([(str(tmp_path / "none"), "")], kind="application/x")
    with pytest.raises(UsageError, match="type"):
        artifact_of(files(tmp_path), kind="")
    with pytest.raises(KnarrError, match="media type"):
        artifact_of(files(tmp_path), kind="no type")
    with pytest.raises(UsageError, match="attached"):
        attach(artifact_of([], kind=SBOM), f"oci-archive:{tmp_path}/x.tar")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        yield host


def test_over_a_real_registry(registry: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-registry 2.8 has no list of referrers: the tag schema stands in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    ref = f"docker://{registry}/me/app:1"
    image = opened(tmp_path / "l", [f("a")], [f("b")]).squash().save(ref)
    path = files(tmp_path)[0][0]
    code, out, err = cli("image", "artifact", "attach", "--type", SBOM, "-a", "k=v", ref, f"{path}:{SBOM}")
    assert code == 0, err
    digest = out.strip()
    told = json.loads(cli("image", "referrers", "--json", ref)[1])
    assert [(one["digest"], one["artifactType"]) for one in told] == [(digest, SBOM)]
    code, out, err = cli("image", "artifact", "pull", f"docker://{registry}/me/app@{digest}", f"{tmp_path}/out")
    assert (code, out) == (0, f"{tmp_path}/out/a.json\n"), err
    assert json.loads(call(program("skopeo"), "inspect", "--tls-verify=false", ref))["Digest"] == image.digest
    raw = json.loads(
        call(program("skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{registry}/me/app@{digest}")
    )
    assert raw["subject"]["digest"] == image.digest
    assert raw["layers"][0]["mediaType"] == SBOM


def test_commands(tmp_path: Path, cli: Cli) -> None:
    path = files(tmp_path)[0][0]
    code, out, err = cli("image", "artifact", "push", "--config", f"{path}:application/x.config+json", "thing:1", path)
    assert code == 0, err
    made = Image.open("thing:1")
    assert made.digest == out.strip()
    assert made.manifest["config"]["mediaType"] == "application/x.config+json"
    assert made.manifest["layers"][0]["mediaType"] == "application/octet-stream"
    ref = layout(tmp_path / "l", [f("a")])
    assert "type" in cli("image", "artifact", "attach", ref, path)[2]
    assert cli("image", "artifact", "attach", "--type", SBOM, ref, path)[0] == 0
    out = cli("image", "referrers", ref)[1]
    assert out.splitlines()[1].split()[1] == SBOM
    assert "no media type" in cli("image", "artifact", "push", "--config", path, "thing:2")[2]

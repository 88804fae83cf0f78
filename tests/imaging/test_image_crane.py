"""crane (go-containerregistry) and knarr, both ways: what one wrote the other reads, digests unchanged.

crane is in no distribution: built by hand (docs/imaging.md, Peers built by hand), it is found on PATH, else the tests are skipped.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import ocimake
import pytest
from dockerregistry import docker_registry, need_docker_registry
from imagekit import call, layout, program
from tarbuilder import d, f, s, tar

from knarr.engine.imaging.image import Image
from knarr.engine.imaging.look import files
from knarr.engine.imaging.validate import validate

sys.path.append(str(Path(__file__).parents[1] / "service"))
import ownregistry  # it lies beside the registry's tests  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    program("crane")
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as address:
        yield address


def crane(*words: str) -> str:
    return call("crane", *words).strip()


def source(tmp_path: Path, kind: str = "gzip") -> str:
    lower = [d("etc"), f("etc/os-release", b"ID=x\n"), f("etc/gone", b"1"), s("etc/link", "os-release")]
    return layout(tmp_path / f"in-{kind}", lower, [f("etc/.wh.gone"), f("etc/motd", b"hello\n")], kind=kind)


@pytest.mark.parametrize("kind", ["gzip", "zstd", ""])
def test_pushed_by_knarr_read_by_crane(host: str, tmp_path: Path, cli: Cli, kind: str) -> None:
    ref = source(tmp_path, kind)
    code, out, err = cli("image", "copy", "-q", ref, f"docker://{host}/x:v1")
    assert code == 0, err
    assert crane("digest", f"{host}/x:v1") == out.strip()
    with Image.open(ref) as image:
        assert json.loads(crane("manifest", f"{host}/x:v1")) == image.manifest
        assert json.loads(crane("config", f"{host}/x:v1")) == image.config
    assert crane("ls", f"{host}/x") == "v1"
    if kind == "gzip":  # crane's validate takes every layer for gzip
        crane("validate", "--remote", f"{host}/x:v1")
    # crane's flat tar is the tree that knarr lists.
    call("crane", "export", f"{host}/x:v1", str(tmp_path / "flat.tar"))
    with tarfile.open(tmp_path / "flat.tar") as archive:
        theirs = {member.name.rstrip("/"): member.size for member in archive}
    with Image.open(f"docker://{host}/x:v1") as image:
        ours = {path.decode(): node.entry.size for path, node in files(image) if path}
    assert theirs == ours


def test_pulled_by_crane_read_by_knarr(host: str, tmp_path: Path, cli: Cli) -> None:
    digest = cli("image", "copy", "-q", source(tmp_path), f"docker://{host}/x:v1")[1].strip()
    crane("pull", "--format", "oci", f"{host}/x:v1", str(tmp_path / "layout"))
    (root,) = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert root["digest"] == digest
    code, out, err = cli("image", "copy", "-q", f"oci:{tmp_path / 'layout'}", f"oci:{tmp_path / 'again'}:v1")
    assert (code, out.strip()) == (0, digest), err
    for form in ("tarball", "legacy"):
        crane("pull", "--format", form, f"{host}/x:v1", str(tmp_path / f"{form}.tar"))
        code, _, err = cli("image", "copy", "-q", f"docker-archive:{tmp_path / form}.tar", f"oci:{tmp_path / form}:v1")
        assert code == 0, err
        with Image.open(f"oci:{tmp_path / form}:v1") as image, Image.open(source(tmp_path / form)) as before:
            assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in before.layers]


def test_archives_and_layouts_of_knarr_pushed_by_crane(host: str, tmp_path: Path, cli: Cli) -> None:
    ref = source(tmp_path)
    with Image.open(ref) as image:
        assert cli("image", "copy", "-q", ref, f"oci:{tmp_path / 'one'}:v1")[0] == 0
        crane("push", str(tmp_path / "one"), f"{host}/x:layout")
        assert crane("digest", f"{host}/x:layout") == image.digest
        assert cli("image", "copy", "-q", ref, f"docker-archive:{tmp_path / 'd.tar'}:me/x:v1")[0] == 0
        crane("push", str(tmp_path / "d.tar"), f"{host}/x:archive")
        with Image.open(f"docker://{host}/x:archive") as there:
            assert [layer.diff_id for layer in there.layers] == [layer.diff_id for layer in image.layers]
            assert there.config == image.config


def test_made_by_crane_is_valid_and_knarrs_own_agrees(host: str, tmp_path: Path, cli: Cli) -> None:
    """append, mutate, flatten, copy and index append: valid by all our rules, the same trees as ours."""
    ref = source(tmp_path)
    digest = cli("image", "copy", "-q", ref, f"docker://{host}/x:v1")[1].strip()
    (tmp_path / "more.tar").write_bytes(tar(f("more", b"m")))
    crane("append", "-b", f"{host}/x:v1", "-f", str(tmp_path / "more.tar"), "-t", f"{host}/x:append")
    crane("mutate", f"{host}/x:v1", "--label", "a=b", "--env", "C=d", "--user", "7", "-t", f"{host}/x:mutate")
    crane("flatten", f"{host}/x:v1", "-t", f"{host}/x:flatten")
    crane("copy", f"{host}/x:v1", f"{host}/y:v1")
    crane("index", "append", "-m", f"{host}/x:v1", "-m", f"{host}/x:mutate", "-t", f"{host}/x:index")
    for tag in ("append", "mutate", "flatten", "index"):
        assert [str(one) for one in validate(f"docker://{host}/x:{tag}")] == []
    with Image.open(f"docker://{host}/y:v1") as copied:
        assert copied.digest == digest
    with Image.open(f"docker://{host}/x:append") as theirs, Image.open(ref) as base:
        ours = base.append(str(tmp_path / "more.tar"))
        assert [layer.diff_id for layer in ours.layers] == [layer.diff_id for layer in theirs.layers]
    with Image.open(f"docker://{host}/x:mutate") as theirs:
        config = theirs.image_config()["config"]
        assert (config["Labels"], config["User"], config["Env"][-1]) == ({"a": "b"}, "7", "C=d")
    with Image.open(f"docker://{host}/x:flatten") as flat, Image.open(ref) as base:
        names = [path for path, _node in files(base)]
        assert [path for path, _node in files(flat)] == names
        assert [path for path, _node in files(base.squash())] == names


def test_crane_and_knarrs_own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program("crane")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = ocimake.Image(tar(f("a", b"x" * 70_000)), tar(f("b", b"y")))
    ocimake.write_layout(tmp_path / "l", [ocimake.named(made.descriptor, "v1")], made)
    with ownregistry.serving(tmp_path / "store") as server:
        host = server.host
        crane("push", str(tmp_path / "l"), f"{host}/lib/x:v1")
        assert crane("digest", f"{host}/lib/x:v1") == made.descriptor["digest"]
        crane("validate", "--remote", f"{host}/lib/x:v1")
        crane("copy", f"{host}/lib/x:v1", f"{host}/lib/y:v2")  # mounts the blobs
        assert sorted(crane("catalog", host).split()) == ["lib/x", "lib/y"]
        crane("tag", f"{host}/lib/y:v2", "v3")
        assert sorted(crane("ls", f"{host}/lib/y").split()) == ["v2", "v3"]
        crane("delete", f"{host}/lib/y@{made.descriptor['digest']}")
        assert crane("catalog", host) == "lib/x"
        assert crane("digest", f"{host}/lib/x:v1") == made.descriptor["digest"]

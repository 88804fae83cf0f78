"""Looking into an image of a registry: only the layers that are needed, counted; nothing believed unverified."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ocimake
import pytest
from tarbuilder import d, f, tar

from knarr.engine.imaging.image import Image
from knarr.engine.imaging.look import Finder, read_file
from knarr.spec import mediatypes

sys.path.append(str(Path(__file__).parents[1] / "registry"))
import fakeregistry  # it lies beside the registry's tests  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakeregistry import FakeRegistry

    Cli = Callable[..., tuple[int, str, str]]

BIG = 3_000_000


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with fakeregistry.FakeRegistry() as server:
        yield server


def layers() -> list[bytes]:
    return [
        tar(d("etc"), f("etc/os-release", b"ID=x\n"), f("base", os.urandom(BIG))),
        tar(f("middle", os.urandom(BIG)), f("etc/.wh.gone")),
        tar(f("top", b"t"), f("etc/motd", b"hello\n")),
    ]


def pushed(fake: FakeRegistry) -> tuple[str, ocimake.Image]:
    made = ocimake.Image(*layers(), kind="")
    fake.blobs.update(made.blobs)
    fake.put("v1", made.blobs[made.descriptor["digest"]], mediatypes.MANIFEST)
    return f"docker://{fake.host}/{fakeregistry.REPOSITORY}:v1", made


def blobs_asked(fake: FakeRegistry, made: ocimake.Image) -> list[int]:
    """Which layers were asked for, in order."""
    numbers = {layer["digest"]: number for number, layer in enumerate(made.manifest["layers"])}
    return [numbers[digest] for request in fake.log if (digest := request.path.rpartition("/")[2]) in numbers]


def test_only_needed_layers_are_fetched(fake: FakeRegistry, cli: Cli) -> None:
    ref, made = pushed(fake)
    code, out, err = cli("image", "which-layer", ref, "/etc/motd")
    assert code == 0, err
    assert out.startswith(f"layer 2 {made.manifest['layers'][2]['digest']} set /etc/motd")
    assert blobs_asked(fake, made) == [2]
    size = made.manifest["layers"][2]["size"]
    told = json.loads(cli("image", "which-layer", "--json", ref, "/etc/gone")[1])
    assert [touch["what"] for touch in told["touched"]] == ["hidden"]
    assert told["read"] == [1, 2]
    assert BIG + size < told["fetched"] < BIG + size + 10_000
    assert "fetched " in err
    assert " of 6.0" in err


def test_documents_alone(fake: FakeRegistry, cli: Cli) -> None:
    ref, made = pushed(fake)
    assert cli("image", "history", ref)[0] == 0
    assert cli("image", "validate", "--fast", ref)[0] == 0
    assert blobs_asked(fake, made) == []


def test_cat_of_the_lowest_layer(fake: FakeRegistry) -> None:
    ref, made = pushed(fake)
    with Image.open(ref) as image:
        assert read_file(image, "etc/os-release") == b"ID=x\n"
        assert blobs_asked(fake, made) == [2, 1, 0]
        assert image.fetched > 2 * BIG
    with Image.open(ref) as image:
        assert read_file(image, "etc/os-release", quick=True) == b"ID=x\n"
        assert image.fetched < 2 * BIG, "the lowest layer was read past the file"


def test_a_layer_that_lies_is_refused(fake: FakeRegistry, cli: Cli) -> None:
    ref, made = pushed(fake)
    digest = made.manifest["layers"][2]["digest"]
    fake.blobs[digest] = fake.blobs[digest].replace(b"hello", b"HELLO")
    code, out, err = cli("image", "which-layer", ref, "/etc/motd")
    assert (code, out) == (125, "")
    assert digest in err
    with Image.open(ref) as image, pytest.raises(Exception, match="digest"):
        Finder(image).find("/etc/motd")


def test_diff_of_two_tags(fake: FakeRegistry, cli: Cli) -> None:
    ref, made = pushed(fake)
    with Image.open(ref) as image:
        other = image.with_config(user="5")
        manifest = other.manifest
        fake.blobs[other.id] = other.blobs.read(manifest["config"])
        fake.put("v2", other.blobs.read(other.descriptor), mediatypes.MANIFEST)
    fake.log.clear()
    code, out, _err = cli("image", "diff", ref, ref.replace(":v1", ":v2"))
    assert (code, out) == (1, "+ config User\n    null -> 5\n")
    assert blobs_asked(fake, made) == [], "layers that both have were fetched"


def test_validate_everything(fake: FakeRegistry, cli: Cli) -> None:
    ref, made = pushed(fake)
    assert cli("image", "validate", ref)[0] == 0
    assert sorted(blobs_asked(fake, made)) == [0, 1, 2]


def test_ls(fake: FakeRegistry, cli: Cli) -> None:
    ref, _made = pushed(fake)
    assert cli("image", "ls", ref, "/etc")[1] == "/etc/motd\n/etc/os-release\n"


def test_changed_in_the_registry_needs_a_destination(fake: FakeRegistry, cli: Cli) -> None:
    ref, _made = pushed(fake)
    assert cli("image", "config", "--user", "1", ref, "local:1")[0] == 0
    assert (Image.open("local:1").config or {})["config"]["User"] == "1"

"""Changes to an image's documents: config, history, annotations, base; nothing else changes, and nothing invalid comes out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ocimake
import pytest
from imagekit import layout, opened, paths
from tarbuilder import d, f

from knarr.base.errors import NotFound, SpecError, Unsupported, UsageError
from knarr.engine.imaging.image import Image
from knarr.image import edit
from knarr.image.edit import KEEP
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "x-unknown": {"kept": True},
    "config": {
        "Env": ["A=1", "B=2", "A=3"],
        "Cmd": ["sh"],
        "Labels": {"l": "1"},
        "ExposedPorts": {"80/tcp": {}},
        "X": 1,
    },
    "rootfs": {"type": "layers", "diff_ids": []},
}


def run(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = edit.configured(CONFIG, **changes)["config"]
    return made


def test_fields_are_set_kept_and_removed() -> None:
    made = edit.configured(
        CONFIG,
        cmd=["a", "b"],
        entrypoint=("/init",),
        user="1000:1000",
        workdir="/srv",
        stop_signal="SIGINT",
        author="me",
        created="2026-01-01T00:00:00Z",
        architecture="arm64",
        variant="v8",
        os_version="1",
        os_features=["x"],
    )
    assert made["config"] == {
        **CONFIG["config"],
        "Cmd": ["a", "b"],
        "Entrypoint": ["/init"],
        "User": "1000:1000",
        "WorkingDir": "/srv",
        "StopSignal": "SIGINT",
    }
    assert (made["author"], made["architecture"], made["variant"]) == ("me", "arm64", "v8")
    assert (made["os.version"], made["os.features"]) == ("1", ["x"])
    assert made["x-unknown"] == {"kept": True}
    assert "Cmd" not in run(cmd=None)
    assert run(cmd=KEEP)["Cmd"] == ["sh"]
    assert CONFIG["config"]["Cmd"] == ["sh"], "the old one is changed"


def test_variables_keep_their_places() -> None:
    assert run(env={"A": "9", "C": "x=y"})["Env"] == ["A=9", "B=2", "C=x=y"]
    assert run(env={"A": None})["Env"] == ["B=2"]
    assert "Env" not in run(env={"A": None, "B": None})


def test_maps() -> None:
    assert run(labels={"z": "2", "m": "3", "l": None})["Labels"] == {"m": "3", "z": "2"}
    assert run(ports={"53/udp": True})["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert "ExposedPorts" not in run(ports={"80/tcp": False})
    assert run(volumes={"/data": True})["Volumes"] == {"/data": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"workdir": "relative"},
        {"env": {"": "x"}},
        {"stop_signal": "SIGFOO"},
        {"volumes": {"/proc": True}},
        {"volumes": {"x": True}},
        {"created": "yesterday"},
        {"user": "a\nb"},
        {"cmd": ["a\0"]},
    ],
)
def test_nothing_invalid_comes_out(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        edit.configured(CONFIG, **changes)


def test_required_and_unknown_fields() -> None:
    with pytest.raises(UsageError, match="needs os"):
        edit.configured(CONFIG, os=None)
    with pytest.raises(UsageError, match="colour"):
        edit.configured(CONFIG, colour="red")


def test_annotations() -> None:
    assert edit.annotated({"a": 1}, {"k": "v"}) == {"a": 1, "annotations": {"k": "v"}}
    assert edit.annotated({"annotations": {"k": "v", "m": "w"}}, {"k": None, "m": "x"}) == {"annotations": {"m": "x"}}
    assert edit.annotated({"annotations": {"k": "v"}}, {"k": None}) == {}
    with pytest.raises(UsageError):
        edit.annotated({}, {"": "v"})


def test_history(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")], [f("b")])
    made = image.with_history({-1: {"comment": "seen", "created": None}}, add=[{"created_by": "nothing"}])
    history = (made.config or {})["history"]
    assert history[1] == {"created_by": "layer 1", "comment": "seen"}
    assert history[2] == {"created_by": "nothing", "empty_layer": True}
    assert [layer.history["created_by"] for layer in made.layers] == ["layer 0", "layer 1"]
    assert "history" not in (image.with_history(clear=True).config or {})
    with pytest.raises(NotFound, match="entry 2"):
        image.with_history({2: {"comment": "x"}})
    with pytest.raises(UsageError, match="empty_layer"):
        image.with_history({0: {"empty_layer": "x"}})


def test_an_unchanged_config_keeps_its_bytes(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")])
    assert image.with_annotations({"k": "v"}).manifest["config"] == image.manifest["config"]
    assert image.with_config(user="1") == image.with_config(user="1")
    assert image.with_config(user="1") != image


def test_docker_documents_stay_dockers(tmp_path: Path) -> None:
    made = ocimake.Image(ocimake.tar_of({"a": b"1"}), kind="gzip")
    made.manifest["config"] = made.put(json.dumps(made.config).encode(), mediatypes.DOCKER_CONFIG)
    made.manifest["layers"][0]["mediaType"] = mediatypes.DOCKER_LAYER_GZIP
    made.manifest["mediaType"] = mediatypes.DOCKER_MANIFEST
    made.descriptor = made.put(json.dumps(made.manifest).encode(), mediatypes.DOCKER_MANIFEST)
    ocimake.write_layout(tmp_path / "l", [made.descriptor], made)
    image = Image.open(f"oci:{tmp_path}/l")
    assert image.docker
    (tmp_path / "x").write_bytes(b"x")
    new = image.with_config(user="1").add(str(tmp_path / "x"), "/x")
    assert new.manifest["mediaType"] == mediatypes.DOCKER_MANIFEST
    assert new.manifest["config"]["mediaType"] == mediatypes.DOCKER_CONFIG
    assert [layer.media_type for layer in new.layers] == [mediatypes.DOCKER_LAYER_GZIP] * 2
    with pytest.raises(UsageError, match="zstd"):
        image.add(str(tmp_path / "x"), "/x", compression="zstd")


def test_an_artifact_has_no_config_to_change(tmp_path: Path) -> None:
    made = ocimake.Image()
    empty = made.put(b"{}", mediatypes.EMPTY)
    manifest = {**made.manifest, "config": empty, "artifactType": "application/x"}
    descriptor = made.put(json.dumps(manifest).encode(), mediatypes.MANIFEST)
    ocimake.write_layout(tmp_path / "l", [descriptor], made)
    image = Image.open(f"oci:{tmp_path}/l")
    with pytest.raises(Unsupported, match="application/x"):
        image.with_config(user="1")
    assert image.with_annotations({"k": "v"}).annotations == {"k": "v"}


# -- rebase ------------------------------------------------------------------------------------------------


def bases(tmp_path: Path) -> tuple[Image, Image, Image]:
    """An image, the base it is on, and a newer base."""
    old = opened(
        tmp_path / "old",
        [d("etc"), f("etc/base", b"1")],
        config={"config": {"Env": ["PATH=/bin", "V=1"], "Cmd": ["sh"]}},
    )
    new = opened(
        tmp_path / "new",
        [d("etc"), f("etc/base", b"2")],
        [f("more")],
        config={"config": {"Env": ["PATH=/bin", "V=2", "N=1"], "Cmd": ["bash"], "User": "7"}},
    )
    (tmp_path / "app").write_bytes(b"app")
    image = old.add(str(tmp_path / "app"), "/app").with_config(env={"MINE": "1", "PATH": "/app"}, labels={"a": "b"})
    return image, old, new


def test_rebase(tmp_path: Path) -> None:
    image, old, new = bases(tmp_path)
    made = image.rebase(old, new)
    assert paths(made) == ["app", "etc", "etc/base", "more"]
    assert [one.digest for one in made.layers] == [one.digest for one in (*new.layers, image.layers[1])]
    config = made.config or {}
    assert config["config"]["Env"] == ["PATH=/app", "V=2", "N=1", "MINE=1"]
    assert config["config"]["Cmd"] == ["bash"]
    assert config["config"]["User"] == "7"
    assert config["config"]["Labels"] == {"a": "b"}
    assert [entry["created_by"] for entry in config["history"]] == ["layer 0", "layer 1", "knarr image add app /app"]
    assert made.annotations[mediatypes.BASE_DIGEST] == new.digest
    assert made.save(f"oci:{tmp_path}/out:v1").digest == made.digest
    again = Image.open(f"oci:{tmp_path}/out:v1")
    assert paths(again) == paths(made)


def test_rebase_onto_the_same_base_changes_only_annotations(tmp_path: Path) -> None:
    image, old, _new = bases(tmp_path)
    made = image.rebase(old, old)
    assert made.config == image.config
    assert made.layers == image.layers


def test_rebase_refuses_another_base(tmp_path: Path) -> None:
    image, _old, new = bases(tmp_path)
    with pytest.raises(UsageError, match="not built on that base"):
        image.rebase(new, new)
    arm = opened(tmp_path / "arm", [f("x")], platform="linux/arm64")
    with pytest.raises(UsageError, match="linux/arm64"):
        image.rebase(_old, arm)


# -- as commands -------------------------------------------------------------------------------------------


def test_config_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    code, out, err = cli(
        "image", "config", "-e", "A=1", "--unset-env", "PATH", "--cmd", '["a b", "c"]', "--entrypoint", "x 'y z'",
        "--port", "80", "--volume", "/d", "--user", "5", "--history=-1.comment=hm", "--add-history", "did", ref, f"oci:{tmp_path}/l:v2",
    )  # fmt: skip
    assert (code, err) == (0, "")
    image = Image.open(f"oci:{tmp_path}/l:v2")
    assert out.strip() == image.digest
    config = image.config or {}
    assert config["config"] == {
        "Cmd": ["a b", "c"],
        "Env": ["A=1"],
        "Labels": None,
        "User": "5",
        "Entrypoint": ["x", "y z"],
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/d": {}},
    }
    assert config["history"][0]["comment"] == "hm"
    assert config["history"][1] == {"created": "2026-01-02T03:04:05Z", "created_by": "did", "empty_layer": True}
    assert Image.open(ref).digest != image.digest
    assert cli("image", "config", "--clear", "env", "--clear", "history", "--clear", "cmd", ref)[0] == 0
    config = Image.open(ref).config or {}
    assert "history" not in config
    assert not {"Env", "Cmd"} & config["config"].keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "A"], "NAME=VALUE"),
        (["--cmd", "[1]"], "array of strings"),
        (["--cmd", "'a"], "cannot be split"),
        (["--port", "99999"], "no port"),
        (["--port", "1/x"], "protocol"),
        (["--history", "x.comment=1"], "N.FIELD=VALUE"),
        (["--workdir", "a"], "not an absolute path"),
        (["--clear", "os"], "invalid choice"),
    ],
)
def test_config_refuses(words: list[str], said: str, tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    before = Image.open(ref).digest
    code, out, err = cli("image", "config", *words, ref)
    assert code == 125
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert Image.open(ref).digest == before


def test_annotate_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    assert cli("image", "annotate", "--set", "a=1", "--set", "b=2", ref)[0] == 0
    assert cli("image", "annotate", "--unset", "a", ref)[0] == 0
    assert Image.open(ref).annotations == {"b": "2"}
    assert "--set" in cli("image", "annotate", ref)[2]


def test_rebase_command(tmp_path: Path, cli: Cli) -> None:
    image, old, new = bases(tmp_path)
    image.save(f"oci:{tmp_path}/app-image:v1")
    old.save("base:1")
    new.save("base:2")
    code, out, err = cli(
        "image", "rebase", "--old", "base:1", "--new", "base:2", f"oci:{tmp_path}/app-image:v1", "app:2"
    )
    assert (code, err) == (0, "")
    made = Image.open("app:2")
    assert out.strip() == made.digest
    assert made.annotations[mediatypes.BASE_NAME] == "base:2"
    # the next time its annotations name the old base
    assert cli("image", "rebase", "--new", "base:1", "app:2", "app:3")[0] == 0
    assert Image.open("app:3").layers == image.layers
    assert "does not say" in cli("image", "rebase", "--new", "base:1", "base:2", "app:4")[2]

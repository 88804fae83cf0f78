"""``knarr image copy push pull save load delete``, ``knarr tags login logout`` as people type them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from dockerregistry import docker_registry, need_docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from enginekit import Person


def out(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def sentence(done: subprocess.CompletedProcess[bytes], said: str, code: int = 125) -> None:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert len(text.splitlines()) == 1, text
    assert said in text, text


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A docker-registry for bob, whose password is secret."""
    need_docker_registry("htpasswd")
    with docker_registry(tmp_path_factory.mktemp("registry"), password="secret") as address:
        yield address


def test_a_day_at_a_registry(registry: str, image: str, person: Person) -> None:
    digest = out(person.knarr("pull", image)).strip()
    name = out(person.knarr("images", "--format", "{{.Name}}")).strip()
    target = f"{registry}/{person.kind}/box:1"
    sentence(person.knarr("image", "push", name, target), f"log in with knarr login {registry}")
    sentence(person.knarr("login", registry), "no terminal to ask on")
    sentence(person.knarr("login", "--password-stdin", registry, input=b"secret"), "-u USER")
    sentence(
        person.knarr("login", "-u", "bob", "--password-stdin", registry, input=b"hunter2\n"), "refuses the login as bob"
    )
    said = out(person.knarr("login", "-u", "bob", "--password-stdin", registry, input=b"secret\n"))
    assert said == f"logged in to {registry} as bob; kept in {person.folder}/.docker/config.json\n"
    assert out(person.knarr("image", "push", name, target)).strip() == digest
    assert out(person.knarr("image", "push", "--compress", "zstd", name, f"{target}-zstd")).strip() != digest
    assert sorted(out(person.knarr("tags", target.removesuffix(":1"))).split()) == ["1", "1-zstd"]
    assert len(json.loads(out(person.knarr("tags", "--json", "--limit", "1", target.removesuffix(":1"))))) == 1
    sentence(person.knarr("tags", target), "is no repository")
    out(person.knarr("rmi", name))
    assert out(person.knarr("image", "pull", target)).strip() == digest
    assert out(person.knarr("images", "--format", "{{.Name}}")).strip() == target
    sentence(person.knarr("image", "delete", target.removesuffix(":1")), "has no tag")
    sentence(person.knarr("image", "delete", "--tag-only", target), "by digest only")
    assert out(person.knarr("image", "delete", target)).strip() == digest
    sentence(person.knarr("image", "pull", "--all", f"{target}x"), "there is 1-zstd")
    assert "removed the login" in out(person.knarr("logout", registry))
    sentence(person.knarr("logout", registry), "login")
    sentence(person.knarr("tags", target.removesuffix(":1")), "it wants a login")


def test_places(image: str, me: Person, tmp_path: Path) -> None:
    first = json.loads(out(me.knarr("image", "copy", "--json", image, f"oci:{tmp_path}/l:x")))
    digest = first["digest"]
    assert first["sourceDigest"] == digest
    assert first["copied"]["blobs"] == 3
    assert out(me.knarr("image", "copy", f"oci:{tmp_path}/l:x", f"dir:{tmp_path}/d")).strip() == digest
    assert out(me.knarr("image", "copy", f"dir:{tmp_path}/d", "store:mine:1")).strip() == digest
    text = out(me.knarr("image", "copy", "--dry-run", "store:mine:1", f"oci:{tmp_path}/n:x"))
    assert f"digest:   {digest}" in text
    assert "to copy:  3 blobs" in text
    assert not (tmp_path / "n").exists()
    assert out(me.knarr("run", "store:mine:1", "echo", "hello")) == "hello\n"
    out(me.knarr("rm", "--all"))


def test_pipes(image: str, me: Person, tmp_path: Path) -> None:
    out(me.knarr("pull", image))
    name = out(me.knarr("images", "--format", "{{.Name}}")).strip()
    piped = me.knarr("image", "copy", f"store:{name}", "-")
    assert piped.stdout.startswith(b"oci-layout")
    digest = out(me.knarr("image", "copy", "-", f"oci:{tmp_path}/l:x", input=piped.stdout)).strip()
    assert digest == out(me.knarr("images", "--format", "{{.Digest}}")).strip()
    described = me.knarr("image", "copy", "--json", f"store:{name}", "oci-archive:-")
    assert json.loads(described.stderr)["digest"] == digest  # beside the archive, not in it
    saved = me.knarr("image", "save", name).stdout
    out(me.knarr("rmi", name))
    assert out(me.knarr("image", "load", input=saved)).startswith(f"{name} sha256:")
    assert out(me.knarr("images", "--format", "{{.Name}}")).strip() == name
    sentence(me.knarr("image", "load", input=b"nothing"), "standard input")
    sentence(me.knarr("image", "copy", "-", f"oci:{tmp_path}/m:x", input=saved[:5000]), "standard input")
    assert not (tmp_path / "m").exists()


def test_several_images_in_one_archive(image: str, me: Person, tmp_path: Path) -> None:
    out(me.knarr("pull", image))
    name = out(me.knarr("images", "--format", "{{.Name}}")).strip()
    for new in ("store:two:1", "store:three:1"):
        out(me.knarr("image", "copy", f"store:{name}", new))
    before = set(out(me.knarr("images", "--format", "{{.Name}} {{.Digest}}")).splitlines())
    for form in ("docker", "oci"):
        path = tmp_path / f"{form}.tar"
        done = me.knarr("image", "save", "--format", form, "-o", str(path), name, "two:1", "three:1")
        assert out(done) == ""
        entries = json.loads(
            subprocess.run(["tar", "-xOf", str(path), "manifest.json"], capture_output=True, check=True).stdout
        )
        assert [entry["RepoTags"] for entry in entries] == [[name.removeprefix("docker.io/")], ["two:1"], ["three:1"]]
        out(me.knarr("rmi", name, "two:1", "three:1"))
        lines = out(me.knarr("image", "load", "-i", str(path))).splitlines()
        # One image with three names: layouts list the image once, docker's archive each name.
        assert {one for line in lines for one in line.rpartition(" ")[0].split(", ")} == {
            line.partition(" ")[0] for line in before
        }
        if form == "oci":
            assert set(out(me.knarr("images", "--format", "{{.Name}} {{.Digest}}")).splitlines()) == before


def test_mistakes(me: Person, tmp_path: Path) -> None:
    sentence(me.knarr("image", "copy", "x"), "TARGET")
    sentence(me.knarr("image", "copy", "ostree:x", "y"), "ostree: is not a transport of knarr")
    sentence(me.knarr("image", "copy", f"oci:{tmp_path}/none", "dir:x"), "does not exist")
    sentence(me.knarr("image", "copy", "--jobs", "x", "a", "b"), "--jobs")
    sentence(me.knarr("image", "push", "nosuch:1"), "image nosuch:1 does not exist")
    sentence(me.knarr("image", "save", "nosuch:1"), "image nosuch:1 does not exist")
    sentence(me.knarr("image", "save", "-o", f"{tmp_path}/no/x.tar", "nosuch:1"), "no such file")
    sentence(me.knarr("image", "delete", "oci:x:1"), "is not in a registry")
    sentence(me.knarr("login", "https://a.b/c/d"), "is no registry")
    assert os.listdir(tmp_path) == []


def test_outputs_that_take_nothing(image: str, me: Person, tmp_path: Path) -> None:
    out(me.knarr("pull", image))
    name = out(me.knarr("images", "--format", "{{.Name}}")).strip()
    sentence(me.knarr("image", "save", "-o", "/dev/full", name), "cannot write /dev/full: no space left on device")
    program = f'"{me.python}" -m knarr.cli.main image save {name}'
    done = me.run(["sh", "-c", f"{program} >/dev/full"])
    sentence(done, "cannot write standard output: no space left on device")
    done = me.run(["bash", "-c", f"{program} | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}"])
    assert (done.returncode, done.stderr) == (141, b"")
    # A file system that is full in the middle: nothing stays.
    limited = f"ulimit -f 100; {program} -o {tmp_path}/x.tar"
    sentence(me.run(["bash", "-c", limited]), "file too large")
    assert os.listdir(tmp_path) == []

"""Logins out of Docker's and Podman's files: the right ones or none (docs/security.md I12)."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import SpecError
from knarr.registry.credentials import Credentials, find_credentials

if TYPE_CHECKING:
    from pathlib import Path


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def find(path: Path, document: Any, registry: str, repository: str = "a/b") -> tuple[str, str] | None:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    found = find_credentials(registry, repository, {"REGISTRY_AUTH_FILE": str(path), "XDG_RUNTIME_DIR": "/nonexistent"})
    return (found.credentials.user, found.credentials.password) if found.credentials else None


def remark(path: Path, document: Any, registry: str) -> str:
    path.write_text(json.dumps(document))
    found = find_credentials(registry, "a/b", {"REGISTRY_AUTH_FILE": str(path), "XDG_RUNTIME_DIR": "/nonexistent"})
    assert found.credentials is None
    return found.remark


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v1/", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("localhost:5000", "localhost:5000"),
        ("quay.io/a", "quay.io"),
        ("quay.io/a/b", "quay.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_keys(tmp_path: Path, key: str, registry: str) -> None:
    document = {"auths": {key: {"auth": encoded("bob:a:b")}}}
    assert find(tmp_path / "c", document, registry) == ("bob", "a:b")


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("quay.io", "quay.io:443"),
        ("quay.io:443", "quay.io"),
        ("quay.io", "evil.quay.io"),
        ("quay.io", "quay.io.evil"),
        ("quay.io/c", "quay.io"),
        ("localhost:5000", "localhost:5001"),
        ("localhost:5000", "127.0.0.1:5000"),
        ("https://index.docker.io/v1/", "quay.io"),
    ],
)
def test_never_another_hosts(tmp_path: Path, key: str, registry: str) -> None:
    assert find(tmp_path / "c", {"auths": {key: {"auth": encoded("bob:pw")}}}, registry) is None


def test_the_most_exact_key_wins(tmp_path: Path) -> None:
    auths = {
        name: {"auth": encoded(f"{number}:pw")} for number, name in enumerate(["quay.io", "quay.io/a", "quay.io/a/b"])
    }
    assert find(tmp_path / "c", {"auths": auths}, "quay.io") == ("2", "pw")


def test_forms_of_a_login(tmp_path: Path) -> None:
    def entry(value: Any) -> tuple[str, str] | None:
        return find(tmp_path / "c", {"auths": {"r": value}}, "r")

    assert entry({"username": "u", "password": "p"}) == ("u", "p")
    assert entry({"auth": encoded("u:p\0\0")}) == ("u", "p")
    assert entry({}) is None
    assert entry({"auth": ""}) is None
    assert entry("text") is None
    for wrong in ("%%%", encoded("no colon"), base64.b64encode(b"\xff\xfe").decode()):
        with pytest.raises(SpecError, match="/auth: must be base64 of user:password"):
            entry({"auth": wrong})
    assert entry({"auth": encoded("u:"), "identitytoken": "x"}) == ("", "")


def test_helpers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    said = remark(path, {"credHelpers": {"r": "nosuch"}}, "r")
    assert "leaves logins for r to a credential helper, and credential helper docker-credential-nosuch does not" in said
    assert "docker-credential-nosuch" in remark(path, {"credsStore": "nosuch"}, "r")
    assert "is no name of a program" in remark(path, {"credsStore": "../../bin/sh"}, "r")
    assert remark(path, {"credHelpers": {"other": "pass"}}, "r") == ""
    # a login in the file itself goes before a helper for everything
    assert find(path, {"credsStore": "nosuch", "auths": {"r": {"auth": encoded("u:p")}}}, "r") == ("u", "p")
    assert find(path, {"credHelpers": {"r": "x"}, "auths": {"r": {"auth": encoded("u:p")}}}, "r") is None


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"auths": {}, "auths": {}}', "\xff"])
def test_files_that_are_something_else(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=str(tmp_path / "c")):
        find(tmp_path / "c", text, "r")


@pytest.mark.parametrize("text", ["", " \n", "{}", '{"auths": null}', '{"auths": {"r": null}}', '{"credsStore": ""}'])
def test_empty_files(tmp_path: Path, text: str) -> None:
    assert find(tmp_path / "c", text, "r") is None


def test_the_order_of_files(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    paths = [
        tmp_path / "run/containers/auth.json",
        tmp_path / "home/.config/containers/auth.json",
        tmp_path / "home/.docker/config.json",
    ]
    for path in reversed(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {"r": {"auth": encoded(f"{path}:pw")}}}))
        found = find_credentials("r", "a", environ).credentials
        assert found is not None
        assert found.user == str(path)
        assert found.origin == str(path)
    assert find_credentials("r", "a", {**environ, "HOME": "/nonexistent"}).credentials is not None
    assert find_credentials("r", "a", {"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/nonexistent"}).credentials is None


def test_netrc_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine r login bob password pw\n")
    assert find_credentials("r", "a", {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/nonexistent"}).credentials is None


def test_an_unreadable_file_is_a_remark(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.mkfifo(tmp_path / "c")  # root may read everything that is a file
    else:
        (tmp_path / "c").touch(mode=0)
    found = find_credentials("r", "a", {"REGISTRY_AUTH_FILE": str(tmp_path / "c"), "XDG_RUNTIME_DIR": "/nonexistent"})
    assert found.credentials is None
    assert str(tmp_path / "c") in found.remark


def test_a_password_does_not_show() -> None:
    assert "pw" not in repr(Credentials("u", "pw", "", "pw"))
    assert "pw" not in f"{Credentials('u', 'pw')}"

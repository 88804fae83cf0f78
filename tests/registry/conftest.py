"""Registries to pull from: one that misbehaves as told, and the real docker-registry."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from dockerregistry import docker_registry, need_docker_registry
from fakeregistry import FakeRegistry, RealRegistry, made_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the logins and settings of whoever runs the tests out of them."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[FakeRegistry]:
    """Another origin: the same machine, another port."""
    with FakeRegistry() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a self-signed certificate for 127.0.0.1 and localhost, and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return made_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A docker-registry anybody may use."""
    need_docker_registry("skopeo")
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield RealRegistry(host)


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A docker-registry for bob, whose password is secret."""
    need_docker_registry("skopeo", "htpasswd")
    with docker_registry(tmp_path_factory.mktemp("locked"), password="secret") as host:
        yield RealRegistry(host)

"""Registries to pull from: one that misbehaves as told, and the real docker-registry."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(where: Path, extra: str = "") -> tuple[RealRegistry, subprocess.Popen[bytes]]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    port = free_port()
    config = where / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {where}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{extra}"
    )
    with (where / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.02)
    else:
        process.kill()
        pytest.fail(f"docker-registry does not start: {(where / 'log').read_text()}")
    return RealRegistry(f"127.0.0.1:{port}"), process


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A docker-registry anybody may use."""
    registry, process = started(tmp_path_factory.mktemp("registry"))
    yield registry
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A docker-registry for bob, whose password is secret."""
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed")
    where = tmp_path_factory.mktemp("locked")
    subprocess.run(["htpasswd", "-Bbc", str(where / "users"), "bob", "secret"], check=True, capture_output=True)
    registry, process = started(where, f"auth: {{htpasswd: {{realm: test, path: {where}/users}}}}\n")
    yield registry
    process.kill()
    process.wait()

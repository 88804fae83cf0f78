"""A real docker-registry (Debian's 2.8) on loopback, for tests and for the conformance suite."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "docker-registry"


def need_docker_registry(*others: str) -> None:
    """Skip the test when the registry, or another program it wants, is not installed."""
    import pytest

    for program in (PROGRAM, *others):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextmanager
def docker_registry(folder: Path, *, password: str = "") -> Iterator[str]:
    """A registry over ``folder`` (made if missing) for as long as it is needed; gives host:port.

    With ``password`` it is for bob alone; that takes htpasswd.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config: dict[str, Any] = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    if password:
        users = str(folder / "users")
        subprocess.run(["htpasswd", "-Bbc", users, "bob", password], check=True, capture_output=True)
        config["auth"] = {"htpasswd": {"realm": "test", "path": users}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.02)
        else:
            raise RuntimeError(f"docker-registry does not start: {(folder / 'log').read_text()}")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()

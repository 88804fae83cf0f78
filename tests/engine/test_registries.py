"""``knarr.copy`` and ``knarr.Registry``, blocking and for asyncio, against a real docker-registry."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from dockerregistry import docker_registry, need_docker_registry

import knarr
from knarr.base.errors import InvalidReference, NotFound, RegistryError, UsageError
from knarr.engine import aio, registries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knarr.image.transfer import BlobProgress


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need_docker_registry()
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def layout(tmp_path: Path) -> str:
    """A layout with one image of one file."""
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    where = tmp_path / "layout"
    (tmp_path / "file").write_bytes(os.urandom(300_000))
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    for words in (
        ["init", "--layout", str(where)],
        ["new", "--image", f"{where}:v1"],
        ["insert", *rootless, "--image", f"{where}:v1", str(tmp_path / "file"), "/file"],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    return f"oci:{where}:v1"


def test_there_and_back(host: str, layout: str, tmp_path: Path) -> None:
    steps: list[BlobProgress] = []
    pushed = knarr.copy(layout, f"docker://{host}/a/b:1", progress=steps.append)
    assert {step.status for step in steps} == {"waiting", "copying", "done"}
    back = knarr.copy(f"docker://{host}/a/b:1", f"oci:{tmp_path}/back:1")
    assert back.digest == pushed.digest == pushed.source_digest
    registry = knarr.Registry(host)
    assert registry.tags("a/b") == ["1"]
    assert "a/b" in registry.repositories()
    found = registry.manifest("a/b", "1")
    assert found.digest == pushed.digest
    assert found.content["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert registry.referrers("a/b", pushed.digest) == []
    with pytest.raises(NotFound, match="there is 1"):
        registry.manifest("a/b", "2")
    with pytest.raises(RegistryError, match="by digest only"):
        registry.delete("a/b", "1", tag_only=True)
    assert registry.delete("a/b", "1") == pushed.digest
    with pytest.raises(NotFound):
        registry.manifest("a/b", pushed.digest)
    with pytest.raises(NotFound):
        registry.tags("never/was")


def test_nothing_is_asked_before_a_method_is_called() -> None:
    registry = knarr.Registry("127.0.0.1:1", "bob", "hunter2")  # nothing listens there
    assert "hunter2" not in repr(registry)
    assert registry == knarr.Registry("127.0.0.1:1", "bob", "hunter2")
    with pytest.raises(RegistryError, match="connection refused"):
        registry.tags("a")
    for name in ("../x", "a:1", "UPPER", "", "a@sha256:" + "0" * 64, "evil.example/x/../y"):
        with pytest.raises(InvalidReference):
            registry.tags(name)


def test_wrong_options(layout: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a list of texts"):
        knarr.copy(layout, f"oci:{tmp_path}/x", platforms="linux/amd64")
    with pytest.raises(UsageError, match="'rar' is not known"):
        knarr.copy(layout, f"oci:{tmp_path}/x", compress="rar")
    assert not (tmp_path / "x").exists()


def test_the_twins_agree() -> None:
    parameters = inspect.signature(knarr.copy).parameters
    options = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    text = inspect.getsource(registries)
    block = text[text.index("class CopyOptions") : text.index("class Document")]
    assert options == {
        line.split(":")[0].strip()
        for line in block.splitlines()
        if line.startswith("        ") and ": " in line and '"' not in line
    }
    for name, method in inspect.getmembers(knarr.Registry, inspect.isfunction):
        if not name.startswith("_") and name != "replace":
            twin = getattr(aio.Registry, name)
            assert inspect.signature(twin) == inspect.signature(method)
            assert inspect.iscoroutinefunction(twin)


def test_asyncio(host: str, layout: str, tmp_path: Path) -> None:
    async def work() -> list[str]:
        registry = knarr.aio.Registry(host)
        await asyncio.gather(*(knarr.aio.copy(layout, f"docker://{host}/many/m{number}:1") for number in range(4)))
        with pytest.raises(NotFound):
            await registry.manifest("many/m0", "nosuch")
        back = await knarr.aio.copy(f"docker://{host}/many/m1:1", f"oci:{tmp_path}/aio:1")
        assert (await registry.manifest("many/m1", "1")).digest == back.digest
        assert await registry.delete("many/m1", "1") == back.digest
        return await registry.tags("many/m3")

    assert asyncio.run(work()) == ["1"]


def test_cancelling_ends_the_copy(layout: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    async def work() -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(step: BlobProgress) -> None:
            seen.append(step)
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.02)

        task = asyncio.create_task(knarr.aio.copy(layout, f"oci-archive:{tmp_path}/x.tar", progress=progress))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        count = len(seen)
        await asyncio.sleep(0.1)
        assert len(seen) == count  # nothing goes on behind our back

    asyncio.run(work())
    assert not (tmp_path / "x.tar").exists()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".knarr")] == []

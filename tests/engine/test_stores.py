"""``knarr.Store``: what is in a store, opened, removed, measured, checked; blocking and for asyncio. No network."""

from __future__ import annotations

import asyncio
import inspect
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

import knarr
from knarr.base.errors import InUse, InvalidReference, NotFound
from knarr.content import store as content
from knarr.engine import aio

if TYPE_CHECKING:
    from knarr import Image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for a store; the one in force is another."""
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "usual"))
    monkeypatch.setenv("KNARR_RUN", str(tmp_path / "run"))
    return tmp_path / "store"


def image(text: str) -> Image:
    return knarr.Image.empty().with_config(labels={"text": text})


def test_listed_opened_removed(folder: Path) -> None:
    store = knarr.Store(str(folder))
    assert store == knarr.Store(str(folder))
    assert not folder.exists()  # nothing is made before it is asked for
    with pytest.raises(AttributeError):
        store.path = "x"  # type: ignore[misc]
    one, two = image("one"), image("two")
    one.save("a:1", store=str(folder))
    one.save("a:2", store=str(folder))
    two.save("b:1", store=str(folder))
    found = {listed.name: (listed.id, dict(listed.labels)) for listed in store.images()}
    assert found == {
        "docker.io/library/a:1": (one.id, {"text": "one"}),
        "docker.io/library/a:2": (one.id, {"text": "one"}),
        "docker.io/library/b:1": (two.id, {"text": "two"}),
    }
    assert knarr.Store().images() == []
    for name in ("a:1", "store:a:1", one.id, one.id[7:19]):
        with store.image(name) as opened:
            assert opened == one
    with pytest.raises(NotFound, match="a:3"):
        store.image("a:3")
    with pytest.raises(InvalidReference):
        store.image("UPPER CASE")
    with pytest.raises(InUse, match="several names"):
        store.remove(one.id)
    gone = store.remove("b:1")
    assert gone.names == ("docker.io/library/b:1",)
    assert set(gone.blobs) == {two.digest, two.id}
    assert gone.layers == ()
    assert gone.size == two.size
    assert set(store.remove(one.id, force=True).names) == {"docker.io/library/a:1", "docker.io/library/a:2"}
    assert store.images() == []


def test_measured_pruned_checked(folder: Path) -> None:
    store, one = knarr.Store(str(folder)), image("one")
    one.save("a:1", store=str(folder))
    rows = {row.kind: row for row in store.usage()}
    assert set(rows) == {"images", "layers", "containers", "unfinished"}
    assert (rows["images"].total, rows["images"].active, rows["images"].size) == (1, 0, one.size)
    assert store.check() == []
    blob = Path(content.Store(str(folder)).blob_path(one.id))
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[5] ^= 1
    blob.write_bytes(data)
    (damage,) = store.check()
    assert damage.what == f"blob {one.id}"
    assert not damage.mended
    assert store.check(repair=True)[0].mended
    assert not blob.exists()
    assert store.prune().names == ()
    assert store.prune(everything=True).names == ("docker.io/library/a:1",)


def test_from_asyncio(folder: Path) -> None:
    async def work() -> None:
        store, one = knarr.aio.Store(str(folder)), image("one")
        assert repr(store) == f"aio.Store(path={str(folder)!r})"
        await aio.Image(one).save("a:1", store=str(folder))
        assert [listed.id for listed in await store.images()] == [one.id]
        opened = await store.image("a:1")
        assert opened.blocking == one
        assert {row.kind for row in await store.usage()} > {"images"}
        assert await store.check() == []
        assert (await store.remove("a:1")).size == one.size
        assert (await store.prune()).blobs == ()

    asyncio.run(work())


def test_the_twins_agree() -> None:
    for name, method in inspect.getmembers(knarr.Store, inspect.isfunction):
        if not name.startswith("_") and name != "replace":
            twin = getattr(aio.Store, name)
            assert inspect.signature(twin) == inspect.signature(method)
            assert inspect.iscoroutinefunction(twin)


def test_the_network_is_not_asked_by_surprise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only docker:// means a registry, and then, too, nothing is asked before there is something to know."""

    def asked(*_args: object, **_named: object) -> NoReturn:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    store = str(folder)
    for name in ("a:1", "quay.io/a/b:1", "localhost:5000/a", f"quay.io/a/b@sha256:{'0' * 64}", "docker.io/library/a"):
        for opens in (knarr.Image.open, knarr.Index.open):
            with pytest.raises(NotFound):
                opens(name, store=store)
        with pytest.raises(NotFound):
            knarr.Store(store).image(name)
    one = image("one").save("quay.io/a/b:1", store=store)
    opened = knarr.Image.open("quay.io/a/b:1", store=store)
    assert knarr.diff(opened, one) == []
    assert knarr.validate("quay.io/a/b:1", store=store) == knarr.validate("oci:" + store)
    knarr.Registry("quay.io")
    with pytest.raises(AssertionError, match="was asked"):
        knarr.Image.open("docker://quay.io/a/b:1", store=store)

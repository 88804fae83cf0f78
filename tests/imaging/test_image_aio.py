"""``knarr.aio``'s images: the twins agree with the blocking ones; many at once; cancelling ends the work and leaves nothing."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from dockerregistry import docker_registry, need_docker_registry
from fakeregistry import REPOSITORY, FakeRegistry, Handler, Sample
from imagekit import layout
from tarbuilder import f

import knarr
from knarr.base.errors import DigestMismatch, Interrupted, NotFound
from knarr.content.stopping import Stop
from knarr.content.store import Store
from knarr.content.verify import VerifiedReader
from knarr.engine import aio
from knarr.engine.imaging.compare import diff
from knarr.engine.imaging.image import Image, Index, Layer
from knarr.engine.imaging.validate import validate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def big(seed: int, size: int = 3_000_000) -> list[bytes]:
    return [f(f"file{seed}", random.Random(seed).randbytes(size))]


@contextmanager
def stalling() -> Iterator[tuple[str, threading.Event]]:
    """A registry that takes connections and never answers; its host:port, and an event: somebody asked."""
    asked = threading.Event()
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                held.append(one)
                if one.recv(1):
                    asked.set()

        thread = threading.Thread(target=take)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in held:
        one.close()


async def cancelled(task: asyncio.Task[Any], after: threading.Event) -> float:
    """Cancel a task once ``after`` is set; how long it took to end."""
    while not after.is_set():
        await asyncio.sleep(0.002)
        assert not task.done(), "it was too quick to be cancelled"
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("twin", "blocking"), [(aio.Image, Image), (aio.Index, Index), (aio.Layer, Layer)], ids=["Image", "Index", "Layer"]
)
def test_the_twins_agree(twin: type, blocking: type) -> None:
    own = {
        "replace",
        "with_documents",
        "with_document",
        "with_layers",
        "source",
        "what",
        "blobs",
        "index",
    }  # the house's own
    public = {name for name in dir(blocking) if not name.startswith("_")} - own
    assert public <= set(dir(twin)) | {"history", "document"}
    for name in sorted(public):
        one, two = getattr(blocking, name), getattr(twin, name)
        if inspect.isroutine(one):
            assert [*inspect.signature(one).parameters] == [*inspect.signature(two).parameters], name


def test_the_functions_agree() -> None:
    for function, twin in ((diff, aio.diff), (validate, aio.validate)):
        assert [*inspect.signature(function).parameters] == [*inspect.signature(twin).parameters]


def test_everything_once(tmp_path: Path) -> None:
    reference = layout(tmp_path / "a", [f("etc/motd", b"hello")], [f("b", b"there")])

    async def work() -> None:
        async with await aio.Image.open(reference) as image:
            plain = Image.open(reference)
            assert image == aio.Image(plain)
            assert hash(image) == hash(aio.Image(plain))
            assert (image.digest, image.id, image.config, image.size) == (
                plain.digest,
                plain.id,
                plain.config,
                plain.size,
            )
            assert str(image.platform) == str(plain.platform)
            layer = image.layers[0]
            assert [one.name async for one in layer.entries()] == [b"etc/motd"]
            assert b"hello" in b"".join([data async for data in layer.stream()])
            assert sum([len(data) async for data in layer.open()]) == layer.size
            (tmp_path / "new").write_bytes(b"new")
            slim = await (await image.remove(["/b"])).add(str(tmp_path / "new"), "/new")
            slim = (await slim.squash()).with_config(env={"MODE": "prod"})
            saved = await slim.save("app:slim")
            assert (await aio.Image.open("app:slim")).digest == saved.digest
            found = {(one.kind, one.name) for one in await aio.diff(image, saved)}
            assert len(found) >= 3
            index = await aio.Index.of([image, saved])
            assert len(index.entries) == 2
            await index.save(f"oci:{tmp_path}/index:both")
            opened = await aio.Index.open(f"oci:{tmp_path}/index:both")
            assert [one.digest async for one in opened.images()] == [image.digest, saved.digest]
            assert await aio.validate(f"oci:{tmp_path}/index") == []
        with pytest.raises(NotFound):
            await aio.Image.open("never:was")

    asyncio.run(work())


def test_many_pulls_at_once(tmp_path: Path) -> None:
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:

        async def work() -> list[str]:
            made = [layout(tmp_path / f"made{n}", big(n, 300_000), big(99)) for n in range(6)]
            pushed = await asyncio.gather(
                *(aio.copy(one, f"docker://{host}/many/app{n}:1") for n, one in enumerate(made))
            )
            pulled = await asyncio.gather(*(aio.pull(f"{host}/many/app{n}:1") for n in range(6)))
            assert pulled == [one.digest for one in pushed]
            return pulled

        pulled = asyncio.run(work())
    store = Store.open(os.environ["KNARR_STORE"])
    assert sorted(one["digest"] for one in store.tags().values()) == sorted(pulled)
    for name in (f"{host}/many/app{n}:1" for n in range(6)):
        assert validate(name) == []


def test_cancelling_a_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a moment of the transfer; the next try succeeds, and until then the store knows no such image."""
    half = threading.Event()
    before = VerifiedReader.read

    def slowly(self: VerifiedReader, size: int | None = -1, /) -> bytes:
        if half.is_set():
            time.sleep(0.05)
        data = before(self, min(size or 0, 1 << 16) if size and size > 0 else size)
        if self.size > 1_000_000:
            half.set()
        return data

    reference = layout(tmp_path / "a", big(1), big(2))

    async def work() -> None:
        monkeypatch.setattr(VerifiedReader, "read", slowly)
        took = await cancelled(asyncio.create_task(aio.pull(reference)), half)
        monkeypatch.setattr(VerifiedReader, "read", before)
        assert took < 2  # the rest would have taken 4 s
        assert Store.open(os.environ["KNARR_STORE"]).tags() == {}
        assert await aio.pull(reference) == Image.open(reference).digest

    asyncio.run(work())
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("knarr-")]


def test_cancelling_what_waits_for_a_registry(tmp_path: Path) -> None:
    """A registry that never answers is not waited for: 30 s are its time-out."""
    reference = layout(tmp_path / "a", big(1, 1000))

    async def work() -> None:
        for begin in (
            lambda host: aio.Image.open(f"docker://{host}/a:1"),
            lambda host: aio.Index.open(f"docker://{host}/a:1"),
            lambda host: aio.pull(f"{host}/a:1"),
            lambda host: aio.copy(f"docker://{host}/a:1", f"oci:{tmp_path}/out:1"),
            lambda host: aio.copy(reference, f"docker://{host}/a:1"),
        ):
            with stalling() as (host, asked):
                assert await cancelled(asyncio.create_task(begin(host)), asked) < 5
        assert not (tmp_path / "out").exists()

    asyncio.run(work())


def test_cancelling_a_connection_that_is_being_made(tmp_path: Path) -> None:
    """10 s are the time-out of one that nobody takes."""
    reference = layout(tmp_path / "a", big(1, 1000))

    async def work(host: str) -> None:
        for begin in (
            lambda: aio.Image.open(f"docker://{host}/a:1"),
            lambda: aio.pull(f"{host}/a:1"),
            lambda: aio.copy(reference, f"docker://{host}/a:1"),
        ):
            task = asyncio.create_task(begin())
            await asyncio.sleep(0.5)
            assert not task.done()
            now = threading.Event()
            now.set()
            assert await cancelled(task, now) < 2

    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # nobody accepts them, and no more are let in
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        asyncio.run(work(f"127.0.0.1:{address[1]}"))
        for one in waiting:
            one.close()


def test_cancelling_the_look_up_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer is given up by the resolver after many seconds, by us at once."""
    reference = layout(tmp_path / "a", big(1, 1000))
    look_up, asked, answer = socket.getaddrinfo, threading.Event(), threading.Event()

    def silent(host: str, *rest: int, **options: int) -> list[Any]:
        if host != "registry.invalid" or options.get("flags"):
            return look_up(host, *rest, **options)
        asked.set()
        answer.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", silent)

    async def work() -> None:
        for begin in (
            lambda: aio.Image.open("docker://registry.invalid/a:1"),
            lambda: aio.pull("registry.invalid/a:1"),
            lambda: aio.copy(reference, "docker://registry.invalid/a:1"),
        ):
            asked.clear()
            assert await cancelled(asyncio.create_task(begin()), asked) < 2

    asyncio.run(work())
    answer.set()  # those left behind end now
    for thread in threading.enumerate():
        if thread.name == "knarr-lookup":
            thread.join(10)


def test_cancelling_what_is_sent_to_a_registry_that_takes_nothing(tmp_path: Path) -> None:
    reference = layout(tmp_path / "a", big(1, 20_000_000), kind="")
    asked, over = threading.Event(), threading.Event()

    def stall(handler: Handler) -> bool:
        if handler.command not in {"PATCH", "PUT"}:
            return False
        asked.set()
        over.wait(60)
        handler.close_connection = True
        return True

    with FakeRegistry() as fake:
        fake.early.append(("/v2/", stall))

        async def work() -> None:
            task = asyncio.create_task(aio.copy(reference, f"docker://{fake.host}/{REPOSITORY}:1"))
            await asyncio.to_thread(asked.wait, 30)
            await asyncio.sleep(0.3)  # until the buffers are full
            assert await cancelled(task, asked) < 2

        try:
            asyncio.run(work())
        finally:
            over.set()


def test_cancelling_a_layer_that_comes_no_further(tmp_path: Path) -> None:
    """Only what the cancelled task reads is broken off: another one, of the same image, gets its layer."""
    sample = Sample(3_000_000, 10_000)
    stuck, other = (part["digest"] for part in sample.layers)
    asked, over = threading.Event(), threading.Event()

    def stall(handler: Handler) -> bool:
        data = sample.blobs[stuck]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:2_000_000])
        asked.set()
        over.wait(60)
        handler.close_connection = True
        return True

    with FakeRegistry() as fake:
        fake.add("1", sample)
        fake.rules.append((f"/v2/{REPOSITORY}/blobs/{stuck}", stall))

        async def work() -> None:
            async with await aio.Image.open(f"docker://{fake.host}/{REPOSITORY}@{sample.digest}") as image:
                slow, quick = image.layers
                assert slow.digest == stuck
                for read in (slow.open, slow.stream):

                    async def everything(read: Any = read) -> None:
                        async for _ in read():
                            pass

                    asked.clear()
                    task = asyncio.create_task(everything())
                    await asyncio.to_thread(asked.wait, 30)
                    await asyncio.sleep(0.2)
                    beside = quick.open()
                    first = await anext(beside)
                    assert await cancelled(task, asked) < 2
                    rest = [part async for part in beside]
                    assert b"".join((first, *rest)) == sample.blobs[other]

        try:
            asyncio.run(work())
        finally:
            over.set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("knarr-")]


def test_cancelling_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.open(layout(tmp_path / "a", big(1), big(2), big(3)))
    other = image.squash()
    going = threading.Event()
    before = VerifiedReader.read

    def slowly(self: VerifiedReader, size: int | None = -1, /) -> bytes:
        going.set()
        time.sleep(0.02)
        return before(self, min(size or 0, 1 << 14) if size and size > 0 else size)

    async def work() -> None:
        monkeypatch.setattr(VerifiedReader, "read", slowly)
        for begin in (
            lambda: aio.Image(image).squash(),
            lambda: aio.Image(image).save(f"oci:{tmp_path}/out:1"),
            lambda: aio.Image(image).save(f"oci-archive:{tmp_path}/out.tar"),
            lambda: aio.diff(aio.Image(image), aio.Image(other)),
        ):
            going.clear()
            assert await cancelled(asyncio.create_task(begin()), going) < 1  # 9 MB would take 11 s
        monkeypatch.undo()

    asyncio.run(work())
    assert {name for name in os.listdir(tmp_path) if name not in ("store", "run")} <= {"a"}


def test_a_result_that_nobody_gets_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = layout(tmp_path / "a", big(1, 1000))
    opened: list[Image] = []
    there = threading.Event()
    before = Image.open

    def late(text: str, **options: Any) -> Image:
        opened.append(before(text, **options))
        there.set()
        time.sleep(0.1)
        return opened[0]

    monkeypatch.setattr(Image, "open", late)

    async def work() -> None:
        await cancelled(asyncio.create_task(aio.Image.open(reference)), there)

    asyncio.run(work())
    source = opened[0].blobs.source
    assert source is not None
    assert not source._open


def test_damage_is_told(tmp_path: Path) -> None:
    reference = layout(tmp_path / "a", big(1, 10_000))
    image = Image.open(reference)
    blob = tmp_path / "a" / "blobs" / image.layers[0].digest.replace(":", "/")
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)

    async def work() -> None:
        with pytest.raises(DigestMismatch):
            async for _ in aio.Image(image).layers[0].open():
                pass

    asyncio.run(work())


def test_a_stop_before_the_start() -> None:
    stop = Stop("the work")
    stop.ask()
    with pytest.raises(Interrupted, match="the work was stopped"):
        stop.run(lambda: pytest.fail("it began"))
    broken: list[int] = []
    with pytest.raises(Interrupted), stop.breaking(lambda: broken.append(1)):
        pass
    assert broken == []


def test_names_of_the_package() -> None:
    for name in aio.__all__:
        assert hasattr(knarr, name)

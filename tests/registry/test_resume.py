"""Pulls that were killed, broken off or stopped: the next one fetches only what is missing, and checks all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry, Handler, Sample
from hostile import BLOBS, pull

from knarr.base.errors import DigestMismatch, RegistryError
from knarr.content.check import check
from knarr.content.store import Store

SIZE = 6 << 20
MIB = 1 << 20
KILLS = int(os.environ.get("KNARR_KILLS", "12"))  # 200 for a thorough look: five minutes

WORKER = """
import sys
from knarr.content.store import Store
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.registry.source import open_image
store, host = sys.argv[1:]
copy(open_image(host, "lib/thing", "v1"), Store.open(store), ["x"], platform=parse_platform("linux/amd64"))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def slowly(handler: Handler) -> bool:
    """Send a blob in steps of 256 KiB, a millisecond or two each."""
    data = handler.registry.blobs[handler.path.rpartition("/")[2]]
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(len(data) - start))
    handler.end_headers()
    for at in range(start, len(data), MIB // 4):
        handler.wfile.write(data[at : at + MIB // 4])
        time.sleep(0.002)
    return True


def left(store: Store, sample: Sample) -> int:
    """Bytes of the layer that a pull left unfinished."""
    path = Path(store.path, ".tmp", sample.layers[0]["digest"].replace(":", "-"))
    return path.stat().st_size if path.exists() else 0


def ranges(fake: FakeRegistry) -> list[int]:
    asked = [one.headers.get("range", "bytes=0-") for one in fake.asked("/blobs/")]
    return [int(text.removeprefix("bytes=").rstrip("-")) for text in asked]


@pytest.mark.parametrize("point", range(KILLS))
def test_killed(store: Store, fake: FakeRegistry, point: int) -> None:
    sample = fake.add("v1", Sample(SIZE))
    fake.rule(BLOBS + sample.layers[0]["digest"], slowly)
    command = [sys.executable, "-c", WORKER, store.path, fake.host]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while left(store, sample) < point * SIZE // KILLS and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()  # it may have ended meanwhile
    process.wait()
    there = left(store, sample)
    done = store.has(sample.layers[0]["digest"])
    assert store.tags() == {} or done
    fake.log.clear()
    subprocess.run(command, check=True)
    assert list(store.tags()) == ["x"]
    assert check(store) == []
    assert os.listdir(f"{store.path}/.tmp") == []
    if not done:
        # Not one byte that was there is asked for again; nothing at all if only the name was missing.
        assert max(ranges(fake), default=there) == there


def test_a_registry_that_breaks_off_again_and_again(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(SIZE))
    layer = sample.layers[0]["digest"]

    def two_mib(handler: Handler) -> bool:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            return handler.reply(503)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(fake.blobs[layer])))
        handler.end_headers()
        handler.wfile.write(fake.blobs[layer][: 2 * MIB])
        return handler.drop()

    fake.rule(BLOBS + layer, two_mib)
    with pytest.raises(RegistryError):
        pull(store, fake)
    there = left(store, sample)
    assert MIB <= there <= 2 * MIB
    assert store.tags() == {}
    fake.rules.clear()
    fake.log.clear()
    pull(store, fake)
    assert max(ranges(fake)) == there
    assert check(store) == []


@pytest.mark.parametrize("how", ["flip", "longer", "all of it, flipped"])
def test_what_was_left_and_is_wrong_is_fetched_again(store: Store, fake: FakeRegistry, how: str) -> None:
    sample = fake.add("v1", Sample(SIZE))
    layer = sample.layers[0]["digest"]
    data = bytearray(fake.blobs[layer])
    data[1000] ^= 1
    kept = {"flip": data[: 3 * MIB], "longer": data + b"x", "all of it, flipped": data}[how]
    Path(store.path, ".tmp", layer.replace(":", "-")).write_bytes(kept)
    pull(store, fake)
    assert check(store) == []
    assert os.listdir(f"{store.path}/.tmp") == []


def test_a_registry_that_lies_after_the_break(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(SIZE))
    layer = sample.layers[0]["digest"]
    Path(store.path, ".tmp", layer.replace(":", "-")).write_bytes(fake.blobs[layer][: 3 * MIB])
    fake.blobs[layer] = fake.blobs[layer][:-1] + b"\xff"
    with pytest.raises(DigestMismatch, match=layer):
        pull(store, fake)
    assert os.listdir(f"{store.path}/.tmp") == []  # bytes that are wrong are never kept


def test_a_registry_without_ranges(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(SIZE))
    layer = sample.layers[0]["digest"]
    Path(store.path, ".tmp", layer.replace(":", "-")).write_bytes(fake.blobs[layer][: 3 * MIB])
    fake.rule(BLOBS + layer, lambda handler: handler.reply(200, fake.blobs[layer]))
    pull(store, fake)
    assert check(store) == []


def test_a_collection_takes_what_is_left(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(SIZE))
    path = Path(store.path, ".tmp", sample.layers[0]["digest"].replace(":", "-"))
    path.write_bytes(bytes(3 * MIB))
    assert store.gc().size == 3 * MIB
    assert not path.exists()

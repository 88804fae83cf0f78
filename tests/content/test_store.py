"""The store: a valid OCI layout, safe against crashes, other writers, full and read-only disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import posix
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import (
    DigestMismatch,
    Exists,
    FileError,
    FormatError,
    InUse,
    InvalidDigest,
    NotFound,
    SizeMismatch,
    SpecError,
)
from knarr.content import locks
from knarr.content import store as store_module
from knarr.content.check import check
from knarr.content.digest import sha256_of
from knarr.content.names import printable, some
from knarr.content.store import Store
from knarr.kernel.disk import sync_file_system
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from knarr.spec.image import Descriptor


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def blob(data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return {"mediaType": media_type, "digest": sha256_of(data), "size": len(data)}


def put_image(store: Store, name: str, *layers: bytes) -> Descriptor:
    """Store a small image of plain layers and return its manifest's descriptor."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256_of(layer) for layer in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "config": store.put(config, media_type=mediatypes.CONFIG),
            "layers": [store.put(layer, media_type=mediatypes.LAYER) for layer in layers],
        }
    ).encode()
    made = store.put(manifest, media_type=mediatypes.MANIFEST)
    if name:
        store.tag(name, made)
    return made


def files(store: Store) -> set[str]:
    root = Path(store.path)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return found - {".lock", ".index.lock"}


FRESH = {"oci-layout", "index.json"}


def test_a_fresh_store_is_an_empty_layout(store: Store) -> None:
    root = Path(store.path)
    assert files(store) == FRESH
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((root / "index.json").read_text())["manifests"] == []
    for folder in (root, root / "blobs", root / "blobs" / "sha256", root / ".tmp"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    Store.open(store.path)  # again: nothing changes
    assert files(store) == FRESH


def test_opening(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"image store .*/no does not exist"):
        Store.open(str(tmp_path / "no"), create=False)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "9"}')
    with pytest.raises(SpecError, match="imageLayoutVersion"):
        Store.open(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="not a directory"):
        Store.open(str(tmp_path / "file"))


def test_an_interrupted_making_is_finished(store: Store) -> None:
    os.unlink(f"{store.path}/oci-layout")
    shutil.rmtree(f"{store.path}/.tmp")
    Store.open(store.path)
    assert store.tags() == {}
    store.put(b"x")


def test_blobs_go_in_and_come_out(store: Store) -> None:
    data = os.urandom(3 << 20)
    want = blob(data, "a/b")
    assert store.put(data, media_type="a/b") == want
    assert store.put(io.BytesIO(data), media_type="a/b") == want
    assert store.put(lambda: io.BytesIO(data), want) is want
    assert store.has(want["digest"])
    assert store.has(want["digest"], len(data))
    assert not store.has(want["digest"], len(data) + 1)
    with store.open_blob(want) as reader:
        assert reader.read() == data
    assert list(store.blobs()) == [(want["digest"], len(data))]
    path = store.blob_path(want["digest"])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444
    assert files(store) == {*FRESH, f"blobs/sha256/{path[-64:]}"}
    store.delete(want["digest"])
    store.delete(want["digest"])
    assert files(store) == FRESH


def test_sha512_and_unknown_algorithms(store: Store) -> None:
    want: Descriptor = {"mediaType": "a/b", "digest": "sha512:" + hashlib.sha512(b"abc").hexdigest(), "size": 3}
    store.put(b"abc", want)
    assert store.read_blob(want) == b"abc"
    assert [digest for digest, _ in store.blobs()] == [want["digest"]]
    unknown: Descriptor = {"mediaType": "a/b", "digest": "foo:abc", "size": 3}
    for act in (store.put, lambda *_: store.open_blob(unknown)):
        with pytest.raises(InvalidDigest, match="not an algorithm knarr can check"):
            act(b"abc", unknown)
    for text in ("sha256:../../x", "../x", f"sha256:{'a' * 63}/"):
        with pytest.raises(InvalidDigest):
            store.blob_path(text)


def test_a_source_is_not_opened_when_the_blob_is_there(store: Store) -> None:
    store.put(b"abc")

    def never() -> io.BytesIO:
        raise AssertionError

    store.put(never, blob(b"abc"))
    stream = io.BytesIO(b"abc")
    store.put(stream, blob(b"abc"))
    assert stream.closed


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"abcd", SizeMismatch),
        (b"ab", SizeMismatch),
        (b"", SizeMismatch),
        (b"abx", DigestMismatch),
    ],
)
def test_wrong_bytes_leave_nothing(store: Store, data: bytes, error: type[Exception]) -> None:
    stream = io.BytesIO(data)
    with pytest.raises(error):
        store.put(stream, blob(b"abc"))
    assert stream.closed
    assert files(store) == FRESH


def test_an_interrupted_source_leaves_nothing(store: Store) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if self.tell() > 1 << 20:
                raise KeyboardInterrupt
            return data

    data = bytes(2 << 20)
    for want in (blob(data), None):
        with pytest.raises(KeyboardInterrupt):
            store.put(Breaks(data), want)
    assert files(store) == FRESH


def test_a_damaged_blob_is_seen_when_read_and_healed_by_size(store: Store) -> None:
    want = store.put(b"abcdef")
    path = store.blob_path(want["digest"])
    os.chmod(path, 0o644)
    Path(path).write_bytes(b"abcdeX")
    with pytest.raises(DigestMismatch, match=path):
        store.read_blob(want)
    with store.open_blob(want) as reader, pytest.raises(DigestMismatch, match=path):
        reader.readall()  # a layer goes this way
    Path(path).write_bytes(b"abc")
    with pytest.raises(SizeMismatch, match=path):
        store.read_blob(want)
    store.put(b"abcdef", want)
    assert store.read_blob(want) == b"abcdef"
    os.unlink(path)
    with pytest.raises(NotFound, match=r"blob sha256:.*pull the image again"):
        store.read_blob(want)


def test_blobs_that_are_no_files_are_refused(store: Store, tmp_path: Path) -> None:
    want = blob(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    path = store.blob_path(want["digest"])
    os.symlink(tmp_path / "secret", path)
    with pytest.raises(FileError, match="symbolic link"):
        store.read_blob(want)
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(FileError, match="not a regular file"):
        store.read_blob(want)
    assert list(store.blobs()) == []


def test_large_documents_are_not_read(store: Store) -> None:
    want = store.put(bytes(100))
    with pytest.raises(FormatError, match="at most 99"):
        store.read_blob(want, 99)


def test_an_index_that_could_not_be_read_again_is_not_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        put_image(store, f"image:{number}", b"layer")
    before = Path(store.path, "index.json").read_bytes()
    monkeypatch.setattr("knarr.content.names.INDEX_LIMIT", len(before) + 20)
    with pytest.raises(FileError, match="remove images first"):
        put_image(store, "image:3", b"layer")
    assert Path(store.path, "index.json").read_bytes() == before
    store.untag("image:0")
    put_image(store, "image:3", b"layer")
    assert list(store.tags()) == ["image:1", "image:2", "image:3"]


def test_moved_counts_every_byte_and_can_stop(store: Store) -> None:
    data = os.urandom(5 << 20)
    steps: list[int] = []
    store.put(io.BytesIO(data), blob(data), moved=steps.append)
    assert sum(steps) == len(data)

    def stop(count: int) -> None:
        raise InterruptedError(str(count))

    with pytest.raises(InterruptedError):
        store.put(bytes(10), moved=stop)
    assert len(files(store)) == len(FRESH) + 1


def test_names(store: Store) -> None:
    first = put_image(store, "docker.io/library/a:1", b"one")
    second = put_image(store, "docker.io/library/b:1", b"two")
    assert {name: entry["digest"] for name, entry in store.tags().items()} == {
        "docker.io/library/a:1": first["digest"],
        "docker.io/library/b:1": second["digest"],
    }
    assert store.resolve("docker.io/library/a:1")["digest"] == first["digest"]
    store.tag("docker.io/library/a:1", second)
    assert store.resolve("docker.io/library/a:1")["digest"] == second["digest"]
    with pytest.raises(Exists, match=r"image docker.io/library/a:1 already exists"):
        store.tag("docker.io/library/a:1", first, replace=False)
    assert store.untag("docker.io/library/a:1")["digest"] == second["digest"]
    with pytest.raises(NotFound, match=r"image docker.io/library/a:1 does not exist; there is docker.io/library/b:1$"):
        store.resolve("docker.io/library/a:1")
    with pytest.raises(NotFound, match=r"there is docker.io/library/b:1$"):
        store.untag("docker.io/library/a:1")
    store.forget(second["digest"])
    with pytest.raises(NotFound, match="there is nothing in the store"):
        store.resolve("x")
    with pytest.raises(NotFound, match="blob"):
        store.tag("x", blob(b"not there"))


def test_what_others_wrote_into_the_index_survives(store: Store) -> None:
    path = Path(store.path, "index.json")
    index = json.loads(path.read_text())
    foreign = {**put_image(store, ""), "annotations": {"their.key": "value"}, "theirs": [1]}
    index["manifests"] = [foreign]
    index["annotations"] = {"a": "b"}
    path.write_text(json.dumps(index))
    put_image(store, "x", b"1")
    store.untag("x")
    assert json.loads(path.read_text()) == index


def test_a_damaged_index_is_named_and_left_alone(store: Store) -> None:
    path = Path(store.path, "index.json")
    made = put_image(store, "x", b"1")
    for text in ("", "{", '{"schemaVersion": 2}', "\0" * 100):
        path.write_text(text)
        for act in (store.tags, lambda: store.tag("y", made), store.gc):
            with pytest.raises(SpecError, match=r"index.json"):
                act()
        assert path.read_text() == text
    path.unlink()
    with pytest.raises(FileError, match=r"index.json"):
        store.tags()


def test_collection_keeps_exactly_what_is_reached(store: Store) -> None:
    shared = b"shared"
    kept = put_image(store, "kept", shared, b"kept")
    gone = put_image(store, "gone", shared, b"gone")
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": [kept, blob(b"other platform")]}
    )
    nested = store.put(index.encode(), media_type=mediatypes.INDEX)
    store.tag("nested", nested)
    loose = store.put(b"loose")
    sha512: Descriptor = {"mediaType": "a/b", "digest": "sha512:" + hashlib.sha512(b"abc").hexdigest(), "size": 3}
    store.put(b"abc", sha512)
    config = json.loads(store.read_blob(gone))["config"]["digest"]
    Path(store.path, ".tmp", "left").write_bytes(b"12345")
    Path(store.path, ".knarr-0011").write_bytes(b"12")
    store.untag("gone")
    store.untag("kept")
    result = store.gc()
    assert set(result.digests) == {gone["digest"], config, sha256_of(b"gone"), loose["digest"], sha512["digest"]}
    assert not os.listdir(f"{store.path}/.tmp")
    assert not Path(store.path, ".knarr-0011").exists()
    for layer in (shared, b"kept"):
        assert store.has(sha256_of(layer))
    assert store.has(kept["digest"])
    assert store.gc().digests == ()
    assert store.gc().size == 0


def test_a_layer_with_a_manifests_digest_hides_nothing_from_the_collection(store: Store) -> None:
    """Whoever names another's manifest as a layer must not have its config and layers collected."""
    other = put_image(store, "other", b"theirs")
    config = store.put(b"{}", media_type=mediatypes.CONFIG)
    layer = {**other, "mediaType": mediatypes.LAYER}
    for name in ("before", "zafter"):
        document = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": config, "layers": [layer]}
        document["annotations"] = {"name": name}
        store.tag(name, store.put(json.dumps(document).encode(), media_type=mediatypes.MANIFEST))
        store.tag("other", other)  # last, then first in the order of the walk
        assert store.gc().digests == ()
        store.tag(name, store.resolve(name))
        assert store.gc().digests == ()
    assert store.has(sha256_of(b"theirs"))


def test_a_manifest_as_a_layer_keeps_what_it_needs(store: Store) -> None:
    inner = put_image(store, "inner", b"inside")
    config = store.put(b"{}", media_type="application/vnd.oci.empty.v1+json")
    document = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": config, "layers": [inner]}
    store.tag("outer", store.put(json.dumps(document).encode(), media_type=mediatypes.MANIFEST))
    store.untag("inner")
    assert store.gc().digests == ()
    assert store.has(sha256_of(b"inside"))


def test_collection_keeps_what_it_is_told_to(store: Store) -> None:
    running = put_image(store, "x", b"layer")
    store.untag("x")
    loose = store.put(b"loose")
    keep = frozenset({running["digest"], loose["digest"], "sha256:" + "0" * 64})
    assert store.gc(keep).digests == ()
    assert len(store.gc().digests) == 4


def test_collection_removes_nothing_when_a_manifest_cannot_be_believed(store: Store) -> None:
    made = put_image(store, "x", b"layer")
    loose = store.put(b"loose")
    path = store.blob_path(made["digest"])
    os.chmod(path, 0o644)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-1] + b" ")
    with pytest.raises(DigestMismatch):
        store.gc()
    assert store.has(loose["digest"])
    assert store.has(sha256_of(b"layer"))


def test_collection_waits_for_writers_and_says_who(store: Store) -> None:
    with store.lock(shared=True), pytest.raises(InUse, match=rf"\.lock is in use by process {os.getpid()}$"):
        store.gc(timeout=0.1)
    with store.lock(shared=True), store.lock(shared=True):
        pass
    loose = store.put(b"loose")
    started = threading.Event()

    def hold() -> None:
        with store.lock(shared=True):
            started.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    started.wait()
    began = time.monotonic()
    assert store.gc().digests == (loose["digest"],)
    assert time.monotonic() - began > 0.15
    thread.join()


def test_of_many_writers_one_reads_the_source(store: Store) -> None:
    data = os.urandom(4 << 20)
    want = blob(data)
    opened: list[int] = []
    errors: list[BaseException] = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.02)
            return super().read(size)

    def source() -> io.BytesIO:
        opened.append(1)
        return Slow(data)

    def write() -> None:
        try:
            store.put(source, want)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(opened) == 1
    assert store.read_blob(want, len(data)) == data
    assert not os.listdir(f"{store.path}/.tmp")


def test_after_a_writer_that_fails_the_next_one_writes(store: Store) -> None:
    data = bytes(3 << 20)
    want = blob(data)
    holding = threading.Event()
    outcome: list[str] = []

    class Fails(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            holding.set()
            time.sleep(0.2)
            raise ConnectionResetError(size)

    def fail() -> None:
        try:
            store.put(Fails, want)
        except ConnectionResetError:
            outcome.append("failed")

    thread = threading.Thread(target=fail)
    thread.start()
    holding.wait()
    store.put(lambda: io.BytesIO(data), want)
    thread.join()
    assert outcome == ["failed"]
    assert store.has(want["digest"], len(data))
    assert not os.listdir(f"{store.path}/.tmp")


def test_a_writer_that_stands_still_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.2)
    want = blob(b"abc")
    path = f"{store.path}/.tmp/sha256-{want['digest'][7:]}"
    waits: list[int] = []
    with Path(path).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InUse, match=f"unfinished blob .* is in use by process {os.getpid()}"):
            store.put(b"abc", want, moved=waits.append)
    assert waits
    assert set(waits) == {0}
    store.put(b"abc", want)
    assert not os.path.exists(path)


def test_many_processes_tag_at_once(store: Store) -> None:
    made = put_image(store, "", b"layer")
    code = (
        "import sys, json\nfrom knarr.content.store import Store\n"
        "store = Store(sys.argv[1]); made = json.loads(sys.argv[2])\n"
        "for number in range(15): store.tag(f'{sys.argv[3]}:{number}', made)\n"
        "for number in range(5): store.untag(f'{sys.argv[3]}:{number}')\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, store.path, json.dumps(made), f"n{number}"])
        for number in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert set(store.tags()) == {f"n{writer}:{number}" for writer in range(4) for number in range(5, 15)}


KILLED = """
import os, sys, threading, io
from knarr.content.store import Store
from knarr.content.digest import sha256_of
store = Store.open(sys.argv[1])
with store.lock(shared=True):
    for round in range(1000):
        data = os.urandom(1 << 19)
        made = store.put(io.BytesIO(data), {"mediaType": "a/b", "digest": sha256_of(data), "size": len(data)})
        store.tag(f"n:{round % 5}", made)
        print(round, flush=True)
"""


def check_layout(path: str) -> None:
    """Assert that the directory is a valid layout in which every blob is what its name says."""
    root = Path(path)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    for file in (root / "blobs" / "sha256").iterdir():
        assert sha256_of(file.read_bytes()) == f"sha256:{file.name}"
    assert check(Store(path)) == []


def test_check_names_every_damage(store: Store) -> None:
    one, two = put_image(store, "one", b"first"), put_image(store, "two", b"second", b"third")
    other = blob(b"not pulled", mediatypes.MANIFEST)
    entries = [two, {**other, "platform": {"os": "linux", "architecture": "arm64"}}]
    index = json.dumps({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": entries}).encode()
    store.tag("many", store.put(index, media_type=mediatypes.INDEX))
    store.put(b"loose")
    assert check(store) == []

    def change(digest: str, data: bytes | None) -> str:
        path = Path(store.blob_path(digest))
        path.chmod(0o644)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return str(path)

    flipped = change(sha256_of(b"first"), b"firsT")
    shorter = change(sha256_of(b"second"), b"secon")
    change(sha256_of(b"third"), None)
    manifest = change(one["digest"], store.read_blob(one) + b" ")
    loose = change(sha256_of(b"loose"), b"LOOSE")
    said = check(store)
    for part in (flipped, shorter, sha256_of(b"third"), manifest, loose):
        assert any(part in line for line in said), (part, said)
    assert len(said) == len(set(said))
    assert not any(other["digest"] in line for line in said)


def test_data_is_on_disk_before_its_name_and_its_name_before_the_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/security.md I9, as far as a test without a power cut can see it: the order of fsync and rename."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        steps.append("fsync " + os.readlink(f"/proc/self/fd/{fd}").removeprefix(store.path))
        fsync(fd)

    def spy_rename(source: str, target: str, **options: Any) -> None:
        steps.append(f"rename {source.removeprefix(store.path)} {target.removeprefix(store.path)}")
        rename(source, target, **options)

    for module in (os, posix):
        monkeypatch.setattr(module, "fsync", spy_fsync)
        monkeypatch.setattr(module, "rename", spy_rename)
    made = store.put(io.BytesIO(b"abc"), blob(b"abc"))
    store.tag("x", made)
    encoded = made["digest"][7:]
    part, final = f"/.tmp/sha256-{encoded}", f"/blobs/sha256/{encoded}"
    assert steps[:2] == [f"fsync {part}", f"rename {part} {final}"]
    assert {"fsync /blobs", "fsync /blobs/sha256"} <= set(steps[2:4])
    written = steps[4].removeprefix("fsync ")
    assert written.startswith("/.knarr-")
    assert steps[5:] == [f"rename {written} /index.json", "fsync "]


def many(count: int) -> list[tuple[Any, bytes]]:
    return [(blob(data), data) for data in (f"document {number}".encode() for number in range(count))]


def test_many_small_blobs_are_on_disk_together_before_any_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], int]] = []

    def watched(path: str) -> None:
        seen.append((os.listdir(f"{path}/blobs/sha256"), len(os.listdir(f"{path}/.tmp"))))
        sync_file_system(path)

    monkeypatch.setattr(store_module, "sync_file_system", watched)
    blobs = many(30)
    store.put_all(blobs[:20] + blobs[:3])
    assert seen == [([], 20)]
    store.put_all(blobs)  # ten are new
    assert [(len(names), count) for names, count in seen[1:]] == [(20, 10)]
    assert [store.read_blob(descriptor) for descriptor, _ in blobs] == [data for _, data in blobs]
    assert {stat.S_IMODE(os.stat(store.blob_path(each["digest"])).st_mode) for each, _ in blobs} == {0o444}
    assert os.listdir(f"{store.path}/.tmp") == []
    assert check(store) == []
    # Few are not worth it: syncfs waits for everybody's files.
    few = [(blob(data), data) for data in (b"one", b"two")]
    store.put_all(few)
    assert len(seen) == 2
    assert all(store.has(each["digest"]) for each, _ in few)


def test_when_many_cannot_be_synced_none_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> None:
        raise FileError("sync", path, errno.EIO)

    monkeypatch.setattr(store_module, "sync_file_system", fails)
    with pytest.raises(FileError, match="cannot sync"):
        store.put_all(many(20))
    assert list(store.blobs()) == []
    assert os.listdir(f"{store.path}/.tmp") == []


def test_one_wrong_among_many_is_refused_before_anything_is_written(store: Store) -> None:
    blobs = many(20)
    blobs[11] = blobs[11][0], b"document XX"
    with pytest.raises(DigestMismatch):
        store.put_all(blobs)
    assert list(store.blobs()) == []


def test_killed_writers_leave_a_valid_store(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    store = Store.open(path)
    for number in range(25):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        time.sleep(random.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        check_layout(path)
        if number % 5 == 4:
            store.gc(timeout=1)
            assert os.listdir(f"{path}/.tmp") == []
            assert sorted(digest for digest, _ in store.blobs()) == sorted({e["digest"] for e in store.entries()})


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in its own mount namespace, where it may mount what it likes."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script, *arguments]
    if os.geteuid() == 0:
        command.remove("--map-root-user")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command[: -len(arguments) - 1], "pass"], check=False).returncode
    ):
        pytest.skip("no mount namespace can be made here")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


DISK = """
import io, os, subprocess, sys
from knarr.base.errors import KnarrError
from knarr.content.digest import sha256_of
from knarr.content.store import Store
where, kind = sys.argv[1:]
mount = lambda *words: subprocess.run(["mount", *words], check=True)
mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", where)
store = Store.open(where + "/store")
small = store.put(b"small")
store.tag("small", small)
loose = store.put(b"loose")
before = sorted(os.listdir(where + "/store/.tmp")), sorted(store.blobs())
data = os.urandom(4 << 20)
want = {"mediaType": "a/b", "digest": sha256_of(data), "size": len(data)}
def attempt(*arguments):
    try:
        store.put(*arguments)
    except KnarrError as error:
        print(type(error).__name__, error)
    else:
        print("stored")
if kind == "full":
    attempt(io.BytesIO(data), want)            # known not to fit
    attempt(io.BytesIO(data))                  # found out while writing
    with open(where + "/filler", "wb", 0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    try:
        store.tag("y", small)                  # not even index.json fits
    except KnarrError as error:
        print(type(error).__name__, error)
    print(list(store.tags()), store.gc().digests == (loose["digest"],))
    os.unlink(where + "/filler")
    store.put(b"loose")
elif kind == "read-only":
    mount("-o", "remount,bind,ro", where)
    attempt(b"other")
    attempt(io.BytesIO(b"other"))
    attempt(b"small")                          # is there already
    name, digest = "small", small["digest"]
    for act in (lambda: store.tag("x", small), lambda: store.untag(name), store.gc, lambda: store.delete(digest)):
        try:
            act()
        except KnarrError as error:
            print(type(error).__name__, error)
    with store.lock(shared=True):
        print(store.read_blob(store.resolve("small")))
elif kind == "never-written":
    os.unlink(where + "/store/.index.lock")
    mount("-o", "remount,bind,ro", where)
    with store.lock(shared=True):
        print(store.read_blob(store.resolve("small")))
    try:
        store.tag("x", small)
    except KnarrError as error:
        print(type(error).__name__, error)
assert (sorted(os.listdir(where + "/store/.tmp")), sorted(store.blobs())) == before
"""


@pytest.mark.parametrize("kind", ["full", "read-only", "never-written"])
def test_full_and_read_only_disks(tmp_path: Path, kind: str) -> None:
    done = in_namespace(DISK, str(tmp_path), kind)
    assert not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    if kind == "full":
        assert len(lines) == 4
        for line in lines[:3]:
            assert line.startswith("FileError cannot write ")
            assert "no space left on device" in line
        assert "it needs 4194304 bytes" in lines[0]
        assert "nothing was kept" in lines[1]
        assert "index.json" in lines[2]
        assert lines[3] == "['small'] True"  # the old record stands, and collecting needs no room
    elif kind == "read-only":
        assert len(lines) == 8
        assert [line.split()[0] for line in lines[:7]] == ["FileError"] * 2 + ["stored"] + ["FileError"] * 4
        assert all("read-only file system" in line for line in lines if line.startswith("FileError"))
        assert lines[7] == "b'small'"
    else:
        assert lines[0] == "b'small'"
        assert "read-only file system" in lines[1]


def test_a_user_without_rights(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    store = Store.open(str(tmp_path / "store"))
    os.chmod(f"{store.path}/.tmp", 0o500)
    try:
        with pytest.raises(FileError, match="permission denied"):
            store.put(b"x")
    finally:
        os.chmod(f"{store.path}/.tmp", 0o700)


def test_lists_and_texts_for_people() -> None:
    assert some([], "none") == "none"
    assert some(["a", "b"], "") == "a, b"
    assert some([str(n) for n in range(13)], "").endswith("9 and 3 more")
    assert printable("a\x1b[31m\n") == r"a\x1b[31m\n"
    assert len(printable("x" * 1000)) == 200


def test_other_tools_read_it(store: Store, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"world"))
    name = "docker.io/library/busybox:latest"
    made = put_image(store, name, buffer.getvalue())
    found: dict[str, Any] = {}
    if shutil.which("umoci"):
        listed = subprocess.run(["umoci", "ls", "--layout", store.path], capture_output=True, text=True, check=True)
        assert listed.stdout.split() == [name]
        target = str(tmp_path / "unpacked")
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        subprocess.run(["umoci", "unpack", *rootless, "--image", f"{store.path}:{name}", target], check=True)
        assert Path(target, "rootfs", "hello").read_bytes() == b"world"
        found["umoci"] = True
    if shutil.which("skopeo"):
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{store.path}:{name}"], capture_output=True, check=True
        )
        assert sha256_of(raw.stdout) == made["digest"]
        target = f"dir:{tmp_path / 'copied'}"
        subprocess.run(["skopeo", "copy", "-q", f"oci:{store.path}:{name}", target], check=True)
        found["skopeo"] = True
    if not found:
        pytest.skip("neither umoci nor skopeo is installed")
    check_layout(store.path)

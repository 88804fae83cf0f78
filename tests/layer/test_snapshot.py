"""Snapshots: shared layers, verified before they are seen, nothing left of a failure, short names, removal."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import zstandard
from tarbuilder import END, d, f, h, s, tar
from trees import ROOT, differences, needs_root, overlay, scratch, tree

from knarr.base.errors import (
    DigestMismatch,
    FileError,
    FormatError,
    InUse,
    NotFound,
    SizeMismatch,
    SpecError,
    Unsupported,
)
from knarr.content.store import Store
from knarr.content.verify import FileStream, VerifiedReader
from knarr.kernel import disk
from knarr.kernel.mount import MNT_DETACH, mount, umount2
from knarr.kernel.userns import IdMap
from knarr.layer import snapshot as snapshot_module
from knarr.layer.chain import chain_ids
from knarr.layer.snapshot import NO_LAYERS, Snapshots
from knarr.layer.source import Layer, layers_of
from knarr.layer.unpack import materialise
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from knarr.content.verify import Readable

TYPES = {"": mediatypes.LAYER, "gzip": mediatypes.LAYER_GZIP, "zstd": mediatypes.LAYER_ZSTD}
BASE = tar(d("./"), d("etc"), f("etc/passwd", b"root"), f("gone"), d("dir"), f("dir/a"))
NEXT = tar(f(".wh.gone"), f("etc/new", b"1"), h("etc/pw", "etc/passwd"))
PLAIN = tar(d("./"), f("one", b"1"), d("two"), f("two/three"))
LAST = tar(f("dir/.wh..wh..opq"), f("dir/b"), s("link", "etc"))


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def packed(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.ZstdCompressor(level=1).compress(data) if kind == "zstd" else data


def layer(
    data: bytes, kind: str = "", *, diff: str | None = None, sent: bytes | None = None, blob: str | None = None
) -> Layer:
    """A layer of an image; ``sent``: other bytes than promised come."""
    promised = packed(data, kind)
    actual = promised if sent is None else sent
    want = blob or digest(promised)

    def opened() -> Readable:
        return VerifiedReader(io.BytesIO(actual), want, len(promised), f"blob {want}")

    return Layer(diff or digest(data), TYPES[kind], len(promised), opened, f"layer {want[:19]}")


@pytest.fixture
def place() -> Iterator[str]:
    with scratch() as top:
        yield top


@pytest.fixture
def snapshots(place: str) -> Snapshots:
    return Snapshots(f"{place}/store/snapshots")


def everything(snapshots: Snapshots) -> set[str]:
    """All names of the directory but the standing ones."""
    found = set()
    for name in ("", "/l", "/tmp", "/locks"):
        found |= {f"{name}/{entry}" for entry in os.listdir(snapshots.path + name)}
    return found - {"/l", "/tmp", "/locks", "/lock", "/map.json", "/locks/map", "/locks/names"}


def test_ensure_shares_layers(snapshots: Snapshots) -> None:
    one = snapshots.ensure([layer(BASE, "gzip"), layer(NEXT, "zstd")])
    assert one == chain_ids([digest(BASE), digest(NEXT)])[-1]
    first = snapshots.lowers(one)
    before = os.stat(first[-1]).st_ino
    two = snapshots.ensure([layer(BASE, "zstd"), layer(LAST)])  # another compression of the same layer
    assert snapshots.lowers(two)[-1] == first[-1]
    assert os.stat(first[-1]).st_ino == before
    assert len(snapshots.list()) == 3
    assert snapshots.ensure([layer(BASE, "gzip", sent=b"never read")]) == digest(BASE)
    with snapshots.view(two) as view:
        assert view.read_file("/link/passwd", 10) == b"root"
        assert view.lookup(b"dir/a") is None
    with snapshots.view(one) as view:
        assert view.read_file("etc/pw", 10) == b"root"
        assert view.lookup(b"gone") is None


def test_chain_ids_follow_the_specification() -> None:
    a, b, c = (digest(text) for text in (b"a", b"b", b"c"))
    ab = digest(f"{a} {b}".encode())
    assert chain_ids([a, b, c]) == [a, ab, digest(f"{ab} {c}".encode())]
    assert chain_ids([]) == []


def test_the_same_layer_twice(snapshots: Snapshots) -> None:
    chain = snapshots.ensure([layer(BASE), layer(NEXT), layer(NEXT)])
    assert len(set(snapshots.lowers(chain))) == 3


def test_an_image_without_layers(snapshots: Snapshots) -> None:
    chain = snapshots.ensure([])
    assert chain == NO_LAYERS == digest(b"")
    assert os.listdir(snapshots.lowers(chain)[0]) == []
    assert snapshots.ensure([]) == chain


def test_only_the_owner_can_look_in(snapshots: Snapshots) -> None:
    snapshots.ensure([layer(tar(f("suid", b"x", mode=0o4755)))])
    assert stat.S_IMODE(os.stat(snapshots.path).st_mode) == 0o700
    os.chmod(snapshots.path, 0o755)
    Snapshots(snapshots.path)
    assert stat.S_IMODE(os.stat(snapshots.path).st_mode) == 0o700


@needs_root
def test_an_ordinary_user_cannot_reach_a_setuid_program(snapshots: Snapshots, place: str) -> None:
    chain = snapshots.ensure([layer(tar(d("bin"), f("bin/suid", b"#!/bin/sh\n", mode=0o4755)))])
    os.chmod(place, 0o755)
    os.chmod(f"{place}/store", 0o755)
    (lower,) = snapshots.lowers(chain)
    probe = ["/bin/sh", "-c", f"ls {lower}; stat {os.path.realpath(lower)}/bin/suid; {lower}/bin/suid"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[])
    assert done.stdout == ""
    assert done.stderr.lower().count("permission denied") == 3


def test_127_layers_fit_one_page(snapshots: Snapshots, place: str) -> None:
    stack = [layer(tar(f(f"f{number}", b"%d" % number))) for number in range(127)]
    chain = snapshots.ensure(stack)
    folder, names = snapshots.lower_names(chain)
    assert len(names) == 127
    assert len(":".join(names)) < 500
    assert [os.readlink(f"{folder}/{name}") for name in names] == [
        f"../{one.encoded}/fs" for one in reversed(chain_ids([one.diff_id for one in stack]))
    ]
    if ROOT:
        here = os.getcwd()
        os.mkdir(f"{place}/mnt")
        os.chdir(folder)
        try:
            mount("overlay", f"{place}/mnt", "overlay", 1, "lowerdir=" + ":".join(names))
        finally:
            os.chdir(here)
        assert len(os.listdir(f"{place}/mnt")) == 127
        umount2(f"{place}/mnt", MNT_DETACH)
    with pytest.raises(Unsupported, match="128 layers"):
        snapshots.ensure([*stack, layer(BASE)])


WRONG: dict[str, tuple[Callable[[], Layer], type[Exception], str]] = {
    "digest": (lambda: layer(PLAIN, blob=digest(b"other")), DigestMismatch, "has digest"),
    "diff id": (lambda: layer(PLAIN, "gzip", diff=digest(b"other")), DigestMismatch, "once decompressed has digest"),
    "truncated": (lambda: layer(PLAIN, "gzip", sent=packed(PLAIN, "gzip")[:-9]), SizeMismatch, "bytes, expected"),
    "too long": (lambda: layer(PLAIN, sent=PLAIN + bytes(512)), SizeMismatch, "more than"),
    "bad gzip": (lambda: damaged("gzip"), FormatError, "gzip"),
    "bad zstd": (lambda: damaged("zstd"), FormatError, "zstd"),
    "trailing": (lambda: after(b"junk"), FormatError, "follows"),
    "not a tar": (lambda: layer(b"\x7fELF" + bytes(3000)), FormatError, "checksum"),
    "refused": (lambda: layer(tar(f("ok"), f("../x"))), FormatError, "'..'"),
    "gzip inside": (lambda: layer(packed(PLAIN, "gzip")), FormatError, "media type"),
    "hard link": (lambda: layer(tar(h("a", "missing"))), FormatError, "does not exist"),
}


def damaged(kind: str) -> Layer:
    """Compressed bytes with a flaw, under their right digest."""
    data = bytearray(packed(PLAIN, kind))
    if kind == "gzip":
        data[len(data) // 2] ^= 0xFF
        return of_bytes(bytes(data), kind)
    return of_bytes(bytes(data[:-3]), kind)


def after(extra: bytes) -> Layer:
    return of_bytes(packed(PLAIN, "gzip") + extra, "gzip")


def of_bytes(blob: bytes, kind: str) -> Layer:
    return Layer(digest(PLAIN), TYPES[kind], len(blob), lambda: io.BytesIO(blob), "layer")


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("where", ["first", "middle", "parallel"])
def test_nothing_is_left_of_a_bad_layer(snapshots: Snapshots, place: str, name: str, where: str) -> None:
    make, kind, why = WRONG[name]
    stack = {
        "first": [make()],
        "middle": [layer(BASE), make()],
        "parallel": [layer(BASE, "gzip"), make(), layer(LAST), layer(tar(f("big", bytes(3 << 20))), "gzip")],
    }[where]
    if where == "middle":
        snapshots.ensure(stack[:1])
    before, files = everything(snapshots), len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with pytest.raises(kind) as caught:
        snapshots.ensure(stack)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(snapshots) == before
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() <= threads
    with pytest.raises(kind):
        materialise(stack, f"{place}/target")
    assert sorted(os.listdir(place)) == ["store"]
    # And what is right works afterwards.
    chain = snapshots.ensure([layer(BASE), layer(NEXT)])
    assert len(snapshots.lowers(chain)) == 2


@needs_root
def test_a_full_disk(place: str) -> None:
    os.mkdir(f"{place}/small")
    mount("tmpfs", f"{place}/small", "tmpfs", 0, "size=2m,mode=0700")
    try:
        snapshots = Snapshots(f"{place}/small/s")
        snapshots.ensure([layer(BASE)])
        before = everything(snapshots)
        free = os.statvfs(f"{place}/small").f_bavail
        with pytest.raises(FileError, match="no space left on device"):
            snapshots.ensure([layer(BASE), layer(tar(f("big", random.randbytes(4 << 20))))])
        assert everything(snapshots) == before
        assert os.statvfs(f"{place}/small").f_bavail == free
        with pytest.raises(FileError, match="no space left on device"):
            materialise([layer(tar(f("big", random.randbytes(4 << 20))))], f"{place}/small/t")
        assert os.listdir(f"{place}/small") == ["s"]
    finally:
        umount2(f"{place}/small", MNT_DETACH)


def test_a_layer_is_seen_only_when_it_is_whole(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the sync nothing is visible; should the sync fail nothing becomes so."""
    seen: list[set[str]] = []

    def watched(path: str) -> None:
        seen.append({name for name in os.listdir(path) if len(name) == 64})
        raise FileError("sync", path, errno.EIO)

    monkeypatch.setattr(disk, "sync_file_system", watched)
    with pytest.raises(FileError, match="cannot sync"):
        snapshots.ensure([layer(BASE), layer(NEXT)])
    assert seen == [set()]
    assert everything(snapshots) == set()


def test_two_at_once_make_one(snapshots: Snapshots) -> None:
    opened = []

    def counted(data: bytes) -> Layer:
        made = layer(data, "gzip")

        def opener() -> Readable:
            opened.append(made.diff_id)
            time.sleep(0.05)
            return made.open()

        counting: Layer = made.replace(open=opener)
        return counting

    results: list[str] = []
    stack = [counted(BASE), counted(NEXT), counted(LAST)]
    threads = [
        threading.Thread(target=lambda: results.append(Snapshots(snapshots.path).ensure(stack))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 4
    assert sorted(opened) == sorted(one.diff_id for one in stack)
    assert len({link for one in snapshots.list() for link in one.links}) == 3


def test_removing(snapshots: Snapshots) -> None:
    base = snapshots.ensure([layer(BASE)])
    top = snapshots.ensure([layer(BASE), layer(NEXT)])
    other = snapshots.ensure([layer(LAST)])
    with pytest.raises(InUse, match="in use by layer sha256:"):
        snapshots.remove(base)
    snapshots.remove(top)
    with pytest.raises(NotFound):
        snapshots.remove(top)
    with pytest.raises(NotFound):
        snapshots.lowers(top)
    top = snapshots.ensure([layer(BASE), layer(NEXT)])
    assert snapshots.gc(keep=[top]) == [other]
    assert {one.chain_id for one in snapshots.list()} == {base, top}
    assert snapshots.gc() == []
    assert snapshots.gc(keep=[]) == [top, base]
    assert everything(snapshots) == set()


def test_removal_waits_for_who_holds(snapshots: Snapshots) -> None:
    chain = snapshots.ensure([layer(BASE)])
    done: list[list[str]] = []
    with snapshots.hold():
        thread = threading.Thread(target=lambda: done.append(Snapshots(snapshots.path).gc(keep=[])))
        thread.start()
        time.sleep(0.2)
        assert not done
        assert snapshots.has(chain)
    thread.join()
    assert done == [[chain]]


CRASH = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from test_snapshot import *
snapshots = Snapshots(sys.argv[3])
data = tar(*(f(f"d{i % 50}/f{i}", bytes(2000)) for i in range(3000)))
print("go", flush=True)
snapshots.ensure([layer(BASE), layer(data, "gzip"), layer(NEXT)])
"""


@pytest.mark.parametrize("part", range(6))
def test_killed_anywhere_the_next_run_heals(snapshots: Snapshots, part: int) -> None:
    sources = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(snapshot_module.__file__)))]
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, *sources, snapshots.path], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(part * 0.06)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    chain = snapshots.ensure([layer(BASE), layer(NEXT)])
    assert os.listdir(f"{snapshots.path}/tmp") == []
    assert all(os.path.isdir(path) for path in snapshots.lowers(chain))
    snapshots.gc(keep=[])
    assert everything(snapshots) == set()


def test_a_directory_serves_one_id_map(snapshots: Snapshots) -> None:
    with pytest.raises(Unsupported, match="another id map"):
        Snapshots(snapshots.path, ids=IdMap(((0, 5, 1),), ((0, 5, 1),), squash=True))
    Snapshots(snapshots.path)


def test_progress_counts_compressed_bytes(snapshots: Snapshots) -> None:
    told: dict[str, int] = {}

    def progress(one: Layer, done: int) -> None:
        told[one.diff_id] = done

    stack = [layer(BASE, "gzip"), layer(tar(f("big", random.randbytes(1 << 20))), "gzip")]
    snapshots.ensure(stack, progress)
    assert told == {one.diff_id: one.size for one in stack}


def test_layers_of_an_image(place: str) -> None:
    store = Store.open(f"{place}/store")
    blob = packed(BASE, "gzip")
    descriptor = store.put(blob)
    descriptor = {**descriptor, "mediaType": mediatypes.LAYER_GZIP}
    manifest = {"layers": [descriptor]}
    config = {"rootfs": {"type": "layers", "diff_ids": [digest(BASE)]}}
    (one,) = layers_of(store, manifest, config)
    materialise([one], f"{place}/out")
    assert sorted(os.listdir(f"{place}/out")) == ["dir", "etc", "gone"]
    with pytest.raises(SpecError, match=r"/rootfs/diff_ids: has 1 entries for 2 layers"):
        layers_of(store, {"layers": [descriptor, descriptor]}, config)
    with pytest.raises(Unsupported, match="xz"):
        layers_of(store, {"layers": [{**descriptor, "mediaType": "application/x.tar+xz"}]}, config)


def test_materialise_wants_an_empty_place(place: str) -> None:
    os.mkdir(f"{place}/full")
    os.mkdir(f"{place}/full/x")
    with pytest.raises(FileError, match="directory not empty"):
        materialise([layer(BASE)], f"{place}/full")
    with pytest.raises(NotFound):
        materialise([layer(BASE)], f"{place}/none/there")
    os.mkdir(f"{place}/empty")
    materialise([layer(BASE), layer(NEXT)], f"{place}/empty")
    materialise([layer(BASE), layer(NEXT)], f"{place}/fresh")
    assert differences(tree(f"{place}/empty"), tree(f"{place}/fresh")) == []
    assert sorted(os.listdir(place)) == ["empty", "fresh", "full"]


@needs_root
def test_materialise_onto_a_mount_point(place: str) -> None:
    os.mkdir(f"{place}/mnt")
    mount("tmpfs", f"{place}/mnt", "tmpfs", 0, "mode=0755")
    try:
        with pytest.raises(FormatError):
            materialise([layer(BASE), layer(tar(f("../x")))], f"{place}/mnt")
        assert os.listdir(f"{place}/mnt") == []
        materialise([layer(BASE)], f"{place}/mnt")
        assert sorted(os.listdir(f"{place}/mnt")) == ["dir", "etc", "gone"]
    finally:
        umount2(f"{place}/mnt", MNT_DETACH)


@needs_root
def test_a_layer_that_hides_everything(snapshots: Snapshots, place: str) -> None:
    """Overlayfs does not look for an opaque mark at a layer's root: the layers below are not given to it."""
    stack: Sequence[Layer] = [layer(BASE), layer(tar(f(".wh..wh..opq"), f("only"))), layer(tar(f("more")))]
    chain = snapshots.ensure(stack)
    assert len(snapshots.lowers(chain)) == 2
    materialise(stack, f"{place}/merged")
    with overlay(snapshots.lowers(chain), place) as mounted:
        assert differences(tree(mounted), tree(f"{place}/merged")) == []
    assert snapshots.gc(keep=[chain]) == []
    assert len(snapshots.list()) == 3


def test_plain_bytes_after_the_end_count(snapshots: Snapshots) -> None:
    """What follows the end of the archive is no entry, but part of the diffID."""
    data = BASE + b"trailing" * 5000
    assert snapshots.ensure([layer(data, "gzip")]) == digest(data)
    with pytest.raises(DigestMismatch):
        snapshots.ensure([layer(data + b"!", diff=digest(data + b"?"))])


def test_from_a_file(place: str, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(BASE + END)
    data = path.read_bytes()

    def opened() -> Readable:
        return FileStream(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))

    materialise([Layer(digest(data), TYPES[""], len(data), opened)], f"{place}/t")
    assert os.path.exists(f"{place}/t/etc/passwd")

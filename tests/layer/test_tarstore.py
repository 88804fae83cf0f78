"""TarStore: tars shared by digest, verified before they are seen, nothing left of a failure, no circles of waiting."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tarbuilder import d, f, s, tar
from test_snapshot import BASE, LAST, NEXT, digest, layer, packed
from trees import needs_root

from knarr.base.errors import DigestMismatch, FileError, FormatError, NotFound, SizeMismatch, Unsupported
from knarr.kernel.mount import MNT_DETACH, mount, umount2
from knarr.layer import erofs, tarstore
from knarr.layer.chain import chain_ids
from knarr.layer.snapshot import NO_LAYERS
from knarr.layer.tarstore import TarStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[TarStore]:
    with tempfile.TemporaryDirectory(prefix="knarr-test-", dir="/var/tmp") as top:
        yield TarStore(f"{top}/store/tars")


def everything(store: TarStore) -> set[str]:
    """All files of the store but the one lock that stays."""
    found = {str(path.relative_to(store.path)) for path in Path(store.path).rglob("*") if not path.is_dir()}
    return found - {"lock"}


def test_tars_are_shared(store: TarStore) -> None:
    one = store.ensure([layer(BASE, "gzip"), layer(NEXT, "zstd")])
    assert one == chain_ids([digest(BASE), digest(NEXT)])[-1]
    inode = os.stat(store.get(one).tars[0]).st_ino
    two = store.ensure([layer(BASE, "zstd", sent=b"never read"), layer(LAST)])
    image = store.get(two)
    assert os.stat(image.tars[0]).st_ino == inode
    assert image.diff_ids == (digest(BASE), digest(LAST))
    assert [Path(tar).read_bytes() for tar in image.tars] == [BASE, LAST]
    assert {chain.chain_id for chain in store.list()} == {one, two}
    assert len(everything(store)) == 3 + 2 * 2
    with store.view(two) as view:
        assert view.read_file("/link/passwd", 10) == b"root"
        with pytest.raises(NotFound):
            view.read_file("dir/a", 10)
        with pytest.raises(FileError, match="not a regular file"):
            view.read_file("/etc", 10)
        with pytest.raises(FileError, match="at most 3 are read"):
            view.read_file("etc/passwd", 3)
    with store.view(one) as view:
        assert view.read_file("etc/pw", 10) == b"root"


def test_only_the_owner_can_look_in(store: TarStore) -> None:
    store.ensure([layer(tar(f("suid", b"x", mode=0o4755)))])
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    for path in Path(store.path).rglob("*"):
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


def test_odd_images(store: TarStore) -> None:
    assert store.ensure([]) == NO_LAYERS
    twice = store.ensure([layer(BASE), layer(NEXT), layer(NEXT)])
    assert store.get(twice).tars[1] == store.get(twice).tars[2]
    with pytest.raises(Unsupported, match="128 layers"):
        store.ensure([layer(BASE)] * 128)
    with pytest.raises(NotFound):
        store.get(digest(b"nothing"))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (layer(NEXT, diff=digest(b"other")), DigestMismatch),
        (layer(NEXT, blob=digest(b"other")), DigestMismatch),
        (layer(NEXT, "gzip", sent=packed(NEXT, "gzip")[:-9]), (FormatError, SizeMismatch)),
        (layer(tar(f("../up"))), FormatError),
        (layer(b"no tar at all" * 100), FormatError),
    ],
    ids=["diffID", "digest", "cut", "up", "garbage"],
)
def test_nothing_is_left_of_a_bad_layer(store: TarStore, bad: object, error: type[Exception]) -> None:
    before = everything(store)
    with pytest.raises(error):
        store.ensure([layer(BASE), bad])  # type: ignore[list-item]
    assert everything(store) == before
    store.ensure([layer(BASE)])
    with pytest.raises(error):
        store.ensure([layer(BASE), layer(LAST), bad])  # type: ignore[list-item]
    assert len(everything(store)) == 3


def test_what_is_made_beside_a_bad_layer_stops(store: TarStore) -> None:
    begun, read = threading.Event(), []
    long = layer(tar(*(f(str(number), os.urandom(1 << 20)) for number in range(30))))

    def progress(one: object, done: int) -> None:
        if one is long:
            read.append(done)
            begun.set()
            time.sleep(0.02)
        else:
            begun.wait(20)

    with pytest.raises(DigestMismatch):
        store.ensure([long, layer(NEXT, diff=digest(b"other"))], progress)
    assert everything(store) == set()
    assert read[-1] < long.size
    assert not [one for one in threading.enumerate() if one.name.startswith("knarr-")]


def test_an_image_that_no_index_can_hold(store: TarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Unsupported("an index", "for the test")

    monkeypatch.setattr(erofs, "write", refuse)
    with pytest.raises(Unsupported):
        store.ensure([layer(BASE)])
    assert everything(store) == set()


@needs_root
def test_all_is_sealed_before_it_is_seen(store: TarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def seal(path: str) -> bool:
        assert os.path.dirname(path).startswith(f"{store.path}/tmp")
        asked.append(os.path.basename(path))
        return True

    monkeypatch.setattr(tarstore, "seal_file", seal)
    store.ensure([layer(BASE), layer(NEXT), layer(BASE)])
    assert sorted(asked) == sorted([f"{digest(BASE)[7:]}.tar", f"{digest(NEXT)[7:]}.tar", "index"])
    asked.clear()
    store.ensure([layer(BASE), layer(LAST)])
    assert sorted(asked) == sorted([f"{digest(LAST)[7:]}.tar", "index"])


def test_no_room_for_the_tree(store: TarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(path: str) -> bool:
        raise OSError(errno.ENOSPC, path)

    monkeypatch.setattr(tarstore, "seal_file", seal)
    with pytest.raises(FileError, match="no space left on device"):
        store.ensure([layer(BASE)])
    assert everything(store) == set()


def test_an_index_that_changed_is_found(store: TarStore) -> None:
    image = store.get(store.ensure([layer(BASE)]))
    assert store.check() == []
    data = bytearray(Path(image.index).read_bytes())
    data[-1] ^= 1
    os.chmod(image.index, 0o600)
    Path(image.index).write_bytes(data)
    ((what, why),) = store.check(repair=True)
    assert what == f"index {image.index}"
    assert "it has the digest" in why
    assert store.list() == []
    assert store.check() == []


def test_a_record_that_has_no_digest(store: TarStore) -> None:
    """As it was written before there was one."""
    image = store.get(store.ensure([layer(BASE)]))
    record = Path(image.index).with_name("image.json")
    known = json.loads(record.read_bytes())
    del known["digest"]
    record.write_text(json.dumps(known))
    assert store.check() == []
    Path(image.index).unlink()
    ((_, why),) = store.check()
    assert why == "it cannot be read: no such file or directory"


def test_a_tar_that_cannot_be_read(store: TarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    image = store.get(store.ensure([layer(BASE)]))

    def broken(path: str, algorithm: str = "sha256") -> str:
        if path == image.tars[0]:
            raise OSError(errno.EIO, path)
        return found(path, algorithm)

    found = tarstore._digest_of
    monkeypatch.setattr(tarstore, "_digest_of", broken)
    assert [why for _, why in store.check(repair=True)] == [
        "it cannot be read: input/output error",
        f"{image.tars[0]} is missing or damaged",
    ]
    assert not os.path.lexists(image.tars[0])


def test_a_full_disk(store: TarStore) -> None:
    if os.geteuid():
        pytest.skip("a small file system is mounted by root only")
    place = f"{store.path}/small"
    os.mkdir(place)
    mount("tmpfs", place, "tmpfs", 0, "size=256k")
    try:
        small = TarStore(f"{place}/tars")
        with pytest.raises(FileError) as caught:
            small.ensure([layer(tar(f("large", os.urandom(400_000))))])
        assert caught.value.number == errno.ENOSPC
        assert everything(small) == set()
    finally:
        umount2(place, MNT_DETACH)


RUN = """
import sys
sys.path[:0] = sys.argv[3].split(":")
from test_snapshot import layer
from test_tarstore import many
from knarr.layer.tarstore import TarStore
order = [int(number) for number in sys.argv[2].split(",")]
print(TarStore(sys.argv[1]).ensure([layer(many(number)) for number in order]))
"""


def many(number: int) -> bytes:
    """A layer that takes a moment."""
    return tar(d(f"d{number}"), *(f(f"d{number}/{name}", b"x" * 700) for name in range(300)), s("last", str(number)))


def test_many_processes_in_any_order(store: TarStore) -> None:
    """Images that have the same layers the other way round must not wait for each other."""
    orders = ["0,1,2,3", "3,2,1,0", "1,3,0,2", "0,1,2,3", "2,0,3,1", "3,2,1,0"]
    path = ":".join(sys.path)
    running = [
        subprocess.Popen([sys.executable, "-c", RUN, store.path, order, path], stdout=subprocess.PIPE, text=True)
        for order in orders
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * len(orders)
    assert len(set(said)) == 4
    assert {image.chain_id for image in store.list()} == set(said)
    assert len(everything(store)) == 4 + 2 * 4
    for chain, order in zip(said, orders, strict=True):
        with store.view(chain) as view:
            assert view.target(view.inode(dict(view.names(view.resolve("")[1]))[b"last"])) == order[-1].encode()


@pytest.mark.parametrize("after", [0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_killed_anywhere_the_next_run_heals(store: TarStore, after: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, store.path, "0,1,2,3", ":".join(sys.path)], stdout=subprocess.DEVNULL
    )
    try:
        process.wait(after + 0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    chain = store.ensure([layer(many(number)) for number in range(4)])
    assert len(everything(store)) == 4 + 2
    with store.view(chain) as view:
        assert view.read_file("d3/299", 700) == b"x" * 700


def test_removing(store: TarStore) -> None:
    one = store.ensure([layer(BASE), layer(NEXT)])
    two = store.ensure([layer(BASE), layer(LAST)])
    assert store.gc() == []
    assert store.gc([one, two]) == []
    assert store.gc([two]) == [one]
    assert {image.chain_id for image in store.list()} == {two}
    assert {os.path.basename(tar) for tar in store.get(two).tars} == set(os.listdir(f"{store.path}/tar"))
    assert store.gc([]) == [two]
    assert everything(store) == set()

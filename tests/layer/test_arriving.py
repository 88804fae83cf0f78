"""Layers that become tars while they come: taken over whole and right, or not at all; nobody waits in a circle."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tarbuilder import d, f, tar
from test_snapshot import BASE, LAST, NEXT, digest, layer, packed
from test_tarstore import everything

from knarr.base.errors import DigestMismatch, FormatError, InUse, Unsupported
from knarr.base.files import Lock
from knarr.content.verify import Resumable
from knarr.layer import model
from knarr.layer.arriving import Arrivals
from knarr.layer.tarstore import TarStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.content.part import Source
    from knarr.content.verify import Readable
    from knarr.layer.source import Layer


@pytest.fixture
def store() -> Iterator[TarStore]:
    with tempfile.TemporaryDirectory(prefix="knarr-test-", dir="/var/tmp") as top:
        yield TarStore(f"{top}/store/tars")


def never() -> Readable:
    raise AssertionError("the layer is read again")


def unread(one: Layer) -> Layer:
    """The same layer, that must not be opened."""
    return one.replace(open=never)  # type: ignore[no-any-return]


def source_of(data: bytes, *, resumable: bool = True) -> Source:
    """Bytes from a registry, which can begin anywhere, or from a file of an archive."""
    return Resumable(lambda at: io.BytesIO(data[at:])) if resumable else lambda: io.BytesIO(data)


def read(source: Source, step: int = 700) -> None:
    """What a store does with the source of a blob."""
    assert callable(source) or isinstance(source, Resumable)
    stream = source.open_from(0) if isinstance(source, Resumable) else source()
    while stream.read(step):
        pass
    stream.close()


def come(arrivals: Arrivals, name: str, data: bytes, *, whole: bool = True) -> None:
    arrival = arrivals.of(name)
    assert arrival is not None
    read(arrival.follow(lambda: io.BytesIO(data)))
    arrival.end(whole=whole)


@pytest.mark.parametrize("resumable", [False, True])
def test_what_has_come_is_not_read_again(store: TarStore, resumable: bool) -> None:
    big = tar(d("big"), *(f(f"big/{number}", bytes([number]) * 100_000) for number in range(100)))
    parts = {"a": (BASE, "gzip"), "b": (NEXT, "zstd"), "c": (big, ""), "d": (LAST, "gzip")}
    layers = {name: layer(*of) for name, of in parts.items()}
    told: list[tuple[str, int]] = []
    with Arrivals(store) as arrivals:
        arrivals.expect([*((name, unread(one)) for name, one in layers.items()), ("b", unread(layers["b"]))])
        assert arrivals.of("e") is None
        for name in ("d", "c", "a", "b"):  # in any order
            arrival = arrivals.of(name)
            assert arrival is not None
            read(arrival.follow(source_of(packed(*parts[name]), resumable=resumable)))
            assert arrival.noted is None  # not before its blob was verified
            arrival.end(whole=True)
            assert arrival.noted is not None
        assert not list(Path(store.path, "tar").iterdir())
        wanted = [unread(one) for one in layers.values()]
        chain = store.ensure([*wanted, layers["b"]], lambda one, done: told.append((one.diff_id, done)), arrivals)
    assert told == [(one.diff_id, one.size) for one in layers.values()]
    assert not [*Path(store.path, "tmp").iterdir(), *Path(store.path, "locks").iterdir()]
    other = TarStore(f"{store.path}-2")
    assert other.ensure([*layers.values(), layers["b"]]) == chain
    for one in (store, other):
        assert [Path(place).read_bytes() for place in one.get(chain).tars] == [BASE, NEXT, big, LAST, NEXT]
    assert Path(store.get(chain).index).read_bytes() == Path(other.get(chain).index).read_bytes()


def test_what_came_only_in_part_is_read_again(store: TarStore) -> None:
    layers = [layer(BASE, "gzip"), layer(NEXT), layer(LAST)]
    with Arrivals(store) as arrivals:
        arrivals.expect(list(zip("abc", layers, strict=True)))
        come(arrivals, "a", packed(BASE, "gzip"), whole=False)  # its digest was wrong, or Ctrl-C
        arrival = arrivals.of("b")
        assert arrival is not None
        source = arrival.follow(source_of(NEXT))
        assert isinstance(source, Resumable)
        source.open_from(512).read(5000)  # another process had fetched the beginning
        arrival.end(whole=True)
        last = arrivals.of("c")
        assert last is not None
        assert last.follow(LAST) is LAST  # at hand already
        last.end(whole=True)
        assert [one.noted for one in (arrivals.of("a"), arrival, last) if one is not None] == [None] * 3
        chain = store.ensure(layers, arrived=arrivals)
    assert [Path(place).read_bytes() for place in store.get(chain).tars] == [BASE, NEXT, LAST]


def test_a_stream_that_begins_anew(store: TarStore) -> None:
    """A connection that breaks is gone on with where it was; one that begins from the start again is not followed."""
    with Arrivals(store) as arrivals:
        arrivals.expect([("a", layer(BASE)), ("b", layer(NEXT))])
        for name, data, second in (("a", BASE, 1000), ("b", NEXT, 0)):
            arrival = arrivals.of(name)
            assert arrival is not None
            source = arrival.follow(source_of(data))
            assert isinstance(source, Resumable)
            source.open_from(0).read(1000)
            rest = source.open_from(second)
            while rest.read(300):
                pass
            arrival.end(whole=True)
            assert (arrival.noted is not None) is bool(second)
        chain = store.ensure([unread(layer(BASE)), layer(NEXT)], arrived=arrivals)
    assert [Path(place).read_bytes() for place in store.get(chain).tars] == [BASE, NEXT]


@pytest.mark.parametrize(
    ("bad", "data", "error"),
    [
        (layer(NEXT, diff=digest(b"other")), NEXT, DigestMismatch),
        (layer(tar(f("../up"))), tar(f("../up")), FormatError),
        (layer(b"no tar at all" * 100), b"no tar at all" * 100, FormatError),
        (layer(NEXT + bytes(100)), NEXT + bytes(100), Unsupported),
    ],
    ids=["diffID", "up", "garbage", "no-whole-block"],
)
def test_a_bad_layer_is_told_as_if_it_had_been_there(
    store: TarStore, bad: Layer, data: bytes, error: type[Exception]
) -> None:
    messages = []
    for follow in (False, True):
        with Arrivals(store) as arrivals:
            arrivals.expect([("a", layer(BASE)), ("b", bad)])
            if follow:
                come(arrivals, "a", BASE)
                come(arrivals, "b", data)
            with pytest.raises(error) as caught:
                store.ensure([layer(BASE), bad], arrived=arrivals)
            messages.append(str(caught.value))
        assert everything(store) == set()
    assert messages[0] == messages[1]


def test_nothing_is_left_of_what_nobody_took(store: TarStore) -> None:
    with Arrivals(store) as arrivals:
        arrivals.expect([("a", layer(BASE)), ("b", layer(NEXT))])
        come(arrivals, "a", BASE)
        assert Path(store.tar_made(digest(BASE))).exists()
        arrival = arrivals.of("b")
        assert arrival is not None
        half = arrival.follow(lambda: io.BytesIO(NEXT))
        assert callable(half)
        half().read(600)  # and then Ctrl-C: nobody says that it ended
    assert everything(store) == set()
    assert not [one for one in threading.enumerate() if one.name == "knarr-arriving"]


def test_an_image_that_is_another_after_all(store: TarStore) -> None:
    with Arrivals(store) as arrivals:
        arrivals.expect([("a", layer(BASE)), ("b", layer(NEXT))])
        come(arrivals, "a", BASE)
        chain = store.ensure([layer(BASE), layer(LAST)], arrived=arrivals)  # would wait for its own lock for ever
    assert [Path(place).read_bytes() for place in store.get(chain).tars] == [BASE, LAST]


def test_entries_are_bounded_over_all_layers(store: TarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MOST_ENTRIES", 5000)
    many = [tar(*(f(f"{number}-{at}") for at in range(2000))) for number in range(3)]
    with Arrivals(store) as arrivals:
        arrivals.expect([(str(number), layer(data)) for number, data in enumerate(many)])
        for number, data in enumerate(many):
            come(arrivals, str(number), data)
        noted = [arrival.noted is not None for arrival in arrivals.all().values()]
        assert noted.count(True) == 2
        store.ensure([layer(data) for data in many], arrived=arrivals)  # its own bound counts what the image has


def test_locks_are_taken_in_order_and_none_after_one_that_others_have(store: TarStore) -> None:
    first, second, third = sorted((BASE, NEXT, LAST), key=digest)
    layers = [("a", layer(third)), ("b", layer(second)), ("c", layer(first))]
    with Lock(store.tar_lock(digest(second))), Arrivals(store) as arrivals:
        arrivals.expect(layers)
        assert [one for one in "abc" if arrivals.of(one) is not None] == ["c"]  # not third: that comes after second
        with pytest.raises(InUse):
            Lock(store.tar_lock(digest(first)), wait=False).acquire()
        with Lock(store.tar_lock(digest(third)), wait=False):
            pass
    with Arrivals(store) as one, Arrivals(store) as two:
        one.expect(layers)
        two.expect(layers)
        assert [len(each.all()) for each in (one, two)] == [3, 0]
        assert two.chain == ""


RUN = """
import io, sys, time
sys.path[:0] = sys.argv[3].split(":")
from test_snapshot import layer
from test_tarstore import many
from knarr.layer.arriving import Arrivals
from knarr.layer.tarstore import TarStore
order = [int(number) for number in sys.argv[2].split(",")]
store = TarStore(sys.argv[1])
layers = [layer(many(number)) for number in order]
with Arrivals(store) as arrivals:
    arrivals.expect([(str(number), one) for number, one in zip(order, layers)])
    for number in order:
        arrival = arrivals.of(str(number))
        if arrival is not None:
            stream = arrival.follow(lambda: io.BytesIO(many(number)))()
            while stream.read(4096):
                time.sleep(0.0005)
            arrival.end(whole=True)
    print(store.ensure(layers, arrived=arrivals))
"""


def test_processes_that_share_layers_do_not_wait_in_a_circle(store: TarStore) -> None:
    paths = ":".join(path for path in sys.path if path)
    for _ in range(3):
        running = [
            subprocess.Popen([sys.executable, "-c", RUN, store.path, order, paths], stdout=subprocess.PIPE, text=True)
            for order in ("1,2,3,4", "4,3,2,1", "1,2,3,4", "2,5,1", "5,1,2")
        ]
        try:
            said = [process.communicate(timeout=60)[0].strip() for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert [process.returncode for process in running] == [0] * 5
        assert said[0] == said[2]
        assert {image.chain_id for image in store.list()} == set(said)
        assert not [*Path(store.path, "tmp").iterdir(), *Path(store.path, "locks").iterdir()]
        store.gc([])

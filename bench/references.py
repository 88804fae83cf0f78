"""A store with ten thousand names: is adding, finding, listing, pruning, checking still quick, and is it flat?

``python bench/references.py [--count N]``; prints Markdown: milliseconds of CPU time at a hundredth, a tenth and the
whole of N names, and what one name more costs. Every name has a manifest and config of its own; all share one layer.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from knarr.content.store import Store
from knarr.engine import images, storekeeping
from knarr.engine.paths import Places, places
from knarr.image import catalog
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.spec.image import Descriptor


def layer() -> tuple[bytes, str]:
    """A layer of one file, and its diffID."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    return gzip.compress(plain.getvalue(), mtime=0), f"sha256:{sha256(plain.getvalue()).hexdigest()}"


def documents(number: int, part: Descriptor, diff_id: str) -> tuple[str, list[tuple[Descriptor, bytes]]]:
    """An image: the name it shall have, its config and manifest."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"number": str(number)}},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    made = blob(config, mediatypes.CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": made[0], "layers": [part]}
    name = f"docker.io/bench/app{number % 100}:{number}"
    return name, [made, blob(manifest, mediatypes.MANIFEST)]


def blob(document: object, media_type: str) -> tuple[Descriptor, bytes]:
    """A document as it is stored."""
    data = json.dumps(document).encode()
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data).hexdigest()}", "size": len(data)}, data


def put(store: Store, number: int, part: Descriptor, diff_id: str) -> tuple[str, Descriptor]:
    """Put an image into the store; the name it shall have, and its descriptor."""
    name, blobs = documents(number, part, diff_id)
    return name, [store.put(data, descriptor) for descriptor, data in blobs][-1]


def put_many(store: Store, numbers: range, part: Descriptor, diff_id: str) -> list[tuple[str, Descriptor]]:
    """As ``put``, many at once."""
    made = [documents(number, part, diff_id) for number in numbers]
    store.put_all(one for _, blobs in made for one in blobs)
    return [(name, blobs[-1][0]) for name, blobs in made]


def add(store: Store, number: int, part: Descriptor, diff_id: str) -> None:
    """Put an image into the store under a name."""
    with store.lock(shared=True):
        store.tag(*put(store, number, part, diff_id))


def took(work: Callable[[], object], times: int = 1) -> float:
    """Milliseconds of CPU time, the median."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append((time.process_time() - begun) * 1000)
    return statistics.median(found)


def measure(where: Places, store: Store, count: int, part: Descriptor, diff_id: str) -> dict[str, float]:
    """One column of the table. First what a new process needs, before and after anybody has listed the images."""
    name = f"docker.io/bench/app{(count // 2) % 100}:{count // 2}"
    identity = catalog.lookup(store, name).id
    find, table = f"catalog.lookup(store, {name!r})", "images.listing(where)"
    extra = [f"docker.io/bench/app{number % 100}:{number}" for number in range(10**9, 10**9 + 9)]
    numbers, gone = iter(range(10**9, 10**9 + 9)), iter(extra)
    found = {
        "new process: find by name": cold(where, find),
        "new process: list, the first time": cold(where, table, times=1),
        "new process: list": cold(where, table),
        "add one": took(lambda: add(store, next(numbers), part, diff_id), 9),
        "new process: remove one": cold(where, f"images.remove(where, {next(gone)!r})", times=1),
        "find by name": took(lambda: catalog.lookup(store, name), 9),
        "find by id": took(lambda: catalog.lookup(store, identity), 3),
        "all names": took(store.tags, 9),
        "list (knarr images)": took(lambda: images.listing(where), 3),
        "remove one": took(lambda: images.remove(where, next(gone)), 7),
        "df": took(lambda: storekeeping.usage(where)),
        "prune": took(lambda: storekeeping.prune(where)),
        "fsck": took(lambda: storekeeping.check(where)),
    }
    images.remove(where, next(gone))
    return found


COLD = """
import sys, time
from knarr.content.store import Store
from knarr.engine import images
from knarr.engine.paths import places
from knarr.image import catalog
from knarr.spec import image_validate
where = places(sys.argv[1], sys.argv[2])
store = Store(where.store)
begun = time.process_time()
exec(sys.argv[3])
print((time.process_time() - begun) * 1000)
"""


def cold(where: Places, code: str, times: int = 5) -> float:
    """Milliseconds of CPU time that ``code`` takes in processes that know nothing of the store yet, the median."""
    command = [sys.executable, "-c", COLD, where.store, where.state, code]
    done = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for _ in range(times)]
    return statistics.median(float(one.stdout) for one in done)


def fill(store: Store, numbers: range, part: Descriptor, diff_id: str) -> tuple[float, float]:
    """Add images with one change of the names; the seconds (of wall time) for the blobs and for the names."""
    begun = time.monotonic()
    with store.lock(shared=True):
        made = put_many(store, numbers, part, diff_id)
        put_all = time.monotonic()
        with store.changing() as names:
            for name, descriptor in made:
                names.tag(name, descriptor)
    return put_all - begun, time.monotonic() - put_all


def main() -> None:
    """Fill a store, measure it on the way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    columns: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="knarr-bench-") as top:
        where = places(f"{top}/store", f"{top}/run")
        store = Store.open(where.store)
        data, diff_id = layer()
        part = store.put(data, media_type=mediatypes.LAYER_GZIP)
        there = 0
        for count in (options.count // 100, options.count // 10, options.count):
            blobs, names = fill(store, range(there, count), part, diff_id)
            print(f"{count - there} images in one batch: {blobs:.1f} s for the blobs, {names:.2f} s for the names.\n")
            there = count
            columns[count] = measure(where, store, count, part, diff_id)
    print(f"| | {' | '.join(f'{count} names' for count in columns)} | per name at {options.count} |")
    print(f"| --- |{' --- |' * (len(columns) + 1)}")
    for what in columns[options.count]:
        values = [column[what] for column in columns.values()]
        shown = " | ".join(f"{value:.1f} ms" for value in values)
        print(f"| {what} | {shown} | {values[-1] / options.count * 1000:.1f} µs |")


if __name__ == "__main__":
    main()

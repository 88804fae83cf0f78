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


def add(store: Store, number: int, part: Descriptor, diff_id: str) -> str:
    """Put an image into the store under a name; the name."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"number": str(number)}},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    made = store.put(json.dumps(config).encode(), media_type=mediatypes.CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": made, "layers": [part]}
    name = f"docker.io/bench/app{number % 100}:{number}"
    with store.lock(shared=True):
        store.tag(name, store.put(json.dumps(manifest).encode(), media_type=mediatypes.MANIFEST))
    return name


def took(work: Callable[[], object], times: int = 1) -> float:
    """Milliseconds of CPU time, the median."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append((time.process_time() - begun) * 1000)
    return statistics.median(found)


def measure(where: Places, store: Store, count: int, part: Descriptor, diff_id: str) -> dict[str, float]:
    """One column of the table."""
    name = f"docker.io/bench/app{(count // 2) % 100}:{count // 2}"
    extra = iter(range(10**9, 10**9 + 100))
    found = {
        "add one": took(lambda: add(store, next(extra), part, diff_id), 9),
        "find by name": took(lambda: catalog.lookup(store, name), 9),
    }
    identity = catalog.lookup(store, name).id
    found |= {
        "find by id": took(lambda: catalog.lookup(store, identity), 3),
        "all names": took(store.tags, 9),
        "list (knarr images)": took(lambda: images.listing(where)),
        "df": took(lambda: storekeeping.usage(where)),
        "prune": took(lambda: storekeeping.prune(where)),
        "fsck": took(lambda: storekeeping.check(where)),
        "remove one": took(lambda: images.remove(where, f"docker.io/bench/app{10**9 % 100}:{10**9}")),
    }
    return found


def main() -> None:
    """Fill a store, measure it on the way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    columns: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="knarr-bench-") as top:
        where = places(f"{top}/store", f"{top}/run")
        store = Store.open(where.store)
        blob, diff_id = layer()
        part = store.put(blob, media_type=mediatypes.LAYER_GZIP)
        begun, there = time.monotonic(), 0
        for count in (options.count // 100, options.count // 10, options.count):
            for number in range(there, count):
                add(store, number, part, diff_id)
            there = count
            filled = time.monotonic() - begun
            columns[count] = measure(where, store, count, part, diff_id)
        print(f"{options.count} names were added in {filled:.0f} s.\n")
    print(f"| | {' | '.join(f'{count} names' for count in columns)} | per name at {options.count} |")
    print(f"| --- |{' --- |' * (len(columns) + 1)}")
    for what in columns[options.count]:
        values = [column[what] for column in columns.values()]
        shown = " | ".join(f"{value:.1f} ms" for value in values)
        print(f"| {what} | {shown} | {values[-1] / options.count * 1000:.1f} µs |")


if __name__ == "__main__":
    main()

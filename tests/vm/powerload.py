"""What the guest of powercut.py does: look at what a power cut left, then work on the store until the next one.

    powerload.py check            say what is wrong, prune, and what is wrong then
    powerload.py work SEED        pull, unpack, index, put many small blobs, forget, prune, for ever

Speaks in lines: ``names N…``, ``wrong …``, ``doing WHAT NAME``, ``did NAMES…``; the host reads them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import stat
import sys
import tempfile
from time import monotonic
from typing import TYPE_CHECKING

from knarr.content.digest import sha256_of
from knarr.engine import images, storekeeping
from knarr.engine.copying import copy
from knarr.engine.imaging.validate import validate
from knarr.engine.paths import Places, open_store, places
from knarr.image.catalog import lookup
from knarr.image.platform import host_platform
from knarr.layer.snapshot import Snapshots
from knarr.layer.source import layers_of
from knarr.layer.tarstore import TarStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.layer.source import Layer

SOURCE = "/opt/knarr/images"
PLACE = "/mnt/store"
COUNT = 6
PREFIX = "power.invalid/image"


def say(*words: object) -> None:
    """A line to the host, at once."""
    print(*words, flush=True)


def where() -> Places:
    """The store under test."""
    return places(PLACE, "/tmp/state")


def names() -> list[str]:
    """The names there are."""
    return sorted(open_store(where()).tags())


def layers(name: str) -> list[Layer]:
    """The layers of an image of the store."""
    store = open_store(where())
    image = lookup(store, name)
    return layers_of(store, image.manifest, image.image_config())


# -- looking -----------------------------------------------------------------------------------------------------------


def wrong() -> Iterator[str]:
    """What is visible and damaged: blobs, names, unpacked layers, tars and their indexes."""
    for damage in storekeeping.check(where()):
        yield f"{damage.what}: {damage.why}"
    for name in names():
        for finding in validate(f"store:{name}", store=PLACE):
            yield f"{name}: {finding}"
    yield from _wrong_layers()


def _wrong_layers() -> Iterator[str]:
    """Unpacked layers that are not what unpacking them gives; likewise images' indexes."""
    there = {one.chain_id for one in images.snapshots(where()).list()}
    for chain in there:
        for lower in images.snapshots(where()).lowers(chain):
            if not os.path.isdir(lower):
                yield f"{lower}, which unpacked layer {chain} shows, is not there"
    mounted = images.tars(where()).list() if os.path.isdir(where().tars) else []
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        clean, indexes = Snapshots(f"{folder}/snapshots"), TarStore(f"{folder}/tars")
        for name in names():
            chain = clean.ensure(layers(name))
            while chain:
                one = clean.get(chain)
                if chain in there:
                    is_so, should = listing(of(where().snapshots, chain)), listing(of(clean.path, chain))
                    other = [f"{one}" for one in is_so if one not in should][:2]
                    other += [f"not {one}" for one in should if one not in is_so][:2]
                    yield from (f"unpacked layer {chain}: {text}" for text in other)
                chain = one.parent
            whole = indexes.get(indexes.ensure(layers(name)))
            for image in mounted:
                if image.chain_id == whole.chain_id and digest(image.index) != digest(whole.index):
                    yield f"index of {image.chain_id} is not what it should be"


def of(snapshots: str, chain: str) -> str:
    """The files of an unpacked layer."""
    return f"{snapshots}/{chain.partition(':')[2]}/fs"


def listing(folder: str) -> list[tuple[object, ...]]:
    """All that can be seen of a tree."""
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in (".", *sorted(files), *(each for each in folders if os.path.islink(f"{place}/{each}"))):
            path = f"{place}/{name}"
            facts = os.lstat(path)
            content = ""
            if stat.S_ISREG(facts.st_mode):
                content = digest(path)
            elif stat.S_ISLNK(facts.st_mode):
                content = os.readlink(path)
            size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
            time = 0 if stat.S_ISCHR(facts.st_mode) else facts.st_mtime_ns  # a whiteout's is seen by nobody
            found.append((os.path.relpath(path, folder), facts.st_mode, facts.st_uid, size, time, content))
    return sorted(found, key=repr)


def digest(path: str) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check() -> None:
    """Say which names there are and what is wrong; then that the store goes on: pruned, and all pulled again."""
    begun = monotonic()
    open_store(where())
    say("opened", f"{monotonic() - begun:.2f}")
    say("names", *names())
    for text in wrong():
        say("wrong", text)
    storekeeping.prune(where())
    left = os.listdir(f"{PLACE}/.tmp") if os.path.isdir(f"{PLACE}/.tmp") else []
    if left:
        say("wrong", "after prune there is", *left)


# -- working -----------------------------------------------------------------------------------------------------------


def pull(name: str) -> None:
    """Copy an image into the store."""
    copy(where(), f"oci:{SOURCE}:v{name[-1]}", f"store:{name}")


def unpack(name: str) -> None:
    """Make the layers' directories."""
    images.snapshots(where()).ensure(layers(name))


def index(name: str) -> None:
    """Write the layers' tars and the index over them."""
    images.tars(where()).ensure(layers(name))


def many(_name: str) -> None:
    """Put many small blobs at once: nobody names them, but what has a blob's name must be whole."""
    data = [os.urandom(500 + 37 * number) for number in range(60)]
    kind = "application/octet-stream"
    store = open_store(where())
    store.put_all(({"mediaType": kind, "digest": sha256_of(each), "size": len(each)}, each) for each in data)


def forget(name: str) -> None:
    """Take the name away, and what nobody needs then."""
    images.remove(where(), name)


def prune(_name: str) -> None:
    """Collect what nobody needs."""
    storekeeping.prune(where())


def work(seed: int) -> None:
    """Do one thing after the other, told before and after."""
    chance = random.Random(seed)
    for _ in itertools.count():
        name = f"{PREFIX}:{chance.randrange(COUNT)}"
        there = name in names()
        what: Callable[[str], None] = chance.choice([unpack, index, many, forget, prune] if there else [pull, pull, many, prune])
        say("doing", what.__name__, name)
        what(name)
        say("did", *names())


if __name__ == "__main__":
    host_platform()
    if sys.argv[1] == "work":
        check()
        say("working")
        work(int(sys.argv[2]))
    else:
        check()
        for number in range(COUNT):
            pull(f"{PREFIX}:{number}")
            unpack(f"{PREFIX}:{number}")
            index(f"{PREFIX}:{number}")
        for text in wrong():
            say("wrong", text)
        say("healed", len(names()))

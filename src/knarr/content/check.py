"""Is everything in the store what it says it is? Reads every blob; repairs nothing."""

from __future__ import annotations

import os

from knarr.base.errors import KnarrError, NotFound
from knarr.content.gc import reachable
from knarr.content.verify import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.content.store import Store
    from knarr.spec.image import Descriptor


def check(store: Store) -> list[str]:
    """Return one sentence for each thing that is wrong, none for a sound store.

    Wrong are blobs whose bytes do not have their digest, and, of the images in index.json, missing or wrong-sized
    parts and manifests that cannot be read. An index may lack the manifests of other platforms. What nothing
    refers to and unfinished files are garbage, not damage. Raises SpecError, FileError when index.json itself
    cannot be read.
    """
    found: list[str] = []
    with store.lock(shared=True):
        for root in store.entries():
            found.extend(_image(store, root))
        for digest, size in store.blobs():
            try:
                with store.open_blob(
                    {"mediaType": "application/octet-stream", "digest": digest, "size": size}
                ) as reader:
                    while reader.read(CHUNK):
                        pass
            except KnarrError as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def _image(store: Store, root: Descriptor) -> list[str]:
    found = []
    try:
        for descriptor in reachable(store, [root]):
            path = store.blob_path(descriptor["digest"])
            try:
                size = os.stat(path).st_size
            except OSError:
                # A manifest of an index may be absent, the root and all parts of a manifest may not.
                if descriptor is root or "platform" not in descriptor:
                    found.append(str(NotFound("blob", descriptor["digest"], hint=f"it is part of {root['digest']}")))
                continue
            if size != descriptor["size"]:
                found.append(f"blob {path} has {size} bytes, expected {descriptor['size']}")
    except KnarrError as error:
        found.append(str(error))
    return found

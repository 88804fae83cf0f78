"""What refers to an image, where nobody keeps a list of it: in the index.json of a layout or store.

Found are manifests and indexes that stand there with that ``subject``, and those in the index that older tools keep
under the tag ``sha256-<hex>`` (distribution-spec, Referrers Tag Schema).
"""

from __future__ import annotations

from knarr.base.errors import KnarrError
from knarr.content.names import name_of
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import read_all
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.spec.image import Descriptor

LIMIT = 10_000
"""Entries of an index.json that are looked at."""


def tag_of(digest: str) -> str:
    """Return the tag of the referrers of ``digest`` where the registry has no list of them.

    Each part of the digest is cut at the length the schema allows: 32 and 64 characters.
    """
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def referrers_among(
    entries: Sequence[Descriptor], open_blob: Callable[[Descriptor], Readable], digest: str
) -> list[Descriptor]:
    """Return descriptors of what refers to ``digest``, as the referrers API would give them; each once."""
    found: dict[str, Descriptor] = {}
    for entry in entries[:LIMIT]:
        if name_of(entry) == tag_of(digest) and entry["mediaType"] in mediatypes.INDEXES:
            for one in _document(entry, open_blob).get("manifests") or []:
                found.setdefault(one["digest"], one)
        elif entry["mediaType"] in (mediatypes.MANIFEST, mediatypes.INDEX):
            document = _document(entry, open_blob)
            if (document.get("subject") or {}).get("digest") == digest:
                found.setdefault(entry["digest"], describe(entry, document))
    return list(found.values())


def describe(descriptor: Descriptor, document: dict[str, Any]) -> Descriptor:
    """Return a referrer's descriptor with what the referrers API says of it (distribution-spec, Listing Referrers)."""
    made: Descriptor = {
        "mediaType": descriptor["mediaType"],
        "digest": descriptor["digest"],
        "size": descriptor["size"],
    }
    kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    if kind:
        made["artifactType"] = kind
    if document.get("annotations"):
        made["annotations"] = document["annotations"]
    return made


def _document(entry: Descriptor, open_blob: Callable[[Descriptor], Readable]) -> dict[str, Any]:
    """Return a manifest's fields; none when it is not there or damaged, for then it refers to nothing."""
    from knarr.spec.image_validate import parse_index, parse_manifest

    parse = parse_index if entry["mediaType"] in mediatypes.INDEXES else parse_manifest
    try:
        data = read_all(open_blob(entry), entry["digest"], entry["size"], DOCUMENT_LIMIT)
        return dict(parse(data, entry["digest"], entry["mediaType"]))
    except KnarrError:
        return {}

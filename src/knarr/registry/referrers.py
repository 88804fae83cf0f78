"""What refers to a manifest: the referrers API, and the tag that stands for it where a registry has none.

distribution-spec 1.1: Listing Referrers (end-12), Referrers Tag Schema, Pushing Manifests with Subject, and the same
for deletion.
"""

from __future__ import annotations

from urllib.parse import urlencode

from knarr.base import fastjson
from knarr.base.errors import NotFound, SpecError
from knarr.content.digest import sha256_of, usable
from knarr.content.store import DOCUMENT_LIMIT
from knarr.registry.client import PAGE_LIMIT, next_page
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.registry.client import Client
    from knarr.registry.push import Pusher
    from knarr.spec.image import Descriptor

LIMIT = 100_000
"""Referrers of one manifest."""


def tag_of(digest: str) -> str:
    """Return the tag of the referrers of ``digest``: each part cut as the schema says, to 32 and 64 characters."""
    algorithm, _, encoded = usable(digest).partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def referrers(client: Client, digest: str, artifact_type: str = "") -> list[Descriptor]:
    """Return the descriptors of what refers to ``digest``; of one artifact type, if given.

    Raises RegistryError, AuthError; SpecError when the answer is no index.
    """
    query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
    path = f"/v2/{client.repository}/referrers/{usable(digest)}{query}"
    found: dict[str, Descriptor] = {}
    seen: set[str] = set()
    for page in range(1, PAGE_LIMIT + 1):
        response = client.transport.get(path, {"Accept": mediatypes.INDEX})
        kind = response.header("Content-Type").partition(";")[0].strip().lower()
        if page == 1 and (response.status in {404, 405, 501} or (response.status == 200 and kind != mediatypes.INDEX)):
            response.close()
            return _of_type(_by_tag(client, digest), artifact_type)
        if response.status != 200:
            raise client.failure(response, "referrers", digest)
        link = response.header("Link")
        for one in _entries(response.document(DOCUMENT_LIMIT, "the referrers"), f"referrers of {digest}"):
            found.setdefault(one["digest"], one)
        if not link or len(found) >= LIMIT:
            break
        path = next_page(link, response, client.transport, "referrers")
        if path in seen or page == PAGE_LIMIT:
            raise response.error("its referrers do not end")
        seen.add(path)
    return _of_type(list(found.values()), artifact_type)  # a registry need not have filtered


def _of_type(found: list[Descriptor], artifact_type: str) -> list[Descriptor]:
    return [one for one in found if not artifact_type or one.get("artifactType") == artifact_type]


def _entries(data: bytes, what: str) -> list[Descriptor]:
    from knarr.spec.image_validate import parse_index

    manifests: list[Descriptor] = parse_index(data, what, mediatypes.INDEX)["manifests"]
    return manifests


def _by_tag(client: Client, digest: str) -> list[Descriptor]:
    try:
        descriptor, data = client.manifest(tag_of(digest), quick=True)
    except NotFound:
        return []
    if descriptor["mediaType"] != mediatypes.INDEX:
        return []  # a tag that only looks like one
    return _entries(data, f"index {tag_of(digest)}")


def note_by_tag(pusher: Pusher, subject: str, descriptor: Descriptor, document: dict[str, Any]) -> None:
    """Add a manifest to the index under its subject's tag, as a registry without the referrers API wants it."""
    entry: dict[str, Any] = {key: descriptor[key] for key in ("mediaType", "digest", "size")}
    kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    if kind:
        entry["artifactType"] = kind
    if document.get("annotations"):
        entry["annotations"] = document["annotations"]
    _change_tag(pusher, subject, lambda known: [*(one for one in known if one["digest"] != entry["digest"]), entry])


def forget_by_tag(pusher: Pusher, subject: str, digest: str) -> None:
    """Take a removed manifest out of the index under its subject's tag, if there is one."""
    _change_tag(pusher, subject, lambda known: [one for one in known if one["digest"] != digest])


def remove(pusher: Pusher, reference: str) -> str:
    """Remove a manifest by tag or digest, also from the tag that lists it as a referrer; return its digest.

    By tag: the manifest goes, with all its tags. Raises NotFound, RegistryError, AuthError.
    """
    descriptor, data = pusher.client.manifest(reference)
    pusher.delete_manifest(descriptor["digest"])
    value = fastjson.loads(data, f"manifest {reference}")
    subject = value.get("subject") or {}
    if isinstance(subject, dict) and isinstance(subject.get("digest"), str):
        forget_by_tag(pusher, subject["digest"], descriptor["digest"])
    return descriptor["digest"]


def _change_tag(pusher: Pusher, subject: str, change: Any) -> None:
    try:
        known = _by_tag(pusher.client, subject)
    except SpecError:
        known = []
    entries = change(known)
    if entries == known:
        return
    data = fastjson.dumps({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": entries})
    index: Descriptor = {"mediaType": mediatypes.INDEX, "digest": sha256_of(data), "size": len(data)}
    pusher.put_manifest(tag_of(subject), index, data)

"""Paths of the distribution API: which one, of which repository. Pure. distribution-spec, "Endpoints"."""

from __future__ import annotations

import re

from knarr.base.record import Record
from knarr.service.registry.problems import Problem

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_NAME_LIMIT = 255
# Matched from the end: a repository may be called a/manifests/b.
_ENDS = (
    (re.compile(r"/v2/(.+)/blobs/uploads/?", re.DOTALL), "uploads"),
    (re.compile(r"/v2/(.+)/blobs/uploads/([^/]+)", re.DOTALL), "upload"),
    (re.compile(r"/v2/(.+)/blobs/([^/]+)", re.DOTALL), "blob"),
    (re.compile(r"/v2/(.+)/manifests/([^/]+)", re.DOTALL), "manifest"),
    (re.compile(r"/v2/(.+)/tags/list", re.DOTALL), "tags"),
    (re.compile(r"/v2/(.+)/referrers/([^/]+)", re.DOTALL), "referrers"),
)


class Route(Record):
    """``kind``: base, catalog, uploads, upload, blob, manifest, tags or referrers."""

    kind: str
    name: str = ""
    reference: str = ""


def parse(path: str) -> Route:
    """The route of a path, percent-decoding done. Raises Problem."""
    if path in ("/v2", "/v2/"):
        return Route("base")
    if path == "/v2/_catalog":
        return Route("catalog")
    for pattern, kind in _ENDS:
        found = pattern.fullmatch(path)
        if found:
            name = found.group(1)
            if len(name) > _NAME_LIMIT or not NAME.fullmatch(name):
                raise Problem("NAME_INVALID", name)
            return Route(kind, name, found.group(2) if found.re.groups > 1 else "")
    raise Problem("UNSUPPORTED", path, status=404)

"""What a registry answers when it does not do what it was asked: distribution-spec, "Error Codes"."""

from __future__ import annotations

from knarr.base import fastjson

# code -> (HTTP status, what it means)
CODES = {
    "BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "BLOB_UPLOAD_INVALID": (400, "blob upload invalid"),
    "BLOB_UPLOAD_UNKNOWN": (404, "blob upload unknown to registry"),
    "DIGEST_INVALID": (400, "provided digest did not match uploaded content"),
    "MANIFEST_BLOB_UNKNOWN": (404, "manifest references a manifest or blob unknown to registry"),
    "MANIFEST_INVALID": (400, "manifest invalid"),
    "MANIFEST_UNKNOWN": (404, "manifest unknown to registry"),
    "NAME_INVALID": (400, "invalid repository name"),
    "NAME_UNKNOWN": (404, "repository name not known to registry"),
    "SIZE_INVALID": (400, "provided length did not match content length"),
    "TAG_INVALID": (400, "invalid tag"),
    "UNAUTHORIZED": (401, "authentication required"),
    "DENIED": (403, "requested access to the resource is denied"),
    "UNSUPPORTED": (405, "the operation is unsupported"),
    "TOOMANYREQUESTS": (429, "too many requests"),
    "UNAVAILABLE": (502, "the registry behind this one does not answer"),
    "FAILED": (500, "the registry failed"),
}


class Problem(Exception):
    """One of the specification's errors; ``headers`` go with the answer."""

    def __init__(
        self, code: str, detail: str = "", *, status: int = 0, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.status = status or CODES[code][0]
        self.headers = headers

    def document(self) -> bytes:
        """The body of the answer."""
        return fastjson.dumps({"errors": [{"code": self.code, "message": CODES[self.code][1], "detail": self.detail}]})

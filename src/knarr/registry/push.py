"""The distribution API, push side (distribution-spec, Push and Content Management): blobs, manifests, referrers.

A blob goes in pieces. Each costs a round trip and, in the registry, a few fsync; what is lost when one breaks is at
most that piece: so they begin small (``Policy.chunk``) and grow until one takes about ``Policy.piece`` seconds. When
the exchange breaks, a login ends or the registry is busy, it is asked how far it is, and gets the rest. A registry
that takes no pieces gets the whole in one request.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from urllib.parse import urlencode

from knarr.base import fastjson
from knarr.base.errors import DigestMismatch, NotFound, RegistryError
from knarr.base.record import Record
from knarr.content.digest import Digest, usable
from knarr.content.part import KEPT_LEAST
from knarr.registry.connections import Broken
from knarr.registry.origin import Refused, check_upload, shown
from knarr.registry.outgoing import Outgoing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.content.part import Source
    from knarr.registry.client import Client
    from knarr.registry.connections import Policy
    from knarr.registry.transport import Response
    from knarr.registry.uploads import Uploads
    from knarr.spec.image import Descriptor

    Moved = Callable[[int], None]

_BUSY = (408, 429, 500, 502, 503, 504)
# A login has ended; a proxy finds the piece too large, the registry that it begins elsewhere: no reason to wait.
_AT_ONCE = (401, 413, 416)
_GROWTH = 16  # times a piece may be larger than the one before
# What registries answer that do not take a blob in pieces.
_NO_PIECES = (400, 405, 411, 413, 415, 501)


class _Session(Record):
    """An upload under way: where it goes on, and how many bytes the registry has."""

    url: str
    offset: int = 0
    least: int = 0


class _Again(Exception):
    """A piece did not get through, and may another time; ``asked`` is what the registry wants to be waited."""

    def __init__(self, why: str, *, status: int = 0, hint: str = "", asked: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.hint = hint
        self.asked = asked


class _Lost(Exception):
    """The registry has forgotten the upload, or has other bytes than were sent."""


class Pusher:
    """Sends blobs and manifests to one repository. ``client`` must be allowed to push.

    ``mount_from`` is another repository of the same registry that may have the blobs; ``uploads`` keeps what was
    begun for the next process. Safe for threads.
    """

    def __init__(self, client: Client, *, mount_from: str = "", uploads: Uploads | None = None) -> None:
        self.client = client
        self._mount_from = mount_from if mount_from != client.repository else ""
        self._uploads = uploads
        self._pieces = True
        self._piece = client.transport.policy.chunk  # bytes of the next one, as the last ones went
        self._most = sys.maxsize  # more than that has not got through
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes of blobs sent, those sent twice included."""
        self.mounted = 0

    @property
    def _base(self) -> str:
        return f"/v2/{self.client.repository}"

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the registry has a blob; raises AuthError, RegistryError."""
        return self._head(f"/blobs/{usable(descriptor['digest'])}", descriptor, {})

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Say whether the registry has a manifest or index, by digest."""
        return self._head(f"/manifests/{usable(descriptor['digest'])}", descriptor, {"Accept": descriptor["mediaType"]})

    def _head(self, path: str, descriptor: Descriptor, headers: dict[str, str]) -> bool:
        response = self.client.transport.request("HEAD", self._base + path, headers)
        if response.status == 200:
            length = response.header("Content-Length")
            response.close()
            return not length.isdigit() or int(length[:20]) == descriptor["size"]
        if response.status in {404, 405}:
            response.close()
            return False
        raise self.client.failure(response, "blob", descriptor["digest"])

    # Blobs

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Moved) -> None:
        """Send a blob, verified on the way; a broken exchange goes on where the registry says it broke.

        ``source`` must be bytes or something that can be opened again. Raises AuthError, RegistryError, and what
        reading raises.
        """
        digest, size = usable(descriptor["digest"]), descriptor["size"]
        session = self._kept(digest)
        if session is None:
            session = self._begin(descriptor, source if isinstance(source, bytes) else None)
        out = Outgoing(source, digest, size, moved)
        try:
            self._send(descriptor, session, out)
        finally:
            out.close()
            with self._lock:
                self.sent += out.sent
        moved(0)
        if self._uploads is not None:
            self._uploads.forget(self.client.registry, self.client.repository, digest)

    def _send(self, descriptor: Descriptor, session: _Session | None, out: Outgoing) -> None:
        tries = 0
        while session is not None:
            try:
                if self._pieces or out.size <= self.client.transport.policy.chunk:
                    self._note(session, out.digest)
                    self._send_pieces(session, out)
                else:
                    self._send_whole(session, out)
                return
            except _Lost:
                # A registry forgets uploads; once from the start is what helps, and more often is a circle.
                tries += 1
                if tries > 2:
                    where = shown(self.client.transport.base + self._base)
                    why = f"the upload of {out.digest} is lost again and again"
                    raise RegistryError("PATCH", where, 0, why) from None
                session = self._begin(descriptor, None)

    def _note(self, session: _Session, digest: Digest) -> None:
        """Keep for the next process where the upload goes on."""
        if self._uploads is not None:
            self._uploads.note(self.client.registry, self.client.repository, digest, session.url)

    def _begin(self, descriptor: Descriptor, data: bytes | None) -> _Session | None:
        """Begin an upload (POST); None when the blob is there then: mounted, or sent along."""
        digest = usable(descriptor["digest"])
        query: dict[str, str] = {}
        body = None
        if self._mount_from:
            query = {"mount": str(digest), "from": self._mount_from}
        elif data is not None and len(data) <= self.client.transport.policy.single_post:
            query, body = {"digest": str(digest)}, data
        if digest.algorithm != "sha256":
            query["digest-algorithm"] = digest.algorithm  # end-4c: so that the registry hashes with the right one
        path = f"{self._base}/blobs/uploads/" + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Length": str(len(body or b""))}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        response = self.client.transport.request("POST", path, headers, body=body or b"")
        if response.status == 201:
            response.close()
            if self._mount_from:
                with self._lock:
                    self.mounted += 1
            return None
        if response.status not in {200, 202}:
            raise self.client.failure(response, "repository", self.client.repository)
        least = response.header("OCI-Chunk-Min-Length")
        return _Session(self._location(response), 0, int(least[:12]) if least.isdigit() else 0)

    def _location(self, response: Response, otherwise: str = "") -> str:
        """Return the URL an upload goes on at, its query kept; closes the answer. Raises RegistryError."""
        location = response.header("Location")
        response.close()
        if not location:
            if otherwise:
                return otherwise
            raise response.error("it does not say where the upload goes on")
        try:
            return check_upload(response.url, location, self.client.transport.origin)
        except Refused as refused:
            hint = "behind a proxy a registry must be told its own address (relative URLs, X-Forwarded-Proto)"
            raise response.error(f"it sends uploads to {shown(location)}: {refused}", hint=hint) from None

    def _kept(self, digest: Digest) -> _Session | None:
        """Return an upload another process began, if the registry still has it."""
        if self._uploads is None:
            return None
        url = self._uploads.find(self.client.registry, self.client.repository, digest)
        if not url:
            return None
        try:
            self.client.transport.speak_as(url)
            session = self._status(_Session(check_upload(url, url, self.client.transport.origin)))
        except (_Lost, Refused, RegistryError):
            self._uploads.forget(self.client.registry, self.client.repository, digest)
            return None
        return session if session.offset else None

    def _status(self, session: _Session) -> _Session:
        """Ask how far an upload is (GET); raises _Lost."""
        response = self.client.transport.get(session.url, {})
        if response.status not in {200, 202, 204}:
            response.close()
            raise _Lost
        offset = _offset(response)
        return _Session(self._location(response, session.url), offset, session.least)

    def _send_pieces(self, session: _Session, out: Outgoing) -> None:
        """Send what the registry has not, in pieces, until it has the blob. Raises _Lost, RegistryError."""
        transport, policy = self.client.transport, self.client.transport.policy
        attempt = 1
        while True:
            if session.offset > out.size:
                raise _Lost
            count = min(max(self._piece, session.least), out.size - session.offset)
            last = session.offset + count == out.size
            began = monotonic()
            try:
                after = self._send_piece(session, out, count, last=last)
            except _Again as again:
                self._piece, self._most = policy.chunk, max(policy.chunk, count // 4)
                if attempt >= policy.tries:
                    raise RegistryError("PUT" if last else "PATCH", shown(session.url), again.status, again.why,
                                        hint=again.hint) from None  # fmt: skip
                if again.status not in _AT_ONCE:
                    transport.wait(attempt, again.asked)
                attempt += 1
                if last and self._arrived(out.digest, out.size):
                    return
                after = self._status(session)
                if not session.offset <= after.offset <= session.offset + count:
                    raise _Lost from None
                if after.offset - session.offset >= KEPT_LEAST:
                    attempt = 1
            else:
                if last:
                    return
                attempt = 1
                self._piece = min(next_piece(count, monotonic() - began, policy), self._most)
            session = after
            self._note(session, out.digest)

    def _send_piece(self, session: _Session, out: Outgoing, count: int, *, last: bool) -> _Session:
        """Send a piece, and say where the upload goes on. Raises _Lost, _Again, RegistryError."""
        transport, large = self.client.transport, count > self.client.transport.policy.chunk
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(count)}
        if count and (session.offset or not last):
            headers["Content-Range"] = f"{session.offset}-{session.offset + count - 1}"
        url = _with_query(session.url, {"digest": out.digest}) if last else session.url
        body = out.piece(session.offset, count)
        try:
            response = transport.once("PUT" if last else "PATCH", url, headers, body=body, patient=last or large)
        except Broken as broken:
            transport.check_stopped()
            raise _Again(broken.why, hint=broken.hint) from None
        status = response.status
        if status in ({200, 201, 204} if last else {201, 202, 204}):
            url = self._taken(response, session.url, out.digest, last=last)
            return _Session(url, session.offset + count, session.least)
        if status in _BUSY or status in _AT_ONCE or (status == 413 and large):
            asked = response.header("Retry-After")
            response.close()
            raise _Again("the registry failed", status=status, asked=asked)
        if not last and session.offset == 0 and status in _NO_PIECES:
            response.close()
            self._pieces = False  # for all that follow, too
            raise _Lost
        if status == 404:
            response.close()
            raise _Lost
        raise self.client.failure(response, "blob upload", out.digest)

    def _taken(self, response: Response, url: str, digest: Digest, *, last: bool) -> str:
        if last:
            stated = response.header("Docker-Content-Digest")
            response.close()
            if stated.startswith(f"{digest.algorithm}:") and stated != digest:
                raise DigestMismatch(f"blob {digest} as {self.client.registry} has it", digest, stated)
            return url
        return self._location(response, url)

    def _arrived(self, digest: Digest, size: int) -> bool:
        """Say whether the blob is there although the answer to its last piece was not."""
        response = self.client.transport.request("HEAD", f"{self._base}/blobs/{digest}", {})
        length = response.header("Content-Length")
        response.close()
        return response.status == 200 and (not length.isdigit() or int(length[:20]) == size)

    def _send_whole(self, session: _Session, out: Outgoing) -> None:
        """Send a blob in one request (end-6), from its start each time."""
        transport = self.client.transport
        attempt = 1
        url = _with_query(session.url, {"digest": out.digest})
        while True:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(out.size)}
            asked, status, hint = "", 0, ""
            try:
                response = transport.once("PUT", url, headers, body=out.piece(0, out.size), patient=True)
                status = response.status
                if status in {200, 201, 204}:
                    self._taken(response, url, out.digest, last=True)
                    return
                if status == 404:
                    response.close()
                    raise _Lost
                if status not in _BUSY and status != 401:
                    raise self.client.failure(response, "blob upload", out.digest)
                why, asked = "the registry failed", response.header("Retry-After")
                response.close()
            except Broken as broken:
                transport.check_stopped()
                why, hint = broken.why, broken.hint
            if attempt >= transport.policy.tries:
                raise RegistryError("PUT", shown(url), status, why, hint=hint)
            transport.wait(attempt, asked)
            attempt += 1
            new = self._begin({"mediaType": "", "digest": out.digest, "size": out.size}, None)
            if new is None:
                return
            url = _with_query(new.url, {"digest": out.digest})

    # Manifests

    def put_manifest(self, reference: str, descriptor: Descriptor, data: bytes) -> None:
        """Put a manifest or index under a tag or its digest; tells a registry without referrers what it refers to.

        Raises DigestMismatch when the registry says it has stored something else; AuthError, RegistryError.
        """
        digest = usable(descriptor["digest"])
        headers = {"Content-Type": descriptor["mediaType"], "Content-Length": str(len(data))}
        path = f"{self._base}/manifests/{reference}"
        response = self.client.transport.request("PUT", path, headers, body=data)
        if response.status not in {200, 201, 202}:
            raise self.client.failure(response, "manifest", digest)
        stated = response.header("Docker-Content-Digest")
        subject = response.header("OCI-Subject")
        response.close()
        if stated.startswith(f"{digest.algorithm}:") and stated != digest:
            raise DigestMismatch(f"manifest {reference} as {self.client.registry} has it", digest, stated)
        document: Any = fastjson.loads(data, f"manifest {digest}")
        refers_to = document.get("subject") or {}
        if refers_to.get("digest") and not subject:
            from knarr.registry.referrers import note_by_tag

            note_by_tag(self, refers_to["digest"], descriptor, document)

    def delete_manifest(self, reference: str) -> None:
        """Remove a manifest by digest, with all its tags, or a tag alone (end-9); raises NotFound, RegistryError."""
        self._delete(f"/manifests/{reference}", "manifest", reference)

    def delete_blob(self, digest: str) -> None:
        """Remove a blob (end-10)."""
        self._delete(f"/blobs/{usable(digest)}", "blob", digest)

    def _delete(self, path: str, kind: str, reference: str) -> None:
        response = self.client.transport.request("DELETE", self._base + path, {})
        if response.status in {200, 202, 204}:
            response.close()
            return
        if response.status == 405 or (response.status == 400 and ":" not in reference):
            response.close()
            hint = "it may remove by digest only" if kind == "manifest" and ":" not in reference else ""
            hint = hint or "its operator must allow it"
            raise RegistryError("DELETE", shown(response.url), response.status, "the registry does not remove that",
                                hint=hint)  # fmt: skip
        if response.status == 404:
            response.close()
            raise NotFound(kind, f"{reference} of {self.client.registry}/{self.client.repository}")
        raise self.client.failure(response, kind, reference)


def _offset(response: Response) -> int:
    """Return the number of bytes a registry has of an upload, from its Range header (0-499, or bytes=0-499)."""
    text = response.header("Range").removeprefix("bytes=").removeprefix("bytes ")
    start, dash, end = text.partition("-")
    if not dash or start.strip() != "0" or not end.strip().isdigit():
        return 0
    # A registry that has nothing says 0-0 (distribution) or nothing; one byte is not worth telling them apart.
    return int(end.strip()[:18]) + 1 if int(end.strip()[:18]) else 0


def next_piece(count: int, took: float, policy: Policy) -> int:
    """Return how large the piece is to be after one of ``count`` bytes that took so many seconds."""
    return max(policy.chunk, min(int(count * policy.piece / max(took, 1e-3)), _GROWTH * count))


def _with_query(url: str, more: dict[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(more)}"

"""The distribution API, pull side (distribution-spec, Pull and Content Discovery): manifests, blobs, tags."""

from __future__ import annotations

import os

from knarr.base import fastjson
from knarr.base.errors import (
    AuthError,
    DigestMismatch,
    InvalidDigest,
    NotFound,
    RegistryError,
    SizeMismatch,
    SpecError,
    SpecFinding,
    Unsupported,
)
from knarr.content.digest import Digest, hasher, sha256_of, usable
from knarr.content.names import printable, some
from knarr.content.stopping import current
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import VerifiedReader, verify_bytes
from knarr.registry.auth import Authorizer, reason
from knarr.registry.connections import Broken, Policy
from knarr.registry.credentials import DOCKER_HUB, Credentials, Found, find_credentials
from knarr.registry.origin import Refused, check_next, shown
from knarr.registry.settings import Certificates, certificates_of
from knarr.registry.transport import Transport
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.content.verify import Readable
    from knarr.registry.transport import Response
    from knarr.spec.image import Descriptor

HUB_HOST = "registry-1.docker.io"
_ACCEPT = ", ".join((*mediatypes.ACCEPTED, *sorted(mediatypes.SCHEMA1)))
_KNOWN = frozenset((*mediatypes.ACCEPTED, *mediatypes.SCHEMA1))
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-/")
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
PAGE_LIMIT = 1_000
TAGS_LIMIT = 100_000
_STEP = 1 << 20  # progress after which attempts at a blob count anew


def connect(
    registry: str,
    repository: str,
    *,
    credentials: Credentials | None = None,
    insecure: bool = False,
    ca_file: str = "",
    policy: Policy | None = None,
    scopes: Sequence[str] = (),
) -> tuple[Transport, Authorizer]:
    """Return what speaks to a registry, and its login; nothing is asked yet. The options are ``Client``'s."""
    host = HUB_HOST if registry == DOCKER_HUB else registry
    certificates = Certificates() if ca_file else certificates_of(registry, os.environ)
    transport = Transport(host, policy or Policy(), insecure=insecure, ca_file=ca_file, certificates=certificates)

    def look() -> Found:
        return find_credentials(registry, repository)

    given = Found(credentials) if credentials is not None else look
    authorizer = Authorizer(transport, registry, repository, given, scopes)
    transport.authorize = authorizer.header
    transport.challenged = authorizer.challenged
    return transport, authorizer


def repositories(
    registry: str,
    *,
    credentials: Credentials | None = None,
    insecure: bool = False,
    policy: Policy | None = None,
    limit: int = 100_000,
) -> list[str]:
    """Return the names of a registry's repositories (``_catalog``, of distribution's API); raises RegistryError.

    Many registries do not tell them: then Unsupported or AuthError.
    """
    transport, _ = connect(
        registry, "", credentials=credentials, insecure=insecure, policy=policy, scopes=["registry:catalog:*"]
    )
    try:
        path, seen, found = "/v2/_catalog", {""}, []
        for page in range(1, PAGE_LIMIT + 1):
            response = transport.get(path, {"Accept": "application/json"})
            if response.status in {404, 405}:
                response.close()
                raise Unsupported(f"listing the repositories of {registry}", "the registry does not tell them")
            if response.status != 200:
                raise RegistryError("GET", shown(response.url), response.status, "it does not tell its repositories")
            link = response.header("Link")
            found.extend(_strings(response, "repositories"))
            if len(found) >= limit or not link:
                break
            path = next_page(link, response, transport, "list of repositories")
            if path in seen or page == PAGE_LIMIT:
                raise response.error("its list of repositories does not end")
            seen.add(path)
        return found[:limit]
    finally:
        transport.close()


class Client:
    """One repository of one registry.

    ``registry`` is host[:port] as in a reference (docker.io is Docker Hub). ``credentials`` go before what Docker's
    and Podman's files hold. ``insecure`` allows plain HTTP and unverified TLS for this registry; loopback ones may
    speak plain HTTP anyway. ``ca_file`` is a PEM file of authorities instead of the system's. ``scopes`` are what a
    token shall be good for, if not only pulling.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        *,
        credentials: Credentials | None = None,
        insecure: bool = False,
        ca_file: str = "",
        policy: Policy | None = None,
        scopes: Sequence[str] = (),
    ) -> None:
        if not repository or not _NAME.issuperset(repository) or {"", ".", ".."} & set(repository.split("/")):
            raise NotFound("repository", printable(repository))
        self.registry = registry
        self.repository = repository
        self.transport, self._authorizer = connect(
            registry,
            repository,
            credentials=credentials,
            insecure=insecure,
            ca_file=ca_file,
            policy=policy,
            scopes=scopes,
        )

    def manifest(self, reference: str, *, quick: bool = False) -> tuple[Descriptor, bytes]:
        """Return descriptor and bytes of a manifest or index by tag or digest.

        ``quick``: when there is none, do not look which tags there are.

        The bytes have the digest that was asked for, or that the registry states; type, Content-Type and the
        document's own mediaType agree. Raises NotFound (with the tags there are), AuthError, RegistryError,
        DigestMismatch, SpecError, Unsupported for schema 1.
        """
        digest = usable(reference) if ":" in reference else None
        if digest is None and (not reference or not _TAG.issuperset(reference)):
            raise NotFound("tag", printable(reference))
        response = self._get(f"/manifests/{reference}", {"Accept": _ACCEPT})
        if response.status == 404 and quick:
            response.close()
            raise NotFound("manifest", f"{reference} of {self.registry}/{self.repository}")
        if response.status != 200:
            raise self.failure(response, "manifest", reference)
        what = f"manifest {reference} of {self.registry}/{self.repository}"
        header = response.header("Content-Type").partition(";")[0].strip().lower()
        stated = response.header("Docker-Content-Digest")
        encoding = response.header("Content-Encoding")
        data = response.document(DOCUMENT_LIMIT, "the manifest")
        if encoding.lower() not in {"", "identity"}:
            raise response.error(f"it is sent encoded as {printable(encoding, 40)}, which was not asked for")
        if digest is None:
            digest = sha256_of(data)
        else:
            verify_bytes(data, digest, len(data), what)
        _check_stated(stated, data, what)
        media_type = _media_type(data, header, what)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}, data

    def open_from(self, descriptor: Descriptor, offset: int) -> Readable:
        """Open a blob in the middle; what is read is not verified. Otherwise as ``open_blob``."""
        digest = usable(descriptor["digest"])
        return _Body(self, digest, descriptor["size"], f"blob {digest} of {self.registry}/{self.repository}", offset)

    def open_range(self, descriptor: Descriptor, start: int, size: int) -> Readable | None:
        """Open ``size`` bytes of a blob from ``start`` on, not verified; None when the registry gives no ranges.

        Raises as ``open_blob``.
        """
        digest = usable(descriptor["digest"])
        what = f"blob {digest} of {self.registry}/{self.repository}"
        if not 0 <= start < start + size <= descriptor["size"]:
            raise SizeMismatch(what, descriptor["size"], start + size, more=True)
        try:
            return _Body(self, digest, start + size, what, start, part=True)
        except _NoRanges:
            return None

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """Open a blob; what is read is verified, and a broken exchange goes on where it broke.

        Raises NotFound, AuthError, RegistryError, SizeMismatch; reading also DigestMismatch.
        """
        digest = usable(descriptor["digest"])
        what = f"blob {digest} of {self.registry}/{self.repository}"
        body = _Body(self, digest, descriptor["size"], what)
        return VerifiedReader(body, digest, descriptor["size"], what)

    def tags(self, *, limit: int = TAGS_LIMIT, pages: int = PAGE_LIMIT + 1) -> list[str]:
        """Return the repository's tags in the registry's order, at most ``limit`` of them from ``pages`` pages.

        Raises NotFound, AuthError, RegistryError; also for a list that goes on for longer than ``PAGE_LIMIT``
        pages, leads to another place or turns in a circle.
        """
        found: list[str] = []
        path = f"/v2/{self.repository}/tags/list"
        seen: set[str] = set()
        for page in range(1, PAGE_LIMIT + 1):
            response = self.transport.get(path, {"Accept": "application/json"})
            if response.status != 200:
                raise self.failure(response, "tag list", "")
            link = response.header("Link")
            found.extend(_strings(response, "tags"))
            if len(found) >= limit or not link or page >= pages:
                break
            path = next_page(link, response, self.transport)
            if path in seen:
                raise response.error("its list of tags leads back to itself")
            if page == PAGE_LIMIT:
                raise response.error(f"its list of tags has more than {PAGE_LIMIT} pages")
            seen.add(path)
        return found[:limit]

    def _get(self, path: str, headers: dict[str, str], *, tries: int | None = None) -> Response:
        return self.transport.get(f"/v2/{self.repository}{path}", headers, tries=tries)

    def failure(self, response: Response, kind: str, reference: str) -> Exception:
        """Return the error that an answer other than success means; closes the answer."""
        status, url = response.status, shown(response.url)
        code, message = reason(response)
        message = self._authorizer.scrub(message)
        said = f": {message}" if message else ""
        name = f"{self.registry}/{self.repository}"
        if status == 404:
            if code == "NAME_UNKNOWN" or kind == "tag list":
                return NotFound("repository", name)
            if kind == "manifest" and ":" not in reference:
                try:
                    tags = self.tags(limit=200, pages=2)
                except NotFound as missing:
                    return missing
                except RegistryError:
                    return NotFound("image", f"{name}:{reference}")
                among = some(tags, "no tag at all") if len(tags) < 200 else f"{some(tags[:10], '')} and many more"
                return NotFound("image", f"{name}:{reference}", among=among)
            return NotFound(kind, f"{reference} of {name}")
        if status == 401:
            return AuthError(response.method, url, status, f"it wants a login{said}")
        if status == 403:
            return AuthError(response.method, url, status, f"access is denied{said}")
        words = {
            408: "request time-out",
            429: "too many requests",
            503: "not available now",
        }
        return RegistryError(response.method, url, status, words.get(status, "the registry failed") + said)

    def abort(self) -> None:
        """Break off what other threads read."""
        self.transport.abort()

    def close(self) -> None:
        """Close all connections."""
        self.transport.close()


class _NoRanges(Exception):
    """The registry sends the whole blob where a part was asked for."""


class _Body:
    """The bytes of one blob, over as many requests as it takes; from ``offset`` to ``size``, where ``part`` ends it."""

    def __init__(
        self, client: Client, digest: Digest, size: int, what: str, offset: int = 0, *, part: bool = False
    ) -> None:
        self._client = client
        self._digest = digest
        self._size = size
        self._part = part
        self._what = what
        self._at = offset
        self._since = offset  # where the attempts began to count
        self._attempt = 1
        self._work = current()  # what this is part of; a thread of its own may do the reading
        self._response = self._open()
        if self._work is not None:
            self._work.watch(self._break_off)

    def _break_off(self) -> None:
        """End a read under way: the work it is part of is to stop."""
        self._response.shutdown()

    def _open(self) -> Response:
        """Ask for the bytes from ``_at`` on."""
        end = str(self._size - 1) if self._part else ""
        headers = {"Range": f"bytes={self._at}-{end}"} if self._at or self._part else {}
        response = self._client._get(f"/blobs/{self._digest}", headers)  # noqa: SLF001  # one module, one thing
        if response.status not in {200, 206}:
            raise self._client.failure(response, "blob", self._digest)
        if self._part and response.status == 200:
            response.close()
            raise _NoRanges
        length = response.header("Content-Length")
        expected = self._size - self._at if response.status == 206 else self._size
        if length.isascii() and length.isdigit() and int(length[:20]) > expected:
            response.close()
            raise SizeMismatch(self._what, expected, int(length[:20]))
        if response.status == 206:
            start = response.header("Content-Range").removeprefix("bytes ").partition("-")[0].strip()
            if start != str(self._at):
                response.close()
                raise response.error(f"asked for bytes from {self._at} on, it sends them from {printable(start, 20)}")
        elif self._at:
            self._skip(response)
        return response

    def _skip(self, response: Response) -> None:
        """Pass over what was read before, from a registry that cannot start in the middle."""
        left = self._at
        try:
            while left and (data := response.read(min(left, _STEP))):
                left -= len(data)
        except Broken:
            left = -1
        if left:
            response.close()
            raise response.error("the connection ended early, again and again")

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end; raises RegistryError, Interrupted."""
        if self._part:
            size = min(size, self._size - self._at)  # more than was asked for is nobody's
            if not size:
                return b""
        while True:
            try:
                data = self._response.read(size)
                broken = None if data or self._at >= self._size else Broken("the connection ended early", again=True)
            except Broken as error:
                if self._at >= self._size:
                    return b""  # all there: how the exchange ends is of no interest
                data, broken = b"", error
            if broken is None:
                self._at += len(data)
                return data
            self._again(broken)

    def _again(self, broken: Broken) -> None:
        """Go on after a failure, if that makes sense and has not been tried too often without getting further."""
        transport = self._client.transport
        transport.check_stopped()
        if self._work is not None:
            self._work.check()
        self._response.close()
        if self._at - self._since >= _STEP:
            self._attempt = 1
        elif not broken.again:
            raise self._response.error(broken.why, hint=broken.hint)
        self._since = self._at
        if self._attempt >= transport.policy.tries:
            raise self._response.error(f"{broken.why}, {self._attempt} times in a row after {self._at} bytes")
        if self._work is None:
            self._anew()
        else:
            self._work.run(self._anew)

    def _anew(self) -> None:
        self._client.transport.wait(self._attempt)
        self._attempt += 1
        self._response = self._open()

    def close(self) -> None:
        """End the exchange."""
        if self._work is not None:
            self._work.unwatch(self._break_off)
        self._response.close()


def _check_stated(stated: str, data: bytes, what: str) -> None:
    """Compare Docker-Content-Digest with the bytes, where it is a digest that can be checked."""
    try:
        digest = usable(stated)
    except InvalidDigest:
        return
    made = hasher(digest.algorithm)
    made.update(data)
    got = f"{digest.algorithm}:{made.hexdigest()}"
    if got != digest:
        raise DigestMismatch(what, digest, got)


def _media_type(data: bytes, header: str, what: str) -> str:
    """Return what kind of document this is; raises SpecError when header and document disagree or neither says."""
    value: Any = fastjson.loads(data, what)
    if not isinstance(value, dict):
        raise SpecError(what, [SpecFinding("", "must be an object")])
    said = value.get("mediaType")
    if header in mediatypes.SCHEMA1 or said in tuple(mediatypes.SCHEMA1) or value.get("schemaVersion") == 1:
        hint = "pull and push it with Docker 1.10 or newer, or skopeo"
        raise Unsupported(f"schema 1 image {what}", "Docker replaced it in 2016", hint=hint)
    if header in _KNOWN:
        if isinstance(said, str) and said != header:
            why = f"is {printable(said)}, but the registry announced {printable(header)}"
            raise SpecError(what, [SpecFinding("/mediaType", why)])
        return header
    if isinstance(said, str):
        if said not in _KNOWN:
            raise Unsupported(f"media type {printable(said)!r} of {what}", "it is not an image's")
        return said
    if "manifests" in value and "layers" not in value:
        return mediatypes.INDEX
    if "layers" in value and "manifests" not in value:
        return mediatypes.MANIFEST
    raise SpecError(what, [SpecFinding("", "is neither a manifest nor an index")])


def _strings(response: Response, member: str) -> list[str]:
    """Return a member of a JSON answer that is a list of strings."""
    try:
        value = fastjson.loads(response.document(DOCUMENT_LIMIT, f"the list of {member}"), f"list of {member}")
    except SpecError:
        raise response.error(f"its list of {member} is not JSON") from None
    found = value.get(member) if isinstance(value, dict) else None
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise response.error(f"its list of {member} is not a list of strings")
    return found


def next_page(link: str, response: Response, transport: Transport, what: str = "list of tags") -> str:
    """Return the URL of the next page out of a Link header (RFC 8288); raises RegistryError."""
    target, _, parameters = link.partition(";")
    target = target.strip()
    if not target.startswith("<") or not target.endswith(">") or "next" not in parameters:
        raise response.error(f"its {what} has a Link header that makes no sense")
    try:
        return check_next(response.url, target[1:-1], transport.origin)
    except Refused as refused:
        raise response.error(f"its {what} goes on at {shown(target[1:-1])}: {refused}") from None

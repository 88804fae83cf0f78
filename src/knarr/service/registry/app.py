"""The distribution API (distribution-spec 1.1) as an ASGI application over a store: pull, push, discovery, management.

Requests are answered in the event loop; what reads or writes files runs in threads. Blobs stream both ways, so memory
stays flat whatever their size. With ``upstream`` it is a pull-through cache of another registry.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import re
from errno import ENOSPC
from urllib.parse import parse_qs, quote

from knarr.base import fastjson
from knarr.base.errors import FileError, InvalidDigest, KnarrError
from knarr.content.digest import usable
from knarr.content.store import DOCUMENT_LIMIT
from knarr.service.registry.problems import Problem
from knarr.service.registry.repositories import Repositories
from knarr.service.registry.routes import Route, parse
from knarr.service.registry.uploads import Upload, Uploads
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from knarr.content.store import Store
    from knarr.service.registry.upstream import Upstream

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Headers = list[tuple[bytes, bytes]]

_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/.*)?")
_PAGE = 1000
_JSON = (b"content-type", b"application/json")


class Request:
    """One exchange: what was asked, and how to answer."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = {
            key: values[0]
            for key, values in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).items()
        }
        self.many = parse_qs(scope["query_string"].decode("latin-1"))
        self.headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        self.answered = False
        self._receive = receive
        self._send = send
        self._more = True

    async def chunk(self) -> bytes:
        """The next bytes of the body; none at its end. Raises Problem when the client went away."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._more = False
                raise Problem("BLOB_UPLOAD_INVALID", "the client went away")
            self._more = message.get("more_body", False)
            if message.get("body"):
                return bytes(message["body"])
        return b""

    async def body(self, limit: int) -> bytes:
        """The whole of a small body. Raises Problem."""
        parts: list[bytes] = []
        size = 0
        while data := await self.chunk():
            size += len(data)
            if size > limit:
                raise Problem("MANIFEST_INVALID", f"it has more than {limit} bytes", status=413)
            parts.append(data)
        return b"".join(parts)

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer; of HEAD its headers only."""
        if not any(key == b"content-length" for key, _ in headers):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def start(self, status: int, headers: Headers) -> None:
        """Send the headers of an answer."""
        self.answered = True
        headers = [(b"docker-distribution-api-version", b"registry/2.0"), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes, *, more: bool) -> None:
        """Send some of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


class Registry:
    """The application. ``login``: (user, password) everybody must give; "" for none. ``read_only`` refuses changes."""

    def __init__(
        self,
        store: Store,
        *,
        login: tuple[str, str] | None = None,
        read_only: bool = False,
        upstream: Upstream | None = None,
    ) -> None:
        self.store = store
        self.repositories = Repositories(store)
        self.uploads = None if read_only else Uploads(store)
        self.upstream = upstream
        self._login = login and b"Basic " + base64.b64encode(":".join(login).encode())

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request = Request(scope, receive, send)
        try:
            await self._handle(request)
        except Problem as problem:
            await _refuse(request, problem)
        except FileError as error:
            await _refuse(request, Problem("FAILED", str(error), status=507 if error.number == ENOSPC else 500))
        except KnarrError as error:
            await _refuse(request, Problem("FAILED", str(error)))

    async def _handle(self, request: Request) -> None:
        if self._login and not hmac.compare_digest(
            request.headers.get("authorization", "").encode("latin-1"), self._login
        ):
            raise Problem("UNAUTHORIZED", headers=((b"www-authenticate", b'Basic realm="knarr"'),))
        route = parse(request.path)
        handlers = {
            ("base", "GET"): self._base,
            ("base", "HEAD"): self._base,
            ("catalog", "GET"): self._catalog,
            ("tags", "GET"): self._tags,
            ("referrers", "GET"): self._referrers,
            ("manifest", "GET"): self._get_manifest,
            ("manifest", "HEAD"): self._get_manifest,
            ("manifest", "PUT"): self._put_manifest,
            ("manifest", "DELETE"): self._delete_manifest,
            ("blob", "GET"): self._get_blob,
            ("blob", "HEAD"): self._get_blob,
            ("blob", "DELETE"): self._delete_blob,
            ("uploads", "POST"): self._begin,
            ("upload", "GET"): self._status,
            ("upload", "PATCH"): self._patch,
            ("upload", "PUT"): self._finish,
            ("upload", "DELETE"): self._cancel,
        }
        handler = handlers.get((route.kind, request.method))
        if handler is None:
            raise Problem("UNSUPPORTED", f"{request.method} {request.path}")
        if request.method not in ("GET", "HEAD") and self.uploads is None:
            raise Problem("UNSUPPORTED", "this registry is read-only")
        await handler(request, route)

    # -- pull ----------------------------------------------------------------------------------------------

    async def _base(self, request: Request, _: Route) -> None:
        await request.answer(200, [_JSON], b"{}")

    async def _get_manifest(self, request: Request, route: Route) -> None:
        if self.upstream is not None:
            await asyncio.to_thread(self.upstream.manifest, route.name, route.reference)
        descriptor, data = await asyncio.to_thread(self.repositories.manifest, route.name, route.reference)
        headers = [
            (b"content-type", descriptor["mediaType"].encode()),
            (b"docker-content-digest", descriptor["digest"].encode()),
            (b"etag", f'"{descriptor["digest"]}"'.encode()),
            (b"content-length", b"%d" % len(data)),
        ]
        await request.answer(200, headers, data)

    async def _get_blob(self, request: Request, route: Route) -> None:
        digest = _digest(route.reference)
        if self.upstream is not None and not self.store.has(digest):
            await asyncio.to_thread(self.upstream.blob, route.name, digest)
        try:
            fd = os.open(self.store.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            raise Problem("BLOB_UNKNOWN", digest) from None
        try:
            size = os.fstat(fd).st_size
            first, end, status = _range(request.headers.get("range", ""), size)
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"docker-content-digest", digest.encode()),
                (b"etag", f'"{digest}"'.encode()),
                (b"accept-ranges", b"bytes"),
                (b"content-length", b"%d" % (end - first)),
            ]
            if status == 206:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (first, end - 1, size)))
            if request.method == "HEAD" or first == end:
                await request.answer(status, headers)
                return
            await request.start(status, headers)
            while first < end:
                data = await asyncio.to_thread(os.pread, fd, min(_CHUNK, end - first), first)
                if not data:
                    raise Problem("FAILED", f"{digest} is shorter than it was")
                first += len(data)
                await request.part(data, more=first < end)
        finally:
            os.close(fd)

    # -- push ----------------------------------------------------------------------------------------------

    async def _begin(self, request: Request, route: Route) -> None:
        mounted = request.query.get("mount", "")
        if mounted and self.store.has(_digest(mounted)):
            await request.answer(201, _at_blob(route.name, mounted))
            return
        digest = request.query.get("digest", "")
        if digest:
            _digest(digest)
        upload = self._uploads().begin()
        if not digest:
            upload.close()
            await request.answer(202, _at_upload(route.name, upload))
            return
        await self._take(request, upload, last=True)
        await asyncio.to_thread(upload.finish, digest)
        await request.answer(201, _at_blob(route.name, digest))

    async def _status(self, request: Request, route: Route) -> None:
        upload = self._uploads().go_on(route.reference)
        upload.close()
        await request.answer(204, _at_upload(route.name, upload))

    async def _patch(self, request: Request, route: Route) -> None:
        upload = self._uploads().go_on(route.reference)
        try:
            _check_order(request, upload)
            await self._take(request, upload, last=False)
        finally:
            upload.pause()
        await request.answer(202, _at_upload(route.name, upload))

    async def _finish(self, request: Request, route: Route) -> None:
        digest = request.query.get("digest", "")
        if not digest:
            raise Problem("DIGEST_INVALID", "the digest is missing")
        _digest(digest)
        upload = self._uploads().go_on(route.reference)
        try:
            _check_order(request, upload)
            await self._take(request, upload, last=False)
            await asyncio.to_thread(upload.finish, digest)
        finally:
            upload.pause()
        await request.answer(201, _at_blob(route.name, digest))

    async def _cancel(self, request: Request, route: Route) -> None:
        self._uploads().go_on(route.reference).cancel()
        await request.answer(204, [])

    async def _take(self, request: Request, upload: Upload, *, last: bool) -> None:
        """Write the body into an upload; ``last``: nobody can go on with it if it breaks off."""
        try:
            while data := await request.chunk():
                await asyncio.to_thread(upload.write, data)
        except BaseException:
            if last:
                upload.cancel()
            raise

    async def _put_manifest(self, request: Request, route: Route) -> None:
        data = await request.body(DOCUMENT_LIMIT)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        tags = request.many.get("tag", []) if ":" in route.reference else []
        descriptor, subject = await asyncio.to_thread(
            self.repositories.put_manifest, route.name, route.reference, media_type, data, tags
        )
        headers = [
            (b"location", f"/v2/{route.name}/manifests/{descriptor['digest']}".encode()),
            (b"docker-content-digest", descriptor["digest"].encode()),
        ]
        if subject:
            headers.append((b"oci-subject", subject.encode()))
        headers += [(b"oci-tag", tag.encode()) for tag in tags]
        await request.answer(201, headers)

    # -- discovery and management --------------------------------------------------------------------------

    async def _catalog(self, request: Request, _: Route) -> None:
        names = await asyncio.to_thread(self.repositories.names)
        page, headers = _page(sorted(names), request, "/v2/_catalog")
        await request.answer(200, headers, fastjson.dumps({"repositories": page}))

    async def _tags(self, request: Request, route: Route) -> None:
        tags = await asyncio.to_thread(self.repositories.tags, route.name)
        page, headers = _page(tags, request, f"/v2/{route.name}/tags/list")
        await request.answer(200, headers, fastjson.dumps({"name": route.name, "tags": page}))

    async def _referrers(self, request: Request, route: Route) -> None:
        wanted = request.query.get("artifactType", "")
        found = await asyncio.to_thread(self.repositories.referrers, route.name, _digest(route.reference), wanted)
        headers = [(b"content-type", mediatypes.INDEX.encode())]
        if wanted:
            headers.append((b"oci-filters-applied", b"artifactType"))
        index = {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": found}
        await request.answer(200, headers, fastjson.dumps(index))

    async def _delete_manifest(self, request: Request, route: Route) -> None:
        await asyncio.to_thread(self.repositories.delete_manifest, route.name, route.reference)
        await request.answer(202, [])

    async def _delete_blob(self, request: Request, route: Route) -> None:
        await asyncio.to_thread(self.repositories.delete_blob, _digest(route.reference))
        await request.answer(202, [])

    def _uploads(self) -> Uploads:
        if self.uploads is None:
            raise Problem("UNSUPPORTED", "this registry is read-only")
        return self.uploads


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse(request: Request, problem: Problem) -> None:
    """Answer with an error, unless an answer is under way: then the connection has to break."""
    if request.answered:
        raise problem
    await request.answer(problem.status, [_JSON, *problem.headers], problem.document())


def _digest(text: str) -> str:
    try:
        return usable(text)
    except InvalidDigest as error:
        raise Problem("DIGEST_INVALID", str(error)) from None


def _range(asked: str, size: int) -> tuple[int, int, int]:
    """First byte, end and status for a Range header (RFC 9110, 14.2); several ranges are answered with everything."""
    found = _RANGE.fullmatch(asked.strip())
    if not found or found.groups() == ("", ""):
        return 0, size, 200
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= end:
        raise Problem("SIZE_INVALID", asked, status=416, headers=((b"content-range", b"bytes */%d" % size),))
    return start, end, 206


def _check_order(request: Request, upload: Upload) -> None:
    """Chunks come in order, each as long as it says. Raises Problem (416)."""
    said = request.headers.get("content-range", "")
    if not said:
        return
    found = _CONTENT_RANGE.fullmatch(said.strip())
    length = request.headers.get("content-length", "")
    if (
        not found
        or int(found.group(1)) != upload.size
        or (length.isdigit() and int(found.group(2)) + 1 - int(found.group(1)) != int(length))
    ):
        raise Problem(
            "BLOB_UPLOAD_INVALID", f"{said}, but {upload.size} bytes are here", status=416, headers=_reached(upload)
        )


def _reached(upload: Upload) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"range", b"0-%d" % max(0, upload.size - 1)),)


def _at_upload(name: str, upload: Upload) -> Headers:
    return [
        (b"location", f"/v2/{name}/blobs/uploads/{upload.session}".encode()),
        (b"docker-upload-uuid", upload.session.encode()),
        *_reached(upload),
    ]


def _at_blob(name: str, digest: str) -> Headers:
    return [
        (b"location", f"/v2/{name}/blobs/{digest}".encode()),
        (b"docker-content-digest", digest.encode()),
    ]


def _page(names: list[str], request: Request, path: str) -> tuple[list[str], Headers]:
    """The part of a sorted list that ``n`` and ``last`` ask for, and a Link to the rest."""
    last = request.query.get("last", "")
    if last:
        names = [name for name in names if name > last]
    asked = request.query.get("n", "")
    if asked and not asked.isdigit():
        raise Problem("UNSUPPORTED", f"n={asked}", status=400)
    count = min(int(asked), _PAGE) if asked else _PAGE
    page = names[:count]
    headers: Headers = [_JSON]
    if len(names) > count and page:
        headers.append((b"link", f'<{path}?n={count}&last={quote(page[-1], safe="")}>; rel="next"'.encode()))
    return page, headers

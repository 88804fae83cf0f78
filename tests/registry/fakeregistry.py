"""A small registry on loopback that can be told to misbehave, and what the tests push and pull."""

from __future__ import annotations

import gzip
import json
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs

from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from knarr.content.store import Store

REPOSITORY = "lib/thing"


def digest_of(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


class Sample:
    """An image: blobs by digest, descriptor and bytes of the manifest. Layers are gzip; nothing here unpacks them."""

    def __init__(self, *sizes: int, seed: int = 0, architecture: str = "amd64", docker: bool = False) -> None:
        plain = [random.Random(seed + number).randbytes(size) for number, size in enumerate(sizes or (1000,))]
        layers = [gzip.compress(data, 1, mtime=0) for data in plain]
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in plain]},
            }
        ).encode()
        self.blobs = {digest_of(data): data for data in (config, *layers)}
        types = (
            (mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_CONFIG, mediatypes.DOCKER_LAYER_GZIP)
            if docker
            else (mediatypes.MANIFEST, mediatypes.CONFIG, mediatypes.LAYER_GZIP)
        )
        self.media_type = types[0]
        self.config = self._descriptor(config, types[1])
        self.layers = [self._descriptor(data, types[2]) for data in layers]
        self.document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": types[0],
            "config": self.config,
            "layers": self.layers,
        }
        self.seal()

    def seal(self, **changes: Any) -> Sample:
        self.document.update(changes)
        self.data = json.dumps(self.document).encode()
        self.digest = digest_of(self.data)
        self.descriptor = self._descriptor(self.data, self.media_type)
        return self

    @staticmethod
    def _descriptor(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def into(self, store: Store, name: str) -> None:
        """Store it under a name."""
        for part in (self.config, *self.layers):
            store.put(self.blobs[part["digest"]], part)  # type: ignore[arg-type]  # a descriptor as a plain dict
        store.tag(name, store.put(self.data, media_type=self.media_type))


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    method: str = "GET"
    body: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: 40 ms each time otherwise

    @property
    def registry(self) -> FakeRegistry:
        assert isinstance(self.server, Server)
        return self.server.registry

    body: bytes = b""

    def do_GET(self) -> None:
        registry = self.registry
        length = int(self.headers.get("Content-Length") or 0)
        names = {name.lower(): value for name, value in self.headers.items()}
        registry.log.append(Request(self.path, names, self.command, length))
        for prefix, rule in list(registry.early):  # before the body is read
            if self.path.startswith(prefix) and rule(self):
                return
        self.body = self.rfile.read(length)
        for prefix, rule in list(registry.rules):
            if self.path.startswith(prefix) and rule(self):
                return
        if self.command in {"GET", "HEAD"}:
            registry.answer(self)
        else:
            registry.take(self)

    do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815  # http.server asks for these names

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Answer, and say so; header names are written with _ for -."""
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if "Content-Length" not in names and "Transfer-Encoding" not in names:
            names["Content-Length"] = str(len(body))
        for name, value in names.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def raw(self, data: bytes) -> bool:
        """Send bytes as they are and close."""
        self.wfile.write(data)
        self.close_connection = True
        return True

    def drop(self) -> bool:
        """Reset the connection, a moment after what was sent (a reset throws away what was not read yet)."""
        time.sleep(0.05)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: FakeRegistry

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients are meant to go away."""


class FakeRegistry:
    """Serves samples; ``rules`` are (path prefix, function of the handler) that may answer first by returning True."""

    def __init__(self, certificate: tuple[str, str] | None = None) -> None:
        self.log: list[Request] = []
        self.rules: list[tuple[str, Callable[[Handler], bool]]] = []
        self.early: list[tuple[str, Callable[[Handler], bool]]] = []
        self.uploads: dict[str, bytearray] = {}
        self.pieces = True  # takes PATCH
        self.least = 0  # OCI-Chunk-Min-Length
        self.knows_referrers = True
        self.mountable: dict[str, bytes] = {}  # blobs of other repositories
        self.committed: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.tags: list[str] = []
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.registry = self
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def add(self, tag: str, sample: Sample) -> Sample:
        self.blobs.update(sample.blobs)
        self.manifests[sample.digest] = (sample.data, sample.media_type)
        self.put(tag, sample.data, sample.media_type)
        return sample

    def put(self, tag: str, data: bytes, media_type: str) -> None:
        self.manifests[tag] = self.manifests[digest_of(data)] = (data, media_type)
        if tag not in self.tags and ":" not in tag:
            self.tags.append(tag)

    def rule(self, path: str, function: Callable[[Handler], bool]) -> None:
        self.rules.append((path, function))

    def answer(self, handler: Handler) -> None:
        """Answer as a registry should."""
        kind, _, reference = handler.path.partition("?")[0].removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if kind == "blobs" and reference.startswith("uploads/") and reference[8:] in self.uploads:
            have = len(self.uploads[reference[8:]])
            handler.reply(204, Location=handler.path, Range=f"0-{max(have - 1, 0)}")
        elif kind == "referrers" and self.knows_referrers:
            self._list_referrers(handler, reference)
        elif handler.path == "/v2/":
            handler.reply(200, b"{}")
        elif handler.path.startswith("/v2/_catalog"):
            handler.reply(200, json.dumps({"repositories": [REPOSITORY]}).encode())
        elif kind == "manifests" and reference in self.manifests:
            data, media_type = self.manifests[reference]
            handler.reply(200, data, Content_Type=media_type, Docker_Content_Digest=digest_of(data))
        elif kind == "blobs" and reference in self.blobs:
            data = self.blobs[reference]
            wanted = handler.headers.get("Range", "")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(data)) + 1, len(data))
                handler.reply(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")
            else:
                handler.reply(200, data)
        elif handler.path.startswith(f"/v2/{REPOSITORY}/tags/list"):
            handler.reply(200, json.dumps({"name": REPOSITORY, "tags": self.tags}).encode())
        else:
            code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            handler.reply(404, json.dumps({"errors": [{"code": code, "message": "it is unknown"}]}).encode())

    def _list_referrers(self, handler: Handler, digest: str) -> None:
        found = []
        for data, media_type in {key: value for key, value in self.manifests.items() if ":" in key}.values():
            document = json.loads(data)
            if (document.get("subject") or {}).get("digest") == digest:
                kind = document.get("artifactType") or document["config"]["mediaType"]
                found.append(
                    {"mediaType": media_type, "digest": digest_of(data), "size": len(data), "artifactType": kind}
                )
        index = {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": found}
        handler.reply(200, json.dumps(index).encode(), Content_Type=mediatypes.INDEX)

    def take(self, handler: Handler) -> None:
        """Take what is sent, as a registry should."""
        path, _, text = handler.path.partition("?")
        query = {key: values[0] for key, values in parse_qs(text).items()}
        kind, _, reference = path.removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if handler.command == "POST" and reference == "uploads/":
            self._begin(handler, query)
        elif handler.command == "PATCH" and reference[8:] in self.uploads:
            upload = self.uploads[reference[8:]]
            start = int(handler.headers.get("Content-Range", "0-").partition("-")[0])
            if not self.pieces:
                handler.reply(405, b'{"errors": [{"code": "UNSUPPORTED", "message": "no"}]}')
            elif start != len(upload):
                handler.reply(416, Location=handler.path, Range=f"0-{len(upload) - 1}")
            else:
                upload += handler.body
                handler.reply(202, Location=path, Range=f"0-{len(upload) - 1}")
        elif handler.command == "PUT" and kind == "blobs" and reference[8:] in self.uploads:
            data = bytes(self.uploads.pop(reference[8:])) + handler.body
            if digest_of(data) != query.get("digest"):
                handler.reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "wrong digest"}]}')
            else:
                self.blobs[query["digest"]] = data
                self.committed.append(query["digest"])
                handler.reply(
                    201, Location=f"/v2/{REPOSITORY}/blobs/{query['digest']}", Docker_Content_Digest=query["digest"]
                )
        elif handler.command == "PUT" and kind == "manifests":
            self._take_manifest(handler, reference)
        elif handler.command == "DELETE" and kind == "manifests" and reference in self.manifests:
            del self.manifests[reference]
            handler.reply(202)
        else:
            handler.reply(404, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "unknown"}]}')

    def _begin(self, handler: Handler, query: dict[str, str]) -> None:
        if query.get("mount") in self.mountable and query.get("from"):
            self.blobs[query["mount"]] = self.mountable[query["mount"]]
            handler.reply(201, Location=f"/v2/{REPOSITORY}/blobs/{query['mount']}")
            return
        if "digest" in query and handler.body:
            self.blobs[query["digest"]] = handler.body
            handler.reply(201, Location=f"/v2/{REPOSITORY}/blobs/{query['digest']}")
            return
        name = str(len(self.log))
        self.uploads[name] = bytearray()
        least = {"OCI_Chunk_Min_Length": str(self.least)} if self.least else {}
        handler.reply(202, Location=f"/v2/{REPOSITORY}/blobs/uploads/{name}?state=a%20b", Range="0-0", **least)  # type: ignore[arg-type]

    def _take_manifest(self, handler: Handler, reference: str) -> None:
        document = json.loads(handler.body)
        media_type = handler.headers["Content-Type"]
        parts = [document["config"], *document["layers"]] if "layers" in document else []
        missing = [part["digest"] for part in parts if part["digest"] not in self.blobs]
        missing += [one["digest"] for one in document.get("manifests", []) if one["digest"] not in self.manifests]
        if missing and not reference.startswith("sha256-"):
            message = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": missing[0]}]}
            handler.reply(404, json.dumps(message).encode())
            return
        self.put(reference, handler.body, media_type)
        more = {"OCI_Subject": document["subject"]["digest"]} if "subject" in document and self.knows_referrers else {}
        handler.reply(201, Docker_Content_Digest=digest_of(handler.body), **more)

    def asked(self, part: str) -> list[Request]:
        """Return the requests whose path holds ``part``."""
        return [request for request in self.log if part in request.path]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RealRegistry(NamedTuple):
    """A running docker-registry; ``push`` fills it with skopeo."""

    host: str

    def push(self, store: str, name: str, target: str, *options: str) -> None:
        command = ["skopeo", "copy", "-q", "--dest-tls-verify=false", *options]
        done = subprocess.run(
            [*command, f"oci:{store}:{name}", f"docker://{self.host}/{target}"], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


def made_certificate(where: Path) -> tuple[str, str]:
    """Make a self-signed certificate for 127.0.0.1, localhost and auth.example; return the paths of it and its key."""
    certificate, key = str(where / "cert.pem"), str(where / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"),
            *(
                "-addext",
                "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:auth.example",
                "-keyout",
                key,
                "-out",
                certificate,
            ),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key

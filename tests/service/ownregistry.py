"""A registry of ours, started as people start it, and a small client of the bare API."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import urllib3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Server:
    """``knarr registry serve`` on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "knarr.cli.main", "registry", "serve", "--addr", "127.0.0.1:0", *options]
        self.process = subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(f"serving {folder} at http"), line
        self.url = line.split()[-1]
        self.host = self.url.partition("//")[2]
        self.http = urllib3.PoolManager(retries=False)

    def __call__(
        self, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """One request; ``content_type`` and so on are headers."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        url = path if path.startswith("http") else f"{self.url}{path}"
        return self.http.request(method, url, body=body, headers=named, redirect=False)

    def error(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        """Status and code of a refused request."""
        answer = self(method, path, body, **headers)
        return answer.status, json.loads(answer.data)["errors"][0]["code"]

    def blob(self, repository: str, data: bytes) -> dict[str, Any]:
        """Push a blob in one request; its descriptor."""
        answer = self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest(data)}", data)
        assert answer.status == 201, answer.data
        return {"mediaType": "application/octet-stream", "digest": digest(data), "size": len(data)}

    def manifest(self, repository: str, reference: str, **more: Any) -> bytes:
        """Push a small manifest."""
        config = self.blob(repository, b"{}") | {"mediaType": "application/vnd.oci.empty.v1+json"}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [config], **more}
        data = json.dumps(document).encode()
        answer = self("PUT", f"/v2/{repository}/manifests/{reference or digest(data)}", data, content_type=MANIFEST)
        assert answer.status == 201, answer.data
        return data

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.http.clear()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)

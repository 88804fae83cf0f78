"""``knarr registry serve``: the API by hand, other people's clients, a cache of another registry."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import urllib3
from ownregistry import INDEX, MANIFEST, Server, digest, serving

from knarr.base.errors import AuthError, NotFound
from knarr.content.store import Store
from knarr.registry.client import Client
from knarr.registry.credentials import Credentials
from knarr.service.registry.problems import Problem
from knarr.service.registry.repositories import split
from knarr.service.registry.routes import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BIG = random.Random(1).randbytes(3_000_000)


def knarr(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "knarr.cli.main", *words], capture_output=True, text=True, check=False, timeout=60
    )


# -- paths and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "name", "reference"),
    [
        ("/v2/", "base", "", ""),
        ("/v2/a/manifests/b/manifests/1", "manifest", "a/manifests/b", "1"),
        ("/v2/a/blobs/uploads/", "uploads", "a", ""),
        ("/v2/a/blobs/uploads/x", "upload", "a", "x"),
        ("/v2/a/blobs/sha256:1", "blob", "a", "sha256:1"),
        ("/v2/127.0.0.1/a/tags/list", "tags", "127.0.0.1/a", ""),
        ("/v2/a__b/c.d-e/referrers/sha256:1", "referrers", "a__b/c.d-e", "sha256:1"),
    ],
)
def test_paths(path: str, kind: str, name: str, reference: str) -> None:
    route = parse(path)
    assert (route.kind, route.name, route.reference) == (kind, name, reference)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", "UNSUPPORTED"),
        ("/v1/", "UNSUPPORTED"),
        ("/v2/A/tags/list", "NAME_INVALID"),
        ("/v2/../etc/tags/list", "NAME_INVALID"),
        ("/v2/a//b/tags/list", "NAME_INVALID"),
        (f"/v2/{'a' * 256}/tags/list", "NAME_INVALID"),
        ("/v2/a.\n/tags/list", "NAME_INVALID"),
    ],
)
def test_paths_that_are_none(path: str, code: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(path)
    assert caught.value.code == code


def test_names_of_the_store() -> None:
    assert split("docker.io/library/busybox:1") == ("docker.io/library/busybox", "1")
    assert split("a/b@sha256:1") == ("a/b", "sha256:1")
    assert split("localhost:5000/a:1@sha256:1") == ("localhost:5000/a", "sha256:1")
    assert split("plain") == ("", "")
    assert split("localhost:5000/a") == ("", "")


# -- push and pull -----------------------------------------------------------------------------------------------------


def test_a_blob_in_every_way(server: Server) -> None:
    data, name = BIG, digest(BIG)
    assert server.error("GET", f"/v2/a/blobs/{name}") == (404, "BLOB_UNKNOWN")
    begun = server("POST", "/v2/a/blobs/uploads/")
    assert (begun.status, begun.headers["Range"]) == (202, "0-0")
    place = begun.headers["Location"]
    half = len(data) // 2
    first = server("PATCH", place, data[:half], content_range=f"0-{half - 1}")
    assert (first.status, first.headers["Range"]) == (202, f"0-{half - 1}")
    assert server.error("PATCH", place, b"x" * 10, content_range="0-9")[0] == 416
    assert server.error("PATCH", place, b"x" * 10, content_range=f"{half}-{half + 10}")[0] == 416
    assert server("GET", place).headers["Range"] == f"0-{half - 1}"
    assert server("PUT", f"{place}?digest={name}", data[half:]).status == 201
    assert server.error("GET", place) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert server("GET", f"/v2/b/blobs/{name}").data == data
    head = server("HEAD", f"/v2/a/blobs/{name}")
    assert (head.status, head.headers["Content-Length"], head.data) == (200, str(len(data)), b"")
    assert server("POST", f"/v2/c/blobs/uploads/?mount={name}&from=a").status == 201
    assert server("POST", f"/v2/c/blobs/uploads/?mount={digest(b'none')}&from=a").status == 202
    wide = digest(b"wide", "sha512")
    assert server("POST", f"/v2/a/blobs/uploads/?digest={wide}", b"wide").status == 201
    assert server("GET", f"/v2/a/blobs/{wide}").data == b"wide"
    chunks = (BIG[at : at + 100_000] for at in range(0, len(BIG), 100_000))
    other = server("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert server("PATCH", other, chunks).status == 202  # chunked transfer: no length
    assert server("DELETE", other).status == 204


def test_wrong_bytes_are_not_kept(server: Server) -> None:
    wrong = digest(b"other")
    assert server.error("POST", f"/v2/a/blobs/uploads/?digest={wrong}", b"data") == (400, "DIGEST_INVALID")
    assert server.error("POST", "/v2/a/blobs/uploads/?digest=md5:1", b"data") == (400, "DIGEST_INVALID")
    place = server("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert server.error("PUT", f"{place}?digest={wrong}", b"data") == (400, "DIGEST_INVALID")
    assert server.error("PUT", place, b"") == (400, "DIGEST_INVALID")
    assert server("GET", f"/v2/a/blobs/{wrong}").status == 404
    assert os.listdir(server.folder / ".uploads") == []
    assert list(Store.open(str(server.folder)).blobs()) == []


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-0", 206, BIG[:1]),
        ("bytes=1000000-", 206, BIG[1_000_000:]),
        ("bytes=-5", 206, BIG[-5:]),
        ("bytes=10-99999999999", 206, BIG[10:]),
        ("bytes=5-2", 416, None),
        ("bytes=3000000-", 416, None),
        ("bytes=0-1,5-6", 200, BIG),
        ("lines=1-2", 200, BIG),
    ],
)
def test_ranges(server: Server, asked: str, status: int, part: bytes | None) -> None:
    server.blob("a", BIG)
    answer = server("GET", f"/v2/a/blobs/{digest(BIG)}", range=asked)
    assert answer.status == status
    if part is not None:
        assert answer.data == part


def test_manifests(server: Server) -> None:
    data = server.manifest("a/b", "1")
    name = digest(data)
    for reference in ("1", name):
        answer = server("GET", f"/v2/a/b/manifests/{reference}")
        assert (answer.data, answer.headers["Content-Type"]) == (data, MANIFEST)
        assert answer.headers["Docker-Content-Digest"] == name
    assert server("HEAD", "/v2/a/b/manifests/1").headers["Content-Length"] == str(len(data))
    put = server("PUT", f"/v2/a/b/manifests/{name}?tag=x&tag=y", data, content_type=MANIFEST)
    assert put.headers.getlist("OCI-Tag") == ["x", "y"]
    assert json.loads(server("GET", "/v2/a/b/tags/list").data) == {"name": "a/b", "tags": ["1", "x", "y"]}
    page = server("GET", "/v2/a/b/tags/list?n=2")
    assert json.loads(page.data)["tags"] == ["1", "x"]
    assert page.headers["Link"] == '</v2/a/b/tags/list?n=2&last=x>; rel="next"'
    assert json.loads(server("GET", "/v2/a/b/tags/list?n=2&last=x").data)["tags"] == ["y"]
    assert json.loads(server("GET", "/v2/_catalog").data) == {"repositories": ["a/b"]}
    assert server.error("GET", "/v2/other/manifests/1") == (404, "MANIFEST_UNKNOWN")
    assert server.error("GET", f"/v2/other/manifests/{name}") == (404, "MANIFEST_UNKNOWN")
    assert server.error("GET", "/v2/other/tags/list") == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    ("reference", "kind", "body", "refusal"),
    [
        ("1", MANIFEST, b"no json", (400, "MANIFEST_INVALID")),
        ("1", MANIFEST, b"{}", (400, "MANIFEST_INVALID")),
        ("1", "text/plain", b'{"schemaVersion":2}', (400, "MANIFEST_INVALID")),
        (
            "1",
            INDEX,
            b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % MANIFEST.encode(),
            (400, "MANIFEST_INVALID"),
        ),
        (".x", INDEX, b'{"schemaVersion":2,"manifests":[]}', (400, "TAG_INVALID")),
        (digest(b""), INDEX, b'{"schemaVersion":2,"manifests":[]}', (400, "DIGEST_INVALID")),
        ("sha256:1", INDEX, b'{"schemaVersion":2,"manifests":[]}', (400, "DIGEST_INVALID")),
        ("1", INDEX, b" " * (5 << 20), (413, "MANIFEST_INVALID")),
    ],
)
def test_bad_manifests(server: Server, reference: str, kind: str, body: bytes, refusal: tuple[int, str]) -> None:
    assert server.error("PUT", f"/v2/a/manifests/{reference}", body, content_type=kind) == refusal
    assert Store.open(str(server.folder)).tags() == {}


def test_a_manifest_needs_its_blobs_an_index_does_not(server: Server) -> None:
    there = server.blob("a", b"{}")
    missing = {"mediaType": "x/y", "digest": digest(b"missing"), "size": 7}
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": there, "layers": [missing]}).encode()
    assert server.error("PUT", "/v2/a/manifests/1", body, content_type=MANIFEST) == (404, "MANIFEST_BLOB_UNKNOWN")
    entry = {"mediaType": MANIFEST, "digest": digest(b"missing"), "size": 7}
    sparse = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    assert server("PUT", "/v2/a/manifests/1", sparse, content_type=INDEX).status == 201


def test_referrers(server: Server) -> None:
    image = server.manifest("a", "1")
    subject = {"mediaType": MANIFEST, "digest": digest(image), "size": len(image)}
    empty = json.loads(server("GET", f"/v2/a/referrers/{digest(image)}").data)
    assert (empty["mediaType"], empty["manifests"]) == (INDEX, [])
    one = server.manifest("a", "", subject=subject, artifactType="a/sbom", annotations={"k": "v"})
    two = server.manifest("a", "", subject=subject, artifactType="a/signature")
    server.manifest("b", "", subject=subject, artifactType="a/other")
    listed = json.loads(server("GET", f"/v2/a/referrers/{digest(image)}").data)["manifests"]
    assert {entry["digest"] for entry in listed} == {digest(one), digest(two)}
    assert {"artifactType": "a/sbom", "annotations": {"k": "v"}}.items() <= next(
        entry for entry in listed if entry["digest"] == digest(one)
    ).items()
    filtered = server("GET", f"/v2/a/referrers/{digest(image)}?artifactType=a/sbom")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in json.loads(filtered.data)["manifests"]] == [digest(one)]
    put = server("PUT", f"/v2/a/manifests/{digest(two)}", two, content_type=MANIFEST)
    assert put.headers["OCI-Subject"] == digest(image)
    assert server("DELETE", f"/v2/a/manifests/{digest(one)}").status == 202
    assert len(json.loads(server("GET", f"/v2/a/referrers/{digest(image)}").data)["manifests"]) == 1


def test_deleting(server: Server) -> None:
    data = server.manifest("a", "1")
    assert server("PUT", "/v2/a/manifests/2", data, content_type=MANIFEST).status == 201
    assert server.error("DELETE", f"/v2/a/blobs/{digest(b'{}')}") == (405, "DENIED")
    assert server("DELETE", "/v2/a/manifests/1").status == 202
    assert server("GET", "/v2/a/manifests/1").status == 404
    assert server("GET", f"/v2/a/manifests/{digest(data)}").status == 200
    assert server("DELETE", f"/v2/a/manifests/{digest(data)}").status == 202
    assert server("GET", "/v2/a/manifests/2").status == 404
    assert server.error("DELETE", f"/v2/a/manifests/{digest(data)}")[0] == 404
    assert server("DELETE", f"/v2/a/blobs/{digest(b'{}')}").status == 202
    assert server("GET", f"/v2/a/blobs/{digest(b'{}')}").status == 404


# -- who may do what ---------------------------------------------------------------------------------------------------


def test_a_login(folder: Path, tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("me:secret:word\n")
    login.chmod(0o644)
    refused = knarr("registry", "serve", "--login-file", str(login), str(folder))
    assert refused.returncode == 125
    assert f"others can read it: chmod 600 {login}" in refused.stderr
    login.chmod(0o600)
    with serving(folder, "--login-file", str(login)) as server:
        answer = server("GET", "/v2/")
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="knarr"')
        for word, status in (("me:secret:word", 200), ("me:other", 401), ("x", 401)):
            text = base64.b64encode(word.encode()).decode()
            assert server("GET", "/v2/", authorization=f"Basic {text}").status == status
        client = Client(server.host, "a", credentials=Credentials("me", "wrong"))
        with pytest.raises(AuthError):
            client.tags()
        client.close()


def test_read_only(folder: Path) -> None:
    with serving(folder) as server:
        data = server.manifest("a", "1")
    before = sorted(str(path) for path in folder.rglob("*"))
    with serving(folder, "--read-only") as server:
        assert server("GET", "/v2/a/manifests/1").data == data
        assert server.error("POST", "/v2/a/blobs/uploads/") == (405, "UNSUPPORTED")
        assert server.error("DELETE", "/v2/a/manifests/1") == (405, "UNSUPPORTED")
        assert server.error("PUT", "/v2/a/manifests/1", data, content_type=MANIFEST) == (405, "UNSUPPORTED")
    assert sorted(str(path) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--addr", "nowhere"], "is not HOST:PORT"),
        (["--addr", "127.0.0.1:99999"], "is not HOST:PORT"),
        (["--addr", "0.0.0.0:0"], "without TLS everybody could listen"),
        (["--addr", "192.0.2.1:5000"], "cannot listen on 192.0.2.1:5000"),
        (["--tls-cert", "/nowhere"], "belong together"),
        (["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "cannot read /nowhere"),
        (["--read-only"], "does not exist"),
        (["--login-file", "/nowhere"], "cannot read /nowhere"),
    ],
)
def test_bad_options(folder: Path, options: list[str], sentence: str) -> None:
    done = knarr("registry", "serve", *options, str(folder))
    assert done.returncode == 125
    assert sentence in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_tls(folder: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with serving(folder, "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        client = Client(server.host, "a", ca_file=str(certificate))
        with pytest.raises(NotFound):
            client.tags()
        client.close()


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_upload_goes_on_after_a_restart(folder: Path, number: int) -> None:
    half = len(BIG) // 2
    with serving(folder) as server:
        place = server("POST", "/v2/a/blobs/uploads/").headers["Location"]
        assert server("PATCH", place, BIG[:half]).status == 202
        assert server.stop(number) in (0, -number, 128 + number)
    with serving(folder) as server:
        assert server("GET", place).headers["Range"] == f"0-{half - 1}"
        assert server("PUT", f"{place}?digest={digest(BIG)}", BIG[half:]).status == 201
        assert server("GET", f"/v2/a/blobs/{digest(BIG)}").data == BIG


def test_a_client_that_breaks_off(server: Server) -> None:
    """A push in one request that ends early leaves nothing; one in chunks keeps what came."""

    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise OSError("away")

    with pytest.raises(urllib3.exceptions.ProtocolError, match="away"):
        server("POST", f"/v2/a/blobs/uploads/?digest={digest(BIG)}", broken())
    deadline = time.monotonic() + 10
    while os.listdir(server.folder / ".uploads") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert os.listdir(server.folder / ".uploads") == []
    assert server("GET", "/v2/").status == 200


# -- other people's clients --------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not shutil.which("skopeo") or not shutil.which("umoci"), reason="skopeo and umoci are not installed"
)
def test_skopeo_pushes_and_pulls_and_we_run_what_it_pushed(server: Server, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    for command in (
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", f"{layout}:one"],
        ["umoci", "config", "--image", f"{layout}:one", "--config.label", "a=b"],
        ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:one", f"docker://{server.host}/some/image:one"],
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{server.host}/some/image:one", f"dir:{tmp_path}/copy"],
        ["skopeo", "delete", "--tls-verify=false", f"docker://{server.host}/some/image:one"],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        if command[1] == "copy" and command[-1].startswith("docker:"):
            client = Client(server.host, "some/image")
            descriptor, data = client.manifest("one")
            assert client.tags() == ["one"]
            client.close()
            assert Store.open(str(server.folder)).resolve("some/image:one")["digest"] == descriptor["digest"]
    assert (tmp_path / "copy/manifest.json").read_bytes() == data
    assert server("GET", "/v2/some/image/manifests/one").status == 404


# -- a cache of another registry ---------------------------------------------------------------------------------------


def test_a_pull_through_cache(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as origin:
        first = origin.manifest("a/b", "1")
        assert origin.manifest("c/d", "1") == first
        blob = origin.blob("a/b", BIG)
        config = origin.blob("a/b", b"{}") | {"mediaType": "application/vnd.oci.empty.v1+json"}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [blob]}
        second = json.dumps(document).encode()
        with serving(tmp_path / "cache", "--proxy", origin.host) as cache:
            assert cache("GET", "/v2/a/b/manifests/1").data == first
            # Its bytes are here, but not as another repository's.
            assert cache("GET", f"/v2/c/d/manifests/{digest(first)}").data == first
            assert cache.error("GET", f"/v2/e/f/manifests/{digest(first)}") == (404, "MANIFEST_UNKNOWN")
            assert origin("PUT", "/v2/a/b/manifests/1", second, content_type=MANIFEST).status == 201
            assert cache("GET", "/v2/a/b/manifests/1").data == second  # it asks for news
            assert cache("GET", f"/v2/a/b/blobs/{digest(BIG)}").data == BIG
            assert cache.error("GET", "/v2/a/b/manifests/none") == (404, "MANIFEST_UNKNOWN")
            assert cache.error("GET", f"/v2/a/b/blobs/{digest(b'none')}") == (404, "BLOB_UNKNOWN")
        origin.stop()
        with serving(tmp_path / "cache", "--proxy", origin.host) as cache:  # the registry behind is gone
            assert cache("GET", "/v2/a/b/manifests/1").data == second
            assert cache("GET", f"/v2/a/b/manifests/{digest(first)}").data == first
            assert cache("GET", f"/v2/a/b/blobs/{digest(BIG)}").data == BIG
            assert cache.error("GET", "/v2/a/b/manifests/2") == (502, "UNAVAILABLE")

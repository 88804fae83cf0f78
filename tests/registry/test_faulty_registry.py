"""Registries that lie, stall, flood and break off (docs/security.md I10)."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler, Sample
from hostile import AMD64, BLOBS, BOMB, MANIFESTS, QUICK, TAGS, always, opened, pull, refused

from knarr.base.errors import (
    DigestMismatch,
    Interrupted,
    KnarrError,
    RegistryError,
    SizeMismatch,
    SpecError,
)
from knarr.content.store import Store
from knarr.image.pull import copy
from knarr.registry.client import Client
from knarr.registry.connections import Policy
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


# Floods and stalls


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from knarr.base.errors import KnarrError
from knarr.registry.client import Client
from knarr.registry.connections import Policy
client = Client(sys.argv[2], sys.argv[3], policy=Policy(read=2, headers=2, backoff=0.01, longest_wait=0.05))
def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
try:
    client.manifest("warm")
except KnarrError:
    pass
before = peak()
try:
    client.manifest("v1") if sys.argv[4] == "manifest" else client.tags()
except KnarrError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize("what", ["manifest", "tags"])
@pytest.mark.parametrize("how", ["announced", "chunked", "gzip", "error"])
def test_endless_bodies_cost_little(fake: FakeRegistry, what: str, how: str) -> None:
    def flood(handler: Handler) -> bool:
        if "warm" in handler.path:
            return False
        handler.send_response(500 if how == "error" else 200)
        handler.send_header("Content-Type", mediatypes.MANIFEST)
        chunk = b"x" * (1 << 20)
        if how == "announced":
            handler.send_header("Content-Length", str(1 << 30))
        elif how == "gzip":
            chunk = BOMB
            handler.send_header("Content-Encoding", "gzip")
            handler.send_header("Content-Length", str(len(chunk) * 1000))
        else:
            handler.send_header("Transfer-Encoding", "chunked")
            chunk = b"100000\r\n" + chunk + b"\r\n"
        handler.end_headers()
        try:
            for _ in range(1024):
                handler.wfile.write(chunk)
        except OSError:
            pass
        handler.close_connection = True
        return True

    fake.rule("/", flood)
    command = [sys.executable, "-c", PEAK, str(Path(__file__).parent), fake.host, REPOSITORY, what]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10
    said, kibibytes = done.stdout.splitlines()
    assert "500" in said if how == "error" else "more than 4194304 bytes" in said
    assert int(kibibytes) < 64 << 10


def slow_headers(handler: Handler) -> bool:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" * 100:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)
    return True


def length_of(handler: Handler) -> int:
    return len(handler.registry.blobs[handler.path.rpartition("/")[2]])


def slow_body(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length_of(handler)))
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(0.05)
    return True


def silent(_handler: Handler) -> bool:
    time.sleep(3)
    return True


def stops_in_body(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length_of(handler)))
    handler.end_headers()
    handler.wfile.write(b"x" * 100)
    time.sleep(3)
    return True


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (silent, "no answer within 1 s"),
        (slow_headers, "no complete response header within 1 s"),
        (lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000), "header"),
        (lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20)), "header"),
        (
            lambda handler: handler.raw(
                b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 30_000 + b"\r\n" + b"Y: " + b"y" * 60_000 + b"\r\n"
            ),
            "header",
        ),
        (lambda handler: handler.raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000), "header"),
        (lambda handler: handler.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "HTTP"),
        (lambda handler: handler.raw(b"\x15\x03\x01\x00\x02\x02\x46"), "HTTP"),
        (
            lambda handler: handler.raw(b"HTTP/9.9 200 OK\r\n\r\n"),
            "more than|HTTP|early|disagree|failed|bytes|JSON|document|line",
        ),
    ],
)
@pytest.mark.parametrize("where", ["manifest", "blob"])
def test_headers_that_never_end(
    store: Store, fake: FakeRegistry, rule: Callable[[Handler], bool], why: str, where: str
) -> None:
    fake.add("v1", Sample())
    if where == "manifest":
        # the language is settled first, as in any real exchange
        fake.rule(MANIFESTS, rule)
    else:
        fake.rule(BLOBS, rule)
    refused(store, fake, KnarrError, why)


@pytest.mark.parametrize(
    ("rule", "why"),
    [(slow_body, "it sends less than 1024 bytes per second"), (stops_in_body, "nothing more came for 1 s")],
)
def test_bodies_that_trickle(store: Store, fake: FakeRegistry, rule: Callable[[Handler], bool], why: str) -> None:
    sample = fake.add("v1", Sample(100_000))
    fake.rule(BLOBS + sample.layers[0]["digest"], rule)
    refused(store, fake, RegistryError, why, within=8)


def test_documents_that_take_too_long(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample().seal(annotations={"a": "x" * 400_000}))

    def rule(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(sample.data)))
        handler.end_headers()
        for at in range(0, len(sample.data), 20_000):  # fast enough for the least speed
            handler.wfile.write(sample.data[at : at + 20_000])
            time.sleep(0.1)
        return True

    fake.rule(MANIFESTS, rule)
    policy = Policy(read=1, slow_window=0.2, document=0.5)
    refused(store, fake, RegistryError, "the manifest did not come within 0.5 s", policy=policy)


# Broken bodies: what comes is joined, the digest decides


def in_parts(sample: Sample, cut: Callable[[Handler, bytes], None]) -> Callable[[Handler], bool]:
    """Serve blobs from the asked offset on, each answer ended by ``cut``."""

    def rule(handler: Handler) -> bool:
        data = sample.blobs[handler.path.rpartition("/")[2]]
        wanted = handler.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        cut(handler, data[start:])
        return True

    return rule


def test_a_body_that_breaks_is_joined(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(10 << 20))

    def cut(handler: Handler, rest: bytes) -> None:
        handler.wfile.write(rest[: 3 << 20])
        if len(rest) > 3 << 20:
            handler.drop()

    fake.rule(BLOBS, in_parts(sample, cut))
    pull(store, fake)
    layer = sample.layers[0]
    assert store.read_blob(layer, 1 << 30) == sample.blobs[layer["digest"]]  # type: ignore[arg-type]
    ranges = [request.headers.get("range") for request in fake.asked(layer["digest"])]
    assert len(ranges) >= 4
    assert ranges[0] is None
    assert all(value for value in ranges[1:])


def test_a_registry_without_ranges_starts_again(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(3 << 20))
    layer = sample.layers[0]["digest"]
    tries: list[int] = []

    def rule(handler: Handler) -> bool:
        tries.append(1)
        data = sample.blobs[layer]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if len(tries) < 3:
            handler.wfile.write(data[: 1_500_000 * len(tries)])
            return handler.drop()
        handler.wfile.write(data)
        return True

    fake.rule(BLOBS + layer, rule)
    pull(store, fake)
    assert len(tries) == 3
    assert store.read_blob(sample.layers[0], 1 << 30) == sample.blobs[layer]  # type: ignore[arg-type]


def test_a_body_that_always_breaks_ends(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(3 << 20))

    def cut(handler: Handler, rest: bytes) -> None:
        handler.wfile.write(rest[:1000])
        handler.drop()

    layer = sample.layers[0]["digest"]
    fake.rule(BLOBS + layer, in_parts(sample, cut))
    refused(store, fake, RegistryError, "5 times in a row after")
    assert len(fake.asked(layer)) == 5


@pytest.mark.parametrize(("change", "error"), [(1, SizeMismatch), (-1, None)])
def test_wrong_content_length(store: Store, fake: FakeRegistry, change: int, error: type[Exception] | None) -> None:
    sample = fake.add("v1", Sample(5000))
    layer = sample.layers[0]["digest"]

    def rule(handler: Handler) -> bool:
        if handler.headers.get("Range"):
            return False
        data = sample.blobs[layer]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) + change))
        handler.end_headers()
        handler.wfile.write(data[: len(data) + change])
        handler.close_connection = True
        return True

    fake.rule(BLOBS + layer, rule)
    if error is not None:
        refused(store, fake, error, f"blob {layer} of .* bytes, expected")
    else:
        pull(store, fake)  # one byte is missing, and asked for


def test_a_range_answered_with_another(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(3 << 20))
    layer = sample.layers[0]["digest"]
    data = sample.blobs[layer]

    def rule(handler: Handler) -> bool:
        if handler.headers.get("Range"):
            return handler.reply(206, data[:100], Content_Range=f"bytes 0-99/{len(data)}")
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        return handler.raw(data[:1_000_000])

    fake.rule(BLOBS + layer, rule)
    refused(store, fake, RegistryError, "it sends them from 0")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "both Content-Length and Transfer",
        ),
        (b"Transfer-Encoding: chunked\r\n\r\nnot a length\r\nhello", "times in a row|early|not HTTP"),
        (b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello", "times in a row|early"),
        (b"Content-Length: -5\r\n\r\nhello", ""),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", ""),
    ],
)
def test_framing_that_makes_no_sense(store: Store, fake: FakeRegistry, raw: bytes, why: str) -> None:
    sample = fake.add("v1", Sample(5000))
    fake.rule(BLOBS + sample.layers[0]["digest"], lambda handler: handler.raw(b"HTTP/1.1 200 OK\r\n" + raw))
    refused(store, fake, KnarrError, why or ".")


def test_the_digest_decides(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(50_000))
    layer = sample.layers[0]["digest"]
    right = sample.blobs[layer]
    for wrong, error in (
        (right[:-1] + bytes([right[-1] ^ 1]), DigestMismatch),
        (right + b"\0", SizeMismatch),
        (bytes(len(right)), DigestMismatch),
    ):
        fake.blobs[layer] = wrong
        refused(store, fake, error, layer)
    fake.blobs[layer] = right[:-1]
    refused(store, fake, RegistryError, "times in a row")
    fake.blobs[layer] = right
    pull(store, fake)


def test_manifests_whose_digest_is_wrong(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())
    stated = {"Docker_Content_Digest": "sha256:" + "0" * 64, "Content_Type": mediatypes.MANIFEST}
    fake.rule(MANIFESTS, lambda handler: handler.reply(200, sample.data, **stated))
    refused(store, fake, DigestMismatch, "manifest v1 of")
    for harmless in ("", "foo:abc", "nonsense", "sha512:" + "0" * 127):
        fake.rules.clear()
        headers = {"Docker_Content_Digest": harmless, "Content_Type": mediatypes.MANIFEST}
        fake.rule(MANIFESTS, always(200, sample.data, **headers))
        pull(store, fake)
        store.untag("x")
    fake.rules.clear()
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    fake.manifests["sha256:" + "0" * 64] = (sample.data, mediatypes.MANIFEST)
    fake.rule(MANIFESTS, lambda handler: handler.reply(200, sample.data, Content_Type=mediatypes.MANIFEST))
    with pytest.raises(DigestMismatch):
        client.manifest("sha256:" + "0" * 64)
    client.close()


def test_a_tag_that_moves_is_asked_once(store: Store, fake: FakeRegistry) -> None:
    first, second = fake.add("v1", Sample(seed=1)), Sample(seed=2)

    def move(handler: Handler) -> bool:
        fake.answer(handler)
        fake.add("v1", second)
        return True

    fake.rule(MANIFESTS + "v1", move)
    pull(store, fake)
    assert store.resolve("x")["digest"] == first.digest


def test_encoded_manifests_are_not_decoded(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())
    body = gzip.compress(sample.data)
    fake.rule(
        MANIFESTS, lambda handler: handler.reply(200, body, Content_Encoding="gzip", Content_Type=mediatypes.MANIFEST)
    )
    refused(store, fake, RegistryError, "sent encoded as gzip")


def test_blobs_are_never_decoded_whatever_their_header_says(store: Store, fake: FakeRegistry) -> None:
    """Some caches label a gzip layer as gzip-encoded; the digest is that of the bytes as they are."""
    sample = fake.add("v1", Sample(5000))
    layer = sample.layers[0]["digest"]
    fake.rule(BLOBS + layer, always(200, sample.blobs[layer], Content_Encoding="gzip"))
    pull(store, fake)
    assert store.read_blob(sample.layers[0]) == sample.blobs[layer]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b"\xff", b'{"a":1,"a":2}', b"{" * 200_000, b'{"schemaVersion": 1e400}']
)
def test_manifests_that_are_none(store: Store, fake: FakeRegistry, data: bytes) -> None:
    fake.put("v1", data, mediatypes.MANIFEST)
    refused(store, fake, SpecError, "manifest")


# Try again, but not for ever


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_registry_that_recovers(store: Store, fake: FakeRegistry, status: int) -> None:
    fake.add("v1", Sample())
    failures: list[str] = []

    def rule(handler: Handler) -> bool:
        if failures.count(handler.path) >= 2:
            return False
        failures.append(handler.path)
        return handler.reply(status)

    fake.rule("/v2/", rule)
    pull(store, fake)
    assert len(failures) == 6


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_does_not(store: Store, fake: FakeRegistry, status: int) -> None:
    fake.add("v1", Sample())
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}).encode()
    fake.rule("/v2/", lambda handler: handler.reply(status, body))
    refused(store, fake, RegistryError, f"{status} .*: slow down")
    assert len(fake.log) == 5


@pytest.mark.parametrize("status", [400, 405, 416, 418, 501])
def test_other_answers_are_final(store: Store, fake: FakeRegistry, status: int) -> None:
    fake.add("v1", Sample())
    fake.rule(BLOBS, lambda handler: handler.reply(status))
    refused(store, fake, RegistryError, f"{status} the registry failed")
    assert len(fake.asked("blobs")) == 1


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("1", 0.9, 2),
        ("86400", 0.9, 2),
        ("-1", 0, 0.8),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.8),
        ("٣", 0, 0.8),
        ("", 0, 0.8),
        ("0", 0, 0.8),
    ],
)
def test_retry_after(store: Store, fake: FakeRegistry, asked: str, least: float, most: float) -> None:
    fake.add("v1", Sample())
    times: list[float] = []

    def rule(handler: Handler) -> bool:
        times.append(time.monotonic())
        if len(times) > 1:
            return False
        header = f"Retry-After: {asked}\r\n".encode("utf-8" if not asked.isascii() else "latin-1") if asked else b""
        return handler.raw(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n" + header + b"\r\n")

    fake.rule(MANIFESTS, rule)
    pull(store, fake, policy=Policy(backoff=0.01, longest_wait=1.0))
    assert least <= times[1] - times[0] < most


def test_resets_before_an_answer_are_tried_again(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    drops: list[int] = []

    def rule(handler: Handler) -> bool:
        drops.append(1)
        return handler.drop() if len(drops) < 4 else False

    fake.rule(BLOBS, rule)
    pull(store, fake)
    assert len(drops) >= 4


# Lists of tags


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (f'<{TAGS}>; rel="next"', "leads back to itself|more than 1000 pages"),
        (f'<{TAGS}?n=1>; rel="next"', "leads back to itself"),
        ('<https://evil.invalid/x>; rel="next"', "the next page is at another place"),
        ('<http://127.0.0.1:1/x>; rel="next"', "the next page is at another place"),
        ('<file:///x>; rel="next"', "not http or https"),
        ("nonsense", "makes no sense"),
        ('<http://[::1/x>; rel="next"', "not a URL"),
    ],
)
def test_links_of_tag_lists(fake: FakeRegistry, link: str, why: str) -> None:
    fake.rule(TAGS, lambda handler: handler.reply(200, b'{"tags": ["a"]}', Link=link))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    began = time.monotonic()
    with pytest.raises(RegistryError, match=why):
        client.tags()
    assert time.monotonic() - began < 10
    client.close()


def test_endless_pages_of_tags(fake: FakeRegistry) -> None:
    def rule(handler: Handler) -> bool:
        page = int(handler.path.partition("p=")[2] or 0)
        return handler.reply(200, b'{"tags": ["a"]}', Link=f'<{TAGS}?p={page + 1}>; rel="next"')

    fake.rule(TAGS, rule)
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    with pytest.raises(RegistryError, match="more than 1000 pages"):
        client.tags()
    assert len(fake.log) == 1000
    client.close()


@pytest.mark.parametrize("body", [b"x", b'{"tags": "a"}', b'{"tags": [1]}', b"[" * 100_000])
def test_tag_lists_that_are_none(fake: FakeRegistry, body: bytes) -> None:
    fake.rule(TAGS, lambda handler: handler.reply(200, body))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    with pytest.raises(RegistryError, match="list of tags"):
        client.tags()
    client.close()


def test_no_tags_at_all(fake: FakeRegistry) -> None:
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    for body in (b'{"tags": null}', b"{}", b"[]", b'{"tags": []}'):
        fake.rules.clear()
        fake.rule(TAGS, always(200, body))
        assert client.tags() == []
    client.close()


# Being stopped


def test_a_pull_can_be_broken_off(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(100_000, 100_000))
    for layer in sample.layers:
        fake.rule(BLOBS + layer["digest"], slow_body)
    source = opened(fake, policy=Policy())  # with time-outs of half a minute
    errors: list[BaseException] = []

    def work() -> None:
        try:
            copy(source, store, ["x"], platform=AMD64)
        except KnarrError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    source.abort()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - began < 2
    assert [type(error) for error in errors] == [Interrupted]
    source.close()
    assert store.tags() == {}
    assert list(Path(store.path, ".tmp").iterdir()) == []

"""Sending to registries: what arrives, in which pieces, and what happens when it breaks, lies or leads elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler, RealRegistry, Sample, digest_of
from hostile import AMD64, BOB, QUICK

from knarr.base.errors import AuthError, DigestMismatch, KnarrError, NotFound, RegistryError
from knarr.content.store import Store
from knarr.image.copy import Options, copy_image
from knarr.image.storesource import StoreSource
from knarr.registry.client import Client
from knarr.registry.credentials import Credentials
from knarr.registry.push import Pusher, next_piece
from knarr.registry.referrers import referrers, remove, tag_of
from knarr.registry.sink import RegistrySink, open_sink
from knarr.registry.source import open_image
from knarr.registry.uploads import Uploads
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from pathlib import Path

    from knarr.image.copy import Copied

PIECE = QUICK.replace(chunk=100_000, piece=0.0)  # all of one size
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def push(store: Store, sample: Sample, fake: FakeRegistry, reference: str = "v1", **options: Any) -> Copied:
    sample.into(store, "x")
    sink = open_sink(fake.host, REPOSITORY, reference, **{"policy": PIECE, **options})
    return send(store, sink)


def send(store: Store, sink: RegistrySink, **options: Any) -> Copied:
    try:
        source = StoreSource(store, [store.resolve("x")], "x")
        copied = copy_image(source, sink, Options(platforms=(AMD64,), **options))
        sink.finish()
        return copied
    finally:
        sink.close()


def arrived(fake: FakeRegistry, sample: Sample, reference: str = "v1") -> None:
    assert fake.manifests[reference] == (sample.data, sample.media_type)
    assert {digest: fake.blobs[digest] for digest in sample.blobs} == sample.blobs


@pytest.mark.parametrize("docker", [False, True])
def test_an_image_arrives_in_pieces(store: Store, fake: FakeRegistry, docker: bool) -> None:
    sample = Sample(1000, 350_000, docker=docker)
    copied = push(store, sample, fake)
    arrived(fake, sample)
    assert copied.digest == sample.digest
    assert copied.copied == (4, sum(map(len, sample.blobs.values())) + len(sample.data))
    pieces = [one for one in fake.log if one.method == "PATCH"]
    assert [one.headers["content-range"] for one in pieces] == ["0-99999", "100000-199999", "200000-299999"]
    assert max(one.body for one in fake.log) == 100_000
    fake.log.clear()
    assert push(store, sample, fake, "v2").copied == (0, 0)
    assert [one.method for one in fake.log if one.body] == ["PUT"]  # the tag alone


def test_a_registry_that_wants_larger_pieces(store: Store, fake: FakeRegistry) -> None:
    fake.least = 200_000
    push(store, Sample(350_000), fake)
    assert [one.headers["content-range"] for one in fake.log if one.method == "PATCH"] == ["0-199999"]


def test_pieces_grow_with_the_speed_of_the_registry(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(3_000_000)
    push(store, sample, fake, policy=PIECE.replace(piece=60.0))
    arrived(fake, sample)
    ranges = [one.headers["content-range"] for one in fake.log if one.method == "PATCH"]
    assert ranges == ["0-99999", "100000-1699999"]  # at most sixteen times as large
    fake.log.clear()
    fake.blobs.clear()
    fake.rule(UPLOADS, broken(1000, "PATCH", lambda _handler: time.sleep(0.05)))
    push(store, sample, fake, policy=PIECE.replace(piece=0.05))
    assert [one.body for one in fake.log if one.method == "PATCH"] == [100_000] * 30


def test_the_next_piece() -> None:
    policy = PIECE.replace(chunk=1000, piece=2.0)
    assert next_piece(1000, 0.5, policy) == 4000
    assert next_piece(1000, 0.0, policy) == 16_000
    assert next_piece(50_000, 5.0, policy) == 20_000
    assert next_piece(1000, 60.0, policy) == 1000
    assert next_piece(1000, 0.5, policy.replace(piece=0.0)) == 1000


@pytest.mark.parametrize("claimed", [50_000, 300_000])
def test_a_registry_that_says_it_has_what_it_was_not_sent(store: Store, fake: FakeRegistry, claimed: int) -> None:
    sample = Sample(1_000_000)
    reset = broken(1, "PATCH", lambda handler: handler.drop())
    fake.rule(UPLOADS, lambda handler: handler.headers.get("Content-Range", "").startswith("1") and reset(handler))
    lie = {"Range": f"0-{claimed - 1}"}
    fake.rule(UPLOADS, broken(1, "GET", lambda handler: handler.reply(204, Location=handler.path, **lie)))
    push(store, sample, fake)
    arrived(fake, sample)
    assert len([one for one in fake.log if one.method == "POST"]) == 3  # one more, for an upload that is not right


@pytest.mark.parametrize("read", [True, False])
def test_a_proxy_that_takes_no_large_pieces(store: Store, fake: FakeRegistry, read: bool) -> None:
    sample = Sample(3_000_000)

    def too_large(handler: Handler) -> bool:
        if int(handler.headers.get("Content-Length") or 0) <= 500_000:
            return False
        handler.close_connection = True
        return handler.reply(413, b"<html>") if read else handler.drop()

    (fake.rules if read else fake.early).append((UPLOADS, too_large))
    push(store, sample, fake, policy=PIECE.replace(piece=60.0))
    arrived(fake, sample)
    refused = [one.body for one in fake.log if one.body > 500_000]
    assert refused == [1_600_000]  # what did not get through is not tried again
    assert max(one.body for one in fake.log if one.body not in refused) == 400_000


def test_a_login_that_ends_meanwhile(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(3_000_000)
    challenge = {"WWW_Authenticate": 'Basic realm="x"'}
    fake.rule(UPLOADS, broken(1, "PATCH", lambda handler: handler.reply(401, b"{}", **challenge)))
    push(store, sample, fake, credentials=BOB)
    arrived(fake, sample)
    assert [one.headers.get("authorization", "")[:5] for one in fake.log if one.method == "PATCH"][:2] == ["", "Basic"]


def test_a_registry_that_takes_no_pieces(store: Store, fake: FakeRegistry) -> None:
    fake.pieces = False
    sample = Sample(350_000, 340_000)
    push(store, sample, fake)
    arrived(fake, sample)
    # The first tries at the same time may all find out; nothing after that asks again.
    assert len([one for one in fake.log if one.method == "PATCH"]) <= 2


def test_a_blob_that_goes_with_the_post(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(10_000)
    push(store, sample, fake, policy=PIECE.replace(single_post=4096))
    arrived(fake, sample)
    posts = [one for one in fake.log if one.method == "POST"]
    assert sorted(bool(one.body) for one in posts) == [False, True]


def test_blobs_are_mounted(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(5000, 6000)
    fake.mountable = {layer["digest"]: sample.blobs[layer["digest"]] for layer in sample.layers}
    push(store, sample, fake, mount_from="other/place")
    arrived(fake, sample)
    assert fake.committed == [sample.config["digest"]]  # the one that could not be


def broken(times: int, when: str, how: Any) -> Any:
    """A rule that spoils some requests with that method."""
    left = [times]

    def rule(handler: Handler) -> bool:
        if handler.command == when and left[0]:
            left[0] -= 1
            return bool(how(handler))
        return False

    return rule


def _half(handler: Handler) -> bool:
    handler.registry.uploads[handler.path.partition("?")[0].rpartition("/")[2]] += handler.body[:50_000]
    return handler.drop()


def _all(handler: Handler) -> bool:
    handler.registry.uploads[handler.path.partition("?")[0].rpartition("/")[2]] += handler.body
    return handler.drop()


FAULTS: dict[str, Any] = {
    "503": lambda handler: handler.reply(503),
    "429": lambda handler: handler.reply(429, Retry_After="0"),
    "reset": lambda handler: handler.drop(),
    "nothing": lambda handler: handler.raw(b""),
    "half a piece": _half,
    "all of it, and no answer": _all,
}


@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_is_sent_again(store: Store, fake: FakeRegistry, fault: str, method: str) -> None:
    if method == "POST" and fault in {"half a piece", "all of it, and no answer"}:
        pytest.skip("a POST carries no piece")
    sample = Sample(350_000)
    fake.rule(UPLOADS, broken(2, method, FAULTS[fault]))
    push(store, sample, fake, policy=PIECE.replace(tries=4))
    arrived(fake, sample)
    sent = sum(one.body for one in fake.log)
    assert sent <= sum(map(len, sample.blobs.values())) + len(sample.data) + 3 * 100_000


def test_an_upload_that_is_lost_begins_once_more(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(350_000)

    def lose(handler: Handler) -> bool:
        handler.registry.uploads.clear()
        return False

    fake.rule(UPLOADS, broken(1, "PATCH", lose))
    push(store, sample, fake)
    arrived(fake, sample)
    fake.rule(UPLOADS, broken(100, "PATCH", lose))
    fake.blobs.clear()
    with pytest.raises(RegistryError, match="is lost again and again"):
        push(store, sample, fake)


@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST"])
@pytest.mark.parametrize("status", [400, 403, 500])
def test_what_stays_broken_is_told(store: Store, fake: FakeRegistry, method: str, status: int) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "not\\u001b[31m today"}]}'
    fake.rule(UPLOADS, broken(1000, method, lambda handler: handler.reply(status, body)))
    if (method, status) == ("PATCH", 400):  # then it goes in one piece
        push(store, Sample(350_000), fake)
        return
    with pytest.raises(RegistryError, match=f"{status}") as caught:
        push(store, Sample(350_000), fake)
    assert str(caught.value).isprintable()
    assert "v1" not in fake.manifests


@pytest.mark.parametrize("how", ["host", "port", "scheme", "userinfo", "nothing"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_an_upload_goes_on_at_the_registry_or_not_at_all(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, how: str, method: str
) -> None:
    port = fake.host.rpartition(":")[2]
    target = {
        "host": f"http://localhost:{port}/up",
        "port": f"{elsewhere.url}/up",
        "scheme": f"https://{fake.host}/up",
        "userinfo": f"http://a:b@{fake.host}/up",
        "nothing": "",
    }[how]
    headers = {"Location": target} if target else {}
    fake.rule(UPLOADS, broken(1000, method, lambda handler: handler.reply(202, b"", **headers)))
    if (method, how) == ("PATCH", "nothing"):  # the address stays as it was: nothing arrives, which is noticed
        with pytest.raises(KnarrError):
            push(store, Sample(350_000), fake, credentials=BOB)
        return
    with pytest.raises(RegistryError, match=r"uploads to|does not say where") as caught:
        push(store, Sample(350_000), fake, credentials=BOB)
    assert "hunter2" not in str(caught.value)
    assert elsewhere.log == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_what_is_sent_is_not_redirected_elsewhere(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, status: int
) -> None:
    fake.rule(UPLOADS, broken(1000, "POST", lambda handler: handler.reply(status, Location=f"{elsewhere.url}/x")))
    with pytest.raises(RegistryError, match="for the registry alone"):
        push(store, Sample(1000), fake)
    assert elsewhere.log == []


def test_a_registry_that_stores_something_else(store: Store, fake: FakeRegistry) -> None:
    other = digest_of(b"other")
    fake.rule(f"/v2/{REPOSITORY}/manifests/", broken(9, "PUT", lambda one: one.reply(201, Docker_Content_Digest=other)))
    with pytest.raises(DigestMismatch, match=f"has digest {other}"):
        push(store, Sample(1000), fake)


def test_pushing_under_a_digest(store: Store, fake: FakeRegistry) -> None:
    sample = Sample(1000)
    sample.into(store, "x")
    copied = send(store, open_sink(fake.host, REPOSITORY, "", sample.digest, policy=PIECE))
    assert fake.manifests[copied.digest][0] == sample.data
    assert fake.tags == []
    with pytest.raises(DigestMismatch, match="what is to be"):
        send(store, open_sink(fake.host, REPOSITORY, "", digest_of(b"x"), policy=PIECE))


# What refers to an image


def noted(sample: Sample, text: bytes = b"signature") -> Sample:
    note = Sample()
    note.config = note._descriptor(b"{}", mediatypes.EMPTY)
    note.layers = [note._descriptor(text, "text/plain")]
    note.blobs = {digest_of(b"{}"): b"{}", digest_of(text): text}
    subject = {key: sample.descriptor[key] for key in ("mediaType", "digest", "size")}
    return note.seal(artifactType="application/x-sig", config=note.config, layers=note.layers, subject=subject)


@pytest.mark.parametrize("knows", [True, False])
def test_referrers_by_api_and_by_tag(store: Store, fake: FakeRegistry, tmp_path: Path, knows: bool) -> None:
    fake.knows_referrers = knows
    sample = Sample(1000)
    notes = [noted(sample), noted(sample, b"another")]
    for number, note in enumerate(notes):
        note.into(store, f"note{number}")
    sample.into(store, "x")
    copied = send(store, open_sink(fake.host, REPOSITORY, "v1", policy=PIECE), referrers=True)
    assert set(copied.referrers) == {note.digest for note in notes}
    assert (tag_of(sample.digest) in fake.tags) is not knows
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    found = referrers(client, sample.digest)
    assert {one["digest"] for one in found} == {note.digest for note in notes}
    assert {one.get("artifactType") for one in found} == {"application/x-sig"}
    assert referrers(client, sample.digest, "application/other") == []
    # and back again
    other = Store.open(str(tmp_path / "other"))
    source = open_image(fake.host, REPOSITORY, "v1", policy=QUICK)
    from knarr.image.sink import StoreSink

    sink = StoreSink(other, ["y"])
    assert len(copy_image(source, sink, Options(platforms=(AMD64,), referrers=True)).referrers) == 2
    sink.finish()
    sink.close()
    source.close()
    # removed, also from the list
    pusher = Pusher(client)
    assert remove(pusher, notes[0].digest) == notes[0].digest
    assert [one["digest"] for one in referrers(client, sample.digest)] == [notes[1].digest]
    client.close()


def test_lists_of_referrers_that_do_not_end(fake: FakeRegistry) -> None:
    path = f"/v2/{REPOSITORY}/referrers/"
    index = json.dumps({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": []}).encode()
    fake.rule(path, lambda one: one.reply(200, index, Content_Type=mediatypes.INDEX, Link=f'<{one.path}>; rel="next"'))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    with pytest.raises(RegistryError, match="do not end"):
        referrers(client, digest_of(b""))
    client.close()


# Going on in another process

WORKER = """
import sys
from knarr.content.store import Store
from knarr.image.copy import Options, copy_image
from knarr.image.platform import parse_platform
from knarr.image.storesource import StoreSource
from knarr.registry.sink import open_sink
from knarr.registry.connections import Policy
from knarr.registry.uploads import Uploads
store, host, uploads = sys.argv[1:4]
store = Store.open(store)
sink = open_sink(host, "lib/thing", "v1", policy=Policy(chunk=100_000, piece=0), uploads=Uploads(uploads))
copy_image(StoreSource(store, [store.resolve("x")], "x"), sink, Options(platforms=(parse_platform("linux/amd64"),)))
sink.finish()
"""


@pytest.mark.parametrize("point", range(0, 20, 3))
def test_a_push_that_was_killed_goes_on(store: Store, fake: FakeRegistry, tmp_path: Path, point: int) -> None:
    sample = Sample(2_000_000)
    sample.into(store, "x")
    command = [sys.executable, "-c", WORKER, store.path, fake.host, str(tmp_path / "uploads")]
    slow = [True]

    def wait(handler: Handler) -> bool:
        if slow[0] and handler.command == "PATCH":
            time.sleep(0.02)
        return False

    fake.rule(UPLOADS, wait)
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while len([one for one in fake.log if one.method == "PATCH"]) <= point and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    time.sleep(0.1)
    slow[0] = False
    subprocess.run(command, check=True)
    arrived(fake, sample)
    layer = sample.layers[0]["size"]
    sent = sum(one.body for one in fake.log if one.method == "PATCH" or (one.method == "PUT" and "blobs" in one.path))
    assert sent <= layer + sample.config["size"] * 2 + 2 * 100_000  # the piece under way, and the one noted too late
    assert os.listdir(tmp_path / "uploads") == []


def test_a_push_that_was_killed_in_a_large_piece_goes_on(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    sample = Sample(6_000_000)
    sample.into(store, "x")
    worker = WORKER.replace("chunk=100_000, piece=0", "chunk=5_000_000")
    command = [sys.executable, "-c", worker, store.path, fake.host, str(tmp_path / "uploads")]
    came, killed = threading.Event(), threading.Event()

    def keep(handler: Handler) -> bool:
        """Keep what comes while it comes, as most registries do."""
        if handler.command != "PATCH" or killed.is_set():
            return False
        upload = handler.registry.uploads[handler.path.partition("?")[0].rpartition("/")[2]]
        upload += handler.rfile.read(3_000_000)
        came.set()
        killed.wait(30)
        handler.close_connection = True
        return True

    fake.early.append((UPLOADS, keep))
    process = subprocess.Popen(command)
    assert came.wait(30)
    process.kill()
    process.wait()
    fake.log.clear()
    killed.set()
    subprocess.run(command, check=True)
    arrived(fake, sample)
    assert sum(one.body for one in fake.log if one.method in {"PATCH", "PUT"}) <= sample.layers[0]["size"] - 2_990_000
    assert os.listdir(tmp_path / "uploads") == []


def test_an_upload_noted_by_somebody_else_is_not_believed(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, tmp_path: Path
) -> None:
    sample = Sample(250_000)
    uploads = Uploads(str(tmp_path / "uploads"))
    digest = sample.layers[0]["digest"]
    for url in (f"{elsewhere.url}/up", "file:///etc/passwd", f"{fake.url}{UPLOADS}77", "x"):
        fake.blobs.clear()
        uploads.note(fake.host, REPOSITORY, digest, url)
        push(store, sample, fake, uploads=uploads, credentials=BOB)
        arrived(fake, sample)
        assert uploads.find(fake.host, REPOSITORY, digest) == ""
    assert elsewhere.log == []
    assert (tmp_path / "uploads").stat().st_mode & 0o77 == 0


# The real one


def test_there_and_back_through_a_real_registry(store: Store, real: RealRegistry, tmp_path: Path) -> None:
    sample = Sample(3_000_000, 10, 500_000)
    sample.into(store, "x")
    for chunk in (8 << 20, 400_000):
        repository = f"pushed/c{chunk}"
        copied = send(store, open_sink(real.host, repository, "v1", policy=PIECE.replace(chunk=chunk)))
        assert copied.copied[0] == 5
        done = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{real.host}/{repository}:v1"],
            capture_output=True,
            check=True,
        )
        assert done.stdout == sample.data
        subprocess.run(
            ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{real.host}/{repository}:v1",
             f"dir:{tmp_path}/{chunk}"], check=True, capture_output=True,
        )  # fmt: skip
        again = send(store, open_sink(real.host, repository, "v2", policy=QUICK))
        assert again.copied == (0, 0)
    mounted = open_sink(real.host, "pushed/mounted", "v1", mount_from=f"pushed/c{8 << 20}", policy=QUICK)
    send(store, mounted)
    assert mounted.pusher.mounted == 4
    assert mounted.pusher.sent == 0


def test_the_real_registry_goes_on_with_an_upload(store: Store, real: RealRegistry, tmp_path: Path) -> None:
    sample = Sample(1_000_000)
    sample.into(store, "x")
    uploads = Uploads(str(tmp_path / "uploads"))
    policy = PIECE
    sink = open_sink(real.host, "pushed/again", "v1", policy=policy, uploads=uploads)
    pusher = sink.pusher
    layer: Any = sample.layers[0]

    class Enough(Exception):
        pass

    moved = []

    def stop(count: int) -> None:
        moved.append(count)
        if len(moved) == 5:
            raise Enough

    with pytest.raises(Enough):
        pusher.put_blob(layer, lambda: store.open_blob(layer), stop)
    sink.close()
    sink = open_sink(real.host, "pushed/again", "v1", policy=policy, uploads=uploads)
    send(store, sink)
    assert sink.pusher.sent <= layer["size"] - 4 * 100_000 + sample.config["size"]


def test_a_login_that_may_push_and_one_that_may_not(store: Store, locked: RealRegistry) -> None:
    sample = Sample(1000)
    sample.into(store, "x")
    send(store, open_sink(locked.host, "a/b", "v1", credentials=Credentials("bob", "secret"), policy=QUICK))
    for credentials in (None, Credentials("bob", "wrong")):
        with pytest.raises(AuthError) as caught:
            send(store, open_sink(locked.host, "a/b", "v2", credentials=credentials, policy=QUICK))
        assert "wrong" not in str(caught.value).replace("is wrong", "")


def test_removing(store: Store, real: RealRegistry) -> None:
    sample = Sample(1000)
    sample.into(store, "x")
    send(store, open_sink(real.host, "gone/x", "v1", policy=QUICK))
    client = Client(real.host, "gone/x", policy=QUICK)
    pusher = Pusher(client)
    with pytest.raises(RegistryError, match="by digest only"):
        pusher.delete_manifest("v1")
    assert remove(pusher, "v1") == sample.digest
    with pytest.raises(NotFound):
        client.manifest("v1")
    with pytest.raises(NotFound):
        pusher.delete_manifest(sample.digest)
    client.close()


# Registries that say nothing


STALLS = {
    "HEAD": ("HEAD", "/blobs/"),
    "begin": ("POST", "/blobs/uploads/"),
    "piece": ("PATCH", "/blobs/uploads/"),
    "end": ("PUT", "/blobs/uploads/"),
    "manifest": ("PUT", "/manifests/"),
}


@pytest.mark.parametrize("point", STALLS)
def test_a_registry_that_stalls(store: Store, fake: FakeRegistry, point: str) -> None:
    method, part = STALLS[point]
    woken = threading.Event()

    def stall(handler: Handler) -> bool:
        if handler.command == method and part in handler.path:
            woken.wait(20)
            return handler.drop()
        return False

    fake.early.append(("/v2/", stall))
    began = time.monotonic()
    policy = PIECE.replace(tries=2, headers=0.3, commit=0.3, read=0.3)
    try:
        with pytest.raises(RegistryError, match=r"no (answer|complete response header) within 0.3 s"):
            push(store, Sample(250_000), fake, policy=policy)
    finally:
        woken.set()
    assert time.monotonic() - began < 5
    assert "v1" not in fake.manifests


def test_a_registry_that_stops_reading(store: Store, fake: FakeRegistry) -> None:
    woken = threading.Event()

    def stop(handler: Handler) -> bool:
        if handler.command == "PATCH":
            woken.wait(20)  # with the body unread
            return handler.drop()
        return False

    fake.early.append((UPLOADS, stop))
    began = time.monotonic()
    policy = QUICK.replace(chunk=16 << 20, tries=2, connect=0.5, commit=0.5)
    try:
        with pytest.raises(RegistryError):
            push(store, Sample(40 << 20), fake, policy=policy)
    finally:
        woken.set()
    assert time.monotonic() - began < 15

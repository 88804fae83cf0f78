"""Pulls from a registry that behaves, ours in the test and the real docker-registry."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler, RealRegistry, Sample, digest_of

from knarr.base.errors import AuthError, NotFound, RegistryError, SpecError, Unsupported
from knarr.content.store import Store
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.image.reference import parse_reference
from knarr.registry.client import Client
from knarr.registry.connections import Policy
from knarr.registry.credentials import Credentials
from knarr.registry.source import open_image
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from pathlib import Path

    from knarr.image.catalog import Image
    from knarr.image.transfer import BlobProgress

AMD64 = parse_platform("linux/amd64")
QUICK = Policy(connect=2, read=2, headers=2, backoff=0.01, longest_wait=0.05)
BOB = Credentials("bob", "secret")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def pull(store: Store, text: str, platform: str = "linux/amd64", **options: Any) -> Image:
    progress = options.pop("progress", None)
    ref = parse_reference(text)
    source = open_image(ref.registry, ref.repository, ref.tag, ref.digest, **{"policy": QUICK, **options})
    try:
        return copy(source, store, source.names(), platform=parse_platform(platform), progress=progress)
    finally:
        source.close()


@pytest.mark.parametrize("docker", [False, True])
def test_an_image_arrives_whole(store: Store, fake: FakeRegistry, docker: bool) -> None:
    sample = fake.add("v1", Sample(3 << 20, 1000, 500_000, docker=docker))
    steps: list[BlobProgress] = []
    image = pull(store, f"{fake.host}/{REPOSITORY}:v1", progress=steps.append)
    assert image.name == f"{fake.host}/{REPOSITORY}:v1"
    assert image.digest == sample.digest
    assert image.descriptor["mediaType"] == sample.media_type
    assert {digest for digest, _ in store.blobs()} == {sample.digest, *sample.blobs}
    for digest, data in sample.blobs.items():
        assert store.read_blob({"mediaType": "", "digest": digest, "size": len(data)}, 1 << 30) == data
    assert {step.digest for step in steps if step.status == "done"} == {sample.digest, *sample.blobs}
    asked = [request.path for request in fake.log]
    assert len(asked) == len(set(asked))  # nothing twice
    assert asked[0] == f"/v2/{REPOSITORY}/manifests/v1"  # no ping before
    fake.log.clear()
    pull(store, f"{fake.host}/{REPOSITORY}:v1")
    assert [request.path for request in fake.log] == [f"/v2/{REPOSITORY}/manifests/v1"]


def test_what_is_sent(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    pull(store, f"{fake.host}/{REPOSITORY}:v1")
    for request in fake.log:
        assert request.headers["accept-encoding"] == "identity"
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers
    accepted = fake.log[0].headers["accept"]
    for media_type in mediatypes.ACCEPTED:
        assert media_type in accepted


def test_an_index_gives_the_platform(store: Store, fake: FakeRegistry) -> None:
    amd, arm = Sample(seed=1), Sample(seed=2, architecture="arm64")
    fake.add("a", amd)
    fake.add("b", arm)
    for media_type in (mediatypes.INDEX, mediatypes.DOCKER_LIST):
        entries = [
            {**sample.descriptor, "platform": {"os": "linux", "architecture": name}}
            for sample, name in ((amd, "amd64"), (arm, "arm64"))
        ]
        data = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
        fake.put("many", data, media_type)
        for sample, name in ((amd, "linux/amd64"), (arm, "linux/arm64")):
            assert pull(store, f"{fake.host}/{REPOSITORY}:many", name).digest == sample.digest
            assert pull(store, f"{fake.host}/{REPOSITORY}@{digest_of(data)}", name).digest == sample.digest
        with pytest.raises(NotFound, match="for linux/s390x does not exist; there is linux/amd64, linux/arm64"):
            pull(store, f"{fake.host}/{REPOSITORY}:many", "linux/s390x")


def test_by_digest(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())
    image = pull(store, f"{fake.host}/{REPOSITORY}@{sample.digest}")
    assert image.name == f"{fake.host}/{REPOSITORY}@{sample.digest}"
    with pytest.raises(NotFound, match=f"manifest sha256:{'0' * 64} of "):
        pull(store, f"{fake.host}/{REPOSITORY}@sha256:{'0' * 64}")


def test_a_missing_tag_says_which_exist(store: Store, fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    with pytest.raises(NotFound, match=rf"image {fake.host}/{REPOSITORY}:v2 does not exist; there is v1$"):
        pull(store, f"{fake.host}/{REPOSITORY}:v2")
    fake.tags = [f"t{number}" for number in range(13)]
    with pytest.raises(NotFound, match=r"there is t0, t1, .* t9 and 3 more$"):
        pull(store, f"{fake.host}/{REPOSITORY}:v2")
    fake.tags = [f"t{number}" for number in range(300)]
    with pytest.raises(NotFound, match=r"there is t0, t1, .* t9 and many more$"):
        pull(store, f"{fake.host}/{REPOSITORY}:v2")
    fake.rule(f"/v2/{REPOSITORY}/tags", lambda handler: handler.reply(500))
    with pytest.raises(NotFound, match=rf"{REPOSITORY}:v2 does not exist$"):
        pull(store, f"{fake.host}/{REPOSITORY}:v2")
    assert store.tags() == {}


def test_a_missing_layer_is_named(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(1000, 2000))
    gone = sample.layers[1]["digest"]
    del fake.blobs[gone]
    with pytest.raises(NotFound, match=rf"blob {gone} of {fake.host}/{REPOSITORY} does not exist"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")
    assert store.tags() == {}


def test_pages_of_tags(fake: FakeRegistry) -> None:
    def pages(handler: Handler) -> bool:
        last = int(handler.path.partition("last=")[2] or 0)
        body = json.dumps({"tags": [f"t{last}", f"t{last + 1}"]}).encode()
        link = {} if last == 8 else {"Link": f'</v2/{REPOSITORY}/tags/list?n=2&last={last + 2}>; rel="next"'}
        handler.reply(200, body, **link)
        return True

    fake.rule(f"/v2/{REPOSITORY}/tags/list", pages)
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    assert client.tags() == [f"t{number}" for number in range(10)]
    assert client.tags(limit=3) == ["t0", "t1", "t2"]
    assert client.tags(pages=2) == ["t0", "t1", "t2", "t3"]
    client.close()


def test_schema_1_is_named(store: Store, fake: FakeRegistry) -> None:
    old = json.dumps({"schemaVersion": 1, "name": "x", "fsLayers": []}).encode()
    for media_type in (mediatypes.DOCKER_SCHEMA1_SIGNED, "application/json"):
        fake.put("old", old, media_type)
        with pytest.raises(Unsupported, match="schema 1 image manifest old of"):
            pull(store, f"{fake.host}/{REPOSITORY}:old")


def test_a_type_may_be_said_by_the_document_alone(store: Store, fake: FakeRegistry) -> None:
    for header in ("application/json", "text/plain; charset=utf-8", "application/octet-stream"):
        sample = fake.add("v1", Sample())
        fake.manifests["v1"] = (sample.data, header)
        assert pull(store, f"{fake.host}/{REPOSITORY}:v1").descriptor["mediaType"] == mediatypes.MANIFEST
    sample = Sample(seed=3)
    del sample.document["mediaType"]
    fake.add("v2", sample.seal())
    fake.manifests["v2"] = (sample.data, "application/json")
    assert pull(store, f"{fake.host}/{REPOSITORY}:v2").digest == sample.digest


@pytest.mark.parametrize("header", [mediatypes.INDEX, mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_LIST])
def test_header_and_document_must_agree(store: Store, fake: FakeRegistry, header: str) -> None:
    sample = fake.add("v1", Sample())
    fake.manifests["v1"] = (sample.data, header)
    with pytest.raises(SpecError, match=r"/mediaType: is .*manifest.v1.json, but the registry announced"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")
    # also when the document does not say what it is: then its fields contradict the header
    bare = Sample(seed=5)
    del bare.document["mediaType"]
    fake.add("v2", bare.seal())
    fake.manifests["v2"] = (bare.data, header)
    if header != mediatypes.DOCKER_MANIFEST:
        with pytest.raises(SpecError):
            pull(store, f"{fake.host}/{REPOSITORY}:v2")


def test_a_child_of_another_type_than_announced(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(docker=True))
    entry = {
        **sample.descriptor,
        "mediaType": mediatypes.MANIFEST,
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    data = json.dumps({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": [entry]}).encode()
    fake.put("many", data, mediatypes.INDEX)
    with pytest.raises(SpecError, match="but the index announced"):
        pull(store, f"{fake.host}/{REPOSITORY}:many")


# Logins


def wants_basic(fake: FakeRegistry) -> None:
    right = "Basic " + base64.b64encode(b"bob:secret").decode()

    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == right:
            return False
        handler.reply(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate='Basic realm="test"')
        return True

    fake.rule("/v2/", check)


def wants_token(fake: FakeRegistry, realm: str, *, lasts: int = 300, login: str = "") -> list[str]:
    """Let ``fake`` want tokens of ``realm``, served by itself at /token; returns the list of tokens given out."""
    tokens: list[str] = []

    def check(handler: Handler) -> bool:
        if tokens and handler.headers.get("Authorization") == f"Bearer {tokens[-1]}":
            return False
        challenge = f'Bearer realm="{realm}",service="test",scope="repository:{REPOSITORY}:pull"'
        handler.reply(401, WWW_Authenticate=challenge)
        return True

    def give(handler: Handler) -> bool:
        if login and handler.headers.get("Authorization") != "Basic " + base64.b64encode(login.encode()).decode():
            handler.reply(401, WWW_Authenticate='Basic realm="x"')
            return True
        tokens.append(f"token-{len(tokens)}")
        handler.reply(200, json.dumps({"token": tokens[-1], "access_token": "other", "expires_in": lasts}).encode())
        return True

    fake.rule("/v2/", check)
    fake.rule("/token", give)
    return tokens


def test_basic(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(1000, 2000))
    wants_basic(fake)
    with pytest.raises(AuthError, match=rf"401 it wants a login \(log in with knarr login {fake.host}"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")
    with pytest.raises(AuthError, match="401 it refuses the login as bob"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1", credentials=Credentials("bob", "wrong-pw"))
    fake.log.clear()
    assert pull(store, f"{fake.host}/{REPOSITORY}:v1", credentials=BOB).digest == sample.digest
    assert "authorization" not in fake.log[0].headers  # nothing is sent before it is asked for
    assert all("authorization" in request.headers for request in fake.log[1:])


def test_logins_of_files_are_used_and_named(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    fake.add("v1", Sample())
    wants_basic(fake)
    path = tmp_path / "home/.docker/config.json"
    path.parent.mkdir(parents=True)

    def write(text: str) -> None:
        path.write_text(json.dumps({"auths": {fake.host: {"auth": base64.b64encode(text.encode()).decode()}}}))

    write("bob:secret")
    pull(store, f"{fake.host}/{REPOSITORY}:v1")
    write("bob:wrong-pw")
    with pytest.raises(AuthError, match=f"refuses the login as bob kept in {path}"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")
    path.write_text(json.dumps({"credHelpers": {fake.host: "nosuch"}}))
    with pytest.raises(AuthError, match="docker-credential-nosuch does not exist"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")


def test_tokens(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample(1000, 2000, 3000))
    tokens = wants_token(fake, f"{fake.url}/token")
    assert pull(store, f"{fake.host}/{REPOSITORY}:v1").digest == sample.digest
    assert tokens == ["token-0"]  # one for the whole pull
    (asked,) = fake.asked("/token")
    assert asked.path == f"/token?scope=repository%3A{REPOSITORY.replace('/', '%2F')}%3Apull&service=test"
    assert "authorization" not in asked.headers


def test_tokens_for_a_login(store: Store, fake: FakeRegistry) -> None:
    sample = fake.add("v1", Sample())
    wants_token(fake, f"{fake.url}/token", login="bob:secret")
    assert pull(store, f"{fake.host}/{REPOSITORY}:v1", credentials=BOB).digest == sample.digest
    with pytest.raises(AuthError, match=r"/token: 401 it wants a login"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1")
    with pytest.raises(AuthError, match=r"/token: 401 it refuses the login as bob"):
        pull(store, f"{fake.host}/{REPOSITORY}:v1", credentials=Credentials("bob", "wrong-pw"))


def test_a_token_that_ends_is_fetched_again(fake: FakeRegistry) -> None:
    fake.add("v1", Sample())
    tokens = wants_token(fake, f"{fake.url}/token")
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    client.manifest("v1")
    tokens.append("revoked")
    client.manifest("v1")
    assert tokens == ["token-0", "revoked", "token-2"]
    client.close()


def test_access_denied(store: Store, fake: FakeRegistry) -> None:
    message = {"errors": [{"code": "DENIED", "message": "no pulls\n\x1b[31m from secret here"}]}
    fake.rule("/v2/", lambda handler: handler.reply(403, json.dumps(message).encode()))
    with pytest.raises(AuthError, match="403 access is denied: no pulls") as caught:
        pull(store, f"{fake.host}/{REPOSITORY}:v1", credentials=BOB)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


# The real one


def pushed(real: RealRegistry, tmp_path: Path, target: str, sample: Sample, *options: str) -> None:
    layout = Store.open(str(tmp_path / "pushed"))
    sample.into(layout, "x")
    real.push(layout.path, "x", target, *options)


def test_docker_registry(store: Store, real: RealRegistry, tmp_path: Path) -> None:
    sample = Sample(200_000, 3 << 20, seed=1)
    pushed(real, tmp_path, "lib/thing:v1", sample)
    image = pull(store, f"{real.host}/lib/thing:v1")
    assert image.digest == sample.digest
    assert {digest for digest, _ in store.blobs()} == {sample.digest, *sample.blobs}
    with pytest.raises(NotFound, match=r"lib/thing:v2 does not exist; there is v1$"):
        pull(store, f"{real.host}/lib/thing:v2")
    with pytest.raises(NotFound, match=r"repository .*/lib/nothing does not exist"):
        pull(store, f"{real.host}/lib/nothing:v1")
    assert pull(store, f"localhost:{real.host.partition(':')[2]}/lib/thing@{sample.digest}").digest == sample.digest


def test_docker_registry_with_docker_types(store: Store, real: RealRegistry, tmp_path: Path) -> None:
    pushed(real, tmp_path, "lib/docker:v1", Sample(seed=2), "--format", "v2s2")
    image = pull(store, f"{real.host}/lib/docker:v1")
    assert image.descriptor["mediaType"] == mediatypes.DOCKER_MANIFEST
    assert image.config is not None


def test_docker_registry_with_htpasswd(store: Store, locked: RealRegistry, tmp_path: Path) -> None:
    sample = Sample(200_000, seed=3)
    pushed(locked, tmp_path, "lib/thing:v1", sample, "--dest-creds", "bob:secret")
    with pytest.raises(AuthError, match="401 it wants a login"):
        pull(store, f"{locked.host}/lib/thing:v1")
    with pytest.raises(AuthError, match="401 it refuses the login as bob"):
        pull(store, f"{locked.host}/lib/thing:v1", credentials=Credentials("bob", "wrong-pw"))
    assert pull(store, f"{locked.host}/lib/thing:v1", credentials=BOB).digest == sample.digest
    with pytest.raises(NotFound, match="there is v1"):
        pull(store, f"{locked.host}/lib/thing:v2", credentials=BOB)


KILLED = """
import sys
from knarr.content.store import Store
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.image.reference import parse_reference
from knarr.registry.source import open_image
store = Store.open(sys.argv[1])
print("ready", flush=True)
ref = parse_reference(sys.argv[2])
source = open_image(ref.registry, ref.repository, ref.tag, ref.digest)
copy(source, store, source.names(), platform=parse_platform("linux/amd64"))
"""


def test_killed_pulls_from_the_real_registry(real: RealRegistry, tmp_path: Path) -> None:
    sample = Sample(*[4 << 20] * 4, seed=4)
    pushed(real, tmp_path, "lib/big:v1", sample)
    path = str(tmp_path / "store")
    text = f"{real.host}/lib/big:v1"
    Store.open(path)
    for number in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path, text], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2 + number * 0.05)  # the imports take the first 0.2 s
        process.kill()
        process.wait()
        process.stdout.close()
        for digest, _ in Store.open(path).blobs():
            data = sample.blobs.get(digest, sample.data)
            assert Store(path).read_blob({"mediaType": "", "digest": digest, "size": len(data)}, 1 << 30) == data
    store = Store.open(path)
    assert pull(store, text).digest == sample.digest
    store.gc()
    assert {digest for digest, _ in store.blobs()} == {sample.digest, *sample.blobs}


def test_a_registry_that_is_not_there(store: Store, fake: FakeRegistry) -> None:
    with FakeRegistry() as gone:
        host = gone.host
    with pytest.raises(
        RegistryError, match=rf"GET http://{host}/v2/x/manifests/latest: connection refused \(is the registry"
    ):
        pull(store, f"{host}/x")
    with pytest.raises(RegistryError, match="the host name is not known"):
        pull(store, "no.such.host.invalid/x")
    assert store.tags() == {}

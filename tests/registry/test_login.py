"""Logging in and out: files other tools read, helper programs, identity tokens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler, RealRegistry, Sample
from hostile import QUICK

from knarr.base.errors import AuthError, NotFound, SpecError, TimedOut, Unsupported, UsageError
from knarr.registry import helpers
from knarr.registry.client import Client
from knarr.registry.credentials import Credentials, find_credentials
from knarr.registry.login import login, logout

if TYPE_CHECKING:
    from pathlib import Path

BOB = Credentials("bob", "secret")

# A helper that keeps logins in a file, and writes down how it was called.
HELPER = """#!/usr/bin/env python3
import json, os, sys
base = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(base + "/called", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
path, data = base + "/kept", sys.stdin.read()
kept = json.load(open(path)) if os.path.exists(path) else {}
verb = sys.argv[1]
if verb == "store":
    value = json.loads(data)
    kept[value.pop("ServerURL")] = value
elif data not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "get":
    print(json.dumps({"ServerURL": data, **kept[data]}))
elif verb == "erase":
    del kept[data]
json.dump(kept, open(path, "w"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs with the helper ``kept`` in it, first in PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker-credential-kept").write_text(HELPER)
    (programs / "docker-credential-kept").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def config(tmp_path: Path) -> Path:
    return tmp_path / "home/.docker/config.json"


def test_a_login_is_tried_kept_and_found(locked: RealRegistry, tmp_path: Path) -> None:
    assert login(locked.host, BOB, policy=QUICK) == str(config(tmp_path))
    value = json.loads(config(tmp_path).read_text())
    assert value == {"auths": {locked.host: {"auth": base64.b64encode(b"bob:secret").decode()}}}
    assert stat.S_IMODE(config(tmp_path).stat().st_mode) == 0o600
    assert find_credentials(locked.host, "a/b").credentials == Credentials("bob", "secret", str(config(tmp_path)))
    if shutil.which("skopeo"):  # others read it, too
        done = subprocess.run(
            ["skopeo", "list-tags", "--tls-verify=false", f"docker://{locked.host}/nosuch"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "unauthorized" not in done.stderr
        assert "not found" in done.stderr.lower() or "unknown" in done.stderr.lower()
    assert logout(locked.host) == [str(config(tmp_path))]
    assert json.loads(config(tmp_path).read_text()) == {"auths": {}}
    with pytest.raises(NotFound, match=r"login .* does not exist"):
        logout(locked.host)


def test_a_wrong_login_is_not_kept(locked: RealRegistry, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="refuses the login as bob") as caught:
        login(locked.host, Credentials("bob", "hunter2"), policy=QUICK)
    assert "hunter2" not in str(caught.value)
    assert not config(tmp_path).exists()
    for credentials in (Credentials("", "x"), Credentials("a:b", "x"), Credentials("bob", "")):
        with pytest.raises(UsageError):
            login(locked.host, credentials, policy=QUICK)


def test_what_else_the_file_holds_stays(fake: FakeRegistry, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    path.write_text('{"auths": {"other": {"auth": "eDp5"}}, "psFormat": "table", "proxies": {"default": {}}}')
    config(tmp_path).parent.mkdir(parents=True)
    config(tmp_path).symlink_to(path)
    login(fake.host, BOB, policy=QUICK)
    assert config(tmp_path).is_symlink()
    value = json.loads(path.read_text())
    assert set(value["auths"]) == {"other", fake.host}
    assert value["psFormat"] == "table"
    assert value["proxies"] == {"default": {}}
    assert os.listdir(tmp_path / "home/.docker") == ["config.json"]
    path.write_text("[]")
    with pytest.raises(SpecError, match="must be an object"):
        login(fake.host, BOB, policy=QUICK)
    assert path.read_text() == "[]"


def test_another_file(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert login(fake.host, BOB, file=str(tmp_path / "mine.json"), policy=QUICK) == str(tmp_path / "mine.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert login(fake.host, BOB, policy=QUICK) == str(tmp_path / "auth.json")
    assert logout(fake.host, file=str(tmp_path / "mine.json")) == [str(tmp_path / "mine.json")]
    assert find_credentials(fake.host, "").credentials is not None


@pytest.mark.parametrize("document", [{"credsStore": "kept"}, {"credHelpers": {"HOST": "kept"}}])
def test_a_helper_keeps_it(fake: FakeRegistry, tmp_path: Path, folder: Path, document: dict[str, object]) -> None:
    config(tmp_path).parent.mkdir(parents=True)
    config(tmp_path).write_text(json.dumps(document).replace("HOST", fake.host))
    before = config(tmp_path).read_bytes()
    assert login(fake.host, BOB, policy=QUICK) == "docker-credential-kept"
    assert config(tmp_path).read_bytes() == before  # no secret in it
    assert json.loads((folder / "kept").read_text()) == {fake.host: {"Username": "bob", "Secret": "secret"}}
    assert (folder / "called").read_text() == "store\n"  # nothing secret on its command line
    assert find_credentials(fake.host, "a").credentials == Credentials("bob", "secret", "docker-credential-kept")
    assert find_credentials("other.example", "a").credentials is None
    assert logout(fake.host) == ["docker-credential-kept"]
    assert json.loads((folder / "kept").read_text()) == {}
    with pytest.raises(NotFound):
        logout(fake.host)


def test_a_helper_is_asked_only_when_a_login_is(fake: FakeRegistry, tmp_path: Path, folder: Path) -> None:
    fake.add("v1", Sample())
    config(tmp_path).parent.mkdir(parents=True)
    config(tmp_path).write_text(json.dumps({"credsStore": "kept"}))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    client.manifest("v1")
    assert not (folder / "called").exists()
    helpers.store("kept", fake.host, BOB)
    fake.rule("/v2/", wants_basic)
    client.manifest("v1")
    assert (folder / "called").read_text() == "store\nget\n"
    client.close()


def wants_basic(handler: Handler) -> bool:
    if handler.headers.get("Authorization") == "Basic " + base64.b64encode(b"bob:secret").decode():
        return False
    return handler.reply(401, WWW_Authenticate='Basic realm="x"')


BROKEN = {
    "exits": (
        "#!/bin/sh\necho no keyring here >&2; echo cannot; exit 3\n",
        Unsupported,
        "get is not supported: cannot",
    ),
    "no JSON": ("#!/bin/sh\necho hello\n", Unsupported, "its answer is not JSON"),
    "no login": ('#!/bin/sh\necho "{}"\n', Unsupported, "its answer holds no login"),
    "endless": ("#!/bin/sh\nhead -c 2000000 /dev/zero\n", Unsupported, "its answer is too long"),
    "hangs": ("#!/bin/sh\nexec sleep 100\n", TimedOut, "did not end within 0.3 seconds"),
    "no program": ("\x7fELF nonsense", Unsupported, "docker-credential-bad get"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_helpers_that_fail(
    fake: FakeRegistry, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    script, error, why = BROKEN[how]
    (folder / "docker-credential-bad").write_text(script)
    (folder / "docker-credential-bad").chmod(0o755)
    monkeypatch.setattr(helpers, "TIMEOUT", 0.3 if how == "hangs" else 10)
    with pytest.raises(error, match=why):
        helpers.get("bad", "x")
    # Nothing else is tried in its place, and nobody is asked without need.
    config(tmp_path).parent.mkdir(parents=True)
    config(tmp_path).write_text(json.dumps({"credsStore": "bad", "auths": {"other": {"auth": "eDp5"}}}))
    sample = fake.add("v1", Sample())
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    assert client.manifest("v1")[0]["digest"] == sample.digest
    fake.rule("/v2/", wants_basic)
    with pytest.raises(AuthError, match=r"leaves logins for .* to a credential helper, and docker-credential-bad"):
        client.manifest("v1")
    client.close()


def test_identity_tokens(fake: FakeRegistry, folder: Path, tmp_path: Path) -> None:
    fake.add("v1", Sample())
    bodies = []

    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer good":
            return False
        return handler.reply(401, WWW_Authenticate=f'Bearer realm="{fake.url}/token",service="s"')

    def give(handler: Handler) -> bool:
        if handler.command != "POST":
            return handler.reply(405)
        bodies.append(parse_qs(handler.body.decode()))
        if bodies[-1]["refresh_token"] != ["refresh-me"]:
            return handler.reply(400, b'{"error": "invalid_grant"}')
        return handler.reply(200, json.dumps({"access_token": "good", "expires_in": 300}).encode())

    fake.rule("/v2/", check)
    fake.rule("/token", give)
    helpers.store("kept", fake.host, Credentials("", "", "", "refresh-me"))
    assert json.loads((folder / "kept").read_text())[fake.host]["Username"] == "<token>"
    config(tmp_path).parent.mkdir(parents=True)
    config(tmp_path).write_text(json.dumps({"credsStore": "kept"}))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    client.manifest("v1")
    assert bodies[0]["grant_type"] == ["refresh_token"]
    assert bodies[0]["scope"] == [f"repository:{REPOSITORY}:pull"]
    assert "authorization" not in fake.asked("/token")[0].headers
    assert "refresh" not in fake.asked("/token")[0].path
    client.close()
    config(tmp_path).write_text(json.dumps({"auths": {fake.host: {"identitytoken": "stale"}}}))
    client = Client(fake.host, REPOSITORY, policy=QUICK)
    with pytest.raises(AuthError, match="refuses the login by identity token kept in") as caught:
        client.manifest("v1")
    assert "stale" not in str(caught.value)
    client.close()

"""Mirrors, other locations, certificates and proxies, as the operator's files and environment say."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Sample
from hostile import AMD64, QUICK

from knarr.base.errors import AuthError, FileError, KnarrError, NotFound, RegistryError, SpecError, Unsupported
from knarr.content.store import Store
from knarr.image.pull import copy
from knarr.registry.proxy import proxy_for
from knarr.registry.settings import Certificates, Endpoint, config_files, settings_for
from knarr.registry.sink import open_sink
from knarr.registry.source import open_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def ask(tmp_path: Path, text: str, registry: str, repository: str = "a/b") -> list[Endpoint]:
    (tmp_path / "r.conf").write_text(text)
    environ = {"KNARR_REGISTRIES_CONF": str(tmp_path / "r.conf")}
    return list(settings_for(registry, repository, environ).endpoints)


EXAMPLE = """
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "docker.io"
location = "hub.local:5000/hub"
[[registry.mirror]]
location = "mirror.local/m"
insecure = true
[[registry.mirror]]
location = "second.local"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "docker.io/special"
location = "docker.io/special"
insecure = true
[[registry]]
prefix = "*.example.com"
location = "one.local/x"
[[registry]]
location = "plain.local"
blocked = true
[aliases]
"""


def test_locations_and_mirrors(tmp_path: Path) -> None:
    assert ask(tmp_path, EXAMPLE, "docker.io", "library/busybox") == [
        Endpoint("mirror.local", "m/library/busybox", insecure=True),
        Endpoint("second.local", "library/busybox", only="digest"),
        Endpoint("hub.local:5000", "hub/library/busybox"),
    ]
    assert ask(tmp_path, EXAMPLE, "docker.io", "special/x") == [Endpoint("docker.io", "special/x", insecure=True)]
    assert ask(tmp_path, EXAMPLE, "docker.io", "specially/x")[-1].registry == "hub.local:5000"  # whole parts only
    assert ask(tmp_path, EXAMPLE, "deep.in.example.com:8", "r") == [Endpoint("one.local", "x/r")]
    assert ask(tmp_path, EXAMPLE, "example.com", "r") == [Endpoint("example.com", "r")]
    assert ask(tmp_path, EXAMPLE, "quay.io", "r") == [Endpoint("quay.io", "r")]
    with pytest.raises(RegistryError, match=r"plain\.local is blocked in"):
        ask(tmp_path, EXAMPLE, "plain.local", "r")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[registry]", "is not TOML"),
        ("registry = 1", r"/registry\b.*must be a list"),
        ("[[registry]]\nlocation = 1", "/registry/0/location"),
        ("[[registry]]\ninsecure = true", "needs a location or a prefix"),
        ('[[registry]]\nlocation = "https://x"', "without scheme"),
        ('[[registry]]\nlocation = "u:p@x.io"', "without scheme or login"),
        ('[[registry]]\nlocation = "x.io"\ninsecure = "yes"', "/registry/0/insecure"),
        ('[[registry]]\nlocation = "x.io"\nmirror = [1]', "/registry/0/mirror"),
        ('[[registry]]\nlocation = "x.io"\n[[registry.mirror]]\ninsecure = true', "/registry/0/mirror/0.*needs a location"),
        ('[[registry]]\nlocation = "x.io"\n[[registry.mirror]]\nlocation="y.io"\npull-from-mirror = "x"', "pull-from-mirror"),
        ('[[registry]]\nprefix = "quay.io"\nlocation = "nowhere"', "does not begin with a host"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        ask(tmp_path, text, "quay.io")
    assert str(tmp_path / "r.conf") in str(caught.value)


def test_which_files_count(tmp_path: Path) -> None:
    home = tmp_path / ".config"
    environ = {"HOME": str(tmp_path)}
    assert all(not path.startswith(str(tmp_path)) for path in config_files(environ))
    (home / "containers/registries.conf.d").mkdir(parents=True)
    (home / "containers/registries.conf").touch()
    (home / "containers/registries.conf.d/a.conf").touch()
    (home / "containers/registries.conf.d/a.txt").touch()
    mine = [path for path in config_files(environ) if path.startswith(str(tmp_path))]
    assert mine == [f"{home}/containers/registries.conf", f"{home}/containers/registries.conf.d/a.conf"]
    (home / "knarr").mkdir()
    (home / "knarr/registries.conf").touch()
    assert config_files(environ) == [f"{home}/knarr/registries.conf"]


def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.conf").write_text(text)
    monkeypatch.setenv("KNARR_REGISTRIES_CONF", str(tmp_path / "r.conf"))


def pull(store: Store, registry: str, reference: str = "v1", **options: Any) -> str:
    tag, digest = ("", reference) if ":" in reference else (reference, "")
    source = open_image(registry, REPOSITORY, tag, digest, policy=QUICK, **options)
    try:
        return copy(source, store, ["x"], platform=AMD64).digest
    finally:
        source.close()


def test_mirrors_are_asked_first_and_the_registry_when_they_fail(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Sample(1000, 2000)
    text = f'[[registry]]\nprefix = "far.example"\nlocation = "{fake.host}"\n[[registry.mirror]]\nlocation = "{elsewhere.host}"\n'
    configured(monkeypatch, tmp_path, text)
    fake.add("v1", sample)
    elsewhere.add("v1", sample)
    assert pull(store, "far.example") == sample.digest
    assert fake.log == []
    # it has the manifest, but not that layer
    del elsewhere.blobs[sample.layers[0]["digest"]]
    other = Store.open(str(tmp_path / "other"))
    assert pull(other, "far.example") == sample.digest
    assert fake.asked(sample.layers[0]["digest"])
    # it lies: then it is an error, and never what it says
    elsewhere.blobs[sample.layers[0]["digest"]] = bytes(sample.layers[0]["size"])
    with pytest.raises(KnarrError, match=sample.layers[0]["digest"]):
        pull(Store.open(str(tmp_path / "third")), "far.example")
    # it has nothing; the registry neither: both are told
    elsewhere.manifests.clear()
    fake.manifests.clear()
    with pytest.raises(NotFound) as caught:
        pull(Store.open(str(tmp_path / "fourth")), "far.example")
    assert any(elsewhere.host in note for note in caught.value.__notes__)


def test_credentials_do_not_go_to_a_mirror(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hostile import BOB

    configured(
        monkeypatch,
        tmp_path,
        f'[[registry]]\nprefix = "far.example"\nlocation = "{fake.host}"\n[[registry.mirror]]\nlocation = "{elsewhere.host}"\n',
    )
    sample = fake.add("v1", Sample())
    elsewhere.rule("/v2/", lambda handler: handler.reply(401, WWW_Authenticate='Basic realm="x"'))
    assert pull(store, "far.example", credentials=BOB) == sample.digest
    assert all("authorization" not in one.headers for one in elsewhere.log)


def test_pushes_go_to_the_registry_itself(
    store: Store, fake: FakeRegistry, elsewhere: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_push import send

    configured(
        monkeypatch,
        tmp_path,
        f'[[registry]]\nprefix = "far.example"\nlocation = "{fake.host}"\n[[registry.mirror]]\nlocation = "{elsewhere.host}"\n',
    )
    sample = Sample(1000)
    sample.into(store, "x")
    send(store, open_sink("far.example", REPOSITORY, "v1", policy=QUICK))
    assert "v1" in fake.manifests
    assert elsewhere.log == []


# Certificates


def made(where: Path) -> None:
    """An authority with a certificate for 127.0.0.1 and one for a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=where, check=True, capture_output=True)

    run(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
    )
    (where / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip


def test_authorities_and_client_certificates(store: Store, tmp_path: Path) -> None:
    made(tmp_path)
    with FakeRegistry((str(tmp_path / "server.pem"), str(tmp_path / "server.key"))) as server:
        context = server._server.socket.context  # type: ignore[attr-defined]  # the fake's own
        context.load_verify_locations(str(tmp_path / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        sample = server.add("v1", Sample())
        folder = tmp_path / "home/.config/containers/certs.d" / server.host
        with pytest.raises(RegistryError, match="certificate is not valid"):
            pull(store, server.host)
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "ca.crt", folder / "ca.crt")
        with pytest.raises(RegistryError, match="TLS failed"):  # it wants a certificate of ours
            pull(store, server.host)
        shutil.copy(tmp_path / "client.pem", folder / "me.cert")
        with pytest.raises(FileError, match=r"me\.key.*belong together"):
            pull(store, server.host)
        shutil.copy(tmp_path / "client.key", folder / "me.key")
        assert pull(store, server.host) == sample.digest
        (folder / "me.cert").write_text("nonsense")
        with pytest.raises(FileError, match="no certificate in PEM form"):
            pull(Store.open(str(tmp_path / "other")), server.host)


def test_where_certificates_are(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "KNARR_REGISTRIES_CONF": str(tmp_path / "none.conf")}
    (tmp_path / "none.conf").touch()
    mine = tmp_path / ".config/knarr/certs.d/r.local:5000"
    mine.mkdir(parents=True)
    for name in ("b.crt", "a.crt", "readme", "x.cert", "x.key"):
        (mine / name).touch()
    assert settings_for("r.local:5000", "a", environ).certificates == Certificates(
        (f"{mine}/a.crt", f"{mine}/b.crt"), f"{mine}/x.cert", f"{mine}/x.key"
    )
    assert settings_for("r.local", "a", environ).certificates == Certificates()


# Proxies


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, "https://r.io:443", "http://p:1"),
        ({"https_proxy": "p:1"}, "https://r.io:443", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://r.io:80", ""),
        ({"HTTP_PROXY": "http://p:1"}, "http://r.io:80", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://r.io:80", ""),
        ({"ALL_PROXY": "http://p:1"}, "https://r.io:443", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https://localhost:443", ""),
        ({"HTTPS_PROXY": "http://p:1"}, "https://127.1:443", ""),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "r.io"}, "https://r.io:443", ""),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "r.io"}, "https://a.r.io:443", ""),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "r.io"}, "https://bar.io:443", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": " x , *.r.io"}, "https://a.r.io:443", ""),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "r.io:444"}, "https://r.io:443", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3:443", ""),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3:443", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://r.io:443", ""),
        ({}, "https://r.io:443", ""),
    ],
)  # fmt: skip
def test_which_proxy(environ: dict[str, str], url: str, proxy: str) -> None:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    assert proxy_for(scheme, host, int(port), environ) == proxy


@pytest.mark.parametrize("value", ["socks5://p:1", "http://", "http://p:0", "http://p:x"])
def test_proxies_that_are_none(value: str) -> None:
    with pytest.raises(Unsupported, match="the proxy in HTTPS_PROXY"):
        proxy_for("https", "r.io", 443, {"HTTPS_PROXY": value})


class Proxy:
    """An HTTP proxy that tunnels everything to one place, or says no; ``heads`` are what it was sent."""

    def __init__(self, target: str, status: int = 200) -> None:
        self.heads: list[str] = []
        self._target = target
        self._status = status
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:pass%20word@127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._one, args=(client,), daemon=True))
            self._threads[-1].start()

    def _one(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (data := client.recv(4096)):
            head += data
        self.heads.append(head.decode())
        if self._status != 200:
            client.sendall(f"HTTP/1.1 {self._status} no\r\nContent-Length: 0\r\n\r\n".encode())
            client.close()
            return
        host, _, port = self._target.rpartition(":")
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed before
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def behind(certificate: tuple[str, str]) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate) as server:
        yield server


def test_a_pull_through_a_proxy(
    store: Store, behind: FakeRegistry, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = behind.add("v1", Sample(1000))
    proxy = Proxy(behind.host)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    # A name nobody could look up: only the proxy knows the way.
    assert pull(store, "auth.example", ca_file=certificate[0]) == sample.digest
    login = base64.b64encode(b"user:pass word").decode()
    assert proxy.heads[0].startswith("CONNECT auth.example:443 HTTP/1.")
    assert f"proxy-authorization: Basic {login}".lower() in proxy.heads[0].lower()
    assert all("proxy-authorization" not in one.headers for one in behind.log)
    proxy.close()


@pytest.mark.parametrize("how", ["407", "gone"])
def test_a_proxy_that_fails(store: Store, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy("127.0.0.1:1", 407)
    if how == "gone":
        proxy.close()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    with pytest.raises(RegistryError, match="the proxy fails") as caught:
        pull(store, "auth.example")
    assert "pass" not in str(caught.value)
    assert not isinstance(caught.value, AuthError)
    proxy.close()

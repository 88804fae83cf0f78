"""Keyless signatures with a sigstore of our own: real certificates, a real log, no network; what does not count."""

from __future__ import annotations

import base64
import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from dockerregistry import docker_registry, need_docker_registry
from imagekit import layout
from tarbuilder import f

pytest.importorskip("sigstore", reason="the extra knarr[keyless] is not installed")
from sigstorekit import IDENTITY, ISSUER, Sigstore, signed

from knarr.base.errors import KnarrError, NotFound, SignatureError, SpecError, Unsupported
from knarr.engine.imaging.artifacts import artifact
from knarr.engine.imaging.blobs import in_memory
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.keyless import BUNDLE_TYPE, PREDICATE, keyless, verify_keyless
from knarr.engine.imaging.policy import check, read_policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

SIGSTORE = Sigstore()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying asks nobody: only this machine's addresses can be reached."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        assert isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "::1", "localhost"), address
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def statement(digest: str, **more: Any) -> dict[str, Any]:
    """What cosign 3 signs."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}, "annotations": {}}],
        "predicateType": PREDICATE,
        "predicate": {},
        **more,
    }


def attach(image: Image, ref: str, bundle: bytes, kind: str = BUNDLE_TYPE) -> None:
    """Put a bundle beside an image, as cosign does: an artifact that refers to it."""
    layer, opener = in_memory(bundle, kind)
    made = artifact([layer], {layer["digest"]: opener}, kind=BUNDLE_TYPE, subject=image.descriptor)
    made.save(f"{ref.rpartition(':')[0]}:bundle-{layer['digest'][7:20]}")


def root(tmp_path: Path) -> str:
    return SIGSTORE.trusted_root(tmp_path / "root.json")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("identity", [IDENTITY, "me@example.org"])
def test_a_good_one(tmp_path: Path, cli: Cli, identity: str, old: bool) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    attach(image, ref, SIGSTORE.bundle(statement(image.digest), identity=identity, old=old))
    (found,) = verify_keyless(Image.open(ref), ref, keyless(identity, ISSUER, root(tmp_path)))
    assert (found.digest, found.identity, found.issuer) == (image.digest, identity, ISSUER)
    options = [
        "--certificate-identity",
        identity,
        "--certificate-oidc-issuer",
        ISSUER,
        "--trusted-root",
        root(tmp_path),
    ]
    code, out, err = cli("image", "verify", *options, ref)
    assert code == 0, err
    assert out == f"{image.digest}\nsigned by {identity}, says {ISSUER}\n"
    code, out, _ = cli("image", "verify", "--json", *options, ref)
    assert json.loads(out)["signatures"] == [{"identity": identity, "annotations": {}, "key": -1, "issuer": ISSUER}]


def test_in_a_registry(tmp_path: Path, cli: Cli) -> None:
    need_docker_registry()
    with docker_registry(tmp_path / "r") as host:
        ref = f"docker://{host}/x:v1"
        assert cli("image", "copy", "-q", layout(tmp_path / "l", [f("a")]), ref)[0] == 0
        with Image.open(ref) as image:
            attach(image, ref, SIGSTORE.bundle(statement(image.digest)))
        options = ["--certificate-identity", IDENTITY, "--certificate-oidc-issuer", ISSUER]
        code, out, err = cli("image", "verify", *options, "--trusted-root", root(tmp_path), ref)
        assert code == 0, err
        assert out.startswith(image.digest)


def spoiled(where: str, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Change one member of a bundle: a bit of its bytes, or another value."""

    def change(bundle: dict[str, Any]) -> None:
        *path, last = where.split("/")
        at: Any = bundle
        for part in path:
            at = at[int(part) if part.isdigit() else part]
        key: Any = int(last) if last.isdigit() else last
        if value is not None:
            at[key] = value
        else:
            data = bytearray(base64.b64decode(at[key]))
            data[len(data) // 2] ^= 1
            at[key] = base64.b64encode(data).decode()

    return change


ENTRY = "verificationMaterial/tlogEntries/0"
CASES: dict[str, dict[str, Any]] = {
    "another identity": {"identity": "https://github.com/evil/app"},
    "another issuer": {"issuer": "https://accounts.example.org"},
    "too late": {"at": 3600},
    "too early": {"at": -3600},
    "no timestamp of the certificate": {"sct": False},
    "another payload type": {"kind": "text/plain"},
    "signature changed": {"change": spoiled("dsseEnvelope/signatures/0/sig")},
    "payload changed": {"change": spoiled("dsseEnvelope/payload")},
    "certificate changed": {"change": spoiled("verificationMaterial/certificate/rawBytes")},
    "log entry changed": {"change": spoiled(f"{ENTRY}/canonicalizedBody")},
    "promise changed": {"change": spoiled(f"{ENTRY}/inclusionPromise/signedEntryTimestamp")},
    "root hash changed": {"change": spoiled(f"{ENTRY}/inclusionProof/rootHash")},
    "proof changed": {"change": spoiled(f"{ENTRY}/inclusionProof/hashes/0")},
    "time changed": {"change": spoiled(f"{ENTRY}/integratedTime", "1772323300")},
    "no proof": {"change": lambda bundle: bundle["verificationMaterial"]["tlogEntries"][0].pop("inclusionProof")},
    "no entry": {"change": lambda bundle: bundle["verificationMaterial"].update(tlogEntries=[])},
    "no envelope": {"change": lambda bundle: bundle.pop("dsseEnvelope")},
    "another version": {"change": spoiled("mediaType", "application/vnd.dev.sigstore.bundle+json;version=9")},
    "certificate of no DER": {"change": spoiled("verificationMaterial/certificate/rawBytes", "AAAA")},
    "a checkpoint of nothing": {"change": spoiled(f"{ENTRY}/inclusionProof/checkpoint/envelope", "\n\n")},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_count(tmp_path: Path, case: str) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    attach(image, ref, SIGSTORE.bundle(statement(image.digest), **CASES[case]))
    with pytest.raises(SignatureError) as error:
        verify_keyless(Image.open(ref), ref, keyless(IDENTITY, ISSUER, root(tmp_path)))
    assert "signature sha256:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", [
    {"predicateType": "https://slsa.dev/provenance/v1"}, {"_type": "x"}, {"subject": []}, {"subject": None},
    {"subject": [{"digest": {"sha256": "a" * 64}}]}, {"subject": [{"digest": {"sha512": "b"}}]}, {"subject": ["x"]},
])  # fmt: skip
def test_a_statement_of_something_else(tmp_path: Path, said: dict[str, Any]) -> None:
    """Signed rightly by the right one, but no signature of this image: an attestation is none."""
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    attach(image, ref, SIGSTORE.bundle(statement(image.digest, **said)))
    with pytest.raises(SignatureError):
        verify_keyless(Image.open(ref), ref, keyless(IDENTITY, ISSUER, root(tmp_path)))


def test_another_authority_log_or_certificate_log(tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    attach(image, ref, SIGSTORE.bundle(statement(image.digest)))
    for part in ("authority", "log", "certificate_log"):
        other = Sigstore()
        for same in {"authority", "log", "certificate_log"} - {part}:
            setattr(other, same, getattr(SIGSTORE, same))
        if part != "authority":
            other.root = SIGSTORE.root
        with pytest.raises(SignatureError):
            verify_keyless(Image.open(ref), ref, keyless(IDENTITY, ISSUER, other.trusted_root(tmp_path / part)))


@pytest.mark.parametrize(
    "bundle", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"mediaType": 7}', b"x" * (1 << 20 | 1)]
)
def test_bundles_that_are_none(tmp_path: Path, bundle: bytes) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    attach(Image.open(ref), ref, bundle)
    with pytest.raises(SignatureError, match="has 1048577 bytes" if len(bundle) > 1 << 20 else "signature sha256:"):
        verify_keyless(Image.open(ref), ref, keyless(IDENTITY, ISSUER, root(tmp_path)))


def test_none_at_all_and_one_in_the_older_form(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    wanted = keyless(IDENTITY, ISSUER, root(tmp_path))
    with pytest.raises(SignatureError, match="there is none"):
        verify_keyless(image, ref, wanted)
    layer, opener = in_memory(b"{}", "application/vnd.dev.cosign.simplesigning.v1+json")
    layer["annotations"] = {"dev.sigstore.cosign/certificate": "…"}
    made = artifact([layer], {layer["digest"]: opener}, kind="application/x")
    made.save(f"oci:{tmp_path / 'l'}:{image.digest.replace(':', '-')}.sig")
    with pytest.raises(SignatureError, match="older form"):
        verify_keyless(image, ref, wanted)


def test_a_policy(tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    attach(image, ref, SIGSTORE.bundle(statement(image.digest)))
    path = tmp_path / "policy.json"
    asks = {
        "type": "sigstoreKeyless", "trustedRootPath": root(tmp_path),
        "certificateIdentity": IDENTITY, "certificateOidcIssuer": ISSUER,
    }  # fmt: skip
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"oci": {"": [asks]}}}))
    (found,) = check(read_policy(str(path)), Image.open(ref), ref)
    assert found.identity == IDENTITY
    asks["certificateIdentity"] = "https://github.com/me/other"
    path.write_text(json.dumps({"default": [asks]}))
    with pytest.raises(SignatureError):
        check(read_policy(str(path)), Image.open(ref), ref)
    for member in ("trustedRootPath", "certificateIdentity", "certificateOidcIssuer"):
        path.write_text(json.dumps({"default": [{name: value for name, value in asks.items() if name != member}]}))
        with pytest.raises(SpecError, match=member):
            read_policy(str(path))
    path.write_text(json.dumps({"default": [{**asks, "subjectEmail": "x"}]}))
    with pytest.raises(SpecError, match="subjectEmail"):
        read_policy(str(path))
    path.write_text(json.dumps({"default": [{**asks, "trustedRootPath": "/nowhere/root.json"}]}))
    with pytest.raises(SpecError, match="nowhere"):
        read_policy(str(path))


def test_what_is_asked_for_wrongly(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    code, _, err = cli("image", "verify", "--certificate-identity", "x", ref)
    assert code == 125
    assert "--trusted-root" in err
    code, _, err = cli("image", "verify", "--key", "k", "--trusted-root", "x", ref)
    assert code == 125
    with pytest.raises(NotFound, match="trust root"):
        keyless("x", "y", str(tmp_path / "none"))
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(SpecError, match="trust root"):
        keyless("x", "y", str(tmp_path / "bad"))
    with pytest.raises(KnarrError):
        keyless("x", "y", "/dev/zero")
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(Unsupported, match="keyless"):
        keyless("x", "y", root(tmp_path))


def test_the_kit_signs_nothing_by_chance() -> None:
    """The test's own signer is not one that always fits."""
    assert signed(SIGSTORE.log, b"a") != signed(SIGSTORE.authority, b"a")

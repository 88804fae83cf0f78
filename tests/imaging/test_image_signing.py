"""Signatures: openssl agrees with what we sign, skopeo where it is built with sigstore; nothing passes that was not signed, for this image, by this key."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from dockerregistry import docker_registry, need_docker_registry
from imagekit import call, layout, opened, program
from tarbuilder import f

from knarr.base.errors import FileError, KnarrError, NotFound, SignatureError, SpecError, UsageError
from knarr.engine.imaging import signing
from knarr.engine.imaging.artifacts import artifact
from knarr.engine.imaging.blobs import in_memory
from knarr.engine.imaging.image import Image, Index
from knarr.engine.imaging.policy import check, read_policy
from knarr.engine.imaging.validate import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

KINDS = {
    "ecdsa": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "ed25519": ["-algorithm", "ED25519"],
    "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
}


def keys(path: Path) -> tuple[Any, Any]:
    """A private and a public key."""
    signing.make_keys(str(path))
    return signing.load_private(str(path)), signing.read_public(f"{path}.pub")


@pytest.mark.parametrize("kind", KINDS)
def test_signed_with_keys_of_openssl(kind: str, tmp_path: Path) -> None:
    call(program("openssl"), "genpkey", *KINDS[kind], "-out", str(tmp_path / "k"))
    call(program("openssl"), "pkey", "-in", str(tmp_path / "k"), "-pubout", "-out", str(tmp_path / "k.pub"))
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    made = signing.sign(image, ref, signing.load_private(str(tmp_path / "k")), annotations={"a": "b"})
    (signed,) = signing.verify(
        Image.open(ref), ref, [signing.read_public(str(tmp_path / "k.pub"))], annotations={"a": "b"}
    )
    assert (signed.digest, signed.identity, signed.annotations) == (image.digest, f"oci:{tmp_path}/l:v1", {"a": "b"})
    assert [str(finding) for finding in validate(f"oci:{tmp_path}/l")] == []
    # openssl agrees with the bytes
    layer = made.manifest["layers"][0]
    (tmp_path / "payload").write_bytes(made.blobs.read(layer))
    (tmp_path / "sig").write_bytes(base64.b64decode(layer["annotations"][signing.SIGNATURE]))
    if kind != "ed25519":
        call(program("openssl"), "dgst", "-sha256", "-verify", str(tmp_path / "k.pub"), "-signature", str(tmp_path / "sig"), str(tmp_path / "payload"))  # fmt: skip


def test_the_same_signature_each_time_and_next_to_others(tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    (one, public_one), (two, public_two) = keys(tmp_path / "one"), keys(tmp_path / "two")
    first = signing.sign(image, ref, one)
    assert signing.sign(image, ref, one).digest == first.digest
    both = signing.sign(image, ref, two)
    assert len(both.manifest["layers"]) == 2
    assert len(signing.verify(image, ref, [public_one, public_two])) == 2
    assert [signed.key for signed in signing.verify(image, ref, [public_two])] == [0]


def evil(tmp_path: Path, case: str) -> tuple[str, Any]:
    """A layout whose image is not signed by the key that comes with it, in one of many ways."""
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    private, public = keys(tmp_path / "k")
    other, _ = keys(tmp_path / "other")
    payload = signing.payload_of(image.digest, "x")
    text = base64.b64encode(signing._made(private, payload)).decode()
    kind = signing.PAYLOAD_TYPE
    if case == "another key":
        text = base64.b64encode(signing._made(other, payload)).decode()
    elif case == "another image":
        payload = signing.payload_of("sha256:" + "a" * 64, "x")
        text = base64.b64encode(signing._made(private, payload)).decode()
    elif case == "payload changed":
        payload = payload.replace(b'"x"', b'"y"')
    elif case == "another type":
        payload = payload.replace(b"cosign container", b"some container")
        text = base64.b64encode(signing._made(private, payload)).decode()
    elif case == "no payload":
        payload = b'{"critical": 5}'
        text = base64.b64encode(signing._made(private, payload)).decode()
    elif case == "no JSON":
        payload = b"\xff"
        text = base64.b64encode(signing._made(private, payload)).decode()
    elif case == "no base64":
        text = "?"
    elif case == "no signature":
        text = ""
    elif case == "another media type":
        kind = "application/json"
    layer, opener = in_memory(payload, kind)
    layer["annotations"] = {signing.SIGNATURE: text}
    if case != "nothing":
        made = artifact([layer], {layer["digest"]: opener}, kind=signing.ARTIFACT_TYPE, subject=image.descriptor)
        made.save(signing.signature_reference(ref, image.digest))
    return ref, public


@pytest.mark.parametrize(
    "case",
    [
        "nothing", "another key", "another image", "payload changed", "another type", "no payload", "no JSON", "no base64",
        "no signature", "another media type",
    ],
)  # fmt: skip
def test_what_does_not_count(case: str, tmp_path: Path) -> None:
    ref, public = evil(tmp_path, case)
    with pytest.raises(SignatureError):
        signing.verify(Image.open(ref), ref, [public])


def test_the_same_made_right_does_count(tmp_path: Path) -> None:
    ref, public = evil(tmp_path, "nothing wrong")
    assert signing.verify(Image.open(ref), ref, [public])
    with pytest.raises(SignatureError, match="does not say c"):
        signing.verify(Image.open(ref), ref, [public], annotations={"c": "d"})


def test_as_cosign_lays_it_down(tmp_path: Path) -> None:
    """A manifest of image type with a config, no subject: cosign 1 and 2 write that."""
    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    private, public = keys(tmp_path / "k")
    payload = signing.payload_of(image.digest, "ghcr.io/me/app")
    layer, opener = in_memory(payload, signing.PAYLOAD_TYPE)
    layer["annotations"] = {signing.SIGNATURE: base64.b64encode(signing._made(private, payload)).decode()}
    config = json.dumps(
        {"architecture": "", "os": "", "created": "0001-01-01T00:00:00Z", "config": {}, "history": [{"created": "0001-01-01T00:00:00Z"}],
         "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    ).encode()  # fmt: skip
    made = artifact(
        [layer], {layer["digest"]: opener}, kind="x/y", config=(config, "application/vnd.oci.image.config.v1+json")
    )
    manifest = {key: value for key, value in made.manifest.items() if key != "artifactType"}
    made = made.with_documents(manifest, None)
    made.save(signing.signature_reference(ref, image.digest))
    (signed,) = signing.verify(image, ref, [public])
    assert signed.identity == "ghcr.io/me/app"


def test_found_as_a_referrer(tmp_path: Path) -> None:
    from knarr.engine.imaging.artifacts import attach

    ref = layout(tmp_path / "l", [f("a")])
    image = Image.open(ref)
    private, public = keys(tmp_path / "k")
    made = signing.sign(image, "elsewhere:1", private)
    attach(made, ref)
    assert signing.verify(Image.open(ref), ref, [public])


def test_an_index_is_signed_itself(tmp_path: Path) -> None:
    amd, arm = opened(tmp_path / "a", [f("amd")]), opened(tmp_path / "b", [f("arm")], platform="linux/arm64")
    index = Index.of([amd, arm]).save("app:1")
    private, public = keys(tmp_path / "k")
    signing.sign(index, "app:1", private)
    assert signing.verify(Index.open("app:1"), "app:1", [public])[0].digest == index.digest
    with pytest.raises(SignatureError):
        signing.verify(Image.open("app:1", platform="linux/amd64"), "app:1", [public])


def test_keys(tmp_path: Path) -> None:
    path = str(tmp_path / "k")
    signing.make_keys(path, b"secret")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert signing.load_private(path, b"secret")
    for password in (b"", b"wrong"):
        with pytest.raises(UsageError):
            signing.load_private(path, password)
    with pytest.raises(FileError):
        signing.make_keys(path)
    with pytest.raises(UsageError, match="no public key"):
        signing.read_public(path)
    with pytest.raises(NotFound):
        signing.read_public(str(tmp_path / "none"))
    (tmp_path / "cosign").write_text("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    with pytest.raises(UsageError, match="cosign's own"):
        signing.load_private(str(tmp_path / "cosign"))
    weak = tmp_path / "weak"
    call(program("openssl"), "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", str(weak))
    key = signing.load_private(str(weak))
    assert not signing._is_good(key.public_key(), signing._made(key, b"x"), b"x")


@pytest.mark.parametrize("text", ["oci-archive:x.tar", "docker-archive:x.tar", "dir:x"])
def test_places_without_room_for_signatures(text: str) -> None:
    with pytest.raises(UsageError, match="beside an image"):
        signing.signature_reference(text, "sha256:" + "a" * 64)


# -- policies ----------------------------------------------------------------------------------------------


def policy(tmp_path: Path, **document: Any) -> Any:
    (tmp_path / "policy.json").write_text(json.dumps({"default": [{"type": "reject"}], **document}))
    return read_policy(str(tmp_path / "policy.json"))


def test_the_narrowest_scope_decides(tmp_path: Path) -> None:
    accept, reject = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    scopes = {
        "ghcr.io": accept, "ghcr.io/bad": reject, "ghcr.io/bad/good": accept, "ghcr.io/bad/good:evil": reject,
        "*.example.org": accept, "x.example.org": reject,
    }  # fmt: skip
    made = policy(tmp_path, transports={"docker": scopes, "oci": {"/srv": accept, "/srv/no": reject}})

    def trusted(text: str) -> bool:
        return [one.kind for one in made.requirements(text)] == ["accept"]

    assert trusted("ghcr.io/any/thing")
    assert trusted("docker://ghcr.io/any/thing:1")
    assert not trusted("ghcr.io/bad/thing")
    assert trusted("ghcr.io/bad/good:1")
    assert not trusted("ghcr.io/bad/good:evil")
    assert trusted("a.b.example.org/x")
    assert not trusted("x.example.org/x")
    assert not trusted("example.org/x")
    assert not trusted("busybox")
    assert trusted("oci:/srv/a:v1")
    assert not trusted("oci:/srv/no/a:v1")


def test_a_signed_scope(tmp_path: Path) -> None:
    private, _ = keys(tmp_path / "k")
    image = opened(tmp_path / "l", [f("a")]).save("ghcr.io/me/app:1")
    need = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub"}
    made = policy(tmp_path, transports={"docker": {"ghcr.io/me": [need]}})
    with pytest.raises(SignatureError, match="there is none"):
        check(made, image, "ghcr.io/me/app:1")
    signing.sign(image, "ghcr.io/me/app:1", private)
    assert check(made, image, "ghcr.io/me/app:1")[0].identity == "ghcr.io/me/app"
    with pytest.raises(SignatureError, match="rejects"):
        check(made, image, "other:1")
    data = base64.b64encode((tmp_path / "k.pub").read_bytes()).decode()
    by_data = policy(tmp_path, transports={"docker": {"": [{"type": "sigstoreSigned", "keyData": data}]}})
    assert check(by_data, image, "ghcr.io/me/app:1")


@pytest.mark.parametrize(
    ("identity", "signed_as", "good"),
    [
        ({"type": "matchRepository"}, "ghcr.io/me/app:other", True),
        ({"type": "matchRepository"}, "ghcr.io/me/evil", False),
        ({"type": "matchExact"}, "ghcr.io/me/app:1", True),
        ({"type": "matchExact"}, "ghcr.io/me/app:2", False),
        ({"type": "matchRepoDigestOrExact"}, "ghcr.io/me/app:2", False),
        ({"type": "matchRepoDigestOrExact"}, "ghcr.io/me/app", True),
        ({"type": "exactRepository", "dockerRepository": "ghcr.io/x/y"}, "ghcr.io/x/y:7", True),
        ({"type": "exactReference", "dockerReference": "ghcr.io/x/y:7"}, "ghcr.io/x/y:8", False),
        (None, "ghcr.io/me/app", True),
        (None, "ghcr.io/me/another", False),
    ],
)
def test_identities(identity: dict[str, str] | None, signed_as: str, good: bool, tmp_path: Path) -> None:
    private, _ = keys(tmp_path / "k")
    image = opened(tmp_path / "l", [f("a")]).save("ghcr.io/me/app:1")
    signing.sign(image, "ghcr.io/me/app:1", private, identity=signed_as)
    need: dict[str, Any] = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub"}
    if identity:
        need["signedIdentity"] = identity
    made = policy(tmp_path, transports={"docker": {"": [need]}})
    if good:
        assert check(made, image, "ghcr.io/me/app:1")
    else:
        with pytest.raises(SignatureError, match="wants another name"):
            check(made, image, "ghcr.io/me/app:1")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"default": []}, "at least one"),
        ({"default": [{"type": "signedBy"}]}, "'signedBy'"),
        ({"default": [{"type": "sigstoreSigned"}]}, "names no key"),
        ({"default": [{"type": "sigstoreSigned", "keyPath": "/none"}]}, "/none"),
        ({"default": [{"type": "sigstoreSigned", "keyData": "?"}]}, "keyData"),
        ({"default": [{"type": "sigstoreSigned", "keyPath": "/none", "fulcio": {}}]}, "fulcio"),
        ({"other": 1}, "/other"),
        ({"transports": {"docker": []}}, "must be an object"),
    ],
)
def test_a_policy_that_is_half_understood_is_none(document: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        policy(tmp_path, **document)


# -- skopeo, and the commands ------------------------------------------------------------------------------


def test_over_a_registry_and_skopeo_where_it_can(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        ref = f"docker://{host}/me/app:1"
        opened(tmp_path / "l", [f("a")]).save(ref)
        assert cli("image", "key", f"{tmp_path}/k")[0] == 0
        need = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub", "signedIdentity": {"type": "matchRepository"}}
        rules = {"default": [{"type": "reject"}], "transports": {"docker": {host: [need]}}}
        (tmp_path / "policy.json").write_text(json.dumps(rules))
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "x.yaml").write_text(f"docker:\n  {host}:\n    use-sigstore-attachments: true\n")
        copy = [
            program("skopeo"), "--policy", f"{tmp_path}/policy.json", "--registries.d", f"{tmp_path}/d", "copy",
            "--src-tls-verify=false", "--remove-signatures", ref, f"dir:{tmp_path}/copy",
        ]  # fmt: skip
        done = subprocess.run(copy, capture_output=True, text=True, check=False)
        assert done.returncode != 0, "skopeo takes it unsigned, so the test shows nothing"
        assert cli("image", "verify", "--policy", f"{tmp_path}/policy.json", ref)[0] == 125
        code, out, err = cli("image", "sign", "--key", f"{tmp_path}/k", "-a", "by=me", ref)
        assert code == 0, err
        done = subprocess.run(copy, capture_output=True, text=True, check=False)
        # Debian builds skopeo without it: "Debian-local change: sigstore disabled", whoever signed the image.
        assert done.returncode == 0 or "sigstore disabled" in done.stderr, done.stderr
        code, said, _err = cli("image", "verify", "--policy", f"{tmp_path}/policy.json", ref)
        assert (code, said) == (0, f"{out.strip()}\nsigned as {host}/me/app by=me\n")
        told = json.loads(cli("image", "verify", "--json", "--key", f"{tmp_path}/k.pub", ref)[1])
        assert told == {
            "digest": out.strip(),
            "signatures": [{"identity": f"{host}/me/app", "annotations": {"by": "me"}, "key": 0}],
        }
        assert cli("image", "key", f"{tmp_path}/other")[0] == 0
        code, _said, err = cli("image", "verify", "--key", f"{tmp_path}/other.pub", ref)
        assert code == 125
        assert "was not made with this key" in err


def test_commands_refuse(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    assert "one of --key, --policy" in cli("image", "verify", ref)[2]
    monkeypatch.setenv("KNARR_KEY_PASSWORD", "secret")
    assert cli("image", "key", f"{tmp_path}/k")[0] == 0
    assert cli("image", "sign", "--key", f"{tmp_path}/k", ref)[0] == 0
    monkeypatch.delenv("KNARR_KEY_PASSWORD")
    assert "KNARR_KEY_PASSWORD" in cli("image", "sign", "--key", f"{tmp_path}/k", ref)[2]
    assert "NAME=VALUE" in cli("image", "verify", "--key", f"{tmp_path}/k.pub", "-a", "x", ref)[2]
    with pytest.raises(KnarrError):
        read_policy(str(tmp_path / "nothing"))


def test_the_policy_holds_when_images_are_fetched(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        ref = f"docker://{host}/me/app:1"
        image = opened(tmp_path / "l", [f("a")]).save(ref)
        private, _ = keys(tmp_path / "k")
        need = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub"}
        rules = {"default": [{"type": "reject"}], "transports": {"docker": {f"{host}/me": [need]}}}
        (tmp_path / "policy.json").write_text(json.dumps(rules))
        monkeypatch.setenv("KNARR_POLICY", f"{tmp_path}/policy.json")
        ways = (["pull", ref], ["image", "pull", ref], ["image", "copy", ref, f"oci:{tmp_path}/out:v1"])
        for words in ways:
            code, _out, err = cli(*words)
            assert code == 125, words
            assert "no signature that counts: there is none" in err
        assert cli("images", "--quiet")[1] == "", "what was refused is in the store"
        assert not (tmp_path / "out").exists()
        code, _out, err = cli("image", "copy", f"oci:{tmp_path}/l:v1", "other:1")
        assert code == 125
        assert "rejects it" in err
        image.save(f"docker-archive:{tmp_path}/d.tar:x:1")
        code, _out, err = cli("image", "load", "-i", f"{tmp_path}/d.tar")
        assert code == 125
        assert "rejects it" in err
        assert cli("images", "--quiet")[1] == ""
        signing.sign(image, ref, private)
        for words in ways:
            code, _out, err = cli(*words)
            assert code == 0, err
        monkeypatch.setenv("KNARR_POLICY", f"{tmp_path}/none.json")
        assert cli("image", "copy", ref, "again:1")[0] == 125, "a policy that is not there lets everything pass"


def test_signed_while_it_is_copied(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ref = layout(tmp_path / "l", [f("a")])
    key = f"{tmp_path}/k"
    assert cli("image", "key", key)[0] == 0
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        for target in (f"docker://{host}/me/app:1", f"oci:{tmp_path}/copy:v1", "store:me/app:1"):
            code, out, err = cli("image", "copy", "--sign-key", key, "-q", ref, target)
            assert code == 0, err
            assert out.strip() == cli("image", "verify", "--key", f"{key}.pub", target)[1].split()[0]
        code, out, err = cli("image", "push", "-q", "--sign-key", key, "me/app:1", f"docker://{host}/me/pushed:1")
        assert code == 0, err
        assert cli("image", "verify", "--key", f"{key}.pub", f"docker://{host}/me/pushed:1")[0] == 0
        assert "1" in cli("tags", f"{host}/me/pushed")[1].split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dir:D"], "beside an image"),
        (["-"], "beside an image"),
        (["oci-archive:D"], "beside an image"),
        (["--dry-run", "oci:D:v1"], "--dry-run"),
        (["--insecure-target", "docker://127.0.0.1:1/x:1"], "insecure"),
    ],
)
def test_what_cannot_be_signed_is_not_copied(words: list[str], said: str, tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    assert cli("image", "key", f"{tmp_path}/k")[0] == 0
    *options, target = words
    code, _out, err = cli(
        "image", "copy", "--sign-key", f"{tmp_path}/k", *options, ref, target.replace("D", str(tmp_path / "to"))
    )
    assert code in (2, 125)
    assert said in err
    code, _out, err = cli("image", "copy", "--sign-key", f"{tmp_path}/none", ref, f"oci:{tmp_path}/to:v1")
    assert (code, f"{tmp_path}/none" in err) == (125, True)
    assert not (tmp_path / "to").exists()

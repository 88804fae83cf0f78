"""Signatures of images in sigstore's format for keys: what ``cosign sign --key`` and ``skopeo`` write and read.

A signature is a small JSON document that names the image's digest, signed with a key, kept as a layer of a manifest
under the tag ``sha256-<hex>.sig`` beside the image (cosign, specs/SIGNATURE_SPEC.md; containers-policy.json(5)). The
document is the red hat "simple signing" one. Keys are PEM: ECDSA (P-256 as cosign makes them), Ed25519, RSA.

Keyless signatures (a certificate for an identity, a public log) are verified in ``keyless.py`` and not made: making one
asks sigstore's services on the network at every step.
"""

from __future__ import annotations

import base64
import binascii
import os
from errno import EINVAL, ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, NotFound, SignatureError, SpecError, SpecFinding, UsageError
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.engine.imaging.artifacts import artifact, referring
from knarr.engine.imaging.blobs import in_memory
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.opening import REMOTE, STORED
from knarr.image.reference import parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from knarr.engine.imaging.blobs import Opener
    from knarr.engine.imaging.image import Index
    from knarr.spec.image import Descriptor

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
_LIMIT = 1 << 20  # bytes of a key or payload
_MOST = 100  # signatures of one image that are looked at


class Signed(Record):
    """A signature that was found and is good: what it says, and the key (by its place in the list) that made it.

    Of a keyless one ``identity`` is who signed, ``issuer`` who vouched for that, and ``key`` -1.
    """

    digest: str
    identity: str
    annotations: dict[str, Any]
    key: int
    issuer: str = ""


# -- keys --------------------------------------------------------------------------------------------------


def make_keys(path: str, password: bytes = b"") -> str:
    """Make an ECDSA P-256 key pair: ``path``, encrypted if there is a password, and ``path``.pub; return the latter.

    Raises FileError, also when one of them is there.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    how: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, data, mode in ((path, private, 0o600), (f"{path}.pub", public, 0o644)):
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError as error:
            raise FileError("write the key", name, error.errno or EINVAL) from None
    return f"{path}.pub"


def load_private(path: str, password: bytes = b"") -> Any:
    """Read a private key; raises FileError, UsageError when it is none or wants (another) password."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    data = _read(path)
    if b"ENCRYPTED SIGSTORE PRIVATE KEY" in data or b"ENCRYPTED COSIGN PRIVATE KEY" in data:
        hint = "make one with: knarr image key, or openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
        raise UsageError(f"{path} is a key in cosign's own encryption, which is not read", hint=hint)
    try:
        return serialization.load_pem_private_key(data, password or None)
    except TypeError:
        why = "it is not encrypted, and a password was given" if password else "it is encrypted"
        raise UsageError(
            f"the key {path} cannot be read: {why}", hint="KNARR_KEY_PASSWORD holds its password"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no private key in PEM, or its password is another one") from None


def load_public(data: bytes, what: str) -> Any:
    """Read a public key in PEM; raises UsageError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{what} is no public key in PEM") from None


def read_public(path: str) -> Any:
    """Read a public key from a file; raises FileError, UsageError."""
    return load_public(_read(path), path)


def _read(path: str) -> bytes:
    try:
        return read_file(path, _LIMIT)
    except FileError as error:
        if error.number == ENOENT:
            raise NotFound("key", path) from None
        raise


def _made(key: Any, payload: bytes) -> bytes:
    """The signature of a payload; the same each time where the key's algorithm allows it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        try:  # RFC 6979: no random number, so that the same input gives the same signature
            return key.sign(payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm:
            return key.sign(payload, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(payload)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
    raise UsageError("this kind of key cannot sign images", hint="use ECDSA, Ed25519 or RSA")


def _is_good(key: Any, signature: bytes, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, payload)
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except InvalidSignature:
        return False
    return True


# -- signing -----------------------------------------------------------------------------------------------


def payload_of(digest: str, identity: str, annotations: Mapping[str, str] | None = None) -> bytes:
    """The document that is signed."""
    critical = {
        "identity": {"docker-reference": identity},
        "image": {"docker-manifest-digest": digest},
        "type": _TYPE,
    }
    return fastjson.dumps({"critical": critical, "optional": dict(annotations) if annotations else None})


def signature_reference(reference: str, digest: str) -> str:
    """Where the signatures of an image are kept: in the same place, under a tag made of its digest.

    Raises UsageError for places that hold one image only.
    """
    tag = f"{digest.replace(':', '-')}.sig"
    if reference.startswith("oci:"):
        return f"oci:{parse_reference(reference).path}:{tag}"
    bare = reference.removeprefix(STORED)
    parsed = parse_reference(bare)
    if parsed.transport != "docker":
        hint = "signatures lie beside an image: in a registry, a layout or the store"
        raise UsageError(f"{reference} cannot hold signatures", hint=hint)
    start = REMOTE if reference.startswith(REMOTE) else ""
    return f"{start}{parsed.registry}/{parsed.repository}:{tag}"


def identity_of(reference: str) -> str:
    """What a signature says the image is called, without its tag: cosign's docker-reference."""
    if reference.startswith("oci:"):
        return reference.partition("@")[0]
    parsed = parse_reference(reference.removeprefix(STORED))
    return f"{parsed.registry}/{parsed.repository}"


def sign(
    subject: Image | Index,
    reference: str,
    key: Any,
    *,
    identity: str = "",
    annotations: Mapping[str, str] | None = None,
    store: str | None = None,
) -> Image:
    """Sign an image or index and put the signature beside it, with those that are there. Returns what holds them.

    Raises UsageError, and what reading and writing raise.
    """
    where = signature_reference(reference, subject.digest)
    payload = payload_of(subject.digest, identity or identity_of(reference), annotations)
    layer, opener = in_memory(payload, PAYLOAD_TYPE)
    layer["annotations"] = {SIGNATURE: base64.b64encode(_made(key, payload)).decode()}
    layers: list[Descriptor] = []
    added: dict[str, Opener] = {layer["digest"]: opener}
    there = _at(where, store)
    if there is not None:
        layers = [one for one in there.manifest["layers"] if one != layer]
        added |= {one["digest"]: _opener(there, one) for one in layers if one["digest"] != layer["digest"]}
    made = artifact([*layers, layer], added, kind=ARTIFACT_TYPE, subject=subject.descriptor)
    return made.save(where, store=store)


def _opener(image: Image, layer: Descriptor) -> Opener:
    return lambda: image.blobs.open_blob(layer)


def _at(where: str, store: str | None) -> Image | None:
    """The manifest that holds signatures; None when there is none."""
    try:
        return Image.open(where, store=store)
    except NotFound:
        return None


def at_tag(reference: str, digest: str, store: str | None = None) -> Image | None:
    """The manifest that holds an image's signatures under the tag for them; None where there is none, or no tags."""
    try:
        where = signature_reference(reference, digest)
    except UsageError:
        return None
    return _at(where, store)


# -- verifying ---------------------------------------------------------------------------------------------


def verify(
    subject: Image | Index,
    reference: str,
    keys: Sequence[Any],
    *,
    annotations: Mapping[str, str] | None = None,
    store: str | None = None,
) -> list[Signed]:
    """The good signatures of an image or index by any of ``keys``; each says at least what ``annotations`` do.

    Looked for under the tag and among what refers to it. Raises SignatureError when there is none, what reading raises.
    """
    found: list[Signed] = []
    reasons: list[str] = []
    there = _at(signature_reference(reference, subject.digest), store)
    holders = [*([there] if there is not None else []), *referring(subject, ARTIFACT_TYPE)]
    layers = [(holder, layer) for holder in holders for layer in holder.manifest["layers"]]
    for holder, layer in layers[:_MOST]:
        if layer["mediaType"] != PAYLOAD_TYPE:
            continue
        try:
            signed = _checked(holder, layer, subject.digest, keys)
        except KnarrError as error:
            reasons.append(str(error))
            continue
        missing = [name for name, value in (annotations or {}).items() if signed.annotations.get(name) != value]
        if missing:
            reasons.append(f"a signature does not say {', '.join(missing)}")
        elif signed not in found:
            found.append(signed)
    if not found:
        raise SignatureError(reference, list(dict.fromkeys(reasons)))
    return found


def _checked(holder: Image, layer: Descriptor, digest: str, keys: Sequence[Any]) -> Signed:
    """What one signature says, once it is known to be good. Raises KnarrError with the reason when it is not."""
    what = f"signature {layer['digest']}"
    if layer["size"] > _LIMIT:
        raise KnarrError(f"{what} has {layer['size']} bytes")
    payload = holder.blobs.read(layer)
    text = (layer.get("annotations") or {}).get(SIGNATURE, "")
    try:
        signature = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise KnarrError(f"{what} is not base64") from None
    # The key first: nothing that a stranger wrote is looked into before.
    number = next((number for number, key in enumerate(keys) if _is_good(key, signature, payload)), -1)
    if number < 0:
        raise KnarrError(f"{what} was not made with {'this key' if len(keys) == 1 else 'one of these keys'}")
    document = fastjson.loads(payload, what, limit=_LIMIT)
    try:
        critical = document["critical"]
        kind, said = critical["type"], critical["image"]["docker-manifest-digest"]
        identity = critical["identity"]["docker-reference"]
    except (KeyError, TypeError):
        raise SpecError(what, [SpecFinding("/critical", "is not what a signature has there")]) from None
    if kind != _TYPE:
        raise KnarrError(f"{what} is {kind!r}, no signature of an image")
    if said != digest:
        raise KnarrError(f"{what} is one of {said}, another image")
    optional = document.get("optional")
    return Signed(digest, str(identity), optional if isinstance(optional, dict) else {}, number)

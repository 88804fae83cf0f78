"""Keyless signatures: verified offline against a trust root, through sigstore's own library (optional).

Nobody keeps a key: sigstore's Fulcio gives a certificate of minutes for an identity (an e-mail address, a workflow)
that an OpenID issuer vouched for, and the signature goes into a public log, Rekor. What cosign 3 writes, and 2 with
``--new-bundle-format``, is one "bundle" that has it all, an artifact that refers to the image. Verified are the
certificate's chain and its transparency timestamp (SCT), who it is for, the log's proof of inclusion with its signed
checkpoint, the time, and the signature over an in-toto statement that names the image's digest. Nothing is asked on the
network: the trust root is a file.
"""

from __future__ import annotations

from errno import ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, NotFound, SignatureError, SpecError, SpecFinding, Unsupported
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.engine.imaging.artifacts import referring
from knarr.engine.imaging.signing import Signed, at_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sigstore.verify import Verifier
    from sigstore.verify.policy import VerificationPolicy

    from knarr.engine.imaging.image import Image, Index
    from knarr.spec.image import Descriptor

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_CERTIFICATE = "dev.sigstore.cosign/certificate"
_ROOT_LIMIT = 4 << 20
_LIMIT = 1 << 20  # bytes of a bundle
_MOST = 100  # bundles of one image that are looked at


class Keyless(Record):
    """Who has to have signed: the certificate's identity, exactly, who vouched for it, and a trust root."""

    identity: str
    issuer: str
    verifier: Verifier


def keyless(identity: str, issuer: str, trusted_root: str) -> Keyless:
    """Read a trust root (sigstore's trusted_root.json).

    Raises NotFound, FileError, SpecError for what is none, Unsupported when sigstore is not installed.
    """
    try:
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
    except ImportError:
        hint = "pip install 'knarr[keyless]'"
        raise Unsupported("a keyless signature", "Python's package sigstore is not installed", hint=hint) from None
    try:
        read_file(trusted_root, _ROOT_LIMIT)  # a regular file, and no larger
    except FileError as error:
        if error.number == ENOENT:
            raise NotFound("trust root", trusted_root) from None
        raise
    try:
        return Keyless(identity, issuer, Verifier(trusted_root=TrustedRoot.from_file(trusted_root)))
    except Exception as error:  # noqa: BLE001  # pydantic's, sigstore's, cryptography's: all say that it is none
        raise SpecError(trusted_root, [SpecFinding("", f"is no trust root of sigstore: {_first(error)}")]) from None


def verify_keyless(
    subject: Image | Index, reference: str, wanted: Keyless, *, store: str | None = None
) -> list[Signed]:
    """The good keyless signatures of an image or index.

    Raises SignatureError when there is none, and what reading raises.
    """
    found: list[Signed] = []
    reasons: list[str] = []
    holders = referring(subject, BUNDLE_TYPE)
    bundles = [(holder, layer) for holder in holders for layer in holder.manifest["layers"]]
    for holder, layer in bundles[:_MOST]:
        if layer["mediaType"] != BUNDLE_TYPE:
            continue
        try:
            signed = _checked(holder, layer, subject.digest, wanted)
        except KnarrError as error:
            reasons.append(str(error))
            continue
        if signed not in found:
            found.append(signed)
    if not found:
        if not reasons and _has_old_form(subject, reference, store):
            why = "its signature is in cosign's older form, without the log's proof of inclusion"
            reasons.append(f"{why} (sign it with cosign 3, or cosign 2 --new-bundle-format)")
        raise SignatureError(reference, list(dict.fromkeys(reasons)))
    return found


def _has_old_form(subject: Image | Index, reference: str, store: str | None) -> bool:
    there = at_tag(reference, subject.digest, store)
    layers = there.manifest["layers"] if there is not None else []
    return any(_CERTIFICATE in (layer.get("annotations") or {}) for layer in layers)


def _checked(holder: Image, layer: Descriptor, digest: str, wanted: Keyless) -> Signed:
    """What one bundle says, once it is known to be good. Raises KnarrError with the reason when it is not."""
    from sigstore.models import Bundle

    what = f"signature {layer['digest']}"
    if layer["size"] > _LIMIT:
        raise KnarrError(f"{what} has {layer['size']} bytes")
    data = holder.blobs.read(layer)
    try:
        kind, payload = wanted.verifier.verify_dsse(Bundle.from_json(data), _policy(wanted))
    except Exception as error:  # noqa: BLE001  # a stranger's bytes in others' parsers: whatever it is, it does not count
        raise KnarrError(f"{what}: {_first(error)}") from None
    if kind != _PAYLOAD:
        raise KnarrError(f"{what} is one of {kind!r}, not of an in-toto statement")
    statement = fastjson.loads(payload, what, limit=_LIMIT)
    if type(statement) is not dict or statement.get("_type") not in _STATEMENTS:
        raise KnarrError(f"{what} holds no in-toto statement")
    if statement.get("predicateType") != PREDICATE:
        raise KnarrError(f"{what} is a statement of {statement.get('predicateType')!r}, not a signature of an image")
    if not any(_names(one, digest) for one in statement.get("subject") or ()):
        raise KnarrError(f"{what} is one of another image")
    return Signed(digest, wanted.identity, {}, -1, wanted.issuer)


def _policy(wanted: Keyless) -> VerificationPolicy:
    """The certificate is for this identity, by this issuer, which certificates name in one of two forms."""
    from sigstore.verify.policy import AllOf, AnyOf, Identity, OIDCIssuer, OIDCIssuerV2

    return AllOf([Identity(identity=wanted.identity), AnyOf([OIDCIssuer(wanted.issuer), OIDCIssuerV2(wanted.issuer)])])


def _names(subject: Any, digest: str) -> bool:
    """Whether a statement's subject is what has this digest."""
    algorithm, _, value = digest.partition(":")
    digests = subject.get("digest") if type(subject) is dict else None
    return type(digests) is dict and digests.get(algorithm) == value


def _first(error: Exception) -> str:
    """The first line of somebody else's error, printable."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return "".join(letter for letter in text[:300] if letter.isprintable())

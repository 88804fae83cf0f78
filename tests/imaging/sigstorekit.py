"""A sigstore of one's own, without a network: authority, certificate log, transparency log, and bundles by them."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
IDENTITY = "https://github.com/me/app/.github/workflows/release.yml@refs/heads/main"
ISSUER = "https://token.actions.githubusercontent.com"
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_OLD_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def signed(private: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return private.sign(data, ec.ECDSA(hashes.SHA256()))


def public_der(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def der(tag: int, data: bytes) -> bytes:
    size = len(data)
    length = bytes((size,)) if size < 128 else bytes((0x82,)) + size.to_bytes(2, "big")
    return bytes((tag,)) + length + data


class Sigstore:
    """Keys and certificates; ``bundle`` signs a statement as cosign would."""

    def __init__(self) -> None:
        self.authority, self.log, self.certificate_log = key(), key(), key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.authority.public_key())
            .serial_number(1)
            .not_valid_before(START)
            .not_valid_after(START + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def trusted_root(self, path: Path) -> str:
        """Write the trust root; its path."""

        def instance(private: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": "https://log.invalid", "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(public_der(private)), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2026-01-01T00:00:00Z"},
                },
                "logId": {"keyId": b64(hashlib.sha256(public_der(private)).digest())},
            }  # fmt: skip

        path.write_text(json.dumps({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [instance(self.log)], "ctlogs": [instance(self.certificate_log)],
            "certificateAuthorities": [{
                "subject": {"organization": "a test", "commonName": "a test"}, "uri": "https://ca.invalid",
                "certChain": {"certificates": [{"rawBytes": b64(self.root.public_bytes(serialization.Encoding.DER))}]},
                "validFor": {"start": "2026-01-01T00:00:00Z"},
            }],
            "timestampAuthorities": [],
        }))  # fmt: skip
        return str(path)

    def certificate(
        self, private: ec.EllipticCurvePrivateKey, identity: str, issuer: str, *, old: bool, sct: bool
    ) -> x509.Certificate:
        """A certificate for ten minutes, with the log's timestamp in it."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(private.public_key())
            .serial_number(2)
            .not_valid_before(START)
            .not_valid_after(START + dt.timedelta(minutes=10))
            .add_extension(_usage(cert_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.RFC822Name(identity) if "://" not in identity else x509.UniformResourceIdentifier(identity)]
                ),
                critical=True,
            )
            .add_extension(
                x509.UnrecognizedExtension(_OLD_ISSUER, issuer.encode())
                if old
                else x509.UnrecognizedExtension(_ISSUER, der(12, issuer.encode())),
                critical=False,
            )
        )
        if not sct:
            return builder.sign(self.authority, hashes.SHA256())
        before = builder.sign(self.authority, hashes.SHA256())
        moment = int(START.timestamp() * 1000)
        entry = hashlib.sha256(public_der(self.authority)).digest()
        body = before.tbs_certificate_bytes
        data = struct.pack("!BBQH", 0, 0, moment, 1) + entry + len(body).to_bytes(3, "big") + body + bytes(2)
        signature = signed(self.certificate_log, data)
        stamp = (
            b"\0" + hashlib.sha256(public_der(self.certificate_log)).digest() + struct.pack("!QH", moment, 0)
            + b"\x04\x03" + struct.pack("!H", len(signature)) + signature
        )  # fmt: skip
        listed = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        return builder.add_extension(x509.UnrecognizedExtension(_SCTS, der(4, listed)), critical=False).sign(
            self.authority, hashes.SHA256()
        )

    def bundle(
        self,
        statement: Any,
        *,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        kind: str = "application/vnd.in-toto+json",
        at: int = 60,
        old: bool = False,
        sct: bool = True,
        change: Any = None,
    ) -> bytes:
        """A bundle over a statement, signed ``at`` seconds into the certificate's life; ``change`` may spoil it."""
        private = key()
        leaf = self.certificate(private, identity, issuer, old=old, sct=sct)
        payload = json.dumps(statement).encode()
        signature = signed(private, b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
        pem = leaf.public_bytes(serialization.Encoding.PEM)
        body = json.dumps({
            "apiVersion": "0.0.1", "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                "signatures": [{"signature": b64(signature), "verifier": b64(pem)}],
            },
        }, separators=(",", ":"), sort_keys=True).encode()  # fmt: skip
        log_id = hashlib.sha256(public_der(self.log)).digest()
        moment = int(START.timestamp()) + at
        promise = json.dumps(
            {"body": b64(body), "integratedTime": moment, "logID": log_id.hex(), "logIndex": 7},
            separators=(",", ":"), sort_keys=True,
        ).encode()  # fmt: skip
        # A log of two: ours and another one.
        other = hashlib.sha256(b"\0other").digest()
        root = hashlib.sha256(b"\1" + hashlib.sha256(b"\0" + body).digest() + other).digest()
        note = f"log.invalid - 1\n2\n{b64(root)}\n"
        checkpoint = f"{note}\n\u2014 log.invalid {b64(log_id[:4] + signed(self.log, note.encode()))}\n"
        made: dict[str, Any] = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(leaf.public_bytes(serialization.Encoding.DER))},
                "tlogEntries": [{
                    "logIndex": "7", "logId": {"keyId": b64(log_id)},
                    "kindVersion": {"kind": "dsse", "version": "0.0.1"}, "integratedTime": str(moment),
                    "inclusionPromise": {"signedEntryTimestamp": b64(signed(self.log, promise))},
                    "inclusionProof": {
                        "logIndex": "0", "rootHash": b64(root), "treeSize": "2", "hashes": [b64(other)],
                        "checkpoint": {"envelope": checkpoint},
                    },
                    "canonicalizedBody": b64(body),
                }],
            },
            "dsseEnvelope": {"payload": b64(payload), "payloadType": kind, "signatures": [{"sig": b64(signature)}]},
        }  # fmt: skip
        if change is not None:
            change(made)
        return json.dumps(made).encode()


def _usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign, key_cert_sign=cert_sign, crl_sign=cert_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip

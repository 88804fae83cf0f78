"""``knarr image sign``, ``verify``, ``key``: signatures with keys, as cosign and skopeo have them."""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, pairs, wants_json
from knarr.cli.output import clean, put, put_json

PASSWORD = "KNARR_KEY_PASSWORD"  # noqa: S105  # where it is, not what it is


def password() -> bytes:
    """Return the password of the key that is used, b"" for none."""
    return os.environb.get(PASSWORD.encode(), b"")


def parse_key() -> Parser:
    """The parser of ``knarr image key``."""
    parser = Parser(
        "image key",
        f"Make a key pair to sign images with: FILE and FILE.pub, in PEM; encrypted if {PASSWORD} is set.",
        "FILE",
        "  knarr image key release.key\n  knarr image sign --key release.key docker://ghcr.io/me/app:1",
    )
    parser.add_argument("file", metavar="FILE", help="a new file")
    return parser


def do_key(arguments: list[str]) -> int:
    """Make keys; prints the public one's path."""
    given = parse_key().parse_args(arguments)
    from knarr.engine.imaging.signing import make_keys

    put(make_keys(given.file, password()))
    return 0


def parse_sign() -> Parser:
    """The parser of ``knarr image sign``."""
    parser = Parser(
        "image sign",
        "Sign an image or index with a key, in the format of cosign and skopeo; the signature is put beside it, under"
        f" the tag sha256-….sig. An encrypted key's password is in {PASSWORD}. Prints the digest that was signed.",
        "--key FILE [--annotation NAME=VALUE…] [--identity NAME] IMAGE",
        "  knarr image sign --key release.key docker://ghcr.io/me/app:1\n"
        "  knarr image sign --key release.key -a commit=1a2b3c oci:./layout:v1",
    )
    parser.add_argument(
        "-k", "--key", required=True, metavar="FILE", help="a private key in PEM: ECDSA, Ed25519 or RSA"
    )
    parser.add_argument("-a", "--annotation", action="append", default=[], metavar="NAME=VALUE",
                        help="what the signature says besides")  # fmt: skip
    parser.add_argument(
        "--identity", default="", metavar="NAME", help="what it calls the image; its repository if not given"
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="of an index, that image; else the index")
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_sign(arguments: list[str]) -> int:
    """Sign."""
    given = parse_sign().parse_args(arguments)
    from knarr.engine.imaging.artifacts import subject_of
    from knarr.engine.imaging.signing import load_private, sign

    key = load_private(given.key, password())
    said = pairs(given.annotation, "--annotation")
    subject = subject_of(given.image, given.platform)
    try:
        sign(subject, given.image, key, identity=given.identity, annotations=said)
    finally:
        subject.close()
    put(subject.digest)
    return 0


def parse_verify() -> Parser:
    """The parser of ``knarr image verify``."""
    parser = Parser(
        "image verify",
        "Check that an image is signed by a key, or by an identity without one (sigstore's certificates and log), or is"
        " trusted by a policy file (containers-policy.json). Prints what its signatures say; fails when none counts."
        " Nothing but the image's place is asked on the network.",
        "(--key FILE… | --certificate-identity NAME --certificate-oidc-issuer URL --trusted-root FILE |\n"
        "       --policy FILE) [--annotation NAME=VALUE…] [--json] IMAGE",
        "  knarr image verify --key release.key.pub docker://ghcr.io/me/app:1\n"
        "  knarr image verify --certificate-identity me@example.org --certificate-oidc-issuer https://accounts.google.com\\\n"
        "      --trusted-root trusted_root.json docker://ghcr.io/me/app:1\n"
        "  knarr image verify --policy /etc/containers/policy.json docker://ghcr.io/me/app@sha256:…",
    )
    parser.add_argument(
        "-k", "--key", action="append", default=[], metavar="FILE", help="a public key in PEM; any will do"
    )
    parser.add_argument("--certificate-identity", default="", metavar="NAME",
                        help="who signed: the e-mail address or URL in the certificate, exactly")  # fmt: skip
    parser.add_argument("--certificate-oidc-issuer", default="", metavar="URL", help="who vouched for that")
    parser.add_argument("--trusted-root", default="", metavar="FILE", help="sigstore's trusted_root.json")
    parser.add_argument("--policy", default="", metavar="FILE", help="a policy file")
    parser.add_argument("-a", "--annotation", action="append", default=[], metavar="NAME=VALUE",
                        help="what the signature must say")  # fmt: skip
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="of an index, that image; else the index")
    add_json(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    return parser


def do_verify(arguments: list[str]) -> int:
    """Verify."""
    given = parse_verify().parse_args(arguments)
    as_json = wants_json(given)
    signer = (given.certificate_identity, given.certificate_oidc_issuer, given.trusted_root)
    if sum((bool(given.key), bool(given.policy), any(signer))) != 1:
        raise UsageError("say one of --key, --policy, --certificate-identity", hint="see: knarr image verify --help")
    if any(signer) and not all(signer):
        missing = "--certificate-identity, --certificate-oidc-issuer and --trusted-root belong together"
        raise UsageError(missing, hint="see: knarr image verify --help")
    said = pairs(given.annotation, "--annotation")
    if said and not given.key:
        raise UsageError("a policy and a keyless signature say nothing of annotations", hint="use --key")
    from knarr.engine.imaging.artifacts import subject_of
    from knarr.engine.imaging.keyless import keyless, verify_keyless
    from knarr.engine.imaging.policy import check, read_policy
    from knarr.engine.imaging.signing import read_public, verify

    keys = [read_public(path) for path in given.key]
    policy = read_policy(given.policy) if given.policy else None
    wanted = keyless(*signer) if any(signer) else None
    subject = subject_of(given.image, given.platform)
    try:
        if policy is not None:
            found = check(policy, subject, given.image)
        elif wanted is not None:
            found = verify_keyless(subject, given.image, wanted)
        else:
            found = verify(subject, given.image, keys, annotations=said)
    finally:
        subject.close()
    if as_json:
        put_json({
            "digest": subject.digest,
            "signatures": [
                {"identity": one.identity, "annotations": one.annotations, "key": one.key}
                | ({"issuer": one.issuer} if one.issuer else {})
                for one in found
            ],
        })  # fmt: skip
        return 0
    put(subject.digest)
    for one in found:
        if one.issuer:
            put(clean(f"signed by {one.identity}, says {one.issuer}"))
            continue
        more = " ".join(f"{name}={value}" for name, value in sorted(one.annotations.items()))
        put(clean(f"signed as {one.identity} {more}").rstrip())
    return 0

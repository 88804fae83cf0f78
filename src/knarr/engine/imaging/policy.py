"""Which images are trusted: the part of containers-policy.json(5) that signatures made with keys need.

    {"default": [{"type": "reject"}],
     "transports": {"docker": {"ghcr.io/me": [{"type": "sigstoreSigned", "keyPath": "/etc/keys/me.pub"}],
                               "docker.io/library": [{"type": "insecureAcceptAnything"}]}}}

The narrowest scope decides: a name with its tag or digest, the repository, the namespaces above it, the registry,
``*.`` and a domain, the transport's "", then "default". All of a scope's requirements must be met. Those not known here
(``signedBy``, GPG) are refused: a policy that is half understood is none.
"""

from __future__ import annotations

import binascii
import os
from errno import ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, NotFound, SignatureError, SpecError, SpecFinding, Unsupported, UsageError
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.engine.imaging.keyless import keyless, verify_keyless
from knarr.engine.imaging.opening import STORED
from knarr.engine.imaging.signing import load_public, read_public, verify
from knarr.image.reference import parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.imaging.image import Image, Index
    from knarr.engine.imaging.keyless import Keyless
    from knarr.engine.imaging.signing import Signed
    from knarr.image.reference import Reference

_LIMIT = 1 << 20
_TRANSPORTS = {"docker": "docker", "store": "docker", "oci": "oci", "dir": "dir", "oci-archive": "oci-archive",
               "docker-archive": "docker-archive", "docker-daemon": "docker-daemon"}  # fmt: skip


class Requirement(Record):
    """One requirement: ``kind`` accept, reject, signed (by any of ``keys``, with an ``identity`` rule) or keyless."""

    kind: str
    keys: tuple[Any, ...] = ()
    identity: tuple[str, str] = ("matchRepoDigestOrExact", "")
    keyless: Keyless | None = None


class Policy(Record):
    """A policy that was read: scopes by transport, and what holds for all others."""

    path: str
    default: tuple[Requirement, ...]
    transports: dict[str, dict[str, tuple[Requirement, ...]]]

    def requirements(self, reference: str) -> tuple[Requirement, ...]:
        """What the narrowest scope that holds a reference asks for."""
        parsed = _parsed(reference)
        scopes = self.transports.get(_TRANSPORTS.get(parsed.transport, parsed.transport), {})
        for scope in _scopes(parsed):
            if scope in scopes:
                return scopes[scope]
        return self.default


def _parsed(reference: str) -> Reference:
    return parse_reference(reference.removeprefix(STORED))


def _scopes(parsed: Reference) -> list[str]:
    """The scopes that hold a reference, the narrowest first."""
    if parsed.transport != "docker":
        path = os.path.abspath(parsed.path)
        found = [f"{path}:{parsed.tag}"] if parsed.tag else []
        while path and path != "/":
            found.append(path)
            path = path.rpartition("/")[0]
        return [*found, "/", ""]
    repository = f"{parsed.registry}/{parsed.repository}"
    found = [f"{repository}@{parsed.digest}"] if parsed.digest else [f"{repository}:{parsed.tag}"]
    while repository:
        found.append(repository)
        repository = repository.rpartition("/")[0]
    domain = parsed.registry.partition(":")[0]
    parts = domain.split(".")
    return [*found, *(f"*.{'.'.join(parts[number:])}" for number in range(1, len(parts))), ""]


def read_policy(path: str) -> Policy:
    """Read a policy file; raises NotFound, SpecError with all that is wrong, UsageError for a key that is none."""
    try:
        data = read_file(path, _LIMIT)
    except FileError as error:
        if error.number == ENOENT:
            raise NotFound("policy", path) from None
        raise
    document = fastjson.loads(data, path, limit=_LIMIT)
    wrong: list[SpecFinding] = []
    if type(document) is not dict:
        raise SpecError(path, [SpecFinding("", "must be an object")])
    other = [name for name in document if name not in ("default", "transports")]
    wrong += [SpecFinding(fastjson.pointer_token(name), "is not a member of a policy") for name in other]
    default = _list(document.get("default"), "/default", wrong)
    transports: dict[str, dict[str, tuple[Requirement, ...]]] = {}
    for transport, scopes in (document.get("transports") or {}).items():
        at = f"/transports{fastjson.pointer_token(transport)}"
        if type(scopes) is not dict:
            wrong.append(SpecFinding(at, "must be an object"))
            continue
        transports[transport] = {
            scope: _list(each, at + fastjson.pointer_token(scope), wrong) for scope, each in scopes.items()
        }
    if wrong:
        raise SpecError(path, wrong)
    return Policy(path, default, transports)


def _list(value: Any, at: str, wrong: list[SpecFinding]) -> tuple[Requirement, ...]:
    if type(value) is not list or not value:
        wrong.append(SpecFinding(at, "must be an array with at least one requirement"))
        return ()
    found = []
    for number, each in enumerate(value):
        made = _requirement(each, f"{at}/{number}", wrong)
        if made is not None:
            found.append(made)
    return tuple(found)


def _requirement(value: Any, at: str, wrong: list[SpecFinding]) -> Requirement | None:
    kind = value.get("type") if type(value) is dict else None
    if kind in ("insecureAcceptAnything", "reject"):
        return Requirement("accept" if kind == "insecureAcceptAnything" else "reject")
    if kind == "sigstoreKeyless":
        return _keyless(value, at, wrong)
    if kind != "sigstoreSigned":
        known = "insecureAcceptAnything, reject, sigstoreSigned, sigstoreKeyless"
        wrong.append(SpecFinding(f"{at}/type", f"is {kind!r}; known are {known}"))
        return None
    keys = []
    for name, member in value.items():
        where = at + fastjson.pointer_token(name)
        if name in ("keyPath", "keyData") and isinstance(member, str):
            keys.append(_key(name, member, where, wrong))
        elif name in ("keyPaths", "keyDatas") and isinstance(member, list) and all(isinstance(m, str) for m in member):
            keys += [_key(name[:-1], one, f"{where}/{index}", wrong) for index, one in enumerate(member)]
        elif name not in ("type", "signedIdentity"):
            wrong.append(SpecFinding(where, "is not known here, or not of its type"))
    if not keys:
        wrong.append(SpecFinding(at, "names no key: keyPath or keyData is needed"))
    return Requirement("signed", tuple(keys), _identity(value.get("signedIdentity"), at, wrong))


_KEYLESS = ("certificateIdentity", "certificateOidcIssuer", "trustedRootPath")


def _keyless(value: dict[str, Any], at: str, wrong: list[SpecFinding]) -> Requirement | None:
    """A requirement of our own: containers-policy.json(5) has none for sigstore's bundles."""
    before = len(wrong)
    given = {name: text for name in _KEYLESS if isinstance(text := value.get(name), str) and text}
    wrong += [SpecFinding(f"{at}/{name}", "is missing") for name in _KEYLESS if name not in given]
    wrong += [
        SpecFinding(at + fastjson.pointer_token(name), "is not known here")
        for name in value
        if name not in (*_KEYLESS, "type")
    ]
    if len(wrong) > before:
        return None
    identity, issuer, path = (value[name] for name in _KEYLESS)
    try:
        return Requirement("keyless", keyless=keyless(identity, issuer, path))
    except (NotFound, FileError, SpecError, Unsupported) as error:
        wrong.append(SpecFinding(f"{at}/trustedRootPath", str(error)))
        return None


def _key(name: str, text: str, at: str, wrong: list[SpecFinding]) -> Any:
    try:
        if name == "keyPath":
            return read_public(text)
        return load_public(binascii.a2b_base64(text, strict_mode=True), at)
    except (NotFound, FileError, UsageError, ValueError) as error:
        wrong.append(SpecFinding(at, str(error)))
        return None


_IDENTITIES = {
    "matchExact": "",
    "matchRepoDigestOrExact": "",
    "matchRepository": "",
    "exactReference": "dockerReference",
    "exactRepository": "dockerRepository",
}


def _identity(value: Any, at: str, wrong: list[SpecFinding]) -> tuple[str, str]:
    if value is None:
        return "matchRepoDigestOrExact", ""
    kind = value.get("type") if type(value) is dict else None
    if kind not in _IDENTITIES:
        known = ", ".join(_IDENTITIES)
        wrong.append(SpecFinding(f"{at}/signedIdentity/type", f"is {kind!r}; known are {known}"))
        return "matchRepoDigestOrExact", ""
    member = _IDENTITIES[kind]
    text = value.get(member, "") if member else ""
    if member and (not isinstance(text, str) or not text):
        wrong.append(SpecFinding(f"{at}/signedIdentity/{member}", "is missing"))
    return kind, text if isinstance(text, str) else ""


def _says(signed: Signed, rule: tuple[str, str], parsed: Reference) -> bool:
    """Whether what a signature calls the image is what it is called here, by a rule of the policy.

    cosign signs the repository without a tag, so that is enough where a tag would have to be the same.
    """
    kind, text = rule
    said = signed.identity
    repository = f"{parsed.registry}/{parsed.repository}" if parsed.transport == "docker" else f"oci:{parsed.path}"
    if kind == "exactRepository":
        return _repository(said) == text
    if kind == "exactReference":
        return said == text
    if kind == "matchRepository":
        return _repository(said) == repository
    exact = f"{repository}:{parsed.tag}" if parsed.tag else repository
    if kind == "matchExact":
        return said == exact
    return said == exact or (
        _repository(said) == repository and (bool(parsed.digest) or ":" not in said[len(repository) :])
    )


def _repository(name: str) -> str:
    """A name without tag and digest."""
    name = name.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def check(policy: Policy, subject: Image | Index, reference: str, *, store: str | None = None) -> list[Signed]:
    """Hold an image against a policy; return the signatures that let it pass. Raises SignatureError with the reason."""
    parsed = _parsed(reference)
    found: list[Signed] = []
    for requirement in policy.requirements(reference):
        if requirement.kind == "accept":
            continue
        if requirement.kind == "reject":
            raise SignatureError(reference, [f"{policy.path} rejects it"])
        if requirement.keyless is not None:
            found += verify_keyless(subject, reference, requirement.keyless, store=store)
            continue
        good = verify(subject, reference, requirement.keys, store=store)
        named = [one for one in good if _says(one, requirement.identity, parsed)]
        if not named:
            said = ", ".join(sorted({repr(one.identity) for one in good}))
            raise SignatureError(reference, [f"it is signed as {said}, and {policy.path} wants another name"])
        found += named
    return found

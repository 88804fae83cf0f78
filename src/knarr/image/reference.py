"""Image references: what people type, scanned by hand, every refusal naming the rule.

    [docker://]NAME[:TAG][@DIGEST]   a registry's image; NAME as Docker and Podman read it
    oci:DIR[:TAG] or oci:DIR@DIGEST  an OCI image layout
    oci-archive:FILE[:TAG]           a tar of one
    docker-archive:FILE[:NAME[:TAG]] what ``docker save`` writes
    dir:DIR                          one image as plain files, as skopeo has it
    docker-daemon:NAME[:TAG]         an image of a running dockerd; also docker-daemon:sha256:ID
    store:NAME[:TAG]                 an image of knarr's own store; also by the start of its id
    -                                an archive on standard input or output; also FILE in oci-archive: and the like
    host:                            this machine's own root
    bundle:DIR                       a runtime bundle

The grammar of names is that of the distribution project (reference.go), with its limits: 255 characters for
registry and repository, 128 for the tag. No value that passes can be more than its kind anywhere it is used:
no path walks up, no name carries credentials, a line break or a wildcard (docs/security.md I19).
"""

from __future__ import annotations

from knarr.base.errors import InvalidDigest, InvalidReference
from knarr.base.record import Record
from knarr.content.digest import usable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Fail = Callable[..., InvalidReference]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
NAME_LIMIT = 255
TAG_LIMIT = 128

_LOCAL = ("oci", "oci-archive", "docker-archive", "dir", "bundle")
_KEPT = ("docker-daemon", "store")
STDIO = "-"
# What other tools understand and knarr does not (yet): better named than read as an odd host.
_FOREIGN = ("containers-storage", "ostree", "sif", "tarball", "atomic", "http", "https")
_OWN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_DIGITS = frozenset("0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")
_TAG = _ALPHANUMERIC | frozenset("_.-")


class Reference(Record):
    """One parsed reference. Fields that do not apply are "".

    ``transport`` is docker, oci, oci-archive, docker-archive, dir, docker-daemon, store, -, host or bundle. ``path``
    is the directory or file of a local transport, or the image id given to docker-daemon or store. ``registry``,
    ``repository``, ``tag`` and ``digest`` name a registry's image, or the one in a docker-archive, a daemon or the
    store. For oci and oci-archive ``tag`` is the whole org.opencontainers.image.ref.name, which may itself be a
    full name.
    """

    transport: str
    path: str = ""
    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The full name without transport, ``docker.io/library/busybox:latest``; "" for a local transport."""
        if not self.repository:
            return ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def familiar(self) -> str:
        """The name as people write it: without docker.io and library."""
        name = self.name
        for start in (f"{DEFAULT_REGISTRY}/library/", f"{DEFAULT_REGISTRY}/"):
            if name.startswith(start):
                return name[len(start) :]
        return name

    def __str__(self) -> str:
        """Return the canonical text; ``parse_reference`` reads it back to an equal Reference."""
        if self.transport == "docker":
            return self.name
        if self.transport == STDIO:
            return STDIO
        if self.transport in _KEPT:
            return f"{self.transport}:{self.path or self.name}"
        if self.transport == "docker-archive":
            return f"{self.transport}:{self.path}" + (f":{self.name}" if self.name else "")
        if self.digest:
            return f"{self.transport}:{self.path}@{self.digest}"
        return f"{self.transport}:{self.path}" + (f":{self.tag}" if self.tag else "")


def parse_reference(text: str) -> Reference:
    """Return the Reference that ``text`` means; raises InvalidReference naming the rule it breaks.

    A registry's image without a registry is Docker Hub's (docker.io, and library/ for a single word); without
    tag and digest it is tagged latest.
    """
    if not text:
        raise InvalidReference(text, "it is empty")
    for character in text:
        if not character.isprintable():
            raise InvalidReference(_safe(text), f"the character {character!r} cannot be part of a reference")
    if text == "host:":
        return Reference("host")
    if text == STDIO:
        return Reference(STDIO, path=STDIO)
    if text.startswith("docker://"):
        return _registry_name(text, text[len("docker://") :], "docker")
    transport, colon, rest = text.partition(":")
    if colon and transport in _LOCAL:
        return _local(text, transport, rest)
    if colon and transport in _KEPT:
        return _kept(text, transport, rest)
    if colon and transport in _FOREIGN:
        known = f"docker://, {', '.join(f'{one}:' for one in (*_LOCAL[:-1], *_KEPT))}, - and host: are known"
        raise InvalidReference(_safe(text), f"{transport}: is not a transport of knarr", hint=known)
    return _registry_name(text, text, "docker")


def parse_name(text: str) -> Reference:
    """Return the Reference of a registry's image (no transports); raises InvalidReference."""
    return _registry_name(text, text, "docker")


def _local(text: str, transport: str, rest: str) -> Reference:
    if transport in ("bundle", "dir"):
        if not rest:
            raise InvalidReference(text, f"a directory must follow {transport}:")
        return Reference(transport, path=rest)
    path, _, tag = rest.partition(":")
    if not path:
        kind = "a directory" if transport == "oci" else "a file"
        raise InvalidReference(text, f"{kind} must follow {transport}:")
    if transport == "docker-archive":
        if not tag:
            return Reference(transport, path=path)
        named = _registry_name(text, tag, transport)
        return Reference(transport, path, named.registry, named.repository, named.tag, named.digest)
    before, at, algorithm = path.rpartition("@")
    if at and algorithm in ("sha256", "sha512") and tag:
        return Reference(transport, path=before, digest=_digest(text, f"{algorithm}:{tag}"))
    return Reference(transport, path=path, tag=_annotation(text, tag))


def _kept(text: str, transport: str, rest: str) -> Reference:
    """Scan what follows ``docker-daemon:`` or ``store:``: a name, or an image id."""
    digits = rest.removeprefix("sha256:")
    if digits and len(digits) <= 64 and _HEX.issuperset(digits) and (digits != rest or len(digits) == 64):
        return Reference(transport, path=rest if digits != rest else f"sha256:{rest}")
    if not rest:
        raise InvalidReference(text, f"an image's name or id must follow {transport}:")
    return _registry_name(text, rest, transport)


def _annotation(text: str, tag: str) -> str:
    """Check a ref.name against annotations.md: letters, digits and the separators -._:@/+."""
    if len(tag) > NAME_LIMIT + TAG_LIMIT + 130:
        raise InvalidReference(text, f"the tag has {len(tag)} characters")
    for character in tag:
        if character not in _ALPHANUMERIC and character not in "-._:@/+":
            raise InvalidReference(text, f"the character {character!r} cannot be part of a tag")
    if tag and not (tag[0] in _ALPHANUMERIC or tag[0] == "_"):
        raise InvalidReference(text, f"the tag starts with {tag[0]!r}, not with a letter or digit")
    return tag


_ALGORITHMS = ("sha256:", "sha512:", "sha384:", "sha1:", "md5:", "blake3:")


def _safe(text: str) -> str:
    """Return ``text`` for an error: not endless, and without what stands before an @ and may be a password."""
    scheme, mark, body = text.rpartition("//")
    before, at, after = body.rpartition("@")
    kept = ""
    if at and after.startswith(_ALGORITHMS):
        kept = f"@{after}"
        before, at, after = before.rpartition("@")
    shown = scheme + mark + ("…@" if at else "") + after + kept
    return shown if len(shown) <= 400 else shown[:399] + "…"


def _registry_name(text: str, name: str, transport: str) -> Reference:
    """Scan ``[registry/]repository[:tag][@digest]``."""

    def fail(rule: str, hint: str = "") -> InvalidReference:
        return InvalidReference(_safe(text), rule, hint=hint)

    if not name:
        raise fail("a name must follow docker://")
    if not name.isascii():
        odd = next(character for character in name if not character.isascii())
        raise fail(f"{odd!r} is not an ASCII character", "write an international host name in its xn-- form")
    before, at, after = name.partition("@")
    if at and ("@" in after or not after.startswith(_ALGORITHMS)) and ("/" in after or ":" in before):
        raise fail("a user name or password does not belong into a reference", "log in to the registry instead")
    name, at, digest = name.partition("@")
    if at:
        digest = _digest(text, digest)
    # A colon after the last slash starts the tag, unless it is within brackets or there is no slash: a:5000 is a tag.
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon:
        _check_tag(tag, fail)
    name = f"{head}{slash}{last}"
    if not name:
        raise fail("the name is empty")
    if len(name) == 64 and _HEX.issuperset(name) and name == name.lower():
        raise fail("64 hexadecimal digits are an image id, not a name")
    registry, repository = _split(name)
    if len(registry) + 1 + len(repository) > NAME_LIMIT:
        raise fail(f"the name has {len(registry) + 1 + len(repository)} characters, at most {NAME_LIMIT} are allowed")
    _check_registry(registry, fail)
    _check_repository(repository, fail)
    if digest:
        tag = ""  # checked, and then of no use: the digest says which image
    elif not tag:
        tag = DEFAULT_TAG
    return Reference(transport, "", registry, repository, tag, digest)


def _split(name: str) -> tuple[str, str]:
    """Split registry from repository by Docker's rule: a first part with a dot, colon or capital, or localhost."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        if first == "index.docker.io":
            first = DEFAULT_REGISTRY
        if first == DEFAULT_REGISTRY and "/" not in rest:
            rest = f"library/{rest}"
        return first, rest
    return DEFAULT_REGISTRY, name if slash else f"library/{name}"


def _check_registry(registry: str, fail: Fail) -> None:
    host, port = registry, ""
    if registry.startswith("["):
        address, bracket, after = registry[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise fail(f"the host {registry!r} has no closing bracket")
        if not _ipv6(address):
            raise fail(f"{address!r} is not an IPv6 address")
        if after:
            _check_port(after[1:], fail)
        return
    if registry.count(":") > 1:
        raise fail(f"the host {registry!r} has more than one colon", "an IPv6 address is written in brackets")
    host, colon, port = registry.partition(":")
    if colon:
        _check_port(port, fail)
    for label in host.split("."):
        if not label:
            raise fail(f"the host {host!r} has an empty part")
        if label[0] == "-" or label[-1] == "-":
            raise fail(f"{label!r} in the host starts or ends with a hyphen")
        for character in label:
            if character not in _ALPHANUMERIC and character != "-":
                raise fail(f"the character {character!r} cannot be part of a host name")


def _ipv6(text: str) -> bool:
    import _socket

    if any(character not in _HEX and character not in ":." for character in text):
        return False
    try:
        _socket.inet_pton(_socket.AF_INET6, text)
    except OSError:
        return False
    return True


def _check_port(port: str, fail: Fail) -> None:
    if not port or not _DIGITS.issuperset(port) or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise fail(f"the port {port!r} is not a number from 1 to 65535")


def _check_repository(repository: str, fail: Fail) -> None:
    for part in repository.split("/"):
        if not part:
            raise fail("the name has an empty part between slashes")
        if part in (".", ".."):
            raise fail(f"{part!r} cannot be a part of the name")
        if part[0] not in _OWN and part[0] in "._-":
            raise fail(f"{part!r} in the name starts with {part[0]!r}, not with a letter or digit")
        run = ""  # the separator being read
        for character in part:
            if character in "._-":
                run += character
                continue
            if character.isupper():
                raise fail(f"{part!r} in the name has capital letters, only small ones are allowed")
            if character not in _OWN:
                raise fail(f"the character {character!r} cannot be part of a name")
            if run and not _separator(run):
                raise fail(f"{run!r} does not separate parts of a name; '.', '_', '__' and hyphens do")
            run = ""
        if run:
            raise fail(f"{part!r} in the name ends with {run[-1]!r}, not with a letter or digit")


def _separator(run: str) -> bool:
    return run in (".", "_", "__") or not run.strip("-")


def _check_tag(tag: str, fail: Fail) -> None:
    if not tag:
        raise fail("the tag after the colon is empty")
    if len(tag) > TAG_LIMIT:
        raise fail(f"the tag has {len(tag)} characters, at most {TAG_LIMIT} are allowed")
    if tag[0] in ".-":
        raise fail(f"the tag {tag!r} starts with {tag[0]!r}, not with a letter, digit or underscore")
    for character in tag:
        if character not in _TAG:
            raise fail(f"the character {character!r} cannot be part of a tag")


def _digest(text: str, digest: str) -> str:
    try:
        return str(usable(digest))
    except InvalidDigest as error:
        raise InvalidReference(_safe(text), f"the digest is wrong: {error.rule}") from None


def local_name(path: str, tag: str) -> str:
    """Return the full name an image out of a layout or archive gets in a store.

    A tag that is itself a name with a registry or a slash is that name; else it is localhost/FILE:TAG, the way
    Podman does it, made of what of the file's name a name may hold.
    """
    if "/" in tag:
        try:
            return parse_name(tag).name
        except InvalidReference:
            tag = tag.rpartition("/")[2]
    stem = path.rstrip("/").rpartition("/")[2].lower()
    for ending in (".gz", ".zst", ".tar", ".oci"):
        stem = stem.removesuffix(ending)
    words = "".join(character if character in _OWN else " " for character in stem).split()
    tag = "".join(character if character in _TAG else "-" for character in tag)[:TAG_LIMIT].lstrip(".-")
    return f"localhost/{'-'.join(words)[:128].rstrip('-') or 'image'}:{tag or DEFAULT_TAG}"

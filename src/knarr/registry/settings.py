"""How to reach registries, as the operator says: mirrors, other locations, certificates. Read only.

The file is containers' registries.conf (version 2, TOML; containers-registries.conf(5)), of which ``[[registry]]`` with
``prefix``, ``location``, ``insecure``, ``blocked``, ``mirror-by-digest-only`` and ``[[registry.mirror]]`` with
``location``, ``insecure``, ``pull-from-mirror`` count. Short names and search lists are not followed: a name without a
registry is Docker Hub's. Certificates are in certs.d/HOST[:PORT], as Docker and Podman have them.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOTDIR

from knarr.base.errors import FileError, RegistryError, SpecError, SpecFinding
from knarr.base.files import read_file
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LIMIT = 1 << 20
_PULL_FROM = ("all", "digest-only", "tag-only")


class Certificates(Record):
    """Authorities beside the system's (PEM files), and what we show: certificate and key, "" for none."""

    authorities: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""


class Endpoint(Record):
    """One place an image may be at: registry (host[:port]) and repository there; ``only`` is digest, tag or ""."""

    registry: str
    repository: str
    insecure: bool = False
    only: str = ""


class Settings(Record):
    """What counts for one repository: ``endpoints`` for pulling, in order, the last one also for pushing."""

    endpoints: tuple[Endpoint, ...]
    certificates: Certificates = Certificates()

    @property
    def insecure(self) -> bool:
        """Whether the registry itself may be asked without verified TLS."""
        return self.endpoints[-1].insecure


def settings_for(registry: str, repository: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Return what the files say of a repository; raises SpecError, FileError, RegistryError when it is blocked."""
    environ = os.environ if environ is None else environ
    name = f"{registry}/{repository}" if repository else registry
    entry: dict[str, Any] | None = None
    best = -1
    for path in config_files(environ):
        for candidate in _entries(path):
            length = _matches(candidate["prefix"], name)
            if length > best or (length == best >= 0):
                entry, best = candidate, length
    certificates = certificates_of(registry, environ)
    if entry is None:
        return Settings((Endpoint(registry, repository),), certificates)
    if entry["blocked"]:
        raise RegistryError("GET", f"https://{registry}/", 0, f"{entry['prefix']} is blocked in {entry['file']}")
    found = []
    for mirror in entry["mirrors"]:
        only = {"digest-only": "digest", "tag-only": "tag"}.get(mirror["only"], "")
        if entry["by_digest"] and not only:
            only = "digest"
        found.append(_endpoint(mirror["location"], entry["prefix"], name, mirror["insecure"], only, entry["file"]))
    found.append(_endpoint(entry["location"], entry["prefix"], name, entry["insecure"], "", entry["file"]))
    return Settings(tuple(found), certificates)


def config_files(environ: Mapping[str, str]) -> list[str]:
    """Return the files that count: knarr's own if there is one, else containers' with its drop-ins (later ones win)."""
    if environ.get("KNARR_REGISTRIES_CONF"):
        return [environ["KNARR_REGISTRIES_CONF"]]
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    for path in ([f"{home}/knarr/registries.conf"] if home else []) + ["/etc/knarr/registries.conf"]:
        if os.path.exists(path):
            return [path]
    if environ.get("CONTAINERS_REGISTRIES_CONF"):
        return [environ["CONTAINERS_REGISTRIES_CONF"]]
    mains = ([f"{home}/containers/registries.conf"] if home else []) + ["/etc/containers/registries.conf"]
    found = [path for path in mains if os.path.exists(path)][:1]
    for folder in ("/etc/containers/registries.conf.d", *([f"{home}/containers/registries.conf.d"] if home else [])):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        found += [f"{folder}/{name}" for name in names if name.endswith(".conf")]
    return found


def certificates_of(registry: str, environ: Mapping[str, str]) -> Certificates:
    """Return the certificates kept for a registry: the first certs.d directory that has any (containers-certs.d(5)).

    Raises FileError for a client certificate without its key, or a key without one.
    """
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    bases = [f"{home}/knarr", f"{home}/containers"] if home else []
    for base in (*bases, "/etc/knarr", "/etc/containers", "/etc/docker"):
        folder = f"{base}/certs.d/{registry}"
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            if error.errno in {ENOENT, ENOTDIR, EACCES}:
                continue
            raise FileError("read", folder, error.errno or 0) from None
        authorities = tuple(f"{folder}/{name}" for name in names if name.endswith(".crt"))
        stems = {name[: -len(".cert")] for name in names if name.endswith(".cert")}
        keys = {name[: -len(".key")] for name in names if name.endswith(".key")}
        for stem in sorted(stems ^ keys):
            missing = f"{folder}/{stem}.{'key' if stem in stems else 'cert'}"
            raise FileError("read", missing, ENOENT, hint="a client certificate and its key belong together")
        if authorities or stems:
            stem = min(stems, default="")
            pair = (f"{folder}/{stem}.cert", f"{folder}/{stem}.key") if stems else ("", "")
            return Certificates(authorities, *pair)
    return Certificates()


def _entries(path: str) -> list[dict[str, Any]]:
    """Return the registries a file names, checked."""
    import tomllib

    try:
        text = read_file(path, _LIMIT).decode()
        document = tomllib.loads(text)
    except FileError as error:
        if error.number == EACCES:
            return []  # not for this user
        raise
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(path, [SpecFinding("", f"is not TOML: {error}")]) from None
    registries = document.get("registry", [])
    if not isinstance(registries, list):
        raise SpecError(path, [SpecFinding("/registry", "must be a list of tables")])
    return [_entry(entry, f"/registry/{number}", path) for number, entry in enumerate(registries)]


def _entry(entry: Any, pointer: str, path: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise SpecError(path, [SpecFinding(pointer, "must be a table")])
    location = _word(entry, "location", pointer, path)
    prefix = _word(entry, "prefix", pointer, path) or location
    if not prefix:
        raise SpecError(path, [SpecFinding(pointer, "needs a location or a prefix")])
    if not location and not prefix.startswith("*."):
        location = prefix
    mirrors = entry.get("mirror", [])
    if not isinstance(mirrors, list) or not all(isinstance(one, dict) for one in mirrors):
        raise SpecError(path, [SpecFinding(f"{pointer}/mirror", "must be a list of tables")])
    found = []
    for number, mirror in enumerate(mirrors):
        where = f"{pointer}/mirror/{number}"
        place = _word(mirror, "location", where, path)
        only = _word(mirror, "pull-from-mirror", where, path) or "all"
        if not place:
            raise SpecError(path, [SpecFinding(where, "needs a location")])
        if only not in _PULL_FROM:
            raise SpecError(path, [SpecFinding(f"{where}/pull-from-mirror", f"must be {', '.join(_PULL_FROM)}")])
        found.append({"location": place, "insecure": _flag(mirror, "insecure", where, path), "only": only})
    return {
        "file": path,
        "prefix": prefix,
        "location": location,
        "insecure": _flag(entry, "insecure", pointer, path),
        "blocked": _flag(entry, "blocked", pointer, path),
        "by_digest": _flag(entry, "mirror-by-digest-only", pointer, path),
        "mirrors": found,
    }


def _word(table: dict[str, Any], key: str, pointer: str, path: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or not value.isprintable() or "://" in value or "@" in value or "?" in value:
        raise SpecError(path, [SpecFinding(f"{pointer}/{key}", "must be a host and path, without scheme or login")])
    return value.rstrip("/")


def _flag(table: dict[str, Any], key: str, pointer: str, path: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise SpecError(path, [SpecFinding(f"{pointer}/{key}", "must be true or false")])
    return value


def _matches(prefix: str, name: str) -> int:
    """Return how long a match of ``prefix`` at the start of a name is, -1 for none; whole parts only."""
    if prefix.startswith("*."):
        host = name.partition("/")[0].partition(":")[0]
        return len(prefix) - 2 if host.endswith(prefix[1:]) else -1
    if name == prefix or name.startswith(f"{prefix}/"):
        return len(prefix)
    return -1


def _endpoint(location: str, prefix: str, name: str, insecure: bool, only: str, path: str) -> Endpoint:  # noqa: FBT001
    if prefix.startswith("*."):
        place = location + name[len(name.partition("/")[0]) :] if location else name
    else:
        place = location + name[len(prefix) :]
    host, _, repository = place.partition("/")
    if not host or ("." not in host and ":" not in host and host != "localhost"):
        raise SpecError(path, [SpecFinding("", f"{place!r} does not begin with a host")])
    return Endpoint(host, repository, insecure, only)

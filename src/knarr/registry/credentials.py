"""Which credentials belong to a registry: given ones, or those Docker and Podman keep (read only).

Looked up by the registry's exact host and port; no netrc, no proxy variables, and never another host's
(CVE-2021-41092, CVE-2024-47081). Credential helpers are not run yet; that one would be needed is remembered
for the message when the registry wants a login.
"""

from __future__ import annotations

import binascii
import os
from errno import ENOENT, ENOTDIR

from knarr.base import fastjson
from knarr.base.errors import FileError, SpecError, SpecFinding
from knarr.base.files import read_file
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LIMIT = 1 << 20
DOCKER_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


class Credentials(Record):
    """A user name and password, and the file they are from, "" when given. The password never shows in a repr."""

    user: str
    password: str
    origin: str = ""

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, password=…, origin={self.origin!r})"


class Found(Record):
    """What was found for a registry: credentials or None, and a remark for when a login is asked for."""

    credentials: Credentials | None
    remark: str = ""


def files(environ: Mapping[str, str]) -> list[str]:
    """Return the files Podman and Docker keep logins in, in the order Podman asks them."""
    paths = []
    if environ.get("REGISTRY_AUTH_FILE"):
        paths.append(environ["REGISTRY_AUTH_FILE"])
    if environ.get("XDG_RUNTIME_DIR"):
        paths.append(f"{environ['XDG_RUNTIME_DIR']}/containers/auth.json")
    else:
        paths.append(f"/run/containers/{os.getuid()}/auth.json")
    home = environ.get("HOME", "")
    config = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if config:
        paths.append(f"{config}/containers/auth.json")
    docker = environ.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    if docker:
        paths.append(f"{docker}/config.json")
    return paths


def find_credentials(registry: str, repository: str, environ: Mapping[str, str] | None = None) -> Found:
    """Look for the credentials of a registry; raises SpecError for a file that is not what it should be."""
    remark = ""
    for path in files(os.environ if environ is None else environ):
        try:
            data = read_file(path, _LIMIT)
        except FileError as error:
            if error.number in {ENOENT, ENOTDIR}:
                continue
            remark = remark or str(error)  # unreadable: somebody else's; anonymous pulls go on
            continue
        found = _in_file(_object(data, path), path, registry, repository)
        if found.credentials is not None:
            return found
        remark = remark or found.remark
    return Found(None, remark)


def _object(data: bytes, path: str) -> dict[str, Any]:
    if not data.strip():
        return {}
    value = fastjson.loads(data, path)
    if not isinstance(value, dict):
        raise SpecError(path, [SpecFinding("", "must be an object")])
    return value


def _in_file(document: dict[str, Any], path: str, registry: str, repository: str) -> Found:
    helpers = document.get("credHelpers")
    if isinstance(helpers, dict):
        for key in _keys(registry, ""):
            if isinstance(helpers.get(key), str) and helpers[key]:
                return Found(None, _remark(registry, path, helpers[key]))
    auths = document.get("auths")
    if isinstance(auths, dict):
        for key in _keys(registry, repository):
            for spelling in (key, f"https://{key}", f"http://{key}", f"https://{key}/v1/", f"https://{key}/v2/"):
                entry = auths.get(spelling)
                if isinstance(entry, dict):
                    credentials = _entry(entry, path, spelling)
                    if credentials is not None:
                        return Found(credentials)
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return Found(None, _remark(registry, path, store))
    return Found(None)


def _remark(registry: str, path: str, helper: str) -> str:
    name = "".join(c if c.isprintable() else "?" for c in helper)[:60]
    return f"{path} leaves logins for {registry} to docker-credential-{name}, which knarr does not ask yet"


def _keys(registry: str, repository: str) -> list[str]:
    """Return the keys that may hold a login, the most exact first: containers-auth.json(5) allows repositories."""
    if registry == DOCKER_HUB:
        return [*_HUB_KEYS]
    parts = repository.split("/") if repository else []
    return [*("/".join([registry, *parts[:count]]) for count in range(len(parts), 0, -1)), registry]


def _entry(entry: dict[str, Any], path: str, key: str) -> Credentials | None:
    where = f"{path} auths {key}"
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        raise SpecError(where, [SpecFinding("/identitytoken", "is not understood yet; log in with a password")])
    user, password = entry.get("username"), entry.get("password")
    text = entry.get("auth")
    if isinstance(text, str) and text:
        try:
            plain = binascii.a2b_base64(text, strict_mode=True).decode()
        except ValueError:
            raise SpecError(where, [SpecFinding("/auth", "must be base64 of user:password")]) from None
        user, colon, password = plain.partition(":")
        password = password.rstrip("\0")  # an old docker pads
        if not colon:
            raise SpecError(where, [SpecFinding("/auth", "must be base64 of user:password")])
    if isinstance(user, str) and isinstance(password, str) and user:
        return Credentials(user, password, path)
    return None

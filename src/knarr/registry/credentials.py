"""Which credentials belong to a registry: given ones, or those Docker and Podman keep (read only).

Looked up by the registry's exact host and port; no netrc, and never another host's (CVE-2021-41092, CVE-2024-47081).
A credential helper that fails gives nothing, and nothing else is tried in its place; why is remembered for the message
when the registry wants a login.
"""

from __future__ import annotations

import binascii
import os
from errno import ENOENT, ENOTDIR

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, SpecError, SpecFinding
from knarr.base.files import read_file
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FILE_LIMIT = 1 << 20
DOCKER_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


class Credentials(Record):
    """A user name and password, and where they are from, "" when given. No secret ever shows in a repr.

    With ``identity_token`` that is what the token server wants instead (OAuth 2 refresh token).
    """

    user: str
    password: str
    origin: str = ""
    identity_token: str = ""

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
    """Look for the credentials of a registry, at most one helper asked.

    Raises SpecError for a file that is not what it should be.
    """
    remark = ""
    for path in files(os.environ if environ is None else environ):
        try:
            data = read_file(path, FILE_LIMIT)
        except FileError as error:
            if error.number in {ENOENT, ENOTDIR}:
                continue
            remark = remark or str(error)  # unreadable: somebody else's; anonymous pulls go on
            continue
        found = _in_file(_object(data, path), path, registry, repository)
        if found.credentials is not None or found.remark:
            return found
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
        for key in keys_of(registry, ""):
            if isinstance(helpers.get(key), str) and helpers[key]:
                return _ask(helpers[key], registry, path)
    auths = document.get("auths")
    if isinstance(auths, dict):
        for key in keys_of(registry, repository):
            for spelling in spellings_of(key):
                entry = auths.get(spelling)
                if isinstance(entry, dict):
                    credentials = _entry(entry, path, spelling)
                    if credentials is not None:
                        return Found(credentials)
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return _ask(store, registry, path)
    return Found(None)


def _ask(helper: str, registry: str, path: str) -> Found:
    """Ask a credential helper that ``path`` names."""
    from knarr.registry import helpers

    try:
        found = helpers.get(helper, _HUB_KEYS[0] if registry == DOCKER_HUB else registry)
    except KnarrError as error:
        return Found(None, f"{path} leaves logins for {registry} to a credential helper, and {error}")
    return Found(found)


def keys_of(registry: str, repository: str) -> list[str]:
    """Return the keys that may hold a login, the most exact first: containers-auth.json(5) allows repositories."""
    if registry == DOCKER_HUB:
        return [*_HUB_KEYS]
    parts = repository.split("/") if repository else []
    return [*("/".join([registry, *parts[:count]]) for count in range(len(parts), 0, -1)), registry]


def spellings_of(key: str) -> tuple[str, ...]:
    """Return the ways a key is written in the files."""
    return (key, f"https://{key}", f"http://{key}", f"https://{key}/v1/", f"https://{key}/v2/")


def _entry(entry: dict[str, Any], path: str, key: str) -> Credentials | None:
    where = f"{path} auths {key}"
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials("", "", path, token)
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

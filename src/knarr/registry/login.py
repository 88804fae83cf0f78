"""Logging in and out: the login is tried first, and then kept where Docker and Podman find it too.

That is Docker's own config.json (or the file named): Podman reads it after its own. A helper that is set there for the
registry, or for all, keeps the login instead.
"""

from __future__ import annotations

import binascii
import os
from errno import EINVAL, ENOENT, ENOTDIR

from knarr.base import fastjson
from knarr.base.errors import AuthError, FileError, NotFound, RegistryError, SpecError, SpecFinding, UsageError
from knarr.base.files import Lock, read_file, write_atomic
from knarr.registry import helpers
from knarr.registry.client import connect
from knarr.registry.credentials import DOCKER_HUB, FILE_LIMIT, Credentials, files, keys_of, spellings_of
from knarr.registry.origin import shown
from knarr.registry.settings import settings_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from knarr.registry.connections import Policy

_HUB_KEY = "https://index.docker.io/v1/"


def check_login(
    registry: str, credentials: Credentials, *, insecure: bool = False, policy: Policy | None = None
) -> None:
    """Try a login at a registry (GET /v2/); raises AuthError when it is refused, RegistryError."""
    insecure = insecure or settings_for(registry, "").insecure
    transport, _ = connect(registry, "", credentials=credentials, insecure=insecure, policy=policy)
    try:
        response = transport.get("/v2/", {})
        url, status = shown(response.url), response.status
        response.close()
        if status in {401, 403}:
            raise AuthError("GET", url, status, f"it refuses the login as {credentials.user}")
        if status not in {200, 404}:
            raise RegistryError("GET", url, status, "the registry failed")
    finally:
        transport.close()


def login(
    registry: str,
    credentials: Credentials,
    *,
    file: str = "",
    insecure: bool = False,
    environ: Mapping[str, str] | None = None,
    policy: Policy | None = None,
) -> str:
    """Check a login and keep it; return where it is kept now. Raises AuthError, RegistryError, FileError, …."""
    if not credentials.user or ":" in credentials.user or not credentials.password:
        raise UsageError("a login needs a user name, without a colon, and a password")
    check_login(registry, credentials, insecure=insecure, policy=policy)
    path = file or default_file(os.environ if environ is None else environ)
    with _changing(path) as document:
        helper = _helper(document.value, registry)
        key = _HUB_KEY if registry == DOCKER_HUB else registry
        if helper:
            helpers.store(helper, key, credentials)
            return f"docker-credential-{helper}"
        text = binascii.b2a_base64(f"{credentials.user}:{credentials.password}".encode(), newline=False).decode()
        auths = document.value.setdefault("auths", {})
        if not isinstance(auths, dict):
            raise SpecError(path, [SpecFinding("/auths", "must be an object")])
        auths[key] = {"auth": text}
        document.changed = True
    return path


def logout(registry: str, *, file: str = "", environ: Mapping[str, str] | None = None) -> list[str]:
    """Forget the login for a registry wherever it is kept; return where that was. Raises NotFound, FileError."""
    paths = [file] if file else files(os.environ if environ is None else environ)
    gone = []
    for path in paths:
        if not os.path.exists(path):
            continue
        with _changing(path) as document:
            helper = _helper(document.value, registry)
            if helper and helpers.get(helper, _HUB_KEY if registry == DOCKER_HUB else registry) is not None:
                helpers.erase(helper, _HUB_KEY if registry == DOCKER_HUB else registry)
                gone.append(f"docker-credential-{helper}")
            auths = document.value.get("auths")
            kept: dict[str, Any] = auths if isinstance(auths, dict) else {}
            spellings = [spelling for key in keys_of(registry, "") for spelling in spellings_of(key)]
            found = [spelling for spelling in spellings if kept.pop(spelling, None) is not None]
            document.changed = bool(found)
            if found:
                gone.append(path)
    if not gone:
        raise NotFound("login", registry, hint=f"looked in {', '.join(paths)}")
    return gone


def default_file(environ: Mapping[str, str]) -> str:
    """Return the file logins are written to: $REGISTRY_AUTH_FILE, or Docker's config.json; raises UsageError."""
    if environ.get("REGISTRY_AUTH_FILE"):
        return environ["REGISTRY_AUTH_FILE"]
    home = environ.get("HOME", "")
    folder = environ.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    if not folder:
        raise UsageError("there is no HOME in the environment to keep a login in", hint="name a file")
    return f"{folder}/config.json"


def _helper(document: dict[str, Any], registry: str) -> str:
    own = document.get("credHelpers")
    if isinstance(own, dict):
        for key in keys_of(registry, ""):
            if isinstance(own.get(key), str) and own[key]:
                return str(own[key])
    everything = document.get("credsStore")
    return everything if isinstance(everything, str) else ""


class _changing:  # noqa: N801  # reads as a statement
    """A file of logins, read and held, and written back when ``changed``; other members of it stay as they are."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)  # it may be a link into a directory of dot files
        self.value: dict[str, Any] = {}
        self.changed = False

    def __enter__(self) -> Self:
        folder = os.path.dirname(self._path)
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
        except OSError as error:
            raise FileError("make directory", folder, error.errno or EINVAL) from None
        self._lock = Lock(folder)
        self._lock.acquire()
        try:
            data = read_file(self._path, FILE_LIMIT)
            value = fastjson.loads(data, self._path) if data.strip() else {}
            if not isinstance(value, dict):
                raise SpecError(self._path, [SpecFinding("", "must be an object")])
            self.value = value
        except FileError as error:
            if error.number not in {ENOENT, ENOTDIR}:
                self._lock.release()
                raise
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if self.changed and kind is None:
                write_atomic(self._path, fastjson.dumps(self.value, indent=True) + b"\n", mode=0o600, sync=True)
        finally:
            self._lock.release()

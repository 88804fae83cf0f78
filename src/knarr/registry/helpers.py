"""Credential helpers: programs that keep logins, docker-credential-NAME (docker-credential-helpers, protocol).

Asked with one word on the command line and one value on standard input; a login never stands on a command line or in
an error. Their output is bounded, and so is their time.
"""

from __future__ import annotations

import shutil
import subprocess

from knarr.base import fastjson
from knarr.base.errors import NotFound, SpecError, TimedOut, Unsupported, UsageError
from knarr.content.names import printable
from knarr.registry.credentials import Credentials

TIMEOUT = 60.0
_LIMIT = 1 << 20
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_BY_TOKEN = "<token>"  # noqa: S105  # the user name that says: the secret is an identity token
_MISSING = "credentials not found"


def get(helper: str, server: str) -> Credentials | None:
    """Return the login a helper keeps for a server, None for none; raises Unsupported, TimedOut."""
    code, output = _run(helper, "get", server.encode())
    if code:
        if _MISSING in output.decode("utf-8", "replace").lower():
            return None
        raise _failed(helper, "get", output)
    try:
        value = fastjson.loads(output, "answer")
    except SpecError:
        raise _failed(helper, "get", b"its answer is not JSON") from None
    user, secret = (value.get("Username"), value.get("Secret")) if isinstance(value, dict) else (None, None)
    if not isinstance(user, str) or not isinstance(secret, str) or not secret:
        raise _failed(helper, "get", b"its answer holds no login")
    origin = f"docker-credential-{helper}"
    return Credentials("", "", origin, secret) if user == _BY_TOKEN else Credentials(user, secret, origin)


def store(helper: str, server: str, credentials: Credentials) -> None:
    """Let a helper keep a login; raises Unsupported, TimedOut."""
    user, secret = credentials.user, credentials.password
    if credentials.identity_token:
        user, secret = _BY_TOKEN, credentials.identity_token
    code, output = _run(helper, "store", fastjson.dumps({"ServerURL": server, "Username": user, "Secret": secret}))
    if code:
        raise _failed(helper, "store", output.replace(secret.encode(), b"..."))


def erase(helper: str, server: str) -> None:
    """Let a helper forget a login, if it has one; raises Unsupported, TimedOut."""
    code, output = _run(helper, "erase", server.encode())
    if code and _MISSING not in output.decode("utf-8", "replace").lower():
        raise _failed(helper, "erase", output)


def _run(helper: str, verb: str, data: bytes) -> tuple[int, bytes]:
    if not helper or not _NAME.issuperset(helper) or helper[0] in ".-":
        raise UsageError(f"credential helper {printable(helper, 60)!r} is no name of a program")
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        raise NotFound("credential helper", f"docker-credential-{helper}", hint="it is not in PATH")
    try:
        process = subprocess.Popen(
            [program, verb], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise _failed(helper, verb, (error.strerror or "").encode()) from None
    try:
        output, _ = process.communicate(data, TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise TimedOut(f"docker-credential-{helper}", TIMEOUT) from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if len(output) > _LIMIT:
        raise _failed(helper, verb, b"its answer is too long")
    return process.returncode, output


def _failed(helper: str, verb: str, output: bytes) -> Unsupported:
    said = printable(" ".join(output.decode("utf-8", "replace").split()), 200)
    return Unsupported(f"docker-credential-{helper} {verb}", said or "it fails without a word")

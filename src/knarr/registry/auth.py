"""Logins: what a registry's challenge asks for, answered with credentials that belong to it.

Nothing is sent before it is asked for. Basic goes to the registry alone; Bearer tokens are fetched from the token
server the registry names, if that may be asked at all (``origin.check_realm``), and kept in memory until they end.
No message holds a password or token (docs/security.md I12).
"""

from __future__ import annotations

import binascii
import logging
import threading
from time import monotonic
from urllib.parse import urlencode

from knarr.base import fastjson
from knarr.base.errors import AuthError, RegistryError, SpecError
from knarr.base.record import Record
from knarr.content.names import printable
from knarr.registry.challenge import choose, parse_challenges
from knarr.registry.connections import Broken
from knarr.registry.origin import Refused, check_realm, shown, split
from knarr.registry.transport import ERROR_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.registry.credentials import Credentials, Found
    from knarr.registry.transport import Response, Transport

_log = logging.getLogger("knarr.registry")

TOKEN_LIMIT = 1 << 20
_SHORTEST = 60.0
_LONGEST = 3600.0


class _Token(Record):
    value: str
    ends: float


class Authorizer:
    """The login at one registry for one repository; shared by the threads of a copy.

    ``scopes`` are what to ask a token server for, whatever the challenge names; without them what it names, or
    pulling from ``repository``. ``look`` are the credentials, or finds them when they are asked for.
    """

    def __init__(
        self,
        transport: Transport,
        registry: str,
        repository: str,
        look: Found | Callable[[], Found],
        scopes: Sequence[str] = (),
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._scope = f"repository:{repository}:pull" if repository else ""
        self._scopes = list(scopes)
        self._look = look
        self._known: Found | None = None if callable(look) else look
        self._lock = threading.Lock()
        self._basic = False
        self._token: _Token | None = None
        self._told = ""  # the token server elsewhere that was logged

    @property
    def _found(self) -> Found:
        """What is known of a login; looked up when the registry asks for one, and not before."""
        if self._known is None:
            self._known = self._look() if callable(self._look) else self._look
        return self._known

    def header(self) -> str:
        """Return the Authorization header for the registry, "" before it has asked for one."""
        credentials = self._known.credentials if self._known is not None else None
        if self._basic and credentials is not None:
            return _basic(credentials.user, credentials.password)
        token = self._token
        return f"Bearer {token.value}" if token is not None and token.ends > monotonic() else ""

    def challenged(self, response: Response) -> bool:
        """Answer a 401: be ready with another header and return True, or raise AuthError saying what is wanted."""
        with self._lock:
            if self.header() != response.authorization:
                return True  # another thread has answered meanwhile
            challenge = choose(parse_challenges(response.headers.getlist("WWW-Authenticate")))
            if challenge is None:
                raise self._denied(response, "it wants a login, but by no method knarr knows (Basic, Bearer)")
            if challenge.scheme == "basic":
                if self._found.credentials is None:
                    raise self._denied(response, "it wants a login")
                if self._found.credentials.identity_token:
                    raise self._denied(response, "it wants a login by name and password, not by identity token")
                if self._basic:
                    raise self._denied(response, _refused(self._found.credentials))
                self._basic = True
                return True
            if self._token is not None and challenge.parameters.get("error") == "insufficient_scope":
                raise self._denied(response, "the login does not allow this")
            self._token = self._fetch(challenge.parameters, response)
            return True

    def scrub(self, text: str) -> str:
        """Return a registry's words without our secrets, should it echo them."""
        secrets = [self._token.value] if self._token is not None else []
        if self._known is not None and self._known.credentials is not None:
            credentials = self._known.credentials
            secrets.append(credentials.identity_token)
            secrets += [_basic(credentials.user, credentials.password).partition(" ")[2], credentials.password]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "…")
        return text

    def _denied(self, response: Response, why: str) -> AuthError:
        hint = self._found.remark
        if not hint and self._found.credentials is None:
            hint = f"log in with knarr login {self._registry}"
        return AuthError(response.method, shown(response.url), response.status, why, hint=hint)

    def _fetch(self, parameters: dict[str, str], response: Response) -> _Token:
        """Ask the token server (distribution's token authentication specification)."""
        realm = parameters["realm"]
        try:
            url = check_realm(realm, self._transport.origin)
        except Refused as refused:
            why = f"it sends logins to {shown(realm)}, which is refused: {refused}"
            raise AuthError(response.method, shown(response.url), response.status, why) from None
        scopes = self._scopes or [scope for scope in (parameters.get("scope") or self._scope,) if scope]
        query = [("scope", scope) for scope in scopes]
        if parameters.get("service"):
            query.append(("service", parameters["service"]))
        headers = {}
        body = b""
        credentials = self._found.credentials
        if credentials is not None:
            if credentials.identity_token:
                body = _refresh(query, credentials.identity_token)
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            else:
                headers["Authorization"] = _basic(credentials.user, credentials.password)
            host = split(url)[1].host
            if host not in {self._transport.origin.host, self._told}:
                self._told = host
                _log.info("the login for %s is sent to its token server %s", self._registry, host)
        if not body:
            url += ("&" if "?" in url else "?") + urlencode(query)
        answer = self._ask(url, headers, body)
        if answer.status in {401, 403} or (body and answer.status == 400):
            answer.close()
            why = "it wants a login" if credentials is None else _refused(credentials)
            raise self._denied(answer, why)
        if answer.status != 200:
            answer.close()
            raise RegistryError("GET", shown(url), answer.status, "the token server does not give a token")
        return _read_token(answer.document(TOKEN_LIMIT, "the token"), shown(url))

    def _ask(self, url: str, headers: dict[str, str], body: bytes) -> Response:
        transport = self._transport
        same_place = url.startswith(f"{transport.base}/")
        attempt = 1
        while True:
            try:
                method = "POST" if body else "GET"
                answer = transport.send(method, url, headers, strict=not same_place, body=body or None)
            except Broken as broken:
                if not broken.again or attempt >= transport.policy.tries:
                    raise RegistryError("GET", shown(url), 0, broken.why, hint=broken.hint) from None
                transport.wait(attempt)
            else:
                if answer.status not in {408, 429, 500, 502, 503, 504} or attempt >= transport.policy.tries:
                    return answer
                asked = answer.header("Retry-After")
                answer.close()
                transport.wait(attempt, asked)
            attempt += 1


def _refresh(query: list[tuple[str, str]], token: str) -> bytes:
    """Return the form that turns an identity token into a token (distribution's OAuth 2 token authentication)."""
    scope = " ".join(value for name, value in query if name == "scope")
    form = [(name, value) for name, value in query if name != "scope"]
    form += [("scope", scope)] if scope else []
    form += [("grant_type", "refresh_token"), ("client_id", "knarr"), ("refresh_token", token)]
    return urlencode(form).encode()


def _refused(credentials: Credentials) -> str:
    kept = f" kept in {credentials.origin}" if credentials.origin else ""
    who = f"as {printable(credentials.user, 60)}" if credentials.user else "by identity token"
    return f"it refuses the login {who}{kept}"


def _basic(user: str, password: str) -> str:
    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()


def _read_token(data: bytes, where: str) -> _Token:
    try:
        value = fastjson.loads(data, "token")
    except SpecError:
        raise RegistryError("GET", where, 0, "the token server's answer is not JSON") from None
    text = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        raise RegistryError("GET", where, 0, "the token server's answer holds no token")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise RegistryError("GET", where, 0, "the token server's answer holds a token with impossible characters")
    lasts = value.get("expires_in")
    seconds = float(lasts) if isinstance(lasts, int) and not isinstance(lasts, bool) else _SHORTEST
    # A little early, so that it does not end on the way; it is fetched again when refused anyway.
    return _Token(text, monotonic() + min(max(seconds, _SHORTEST), _LONGEST) - 5)


def reason(response: Response) -> tuple[str, str]:
    """Return (code, message) of a registry's error answer, fit to print; empty when it gives none. Closes it."""
    try:
        data = response.document(ERROR_LIMIT, "the error")
        value = fastjson.loads(data, "error")
        first = value["errors"][0]
        code, message = first.get("code", ""), first.get("message", "")
    except (RegistryError, SpecError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
    code = code if isinstance(code, str) else ""
    message = message if isinstance(message, str) else ""
    return printable(code, 60), printable(message, 200)

"""HTTP for registries on urllib3: nothing followed, decoded or retried behind our back, everything bounded.

One Transport belongs to one registry. Redirects, logins and repetition are decided here and in ``auth``; urllib3
keeps connections and speaks TLS. Each read of a socket has a time-out, headers have a size and a deadline, bodies a
least speed; bytes are handed out as they came (docs/security.md I10, I12).
"""

from __future__ import annotations

import http.client
import random
import threading
from time import monotonic

from urllib3.exceptions import HTTPError

from knarr.base.errors import Interrupted, RegistryError
from knarr.content import stopping
from knarr.registry.connections import Broken, Policy, Waiting, broken, lax, pool_manager, times_of, verifying
from knarr.registry.origin import Refused, check_redirect, is_loopback, shown, split
from knarr.registry.proxy import proxy_for
from knarr.registry.settings import Certificates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import urllib3

    Body = bytes | Iterable[bytes]  # with a Content-Length beside it

REDIRECT_LIMIT = 10
ERROR_LIMIT = 64 << 10
_READING = ("GET", "HEAD")
_REDIRECTS = (301, 302, 303, 307, 308)
_BLINK = 0.1  # seconds after which somebody who waits looks whether he is to stop
_AGAIN = (408, 429, 500, 502, 503, 504)


class Response:
    """One answer. ``read`` gives the body's bytes undecoded; close it when done with it."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, method: str, url: str, transport: Transport) -> None:
        self.status = raw.status
        self.headers = raw.headers
        self.url = url
        self.method = method
        self.authorization = ""
        """the header it was asked with"""
        self._raw = raw
        self._transport = transport

    def header(self, name: str) -> str:
        """Return a header, "" when it is not there."""
        return self.headers.get(name, "")

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end; raises Broken, Interrupted."""
        try:
            return self._raw.read(size, decode_content=False)
        except Broken:
            raise
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            self._transport.check_stopped()
            raise broken(error, self._transport.policy, at_body=True) from None

    def document(self, limit: int, what: str) -> bytes:
        """Return the whole body of at most ``limit`` bytes and close; raises RegistryError."""
        try:
            length = self.header("Content-Length")
            parts, count = [], 0
            deadline = monotonic() + self._transport.policy.document
            if length.isdigit() and int(length[:20]) > limit:
                count = limit + 1
            while count <= limit and (part := self.read(min(limit + 1 - count, 1 << 14))):
                parts.append(part)
                count += len(part)
                if monotonic() > deadline:
                    raise self.error(f"{what} did not come within {self._transport.policy.document:g} s")
        except Broken as error:
            raise self.error(error.why, hint=error.hint) from None
        finally:
            self.close()
        if count > limit:
            raise self.error(f"{what} has more than {limit} bytes")
        return b"".join(parts)

    def error(self, why: str, *, hint: str = "") -> RegistryError:
        """Make the error that says what is wrong with this answer."""
        return RegistryError(self.method, shown(self.url), self.status if self.status != 200 else 0, why, hint=hint)

    def shutdown(self) -> None:
        """End a read under way in another thread."""
        try:
            self._raw.shutdown()
        except (OSError, ValueError, RuntimeError, AttributeError):
            pass  # closed meanwhile

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        self._transport.forget(self)
        try:
            if not getattr(self._raw, "closed", True):
                self._raw.close()
            self._raw.release_conn()
        except (HTTPError, OSError):
            pass  # it was broken already


class Transport:
    """Requests to one registry and to where it redirects.

    ``authorize(url)`` gives the Authorization header for the registry itself, "" for none;
    ``challenged(response)`` is told of a 401 from the registry and returns whether to try once more.
    """

    def __init__(
        self,
        registry: str,
        policy: Policy,
        *,
        insecure: bool = False,
        ca_file: str = "",
        certificates: Certificates | None = None,
    ) -> None:
        self.policy = policy
        self.authorize: Callable[[], str] = str
        self.challenged: Callable[[Response], bool] = lambda _response: False
        self._insecure = insecure
        self._ca_file = ca_file
        self._certificates = certificates or Certificates()
        self._managers: dict[tuple[str, bool, Certificates, str], urllib3.PoolManager] = {}
        self._registry = registry
        # What to try, in order. Plain HTTP needs a registry on this machine or the user's word; nothing secret is
        # sent before the registry has answered in the language tried.
        self._schemes = ["https"]
        if insecure:
            self._schemes = ["https", "http"]
        elif not ca_file and self._certificates == Certificates() and is_loopback(split(f"https://{registry}")[1].host):
            self._schemes = ["http", "https"]
        self._first_try: Broken | None = None
        self._speak(self._schemes[0])
        self._stop = threading.Event()
        self._live: set[Response] = set()
        self._waiting = Waiting()
        self._lock = threading.Lock()

    def get(self, path: str, headers: Mapping[str, str], *, tries: int | None = None) -> Response:
        """GET a path of the registry (or a whole URL on it), through logins and redirects, again where that may help.

        Returns any answer but redirects and, while attempts last, 408, 429 and 5xx. Raises RegistryError,
        AuthError (from ``challenged``), Interrupted.
        """
        return self.request("GET", path, headers, tries=tries)

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        body: Body | None = None,
        tries: int | None = None,
        patient: bool = False,
    ) -> Response:
        """``get`` for any method that may be repeated; only GET and HEAD are ever sent to another place.

        ``patient`` waits for the answer as long as an upload may take.
        """
        attempt = 1
        most = tries or self.policy.tries
        while True:
            base = "" if "://" in path else self.base
            url = base + path
            try:
                response = self._follow(method, url, headers, body, patient=patient)
            except Broken as broken:
                self.check_stopped()
                if broken.language and self._other_language(broken, base):
                    continue
                if (
                    broken.language and self._first_try is not None
                ):  # neither language: what went wrong first is what matters
                    broken = self._first_try
                if not broken.again or attempt >= most:
                    raise RegistryError(method, shown(url), 0, broken.why, hint=broken.hint) from None
                self.wait(attempt)
            else:
                # A server that expects TLS says 400 in words of its own; a registry's 400 is JSON.
                foreign = response.status == 400 and "json" not in response.header("Content-Type")
                if foreign and self._other_language(None, base):
                    response.close()
                    continue
                self._schemes = []
                self._first_try = None
                if response.status not in _AGAIN or attempt >= most:
                    return response
                asked = response.header("Retry-After")
                response.close()
                self.wait(attempt, asked)
            attempt += 1

    def once(
        self, method: str, path: str, headers: Mapping[str, str], *, body: Body | None = None, patient: bool = False
    ) -> Response:
        """Send a request that its caller repeats, if it makes sense; raises Broken, and as ``request``.

        A 401 is answered for the next attempt, and returned: a body may be gone then.
        """
        url = path if "://" in path else self.base + path
        return self._follow(method, url, headers, body, patient=patient)

    def speak_as(self, url: str) -> None:
        """Speak the scheme of a URL at this registry that an earlier process has used, unless one was settled on."""
        scheme = url.partition(":")[0]
        if len(self._schemes) > 1 and scheme in self._schemes:
            self._schemes = [scheme]
            self._speak(scheme)

    def _speak(self, scheme: str) -> None:
        self.base = f"{scheme}://{self._registry}"
        self.origin = split(self.base)[1]

    def _other_language(self, broken: Broken | None, tried: str) -> bool:
        """Go over to the other scheme, where that is allowed and was not tried; False when it is not.

        ``tried`` is the base of the URL that was, "" for one that stays as it is.
        """
        with self._lock:
            if tried and tried != self.base:
                return True  # another thread has gone over meanwhile
            if len(self._schemes) < 2:
                return False
            self._first_try = broken
            self._schemes = self._schemes[1:]
            self._speak(self._schemes[0])
            return True

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, *, patient: bool
    ) -> Response:
        home = self.origin
        at_home = True  # once away, credentials stay off even if a redirect leads back
        answered = 0
        hops = 0
        while True:
            sent = dict(headers)
            if at_home and (value := self.authorize()):
                sent["Authorization"] = value
            response = self.send(method, url, sent, strict=not at_home, body=body, patient=patient)
            response.authorization = sent.get("Authorization", "")
            if response.status == 401 and at_home and answered < 2 and self.challenged(response):
                if body is not None and not isinstance(body, (bytes, list)):
                    return response  # it cannot be sent again; the caller begins anew, with the login at hand
                answered += 1
                response.close()
                continue
            location = response.header("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            hops += 1
            if hops > REDIRECT_LIMIT:
                raise RegistryError(method, shown(url), response.status, f"more than {REDIRECT_LIMIT} redirects")
            try:
                target = check_redirect(url, location, home)
                if method not in _READING and (split(target)[1] != home or response.status not in {307, 308}):
                    raise Refused(f"what was sent with {method} is for the registry alone")
            except Refused as refused:
                where = shown(location)
                raise RegistryError(method, shown(url), response.status, f"a redirect to {where}: {refused}") from None
            url = target
            at_home = at_home and split(url)[1] == home

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        strict: bool = True,
        body: Body | None = None,
        patient: bool = False,
    ) -> Response:
        """Make one request and return its answer, whatever it is; raises Broken, Interrupted, RegistryError.

        ``strict`` verifies TLS in any case: everything but the registry itself, when that may be insecure.
        """
        self.check_stopped()
        try:
            raw = self._manager(url, strict=strict, patient=patient).request(
                method,
                url,
                body=body,
                headers={"User-Agent": "knarr", "Accept-Encoding": "identity", **headers},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except Broken:
            raise
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            self.check_stopped()
            raise broken(error, self.policy) from None
        response = Response(raw, method, url, self)
        with self._lock:
            self._live.add(response)
        if response.header("Transfer-Encoding") and response.header("Content-Length"):
            response.close()
            raise response.error("the answer has both Content-Length and Transfer-Encoding")
        return response

    def _manager(self, url: str, *, strict: bool, patient: bool) -> urllib3.PoolManager:
        """Return the connections for a URL, made when first needed: reading the authorities costs 20 ms."""
        tls = "plain" if url.startswith("http:") else "strict" if strict or not self._insecure else "lax"
        origin = split(url)[1]
        # What the operator keeps for this registry is for it alone, not for where it sends us.
        own = self._certificates if origin.host == self.origin.host else Certificates()
        proxy = proxy_for(origin.scheme, origin.host, origin.port)
        kind = (tls, patient, own, proxy)
        with self._lock:
            if kind not in self._managers:
                context = None
                if tls != "plain":
                    context = verifying(self._ca_file, own, times_of(own)) if tls == "strict" else lax(own)
                policy = self.policy.replace(headers=self.policy.commit) if patient else self.policy
                self._managers[kind] = pool_manager(policy, context, proxy, self._waiting)
            return self._managers[kind]

    def wait(self, attempt: int, asked: str = "") -> None:
        """Wait before the attempt after ``attempt``; what the registry asked for counts up to the policy's limit."""
        delay = self.policy.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311  # jitter
        if asked.isascii() and asked.isdigit():
            delay = float(asked[:9])
        ends = monotonic() + min(delay, self.policy.longest_wait)
        while (left := ends - monotonic()) > 0 and not self._stop.wait(min(left, _BLINK)):
            stopping.check()
        self.check_stopped()

    def forget(self, response: Response) -> None:
        """Take a finished response off the list of those to break off."""
        with self._lock:
            self._live.discard(response)

    def check_stopped(self) -> None:
        """Raise Interrupted after ``abort``, or when the work of this thread is to stop."""
        if self._stop.is_set():
            raise Interrupted(f"the exchange with {self._registry} was stopped")
        stopping.check()

    def abort(self) -> None:
        """Break off everything under way in other threads, and whatever would follow."""
        self._stop.set()
        with self._lock:
            live = list(self._live)
        for response in live:
            response.shutdown()
        self._waiting.stop()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            live = list(self._live)
        for response in live:
            response.close()
        for manager in self._managers.values():
            manager.clear()

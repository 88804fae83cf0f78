"""``knarr login`` and ``knarr logout``."""

from __future__ import annotations

import sys

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.output import clean, put

_LIMIT = 1 << 20


def parse_login() -> Parser:
    """The parser of ``knarr login``."""
    parser = Parser(
        "login",
        "Log in to a registry: the login is tried, then kept in ~/.docker/config.json or by the credential helper set\n"
        "there, where docker and podman find it too. The password is asked for, or read from standard input.",
        "[-u USER] [--password-stdin] [--authfile FILE] REGISTRY",
        "  knarr login registry.local:5000\n  knarr login -u bob --password-stdin quay.io < secret",
    )
    parser.add_argument("-u", "--username", default="", metavar="USER", help="asked for if not given")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument("--authfile", default="", metavar="FILE", help="keep it in this file")
    parser.add_argument("--insecure", action="store_true", help="allow plain HTTP and unverified TLS")
    parser.add_argument("registry", metavar="REGISTRY", help="host[:port]; docker.io is Docker Hub")
    return parser


def do_login(arguments: list[str]) -> int:
    """Log in."""
    given = parse_login().parse_args(arguments)
    from knarr.registry.credentials import Credentials
    from knarr.registry.login import login

    registry = _registry(given.registry)
    if given.password_stdin and not given.username:
        raise UsageError("--password-stdin needs -u USER, too")
    user = given.username or _ask("Username: ", secret=False)
    password = _from_stdin() if given.password_stdin else _ask("Password: ", secret=True)
    kept = login(registry, Credentials(user, password), file=given.authfile, insecure=given.insecure)
    put(f"logged in to {registry} as {clean(user)}; kept in {clean(kept)}")
    return 0


def parse_logout() -> Parser:
    """The parser of ``knarr logout``."""
    parser = Parser(
        "logout",
        "Forget the login for a registry, wherever docker, podman or knarr keep it.",
        "[--authfile FILE] REGISTRY",
        "  knarr logout registry.local:5000",
    )
    parser.add_argument("--authfile", default="", metavar="FILE", help="take it out of this file only")
    parser.add_argument("registry", metavar="REGISTRY", help="host[:port]; docker.io is Docker Hub")
    return parser


def do_logout(arguments: list[str]) -> int:
    """Log out."""
    given = parse_logout().parse_args(arguments)
    from knarr.registry.login import logout

    registry = _registry(given.registry)
    for place in logout(registry, file=given.authfile):
        put(f"removed the login for {registry} from {clean(place)}")
    return 0


def _registry(text: str) -> str:
    """Return the host[:port] of a registry, as a reference would have it; raises InvalidReference, UsageError."""
    from knarr.image.reference import parse_reference

    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    reference = parse_reference(f"docker://{name}/x/y")
    if reference.repository != "x/y":
        raise UsageError(f"{clean(text)} is no registry", hint="as quay.io or registry.local:5000")
    return reference.registry


def _from_stdin() -> str:
    data = sys.stdin.buffer.read(_LIMIT)
    try:
        password = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError("the password on standard input is not UTF-8") from None
    if not password or "\n" in password or len(data) == _LIMIT:
        raise UsageError("standard input must hold the password, one line")
    return password


def _ask(prompt: str, *, secret: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="give -u USER and --password-stdin")
    if secret:
        from getpass import getpass

        return getpass(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return sys.stdin.readline().strip()

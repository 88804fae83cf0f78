"""``knarr registry serve``: a registry over a directory, for tests, laptops and sites without the internet."""

from __future__ import annotations

import os
import sys

from knarr.cli.command import Parser
from knarr.cli.output import put


def parse_serve() -> Parser:
    """The parser of ``knarr registry serve``."""
    parser = Parser(
        "registry serve",
        "Serve a directory as a registry (distribution-spec 1.1) until it is interrupted.\n\n"
        "The directory is an image store: one that knarr has filled can be served as it is, and what was pushed\n"
        "can be listed and run from it with knarr --store DIR. With --proxy it keeps what it fetches from another.",
        "[options] DIR",
        "  knarr registry serve /srv/images\n"
        "  knarr registry serve --addr 127.0.0.1:0 --read-only ~/.local/share/knarr\n"
        "  knarr registry serve --proxy docker.io /srv/cache",
    )
    parser.add_argument("directory", metavar="DIR", help="the store, made if missing")
    parser.add_argument("--addr", default="127.0.0.1:5000", metavar="HOST:PORT", help="where to listen (%(default)s)")
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="certificate chain, PEM; needed beyond loopback")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key, PEM")
    parser.add_argument("--login-file", default="", metavar="FILE", help="one line user:password that all must give")
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument("--proxy", default="", metavar="HOST", help="be a pull-through cache of this registry")
    parser.add_argument("--proxy-insecure", action="store_true", help="let that one speak plain HTTP")
    return parser


def do_serve(arguments: list[str]) -> int:
    """Serve."""
    from knarr.service.registry.serve import read_login, serve

    given = parse_serve().parse_args(arguments)

    def ready(url: str) -> None:
        put(f"serving {given.directory} at {url}")
        sys.stdout.flush()  # whoever started it may be waiting for this line at the end of a pipe

    serve(
        os.path.abspath(given.directory),
        address=given.addr,
        certificate=given.tls_cert,
        key=given.tls_key,
        login=read_login(given.login_file) if given.login_file else None,
        read_only=given.read_only,
        proxy=given.proxy,
        insecure=given.proxy_insecure,
        ready=ready,
    )
    return 0

"""What the tests of hostile and faulty registries share: pulling, being refused, rules for the fake."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakeregistry import REPOSITORY, FakeRegistry, Handler

from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.registry.connections import Policy
from knarr.registry.credentials import Credentials
from knarr.registry.source import RegistryImage, open_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.content.store import Store

AMD64 = parse_platform("linux/amd64")
QUICK = Policy(connect=5, read=1, headers=1, slow_window=1, backoff=0.01, longest_wait=0.05)
BOMB = gzip.compress(bytes(64 << 20))
BOB = Credentials("bob", "hunter2")
BLOBS = f"/v2/{REPOSITORY}/blobs/"
MANIFESTS = f"/v2/{REPOSITORY}/manifests/"
TAGS = f"/v2/{REPOSITORY}/tags/list"


def opened(fake: FakeRegistry, **options: Any) -> RegistryImage:
    return open_image(fake.host, REPOSITORY, "v1", **{"policy": QUICK, **options})


def pull(store: Store, fake: FakeRegistry, **options: Any) -> None:
    source = opened(fake, **options)
    try:
        copy(source, store, ["x"], platform=AMD64)
    finally:
        source.close()


def refused(
    store: Store, fake: FakeRegistry, error: type[Exception], why: str, *, within: float = 10, **options: Any
) -> str:
    """Pull and be refused, in time, with one sentence and nothing left; return the sentence."""
    began = time.monotonic()
    with pytest.raises(error, match=why) as caught:
        pull(store, fake, **options)
    assert time.monotonic() - began < within
    said = str(caught.value)
    assert said.isprintable()
    assert "hunter2" not in said
    assert store.tags() == {}
    assert list(Path(store.path, ".tmp").iterdir()) == []
    return said


def always(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], bool]:
    def rule(handler: Handler) -> bool:
        return handler.reply(status, body, **headers)

    return rule


def wants_basic(handler: Handler) -> bool:
    if handler.headers.get("Authorization", "").startswith("Basic "):
        return False
    return handler.reply(401, WWW_Authenticate='Basic realm="x"')


def bearers(realm: str, *, more: str = "") -> Callable[[Handler], bool]:
    def rule(handler: Handler) -> bool:
        return handler.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"{more}')

    return rule

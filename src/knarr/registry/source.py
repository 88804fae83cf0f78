"""A registry's image as a source to copy from: what image/source.py asks for, without knowing images."""

from __future__ import annotations

import io
import logging

from knarr.base.errors import NotFound, RegistryError
from knarr.content.verify import VerifiedReader
from knarr.registry.client import Client
from knarr.registry.settings import settings_for
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from knarr.content.verify import Readable
    from knarr.registry.connections import Policy
    from knarr.registry.credentials import Credentials
    from knarr.spec.image import Descriptor

    T = TypeVar("T")

_log = logging.getLogger("knarr.registry")


class RegistryImage:
    """One image of a registry, by tag or digest. The tag is asked once: it cannot move under a copy.

    ``clients`` are the places it may be at, mirrors first; the one that answers is kept, and what it then fails to
    give is asked from those after it.
    """

    def __init__(self, clients: Sequence[Client], reference: str, name: str) -> None:
        self.what = name
        self._all = list(clients)
        self._clients = list(clients)
        self._reference = reference
        self._name = name
        self._root: tuple[Descriptor, bytes] | None = None

    def roots(self) -> list[Descriptor]:
        """Return the descriptor the tag or digest means now; raises as ``Client.manifest`` does."""
        if self._root is None:
            self._root = self._ask(lambda client: client.manifest(self._reference))
        return [self._root[0]]

    def _ask(self, what: Callable[[Client], T]) -> T:
        """Ask one place after the other; the last one's error is told, with what the mirrors said."""
        notes: list[str] = []
        while True:
            client = self._clients[0]
            try:
                return what(client)
            except (NotFound, RegistryError) as error:
                if len(self._clients) == 1:
                    for note in notes:
                        error.add_note(note)
                    raise
                notes.append(f"the mirror {client.registry} failed: {error}")
                _log.info("%s", notes[-1])
                # Another thread may have gone on already.
                if self._clients[0] is client:
                    del self._clients[0]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader of a blob, manifest or index."""
        digest, size, media_type = descriptor["digest"], descriptor["size"], descriptor["mediaType"]
        if self._root is not None and self._root[0]["digest"] == digest:
            return VerifiedReader(io.BytesIO(self._root[1]), digest, size, f"manifest {digest}")
        if media_type in mediatypes.INDEXES or media_type in mediatypes.MANIFESTS:
            found, data = self._ask(lambda client: client.manifest(digest))
            if found["mediaType"] != media_type:
                from knarr.base.errors import SpecError, SpecFinding

                why = f"is {found['mediaType']}, but the index announced {media_type}"
                raise SpecError(f"manifest {digest}", [SpecFinding("/mediaType", why)])
            return VerifiedReader(io.BytesIO(data), digest, size, f"manifest {digest}")
        return self._ask(lambda client: client.open_blob(descriptor))

    def open_from(self, descriptor: Descriptor, offset: int) -> Readable:
        """Return a reader of the rest of a blob; it does not verify."""
        return self._ask(lambda client: client.open_from(descriptor, offset))

    def open_range(self, descriptor: Descriptor, start: int, size: int) -> Readable | None:
        """Return a reader of a part of a blob, which does not verify; None where no parts are to be had."""
        return self._ask(lambda client: client.open_range(descriptor, start, size))

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of what refers to ``digest``."""
        from knarr.registry.referrers import referrers

        return self._ask(lambda client: referrers(client, digest))

    def names(self) -> list[str]:
        """Return the full name it was asked for by."""
        return [self._name]

    def abort(self) -> None:
        """Break off reads under way in other threads."""
        for client in list(self._clients):
            client.abort()

    def close(self) -> None:
        """Close all connections."""
        for client in self._all:
            client.close()


def open_image(
    registry: str,
    repository: str,
    tag: str = "",
    digest: str = "",
    *,
    credentials: Credentials | None = None,
    insecure: bool = False,
    ca_file: str = "",
    policy: Policy | None = None,
) -> RegistryImage:
    """Return the source for an image of a registry; nothing is asked yet. See ``Client`` for the options.

    Mirrors and other locations are those of the operator's files (``settings``). Raises SpecError, FileError for
    files that are not what they should be, RegistryError for a registry that is blocked there.
    """
    name = f"{registry}/{repository}" + (f"@{digest}" if digest else f":{tag}")
    places = settings_for(registry, repository).endpoints
    clients = [
        Client(
            place.registry,
            place.repository,
            credentials=credentials if place == places[-1] else None,  # they belong to the registry itself
            insecure=place.insecure or (insecure and place == places[-1]),
            ca_file=ca_file if place == places[-1] else "",
            policy=policy,
        )
        for place in places
        if not place.only or place.only == ("digest" if digest else "tag")
    ]
    return RegistryImage(clients, digest or tag, name)

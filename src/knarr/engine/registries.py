"""``knarr.Registry`` and ``knarr.copy``: registries and copies for programs. Nothing is asked before a call."""

from __future__ import annotations

from contextlib import contextmanager

from knarr.base import fastjson
from knarr.base.errors import InvalidReference, UsageError
from knarr.base.record import Record
from knarr.engine import copying
from knarr.engine.copying import Access, options_of
from knarr.engine.paths import places
from knarr.image.reference import parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TypedDict

    from knarr.image.copy import Copied
    from knarr.image.transfer import Progress
    from knarr.registry.client import Client
    from knarr.registry.credentials import Credentials
    from knarr.spec.image import Descriptor

    class CopyOptions(TypedDict, total=False):
        """The options of ``copy``, for its twin in ``aio``."""

        platforms: Sequence[str]
        all: bool
        format: str
        compress: str
        preserve_digests: bool
        referrers: bool
        dry_run: bool
        jobs: int
        insecure: bool
        progress: Progress | None
        store: str | None


class Document(Record):
    """A manifest or index of a registry: its descriptor, its bytes, and what they say."""

    descriptor: Descriptor
    data: bytes
    content: dict[str, Any]

    @property
    def digest(self) -> str:
        """Its digest."""
        return self.descriptor["digest"]


class Registry(Record):
    """A registry by its host[:port] (docker.io is Docker Hub). Immutable, holds no connection, safe for threads.

    ``user`` and ``password`` go before what Docker's and Podman's files and helpers hold. ``insecure`` allows plain
    HTTP and unverified TLS. All methods raise RegistryError, AuthError; NotFound for what is not there.
    """

    host: str
    user: str = ""
    password: str = ""
    insecure: bool = False

    def tags(self, repository: str, *, limit: int = 100_000) -> list[str]:
        """Return the tags of a repository, in the registry's order."""
        with self._client(repository) as client:
            return client.tags(limit=limit)

    def repositories(self, *, limit: int = 100_000) -> list[str]:
        """Return the names of all repositories, where the registry tells them (many do not)."""
        from knarr.registry.client import repositories

        return repositories(self.host, credentials=self.credentials, insecure=self.insecure, limit=limit)

    def manifest(self, repository: str, reference: str) -> Document:
        """Return a manifest or index by tag or digest; no layer is fetched."""
        with self._client(repository) as client:
            descriptor, data = client.manifest(reference)
        return Document(descriptor, data, fastjson.loads(data, f"manifest {reference}"))

    def referrers(self, repository: str, digest: str, *, artifact_type: str = "") -> list[Descriptor]:
        """Return descriptors of what refers to a manifest: signatures, SBOMs, …; of one type if given."""
        from knarr.registry.referrers import referrers

        with self._client(repository) as client:
            return referrers(client, digest, artifact_type)

    def delete(self, repository: str, reference: str, *, tag_only: bool = False) -> str:
        """Remove a manifest, with all its tags, or with ``tag_only`` a tag alone; return what is gone."""
        from knarr.registry.push import Pusher
        from knarr.registry.referrers import remove

        with self._client(repository, "pull,delete") as client:
            if tag_only:
                Pusher(client).delete_manifest(reference)
                return reference
            return remove(Pusher(client), reference)

    @property
    def credentials(self) -> Credentials | None:
        """The login given, None for none."""
        from knarr.registry.credentials import Credentials

        return Credentials(self.user, self.password) if self.user else None

    @contextmanager
    def _client(self, repository: str, actions: str = "") -> Iterator[Client]:
        from knarr.registry.client import Client
        from knarr.registry.settings import settings_for

        reference = parse_reference(f"docker://{self.host}/{repository}")
        if reference.registry != self.host or f"{reference.repository}:latest" != f"{repository}:{reference.tag}":
            hub = self.host == "docker.io" and reference.repository == f"library/{repository}"
            if not hub:
                raise InvalidReference(repository, f"it is no name of a repository of {self.host}")
        place = settings_for(self.host, reference.repository).endpoints[-1]
        client = Client(
            place.registry,
            place.repository,
            credentials=self.credentials,
            insecure=self.insecure or place.insecure,
            scopes=[f"repository:{place.repository}:{actions}"] if actions else (),
        )
        try:
            yield client
        finally:
            client.close()

    def __repr__(self) -> str:
        return f"Registry({self.host!r}, user={self.user!r}, insecure={self.insecure})"


def copy(
    source: str,
    target: str,
    *,
    platforms: Sequence[str] = (),
    all: bool = False,
    format: str = "",
    compress: str = "",
    preserve_digests: bool = False,
    referrers: bool = False,
    dry_run: bool = False,
    jobs: int = 4,
    insecure: bool = False,
    progress: Progress | None = None,
    store: str | None = None,
) -> Copied:
    """Copy an image from any place to any other: what ``knarr image copy`` does, with its options.

    ``platforms`` as linux/arm64: none is this machine's, several make an index of them; ``compress`` as gzip, zstd:9 or
    none. ``insecure`` allows plain HTTP and unverified TLS on both sides. ``progress`` is told of each blob, one call
    at a time, from several threads; what it raises ends the copy. Raises InvalidReference, NotFound, UsageError,
    RegistryError, AuthError, DigestMismatch and others below KnarrError; then nothing of the target is there.
    """
    if isinstance(platforms, str):
        raise UsageError("platforms are a list of texts", hint=f"as [{platforms!r}]")
    options = options_of(
        platforms,
        all=all,
        format=format,
        compress=compress,
        preserve_digests=preserve_digests,
        referrers=referrers,
        dry_run=dry_run,
        jobs=jobs,
    )
    access = Access(insecure=insecure)
    return copying.copy(
        places(store), source, target, options, source_access=access, target_access=access, progress=progress
    )

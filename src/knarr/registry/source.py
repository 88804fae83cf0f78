"""A registry's image as a source to copy from: what image/source.py asks for, without knowing images."""

from __future__ import annotations

import io

from knarr.content.verify import VerifiedReader
from knarr.registry.client import Client
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.content.verify import Readable
    from knarr.registry.credentials import Credentials
    from knarr.registry.transport import Policy
    from knarr.spec.image import Descriptor


class RegistryImage:
    """One image of a registry, by tag or digest. The tag is asked once: it cannot move under a copy."""

    def __init__(self, client: Client, reference: str, name: str) -> None:
        self.what = name
        self._client = client
        self._reference = reference
        self._name = name
        self._root: tuple[Descriptor, bytes] | None = None

    def roots(self) -> list[Descriptor]:
        """Return the descriptor the tag or digest means now; raises as ``Client.manifest`` does."""
        if self._root is None:
            self._root = self._client.manifest(self._reference)
        return [self._root[0]]

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader of a blob, manifest or index."""
        digest, size, media_type = descriptor["digest"], descriptor["size"], descriptor["mediaType"]
        if self._root is not None and self._root[0]["digest"] == digest:
            return VerifiedReader(io.BytesIO(self._root[1]), digest, size, f"manifest {digest}")
        if media_type in mediatypes.INDEXES or media_type in mediatypes.MANIFESTS:
            found, data = self._client.manifest(digest)
            if found["mediaType"] != media_type:
                from knarr.base.errors import SpecError, SpecFinding

                why = f"is {found['mediaType']}, but the index announced {media_type}"
                raise SpecError(f"manifest {digest}", [SpecFinding("/mediaType", why)])
            return VerifiedReader(io.BytesIO(data), digest, size, f"manifest {digest}")
        return self._client.open_blob(descriptor)

    def open_from(self, descriptor: Descriptor, offset: int) -> Readable:
        """Return a reader of the rest of a blob; it does not verify."""
        return self._client.open_from(descriptor, offset)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of what refers to ``digest``."""
        from knarr.registry.referrers import referrers

        return referrers(self._client, digest)

    def names(self) -> list[str]:
        """Return the full name it was asked for by."""
        return [self._name]

    def abort(self) -> None:
        """Break off reads under way in other threads."""
        self._client.abort()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


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
    """Return the source for an image of a registry; nothing is asked yet. See ``Client`` for the options."""
    client = Client(registry, repository, credentials=credentials, insecure=insecure, ca_file=ca_file, policy=policy)
    name = f"{registry}/{repository}" + (f"@{digest}" if digest else f":{tag}")
    return RegistryImage(client, digest or tag, name)

"""A repository as a place to copy images to: what image/sink.py asks for, without knowing images."""

from __future__ import annotations

from knarr.base.errors import DigestMismatch
from knarr.registry.client import Client
from knarr.registry.push import Pusher
from knarr.registry.settings import settings_for
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.content.part import Source
    from knarr.registry.connections import Policy
    from knarr.registry.credentials import Credentials
    from knarr.registry.uploads import Uploads
    from knarr.spec.image import Descriptor


class RegistrySink:
    """A repository of a registry; ``reference`` is the tag or digest the next image gets. See ``image.sink``."""

    keeps = True
    indexes = True
    formats: tuple[str, ...] = ("oci", "docker")
    compression: str | None = None
    jobs = 4

    def __init__(self, pusher: Pusher, reference: str, what: str) -> None:
        self.what = what
        self.reference = reference
        self.pusher = pusher
        self._there: dict[str, bool] = {}
        self._waiting: tuple[Descriptor, bytes] | None = None

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Nothing to prepare."""

    def has(self, descriptor: Descriptor) -> bool:
        """Ask whether a blob or manifest is there."""
        if descriptor["mediaType"] in mediatypes.MANIFESTS or descriptor["mediaType"] in mediatypes.INDEXES:
            there = self.pusher.has_manifest(descriptor)
            self._there[descriptor["digest"]] = there
            return there
        return self.pusher.has_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Send a blob."""
        self.pusher.put_blob(descriptor, source, moved)

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Send a manifest or index by its digest, unless the next call says that it is the named one."""
        self._send_waiting()
        self._waiting = descriptor, data

    def _send_waiting(self) -> None:
        if self._waiting is not None:
            descriptor, data = self._waiting
            self._waiting = None
            if not self._there.get(descriptor["digest"]):
                self.pusher.put_manifest(descriptor["digest"], descriptor, data)

    def put_name(self, descriptor: Descriptor, index: str) -> None:  # noqa: ARG002  # the registry needs no other
        """Send the named manifest or index under its tag; raises DigestMismatch when it was to have another digest."""
        if ":" in self.reference and self.reference != descriptor["digest"]:
            raise DigestMismatch(f"what is to be {self.what}", self.reference, descriptor["digest"])
        if ":" in self.reference or self._waiting is None:
            self._send_waiting()
            return
        _, data = self._waiting
        self._waiting = None
        self.pusher.put_manifest(self.reference, descriptor, data)

    def put_referrer(self, descriptor: Descriptor, subject: str) -> None:  # noqa: ARG002  # its manifest says both
        """Send what refers to an image; the registry, or the index under its tag, knows it by its subject."""
        self._send_waiting()

    def finish(self) -> None:
        """Send what is left."""
        self._send_waiting()

    def abort(self) -> None:
        """Break off what other threads send."""
        self.pusher.client.abort()

    def close(self) -> None:
        """Close all connections."""
        self.pusher.client.close()


def open_sink(
    registry: str,
    repository: str,
    tag: str = "",
    digest: str = "",
    *,
    mount_from: str = "",
    uploads: Uploads | None = None,
    credentials: Credentials | None = None,
    insecure: bool = False,
    ca_file: str = "",
    policy: Policy | None = None,
) -> RegistrySink:
    """Return the sink for an image of a registry; nothing is asked yet. See ``Client`` for the options."""
    place = settings_for(registry, repository).endpoints[-1]  # never a mirror
    scopes = [f"repository:{place.repository}:pull,push"]
    if (place.registry, place.repository) != (registry, repository):
        mount_from = ""  # what another repository is called there is not known
    if mount_from and mount_from != repository:
        scopes.append(f"repository:{mount_from}:pull")
    client = Client(
        place.registry,
        place.repository,
        credentials=credentials,
        insecure=insecure or place.insecure,
        ca_file=ca_file,
        policy=policy,
        scopes=scopes,
    )
    name = f"{registry}/{repository}" + (f"@{digest}" if digest else f":{tag}")
    return RegistrySink(Pusher(client, mount_from=mount_from, uploads=uploads), digest or tag, name)

"""The registry behind a pull-through cache: what is asked for and not here is fetched, verified and kept."""

from __future__ import annotations

from threading import Lock as ThreadLock

from knarr.base.errors import AuthError, KnarrError, NotFound, RegistryError
from knarr.service.registry.problems import Problem
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.content.store import Store
    from knarr.registry.client import Client
    from knarr.spec.image import Descriptor


class Upstream:
    """``client`` gives a client for a repository of the registry behind. May be used from several threads."""

    def __init__(self, store: Store, client: Callable[[str], Client]) -> None:
        self.store = store
        self._client = client
        self._sizes: dict[str, int] = {}  # of blobs, as manifests gave them
        self._lock = ThreadLock()

    def manifest(self, repository: str, reference: str) -> None:
        """Have a manifest here, newer if the registry behind has another. What is here is good if that is silent.

        Raises Problem when there is none.
        """
        by_digest = ":" in reference
        name = f"{repository}{'@' if by_digest else ':'}{reference}"
        if by_digest and name in self.store.tags():
            return  # bytes named by their digest have no news
        client = self._client(repository)
        try:
            descriptor, data = client.manifest(reference)
        except NotFound as error:
            raise Problem("MANIFEST_UNKNOWN", str(error)) from None
        except AuthError as error:
            raise Problem("DENIED", str(error)) from None
        except RegistryError as error:
            if name in self.store.tags():
                return
            raise Problem("UNAVAILABLE", str(error)) from None
        finally:
            client.close()
        self._note_sizes(data)
        with self.store.lock():
            self.store.put(data, descriptor)
            known = self.store.tags()
            for each in {name, f"{repository}@{descriptor['digest']}"}:
                if each not in known or known[each]["digest"] != descriptor["digest"]:
                    self.store.tag(each, descriptor)

    def blob(self, repository: str, digest: str) -> None:
        """Have a blob here. Raises Problem."""
        size = self._sizes.get(digest)
        if size is None:
            self._note_all()
            size = self._sizes.get(digest)
        if size is None:
            raise Problem("BLOB_UNKNOWN", f"{digest}: no manifest that came through here names it")
        client = self._client(repository)
        try:
            wanted: Descriptor = {"mediaType": "application/octet-stream", "digest": digest, "size": size}
            self.store.put(lambda: client.open_blob(wanted), wanted)
        except NotFound as error:
            raise Problem("BLOB_UNKNOWN", str(error)) from None
        except AuthError as error:
            raise Problem("DENIED", str(error)) from None
        except KnarrError as error:
            raise Problem("UNAVAILABLE", str(error)) from None
        finally:
            client.close()

    def _note_sizes(self, data: bytes) -> None:
        from knarr.base import fastjson

        document = fastjson.loads(data, "manifest")
        with self._lock:
            for one in (document.get("config"), *document.get("layers", ())):
                if one:
                    self._sizes[one["digest"]] = one["size"]

    def _note_all(self) -> None:
        """After a start: the sizes that the manifests here give."""
        for entry in self.store.entries():
            if entry["mediaType"] in mediatypes.MANIFESTS:
                try:
                    self._note_sizes(self.store.read_blob(entry))
                except KnarrError:
                    continue

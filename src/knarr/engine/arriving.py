"""Pulling into the store with the layers made ready to be mounted on the way (layer/arriving.py)."""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import KnarrError
from knarr.image.sink import StoreSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.content.part import Source
    from knarr.content.store import Store
    from knarr.engine.images import Arriving
    from knarr.image.tree import Node
    from knarr.spec.image import Descriptor


class ArrivingSink(StoreSink):
    """A store whose layers are inflated and indexed while they come."""

    def __init__(self, store: Store, names: Sequence[str], arriving: Arriving) -> None:
        super().__init__(store, names)
        self._arriving = arriving

    def expect(self, node: Node) -> None:
        """Prepare for the layers of an image."""
        from knarr.layer.source import layers_of

        manifests = node.manifests()
        if len(manifests) != 1 or manifests[0].config is None:
            return  # an artifact, or several platforms: which one will be run nobody knows
        manifest = manifests[0]
        try:
            config = fastjson.loads(manifests[0].config, f"config of {manifest.digest}")
            layers = layers_of(self.store, manifest.document, config)
            digests = [layer["digest"] for layer in manifest.document["layers"]]
            self._arriving.expect(list(zip(digests, layers, strict=True)))
        except KnarrError:
            return  # whoever makes the image ready says what is wrong

    def put_blob(self, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> None:
        """Add a blob; see ``Store.put``."""
        arrivals = self._arriving.arrivals
        arrival = arrivals.of(descriptor["digest"]) if arrivals is not None else None
        if arrival is None:
            super().put_blob(descriptor, source, moved)
            return
        whole = False
        try:
            super().put_blob(descriptor, arrival.follow(source), moved)
            whole = True
        finally:
            arrival.end(whole=whole)

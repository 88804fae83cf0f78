"""The policy in force: images are held against it before their first layer is fetched.

KNARR_POLICY names a file in the form of containers-policy.json(5); without it everything is taken. What a name means is
asked once: the digest that was checked is the one that is then copied.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.image.reference import Reference
    from knarr.image.source import ImageSource

VARIABLE = "KNARR_POLICY"


def check_source(source: ImageSource, reference: Reference) -> None:
    """Hold what a source names against the policy, if there is one. The store's own images were checked as they came.

    Raises SignatureError with the reason, SpecError, NotFound for a policy that cannot be read, and what asking for
    signatures raises.
    """
    path = os.environ.get(VARIABLE, "")
    if not path or reference.transport == "store":
        return
    from knarr.engine.imaging.blobs import Blobs
    from knarr.engine.imaging.image import Image
    from knarr.engine.imaging.opening import REMOTE
    from knarr.engine.imaging.policy import check, read_policy

    policy = read_policy(path)
    text = f"{REMOTE}{reference.name}" if reference.transport == "docker" else str(reference)
    for root in source.roots():
        check(policy, Image(Blobs(None), root, {}, None, text), text)

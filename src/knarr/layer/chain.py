"""ChainIDs: the identity of a stack of layers. image-spec config.md, "Layer ChainID".

The chainID of one layer is its diffID; of a layer on others, the digest of the text ``chainID diffID``.
"""

from __future__ import annotations

from knarr.content.digest import Digest, hasher, usable

try:
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # hashlib, with OpenSSL, costs 3 ms
except ImportError:  # before Python 3.12
    from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def chain_ids(diff_ids: Sequence[str]) -> list[Digest]:
    """The chainID of each layer of an image, bottom first; raises InvalidDigest."""
    chain: list[Digest] = []
    for text in diff_ids:
        diff = usable(text)
        if not chain:
            chain.append(diff)
            continue
        made = sha256() if diff.algorithm == "sha256" else hasher(diff.algorithm)
        made.update(f"{chain[-1]} {diff}".encode())
        chain.append(Digest(f"{diff.algorithm}:{made.hexdigest()}"))
    return chain

"""The state document of a container (hot): what ``state`` prints and hooks read on stdin (runtime.md, State)."""

from __future__ import annotations

from knarr.spec.runtime import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def state_document(
    id: str, status: str, bundle: str, *, pid: int = 0, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the state of a container: ``status`` is one of ``runtime.STATUSES``, ``bundle`` an absolute path.

    ``pid`` is the container process's, as its reader sees it; 0 leaves it out, as a stopped container's is.
    ``annotations`` are those of config.json.
    """
    state: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": id, "status": status}
    if pid:
        state["pid"] = pid
    state["bundle"] = bundle
    if annotations:
        state["annotations"] = dict(annotations)
    return state

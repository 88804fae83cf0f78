"""Where a container's plan is carried out: on the host's kernel or in a guest, by its config.json (hot)."""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding
from knarr.base.fastjson import pointer_token
from knarr.base.paths import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.exec import GuestExeced
    from knarr.runtime.create import Created
    from knarr.runtime.exec import Execed

ANNOTATION = "org.knarr.isolation"
WRITES = "org.knarr.isolation.writes"
"""The annotation that says whether what a container in a guest writes to its root stays: keep (default) or discard."""
GUESTS = ("kernel", "vm")
NAMES = ("namespace", *GUESTS)


def kind_of(config: dict[str, Any]) -> str:
    """The kind that a config.json's annotation asks for; namespace without one. Raises SpecError for no kind."""
    asked: str = (config.get("annotations") or {}).get(ANNOTATION) or "namespace"
    if asked not in NAMES:
        why = f"{asked!r} is not namespace, kernel or vm"
        raise SpecError("config.json", [SpecFinding(f"/annotations{pointer_token(ANNOTATION)}", why)])
    return asked


def in_guest(state_root: str, id: str) -> bool:
    """Whether a container of that id is in a guest (which says nothing of whether it is there)."""
    from knarr.runtime.monitored import SOCKET  # not for those who make one

    return exists(f"{state_root}/{id}/{SOCKET}")


def begin(state_root: str, id: str, bundle: str, config: dict[str, Any], **more: Any) -> Created:
    """``runtime.create.begin``, or its like for the kind that config.json asks for. Raises the same."""
    kind = kind_of(config)
    if kind == "namespace":
        from knarr.runtime.create import begin as begin_here

        return begin_here(state_root, id, bundle, config, **more)
    from knarr.isolation.create import begin as begin_in_guest  # cold: only for a guest

    return begin_in_guest(kind, state_root, id, bundle, config, **more)


def begin_exec(state_root: str, id: str, process: dict[str, Any], **more: Any) -> Execed | GuestExeced:
    """``runtime.exec.begin_exec``, or its like for a container in a guest. Raises the same."""
    if not in_guest(state_root, id):
        from knarr.runtime.exec import begin_exec as begin_here

        return begin_here(state_root, id, process, **more)
    from knarr.isolation.exec import begin_exec as begin_in_guest  # cold: only for a guest

    return begin_in_guest(state_root, id, process, **more)

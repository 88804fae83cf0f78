"""Whether namespaces joined by path are the caller's own: what is set there would be set on the host (cold).

docs/security.md I15. The paths are the operator's, so a look at what they lead to now is enough.
"""

from __future__ import annotations

import os

from knarr.base.errors import SpecError, SpecFinding
from knarr.plan.namespaces import PROC_NAME
from knarr.spec.validate import config_findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SETTINGS = ("/linux/sysctl", "/hostname", "/domainname")


def demand_own_scopes(config: dict[str, Any]) -> None:
    """Raise SpecError for names and sysctls that would be set in a namespace this process is in itself."""
    linux = config["linux"]
    entries = linux["namespaces"]
    others = [entry for entry in entries if not _is_ours(entry)]
    if len(others) == len(entries):
        return
    without = {**config, "linux": {**linux, "namespaces": others}}
    bad = [found for found in config_findings(without) if found.pointer.startswith(_SETTINGS)]
    if bad:
        hint = "; the one named by its path is the caller's own"
        raise SpecError("config.json", [SpecFinding(found.pointer, found.why + hint) for found in bad])


def _is_ours(entry: dict[str, Any]) -> bool:
    if not entry.get("path"):
        return False
    try:
        there, here = os.stat(entry["path"]), os.stat(f"/proc/self/ns/{PROC_NAME[entry['type']]}")
    except OSError:
        return False  # said better when it is joined
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

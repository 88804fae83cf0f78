"""What the launcher must know to do a verb without Python: the file ``brief`` beside a container's state (hot).

``create`` decides, bin/verbs.c does: of an ordinary container it starts, shows, signals and removes, with the checks of
record.py, start.py, kill.py and delete.py, and leaves whatever is not plain to them. docs/runtime.md, "Speed".
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.runtime.record import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.runtime.record import State

NAME = "brief"
FORMAT = "knarr 1"
LIMIT = 60 << 10
"""Bytes; verbs.c reads 64 KiB at most."""
_BETWEEN = b'"pid": 0,\n  "status": "stopped"'


def verbs(state: State) -> list[str]:
    """The verbs that need nothing but what is in the brief (pure)."""
    # What is paused in a guest, only Python sees; some signals go through its monitor, and there is more to remove.
    guest = state.isolation is not None
    allowed = [] if guest else ["state"]
    if not {"startContainer", "poststart"}.intersection(state.hooks):
        allowed.append("start")
    if guest:
        return allowed
    if not state.shared_pids:
        allowed.append("kill")
    if "poststop" not in state.hooks and state.rdt is None and state.mounts is None and not _by_systemd(state):
        allowed.append("delete")
    return allowed


def _by_systemd(state: State) -> bool:
    return state.cgroup is not None and "unit" in state.cgroup


def _freezer(state: State) -> str | None:
    """The file that says whether it is frozen; "" without cgroups, None where that is not one file's word."""
    if state.cgroup is None:
        return ""
    groups = state.cgroup["groups"]
    if state.cgroup["v2"]:
        return f"{groups[0][0]}{groups[0][1]}/cgroup.events"
    for mountpoint, path, _ in groups:
        if "freezer" in mountpoint:
            return f"{mountpoint}{path}/freezer.state"
    return None


def brief(state: State) -> bytes | None:
    """The file's text for a container that is created completely (pure); None: its verbs are Python's.

    Fields end with a NUL: format, boot id, pid, start time, verbs, freezer file, the text of ``state`` before and after
    pid and status, and for each cgroup its mount point, path, and how many of its parents are ours.
    """
    freezer = _freezer(state)
    if freezer is None:
        return None
    head, _, tail = fastjson.dumps(shown(state, "stopped", ""), indent=True).partition(_BETWEEN)
    fields = [FORMAT, state.boot, str(state.pid), str(state.starttime), " ".join(verbs(state)), freezer]
    data = [field.encode() for field in fields] + [head, tail]
    for group in state.cgroup["groups"] if state.cgroup is not None else ():
        data += [str(field).encode() for field in group]
    text = b"".join(field + b"\0" for field in data)
    return text if len(text) <= LIMIT and text.count(b"\0") == len(data) else None

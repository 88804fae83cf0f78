"""Where a further process of a container belongs when that is not simply the container's own cgroup (hot)."""

from __future__ import annotations

import posix

from knarr.base.errors import FileError, KernelError, NotFound, UsageError
from knarr.base.files import read_file
from knarr.runtime.cgroup_fs import open_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.plan.cgroup import CgroupHost
    from knarr.runtime.cgroup import Intent


def below(recorded: Intent, words: list[str], host: CgroupHost) -> Intent:
    """Groups below the container's: ``PATH`` in every hierarchy, or ``CONTROLLER[,CONTROLLER…]:PATH`` for some of v1's.

    Raises UsageError; NotFound for a group that is not there.
    """
    paths = _by_controller(words)
    names = {mount.mountpoint: mount.controllers for mount in host.mounts}
    groups, used = [], set()
    for mountpoint, path, parents in recorded["groups"]:
        asked = [name for name in names.get(mountpoint, ()) if name in paths]
        if len({paths[name] for name in asked}) > 1:
            raise UsageError(f"option --cgroup: {' and '.join(asked)} are one hierarchy, so they have one path")
        used.update(asked)
        part = paths[asked[0]] if asked else paths.get("", "")
        groups.append([mountpoint, f"{path}/{part}" if part else path, parents])
        if part:
            try:
                posix.close(open_group(mountpoint, f"{path}/{part}"))
            except KernelError:
                raise NotFound("cgroup", f"{mountpoint}{path}/{part}") from None
    unknown = sorted(paths.keys() - used - {""})
    if unknown:
        raise UsageError(f"option --cgroup: the container has no cgroup of the controller {', '.join(unknown)}")
    return {**recorded, "groups": groups}


def _by_controller(words: list[str]) -> dict[str, str]:
    """Controller -> path without slashes around; the empty controller stands for all."""
    paths: dict[str, str] = {}
    for word in words:
        before, colon, path = word.rpartition(":")
        parts = [part for part in path.split("/") if part and part != "."]
        if ".." in parts:
            raise UsageError(f"option --cgroup: {path!r} must not lead out of the container's cgroup")
        if not colon and len(words) > 1:
            raise UsageError(f"option --cgroup: {word!r} names no controller, so it must be the only one")
        for name in before.split(",") if colon else [""]:
            if colon and not name:
                raise UsageError(f"option --cgroup: {word!r} names no controller before the colon")
            if name in paths:
                raise UsageError(f"option --cgroup: controller {name} is given twice")
            paths[name] = "/".join(parts)
    return paths


def of_process(recorded: Intent, pid: int) -> Intent:
    """The v2 group of a process of the container, which moved itself below the container's or elsewhere."""
    mountpoint, own, parents = recorded["groups"][0]
    try:
        lines = read_file(f"/proc/{pid}/cgroup", 1 << 16).decode("utf-8", "surrogateescape").splitlines()
    except FileError:
        return recorded
    path = next((line[3:] for line in lines if line.startswith("0::/")), own)
    return {**recorded, "groups": [[mountpoint, path, parents]]}

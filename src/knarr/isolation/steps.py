"""What a guest is asked for before its container is made in it: mounts, the root, limits (cold, pure)."""

from __future__ import annotations

from errno import EEXIST

from knarr.isolation import convert, frames, kinds
from knarr.plan.device_bpf import device_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.isolation.kinds import Share
    from knarr.plan.cgroup import CgroupPlan

_DISK = "/run/disk"
"""Where the guest mounts its disk, unless that is the root."""
_MS_RDONLY, _MS_NODEV = 1, 4


def step(request: tuple[int, int, bytes], doing: str, pointer: str = "", fine: tuple[int, ...] = ()) -> dict[str, Any]:
    """A request for the monitor's set-up; ``fine`` are errors that do not matter."""
    kind, value, payload = request
    return {
        "kind": kind,
        "value": value,
        "payload": payload.hex(),
        "doing": doing,
        "pointer": pointer,
        "fine": list(fine),
    }


def of_shares(shares: tuple[Share, ...], kind: str) -> list[dict[str, Any]]:
    """Mount the shares."""
    steps = []
    for place, how in kinds.before(kind):
        steps.append(step(frames.mkdir(place), f"make {place}"))
        steps.append(
            step(frames.mount(how.source, place, how.fstype, _MS_NODEV | how.flags, how.data), f"mount {place}")
        )
    for number, share in enumerate(shares):
        place = convert.share_place(number)
        how = kinds.mounted(kind, number)
        flags = _MS_NODEV | (0 if share.writable else _MS_RDONLY) | how.flags
        steps.append(step(frames.mkdir(place), f"make {place}"))
        steps.append(step(frames.mount(how.source, place, how.fstype, flags, how.data), f"show {share.source}"))
    return steps


def of_root(image: dict[str, Any] | None, room: int) -> list[dict[str, Any]]:
    """Mount the root: an overlay of the first share, or of a disk, and ``room`` bytes of the guest's memory.

    The files below stay as they are, owned by whom the host shows; what is written gets the right owner, which a file
    system of the host's would not give it. A disk that may be written to is the root itself.
    """
    layer, below = kinds.LAYER, convert.share_place(0)
    steps = [step(frames.mkdir(convert.ROOT), f"make {convert.ROOT}")]
    if image is not None:
        below = convert.ROOT if image["writable"] else _DISK
        flags = _MS_NODEV | (0 if image["writable"] else _MS_RDONLY)
        request = frames.mount("/dev/vda", below, image["fstype"], flags)
        steps.append(step(frames.mkdir(_DISK), f"make {_DISK}"))
        steps.append(step(request, f"mount the {image['fstype']} of {image['path']}", "/vm/image"))
        if image["writable"]:
            return steps
    steps += [
        step(frames.mkdir(layer), f"make {layer}"),
        step(frames.mount("tmpfs", layer, "tmpfs", 0, f"mode=700,size={room >> 10}k"), "mount a tmpfs"),
        step(frames.mkdir(kinds.UPPER), "make the upper layer"),
        step(frames.mkdir(f"{layer}/work", 0o700), "make the work directory"),
    ]
    # Nothing in the upper layer refers to what lies below by other than its name: it is read as it is (changes.py).
    data = f"redirect_dir=off,metacopy=off,index=off,lowerdir={below},upperdir={kinds.UPPER}"
    data += f",workdir={layer}/work"
    return [*steps, step(frames.mount("overlay", convert.ROOT, "overlay", 0, data), "mount the root", "/root")]


def of_cgroup(groups: CgroupPlan | None) -> list[dict[str, Any]]:
    """Make the container's group in the guest and write its limits."""
    if groups is None:
        return []
    where = groups.directories[0]
    path, steps = "/sys/fs/cgroup", []
    for part in where.path.strip("/").split("/"):
        file = f"{path}/cgroup.subtree_control"
        given = [(frames.write(file, f"+{name}"), f"give on {name}") for name in where.controllers]
        steps += [step(request, doing, "/linux/resources") for request, doing in given]
        path += f"/{part}"
        steps.append(step(frames.mkdir(path), f"make {path}", "/linux/cgroupsPath", (EEXIST,)))
    for limit in groups.writes:
        file, value = limit.choices[0]
        fine = (2,) if limit.optional else ()  # ENOENT
        steps.append(step(frames.write(f"{path}/{file}", value), f"write {value!r} to {file}", limit.pointer, fine))
    program = device_program(groups.device_rules)
    if program is not None:
        request = (frames.DEVICES, 0, frames.texts(path) + program)
        steps.append(step(request, "attach the device rules", "/linux/resources/devices"))
    return steps

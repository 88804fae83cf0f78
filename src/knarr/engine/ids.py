"""Ids of its own for each container of root's: a range of 65,536 that no other container and no user has.

A range is a claim (claims.py) in /var/lib/knarr/ids, by its first id; where /var cannot be written, in /run: until the
next boot. docs/engine.md "Ids of its own".
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError, Unsupported, UsageError
from knarr.base.files import read_file
from knarr.engine import claims, host, hostroot
from knarr.kernel.userns import IdMap, subordinate_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.bundle.options import VolumeMount
    from knarr.engine.paths import Places

SIZE = 65536
REGISTRIES = ("/var/lib/knarr/ids", "/run/knarr-ids")
# systemd's table of ids (UIDS-GIDS.md) leaves these to nobody: above its own containers', below its foreign ids.
FIRST, END = 0x70000000, 0x7FFE0000
OWNER = "knarr"
"""Ranges given to this name in /etc/subuid and /etc/subgid are used instead of the default ones."""

# Since when file systems let their ids be shifted (mount_setattr(2), "ID-mapped mounts").
_SHIFTABLE = {
    "ext4": (5, 12),
    "vfat": (5, 12),
    "xfs": (5, 12),
    "btrfs": (5, 15),
    "ntfs3": (5, 15),
    "f2fs": (5, 18),
    "erofs": (5, 19),
    "squashfs": (6, 2),
    "tmpfs": (6, 3),
    "ceph": (6, 7),
    "hugetlbfs": (6, 9),
}
_OVERLAY = (5, 19)
"""Since when overlayfs takes layers with shifted ids."""


def parse_userns(text: str) -> int:
    """How many ids ``--userns`` asks for: 0 for ``host``, else ``auto`` or ``auto:size=N``. Raises UsageError."""
    if text == "host":
        return 0
    kind, colon, rest = text.partition(":")
    if kind == "auto" and not colon:
        return SIZE
    if kind == "auto" and rest.startswith("size="):
        digits = rest[5:]
        if digits.isascii() and digits.isdigit() and len(digits) < 6 and 0 < int(digits) <= SIZE:
            return int(digits)
        raise UsageError(f"userns {text!r}: the size should be a number from 1 to {SIZE}")
    raise UsageError(f"userns {text!r} is not known", hint=f"there are auto, auto:size=N (at most {SIZE}) and host")


def count_for(where: Places, userns: str, *, privileged: bool, host_root: bool) -> tuple[int, str]:
    """How many ids of its own a container gets (0: it shares those of whoever runs it), and a note if that is a pity.

    ``userns`` is "" unless a person said it. Raises UsageError, and Unsupported when what was asked for cannot be.
    """
    count = parse_userns(userns or "auto")
    if host.rootless():
        if userns and count:
            raise UsageError(
                f"--userns {userns}: an ordinary user's containers share the user's ids", hint="it takes root"
            )
        return 0, ""
    if privileged and not userns:
        return 0, ""  # what it is for, devices and mounts of the host, takes the host's root
    if not count:
        return 0, ""
    why = why_not(where, host_root=host_root)
    if why and userns:
        raise Unsupported("ids of its own for the container", why, hint="--userns=host shares the host's")
    return (0, f"root in this container is the host's root: {why}") if why else (count, "")


def why_not(where: Places, *, host_root: bool) -> str:
    """Why a container in this store, or one of ``host:``, cannot have ids of its own; "" if it can."""
    from knarr.engine.driver import driver, existing

    try:
        if int(read_file("/proc/sys/user/max_user_namespaces", 64)) == 0:
            return "user namespaces are turned off (user.max_user_namespaces)"
    except (FileError, ValueError):
        return "this kernel has no user namespaces"
    kernel = host.kernel()
    if host_root:
        kinds = [("/", hostroot.file_system("/")), ("what hides secrets", "tmpfs")]
    elif driver(where) == "copy":
        return ""
    else:
        kinds = [(where.store, hostroot.file_system(existing(where.store)))]
    if kernel < _OVERLAY:
        return f"this kernel cannot shift the ids of layers, Linux {_OVERLAY[0]}.{_OVERLAY[1]} can"
    return next((f"{name} {why}" for name, kind in kinds if (why := _not_shiftable(kind, kernel))), "")


def _not_shiftable(kind: str, kernel: tuple[int, int]) -> str:
    """Why the ids of a file system cannot be shifted; "" if they can."""
    since = _SHIFTABLE.get(kind)
    if since is not None and kernel >= since:
        return ""
    later = f", which can be shifted from Linux {since[0]}.{since[1]} on" if since else ", whose ids cannot be shifted"
    return f"lies on {kind or 'an unknown file system'}{later}"


def of_range(first: int, count: int) -> IdMap:
    """The id map of a range."""
    lines = ((0, first, count),)
    return IdMap(lines, lines)


# -- ranges ----------------------------------------------------------------------------------------------------------


def candidate() -> int:
    """The first id of a range that nobody is known to have, chosen at random. Raises Unsupported, FileError."""
    starts = _starts()
    if not starts:
        raise _none_left()
    return starts[int.from_bytes(os.urandom(4), "big") % len(starts)]


def _none_left() -> Unsupported:
    return Unsupported("ids of its own for the container", "no range is free", hint="--userns=host shares the host's")


_tables: tuple[tuple[tuple[int, ...], ...], tuple[int, ...]] | None = None


def _starts() -> tuple[int, ...]:
    """Where ranges may begin: all of ours that no user has by /etc/subuid and /etc/subgid, which may change."""
    global _tables
    seen = tuple(_stamp(path) for path in ("/etc/subuid", "/etc/subgid"))
    if _tables is None or _tables[0] != seen:
        _tables = (seen, starts_of(subordinate_table("/etc/subuid"), subordinate_table("/etc/subgid")))
    return _tables[1]


def starts_of(users: Sequence[tuple[str, int, int]], groups: Sequence[tuple[str, int, int]]) -> tuple[int, ...]:
    """The same for given lines (owner, first, count) of the two tables."""
    own = [{(first, count) for owner, first, count in table if owner == OWNER} for table in (users, groups)]
    ours = sorted(line for line in own[0] & own[1] if line[1] >= SIZE) or [(FIRST, END - FIRST)]
    others = sorted({(first, first + count) for owner, first, count in (*users, *groups) if owner != OWNER})
    return tuple(
        start
        for first, count in ours
        for start in range(first, first + count - SIZE + 1, SIZE)
        if not any(begin < start + SIZE and start < end for begin, end in others)
    )


def _stamp(path: str) -> tuple[int, ...]:
    try:
        facts = os.stat(path)
    except OSError:
        return ()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def take(first: int, folder: str, *, registries: Sequence[str] = REGISTRIES) -> int:
    """Take the range that begins with ``first`` for the container in ``folder``, or the next one that is free.

    Returns the first id of the range. Raises FileError, Unsupported when there is none left.
    """
    starts = _starts()
    at = starts.index(first) if first in starts else 0
    for start in (*starts[at:], *starts[:at]):
        if claims.take(registries, f"{start}", folder):
            return start
    raise _none_left()


def release(first: int, folder: str, *, registries: Sequence[str] = REGISTRIES) -> None:
    """Give a container's range back, before its directory goes; fine if it has none. Raises FileError."""
    claims.release(registries, f"{first}", folder)


# -- volumes ---------------------------------------------------------------------------------------------------------


def shown(mount: VolumeMount, *, shifted: bool) -> tuple[VolumeMount, str]:
    """A mount of the user's as it is for a container with ids of its own, and a note.

    What is on the disk as N's is N's inside, and the other way round, as without a user namespace. ``noidmap`` leaves
    the ids as they are: files are nobody's inside. Raises UsageError, Unsupported.
    """
    if mount.kind != "bind" or "noidmap" in mount.options:
        return mount, ""
    if not shifted:
        if "idmap" in mount.options:
            raise UsageError(f"mount option 'idmap' of {mount.target}: the container has no ids of its own")
        return mount, ""
    hint = f"{mount.source}:{mount.target}:noidmap shows its files as nobody's, --userns=host as they are"
    real = os.path.realpath(mount.source)
    kind, below = _mounts(real)
    why = _not_shiftable(kind, host.kernel())
    if why:
        raise Unsupported(f"volume {mount.source}", f"it {why}", hint=hint)
    if "bind" not in mount.options and not any(_not_shiftable(one, host.kernel()) for one in below):
        return mount.replace(idmap="ridmap"), ""
    changed: VolumeMount = mount.replace(idmap="idmap")
    plain = "bind" in mount.options or not below
    return changed, "" if plain else f"volume {mount.source}: what is mounted below it is nobody's inside"


def _mounts(path: str) -> tuple[str, list[str]]:
    """The type of the file system that ``path`` is on, and those of all that is mounted below it."""
    kind, length, below = "", -1, []
    for place, type_, options in hostroot.mount_table():
        name = f"{type_} with shifted ids" if "idmapped" in options.split(",") else type_
        if place.startswith(f"{path.rstrip('/')}/") and place != path:
            below.append(name)
        elif (path == place or path.startswith(f"{place.rstrip('/')}/")) and len(place) >= length:
            kind, length = name, len(place)
    return kind, below

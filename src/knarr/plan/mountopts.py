"""Mount options of config.json -> attributes, propagation, flags and file-system data (hot, pure).

runtime-spec config.md "Linux mount options"; mount_setattr(2), fsconfig(2), mount(2).
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding
from knarr.base.record import Record
from knarr.plan import ops

# mount_setattr(2)
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
ATIME_MASK, NOATIME, STRICTATIME, NODIRATIME, NOSYMFOLLOW = 0x70, 0x10, 0x20, 0x80, 0x200000

# mount(2)
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 17, 1 << 18, 1 << 19, 1 << 20

PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

# option -> (attributes set, attributes cleared)
_ATTRIBUTES = {
    "ro": (RDONLY, 0),
    "rw": (0, RDONLY),
    "nosuid": (NOSUID, 0),
    "suid": (0, NOSUID),
    "nodev": (NODEV, 0),
    "dev": (0, NODEV),
    "noexec": (NOEXEC, 0),
    "exec": (0, NOEXEC),
    "noatime": (NOATIME, ATIME_MASK),
    "atime": (0, ATIME_MASK),
    "relatime": (0, ATIME_MASK),
    "norelatime": (0, 0),
    "strictatime": (STRICTATIME, ATIME_MASK),
    "nostrictatime": (0, ATIME_MASK),
    "nodiratime": (NODIRATIME, 0),
    "diratime": (0, NODIRATIME),
    "nosymfollow": (NOSYMFOLLOW, 0),
    "symfollow": (0, NOSYMFOLLOW),
}
_RECURSIVE = {"r" + name: value for name, value in _ATTRIBUTES.items()}
# "rslave" and friends are propagation; no name collides.

_NOTHING = ("defaults", "async", "loud", "nolazytime", "nomand", "noiversion")
_LINKS = {
    "src-nofollow": ops.SOURCE_NOFOLLOW,
    "dest-nofollow": ops.TARGET_NOFOLLOW,
    "copy-symlink": ops.COPY_LINK,
}


class MountOptions(Record):
    """What a list of options means. ``data`` goes to the file system as it is."""

    bind: bool
    recursive: bool
    remount: bool
    attr_set: int
    attr_clear: int
    rec_set: int
    rec_clear: int
    propagation: int  # 0: the default (rprivate through the parent)
    copy_up: bool
    data: tuple[str, ...]
    idmap: str = ""  # "idmap", "ridmap" for what is mounted below too, or crun's "idmap=MAPS"
    links: int = 0  # flags of the bind operation about symbolic links


def parse_options(options: list[str], pointer: str) -> MountOptions:
    """Sort the options of ``mounts[]``; later ones win over earlier ones. Raises SpecError."""
    bind = recursive = remount = copy_up = False
    sets = {False: 0, True: 0}
    clears = {False: 0, True: 0}
    propagation = 0
    data: list[str] = []
    idmap = ""
    links = 0
    for option in options:
        if option in _ATTRIBUTES or option in _RECURSIVE:
            deep = option not in _ATTRIBUTES
            on, off = (_RECURSIVE if deep else _ATTRIBUTES)[option]
            sets[deep] = sets[deep] & ~off | on
            clears[deep] = clears[deep] & ~on | off
        elif option == "bind":
            bind = True
        elif option == "rbind":
            bind = recursive = True
        elif option == "remount":
            remount = True
        elif option == "tmpcopyup":
            copy_up = True
        elif option in PROPAGATION:
            propagation = PROPAGATION[option]
        elif option in ("idmap", "ridmap") or option.startswith("idmap="):
            idmap = option
        elif option in _NOTHING:
            pass
        elif option in _LINKS:
            links |= _LINKS[option]
        else:
            data.append(option)
    attributes = sets[False], clears[False], sets[True], clears[True]
    if links & ops.COPY_LINK and links != ops.COPY_LINK:  # as crun has it
        why = "copy-symlink excludes src-nofollow and dest-nofollow"
        raise SpecError("config.json", [SpecFinding(f"{pointer}/options", why)])
    return MountOptions(bind, recursive, remount, *attributes, propagation, copy_up, tuple(data), idmap, links)

"""The operations knarr-init can do: a Plan is a flat list of these (hot, pure).

An operation is data: a kind, whole numbers and byte strings, and the JSON pointer of the config.json
field that asked for it. There are no conditions and no loops; what cannot be known beforehand (does the
target exist?) is an explicit flag the init honours by descriptor. ``KINDS`` is the one table; the C
side's ``ops.h`` must agree with it and a test compares the two. docs/init.md gives the wire format.

*Slots* are the init's table of descriptors. The first ones are handed over by the parent, the others are
filled by operations; an operation names the slot, never a descriptor number.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAGIC = b"KNARRPL1"
MAX_SLOTS = 1024
NO_SLOT = 0xFFFFFFFF
MAX_SENT = 64  # descriptors that an answer to `sync` brings at most

# name -> (number, names of its numbers, names of its strings). A name ending in "*" takes the rest.
KINDS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    # the process itself
    "dumpable": (1, ("value",), ()),
    "pdeathsig": (2, ("signal",), ()),
    "setsid": (3, (), ()),
    "keyring": (4, (), ("name",)),
    "umask": (5, ("mode",), ()),
    "rlimit": (6, ("resource", "soft", "hard"), ()),
    "close": (7, ("slot",), ()),
    "keep_fd": (8, ("slot", "fd"), ()),
    # talking to the parent
    "sync": (10, ("code", "slots*"), ()),
    "wait_start": (11, ("slot",), ()),
    # namespaces
    "clone": (12, ("flags", "cgroup_slot"), ()),
    "unshare": (13, ("flags",), ()),
    "open_ns": (14, ("slot", "nstype"), ("path",)),
    "setns": (15, ("slot", "nstype"), ()),
    "become_root": (16, ("flags",), ()),
    # procfs by a private handle
    "open_proc": (20, ("slot",), ()),
    "proc_write": (21, ("slot", "flags"), ("path", "value")),
    # before the root is entered: paths of the host
    "propagation": (30, ("flags",), ("path",)),
    "host_mount": (31, ("flags",), ("source", "target", "fstype", "data")),
    "host_mkdir": (32, ("mode", "uid", "gid"), ("path",)),
    "host_chdir": (33, (), ("path",)),
    "open_source": (34, ("slot", "flags"), ("path",)),
    "bind_root": (35, ("slot",), ("path",)),
    "open_root": (36, ("slot",), ("path",)),
    "shared_root": (37, ("slot",), ("path",)),
    # below the root descriptor: paths of the container
    "mount": (40, ("root", "attr", "propagation", "flags"), ("fstype", "source", "target", "options*")),
    "bind": (
        41,
        ("root", "source_slot", "flags", "attr_set", "attr_clear", "rec_set", "rec_clear", "propagation"),
        ("source", "target"),
    ),
    "remount": (42, ("root", "flags", "attr_set", "attr_clear"), ("target",)),
    "mkdir": (43, ("root", "mode"), ("path",)),
    "mknod": (44, ("root", "mode", "major", "minor", "uid", "gid"), ("path",)),
    "symlink": (45, ("root", "flags"), ("path", "target")),
    "mask": (46, ("root",), ("path", "options*")),
    "readonly": (47, ("root",), ("path",)),
    "console": (48, ("root", "socket_slot", "flags", "rows", "columns", "uid"), ()),
    "pivot": (49, ("root", "flags"), ()),
    # inside
    "hostname": (60, (), ("name",)),
    "domainname": (61, (), ("name",)),
    "loopback": (62, (), ()),
    "reopen_null": (63, (), ()),
    "own_stdio": (64, ("uid",), ()),
    "cwd": (65, ("flags",), ("path",)),
    "bounding": (66, ("mask",), ()),
    "user": (67, ("uid", "gid", "flags", "groups*"), ()),
    "capabilities": (68, ("effective", "permitted", "inheritable", "ambient"), ()),
    "no_new_privs": (69, (), ()),
    "seccomp": (70, ("flags",), ("filter",)),
    "hook": (71, ("timeout_ms", "argc"), ("path", "argv_env*")),
    "find_program": (72, (), ("name", "path")),
    "exec": (73, ("argc",), ("argv_env*",)),
    "home": (74, ("uid",), ()),
    "host_program": (75, (), ("path",)),
    # a user namespace that is there before the container's process, and what must be shown with its ids
    "user_ns": (76, ("slot", "proc_slot", "uid_ranges", "ranges*"), ()),
    "idmap": (77, ("tree_slot", "user_ns_slot", "flags"), ()),
    "cover": (78, ("tree_slot",), ("path",)),
    "root_tree": (79, ("slot",), ()),
    # how it is scheduled and where its memory comes from
    "scheduler": (80, ("policy", "flags", "nice", "priority", "runtime", "deadline", "period"), ()),
    "io_priority": (81, ("value",), ()),
    "cpu_affinity": (82, ("cpus*",), ()),
    "personality": (83, ("persona",), ()),
    "memory_policy": (84, ("mode", "nodes*"), ()),
    # what it gives up
    "landlock_create": (85, ("slot", "fs", "net", "scoped"), ()),
    "landlock_path": (86, ("slot", "access", "flags"), ("path",)),
    "landlock_port": (87, ("slot", "access", "port"), ()),
    "landlock_restrict": (88, ("slot",), ()),
    # a file system that is shown somewhere by cover
    "new_tree": (89, ("slot", "attr"), ("fstype", "source", "options*")),
    # in a container that runs
    "unmount": (90, ("root",), ("target",)),
    "label": (95, ("root", "flags"), ("path", "label")),
    # as new_tree, from files that loop devices make devices of
    "loop_tree": (96, ("slot", "attr"), ("fstype", "option", "source", "devices*")),
    # where the hooks that follow write to
    "hook_output": (97, ("stdout_slot", "stderr_slot"), ()),
    # instead of exec: what runs elsewhere, in a guest
    "stand": (98, ("slot", "terminal_slot"), ()),
    # a group of cgroup v1, by its file "tasks"; the path is for error messages
    "join_cgroup": (99, ("slot",), ("path",)),
    # a directory of the host's in a process that others may look into
    "fence": (100, ("slot",), ()),
    # instead of exec: keeps a program of the host's for as long as the process of a pidfd lives
    "attend": (101, ("life_slot", "ready_slot", "argc"), ("path", "argv_env*")),
}
NAMES = {number: name for name, (number, _, _) in KINDS.items()}

# proc_write flags
WRITE_OPTIONAL = 1  # a missing file is not an error
# mount and bind flags
CREATE_DIR, CREATE_FILE, CREATE_LIKE_SOURCE = 1, 2, 3  # what to make when the target is missing (low two bits)
RECURSIVE = 4  # bind: the whole tree below the source
SOURCE_IS_TREE = 8  # bind: the slot holds a detached tree of open_source, to be moved as it is
OPTIONAL = 16  # no error: a missing source (bind), target (remount, readonly), path (landlock_path); EPERM (label)
OVER_PROC = 32  # mount and bind: the target may lie in a procfs
COPY_UP = 64  # mount: what the target holds is copied into the new file system
COPY_OWNER = 128  # and its root gets the target's owner
SOURCE_NOFOLLOW = 512  # bind and open_source: a symbolic link as source is mounted itself
TARGET_NOFOLLOW = 1024  # bind: a symbolic link as target is mounted over itself
COPY_LINK = 2048  # bind and open_source: a symbolic link as source is made anew at the target
MODE_OF_TARGET = 256  # mount: the option mode= with the target's mode, if the target is there
# symlink flags
REPLACE = 1  # an existing non-directory is removed first
# console flags
CONSOLE_BIND = 1  # also mount the terminal on /dev/console
# pivot flags
PIVOT_MOVE = 1  # MS_MOVE and chroot instead of pivot_root (root on initramfs)
PIVOT_CHROOT = 2  # chroot only: the mount namespace is shared with others
# cwd flags
CWD_LATER = 1  # "permission denied" is left to the second cwd, after the user is set
# user flags
KEEP_CAPS = 1  # PR_SET_KEEPCAPS, so that capabilities can be set afterwards
NO_SETGROUPS = 2  # user and become_root: the groups stay as they are (a user namespace with setgroups denied)

# sync codes, in the order they may come, but for SYNC_CLAIMED, which is the first; SYNC_LISTENER is the init's own
SYNC_IDMAP = 1  # the parent writes uid_map and gid_map
SYNC_CGROUP = 2  # the cgroups are made, limits bind; the process is in them, or gets the files to join them by
SYNC_HOOKS = 3  # the parent runs prestart and createRuntime hooks; the answer carries the state document
SYNC_READY = 4  # everything is set up; the parent records "created"; the answer carries the state document
SYNC_CLAIMED = 6  # the id is the caller's and its intent recorded; with the answer come descriptors made since
SYNC_LISTENER = 5  # with it comes the descriptor of a seccomp filter's listener, which the parent sends to listenerPath


class Op:
    """One operation. Compare with ``==``; print with ``describe()``."""

    __slots__ = ("ints", "kind", "pointer", "strs")

    def __init__(
        self, kind: str, ints: Sequence[int] = (), strs: Sequence[str | bytes] = (), pointer: str = ""
    ) -> None:
        self.kind = kind
        self.ints = tuple(ints)
        self.strs = tuple(strs)
        self.pointer = pointer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and (self.kind, self.ints, self.strs, self.pointer) == (
            other.kind,
            other.ints,
            other.strs,
            other.pointer,
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.ints, self.strs, self.pointer))

    def __repr__(self) -> str:
        return f"Op({self.kind!r}, {self.ints!r}, {self.strs!r}, {self.pointer!r})"

    def arguments(self) -> dict[str, object]:
        """The numbers and strings by name; a trailing list by its name without the star."""
        _, int_names, str_names = KINDS[self.kind]
        result: dict[str, object] = {}
        for names, values in ((int_names, self.ints), (str_names, self.strs)):
            for position, name in enumerate(names):
                if name.endswith("*"):
                    result[name[:-1]] = list(values[position:])
                else:
                    result[name] = values[position]
        return result

    def describe(self) -> str:
        """One line for people: ``mount fstype=proc target=/proc``."""
        words = [self.kind]
        for name, value in self.arguments().items():
            if isinstance(value, bytes):
                value = f"<{len(value)} bytes>"
            elif isinstance(value, int) and name in _HEX:
                value = "none" if value == NO_SLOT else hex(value) if value > 9 else str(value)
            elif value == NO_SLOT:
                value = "none"
            words.append(f"{name}={value}")
        return " ".join(words)


_HEX = {
    "fs",
    "net",
    "scoped",
    "access",
    "flags",
    "attr",
    "attr_set",
    "attr_clear",
    "rec_set",
    "rec_clear",
    "propagation",
    "mask",
    "nstype",
} | {
    "effective",
    "permitted",
    "inheritable",
    "ambient",
}


_ENDS = tuple(bytes(8 - rest) for rest in range(8))
"""What follows a text, by its length modulo 8: a NUL at least, up to the next multiple of 8."""


def encode(ops: Iterable[Op], inherited_slots: int) -> bytes:
    """The bytes knarr-init reads: see docs/init.md. Raises ValueError for a NUL inside a text argument."""
    body: list[bytes] = []
    count = 0
    for op in ops:
        number, int_names, str_names = KINDS[op.kind]
        ints, strs = op.ints, op.strs
        many, texts = len(ints), len(strs)
        fits = many == len(int_names) or _fits(int_names, many)
        if not fits or not (texts == len(str_names) or _fits(str_names, texts)):
            raise ValueError(f"operation {op.kind} has the wrong number of arguments")
        size = 16 + 8 * many
        at = len(body)
        body.append(b"")
        for text in strs:
            if not isinstance(text, bytes):
                text = text.encode("utf-8", "surrogateescape")
                if b"\0" in text:
                    raise ValueError(f"operation {op.kind} has a text with a NUL byte")
            length = len(text)
            end = _ENDS[length % 8]
            body += (length.to_bytes(8, "little"), text, end)
            size += 8 + length + len(end)
        # All numbers as one: half the time of a call for each. `struct` would be two files more to load.
        value = number | many << 32 | texts << 64 | size << 96
        place = 128
        for each in ints:
            value |= (each & 0xFFFFFFFFFFFFFFFF) << place
            place += 64
        body[at] = value.to_bytes(place // 8, "little")
        count += 1
    blob = b"".join(body)
    return MAGIC + (24 + len(blob) | count << 32 | inherited_slots << 64).to_bytes(16, "little") + blob


def _fits(names: tuple[str, ...], count: int) -> bool:
    """The last name may stand for more."""
    return bool(names) and names[-1][-1] == "*" and count >= len(names) - 1

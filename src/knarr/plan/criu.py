"""What CRIU is asked for when a container is checkpointed or restored, and how to say it (cold, pure).

CRIU is driven by its RPC, rpc.proto of checkpoint-restore/criu: protocol buffers, of which a few dozen lines suffice
here. Requests are dictionaries of the fields' names there.
"""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    # field -> number, and for a message the table of its own
    Table = dict[str, tuple[int, "Table | None"]]

DUMP, RESTORE, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION = 1, 2, 4, 6, 9, 10
# Old names of the modes; "" leaves it to CRIU.
CGROUP_MODES = {"": 6, "ignore": 0, "soft": 3, "full": 4, "strict": 5}
# Method -> its number, and the first CRIU that has it: older ones pass over what they do not know.
NETWORK_LOCKS = {"": (0, (0, 0)), "iptables": (1, (0, 0)), "nftables": (2, (3, 16)), "skip": (3, (3, 18))}
CLONE_NEWNET = 0x40000000
MARKS = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}
"""External namespaces that CRIU takes by descriptor: its name for the kind, and runc's key."""
_JOINED = {"ipc": "ipc", "uts": "uts", "mount": "mnt", "user": "user", "time": "time"}
# Made anew at restore, whatever device number they share with the host's.
_KERNEL_OWN = ("proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "binfmt_misc")
_NODES = ("null", "zero", "full", "random", "urandom", "tty")

_PAIR: Table = {"key": (1, None), "val": (2, None)}
_OPTIONS: Table = {
    "images_dir_fd": (1, None),
    "pid": (2, None),
    "leave_running": (3, None),
    "ext_unix_sk": (4, None),
    "tcp_established": (5, None),
    "evasive_devices": (6, None),
    "shell_job": (7, None),
    "file_locks": (8, None),
    "log_level": (9, None),
    "log_file": (10, None),
    "ps": (11, {"address": (1, None), "port": (2, None)}),
    "notify_scripts": (12, None),
    "root": (13, None),
    "parent_img": (14, None),
    "track_mem": (15, None),
    "auto_dedup": (16, None),
    "work_dir_fd": (17, None),
    "link_remap": (18, None),
    "ext_mnt": (23, _PAIR),
    "manage_cgroups": (24, None),
    "cg_root": (25, {"ctrl": (1, None), "path": (2, None)}),
    "rst_sibling": (26, None),
    "inherit_fd": (27, {"key": (1, None), "fd": (2, None)}),
    "manage_cgroups_mode": (34, None),
    "external": (37, None),
    "empty_ns": (38, None),
    "join_ns": (39, {"ns": (1, None), "ns_file": (2, None)}),
    "freeze_cgroup": (44, None),
    "tcp_skip_in_flight": (46, None),
    "lazy_pages": (48, None),
    "orphan_pts_master": (50, None),
    "config_file": (51, None),
    "tcp_close": (52, None),
    "lsm_profile": (53, None),
    "lsm_mount_context": (63, None),
    "network_lock": (64, None),
}
REQUEST: Table = {
    "type": (1, None),
    "opts": (2, _OPTIONS),
    "notify_success": (3, None),
    "features": (5, {"mem_track": (1, None), "lazy_pages": (2, None)}),
}


class CriuOptions(Record):
    """The options of checkpoint and restore. Paths are absolute, ``parent`` is relative to ``images``."""

    images: str
    program: str = "criu"  # a path, or a name to look for in PATH
    work: str = ""
    parent: str = ""
    leave_running: bool = False
    tcp_established: bool = False
    tcp_close: bool = False
    network_lock: str = ""
    tcp_skip_in_flight: bool = False
    link_remap: bool = False
    ext_unix_sk: bool = False
    shell_job: bool = False
    lazy_pages: bool = False
    status_fd: int = -1
    page_server: tuple[str, int] | None = None
    file_locks: bool = False
    pre_dump: bool = False
    auto_dedup: bool = False
    cgroups_mode: str = ""
    lsm_profile: str = ""
    lsm_mount_context: str = ""


def encode(message: dict[str, Any], table: Table) -> bytes:
    """A message in protocol buffers' wire form; a list is a repeated field."""
    result = b""
    for name, value in message.items():
        number, inner = table[name]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):  # bool too
                result += _varint(number << 3) + _varint(each & ((1 << 64) - 1))
            else:
                data = encode(each, inner or {}) if isinstance(each, dict) else each.encode("utf-8", "surrogateescape")
                result += _varint(number << 3 | 2) + _varint(len(data)) + data
    return result


def _varint(value: int) -> bytes:
    result = b""
    while value > 0x7F:
        result += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return result + bytes((value,))


def decode(data: bytes) -> dict[int, Any]:
    """Field number -> its last value: an integer, or bytes. Raises ValueError for what is no message."""
    result: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            value: int | bytes
            value, at = _read_varint(data, at)
        elif tag & 7 == 2:
            length, at = _read_varint(data, at)
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("a field is cut off")
        else:
            raise ValueError("a field of a type that CRIU does not use")
        result[tag >> 3] = value
    return result


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at


# -- what is asked for -------------------------------------------------------------------------------------------------


def common(options: CriuOptions, config: dict[str, Any], *, images_fd: int, work_fd: int, log: str) -> dict[str, Any]:
    """The options that checkpoint and restore share."""
    if options.cgroups_mode not in CGROUP_MODES:
        raise UsageError(f"option --manage-cgroups-mode: {options.cgroups_mode!r} is not soft, full, strict or ignore")
    if options.network_lock not in NETWORK_LOCKS:
        raise UsageError(f"option --network-lock: {options.network_lock!r} is not iptables, nftables or skip")
    wanted: dict[str, Any] = {
        "images_dir_fd": images_fd,
        "work_dir_fd": work_fd,
        "log_level": 4,
        "log_file": log,
        "notify_scripts": True,
        "manage_cgroups": True,
        "manage_cgroups_mode": CGROUP_MODES[options.cgroups_mode],
        "tcp_established": options.tcp_established,
        "ext_unix_sk": options.ext_unix_sk,
        "shell_job": options.shell_job,
        "file_locks": options.file_locks,
        "auto_dedup": options.auto_dedup,
        "lazy_pages": options.lazy_pages,
        "orphan_pts_master": True,
        # The interfaces in a network namespace are put there again by whoever put them there (as with runc).
        "empty_ns": CLONE_NEWNET,
    }
    file = (config.get("annotations") or {}).get("org.criu.config", "/etc/criu/knarr.conf")
    if file:
        wanted["config_file"] = file
    if options.network_lock:
        wanted["network_lock"] = NETWORK_LOCKS[options.network_lock][0]
    return wanted


def dump_request(
    options: CriuOptions, *, pid: int, root: str, freezer: str, mounts: Iterable[tuple[str, str]], external: list[str]
) -> dict[str, Any]:
    """What a checkpoint adds. ``mounts``: (mount point, key) of each that comes from outside."""
    wanted: dict[str, Any] = {
        "pid": pid,
        "root": root,
        "leave_running": options.leave_running or options.pre_dump,
        "tcp_skip_in_flight": options.tcp_skip_in_flight,
        "link_remap": options.link_remap,
        "external": external,
    }
    if freezer:
        wanted["freeze_cgroup"] = freezer
    if options.page_server:
        wanted["ps"] = {"address": options.page_server[0], "port": options.page_server[1]}
    if options.parent or options.pre_dump:
        wanted["track_mem"] = True
    if options.parent:
        wanted["parent_img"] = options.parent
    if not options.pre_dump:
        wanted["ext_mnt"] = [{"key": point, "val": key} for point, key in mounts]
    return wanted


def outside_mounts(inside: str, host: str) -> list[tuple[str, str]]:
    """(mount point, key) of the mounts in the container's mountinfo whose file system is one of the host's.

    The root is not among them: CRIU is told of it otherwise. The key is the mount point, but for a device node, which
    hides a file (runc says /dev/null for those) or is one that a user namespace was given.
    """
    shared = {fields[2] for fields in _mounts(host)}
    found = []
    for fields in _mounts(inside):
        point, fstype = _unescaped(fields[4]), fields[fields.index("-") + 1]
        if point == "/" or fstype in _KERNEL_OWN or fields[2] not in shared:
            continue
        node = _unescaped(fields[3]).removeprefix("/")
        found.append((point, f"/dev/{node}" if fstype == "devtmpfs" and node in _NODES else point))
    return found


def mounts_below(host: str, source: str) -> list[str]:
    """The mount points below a directory of the host: a recursive bind has them, too."""
    points = (_unescaped(fields[4]) for fields in _mounts(host))
    return [point for point in points if point.startswith(f"{source.rstrip('/')}/")]


def _mounts(text: str) -> list[list[str]]:
    return [line.split(" ") for line in text.splitlines()]


def _unescaped(path: str) -> str:
    """Mountinfo writes blank, tab, newline and backslash as octal numbers (proc(5))."""
    for code in ("040", "011", "012", "134"):
        path = path.replace(f"\\{code}", chr(int(code, 8)))
    return path


def joined_namespaces(config: dict[str, Any]) -> list[dict[str, str]]:
    """Namespaces of others that CRIU joins by path; those of MARKS are handed over by descriptor."""
    return [
        {"ns": _JOINED[entry["type"]], "ns_file": entry["path"]}
        for entry in (config.get("linux") or {}).get("namespaces") or ()
        if entry.get("path") and entry["type"] in _JOINED
    ]


def own_network(config: dict[str, Any]) -> bool:
    """Whether the container gets a network namespace of its own."""
    spaces = (config.get("linux") or {}).get("namespaces") or ()
    return any(entry["type"] == "network" and not entry.get("path") for entry in spaces)


def node_keys(config: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, source) of the device nodes and masked files that a checkpoint may name."""
    linux = config.get("linux") or {}
    nodes = [f"/dev/{name}" for name in _NODES] + [device["path"] for device in linux.get("devices") or ()]
    return [(path, path) for path in nodes] + [(path, "/dev/null") for path in linux.get("maskedPaths") or ()]

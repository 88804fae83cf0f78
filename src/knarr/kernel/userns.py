"""User namespaces: id maps, subordinate ids, unshare(2) and newuidmap(1) (hot). user_namespaces(7), subuid(5).

An id map is a tuple of ranges (inside, outside, count): ``count`` ids from ``inside`` on, as the container sees
them, are the ids from ``outside`` on, as the caller sees them.
"""

from __future__ import annotations

import os
from errno import EINVAL, EPERM

from knarr.base.errors import FileError, KernelError, Unsupported
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.kernel.ffi import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    Ranges = tuple[tuple[int, int, int], ...]

# linux/sched.h
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000

OVERFLOW = 2**32 - 1  # (uid_t) -1, never an id


class IdMap(Record):
    """Which ids of a container are which ids outside; ``squash``: any other id becomes the container's 0."""

    uids: Ranges
    gids: Ranges
    squash: bool = False

    def uid(self, inside: int) -> int:
        """The user id outside; -1 when it is not mapped."""
        return _outside(self.uids, inside, self.squash)

    def gid(self, inside: int) -> int:
        """The group id outside; -1 when it is not mapped."""
        return _outside(self.gids, inside, self.squash)

    def seen_inside(self) -> IdMap:
        """The same map for a process that lives in the user namespace: ids stay what they are, if mapped."""
        return IdMap(
            tuple((inside, inside, count) for inside, _outside, count in self.uids),
            tuple((inside, inside, count) for inside, _outside, count in self.gids),
            self.squash,
        )


def _outside(ranges: Ranges, inside: int, squash: bool) -> int:  # noqa: FBT001  # private, called twice
    for first, outside, count in ranges:
        if first <= inside < first + count:
            return outside + inside - first
    return _outside(ranges, 0, False) if squash and inside else -1


def unshare(flags: int) -> None:
    """Give the calling thread its own. CLONE_NEWUSER wants a process of one thread. Raises KernelError."""
    syscall("unshare", flags, operand=_named(flags))


def _named(flags: int) -> str:
    names = ((CLONE_FS, "CLONE_FS"), (CLONE_NEWNS, "CLONE_NEWNS"), (CLONE_NEWUSER, "CLONE_NEWUSER"))
    return "|".join(name for bit, name in names if flags & bit)


def user_name(uid: int) -> str:
    """The login name of ``uid`` in the host's /etc/passwd, or "" if it has none there."""
    try:
        table = read_file("/etc/passwd", 10 << 20)
    except FileError:
        return ""
    for line in table.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 3 and fields[2] == b"%d" % uid:
            return os.fsdecode(fields[0])
    return ""


def subordinate_table(path: str) -> list[tuple[str, int, int]]:
    """Return the lines (owner, first, count) of /etc/subuid or /etc/subgid; the owner is a name or a uid.

    Lines that make no sense are skipped, as newuidmap(1) does. A missing file means none. Raises FileError when
    it is there and cannot be read.
    """
    try:
        table = read_file(path, 10 << 20)
    except FileError:
        if not os.path.lexists(path):
            return []
        raise
    found = []
    for line in table.split(b"\n"):
        fields = line.strip().split(b":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            first, count = int(fields[1]), int(fields[2])
            if count and first + count <= OVERFLOW:
                found.append((os.fsdecode(fields[0]), first, count))
    return found


def subordinate_ids(path: str, name: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges (first, count) that ``path`` (/etc/subuid or /etc/subgid) gives to a user, by name or uid.

    Raises FileError when the file is there and cannot be read.
    """
    owners = {str(uid)} | ({name} if name else set())
    return tuple((first, count) for owner, first, count in subordinate_table(path) if owner in owners)


def default_map(uid: int, gid: int, *, subuid: str = "/etc/subuid", subgid: str = "/etc/subgid") -> IdMap:
    """Return the usual rootless map: 0 is the caller, 1 and up are the caller's subordinate ids.

    Without subordinate ids for both, or without newuidmap and newgidmap, only 0 is mapped and everything else
    is squashed to it. Raises FileError when a table cannot be read.
    """
    name = user_name(uid)
    users, groups = subordinate_ids(subuid, name, uid), subordinate_ids(subgid, name, uid)
    if not users or not groups or not helper("newuidmap") or not helper("newgidmap"):
        return IdMap(((0, uid, 1),), ((0, gid, 1),), True)
    return IdMap(_stacked(uid, users), _stacked(gid, groups))


def _stacked(own: int, extra: tuple[tuple[int, int], ...]) -> Ranges:
    ranges, inside = [(0, own, 1)], 1
    for first, count in extra:
        ranges.append((inside, first, count))
        inside += count
    return tuple(ranges)


def helper(name: str) -> str:
    """The absolute path of newuidmap or newgidmap, from fixed directories (never from PATH); "" if missing."""
    for folder in ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"):
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    return ""


def write_maps(pid: int, ids: IdMap) -> None:
    """Write the id maps of a process that has just made its user namespace; from outside that namespace.

    A map of more than the caller's own id needs newuidmap(1) and newgidmap(1), unless the caller is root.
    Raises KernelError, or Unsupported with what newuidmap said.
    """
    single = all(len(ranges) == 1 and ranges[0][2] == 1 for ranges in (ids.uids, ids.gids))
    if os.geteuid() == 0 or single:
        if os.geteuid():
            _write(pid, "setgroups", b"deny")  # without it an ordinary user may write no gid_map, Linux 3.19
        _write(pid, "gid_map", _lines(ids.gids))
        _write(pid, "uid_map", _lines(ids.uids))
        return
    for tool, ranges in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        path = helper(tool)
        if not path:
            raise Unsupported("mapping subordinate ids", f"{tool} is missing", hint="install the package uidmap")
        arguments = [path, str(pid), *(str(number) for row in ranges for number in row)]
        import subprocess  # cold: once per rootless unpacking, beside two other programs' start

        done = subprocess.run(  # absolute path, numbers only
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={}, check=False
        )
        if done.returncode:
            said = os.fsdecode(done.stdout[:300]).strip() or f"exit status {done.returncode}"
            raise Unsupported("mapping subordinate ids", said, hint="see /etc/subuid, /etc/subgid and newuidmap(1)")


def _lines(ranges: Ranges) -> bytes:
    return b"".join(b"%d %d %d\n" % row for row in ranges)


def _write(pid: int, name: str, data: bytes) -> None:
    path = f"/proc/{pid}/{name}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        hint = "user namespaces may be restricted on this machine" if error.errno == EPERM else ""
        raise KernelError("write", path, error.errno or EINVAL, hint=hint) from None

"""Write the id maps of a new user namespace, from outside (hot).

user_namespaces(7), newuidmap(1). With privilege, or for the caller's own id alone, the files of /proc are written
directly; every other map of an ordinary user goes through the set-uid helpers, which check /etc/subuid.
"""

from __future__ import annotations

import os
from errno import ENOENT

from knarr.base.errors import KernelError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.plan.container import IdMap

_HELPER_PLACES = ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin", "/usr/sbin")


def write_maps(
    pid: int, uid_map: IdMap, gid_map: IdMap, *, setgroups_deny: bool, privileged: bool, euid: int, egid: int
) -> None:
    """Write the maps of ``pid`` (a child of ours that waits, so the number cannot be another's).

    ``privileged`` means that the caller may write any map itself. Raises KernelError, or Unsupported when a helper is
    missing or refuses.
    """
    proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if setgroups_deny:
            _write(proc, "setgroups", b"deny")
        for name, ids, own in (("uid_map", uid_map, euid), ("gid_map", gid_map, egid)):
            direct = privileged or (len(ids) == 1 and ids[0][1:] == (own, 1))
            # An unprivileged gid map needs setgroups denied; a plan that keeps setgroups wants the helper.
            if direct and (privileged or name == "uid_map" or setgroups_deny):
                lines = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids)
                _write(proc, name, lines.encode())
            else:
                _helper("newuidmap" if name == "uid_map" else "newgidmap", pid, ids)
    finally:
        os.close(proc)


def _write(proc: int, name: str, data: bytes) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=proc)
        try:
            os.write(fd, data)  # the kernel takes a map in one write only
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("write", f"/proc/PID/{name}", error.errno or 0, hint=data.decode().strip()) from None


def _helper(name: str, pid: int, ids: IdMap) -> None:
    """Run newuidmap or newgidmap by absolute path, with an empty environment."""
    path = next((f"{place}/{name}" for place in _HELPER_PLACES if os.access(f"{place}/{name}", os.X_OK)), "")
    if not path:
        raise Unsupported(
            "a map of several ids", f"{name} is not installed", hint="install the package uidmap or shadow-utils"
        )
    arguments = [name, str(pid), *(str(number) for entry in ids for number in entry)]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, writer, 2),
        ]
        child = os.posix_spawn(path, arguments, {}, file_actions=actions)
        os.close(writer)
        writer = -1
        said = b""
        while len(said) < 4096:
            part = os.read(reader, 4096)
            if not part:
                break
            said += part
        status = _exit_status(child)
    except OSError as error:
        raise KernelError("run", path, error.errno or ENOENT) from None
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if status:
        why = " ".join(said.decode("utf-8", "replace").split()) or f"it ended with status {status}"
        raise Unsupported(f"the map {ids}", why, hint="see /etc/subuid and /etc/subgid", pointer="/linux/uidMappings")


def _exit_status(child: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return 0  # the host program ignores SIGCHLD: the kernel reaped it; a failed map shows at once in the child

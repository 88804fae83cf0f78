"""``knarr-runtime ps`` (hot)."""

from __future__ import annotations

import os

from knarr.base import fastjson
from knarr.base.errors import KernelError, UsageError
from knarr.runtime.processes import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Print the processes of a container: as ps(1) shows them, or with --format json their pids."""
    form = options.get("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"option --format: {form!r} is neither table nor json")
    pids = processes(context.root, operands[0])
    if form == "json":
        os.write(1, fastjson.dumps(pids or None) + b"\n")  # none is null, as with runc
        return 0
    if os.path.exists(f"{context.root}/{operands[0]}/guest"):
        os.write(1, _of_guest(context.root, operands[0]))
        return 0
    os.write(1, _table(operands[1:] or ["-ef"], pids))
    return 0


def _of_guest(root: str, id: str) -> bytes:
    """A table of the processes in a guest, with the guest's numbers."""
    from knarr.runtime.monitored import ask  # cold: only for a container in a guest
    from knarr.runtime.record import open_container

    fd = open_container(root, id)
    try:
        rows = ask(fd, id, "ps")["processes"]
    finally:
        os.close(fd)
    lines = [("PID", "PPID", "UID", "CMD"), *(tuple(map(str, row[:4])) for row in rows)]
    return "".join(f"{pid:>7} {parent:>7} {user:>7} {command}\n" for pid, parent, user, command in lines).encode()


def _table(arguments: list[str], pids: list[int]) -> bytes:
    """The head and the container's lines of what ps(1) prints."""
    head, *lines = _ps(arguments).splitlines(keepends=True) or [b""]
    titles = head.split()
    if b"PID" not in titles:
        raise UsageError(f"the output of ps {' '.join(arguments)} has no column PID, so its lines cannot be told apart")
    column = titles.index(b"PID")
    wanted = {b"%d" % pid for pid in pids}
    return head + b"".join(
        line for line in lines if line.split()[column : column + 1] and line.split()[column] in wanted
    )


def _ps(arguments: list[str]) -> bytes:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
        pid = os.posix_spawnp("ps", ["ps", *arguments], os.environ, file_actions=actions)
    except OSError as error:
        os.close(reader)
        raise KernelError("run", "ps", error.errno or 0, hint="install procps, or use --format json") from None
    finally:
        os.close(writer)
    text = b""
    with open(reader, "rb") as output:
        text = output.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        said = text.decode("utf-8", "replace").strip()
        raise UsageError(f"ps {' '.join(arguments)} failed with {code}: {said}")
    return text

"""Write a running container to a directory with CRIU, and end it unless it shall go on (cold)."""

from __future__ import annotations

import os

from knarr.base import fastjson
from knarr.base.errors import FileError, SpecError, Unsupported, WrongStatus
from knarr.base.files import read_file, write_atomic
from knarr.kernel.process import open_pid
from knarr.plan import criu as ask
from knarr.runtime import criu, record
from knarr.runtime.monitored import refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.criu import CriuOptions
    from knarr.runtime.record import State

LOG = "dump.log"
DESCRIPTORS = "descriptors.json"
"""What 0, 1 and 2 were, as runc keeps it beside CRIU's files."""
_LIMIT = 1 << 24


def checkpoint(state_root: str, id: str, options: CriuOptions) -> list[str]:
    """Checkpoint a container that runs or is paused; it is removed afterwards, unless it is to go on.

    Returns warnings of poststop hooks. Raises NotFound, WrongStatus, Unsupported, UsageError, FileError, and InitError
    with CRIU's own words.
    """
    doing = f"checkpoint container {id}"
    fd = record.open_container(state_root, id)
    root_fd = record.open_root(state_root)
    try:
        taken = record.hold(root_fd, fd, id)
        try:
            state = record.load(fd, id)
            refuse(state.isolation, "a checkpoint")
            status = record.status(fd, state)
            if status not in ("running", "paused"):
                raise WrongStatus(id, "checkpoint", status)
            _dump(state, record.config(fd), options, doing)
        finally:
            taken.release()
        if options.leave_running or options.pre_dump:
            return []
        from knarr.runtime.delete import destroy

        return destroy(root_fd, fd, state, None)
    finally:
        os.close(fd)
        os.close(root_fd)


def _dump(state: State, config: dict[str, Any], options: CriuOptions, doing: str) -> None:
    criu.demand(options, doing)
    pidfd = open_pid(state.pid, state.starttime)
    if pidfd is None:
        raise WrongStatus(state.id, "checkpoint", "stopped")
    images_fd = criu.directory(options.images, make=True)
    work_fd = -1
    process = None
    try:
        work_fd = criu.directory(options.work or options.images, make=True)
        wanted = ask.common(options, config, images_fd=images_fd, work_fd=work_fd, log=LOG)
        wanted |= ask.dump_request(
            options,
            pid=state.pid,
            root=criu.real(state.rootfs),
            freezer=_freezer(state),
            mounts=ask.outside_mounts(_text(f"/proc/{state.pid}/mountinfo"), _text("/proc/self/mountinfo")),
            external=_external(config),
        )
        if not options.pre_dump:
            links = [os.readlink(f"/proc/{state.pid}/fd/{number}") for number in _open_of(state.pid)]
            write_atomic(DESCRIPTORS, fastjson.dumps(links), dir_fd=images_fd)
        process = criu.Criu(doing, options.program)
        kind = ask.PRE_DUMP if options.pre_dump else ask.DUMP
        response = process.request({"type": kind, "opts": wanted}, _StatusReady(options.status_fd))
        if response is None or not response.get(2):
            raise criu.failed(doing, response, f"{options.work or options.images}/{LOG}")
    finally:
        for each in (pidfd, images_fd, work_fd):
            if each >= 0:
                os.close(each)
        if process is not None:
            process.close()


class _StatusReady:
    """Tells whoever waits at --status-fd that the server of lazy pages is there."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __call__(self, what: str, _pid: int, _descriptor: int) -> None:
        if what == "status-ready" and self.fd >= 0:
            os.write(self.fd, b"\0")
            os.close(self.fd)
            self.fd = -1


def _text(path: str) -> str:
    return read_file(path, _LIMIT).decode("utf-8", "surrogateescape")


def _open_of(pid: int) -> list[int]:
    """0, 1 and 2 as far as they are open, without a gap; what is closed inside is nobody's business at restore."""
    return [number for number in range(3) if os.path.lexists(f"/proc/{pid}/fd/{number}")]


def _freezer(state: State) -> str:
    """The container's group that can be frozen, as a path."""
    for mountpoint, path, _ in (state.cgroup or {"groups": ()})["groups"]:
        for file in ("freezer.state", "cgroup.freeze"):
            if os.path.exists(f"{mountpoint}{path}/{file}"):
                return f"{mountpoint}{path}"
    return ""


def _external(config: dict[str, Any]) -> list[str]:
    """Namespaces that are somebody else's: left out of the checkpoint, and there again at restore."""
    found = []
    for position, entry in enumerate((config.get("linux") or {}).get("namespaces") or ()):
        if not entry.get("path"):
            continue
        if entry["type"] == "cgroup":
            raise Unsupported(
                "a checkpoint with somebody else's cgroup namespace",
                "CRIU cannot do it",
                pointer=f"/linux/namespaces/{position}",
            )
        if entry["type"] in ask.MARKS:
            name, key = ask.MARKS[entry["type"]]
            try:
                found.append(f"{name}[{os.stat(entry['path']).st_ino}]:{key}")
            except OSError as error:
                raise FileError("look at namespace", entry["path"], error.errno or 0) from None
    return found


def descriptors(images_fd: int) -> list[str]:
    """What 0, 1 and 2 were when the checkpoint was written. Raises FileError, SpecError."""
    document = fastjson.loads(read_file(DESCRIPTORS, 1 << 16, dir_fd=images_fd), DESCRIPTORS, limit=1 << 16)
    if not isinstance(document, list) or not all(isinstance(each, str) for each in document):
        from knarr.base.errors import SpecFinding

        raise SpecError(DESCRIPTORS, [SpecFinding("", "must be an array of strings")])
    return document

"""Containers that exist: list, look at, signal, remove, and run a further program in one."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EPERM

from knarr.base.errors import (
    FileError,
    InUse,
    KernelError,
    KnarrError,
    NotFound,
    SafetyViolation,
    UsageError,
    WrongStatus,
)
from knarr.base.record import Record
from knarr.bundle import users
from knarr.engine import records
from knarr.runtime import record as state_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from knarr.engine.paths import Places
    from knarr.engine.records import Container


class Seen(Record):
    """A container and what the kernel says of it now. ``status``: created, creating, running, paused or exited."""

    container: Container
    status: str
    pid: int = 0


def look(where: Places, container: Container) -> Seen:
    """The container's status, computed now."""
    try:
        fd = state_record.open_container(where.state, container.id)
    except NotFound:
        return Seen(container, "exited" if container.started or container.finished else "created")
    try:
        state = state_record.load(fd, container.id)
        status = state_record.status(fd, state)
    except FileError:
        return Seen(container, "creating")
    finally:
        os.close(fd)
    return Seen(container, "exited" if status == "stopped" else status, 0 if status == "stopped" else state.pid)


def listing(where: Places, *, everything: bool = False) -> list[Seen]:
    """Containers, newest first: those that run, or all. What was to go at its end and lost its owner is removed."""
    found = []
    for container in records.all_records(where):
        seen = look(where, container)
        if container.remove and seen.status in ("exited", "created") and not _alive(container.owner_pid):
            try:
                remove(where, container.id, force=True)
            except KnarrError:
                pass  # shown until it can be
            else:
                continue
        if everything or seen.status in ("running", "paused"):
            found.append(seen)
    found.sort(key=lambda seen: str(seen.container.created), reverse=True)
    return found


def _alive(pid: int) -> bool:
    """Whether the process that owns a container still exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find(where: Places, text: str) -> Seen:
    """A container by name or id. Raises NotFound, UsageError, SpecError."""
    return look(where, records.load(where, records.find(where, text)))


def kill(where: Places, text: str, number: int) -> str:
    """Send a signal to a container's first process; returns its id. Raises NotFound, WrongStatus."""
    from knarr.runtime.kill import kill as kill_state

    seen = find(where, text)
    shown = seen.container.name or seen.container.id[:12]
    if seen.status not in ("running", "paused", "created"):
        raise WrongStatus(shown, "kill", seen.status)
    kill_state(where.state, seen.container.id, number)
    return seen.container.id


def remove(where: Places, text: str, *, force: bool = False) -> str:
    """Remove a container with everything that is its own; returns its id.

    ``force`` kills it first, and also removes one whose record is damaged. Raises NotFound, InUse.
    """
    from knarr.runtime.delete import delete

    id = records.find(where, text)
    name, ids_first, categories = "", 0, ""
    try:
        container = records.load(where, id)
        name, ids_first, categories = container.name, container.ids_first, container.categories
        status = look(where, container).status
        if status in ("running", "paused", "creating") and not force:
            raise InUse("container", name or id[:12], f"its own {status} process", hint="--force kills it first")
    except KnarrError as error:
        if not force or isinstance(error, InUse):
            raise
    delete(where.state, id, force=True)
    _remove_directory(where, id, name, ids_first, categories)
    return id


def remove_files(where: Places, container: Container) -> None:
    """Remove a container's directory and name; no process of it is left. Raises FileError."""
    _remove_directory(where, container.id, container.name, container.ids_first, container.categories)


def _remove_directory(where: Places, id: str, name: str, ids_first: int, categories: str) -> None:
    try:
        records.remove_directory(where, id, name, ids_first, categories)
    except (FileError, KernelError) as error:
        number = error.number if isinstance(error, FileError) else error.errno
        if number not in (EACCES, EPERM) or os.geteuid() == 0:
            raise
        # Files of other ids of the user namespace: only its root may remove them.
        from knarr.layer.unpack import unpacker

        worker = unpacker()
        try:
            worker.remove(records.directory(where, id))
        finally:
            worker.close()
        records.remove_directory(where, id, name)


def configuration(where: Places, id: str) -> dict[str, Any]:
    """The config.json a container runs or ran with; empty when none was kept."""
    try:
        fd = state_record.open_container(where.state, id)
    except NotFound:
        return records.load_config(where, id)
    try:
        return state_record.config(fd)
    finally:
        os.close(fd)


def describe(where: Places, seen: Seen) -> dict[str, Any]:
    """All about one container, in the words of ``docker inspect``."""
    container = seen.container
    config = configuration(where, container.id)
    process = config.get("process") or {}
    linux = config.get("linux") or {}
    resources = linux.get("resources") or {}
    shares = {entry.get("type") for entry in linux.get("namespaces") or ()}
    return {
        "Id": container.id,
        "Name": container.name,
        "Created": container.created,
        "Image": container.image,
        "ImageDigest": container.image_digest,
        "ImageID": container.image_id,
        "State": {
            "Status": seen.status,
            "Running": seen.status == "running",
            "Paused": seen.status == "paused",
            "OOMKilled": container.out_of_memory,
            "Pid": seen.pid,
            "ExitCode": container.exit_code,
            "Error": container.reason,
            "StartedAt": container.started,
            "FinishedAt": container.finished,
        },
        "AppArmorProfile": process.get("apparmorProfile", ""),
        "ProcessLabel": process.get("selinuxLabel", ""),
        "MountLabel": linux.get("mountLabel", ""),
        "Config": {
            "Hostname": config.get("hostname", ""),
            "Cmd": list(container.command),
            "Env": process.get("env") or [],
            "WorkingDir": process.get("cwd", ""),
            "User": process.get("user") or {},
            "Tty": bool(process.get("terminal")),
            "Labels": dict(container.labels),
            "Annotations": config.get("annotations") or {},
        },
        "HostConfig": {
            "AutoRemove": container.remove,
            "UsernsMode": "private" if "user" in shares else "host",
            "IDMappings": {
                key: [f"{row['containerID']}:{row['hostID']}:{row['size']}" for row in linux.get(field) or ()]
                for key, field in (("UidMap", "uidMappings"), ("GidMap", "gidMappings"))
            },
            "NetworkMode": container.network or ("none" if not shares or "network" in shares else "host"),
            "PortBindings": _bindings(container),
            "ReadonlyRootfs": bool((config.get("root") or {}).get("readonly")),
            "Memory": (resources.get("memory") or {}).get("limit", 0),
            "NanoCpus": _nano_cpus(resources.get("cpu") or {}),
            "PidsLimit": (resources.get("pids") or {}).get("limit", 0),
            "Capabilities": (process.get("capabilities") or {}).get("bounding") or [],
            "NoNewPrivileges": bool(process.get("noNewPrivileges")),
            "Seccomp": "filtered" if linux.get("seccomp") else "unconfined",
            "Ulimits": process.get("rlimits") or [],
        },
        "Mounts": [
            {
                "Type": mount.get("type", "bind"),
                "Source": mount.get("source", ""),
                "Destination": mount["destination"],
                "Options": mount.get("options") or [],
            }
            for mount in config.get("mounts") or ()
        ],
        "Directory": records.directory(where, container.id),
    }


def _bindings(container: Container) -> dict[str, list[dict[str, str]]]:
    """Published ports by the one inside, as other engines show them."""
    found: dict[str, list[dict[str, str]]] = {}
    for ip, here, inside, protocol in container.ports:
        found.setdefault(f"{inside}/{protocol}", []).append({"HostIp": ip, "HostPort": str(here)})
    return found


def _nano_cpus(cpu: dict[str, Any]) -> int:
    return round(cpu["quota"] * 1_000_000_000 / cpu["period"]) if cpu.get("quota") and cpu.get("period") else 0


class ExecRequest(Record):
    """A further program for a running container; empty fields take what the container's own process has."""

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    terminal: bool = False
    privileged: bool = False


def exec_process(where: Places, seen: Seen, request: ExecRequest) -> dict[str, Any]:
    """The process section for ``request``: the container's own, changed. Raises WrongStatus, NotFound, UsageError."""
    if seen.status != "running":
        raise WrongStatus(seen.container.name or seen.container.id[:12], "exec in", seen.status)
    if not request.command:
        raise UsageError("exec needs a command")
    config = configuration(where, seen.container.id)
    process: dict[str, Any] = dict(config["process"])
    process["args"] = list(request.command)
    process["terminal"] = request.terminal
    process.pop("consoleSize", None)
    variables = variables_of(process.get("env") or (), request.env)
    if request.terminal:
        variables.setdefault("TERM", "xterm")
    if request.workdir:
        if not request.workdir.startswith("/"):
            raise UsageError(f"working directory {request.workdir!r} is not an absolute path")
        process["cwd"] = request.workdir
    if request.user:
        user = users.resolve_user(request.user, *(_table(seen.pid, path) for path in ("etc/passwd", "etc/group")))
        own = process.get("user") or {}
        process["user"] = {**own, "uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
        if not any(entry.startswith("HOME=") for entry in request.env):
            variables["HOME"] = user.home
    process["env"] = [f"{name}={value}" for name, value in variables.items()]
    bounding = list((process.get("capabilities") or {}).get("bounding") or ())
    if request.privileged:
        from knarr.bundle.posture import all_capabilities
        from knarr.engine import host

        bounding = list(all_capabilities(host.facts()))
        process["noNewPrivileges"] = False
    if request.privileged or request.user:
        root = process["user"].get("uid", 0) == 0
        process["capabilities"] = {
            "bounding": bounding,
            "effective": bounding if root else [],
            "permitted": bounding if root else [],
            "inheritable": [],
            "ambient": [],
        }
    return process


def mount_label(where: Places, id: str, process: dict[str, Any]) -> str:
    """The label of the container's files, for the streams of a further ``process`` in it; "" if that has no label."""
    if not process.get("selinuxLabel"):
        return ""
    return str((configuration(where, id).get("linux") or {}).get("mountLabel") or "")


def variables_of(*lists: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts by name, later ones over earlier ones."""
    found: dict[str, str] = {}
    for entry in (entry for entries in lists for entry in entries):
        name, _, value = entry.partition("=")
        found[name] = value
    return found


def _table(pid: int, path: str) -> bytes:
    """A passwd or group file of a running container: opened inside its root, a regular file of bounded size."""
    from knarr.kernel.path import open_in_root

    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open the root of process", str(pid), error.errno or 0) from None
    try:
        # The container may have put anything there: no device is read, no FIFO waited for.
        found = open_in_root(root, path, os.O_PATH)
        try:
            facts = os.fstat(found)
            if not stat.S_ISREG(facts.st_mode):
                raise SafetyViolation("reading", f"/{path} of the container", "it is not a regular file")
            if facts.st_size > users.LIMIT:
                raise SafetyViolation("reading", f"/{path} of the container", f"it has {facts.st_size} bytes")
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(found)
        with open(fd, "rb") as file:
            return file.read(users.LIMIT)
    except KernelError:
        return b""  # the container has none
    finally:
        os.close(root)


def names(where: Places, *, running: bool = False) -> Sequence[str]:
    """Names and short ids, for completion."""
    return [
        seen.container.name or seen.container.id[:12]
        for seen in listing(where, everything=True)
        if not running or seen.status == "running"
    ]

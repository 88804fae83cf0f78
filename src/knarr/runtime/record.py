"""Containers on disk: what was done is recorded before it is done, the status is computed from the kernel (hot).

``<root>/<id>/`` (0700) holds

    state.json    the facts below, replaced by rename
    config.json   the configuration the container was made from
    start         the socket the container's init listens on until it is started; renamed by the one who starts it
    brief         of a created container: what bin/verbs.c must know of it (runtime/brief.py)

and ``<root>/.locks/<id>`` is locked (flock) by whoever makes or removes the container. Nothing here is forced to
disk: the root is meant to lie on a tmpfs, and after a reboot the boot id tells that all of it is stale.
"""

from __future__ import annotations

import posix
import stat
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY
from time import monotonic, sleep

from knarr.base import fastjson
from knarr.base.errors import Exists, FileError, InUse, NotFound, SpecError, UsageError
from knarr.base.files import Lock, read_file, stage, write_atomic
from knarr.base.ids import check_id
from knarr.base.paths import abspath, dirname, variable
from knarr.base.record import Record
from knarr.kernel.process import GONE, boot_id, in_user_namespace, process_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1
STATE = "state.json"
CONFIG = "config.json"
START = "start"
LOCKS = ".locks"
PATIENCE = 10.0
"""Seconds to wait for another command's hold on a container."""
_LIMIT = 32 << 20
_SMALL = 64 << 10


class State(Record):
    """What is recorded of a container. ``pid`` 0: no process is known (yet)."""

    id: str
    bundle: str
    rootfs: str
    version: str  # ociVersion of its config.json
    created: str  # RFC 3339
    boot: str  # boot id of the kernel it was made under
    annotations: dict[str, str]
    pid: int = 0
    starttime: int = 0  # clock ticks since boot, from /proc/PID/stat
    complete: bool = False  # creation came to its end
    hooked: bool = False  # prestart or createRuntime hooks were begun, so poststop hooks are due
    hooks: tuple[str, ...] = ()  # kinds of hooks its config.json has
    mounts: Any = None  # what runtime/shared_mounts.py needs to take its mounts away, without a mount namespace
    shared_pids: bool = False  # it has no pid namespace of its own: its processes outlive its first
    cgroup: Any = None  # what runtime/cgroup.py needs to find and remove the groups
    rdt: Any = None  # what runtime/resctrl.py needs to remove its groups
    network: Any = None  # {"pid": …, "starttime": …} of what ends the program that is its network
    isolation: Any = None  # {"kind": …} of a container in a guest, whose monitor ``pid`` is
    tail: tuple[Any, ...] = ()  # (kind, pointer, subject) of the operations after the start, for error messages
    tail_index: int = 0  # number of the first of them


def default_root() -> str:
    """Where state lives when nothing else is said: /run/knarr, or below XDG_RUNTIME_DIR for an ordinary user.

    Rootless Podman is root in a user namespace of its user's, and says XDG_RUNTIME_DIR. As with runc, USER=root marks a
    namespace (a container with an engine in it) where root is the only user there is.
    """
    if posix.geteuid() == 0:
        said = variable("XDG_RUNTIME_DIR") and variable("USER") != "root"
        if not (said and in_user_namespace()):
            return "/run/knarr"
    return f"{variable('XDG_RUNTIME_DIR') or f'/tmp/knarr-{posix.geteuid()}'}/knarr"


def open_root(root: str, *, make: bool = False) -> int:
    """Return a descriptor of the state root, made (0700) if asked. Raises FileError; UsageError if others may write."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    try:
        try:
            fd = posix.open(root, flags)
        except FileNotFoundError:
            if not make:
                raise
            import os  # cold: once

            os.makedirs(dirname(root) or ".", 0o711, exist_ok=True)
            try:
                posix.mkdir(root, 0o700)
            except FileExistsError:
                pass  # made by another at this moment
            fd = posix.open(root, flags)
    except (OSError, ValueError) as error:
        raise FileError("open state root", root, getattr(error, "errno", None) or ENOENT) from None
    # Where others may write, they could plant a container of their making, hooks included (docs/security.md I18); an
    # ordinary user's default may lie below /tmp, where others can be first to make the directory around it.
    facts = posix.fstat(fd)
    if not _ours(facts) or facts.st_mode & 0o022 or (posix.geteuid() and not _safe_around(root)):
        posix.close(fd)
        raise UsageError(f"state root {root} belongs to or is writable by others", hint="choose another --root")
    return fd


def _ours(facts: posix.stat_result) -> bool:
    return facts.st_uid in (posix.geteuid(), 0)


def _safe_around(root: str) -> bool:
    """Whether nobody but us and root can put another directory in the state root's place."""
    facts = posix.lstat(dirname(abspath(root)))
    closed = not facts.st_mode & 0o002 or facts.st_mode & stat.S_ISVTX or stat.S_ISLNK(facts.st_mode)
    return bool(_ours(facts) and closed)


def lock(root_fd: int, id: str, *, wait: bool) -> Lock:
    """Take the lock of an id. Raises InUse when it is held and ``wait`` is False."""
    try:
        posix.mkdir(LOCKS, 0o700, dir_fd=root_fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise FileError("make", LOCKS, error.errno or 0) from None
    taken = Lock(f"{LOCKS}/{id}", dir_fd=root_fd, wait=wait)
    taken.acquire()
    return taken


def hold(root_fd: int, fd: int, id: str, patience: float = PATIENCE) -> Lock:
    """Take the lock of the container behind ``fd``, waiting ``patience`` seconds. Raises InUse; NotFound: removed."""
    deadline = monotonic() + patience
    while True:
        try:
            taken = lock(root_fd, id, wait=False)
            break
        except InUse:
            if monotonic() >= deadline:
                raise InUse("container", id, "another command that creates, changes or deletes it") from None
        sleep(0.01)
    if not same(root_fd, fd, id):
        forget_lock(root_fd, id, taken)
        raise NotFound("container", id)
    return taken


def same(root_fd: int, fd: int, id: str) -> bool:
    """Whether the directory behind ``fd`` is still the container's."""
    try:
        there = posix.stat(id, dir_fd=root_fd, follow_symlinks=False)
    except OSError:
        return False
    here = posix.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def forget_lock(root_fd: int, id: str, taken: Lock) -> None:
    """Remove the lock's file and let the lock go; whoever waits for it notices and takes a fresh one."""
    try:
        posix.unlink(f"{LOCKS}/{id}", dir_fd=root_fd)
    except OSError:
        pass  # a lock file too many is harmless
    taken.release()


def forget_stale_lock(root: str, id: str) -> None:
    """Remove the lock's file of an id that was never made: its creation was killed between the two."""
    try:
        root_fd = open_root(root)
    except FileError:
        return
    try:
        posix.stat(f"{LOCKS}/{id}", dir_fd=root_fd, follow_symlinks=False)
        forget_lock(root_fd, id, lock(root_fd, id, wait=False))
    except (OSError, InUse):
        pass  # none is there, or somebody is making it now
    finally:
        posix.close(root_fd)


def make(root_fd: int, id: str) -> tuple[int, Lock]:
    """Claim ``id``: exactly one caller gets its new, empty directory, and the lock. Raises Exists (I29)."""
    check_id(id)
    try:
        taken = lock(root_fd, id, wait=False)
    except InUse:
        raise Exists("container", id) from None
    made = False
    try:
        posix.mkdir(id, 0o700, dir_fd=root_fd)
        made = True
        flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        return posix.open(id, flags, dir_fd=root_fd), taken
    except OSError as error:
        if made:  # no descriptor to be had
            posix.rmdir(id, dir_fd=root_fd)
        taken.release()
        if error.errno == EEXIST:
            raise Exists("container", id) from None
        raise FileError("make", id, error.errno or 0) from None
    except BaseException:
        taken.release()
        raise


def save(fd: int, state: State) -> None:
    """Write ``state`` into the container's directory."""
    write_atomic(STATE, _bytes(state), dir_fd=fd)


def prepare(fd: int, state: State) -> str:
    """Write what will be the state in a moment, and is when ``commit`` was called with what this returns."""
    return stage(_bytes(state), dir_fd=fd)


def commit(fd: int, staged: str) -> None:
    """What was prepared is the state now. Raises FileError."""
    try:
        posix.rename(staged, STATE, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as error:
        raise FileError("write", STATE, error.errno or 0) from None


def _bytes(state: State) -> bytes:
    document = {"format": FORMAT}
    document.update(zip(State._fields, state, strict=True))  # type: ignore[attr-defined]  # made by the metaclass
    return fastjson.dumps(document)


def open_container(root: str, id: str) -> int:
    """Return a descriptor of the container's directory. Raises InvalidId, NotFound, FileError."""
    check_id(id)
    try:
        root_fd = open_root(root)
    except FileError as error:
        if error.number != ENOENT:
            raise
        raise NotFound("container", id) from None
    try:
        return open_below(root_fd, id)
    finally:
        posix.close(root_fd)


def open_below(root_fd: int, id: str) -> int:
    """As ``open_container``, with a descriptor of the state root."""
    check_id(id)
    try:
        return posix.open(id, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR, ELOOP):
            raise NotFound("container", id) from None
        raise FileError("open", id, error.errno or 0) from None


def load(fd: int, id: str) -> State:
    """Read the container's state. Raises FileError (ENOENT: its creation was interrupted at once), SpecError."""
    data = _small(STATE, fd) or _read(STATE, fd)
    try:
        document = fastjson.loads_own(data)
    except (ValueError, StopIteration, RecursionError, SystemError):
        document = fastjson.loads(data, f"state of container {id}", limit=_LIMIT)  # which says what is wrong with it
    try:
        if document.pop("format") != FORMAT or document["id"] != id:
            raise ValueError
        return State(**document)
    except (AttributeError, KeyError, TypeError, ValueError):
        from knarr.base.errors import SpecFinding  # cold: somebody wrote into our files

        raise SpecError(f"state of container {id}", [SpecFinding("", "it is not of this version of knarr")]) from None


def config(fd: int) -> dict[str, Any]:
    """Read the configuration the container was made from (validated then)."""
    document: dict[str, Any] = fastjson.loads(_read(CONFIG, fd), CONFIG, limit=_LIMIT)
    return document


def _small(name: str, fd: int) -> bytes:
    """A file of up to 64 KiB with one read, which is what a list of a thousand takes; nothing where it is not one."""
    try:
        file = posix.open(name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK, dir_fd=fd)
    except OSError:
        return b""
    try:
        data = posix.read(file, _SMALL)
    except OSError:
        return b""
    finally:
        posix.close(file)
    return data if len(data) < _SMALL else b""


def _read(name: str, fd: int) -> bytes:
    try:
        return read_file(name, _LIMIT, dir_fd=fd)
    except FileError as error:
        if error.number == ENOENT:
            error.hint = "the container is being created or removed, or that was cut short: delete --force"
        raise


def startable(fd: int) -> bool:
    """Whether nobody has started the container yet."""
    return _there(fd, START)


def computed(state: State, *, boot: str, process: tuple[str, int] | None, startable: bool, frozen: bool) -> str:
    """The status, from facts alone (pure): creating, created, running, paused or stopped."""
    if state.boot != boot or state.pid == 0 or process is None:
        return "stopped"
    if process[0] in GONE or process[1] != state.starttime:
        return "stopped"
    if not state.complete:
        return "creating"
    if frozen:
        return "paused"
    return "created" if startable else "running"


def status(fd: int, state: State, root_fd: int = -1, *, freezer: bool = True, boot: str = "") -> str:
    """The container's status now. With ``root_fd``, a creation still without a process is told from a dead one.

    Without ``freezer`` a paused container counts as what it was before, which saves looking; ``boot`` if at hand.
    """
    boot = boot or boot_id()
    process = process_stat(state.pid) if state.pid else None
    if state.pid == 0 and state.boot == boot and root_fd >= 0 and being_made(root_fd, state.id):
        return "creating"
    now = computed(state, boot=boot, process=process, startable=startable(fd), frozen=False)
    if state.isolation is not None:
        return "paused" if now in ("created", "running") and freezer and _there(fd, "paused") else now
    if now in ("created", "running") and freezer and state.cgroup is not None:
        from knarr.runtime.freezer import frozen

        if frozen(state.cgroup):
            return "paused"
    return now


def reason(fd: int) -> str:
    """Why a container in a guest ended without its program's doing; "" when it did not."""
    try:
        return read_file("reason", 4096, dir_fd=fd).decode("utf-8", "replace")
    except FileError:
        return ""


def _there(fd: int, name: str) -> bool:
    try:
        posix.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def being_made(root_fd: int, id: str) -> bool:
    """Whether somebody holds the id's lock."""
    try:
        lock(root_fd, id, wait=False).release()
    except InUse:
        return True
    return False


def remove(root_fd: int, fd: int, id: str) -> None:
    """Remove the container's directory, which holds files only. Missing is fine. Raises FileError."""
    for name in ("brief", START, CONFIG, STATE):  # brief first: bin/verbs.c believes it as long as it is there
        try:
            posix.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FileError("remove", f"{id}/{name}", error.errno or 0) from None
    try:
        try:
            posix.rmdir(id, dir_fd=root_fd)
        except OSError as error:
            if error.errno != ENOTEMPTY:
                raise
            for name in posix.listdir(fd):  # a started socket, a temporary file of a writer that was killed
                if name == "notify":
                    from knarr.runtime.notify import remove_directory  # only as a service of systemd's

                    remove_directory(fd)
                else:
                    posix.unlink(name, dir_fd=fd)
            posix.rmdir(id, dir_fd=root_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileError("remove", id, error.errno or 0) from None


def document(state: State, status: str, pid: int | None = None) -> dict[str, Any]:
    """The state document of runtime-spec runtime.md "State"; the pid is left out when it is stopped."""
    result: dict[str, Any] = {"ociVersion": state.version, "id": state.id, "status": status}
    shown = state.pid if pid is None else pid
    if status != "stopped" and shown:
        result["pid"] = shown
    result["bundle"] = state.bundle
    if state.annotations:
        result["annotations"] = state.annotations
    return result


def shown(state: State, status: str, owner: str) -> dict[str, Any]:
    """A container as runc's ``state`` and ``list`` show it: pid 0 when it is stopped."""
    result: dict[str, Any] = {
        "ociVersion": state.version,
        "id": state.id,
        "pid": 0 if status == "stopped" else state.pid,
        "status": status,
        "bundle": state.bundle,
        "rootfs": state.rootfs,
        "created": state.created,
    }
    if state.annotations:
        result["annotations"] = state.annotations
    result["owner"] = owner
    return result

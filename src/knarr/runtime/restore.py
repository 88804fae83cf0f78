"""Make a container from a checkpoint with CRIU (cold). It is recorded, limited, owned and removed like any other."""

from __future__ import annotations

import os
import stat
from _socket import AF_INET, AF_UNIX, SCM_RIGHTS, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, socket
from _thread import allocate_lock, start_new_thread
from errno import EEXIST, ENOENT, ESRCH
from fcntl import ioctl
from struct import pack

from knarr.base import fastjson
from knarr.base.clock import now_rfc3339
from knarr.base.errors import FileError, KernelError, KnarrError, Unsupported
from knarr.base.files import write_atomic
from knarr.base.ids import check_id
from knarr.kernel import path as paths
from knarr.kernel.ffi import syscall
from knarr.kernel.mount import MS_BIND, MS_REC, MS_SLAVE, mount
from knarr.kernel.process import boot_id, ended, process_stat, reap, signal_pid
from knarr.kernel.userns import unshare
from knarr.plan import criu as ask
from knarr.plan.mounts import is_bind, source_path
from knarr.runtime import cgroup, criu, record
from knarr.runtime.cgroup_fs import open_group, write
from knarr.runtime.checkpoint import descriptors
from knarr.runtime.create import PATIENCE, rootfs_path
from knarr.runtime.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.base.files import Lock
    from knarr.plan.cgroup import CgroupPlan
    from knarr.plan.criu import CriuOptions

LOG = "restore.log"
_CLONE_NEWNS = 0x20000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # netdevice(7)


class Restored:
    """A container that CRIU brought back: ``pid``, ``pidfd`` (a child of this program)."""

    __slots__ = ("_lock", "config", "fd", "pid", "pidfd", "root_fd", "state")

    def __init__(self, root_fd: int, state: State, config: dict[str, Any]) -> None:
        self.root_fd = root_fd
        self.state = state
        self.config = config
        self.fd = self.pidfd = -1
        self.pid = 0
        self._lock: Lock | None = None

    def claim(self, groups: CgroupPlan | None) -> None:
        """Take the id and record what is about to be made. Raises Exists, InUse."""
        self.fd, self._lock = record.make(self.root_fd, self.state.id)
        if groups is not None:
            self.state = self.state.replace(cgroup=cgroup.intent(groups))
        record.save(self.fd, self.state)
        write_atomic(record.CONFIG, fastjson.dumps(self.config), dir_fd=self.fd)

    def exists(self, pid: int) -> None:
        """The process is there, stopped still: record it. Raises KernelError."""
        found = process_stat(pid)
        if found is None:
            raise KernelError("read", f"/proc/{pid}/stat", ESRCH)
        self.pid, self.pidfd = pid, os.pidfd_open(pid)
        self.state = self.state.replace(pid=pid, starttime=found[1])
        record.save(self.fd, self.state)

    def finish(self) -> None:
        """It runs."""
        self.state = self.state.replace(complete=True)
        record.save(self.fd, self.state)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def delete(self) -> list[str]:
        """Remove it, killing what still runs; returns warnings of poststop hooks."""
        from knarr.runtime.delete import destroy

        warnings = destroy(self.root_fd, self.fd, self.state, self.config)
        self.close()
        return warnings

    def undo(self, error: BaseException) -> None:
        """Take back what was done of a restore that failed with ``error``."""
        try:
            if self.pidfd >= 0 and signal_pid(self.pidfd, 9) and ended(self.pidfd, PATIENCE):
                reap(self.pidfd, wait=False)
            if self.fd >= 0:
                from knarr.runtime.delete import clear

                clear(self.root_fd, self.fd, self.state, self.config)
                if self._lock is not None:
                    record.forget_lock(self.root_fd, self.state.id, self._lock)
                    self._lock = None
        except KnarrError as trouble:
            error.add_note(f"and while undoing it: {trouble}")
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        for fd in (self.fd, self.root_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.root_fd = self.pidfd = -1


def restore(
    state_root: str,
    id: str,
    bundle: str,
    config: dict[str, Any],
    options: CriuOptions,
    *,
    console: int = -1,
    manager: str = "cgroupfs",
    rootless: bool | None = None,
) -> Restored:
    """Bring a container back; on return it runs. ``console``: a socket for the terminal's master.

    For a command, not a library: the calling process is left in a mount namespace of its own. Raises Exists,
    Unsupported, FileError, and InitError with CRIU's own words; nothing is left behind then.
    """
    from knarr.runtime.probe import probe

    check_id(id)
    host = probe()
    groups = cgroup.plan(config, host, id, rootless=rootless, manager=manager)
    criu.demand(options, f"restore container {id}")
    # What is mounted here is seen by nobody else, and gone with us. Before anything is opened: CRIU mounts in its
    # working directory, which must not belong to another mount namespace.
    unshare(_CLONE_NEWNS)
    mount(None, "/", None, MS_SLAVE | MS_REC)
    images_fd = criu.directory(options.images, make=False)
    extra: list[int] = []
    work_fd = -1
    restored = None
    try:
        work_fd = criu.directory(options.work or options.images, make=True)
        wanted = ask.common(options, config, images_fd=images_fd, work_fd=work_fd, log=LOG)
        pipes = [(link, number) for number, link in enumerate(descriptors(images_fd)) if link.startswith("pipe:")]
        inherited = [{"key": link, "fd": number} for link, number in pipes] + _namespaces(config, extra)
        state = State(
            id=id,
            bundle=bundle,
            rootfs=rootfs_path(config, bundle),
            version=config["ociVersion"],
            created=now_rfc3339(),
            boot=boot_id(),
            annotations=config.get("annotations") or {},
            hooks=tuple(kind for kind in (config.get("hooks") or {}) if config["hooks"][kind]),
        )
        restored = Restored(record.open_root(state_root, make=True), state, config)
        restored.claim(groups)
        root = criu.real(state.rootfs)
        mount(root, root, None, MS_BIND | MS_REC)  # CRIU wants the root to be a mount point
        if groups is not None:
            cgroup.create(groups, devices=False)
        wanted |= {
            "root": root,
            "evasive_devices": True,
            "tcp_close": options.tcp_close,
            "rst_sibling": True,
            "inherit_fd": inherited,
            "join_ns": ask.joined_namespaces(config),
            "ext_mnt": [{"key": key, "val": source} for key, source in _mounts(config, bundle, root)],
        }
        if options.lsm_profile:
            wanted["lsm_profile"] = options.lsm_profile
        if options.lsm_mount_context:
            wanted["lsm_mount_context"] = options.lsm_mount_context
        log = f"{options.work or options.images}/{LOG}"
        _ask(restored, wanted, groups, program=options.program, extra=extra, console=console, log=log)
        restored.finish()
        return restored
    except BaseException as error:
        if restored is not None:
            restored.undo(error)
        raise
    finally:
        for each in (images_fd, work_fd, *extra):
            if each >= 0:
                os.close(each)


def _ask(
    restored: Restored,
    wanted: dict[str, Any],
    groups: CgroupPlan | None,
    *,
    program: str,
    extra: list[int],
    console: int,
    log: str,
) -> None:
    """Have CRIU do it, in the container's groups from the start, and do our part when it says so."""
    doing = f"restore container {restored.state.id}"
    process = criu.Criu(doing, program, extra=extra)
    response = None
    try:
        if groups is not None:
            cgroup.join(groups, process.pid)
            if groups.clone_into:
                _enter(groups, process.pid)
            wanted["cg_root"] = _cgroup_roots(groups)

        def notified(what: str, pid: int, descriptor: int) -> None:
            if what == "setup-namespaces":
                if ask.own_network(restored.config):
                    _loopback(pid)
                _hooks(restored, pid)
            elif what == "post-restore":
                restored.exists(pid)
                if groups is not None:
                    cgroup.restrict_devices(groups)
            elif what == "orphan-pts-master" and console >= 0:
                _send(console, descriptor)

        response = process.request({"type": ask.RESTORE, "opts": wanted}, notified)
        if response is None or not response.get(2):
            raise criu.failed(doing, response, log)
        if restored.pid == 0:  # an older CRIU tells it at the end only
            restored.exists(ask.decode(response.get(4, b"")).get(1, 0))
    finally:
        process.close()


def _enter(groups: CgroupPlan, pid: int) -> None:
    fd = open_group(groups.directories[0].mountpoint, groups.directories[0].path)
    try:
        write(fd, "cgroup.procs", str(pid))
    finally:
        os.close(fd)


def _cgroup_roots(groups: CgroupPlan) -> list[dict[str, str]]:
    """Where the groups of the checkpoint are now."""
    if len(groups.directories) == 1:
        return [{"path": groups.directories[0].path}]
    return [{"ctrl": ",".join(place.controllers), "path": place.path} for place in groups.directories]


def _hooks(restored: Restored, pid: int) -> None:
    """Prestart and createRuntime, with the namespaces there and nothing running, as at creation."""
    from knarr.runtime.hooks import run_hooks

    hooks = restored.config.get("hooks") or {}
    wanted = tuple(
        (kind, n, hook) for kind in ("prestart", "createRuntime") for n, hook in enumerate(hooks.get(kind) or ())
    )
    if wanted:
        restored.state = restored.state.replace(hooked=True)
        record.save(restored.fd, restored.state)
        document = fastjson.dumps(record.document(restored.state, "creating", pid))
        run_hooks(wanted, document, restored.state.bundle, restored.state.annotations)


def _loopback(pid: int) -> None:
    """Bring lo up in the network namespace of a process, as at creation: addresses on it are bound again next."""
    trouble: list[OSError] = []
    done = allocate_lock()
    done.acquire()

    def inside() -> None:  # a namespace is a thread's own: this one enters it and ends
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscall("setns", fd, ask.CLONE_NEWNET)
            finally:
                os.close(fd)
            sock = socket(AF_INET, SOCK_DGRAM, 0)
            try:
                ioctl(sock.fileno(), _SIOCSIFFLAGS, pack("16sh14x", b"lo", _IFF_UP))
            finally:
                sock.close()
        except OSError as error:
            trouble.append(error)
        finally:
            done.release()

    start_new_thread(inside, ())
    done.acquire()
    if trouble:
        raise KernelError("bring up", "lo", trouble[0].errno or 0)


def _send(console: int, descriptor: int) -> None:
    sock = socket(AF_UNIX, SOCK_STREAM, 0, os.dup(console))
    try:
        sock.sendmsg([b"/dev/ptmx"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", descriptor))])
    finally:
        sock.close()


def _namespaces(config: dict[str, Any], extra: list[int]) -> list[dict[str, Any]]:
    """Open the network and pid namespaces of others; what CRIU is told of them. Raises FileError, Unsupported."""
    told = []
    for position, entry in enumerate((config.get("linux") or {}).get("namespaces") or ()):
        if entry.get("path") and entry["type"] == "cgroup":
            raise Unsupported(
                "a restore into somebody else's cgroup namespace",
                "CRIU cannot do it",
                pointer=f"/linux/namespaces/{position}",
            )
        if entry.get("path") and entry["type"] in ask.MARKS:
            try:
                extra.append(os.open(entry["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            except OSError as error:
                raise FileError("open namespace", entry["path"], error.errno or ENOENT) from None
            told.append({"key": ask.MARKS[entry["type"]][1], "fd": 3 + len(extra)})
    return told


def _mounts(config: dict[str, Any], bundle: str, root: str) -> list[tuple[str, str]]:
    """(key, source) of every mount that may come from outside, its mount point made if it is missing."""
    found = ask.node_keys(config)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        host = file.read()
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        entries = config.get("mounts") or ()
        tmpfs = [entry["destination"] for entry in entries if entry.get("type") == "tmpfs"]
        for entry in entries:
            point = entry["destination"]
            source = source_path(entry, bundle) if is_bind(entry) else ""
            # What lies on a tmpfs comes back with it.
            if not any(point.startswith(f"{above.rstrip('/')}/") for above in tmpfs):
                point = _point(root_fd, root, point, is_file=bool(source) and not os.path.isdir(source))
            if source:
                found.append((point, source))
                if "rbind" in (entry.get("options") or ()):
                    top = criu.real(source)
                    found += [(point + below.removeprefix(top), below) for below in ask.mounts_below(host, top)]
    finally:
        os.close(root_fd)
    return found


def _point(root_fd: int, root: str, path: str, *, is_file: bool) -> str:
    """The mount point as the kernel will call it, links in the root followed; made if missing. Raises KernelError."""
    try:
        fd = paths.resolve(root_fd, path)
    except KernelError as error:
        if error.errno != ENOENT:
            raise
        if not is_file:
            fd = paths.mkdir_all(root_fd, path)
        else:
            folder, _, name = path.rstrip("/").rpartition("/")
            above = paths.mkdir_all(root_fd, folder or "/")
            try:
                os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=above)
            except OSError as trouble:
                if trouble.errno != EEXIST:
                    raise KernelError("make", path, trouble.errno or 0) from None
            finally:
                os.close(above)
            fd = paths.resolve(root_fd, path)
    try:
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(root) or "/"
    finally:
        os.close(fd)

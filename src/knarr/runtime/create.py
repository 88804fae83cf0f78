"""Make a container: claim the id, record, make cgroups, spawn the init and answer it until all is set up (hot).

runtime-spec runtime.md "Create". What is about to be done is recorded before it is done (the cgroups' paths before
they are made, the pid as soon as there is one), so that ``delete --force`` finishes whatever a SIGKILL left; on an
error everything is undone here.

From a program: ``create()`` blocks until the container is set up; ``begin()`` returns at once and leaves
``.launch`` to be driven (``fileno()``, ``step()``) by a loop of the caller's, who calls ``.finish()`` when ``step()``
says so and ``.undo()`` when it raises. Both work from any thread. A plan with prestart or createRuntime hooks runs
them inside ``step()``: drive such a one from a thread.
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from errno import EACCES, ESRCH

from knarr.base import fastjson
from knarr.base.clock import now_rfc3339
from knarr.base.errors import FileError, InitError, KernelError, KnarrError
from knarr.base.files import write_atomic
from knarr.base.ids import check_id
from knarr.base.record import Record
from knarr.kernel.process import boot_id, process_stat, reap
from knarr.plan.container import RAW_FILTER, Options, plan_container
from knarr.plan.host import HOOK_OUTPUTS
from knarr.plan.namespaces import shares_pids
from knarr.plan.ops import SYNC_CGROUP, SYNC_CLAIMED, SYNC_HOOKS, SYNC_IDMAP, SYNC_LISTENER, SYNC_READY
from knarr.runtime import cgroup, record
from knarr.runtime.brief import NAME as BRIEF
from knarr.runtime.brief import brief
from knarr.runtime.launch import Launch, describe
from knarr.runtime.record import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from knarr.base.files import Lock
    from knarr.plan.cgroup import CgroupDirectory, CgroupPlan
    from knarr.plan.container import ContainerPlan
    from knarr.plan.host import Host
    from knarr.plan.root import Root
    from knarr.runtime.netdevices import Devices
    from knarr.runtime.notify import Notify

    class Network(Protocol):
        """What fills a container's network namespace and stays as long as the container does: engine/usernet.py."""

        def begin(self, pid: int, pidfd: int, place: int) -> dict[str, int]:
            """Start it for that process; pid and start time of what ends it. ``place``: the container's directory."""
            ...

        def wait(self, place: int) -> None:
            """Until the network is there."""
            ...

        def close(self) -> None: ...


_HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
PATIENCE = 10.0
"""Seconds a killed process may take to end."""
_DESCRIPTORS = 16
"""Most descriptors that making a container has open at one time, slots and one for each cgroup aside."""


class Stdio(Record):
    """The descriptors a process is given; they stay the caller's.

    ``console`` is -1, or a connected socket to send the terminal's master over; ``preserve`` become 3, 4, … inside.
    """

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    console: int = -1
    preserve: tuple[int, ...] = ()


class Process:
    """A process of ours in a container: ``pid``, ``pidfd`` (a child of this program), the ``launch`` that made it."""

    __slots__ = ("config", "host", "id", "launch", "plan")

    def __init__(self, id: str, plan: ContainerPlan, host: Host, config: dict[str, Any]) -> None:
        self.id = id
        self.config = config
        self.plan = plan
        self.host = host
        self.launch: Launch | None = None

    @property
    def pid(self) -> int:
        """The process, as this program sees it; 0 before it exists."""
        return self.launch.pid if self.launch else 0

    @property
    def pidfd(self) -> int:
        """Its pidfd; readable when it has ended. -1 before it exists."""
        return self.launch.pidfd if self.launch else -1

    def wait(self) -> int:
        """Block until it ends; its exit code, 128 + signal when a signal ended it. -1 when somebody else reaped it."""
        code = reap(self.pidfd)
        return -1 if code is None else code

    def spawn(self, stdio: Stdio, slots: dict[str, int], *, waits: bool = False) -> None:
        """Start knarr-init on the plan."""
        self.launch = Launch(
            self.plan.encode(),
            [slots[name] for name in self.plan.slots],
            (stdio.stdin, stdio.stdout, stdio.stderr),
            failed=self.failed,
            on_pid=self.on_pid,
            on_sync=self.on_sync,
            on_answered=self.on_answered,
            waits=waits,
            words=(self.id,),
            memory=_memory_limit(self.config),
        )

    def failed(self, index: int, number: int, detail: bytes) -> KnarrError:
        """The exception for operation ``index`` of the plan."""
        from knarr.runtime.explain import LANDLOCK_HINT, init_error  # cold: only for an error

        if index >= len(self.plan.ops):
            return InitError("", "read its plan", number)
        op = self.plan.ops[index]
        error = init_error(op.kind, op.arguments(), op.pointer, number, detail, machine=self.host.arch)
        if op.kind == "exec" and number == EACCES and any(each.kind == "landlock_restrict" for each in self.plan.ops):
            error.hint = LANDLOCK_HINT
        return error

    def on_pid(self, pid: int) -> None:
        """The process exists."""

    def on_answered(self, code: int) -> None:
        """The child went on after sync ``code``."""

    def on_sync(self, code: int) -> bytes:
        """Do what the child waits for; the state document to send along."""
        if code == SYNC_IDMAP:
            from knarr.runtime.idmap import write_maps  # cold: only with a user namespace

            write_maps(
                self.pid,
                self.plan.uid_map,
                self.plan.gid_map,
                setgroups_deny=self.plan.setgroups_deny,
                privileged=self.host.privileged,
                euid=self.host.euid,
                egid=self.host.egid,
            )
        elif code == SYNC_CGROUP and not self.plan.doors:
            self.join_cgroup()
        elif code == SYNC_CGROUP and self.launch is not None:
            self.open_doors(self.launch.sending)
        elif code == SYNC_READY and self.plan.by_parent:
            from knarr.runtime.outside import carry_out  # cold: only with a user namespace of root's

            carry_out(self.pid, self.plan.by_parent)
        elif code == SYNC_LISTENER and self.launch is not None:
            from knarr.runtime.listener import send_listener  # cold: only with SCMP_ACT_NOTIFY

            send_listener(self.launch.received, self.config, self.pid, self.document())
        return b""

    def document(self) -> dict[str, Any]:
        """The state of the container, as runtime-spec has it."""
        raise NotImplementedError

    def join_cgroup(self) -> None:
        """Put the process into its cgroups, if that has not been done yet."""

    def open_doors(self, doors: list[int]) -> None:
        """Append the files by which it joins its cgroups itself."""
        cgroup.open_doors(self.plan.doors, doors)

    def undo(self) -> None:
        """End it and forget it."""
        self.kill()
        self.close()

    def kill(self) -> None:
        """End it, whatever it is doing, and reap it."""
        if self.launch is not None:
            self.launch.kill(PATIENCE)

    def close(self) -> None:
        """Close the descriptors kept for it."""
        if self.launch is not None:
            self.launch.close()
            if self.launch.pidfd >= 0:
                posix.close(self.launch.pidfd)
                self.launch.pidfd = -1


class Created(Process):
    """A container of this program's making. Also its record: ``state``, and ``fd``, the container's directory."""

    __slots__ = (
        *("_devices", "_doors", "_joined", "_lock", "_root_fd", "_staged"),
        *("bundle", "fd", "network", "notify", "state", "stop"),
    )

    def __init__(
        self, id: str, plan: ContainerPlan, host: Host, *, bundle: str, config: dict[str, Any], root_fd: int, stop: int
    ) -> None:
        super().__init__(id, plan, host, config)
        self.bundle = bundle
        self.stop = stop
        self.fd = -1
        self._root_fd = root_fd
        self._lock: Lock | None = None
        self._joined = False
        self._staged = ""  # the file that will be the record once all is set up
        self._doors: list[int] = []  # for the process to join the cgroups by
        self._devices: Devices | None = None
        self.notify: Notify | None = None
        self.network: Network | None = None
        self.state = State(
            id=id,
            bundle=bundle,
            rootfs=rootfs_path(config, bundle),
            version=config["ociVersion"],
            created=now_rfc3339(),
            boot=boot_id(),
            annotations=config.get("annotations") or {},
            shared_pids=shares_pids(config),
            hooks=tuple(kind for kind in _HOOK_KINDS if (config.get("hooks") or {}).get(kind)),
        )

    def prepare(self, stdio: Stdio, raw: bytes | None, *, wait_start: bool, notify: str) -> None:
        """Spawn, claim the id, record, make the cgroups. Undo is the caller's."""
        slots = {f"fd{3 + number}": fd for number, fd in enumerate(stdio.preserve)}
        slots["console"] = stdio.console
        files = {name for name in HOOK_OUTPUTS if name in self.plan.slots}
        if self.plan.late is not None and not files and not notify:
            # It gets ready for its namespaces meanwhile, and waits for SYNC_CLAIMED before it makes any. Should we be
            # killed, it ends, and there is nothing to be found.
            self.spawn(stdio, slots, waits=wait_start)
        self._claim()
        listening = None
        if notify:
            from knarr.runtime import notify as proxy  # only as a service of systemd's

            proxy.make_directory(self.fd)
            if not wait_start:
                self.notify = proxy.listen(self.fd, notify)
        try:
            for name in files:
                from knarr.runtime.hooks import open_output  # cold: only with the annotation

                slots[name] = open_output(self.state.annotations, name, self.bundle)
            groups = self.plan.cgroup
            left: tuple[CgroupDirectory, ...] = groups.directories if groups is not None else ()
            if groups is not None and self._gives("cgroup"):
                born = groups.unified or groups.directories[0]
                left = tuple(each for each in left if each != born)
                self._make(groups, (born,))
                slots["cgroup"] = cgroup.open_directory(groups)
            if wait_start:
                listening = socket(AF_UNIX, SOCK_SEQPACKET, 0)
                listening.bind(f"/proc/self/fd/{self.fd}/{record.START}")
                listening.listen(1)
                slots["start"] = listening.fileno()
            if self.launch is None:
                self.spawn(stdio, slots, waits=wait_start)
            if self.launch is not None and self.plan.late is not None:
                self.launch.sending += [posix.dup(slots[name]) for name in self.plan.late]
                self.launch.answer(SYNC_CLAIMED)
            if groups is not None and left:
                self._make(groups, left)  # the child is at work meanwhile; it comes in before anything foreign runs
                self._let_in(groups)
        except OSError as error:
            if isinstance(error, KernelError):
                raise
            raise FileError("make start socket in", self.id, error.errno or 0) from None
        finally:
            if listening is not None:
                listening.close()
            for name in {"cgroup", *files}.intersection(slots):
                posix.close(slots[name])
        # While the child is at work:
        write_atomic(record.CONFIG, fastjson.dumps(self.config) if raw is None else raw, dir_fd=self.fd)

    def _gives(self, name: str) -> bool:
        """Whether the process is given that descriptor."""
        return name in self.plan.slots or name in (self.plan.late or ())

    def _claim(self) -> None:
        """Make the id ours and record what is about to be made."""
        self.fd, self._lock = record.make(self._root_fd, self.id)
        tail = next((n for n, op in enumerate(self.plan.ops) if op.kind == "wait_start"), -1)
        if tail >= 0:
            self.state = self.state.replace(tail_index=tail, tail=[describe(op) for op in self.plan.ops[tail:]])
        if self.plan.cgroup is not None:
            self.state = self.state.replace(cgroup=cgroup.intent(self.plan.cgroup))
        if self.plan.mounts_stay:
            from knarr.runtime import shared_mounts  # cold: only without a mount namespace

            self.state = self.state.replace(mounts=shared_mounts.intent(self.state.rootfs))
        if self.plan.rdt is not None:
            from knarr.runtime import resctrl  # cold: only with linux.intelRdt

            top = resctrl.mount_point()
            self.state = self.state.replace(rdt=resctrl.intent(self.plan.rdt, top))
            record.save(self.fd, self.state)
            resctrl.make(self.plan.rdt, top)
        record.save(self.fd, self.state)

    def _let_in(self, groups: CgroupPlan) -> None:
        """Answer SYNC_CGROUP before it is asked, if there is no more to be done then than to join."""
        waits = self.plan.rdt is not None or self.plan.net_devices or groups.device_mount or self.network is not None
        if self.plan.doors and not waits and self.launch is not None:
            self.open_doors(self.launch.sending)
            self.launch.answer(SYNC_CGROUP)

    def _make(self, groups: CgroupPlan, these: Sequence[CgroupDirectory]) -> None:
        # Device rules bind mounts of block devices too, so they come when the mounts are made (as runc does).
        cgroup.create(groups, devices=False, only=these, doors=self._doors if these == self.plan.doors else None)

    def on_pid(self, pid: int) -> None:
        stat = process_stat(pid)
        if stat is None:
            raise KernelError("read", f"/proc/{pid}/stat", ESRCH)
        self.state = self.state.replace(pid=pid, starttime=stat[1])
        if self.state.hooks or self.state.isolation is not None or self.network is not None:
            record.save(self.fd, self.state)  # hooks may ask for it, and a guest's monitor outlives us
        else:
            # Nobody needs the pid of a process that dies with us; what the record will say is written meanwhile.
            self._staged = record.prepare(self.fd, self.state.replace(complete=True))
        if not self.plan.uid_map and not self.plan.doors:
            self.join_cgroup()  # takes milliseconds on v1; the child makes its mounts meanwhile

    def on_answered(self, code: int) -> None:
        if code == SYNC_IDMAP:
            self.join_cgroup()

    def join_cgroup(self) -> None:
        if self.plan.cgroup is not None and not self._joined:
            self._joined = True
            cgroup.join(self.plan.cgroup, self.pid)

    def open_doors(self, doors: list[int]) -> None:
        doors += self._doors
        self._doors = []

    def _close_doors(self) -> None:
        while self._doors:
            posix.close(self._doors.pop())

    def begin_network(self) -> None:
        """Start what is its network, if something is. While its process can still be looked at (``dumpable``)."""
        if self.network is not None:
            self.state = self.state.replace(network=self.network.begin(self.pid, self.pidfd, self.fd))
            record.save(self.fd, self.state)

    def await_network(self) -> None:
        """Until that is ready; may be called again."""
        if self.network is not None:
            self.network.wait(self.fd)

    def on_sync(self, code: int) -> bytes:
        if code == SYNC_CGROUP:
            self.begin_network()
        groups = self.plan.cgroup
        if code == SYNC_CGROUP and groups is not None and (groups.device_mount or not self.plan.doors):
            cgroup.restrict_devices(groups)
        if code == SYNC_CGROUP and self.plan.rdt is not None:
            from knarr.runtime import resctrl  # cold: only with linux.intelRdt

            resctrl.join(self.plan.rdt, self.state.rdt["top"], self.pid)
        if code == SYNC_CGROUP and self.plan.net_devices:
            from knarr.runtime.netdevices import Devices  # cold: only with linux.netDevices

            self._devices = Devices(self.pid)
            self._devices.move(self.plan.net_devices)
        if code == SYNC_HOOKS:
            self.state = self.state.replace(hooked=True)
            record.save(self.fd, self.state)
            from knarr.runtime.hooks import run_hooks

            document = fastjson.dumps(record.document(self.state, "creating"))
            # prestart hooks were called by `start` once, and still see the status of that (crun, the official suite).
            created = fastjson.dumps(record.document(self.state, "created"))
            kinds = {"prestart": created}
            for hook in self.plan.runtime_hooks:
                state = kinds.get(hook[0], document)
                run_hooks([hook], state, self.bundle, self.state.annotations, alive=self.pidfd, stop=self.stop)
            return document if "createContainer" in self.state.hooks else b""
        if code == SYNC_READY:
            super().on_sync(code)
            self.await_network()
            self.state = self.state.replace(complete=True)
            if self._staged:
                record.commit(self.fd, self._staged)
            else:
                record.save(self.fd, self.state)
            if self._gives("start") and (text := brief(self.state)) is not None:
                write_atomic(BRIEF, text, dir_fd=self.fd)
            if "startContainer" not in self.state.hooks or self._gives("start"):
                return b""  # else `start` sends it
            return fastjson.dumps(record.document(self.state, "created"))
        return super().on_sync(code)

    def document(self) -> dict[str, Any]:
        return record.document(self.state, "created")

    def drive(self, deadline: float | None = None) -> None:
        """Block until the launch is done."""
        if self.launch is not None:
            self.launch.run(deadline, self.stop)

    def finish(self) -> None:
        """Call when ``launch.step()`` says that all is done: lets the id's lock and the control socket go."""
        if self.launch is not None:
            self.launch.close()
        if self._devices is not None:
            self._devices.close()
            self._devices = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self) -> None:
        """Let the program of a created container run, and the poststart hooks. Raises as ``runtime.start.start``."""
        from knarr.runtime.start import start_container

        start_container(self._root_fd, self.fd, self.state, self.config)

    def poststart(self) -> None:
        """Run the poststart hooks of a container that was made without waiting for a start."""
        if "poststart" not in self.state.hooks:
            return
        from knarr.runtime.start import poststart  # `run` needs no more of it

        poststart(self._root_fd, self.fd, self.state, self.config)

    def delete(self) -> list[str]:
        """Remove the container, killing what still runs; returns warnings of poststop hooks."""
        from knarr.runtime.delete import destroy

        warnings = destroy(self._root_fd, self.fd, self.state, self.config)
        self.close()
        return warnings

    def undo(self) -> None:
        """Take back whatever was done of a creation that failed. Safe to call at any point, and twice."""
        if self.launch is not None:
            self.launch.kill(PATIENCE)
        if self.fd >= 0:
            from knarr.runtime.delete import clear

            clear(self._root_fd, self.fd, self.state, self.config)
            if self._lock is not None:
                record.forget_lock(self._root_fd, self.id, self._lock)
                self._lock = None
        if self._devices is not None:
            self._devices.put_back()
        self.close()

    def close(self) -> None:
        super().close()
        if self._devices is not None:
            self._devices.close()
            self._devices = None
        if self.notify is not None:
            self.notify.close()
            self.notify = None
        if self.network is not None:
            self.network.close()
        self._close_doors()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        for fd in (self.fd, self._root_fd):
            if fd >= 0:
                posix.close(fd)
        self.fd = self._root_fd = -1


def _memory_limit(config: dict[str, Any]) -> str:
    """The JSON pointer of the memory limit; "" without one."""
    resources = (config.get("linux") or {}).get("resources") or {}
    if "memory.max" in (resources.get("unified") or {}):
        return "/linux/resources/unified/memory.max"
    return "/linux/resources/memory/limit" if (resources.get("memory") or {}).get("limit", -1) > 0 else ""


def rootfs_path(config: dict[str, Any], bundle: str) -> str:
    """The container's root directory as config.json names it, absolute."""
    path = str((config.get("root") or {}).get("path", ""))
    return path if path.startswith("/") else f"{bundle}/{path}"


def _demand_descriptors(fd: int, count: int) -> None:
    """Raise KernelError unless ``count`` more descriptors can be had: undoing what was begun takes some, too."""
    spare: list[int] = []
    try:
        for _ in range(count):
            spare.append(posix.dup(fd))  # noqa: PERF401  # those made before a failure must be closed
    except OSError as error:
        raise KernelError("open", "files", error.errno or 0, hint="raise RLIMIT_NOFILE: ulimit -n") from None
    finally:
        for each in spare:
            posix.close(each)


def begin(
    state_root: str,
    id: str,
    bundle: str,
    config: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    root: Root | None = None,
    wait_start: bool = True,
    host: Host | None = None,
    raw: bytes | None = None,
    rootless: bool | None = None,
    stop: int = -1,
    network: Network | None = None,
) -> Created:
    """Start to make a container; drive ``.launch`` to its end, then ``.finish()`` (on an error ``.undo()``).

    ``config`` is a validated config.json, ``raw`` its bytes if at hand; ``bundle`` an absolute path. ``options`` are
    the caller's wishes; what follows from ``io`` and ``wait_start`` is put in here. With ``wait_start`` the program
    waits for ``start``, else it runs as soon as it can. ``rootless`` True: cgroups that may not be made are done
    without when no limit was asked for; None decides by who we are. ``host`` saves gathering the facts
    again. ``network`` fills its network namespace.
    Raises InvalidId, Exists, SpecError, Unsupported, FileError, KernelError; nothing is left behind then.
    """
    check_id(id)
    stdio = io or Stdio()
    from knarr.runtime.probe import probe_for

    host = probe_for(config, host)
    wishes = (options or Options()).replace(
        terminal_slot=stdio.console >= 0, preserve_fds=len(stdio.preserve), wait_start=wait_start, early=True
    )
    if any(entry.get("path") for entry in (config.get("linux") or {}).get("namespaces") or ()):
        from knarr.runtime.scopes import demand_own_scopes  # cold: only with a namespace by its path

        demand_own_scopes(config)
    linux = config.get("linux") or {}
    if linux.get("devices") and (
        host.in_userns or any(each["type"] == "user" for each in linux.get("namespaces") or ())
    ):
        from knarr.runtime.host_nodes import demand_host_nodes  # cold: only where no device can be made

        demand_host_nodes(config)
    groups = cgroup.plan(config, host, id, rootless=rootless, manager=wishes.cgroup_manager)
    plan = plan_container(
        config,
        host,
        id=id,
        bundle=bundle,
        options=wishes,
        root=root,
        seccomp=compiled_seccomp(config, host, state_root),
        cgroup=groups,
    )
    root_fd = record.open_root(state_root, make=True)
    try:
        given = len(plan.slots) + len(plan.late or ())
        _demand_descriptors(root_fd, _DESCRIPTORS + given + (len(groups.directories) if groups else 0))
        created = Created(id, plan, host, bundle=bundle, config=config, root_fd=root_fd, stop=stop)
        created.network = network
    except BaseException:
        posix.close(root_fd)
        raise
    try:
        created.prepare(stdio, raw, wait_start=wait_start, notify=wishes.notify)
    except BaseException as error:
        undo(created, error)
        raise
    return created


def undo(created: Created, error: BaseException) -> None:
    """``created.undo()`` because of ``error``; what goes wrong with that is noted on it and does not hide it."""
    try:
        created.undo()
    except KnarrError as trouble:
        error.add_note(f"and while undoing it: {trouble}")


def set_up(created: Created, deadline: float | None) -> None:
    """Block until what ``begin`` began is set up, or undo it. Raises as ``create``."""
    try:
        created.drive(deadline)
        created.finish()
    except BaseException as error:
        undo(created, error)
        raise


def after_start(created: Created) -> None:
    """Run the poststart hooks of a program that runs, or undo all of it. Raises HookError."""
    try:
        created.poststart()
    except BaseException as error:
        undo(created, error)
        raise


def compiled_seccomp(config: dict[str, Any], host: Host, state_root: str = "") -> bytes | None:
    """linux.seccomp as a filter, from (and into) the cache below ``state_root`` if that is given.

    crun's annotations: a filter that is compiled already, no call of an unknown name. Raises SpecError, Unsupported.
    """
    annotations = config.get("annotations") or {}
    if RAW_FILTER in annotations:
        from knarr.plan.seccomp_filter import raw_filter

        return raw_filter(annotations[RAW_FILTER])
    profile = (config.get("linux") or {}).get("seccomp")
    if not profile:
        return None
    if "run.oci.seccomp_fail_unknown_syscall" in annotations:
        from knarr.plan.seccomp import refuse_unknown_calls

        refuse_unknown_calls(profile)
    if not state_root:
        from knarr.plan.seccomp import compile_filter

        return compile_filter(profile, host.arch)
    from knarr.runtime.seccomp_cache import known_filter

    return known_filter(f"{state_root}/.seccomp", profile, host.arch)


def create(
    state_root: str,
    id: str,
    bundle: str,
    config: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    root: Root | None = None,
    wait_start: bool = True,
    host: Host | None = None,
    raw: bytes | None = None,
    rootless: bool | None = None,
    deadline: float | None = None,
    stop: int = -1,
) -> Created:
    """``begin()`` and block until the container is set up.

    At most until ``deadline`` (time.monotonic()), or until the descriptor ``stop`` becomes readable. Raises also what
    went wrong inside: InitError, CommandNotFound, CommandNotExecutable, HookError, SafetyViolation, Interrupted.
    """
    created = begin(
        state_root,
        id,
        bundle,
        config,
        io=io,
        options=options,
        root=root,
        wait_start=wait_start,
        host=host,
        raw=raw,
        rootless=rootless,
        stop=stop,
    )
    set_up(created, deadline)
    return created


def run(
    state_root: str,
    id: str,
    bundle: str,
    config: dict[str, Any],
    *,
    io: Stdio | None = None,
    options: Options | None = None,
    root: Root | None = None,
    host: Host | None = None,
    raw: bytes | None = None,
    rootless: bool | None = None,
    deadline: float | None = None,
    stop: int = -1,
) -> Created:
    """``create()`` without waiting for a start: on return the program runs, and the poststart hooks did.

    The caller waits (``.wait()`` or the pidfd) and removes it (``.delete()``).
    """
    created = create(
        state_root,
        id,
        bundle,
        config,
        io=io,
        options=options,
        root=root,
        wait_start=False,
        host=host,
        raw=raw,
        rootless=rootless,
        deadline=deadline,
        stop=stop,
    )
    after_start(created)
    return created

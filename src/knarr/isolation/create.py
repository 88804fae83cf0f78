"""Make a container in a guest: the same record, cgroups, hooks and verbs as on the host's kernel (cold).

Two plans: one for the host, which puts the monitor into the container's cgroups, network and, for a root that is an
overlay, a mount namespace of its own; and the container's, which knarr-init carries out inside the guest. The monitor
passes the packets of the second one's control socket on, so that to everything here and in ``runtime`` the container's
first process is the monitor.
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from select import POLLIN, poll

from knarr.base import fastjson
from knarr.base.errors import FileError, InitError, KernelError, KnarrError, SpecError, SpecFinding, Unsupported
from knarr.base.ids import check_id
from knarr.base.paths import abspath, dirname, isdir
from knarr.isolation import convert, frames, kinds, steps, template
from knarr.isolation.choose import WRITES
from knarr.isolation.kinds import Share
from knarr.isolation.python import python_command
from knarr.kernel.process import ended
from knarr.plan import ops
from knarr.plan.cgroup import CgroupHost, CgroupPlan
from knarr.plan.container import ContainerPlan, Options, own_id_alone, own_maps, plan_container
from knarr.plan.host import Host
from knarr.plan.namespaces import CLONE_FLAG, plan_namespaces
from knarr.plan.ops import NO_SLOT, Op
from knarr.plan.root import Root, image_ops, root_ops
from knarr.runtime import cgroup, record
from knarr.runtime.create import Created, Stdio, after_start, compiled_seccomp, rootfs_path, set_up, undo
from knarr.runtime.launch import Control, Launch, memfd
from knarr.runtime.monitored import SOCKET, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.isolation.template import Taken
    from knarr.plan.cgroup import CgroupDirectory
    from knarr.runtime.create import Network

_ALL_CAPABILITIES = (1 << 41) - 1  # up to CAP_CHECKPOINT_RESTORE, Linux 5.9
_CONTROLLERS = ("cpu", "io", "memory", "pids")
_MEMORY = 512 << 20
"""Bytes of memory for a container that asks for no limit."""
_LEAST_KEPT = 1 << 30
"""Bytes of files, holes included, that may be kept of a container with little memory."""
_HOST_OVERHEAD = 96 << 20
"""Bytes the monitor and the guest's process take beside the guest's memory."""
_ENDS = 5.0
"""Seconds that a monitor and its guest are given to end by themselves."""
_HOST_PIDS = 64
"""Processes and threads of the host's that a guest takes beside one for each of its own."""


def guest_host(controllers: tuple[str, ...] = _CONTROLLERS) -> Host:
    """What a plan for the guest may count on."""
    return Host(
        euid=0,
        egid=0,
        arch=posix.uname().machine,
        kernel=(6, 1),
        in_userns=False,
        cgroup=CgroupHost("v2", unified="/sys/fs/cgroup", unified_own="/", controllers=controllers),
        kcore=False,
        capabilities=_ALL_CAPABILITIES,
        bounding=_ALL_CAPABILITIES,
    )


class Relayed(Control):
    """The control socket of a process in the guest, as the monitor passes it on. As ``Launch`` to its drivers.

    ``pid`` and ``pidfd`` are the monitor's, or those of what stands for a further process.
    """

    __slots__ = ("_on_sync", "pid", "pidfd", "synced")

    def __init__(
        self,
        sock: socket,
        pid: int,
        pidfd: int,
        *,
        failed: Callable[[int, int, bytes], KnarrError],
        on_sync: Callable[[int], bytes],
    ) -> None:
        super().__init__(sock, failed)
        self.pid = pid
        self.pidfd = pidfd
        self.synced = 0
        self._on_sync = on_sync

    def handle(self, kind: int, value: int) -> None:
        if kind == 1:  # PID: the guest's number, of no use here
            return
        if kind != 2:
            super().handle(kind, value)
        answer = self._on_sync(value)
        self.synced = value
        self.go(answer)

    def ended(self) -> None:
        if self.synced < ops.SYNC_READY:
            raise InitError("", "set up the container in the guest", 0, why="its init ended without a word")

    def kill(self, patience: float) -> None:
        """End the monitor, and with it the guest. Raises KernelError when it does not end."""
        self.close()
        if self.pidfd >= 0:
            kill_and_reap(self.pidfd, self.pid, patience)


def kill_and_reap(pidfd: int, pid: int, patience: float) -> None:
    """End a child. Raises KernelError when the kernel holds it."""
    from errno import EBUSY

    from knarr.kernel.process import reap, signal_pid

    if signal_pid(pidfd, 9):
        if not ended(pidfd, patience):
            raise KernelError("kill", f"process {pid}", EBUSY)
        reap(pidfd, wait=False)


class Isolated(Created):
    """A container in a guest of its own; everything else is as with one on the host's kernel."""

    __slots__ = (
        *("_found", "_inside", "_keep", "_kind", "_made", "_mapped", "_own_mounts", "_place", "_shares", "_taken"),
    )

    def __init__(
        self,
        id: str,
        plan: ContainerPlan,
        host: Host,
        *,
        kind: str,
        inside: ContainerPlan,
        shares: tuple[Share, ...],
        found: dict[str, Any],
        taken: Taken | None,
        own_mounts: bool,
        mapped: bool,
        place: str,
        keep: bool,
        **more: Any,
    ) -> None:
        super().__init__(id, plan, host, **more)
        self._keep = keep
        self._kind = kind
        self._inside = inside
        self._shares = shares
        self._found = found
        self._taken = taken
        self._own_mounts = own_mounts
        self._made = False
        self._mapped = mapped
        self._place = place

    def prepare(self, stdio: Stdio, raw: bytes | None, *, wait_start: bool, notify: str) -> None:
        tail = next((n for n, op in enumerate(self._inside.ops) if op.kind == "wait_start"), -1)
        if tail >= 0:
            from knarr.runtime.launch import describe

            self.state = self.state.replace(tail_index=tail, tail=[describe(op) for op in self._inside.ops[tail:]])
        self.state = self.state.replace(isolation={"kind": self._kind, "mapped": self._mapped})
        super().prepare(stdio, raw, wait_start=wait_start, notify=notify)

    def spawn(self, stdio: Stdio, slots: dict[str, int], *, waits: bool = False) -> None:  # noqa: ARG002  # as Process
        """Start the monitor, or what stands before one that waited, by the host's plan.

        From then on ``launch`` is the guest's control socket.
        """
        if self.plan.cgroup is not None and not self.plan.cgroup.clone_into:
            self._make(self.plan.cgroup, self.plan.cgroup.directories)
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
        listener = socket(AF_UNIX, SOCK_SEQPACKET, 0)
        made: list[int] = []
        try:
            listener.bind(f"/proc/self/fd/{self.fd}/{SOCKET}")
            listener.listen(16)
            made += [memfd("knarr-setup", fastjson.dumps(self._setup(slots, stdio)))]
            made += [memfd("knarr-plan", self._inside.encode())]
            given = {"control": theirs.fileno(), "setup": made[0], "plan": made[1], "listener": listener.fileno()}
            if self._taken is not None:
                from knarr.isolation.handing import hand_over  # only with a guest that waited

                given |= hand_over(self._taken, {**slots, **given}, stdio, self.config["process"], made)
            launch = Launch(
                self.plan.encode(),
                [{**slots, **given}[name] for name in self.plan.slots],
                (stdio.stdin, stdio.stdout, stdio.stderr),
                failed=self.failed,
                on_pid=self.on_pid,
                on_sync=self._host_sync,
                on_answered=self.on_answered,
                waits=False,
                words=(self.id,),
            )
            self.launch = launch
            launch.run(None, self.stop)
            launch.close()
            if self._taken is not None:
                from knarr.isolation.handing import tell_who_stands

                tell_who_stands(self._taken, launch.pidfd)
            self.launch = Relayed(  # type: ignore[assignment]  # what its drivers use of a Launch
                ours, launch.pid, launch.pidfd, failed=self._failed, on_sync=self._guest_sync
            )
            ours = None  # type: ignore[assignment]  # it is the Relayed's
        finally:
            theirs.close()
            listener.close()
            if ours is not None:
                ours.close()
            for fd in made:
                posix.close(fd)

    def delete(self) -> list[str]:
        if self._taken is not None and ended(self.pidfd):
            # What stood for it has ended. Its monitor and guest do so now, and then its cgroups are empty.
            poller = poll()
            poller.register(self._taken.connection.fileno(), POLLIN)
            poller.poll(_ENDS * 1000)
        return super().delete()

    def close(self) -> None:
        super().close()
        if self._taken is not None:
            self._taken.let_go()
            self._taken = None

    def _make(self, groups: CgroupPlan, these: Sequence[CgroupDirectory]) -> None:
        if not self._made:
            self._made = True
            super()._make(groups, these)

    def _host_sync(self, code: int) -> bytes:
        """What the monitor's own start waits for. Its cgroup has device rules of the guest's, not of the host's."""
        if code == ops.SYNC_CGROUP:
            self.begin_network()
        if code == ops.SYNC_READY:
            self.await_network()  # the monitor takes it over before the container's own init is ready
        if code in (ops.SYNC_IDMAP, ops.SYNC_CGROUP):
            return super(Created, self).on_sync(code)
        return b""

    def _guest_sync(self, code: int) -> bytes:
        """What the container's init waits for: hooks, and that the record says it is ready."""
        if code in (ops.SYNC_HOOKS, ops.SYNC_READY):
            return self.on_sync(code)
        return b""

    def _network(self) -> dict[str, Any] | None:
        """What the monitor must know of the container's network namespace; None where it is in none."""
        spaces = (self.config.get("linux") or {}).get("namespaces") or ()
        entries = ((number, each) for number, each in enumerate(spaces) if each["type"] == "network")
        number, entry = next(entries)
        if not entry.get("path") and not any(op.kind == "loopback" for op in self.plan.ops):
            return None  # an ordinary user's, with the host's ids: the guest has loopback alone
        host = [posix.stat("/proc/thread-self/ns/net").st_ino]
        try:
            host.append(posix.stat("/proc/1/ns/net").st_ino)
        except OSError:
            pass  # another user's
        shared = bool(entry.get("path"))
        return {"host": host, "shared": shared, "pointer": f"/linux/namespaces/{number}", "ready": ops.SYNC_READY}

    def _failed(self, index: int, number: int, detail: bytes) -> KnarrError:
        error = told(index, number, detail)
        if error is not None:
            return error
        own, self.plan = self.plan, self._inside
        try:
            return self.failed(index, number, detail)
        finally:
            self.plan = own

    def _setup(self, slots: dict[str, int], stdio: Stdio) -> dict[str, Any]:
        process = self.config["process"]
        size = process.get("consoleSize") or {}
        places = {"console": (frames.SLOT_CONSOLE, 0, ""), "start": (frames.SLOT_START, 0, "")}
        groups = self._inside.cgroup
        if groups is not None:
            places["cgroup"] = (frames.SLOT_DIRECTORY, 0, f"/sys/fs/cgroup{groups.directories[0].path}")
        memory, cpus = resources(self.config)
        return {
            "settings": {
                "kind": self._kind,
                "memory": memory + kinds.overhead(self._kind),
                "cpus": cpus,
                "shares": [list(share) for share in self._shares],
                "initramfs": f"{self._place}/initramfs",
                "found": self._found,
                "drivers": [list(share) for share in kinds.drivers(self._kind, self._found)],
                "filters": f"{dirname(self._place)}/.seccomp",
            },
            "network": self._network(),
            "place": self._place,
            "groups": None if self.plan.cgroup is None else cgroup.intent(self.plan.cgroup),
            "own_mounts": self._own_mounts,
            "own_terminal": self._taken is not None and stdio.console >= 0,
            "keep": max(_LEAST_KEPT, 2 * memory) if self._keep else 0,
            "group": f"/sys/fs/cgroup{groups.directories[0].path}" if groups is not None else "",
            "before_shares": steps.of_cgroup(groups),
            "steps": [
                *steps.of_shares(self._shares, self._kind),
                *steps.of_root(self._found.get("image"), memory // 2),
            ],
            "flush": any(share.writable for share in self._shares),
            "unmount": convert.ROOT if (self._found.get("image") or {}).get("writable") else "",
            "controllers": list(groups.directories[0].controllers) if groups is not None else [],
            "slots": [places[name] for name in self._inside.slots],
            "terminal": bool(process.get("terminal")),
            "size": [size.get("height", 0), size.get("width", 0)],
            "start": "start" in slots,
            "console": stdio.console >= 0 and self._taken is None,
        }


def resources(config: dict[str, Any]) -> tuple[int, int]:
    """Bytes of memory and number of processors that config.json gives the container."""
    limits = (config.get("linux") or {}).get("resources") or {}
    memory = (limits.get("memory") or {}).get("limit") or 0
    cpu = limits.get("cpu") or {}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100000
    return (memory if memory > 0 else _MEMORY), (max(1, -(-quota // period)) if quota > 0 else 1)


def kept(config: dict[str, Any], root: Root) -> bool:
    """Whether what is written to the root is to be there afterwards."""
    asked = (config.get("annotations") or {}).get(WRITES) or "keep"
    if asked not in ("keep", "discard"):
        why = f"{asked!r} is not keep or discard"
        raise SpecError("config.json", [SpecFinding(f"/annotations/{WRITES}", why)])
    readonly = (config.get("root") or {}).get("readonly")
    disk = (config.get("vm") or {}).get("image")  # it is written to itself
    return asked == "keep" and not readonly and not root.scratch and not disk


def host_config(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """config.json for the monitor's cgroup on the host: the same limits with room for what the guest itself takes."""
    linux = dict(config.get("linux") or {})
    limits = dict(linux.get("resources") or {})
    limits.pop("devices", None)
    memory, _ = resources(config)
    asked = dict(limits.get("memory") or {})
    if (asked.get("limit") or 0) > 0:
        asked["limit"] = memory + kinds.overhead(kind) + kinds.beside(kind) + _HOST_OVERHEAD
        if (asked.get("swap") or 0) > 0:
            asked["swap"] = asked["limit"] + max(0, asked["swap"] - memory)
        limits["memory"] = asked
    pids = dict(limits.get("pids") or {})
    if (pids.get("limit") or 0) > 0:
        limits["pids"] = {"limit": pids["limit"] + _HOST_PIDS}
    limits.pop("unified", None)
    linux["resources"] = limits
    return {**config, "linux": linux}


def host_plan(
    config: dict[str, Any],
    host: Host,
    root: Root,
    groups: CgroupPlan | None,
    *,
    wait_start: bool,
    console: bool,
    stands: bool = False,
) -> ContainerPlan:
    """How the monitor starts: in the container's cgroup, its network, and a mount namespace where a root is mounted.

    With ``stands`` the monitor is there already, and this is the process that stands before it.
    An ordinary user's is in the container's user namespace too, if there is one, and shows its ids to the guest.
    """
    linux = config.get("linux") or {}
    spaces = plan_namespaces(linux.get("namespaces") or [], privileged=host.privileged)
    mapped = "user" in spaces.new and host.euid != 0
    enters = stands and mapped  # the user namespace of who waits
    if stands:
        names = ["stand", *(["terminal"] if console else []), *(["space"] if enters else [])]
    else:
        names = ["control", "setup", "plan", "listener"]
        names += (["start"] if wait_start else []) + (["console"] if console else [])
    handed = list(names)
    if groups is not None and groups.clone_into:
        handed.append("cgroup")
    slot = len(handed)
    image_slot, root_slot = slot, slot + 1
    slot += 2
    plan = image_ops(root, image_slot)
    for kind, path, pointer in spaces.joins:
        if kind == "network":
            plan += [
                Op("open_ns", (slot, CLONE_FLAG[kind]), (path,), pointer),
                Op("setns", (slot, CLONE_FLAG[kind]), (), pointer),
            ]
    able = mapped or host.privileged or host.euid == 0
    # A copy of the host's mounts takes time to be made and unmade, and keeps what the host unmounts.
    mounts = mapped or (able and root.kind != "bind")
    flags = CLONE_FLAG["user"] if mapped and not enters else 0
    if enters:
        plan = [Op("setns", (names.index("space"), CLONE_FLAG["user"]), (), "/linux/namespaces"), *plan]
    if mounts:
        flags |= CLONE_FLAG["mount"]
    if able:
        if "network" in spaces.new:
            flags |= CLONE_FLAG["network"]
    elif root.kind != "bind":
        raise Unsupported("a root made of layers", "it takes a user namespace", pointer="/linux/namespaces")
    plan.append(
        Op("clone", (flags, handed.index("cgroup") if "cgroup" in handed else NO_SLOT), (), "/linux/namespaces")
    )
    plan.append(Op("pdeathsig", (9,)))
    if mapped and not enters:
        plan += [
            Op("sync", (ops.SYNC_IDMAP,), (), "/linux/uidMappings"),
            Op("become_root", (0,)),
            Op("pdeathsig", (9,)),
        ]
    plan.append(Op("setsid"))
    if mounts:
        plan += root_ops(root, root_slot, {}, image_slot=image_slot, own_mounts=True, label=None)
        plan.append(Op("close", (root_slot,)))
    if able and "network" in spaces.new:
        plan.append(Op("loopback"))
    plan += [Op("sync", (ops.SYNC_CGROUP,), (), "/linux/cgroupsPath"), Op("sync", (ops.SYNC_READY,))]
    plan.append(Op("pdeathsig", (0,)))
    if stands:
        plan.append(Op("stand", (0, 1 if console else NO_SLOT)))
    else:
        plan += [Op("keep_fd", (handed.index(name), 3 + number)) for number, name in enumerate(names)]
        words = python_command("monitor")
        plan += [
            Op("host_program", (), (words[0],)),
            Op("exec", (len(words),), (*words, "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8")),
        ]
    uid_map, gid_map = own_maps(linux) if mapped and not enters else ((), ())
    return ContainerPlan(
        tuple(plan),
        tuple(handed),
        uid_map,
        gid_map,
        bool(gid_map) and own_id_alone(gid_map, host.egid),
        (),
        groups,
        tuple(
            (kind, n, hook)
            for kind in ("prestart", "createRuntime")
            for n, hook in enumerate((config.get("hooks") or {}).get(kind) or ())
        ),
    )


def begin(
    kind: str,
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
) -> Isolated:
    """As ``runtime.create.begin``, in a guest of this kind. Raises also Unsupported for what the kind cannot honour."""
    check_id(id)
    stdio = io or Stdio()
    from knarr.runtime.probe import probe_for

    host = probe_for(config, host)
    convert.demand(config, kind, preserved=len(stdio.preserve), arch=posix.uname().machine)
    wishes = options or Options()
    mapped = host.euid != 0 and any(
        each["type"] == "user" for each in (config.get("linux") or {}).get("namespaces") or ()
    )
    root = root or Root("bind", rootfs_path(config, bundle))
    if root.apart:
        raise Unsupported(
            "isolation with other ids than the host's", "the guest would not see them", pointer="/linux/uidMappings"
        )
    inside = convert.guestly(config, bundle, _looked_at(config, bundle), mapped=mapped)
    shares = (Share(root.path), *inside.shares)
    guests = guest_host()
    guest_groups = cgroup.plan(inside.config, guests, id)
    inner = plan_container(
        inside.config,
        guests,
        id=id,
        bundle=bundle,
        options=Options(terminal_slot=bool(config["process"].get("terminal")), wait_start=wait_start),
        root=Root("bind", convert.ROOT),
        seccomp=compiled_seccomp(inside.config, guests, state_root),
        cgroup=guest_groups,
    )
    limited = host_config(config, kind)
    groups = cgroup.plan(limited, host, id, rootless=rootless, manager=wishes.cgroup_manager)
    taken = None
    if kinds.templated(kind, config) and (host.privileged or (mapped and groups is None and _usual_maps(config, host))):
        memory, cpus = resources(config)
        taken = template.take(template.Shape(kind, memory + kinds.overhead(kind), cpus), template.folder())
    try:
        found = kinds.find(kind, config) if taken is None else taken.found
        console = stdio.console >= 0
        plan = host_plan(config, host, root, groups, wait_start=wait_start, console=console, stands=taken is not None)
        root_fd = record.open_root(state_root, make=True)
    except BaseException:
        if taken is not None:
            taken.let_go()
        raise
    try:
        made = Isolated(
            id,
            plan,
            host,
            kind=kind,
            inside=inner,
            shares=shares,
            found=found,
            taken=taken,
            own_mounts=root.kind != "bind",
            mapped=mapped,
            place=f"{abspath(state_root)}/{id}",
            keep=kept(config, root),
            bundle=bundle,
            config=config,
            root_fd=root_fd,
            stop=stop,
        )
    except BaseException:
        posix.close(root_fd)
        if taken is not None:
            taken.let_go()
        raise
    made.network = network
    try:
        made.prepare(stdio, raw, wait_start=wait_start, notify="")
    except BaseException as error:
        undo(made, error)
        raise
    return made


def _usual_maps(config: dict[str, Any], host: Host) -> bool:
    """Whether an ordinary user's container has the ids that a keeper of his has."""
    from knarr.kernel.userns import default_map  # cold: reads files of /etc

    usual = default_map(host.euid, host.egid)
    return own_maps(config.get("linux") or {}) == (usual.uids, usual.gids)


def _looked_at(config: dict[str, Any], bundle: str) -> dict[str, bool]:
    """Whether each source of a bind mount is a directory. Raises FileError for one that is missing."""
    found = {}
    for source in convert.sources(config, bundle):
        try:
            found[source] = isdir(source)
            posix.stat(source)
        except OSError as error:
            raise FileError("bind", source, error.errno or 0) from None
    return found


def create(kind: str, *where: Any, deadline: float | None = None, **more: Any) -> Isolated:
    """``begin()`` and block until the container is set up, as ``runtime.create.create``."""
    created = begin(kind, *where, **more)
    set_up(created, deadline)
    return created


def run(kind: str, *where: Any, **more: Any) -> Isolated:
    """``create()`` without waiting for a start, as ``runtime.create.run``."""
    created = create(kind, *where, wait_start=False, **more)
    after_start(created)
    return created

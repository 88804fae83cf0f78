"""The program that is a container's network, from its start to its end (cold).

It is no child of the container and outlives whoever started it, as the container does; it ends with the container's
first process. knarr-init sees to that: it is process 1 of a pid namespace the program is in, waits for that process (its
pidfd), and ends; the kernel then ends all the others. So nothing is left whichever of all these is killed.

An ordinary user's is in the container's user namespace, where it has the rights over the network namespace.
"""

from __future__ import annotations

import os
from errno import EADDRINUSE
from fcntl import F_ADD_SEALS, F_SEAL_GROW, fcntl
from select import POLLIN, poll
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SHUT_WR,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import InUse, KernelError, KnarrError, Unsupported
from knarr.engine.slirp import API
from knarr.kernel.process import process_stat, signal_pid
from knarr.plan import ops
from knarr.plan.namespaces import CLONE_FLAG
from knarr.plan.ops import NO_SLOT, Op
from knarr.runtime.launch import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.bundle.options import Port
    from knarr.engine.networks import UserNetwork

PATIENCE = 10.0
"""Seconds the program may take until all is ready."""
_LOG = 64 << 10
"""Bytes of what the program says that are kept; what comes later is lost, and the program is told so."""
_ANSWER = 64 << 10
_ANY_PORT_TRIES = 20
_LIFE, _READY, _NET, _USER = 0, 1, 2, 3


class Running:
    """The network of one container: ``begin`` when its namespaces are there, ``wait`` before its program runs."""

    def __init__(self, wanted: UserNetwork, ports: Sequence[Port]) -> None:
        self.ports = tuple(ports)
        """As published, once ``wait`` has returned."""
        self._wanted = wanted
        self._launch: Launch | None = None
        self._ready = -1
        self._log = -1

    def begin(self, pid: int, pidfd: int, place: int) -> dict[str, int]:
        """Start the program for the container whose process that is; what ends it, to be recorded.

        ``place`` is a descriptor of a directory for its socket. Raises KnarrError; nothing is left then.
        """
        self.ports = tuple(_free(port) for port in self.ports)
        made: list[int] = []
        try:
            self._ready, told = os.pipe2(os.O_CLOEXEC)
            made.append(told)
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            made.append(null)
            self._log = _bounded_file()
            self._launch = Launch(
                ops.encode(self._plan(pid, os.readlink(f"/proc/self/fd/{place}")), 2),
                [pidfd, told],
                (null, self._log, self._log),
                failed=self._failed,
                on_pid=lambda _: None,
                on_sync=lambda _: b"",
                on_answered=lambda _: None,
                waits=False,
                words=("network",),
            )
            self._launch.run(monotonic() + PATIENCE)
            stat = process_stat(self._launch.pid)
        except OSError as error:
            self.end()
            if isinstance(error, KnarrError):
                raise
            raise KernelError("start", self._wanted.program, error.errno or 0) from None
        except BaseException:
            self.end()
            raise
        finally:
            for fd in made:
                os.close(fd)
        return {"pid": self._launch.pid, "starttime": stat[1] if stat else 0}

    def _plan(self, pid: int, place: str) -> list[Op]:
        words = [word.replace("{pid}", str(pid)) for word in self._with_ports()]
        plan = [Op("open_ns", (_NET, CLONE_FLAG["network"]), (f"/proc/{pid}/ns/net",))]
        if os.geteuid():
            user = CLONE_FLAG["user"]
            plan += [Op("open_ns", (_USER, user), (f"/proc/{pid}/ns/user",)), Op("setns", (_USER, user))]
            plan += [Op("close", (_USER,)), Op("become_root", (0,))]
        plan += [
            Op("clone", (CLONE_FLAG["pid"], NO_SLOT)),
            Op("setsid"),
            Op("host_chdir", (), (place,)),
            Op("no_new_privs"),
            Op("sync", (ops.SYNC_READY,)),
        ]
        if self._wanted.tells:
            plan += [Op("keep_fd", (_READY, 3)), Op("keep_fd", (_NET, 4))]
        ready = NO_SLOT if self._wanted.tells else _READY
        environment = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
        plan.append(Op("attend", (_LIFE, ready, len(words)), (self._wanted.program, *words, *environment)))
        return plan

    def _with_ports(self) -> list[str]:
        """The words, with those of the ports where the program takes them so."""
        return list(self._wanted.argv)

    def _failed(self, index: int, number: int, _: bytes) -> KnarrError:
        return KernelError(f"start {os.path.basename(self._wanted.program)} (step {index})", "", number)

    def wait(self, place: int) -> None:
        """Until all is ready and the ports are published; ``place`` as for ``begin``. Raises KnarrError."""
        if self._ready < 0 or self._launch is None:
            return
        poller = poll()
        poller.register(self._ready, POLLIN)
        late = not poller.poll(PATIENCE * 1000)
        told = b"" if late else os.read(self._ready, 1)
        os.close(self._ready)
        self._ready = -1
        name = os.path.basename(self._wanted.program)
        if not told:
            said = os.pread(self._log, _LOG, 0).rstrip(b"\0").decode("utf-8", "replace").strip().splitlines()
            why = "it took too long" if late else said[-1].strip() if said else "it ended without a word"
            raise Unsupported(f"the network {name}", why)
        if self._wanted.takes:
            try:
                for port in self.ports:
                    self._publish(port, place)
            finally:
                os.unlink(API, dir_fd=place)

    def _publish(self, port: Port, place: int) -> None:
        arguments = {
            "proto": port.protocol,
            "host_addr": port.ip,
            "host_port": port.host,
            "guest_addr": self._wanted.address,
            "guest_port": port.inside,
        }
        answer = b""
        try:
            with socket(AF_UNIX, SOCK_STREAM, 0) as asking:
                asking.settimeout(PATIENCE)
                asking.connect(f"/proc/self/fd/{place}/{API}")
                asking.sendall(fastjson.dumps({"execute": "add_hostfwd", "arguments": arguments}))
                asking.shutdown(SHUT_WR)
                while len(answer) < _ANSWER and (data := asking.recv(4096)):
                    answer += data
            refused = "return" not in fastjson.loads(answer, "slirp4netns's answer")
        except OSError as error:
            if isinstance(error, KnarrError):
                raise
            raise KernelError("publish a port", shown(port), error.errno or 0) from None
        if refused:
            # It was free a moment ago.
            raise InUse("port", shown(port), "another program")

    def end(self) -> None:
        """End it now, and forget it."""
        if self._launch is not None:
            self._launch.kill(PATIENCE)
        self.close()

    def close(self) -> None:
        """Close what is kept for it; it goes on."""
        if self._launch is not None:
            self._launch.close()
            if self._launch.pidfd >= 0:
                os.close(self._launch.pidfd)
            self._launch = None
        for fd in (self._ready, self._log):
            if fd >= 0:
                os.close(fd)
        self._ready = self._log = -1


def shown(port: Port) -> str:
    """A port of this machine as people write it: ``127.0.0.1:8080/tcp``."""
    return f"{f'[{port.ip}]' if ':' in port.ip else port.ip}:{port.host}/{port.protocol}"


def _free(port: Port) -> Port:
    """The port, with a number where any was wanted. Raises InUse, KernelError when it cannot be had."""
    kind = SOCK_STREAM if port.protocol == "tcp" else SOCK_DGRAM
    with socket(AF_INET6 if ":" in port.ip else AF_INET, kind, 0) as trial:
        if port.protocol == "tcp":
            trial.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if ":" in port.ip:
            trial.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        try:
            trial.bind((port.ip, port.host))
        except PermissionError:
            with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
                least = file.read().strip()
            raise Unsupported(f"publishing port {shown(port)}", f"an ordinary user's ports begin at {least}") from None
        except OSError as error:
            if error.errno == EADDRINUSE:
                raise InUse("port", shown(port), "another program") from None
            raise KernelError("publish a port at", shown(port), error.errno or 0) from None
        return port.replace(host=trial.getsockname()[1])


def _bounded_file() -> int:
    """A file in memory that cannot grow: whoever writes more is told that there is no room."""
    fd = os.memfd_create("knarr-network", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, _LOG)
    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)
    return fd

"""The program that is a container's network, from its start to its end (cold).

It is no child of the container and outlives whoever started it, as the container does; it ends with the container's
first process. knarr-init sees to that: it is process 1 of a pid namespace the program is in, waits for that process
(its pidfd), and ends; the kernel then ends all the others. So nothing is left whichever of all these is killed.

An ordinary user's is in the container's user namespace, where it has the rights over the network namespace.
"""

from __future__ import annotations

import os
from fcntl import F_ADD_SEALS, F_SEAL_GROW, fcntl
from select import POLLIN, poll
from socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket
from time import monotonic

from knarr.base import fastjson
from knarr.base.errors import InUse, KernelError, KnarrError, Unsupported
from knarr.engine.ports import shown
from knarr.engine.slirp import API
from knarr.kernel.process import process_stat
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
_LIFE, _READY, _USER = 0, 1, 2


class Running:
    """The network of one container: ``begin`` when its namespaces are there, ``wait`` before its program runs."""

    def __init__(self, wanted: UserNetwork, ports: Sequence[Port]) -> None:
        self._ports = ports
        self._wanted = wanted
        self._launch: Launch | None = None
        self._ready = -1
        self._log = -1

    def begin(self, pid: int, pidfd: int, place: int) -> dict[str, int]:
        """Start the program for the container whose process that is; what ends it, to be recorded.

        ``place`` is a descriptor of a directory for its socket. Raises KnarrError; nothing is left then.
        """
        made: list[int] = []
        try:
            self._ready, told = os.pipe2(os.O_CLOEXEC)
            made.append(told)
            # Handed over open: in its sandbox the program may not look at the container's process any more.
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            made.append(namespace)
            self._log = _bounded_file()
            self._launch = Launch(
                ops.encode(self._plan(pid, os.readlink(f"/proc/self/fd/{place}")), 2),
                [pidfd, told],
                (namespace, self._log, self._log),
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
        words = self._wanted.argv
        plan = []
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
            plan.append(Op("keep_fd", (_READY, 3)))
        ready = NO_SLOT if self._wanted.tells else _READY
        environment = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
        plan.append(Op("attend", (_LIFE, ready, len(words)), (self._wanted.program, *words, *environment)))
        return plan

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
            why = "it took too long" if late else _last_words(os.pread(self._log, _LOG, 0))
            raise Unsupported(f"the network {name}", why)
        if self._wanted.takes:
            try:
                for port in self._ports:
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


def _last_words(said: bytes) -> str:
    """Why a program ended, by what it wrote."""
    lines = [line.strip() for line in said.rstrip(b"\0").decode("utf-8", "replace").splitlines()]
    # pasta, in between, of a machine without a syslog
    kept = [line for line in lines if line and not line.startswith("Failed to send")]
    return kept[-1] if kept else "it ended without a word"


def _bounded_file() -> int:
    """A file in memory that cannot grow: whoever writes more is told that there is no room."""
    fd = os.memfd_create("knarr-network", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, _LOG)
    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)
    return fd

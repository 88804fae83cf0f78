"""The launcher of these tests: starts knarr-init as the runtime does, with a Plan, slots and a control socket."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from knarr.kernel.ffi import syscall
from knarr.plan.ops import NO_SLOT, SYNC_IDMAP, Op, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).resolve().parents[2] / "src" / "knarr" / "init"
PID, SYNC, ERROR = 1, 2, 3
GO, ABORT = 1, 2
FORMAT = 0xFFFFFFFF  # the operation index of an error in the plan itself
TIMEOUT = 20.0
STOP = 99  # a sync code of the tests: look at the process while it waits

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET, NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 14, 1 << 18, 1 << 19, 1 << 20
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
PROC, ROOT = 20, 21  # slots the tests use

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def fenced(*ops: Op, flags: int = 0) -> list[Op]:
    """The operations in a mount namespace of their own; an ordinary user gets a user namespace with it."""
    plan = []
    if os.geteuid() == 0:
        plan = [Op("clone", [NEWNS | flags, NO_SLOT])]
    else:
        plan = [Op("clone", [NEWUSER | NEWNS | flags, NO_SLOT]), Op("sync", [SYNC_IDMAP]), Op("become_root", [0])]
    return [*plan, Op("propagation", [MS_REC | MS_PRIVATE], ["/"]), *ops]


def rooted(path: Path, *ops: Op, flags: int = 0) -> list[Op]:
    """The same, with ``path`` bound as the root in slot ROOT and a stop at the end."""
    return fenced(Op("bind_root", [ROOT], [str(path)]), *ops, Op("sync", [STOP]), flags=flags)


def shell(script: str, *environment: str) -> list[Op]:
    """Become the host's shell."""
    return [Op("find_program", [], ["sh", "/bin:/usr/bin"]), Op("exec", [3], ["sh", "-c", script, *environment])]


class Packet:
    """One packet from the child."""

    def __init__(self, data: bytes) -> None:
        self.type, self.index, self.value, length = struct.unpack_from("<IIiI", data)
        self.detail = data[16:]
        assert length == len(self.detail)

    def __repr__(self) -> str:
        return f"Packet({self.type}, {self.index}, {self.value}, {self.detail!r})"


class Run:
    """A running init: its control socket, its pid, and that of the container's process once known."""

    def __init__(self, pid: int, control: socket.socket, clones: bool) -> None:
        self.pid = pid
        self.clones = clones
        self.child = 0
        self.control = control
        self.packets: list[Packet] = []
        self.statuses: dict[int, int] = {}

    def receive(self) -> Packet | None:
        """The next packet; None at the end of the connection. Maps are written when asked for."""
        data = self.control.recv(1 << 18)
        if not data:
            return None
        packet = Packet(data)
        if packet.type == PID:
            self.child = packet.value
        self.packets.append(packet)
        return packet

    def stop(self, code: int = STOP) -> Run:
        """Answers every SYNC before the one with this code, and leaves the child waiting there."""
        while (packet := self.receive()) is not None:
            assert packet.type != ERROR, packet
            if packet.type == SYNC and packet.value == code:
                while self.clones and not self.child:  # the first stage may be slower than its child
                    assert self.receive() is not None
                return self
            if packet.type == SYNC:
                self.answer(packet)
        raise AssertionError("the connection ended")

    def answer(self, packet: Packet, document: bytes = b"") -> None:
        if packet.value == SYNC_IDMAP:
            while not self.child:
                assert self.receive() is not None
            own = Path(f"/proc/{self.child}")
            (own / "setgroups").write_text("deny")
            (own / "uid_map").write_text(f"0 {os.geteuid()} 1")
            (own / "gid_map").write_text(f"0 {os.getegid()} 1")
        self.go(document)

    def go(self, document: bytes = b"") -> None:
        self.control.send(struct.pack("<II", GO, len(document)) + document)

    def finish(self, document: bytes = b"") -> Run:
        """Answers every SYNC with GO until the connection ends, then waits."""
        while (packet := self.receive()) is not None:
            if packet.type == SYNC:
                self.answer(packet, document)
        return self.wait()

    def wait(self) -> Run:
        for pid in (self.pid, self.child):
            if pid and pid not in self.statuses:
                self.statuses[pid] = os.waitpid(pid, 0)[1]
        return self

    @property
    def process(self) -> int:
        """The process that does the last operation."""
        return self.child or self.pid

    @property
    def root(self) -> Path:
        """The root as the waiting process sees it."""
        return Path(f"/proc/{self.process}/root")

    @property
    def mounts(self) -> dict[str, str]:
        """Mount point -> the rest of its line in mountinfo, the topmost where several are stacked."""
        lines = Path(f"/proc/{self.process}/mountinfo").read_text().splitlines()
        return {line.split()[4]: line.split(None, 5)[5] for line in lines}

    @property
    def code(self) -> int:
        """Exit status of the process that did the last operation; negative: its signal."""
        return os.waitstatus_to_exitcode(self.statuses[self.process])

    @property
    def error(self) -> Packet | None:
        errors = [packet for packet in self.packets if packet.type == ERROR]
        assert len(errors) <= 1
        return errors[0] if errors else None

    def refused(self, index: int, value: int) -> Packet:
        """The ERROR, which must be this one, and the end with status 1."""
        error = self.error
        assert error is not None, f"no error; status {self.code}"
        assert (error.index, os.strerror(error.value)) == (index, os.strerror(value))
        assert self.code == 1
        return error

    def succeeded(self) -> Run:
        assert self.error is None, f"{self.error}: {os.strerror(self.error.value)}"
        assert self.code == 0
        return self

    def close(self) -> None:
        self.control.close()
        for pid in (self.child, self.pid):
            if pid and pid not in self.statuses:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    self.statuses[pid] = os.waitpid(pid, 0)[1]


def sealed(data: bytes, seals: int = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK) -> int:
    """A memfd with these bytes, sealed as the init demands."""
    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Launcher:
    """Starts Plans; everything it started is ended and closed by ``close``."""

    def __init__(self, binary: Path, prefix: Sequence[str] = ()) -> None:
        self.binary = binary
        self.prefix = tuple(prefix)
        self.runs: list[Run] = []

    def start(
        self,
        plan: Sequence[Op] | bytes,
        *,
        slots: Sequence[int] = (),
        stdio: Sequence[int | None] = (None, None, None),
        memfd: int = -1,
        environment: dict[str, str] | None = None,
        extra: Sequence[tuple[int, int]] = (),
    ) -> Run:
        """Start a Plan; ``stdio`` None: /dev/null; ``extra``: further (our descriptor, its number there)."""
        own_plan = memfd < 0
        if own_plan:
            memfd = sealed(plan if isinstance(plan, bytes) else encode(plan, len(slots)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(TIMEOUT)
        null = os.open("/dev/null", os.O_RDWR)
        wanted = [*(null if fd is None else fd for fd in stdio), theirs.fileno(), memfd, *slots]
        numbers = [*range(len(wanted)), *(number for _, number in extra)]
        # dup2 to the final number clears close-on-exec; first all out of the way of each other
        above = max(numbers) + 1
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in [*wanted, *(fd for fd, _ in extra)]]
        argv = [*self.prefix, str(self.binary)]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(high, numbers, strict=True)]
        try:
            pid = os.posix_spawn(argv[0], argv, environment or {}, file_actions=actions)
        finally:
            for fd in [*high, null, *([memfd] if own_plan else [])]:
                os.close(fd)
            theirs.close()
        run = Run(pid, ours, not isinstance(plan, bytes) and any(op.kind == "clone" for op in plan))
        self.runs.append(run)
        return run

    def run(self, plan: Sequence[Op] | bytes, *, document: bytes = b"", slots: Sequence[int] = ()) -> Run:
        """Starts a Plan and sees it through."""
        return self.start(plan, slots=slots).finish(document)

    def output(self, plan: Sequence[Op], *, document: bytes = b"", slots: Sequence[int] = ()) -> str:
        """What a Plan that must succeed wrote to stdout and stderr (little enough for a pipe)."""
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as stream:
            run = self.start(plan, stdio=(None, writer, writer), slots=slots)
            os.close(writer)
            run.finish(document)
            text = stream.read().decode("utf-8", "replace")
        assert run.error is None, f"{run.error}: {os.strerror(run.error.value)} {text}"
        return text

    def close(self) -> None:
        for run in self.runs:
            run.close()


class Exchange:
    """A thread that swaps two names as fast as it can, as a hostile container beside ours would."""

    def __init__(self, one: Path, other: Path) -> None:
        self.names = (os.fsencode(one), os.fsencode(other))
        self.count = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def _loop(self) -> None:
        while not self._end.is_set():
            syscall("renameat2", -100, self.names[0], -100, self.names[1], 2)  # RENAME_EXCHANGE
            self.count += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def compile_init(compiler: str, target: Path) -> Path:
    """Build the program as setup.py does."""
    flags = (SOURCES / "cflags.txt").read_text().split()
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    subprocess.run([compiler, *flags, "-o", str(target), *sources], check=True)
    target.chmod(0o755)
    return target

"""The launcher of these tests: starts knarr-init as the runtime does, with a Plan, slots and a control socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from knarr.plan.ops import Op, encode

SOURCES = Path(__file__).resolve().parents[2] / "src" / "knarr" / "init"
PID, SYNC, ERROR = 1, 2, 3
GO, ABORT = 1, 2
FORMAT = 0xFFFFFFFF
TIMEOUT = 20.0


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

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.child = 0
        self.control = control
        self.packets: list[Packet] = []
        self.statuses: dict[int, int] = {}

    def receive(self) -> Packet | None:
        """The next packet; None at the end of the connection."""
        data = self.control.recv(1 << 18)
        if not data:
            return None
        packet = Packet(data)
        if packet.type == PID:
            self.child = packet.value
        self.packets.append(packet)
        return packet

    def sync(self) -> Packet:
        """The next SYNC, whatever else comes before it."""
        while (packet := self.receive()) is not None:
            if packet.type != PID:
                assert packet.type == SYNC, packet
                return packet
        raise AssertionError("the connection ended")

    def go(self, document: bytes = b"") -> None:
        self.control.send(struct.pack("<II", GO, len(document)) + document)

    def finish(self, document: bytes = b"") -> Run:
        """Answers every SYNC with GO until the connection ends, then waits."""
        while (packet := self.receive()) is not None:
            if packet.type == SYNC:
                self.go(document)
        return self.wait()

    def wait(self) -> Run:
        for pid in (self.pid, self.child):
            if pid and pid not in self.statuses:
                self.statuses[pid] = os.waitpid(pid, 0)[1]
        return self

    @property
    def status(self) -> int:
        """Wait status of the process that did the last operation."""
        return self.statuses[self.child or self.pid]

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)

    @property
    def error(self) -> Packet | None:
        errors = [packet for packet in self.packets if packet.type == ERROR]
        assert len(errors) <= 1
        return errors[0] if errors else None

    def close(self) -> None:
        self.control.close()
        for pid in (self.child, self.pid):
            if pid and pid not in self.statuses:
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.statuses[pid] = os.waitpid(pid, 0)[1]
                except (ProcessLookupError, ChildProcessError):
                    pass


def sealed(data: bytes, seals: int | None = None) -> int:
    """A memfd with these bytes, sealed as the init demands."""
    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK if seals is None else seals)
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
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        plan_fd: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        data = plan if isinstance(plan, bytes) else encode(plan, len(slots))
        memfd = sealed(data) if plan_fd is None else plan_fd
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(TIMEOUT)
        null = os.open("/dev/null", os.O_RDWR)
        # dup2 to the final number clears close-on-exec; first all out of the way of each other
        wanted = [null if fd is None else fd for fd in (stdin, stdout, stderr)] + [theirs.fileno(), memfd, *slots]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5 + len(slots) + 16) for fd in wanted]
        argv = [*self.prefix, str(self.binary)]
        try:
            pid = os.posix_spawn(
                argv[0],
                argv,
                environment or {},
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)],
            )
        finally:
            for fd in [*high, null, *([memfd] if plan_fd is None else [])]:
                os.close(fd)
            theirs.close()
        run = Run(pid, ours)
        self.runs.append(run)
        return run

    def run(self, plan: Sequence[Op] | bytes, *, document: bytes = b"", **how: object) -> Run:
        """Starts a Plan and sees it through."""
        return self.start(plan, **how).finish(document)  # type: ignore[arg-type]

    def output(self, plan: Sequence[Op] | bytes, **how: object) -> tuple[Run, str]:
        """The same, with what it wrote to stdout and stderr (little enough for a pipe)."""
        reader, writer = os.pipe()
        try:
            run = self.start(plan, stdout=writer, stderr=writer, **how)  # type: ignore[arg-type]
            os.close(writer)
            writer = -1
            run.finish()
            with os.fdopen(reader, "rb", closefd=False) as stream:
                text = stream.read().decode("utf-8", "replace")
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        return run, text

    def close(self) -> None:
        for run in self.runs:
            run.close()


def flags() -> list[str]:
    return (SOURCES / "cflags.txt").read_text().split()


def compile_init(compiler: str, target: Path) -> Path:
    subprocess.run(
        [compiler, *flags(), "-o", str(target), *sorted(map(str, SOURCES.glob("*.c")))], check=True, capture_output=True
    )
    return target


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """knarr-init, built from this tree with its own flags."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build knarr-init with")
    folder = tmp_path_factory.mktemp("knarr-init")
    folder.chmod(0o755)
    return compile_init(compiler, folder / "knarr-init")


@pytest.fixture
def launcher(init_binary: Path) -> Iterator[Launcher]:
    made = Launcher(init_binary)
    yield made
    made.close()


@pytest.fixture(scope="session")
def build_init() -> Callable[[str, Path], Path]:
    return compile_init

"""The parent's half of starting a process: spawn knarr-init with a Plan and answer it (hot). docs/init.md.

Safe in a program with many threads: nothing of the calling process changes (working directory, umask, signal
dispositions), descriptors are close-on-exec from birth, and the child is spawned, never a forked interpreter. The
protocol is sans-io: ``Launch.step()`` handles the packets that have come and never blocks on the socket, so a loop
can watch ``Launch.fileno()`` as well as ``Launch.run()`` can.
"""

from __future__ import annotations

import posix
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SHUT_WR,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from errno import EACCES, EBUSY, ECHILD, EINVAL, EPERM
from fcntl import F_ADD_SEALS, F_DUPFD_CLOEXEC, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from select import POLLIN, poll
from sys import byteorder
from time import monotonic

from knarr.base.errors import InitError, Interrupted, KernelError, KnarrError, Unsupported
from knarr.kernel.process import ended, reap, signal_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knarr.plan.ops import Op

PID, SYNC, ERROR = 1, 2, 3
GO, ABORT = 1, 2
SYNC_READY = 4
_PACKET = 16 << 10
_RIGHTS = CMSG_SPACE(4)
DOCUMENT_LIMIT = 128 << 10  # init.h
_SEALS = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
_MFD_NOEXEC_SEAL, _MFD_EXEC = 8, 16  # Linux 6.3
_kept: dict[str, int] = {}


def init_path() -> str:
    """Where the package keeps knarr-init."""
    return f"{__file__.removesuffix('/runtime/launch.py')}/init/knarr-init"


def _memfd(name: str, data: bytes, flag: int, mode: int) -> int:
    """A memfd with ``data``, sealed against every change."""
    common = posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING
    try:
        fd = posix.memfd_create(name, common | flag)
    except OSError as error:
        if error.errno != EINVAL:  # a kernel before 6.3 does not know the flag and needs none
            raise KernelError("memfd_create", name, error.errno or 0) from None
        fd = posix.memfd_create(name, common)
    try:
        view = memoryview(data)
        while view:
            view = view[posix.write(fd, view) :]
        posix.fchmod(fd, mode)
        fcntl(fd, F_ADD_SEALS, _SEALS)
    except OSError as error:
        posix.close(fd)
        raise KernelError("seal", name, error.errno or 0) from None
    return fd


def memfd(name: str, data: bytes) -> int:
    """A memfd with ``data``, sealed against every change, not to be executed. Raises KernelError."""
    return _memfd(name, data, _MFD_NOEXEC_SEAL, 0o400)


def init_memfd() -> int:
    """A descriptor of knarr-init in sealed memory, made once per process (CVE-2019-5736; docs/security.md I5)."""
    fd = _kept.get("init", -1)
    if fd < 0:
        from knarr.base.files import read_file

        try:
            data = read_file(init_path(), 16 << 20)
        except KnarrError as error:
            error.hint = "knarr was not built: install it with pip, or run make build"
            raise
        fd = _memfd("knarr-init", data, _MFD_EXEC, 0o500)
        kept = _kept.setdefault("init", fd)
        if kept != fd:  # another thread was quicker
            posix.close(fd)
            fd = kept
    return fd


def spawn(plan: bytes, slots: Sequence[int], stdio: tuple[int, int, int], *words: str) -> tuple[int, socket]:
    """Start knarr-init on ``plan``; returns its pid (a child to be reaped) and our end of the control socket.

    ``slots`` and ``stdio`` are duplicated, they stay the caller's. ``words`` stand in the list of
    processes until the program runs. Raises KernelError, Unsupported.
    """
    low = 5 + len(slots)
    made: list[int] = []
    ours = theirs = None
    try:
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET, 0)
        made.append(memfd("knarr-plan", plan))
        actions = []
        for target, source in enumerate((*stdio, theirs.fileno(), made[0], *slots)):
            if source < low and source != target:
                # Out of the way of the numbers given out below.
                source = fcntl(source, F_DUPFD_CLOEXEC, low)
                made.append(source)
            # With source == target this clears close-on-exec (POSIX.1-2024, glibc 2.29).
            actions.append((posix.POSIX_SPAWN_DUP2, source, target))
        program = init_memfd()
        if program < low:
            program = fcntl(program, F_DUPFD_CLOEXEC, low)
            made.append(program)
        pid = posix.posix_spawn(f"/proc/self/fd/{program}", ["knarr-init", *words], {}, file_actions=actions)
        kept, ours = ours, None
        return pid, kept
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        if error.errno in (EACCES, EPERM):
            raise Unsupported(
                "running from sealed memory",
                posix.strerror(error.errno).lower(),
                hint="sysctl vm.memfd_noexec must be 0 or 1",
            ) from None
        raise KernelError("start", "knarr-init", error.errno or 0) from None
    finally:
        for fd in made:
            posix.close(fd)
        for end in (ours, theirs):
            if end is not None:
                end.close()


def _header(packet: bytes) -> tuple[int, int, int, int]:
    """Type, operation index, value (signed), length of a packet: docs/init.md. ``struct`` would be a file to load."""
    kind, index, value, length = (packet[at : at + 4] for at in (0, 4, 8, 12))
    signed = int.from_bytes(value, "little", signed=True)
    return int.from_bytes(kind, "little"), int.from_bytes(index, "little"), signed, int.from_bytes(length, "little")


def wait_child(pid: int) -> int:
    """Reap ``pid``; its exit code, or minus the signal. 0 when the program ignores SIGCHLD and the kernel reaped it."""
    try:
        return posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
    except OSError as error:
        if error.errno == ECHILD:
            return 0
        raise


def describe(op: Op) -> tuple[str, str, str]:
    """(kind, pointer, subject) of an operation: enough to explain its failure later."""
    if not op.strs or op.kind in ("seccomp", "user"):
        return op.kind, op.pointer, ""
    text = op.strs[0]
    return op.kind, op.pointer, text if isinstance(text, str) else ""


class Control:
    """A control socket. ``failed(index, errno, detail)`` gives the exception for operation ``index`` that failed.

    ``received``: the descriptor that came with the last packet, -1 for none; closed when the packet was handled.
    ``sending``: descriptors that go along with the next GO, and are closed then. ``unheard``: the connection was closed
    while a packet of ours was not read, so its end does not mean that the program runs.
    """

    __slots__ = ("done", "failed", "received", "sending", "sock", "unheard")

    def __init__(self, sock: socket, failed: Callable[[int, int, bytes], KnarrError]) -> None:
        self.sock = sock
        self.failed = failed
        self.done = False
        self.received = -1
        self.sending: list[int] = []
        self.unheard = False

    def fileno(self) -> int:
        """The descriptor to watch for reading."""
        return self.sock.fileno()

    def step(self) -> bool:
        """Handle every packet that is there; True when all is done. Raises what the child reported, KnarrError."""
        while not self.done:
            try:
                packet, rights, _, _ = self.sock.recvmsg(_PACKET, _RIGHTS, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                self.unheard = True  # told once, and before what the child had to say
                continue
            if not packet:
                self.done = True
                self.ended()
                break
            kind, index, value, length = _header(packet)
            if kind == ERROR:
                self.done = True
                raise self.failed(index, value, packet[16 : 16 + length])
            for level, sort, data in rights:
                if (level, sort) == (SOL_SOCKET, SCM_RIGHTS):
                    self.received = int.from_bytes(data[:4], byteorder)
            try:
                self.handle(kind, value)
            finally:
                if self.received >= 0:
                    posix.close(self.received)
                    self.received = -1
        return True

    def ended(self) -> None:
        """End of file: the program runs. Raises when it cannot."""

    def handle(self, kind: int, value: int) -> None:
        """Handle a packet that is no error."""
        raise InitError("", "understand knarr-init", 0, why=f"it sent a packet of type {kind} ({value})")

    def go(self, document: bytes = b"") -> None:
        """Send GO; a child that died meanwhile shows as end of file. Raises Unsupported for too large a document."""
        if len(document) > DOCUMENT_LIMIT:
            what = f"a state document of {len(document)} bytes for hooks that run in the container"
            raise Unsupported(what, f"at most {DOCUMENT_LIMIT} are passed on", pointer="/annotations")
        packet = GO.to_bytes(4, "little") + len(document).to_bytes(4, "little") + document
        try:
            if self.sending:
                rights = b"".join([fd.to_bytes(4, byteorder) for fd in self.sending])
                self.sock.sendmsg([packet], [(SOL_SOCKET, SCM_RIGHTS, rights)])
            else:
                self.sock.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            self.unheard = True
        except OSError as error:
            raise KernelError("send", "to knarr-init", error.errno or 0) from None
        finally:
            self._drop()

    def _drop(self) -> None:
        while self.sending:
            posix.close(self.sending.pop())

    def run(self, deadline: float | None = None, stop: int = -1) -> None:
        """Block until done, until ``deadline`` (time.monotonic()) or until the descriptor ``stop`` is readable.

        Raises as ``step``, InitError when it took too long, Interrupted when it was stopped.
        """
        poller = poll()
        poller.register(self.fileno(), POLLIN)
        if stop >= 0:
            poller.register(stop, POLLIN)
        while not self.step():
            left = None if deadline is None else max(deadline - monotonic(), 0.0)
            ready = poller.poll(None if left is None else left * 1000)
            if not ready and left is not None and monotonic() >= (deadline or 0.0):
                raise InitError("", "set up the container", 0, why="it took too long")
            if any(fd == stop for fd, _ in ready):
                raise Interrupted("interrupted while the container was set up")

    def close(self) -> None:
        """Close the socket; a child that still waits for an answer ends."""
        self._drop()
        self.sock.close()


class Launch(Control):
    """A Control that spawned its child.

    ``on_pid(pid)`` is called once, when the container's process exists; ``on_sync(code)`` does what the child waits
    for and returns the state document to send along (or b""), ``on_answered(code)`` is called when it was sent. What is
    done before the child asks may be said before it does (``answer``). Done at
    end of file: the program runs, or (``waits``) the init waits for the start and no longer dies with its creator.
    """

    __slots__ = (
        *("answered", "early", "memory", "on_answered", "on_pid", "on_sync"),
        *("pid", "pidfd", "stage", "synced", "waits"),
    )

    def __init__(
        self,
        plan: bytes,
        slots: Sequence[int],
        stdio: tuple[int, int, int],
        *,
        failed: Callable[[int, int, bytes], KnarrError],
        on_pid: Callable[[int], None],
        on_sync: Callable[[int], bytes],
        on_answered: Callable[[int], None],
        waits: bool,
        words: tuple[str, ...] = (),
        memory: str = "",
    ) -> None:
        self.on_pid = on_pid
        self.on_sync = on_sync
        self.on_answered = on_answered
        self.waits = waits
        self.memory = memory  # where config.json limits it
        self.synced = 0
        self.early = 0
        self.answered: list[int] = []
        self.pid = 0
        self.pidfd = -1
        self.stage, sock = spawn(plan, slots, stdio, *words)
        super().__init__(sock, failed)

    def answer(self, code: int) -> None:
        """Say GO to a sync that is still to come, the next one without an answer; descriptors go along as usual."""
        self.answered.append(code)
        self.go()

    def handle(self, kind: int, value: int) -> None:
        if kind == SYNC and self.answered[:1] == [value]:
            self.answered = self.answered[1:]
            return
        if kind == PID and not self.pid:
            self._know(value)
            self.on_pid(value)
            value, self.early = self.early, 0
            if not value:
                return
            kind = SYNC
        if kind != SYNC:
            super().handle(kind, value)
        elif not self.pid:
            self.early = value  # the child was quicker than the first stage with its pid; it waits
        else:
            answer = self.on_sync(value)
            self.synced = value
            self.go(answer)
            self.on_answered(value)

    def _know(self, pid: int) -> None:
        self.pid = pid
        # Our own child, not reaped yet: the number cannot be another's.
        try:
            self.pidfd = posix.pidfd_open(pid)
        except OSError as error:
            raise KernelError("pidfd_open", str(pid), error.errno or 0) from None
        self._reap_stage()

    def _reap_stage(self, patience: float | None = None) -> None:
        """The first stage ends right after it sent the pid; with ``patience`` it is killed should it not."""
        stage, self.stage = self.stage, 0
        if not stage:
            return
        if patience is not None:
            pidfd = posix.pidfd_open(stage)
            if not ended(pidfd, patience):
                signal_pid(pidfd, 9)
            posix.close(pidfd)
        wait_child(stage)

    def ended(self) -> None:
        if self.synced >= SYNC_READY and not self.unheard and not (self.waits and ended(self.pidfd)):
            return
        pointer, why = self._how_it_ended()
        raise InitError(pointer, "set up the container", 0, why=why)

    def _how_it_ended(self) -> tuple[str, str]:
        """Why the child is gone without a word: it was killed. With the field of config.json that may have done it."""
        code: int | None = None
        if self.stage:
            stage, self.stage = self.stage, 0
            status = wait_child(stage)
            code = 128 - status if status < 0 else status
        elif self.pidfd >= 0:
            code = reap(self.pidfd)
        if code is None or code < 128:
            return "", "its init ended without a word" if code is None else f"its init ended with status {code}"
        pointer, hint = {
            137: (self.memory, " (is the memory limit too low?)"),
            159: ("/linux/seccomp", " (the seccomp filter does not let it work)"),
        }.get(code, ("", ""))
        return pointer, f"its init was killed by signal {code - 128}{hint}"

    def kill(self, patience: float) -> None:
        """End the child, whatever it is doing, and reap it; waits ``patience`` seconds for its end at most.

        Raises KernelError when it does not end (the kernel holds it in an uninterruptible wait).
        """
        if not self.pid and self.stage:
            self._late_pid(patience)
        self.close()
        if self.pidfd >= 0 and signal_pid(self.pidfd, 9):
            if not ended(self.pidfd, patience):
                raise KernelError("kill", f"process {self.pid}", EBUSY)
            reap(self.pidfd, wait=False)

    def _late_pid(self, patience: float) -> None:
        """Learn of a child that was made just before things went wrong; without it nobody would reap it."""
        self.sock.shutdown(SHUT_WR)  # whoever waits for an answer ends
        self._reap_stage(patience)
        while not self.pid:
            try:
                packet = self.sock.recv(_PACKET, MSG_DONTWAIT)
            except ConnectionResetError:
                continue  # an answer of ours was not read; what it said comes next
            except OSError:
                return
            if len(packet) < 16:
                return
            kind, _, value, _ = _header(packet)
            if kind == PID:
                self._know(value)

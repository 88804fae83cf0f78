"""The wall around user-mode Linux: what is seen by somebody who stands in its place, and what of a guest reaches the host.

The exerciser (exerciser.c) plays both: a program that has broken out, and a guest's first program.
"""

from __future__ import annotations

import collections
import fcntl
import gc
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import KnarrError
from knarr.isolation import confine, uml
from knarr.isolation.confine import View
from knarr.isolation.initramfs import initramfs
from knarr.isolation.kinds import Share
from knarr.kernel.landlock import landlock_version
from knarr.kernel.process import reap, signal_pid
from knarr.plan.syscalls import numbers
from knarr.runtime.create import Stdio

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="user-mode Linux runs on x86_64 only")

HERE = Path(__file__).parent
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
ENOSYS = "38"
ADDR_NO_RANDOMIZE = 0x40000


@pytest.fixture(scope="module")
def kernel() -> uml.Kernel:
    if shutil.which("linux.uml") is None and "KNARR_UML" not in os.environ:
        pytest.skip("user-mode-linux is not installed")
    if os.geteuid() and subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("neither root nor user namespaces")
    return uml.find(os.environ)


@pytest.fixture(scope="module")
def exerciser() -> Iterator[Path]:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the exerciser")
    folder = Path(tempfile.mkdtemp(prefix="knarr-exerciser-"))
    command = [compiler, "-static", "-O1", "-o", str(folder / "exerciser"), str(HERE / "exerciser.c")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        shutil.rmtree(folder)
        pytest.skip("no static C library for the exerciser")
    yield folder / "exerciser"
    shutil.rmtree(folder)


@pytest.fixture
def work() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-uml-test-"))
    yield folder
    shutil.rmtree(folder)


class Guest:
    """A guest that is launched, and ended with the test."""

    def __init__(self, kernel: uml.Kernel, launched: uml.Launched) -> None:
        self.launched = launched
        self.kernel = kernel
        self.channel = socket.socket(fileno=launched.channel)

    def wait(self, patience: float = 30) -> int:
        """Its exit code."""
        assert select.select([self.launched.pidfd], [], [], patience)[0], f"it hangs: {self.messages()}"
        code = reap(self.launched.pidfd)
        assert code is not None
        return code

    def messages(self) -> str:
        try:
            return os.read(self.launched.console, 65536).decode(errors="replace")
        except BlockingIOError:
            return ""

    def end(self) -> None:
        signal_pid(self.launched.pidfd, signal.SIGKILL)
        reap(self.launched.pidfd)
        self.channel.close()
        os.close(self.launched.console)
        os.close(self.launched.pidfd)


class Starter:
    """Launches guests with the exerciser as their first program."""

    def __init__(self, kernel: uml.Kernel, archive: Path) -> None:
        self.kernel = kernel
        self.archive = archive
        self.guests: list[Guest] = []

    def __call__(self, *words: str, shares: tuple[Share, ...] = ()) -> Guest:
        launched = uml.launch(
            self.kernel,
            initramfs=str(self.archive),
            memory=128 << 20,
            shares=shares,
            words=words,
            deadline=time.monotonic() + 30,
        )
        self.guests.append(Guest(self.kernel, launched))
        return self.guests[-1]


@pytest.fixture
def boot(kernel: uml.Kernel, exerciser: Path, work: Path) -> Iterator[Starter]:
    (work / "initramfs").write_bytes(initramfs(exerciser.read_bytes()))
    starter = Starter(kernel, work / "initramfs")
    yield starter
    for guest in starter.guests:
        guest.end()


def read_all(channel: socket.socket, until: bytes = b"end child", patience: float = 60) -> str:
    channel.settimeout(patience)
    data = b""
    while until not in data:
        part = channel.recv(65536)
        if not part:
            break
        data += part
    return data.decode().replace("\r", "")


def answers(text: str, kind: str) -> dict[str, str]:
    return dict(re.findall(rf"^{kind} (.*) (\d+)$", text, re.MULTILINE))


# -- in the place of user-mode Linux ----------------------------------------------------------------------------------


def break_out(kernel: uml.Kernel, exerciser: Path, work: Path, *, later: bool = False) -> str:
    """What the exerciser says, started exactly as user-mode Linux would be, with shares: a read-only directory, a
    writable one, a file. ``later``: given to it when it runs.
    """
    (work / "ro").mkdir()
    (work / "rw").mkdir()
    (work / "rw" / "absolute").symlink_to("/etc/passwd")
    (work / "rw" / "upward").symlink_to("../../../../../../etc/passwd")
    (work / "initramfs").write_bytes(b"x")
    (work / "file").write_text("alone")
    shares = (Share(str(work / "ro")), Share(str(work / "rw"), writable=True), Share(str(work / "file")))
    wall = uml.confinement(kernel, initramfs=str(work / "initramfs"), memory=64 << 20, shares=None if later else shares)
    views = tuple(
        View(str(exerciser), view.inside, program=True) if view.inside == "/linux" else view for view in wall.views
    )
    ours, theirs = socket.socketpair()
    with open("/dev/null", "rb") as null, ours:
        stdio = Stdio(null.fileno(), 2, 2, preserve=(theirs.fileno(),))
        process = confine.start(wall.replace(views=views), stdio, deadline=time.monotonic() + 30)
        theirs.close()
        try:
            if later:
                uml.show(process.pidfd, shares)
            ours.send(b"!")
            text = read_all(ours)
            assert process.wait() == 0
        finally:
            process.kill()
            process.close()
    return text


def later_calls(kernel: uml.Kernel) -> set[str]:
    """The calls that only later kernels need."""
    return {name for rule in uml.calls(kernel.release) for name in rule["names"]} - {
        name for rule in uml.calls("6.1") for name in rule["names"]
    }


FOREIGN = (
    "mount",
    "unshare",
    "setns",
    "bpf",
    "keyctl",
    "io_uring_setup",
    "userfaultfd",
    "perf_event_open",
    "init_module",
)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("landlock", [True, False])
def test_who_breaks_out_stands_in_an_empty_place(
    kernel: uml.Kernel, exerciser: Path, work: Path, monkeypatch: pytest.MonkeyPatch, *, landlock: bool, later: bool
) -> None:
    if later and os.geteuid():
        pytest.skip("showing more files to a guest that runs takes root")
    if landlock and not landlock_version():
        pytest.skip("this kernel has no Landlock")
    if not landlock:
        monkeypatch.setattr("knarr.kernel.landlock.landlock_version", lambda: 0)
    text = break_out(kernel, exerciser, work, later=later)
    expected = {
        "/linux",
        "/initramfs",
        "/tmp",
        "/dev/null",
        "/dev/random",
        "/proc/cpuinfo",
        "/shares/0",
        "/shares/1",
        "/shares/2/file",
    }
    expected |= {inside for inside, _ in kernel.libraries}
    folders = {str(folder) for path in expected for folder in Path(path).parents} - {"/"}
    there = expected | folders | {"/shares/1/absolute", "/shares/1/upward"}
    # With Landlock the root itself may not be listed.
    assert set(answers(text, "file")) == (set() if landlock else there)
    opened = answers(text, "open")
    assert opened["/tmp/x"] == opened["/shares/1/x"] == "0"
    assert opened["/shares/1/absolute"] == opened["/shares/1/upward"] == "2"  # no such file in there
    assert all(opened[path] in ("13", "30") for path in ("/x", "/initramfs", "/shares/0/x"))  # EACCES, EROFS
    assert set(answers(text, "own").values()) == {"30"}  # EROFS: the nodes below /dev are the host's
    assert answers(text, "kill") == {"others": "3"}  # there is nobody else
    calls = answers(text, "call")
    assert {name: calls[name] for name in FOREIGN} == dict.fromkeys(FOREIGN, ENOSYS)
    assert {name for name, number in calls.items() if number != ENOSYS} <= later_calls(kernel)
    assert set(answers(text, "net").values()) == {ENOSYS}
    assert answers(text, "new") == {"user namespace": ENOSYS}
    assert answers(text, "tty") == {"TIOCSTI": ENOSYS}


def test_without_its_filter_they_would_reach_the_kernel(
    kernel: uml.Kernel, exerciser: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = confine.config_of

    def unfiltered(*args: Any, **named: Any) -> dict[str, Any]:
        config = whole(*args, **named)
        del config["linux"]["seccomp"]
        return config

    monkeypatch.setattr(confine, "config_of", unfiltered)
    text = break_out(kernel, exerciser, work)
    calls = answers(text, "call")
    assert {name for name, number in calls.items() if number == "0"} >= {"memfd_create", "inotify_init1", "prctl"}
    assert answers(text, "kill") == {"others": "3"}  # the other layers stand


def test_landlock_stands_behind_the_mounts(
    kernel: uml.Kernel, exerciser: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not landlock_version():
        pytest.skip("this kernel has no Landlock")
    whole = confine._mount
    monkeypatch.setattr(confine, "_mount", lambda view: whole(view.replace(writable=True)))
    text = break_out(kernel, exerciser, work)
    assert answers(text, "open")["/shares/0/x"] == "13"  # no longer EROFS: the mount is writable now
    assert answers(text, "open")["/shares/1/x"] == "0"


def test_the_process_as_the_host_sees_it(boot: Starter) -> None:
    guest = boot()
    pid = guest.launched.pid
    signal_pid(guest.launched.pidfd, signal.SIGSTOP)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    # A heap at a random place would be up to 1 GiB of memory more for the guest to manage.
    assert int(Path(f"/proc/{pid}/personality").read_text(), 16) == ADDR_NO_RANDOMIZE
    over_files = 0b1_1011  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == over_files
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    for name in NAMESPACES:
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
    devices = Path(f"/proc/{pid}/net/dev").read_text()
    assert re.findall(r"(\w+):", devices) == ["lo"]
    links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert not {link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/tmp"))}
    assert os.sched_getaffinity(pid) < os.sched_getaffinity(0) or os.cpu_count() == 1  # it runs on one processor


# -- a guest -----------------------------------------------------------------------------------------------------------


def test_a_guest_boots_behind_the_wall(boot: Starter) -> None:
    guest = boot()
    text = read_all(guest.channel)
    assert guest.wait() == 0, guest.messages()
    calls = answers(text, "call")
    # The guest's own kernel does them: the exerciser is root of a Linux of its own.
    assert {calls[name] for name in ("unshare", "keyctl", "io_uring_setup", "userfaultfd", "memfd_create")} == {"0"}
    assert answers(text, "end") == {"child": "7"}


class Tracer(threading.Thread):
    """Is asked about every system call of a process tree (seccomp_unotify(2)), counts it, lets it go on."""

    RECEIVE, ANSWER, CONTINUE = 0xC0502100, 0xC0182101, 1

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.seen: collections.Counter[tuple[int, str]] = collections.Counter()
        self.names = {row[0]: name for name, row in numbers().items() if row[0] >= 0}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(1)
        self._server.settimeout(30)

    def run(self) -> None:
        with self._server:
            connection, _ = self._server.accept()
        with connection:
            _, (fd,), _, _ = socket.recv_fds(connection, 65536, 1)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while not any(event & select.POLLHUP for _, event in poller.poll(30_000)):
            self.answer(fd)
        os.close(fd)

    def answer(self, fd: int) -> None:
        asked = bytearray(80)
        try:
            fcntl.ioctl(fd, self.RECEIVE, asked)
            number, pid, _, call = struct.unpack_from("=QIIi", asked)
            self.seen[pid, self.names.get(call, str(call))] += 1
            fcntl.ioctl(fd, self.ANSWER, struct.pack("=QqiI", number, 0, 0, self.CONTINUE))
        except FileNotFoundError:
            pass  # killed meanwhile


def traced_by(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the filter: ask about every call (but write, with which the init itself would wait for the answer)."""
    whole = confine.config_of
    names = sorted(set(numbers()) - {"write"})

    def config_of(*args: Any, **named: Any) -> dict[str, Any]:
        config = whole(*args, **named)
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "listenerPath": path,
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        }
        return config

    monkeypatch.setattr(confine, "config_of", config_of)


def test_no_system_call_of_the_workload_reaches_the_host(
    boot: Starter, kernel: uml.Kernel, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced_by(str(work / "listener"), monkeypatch)
    tracer = Tracer(str(work / "listener"))
    tracer.start()
    guest = boot()
    main = guest.launched.pid
    text = read_all(guest.channel)
    assert guest.wait() == 0
    tracer.join(30)
    made = set(answers(text, "call"))
    assert len(made) > 50
    seen = {name for _, name in tracer.seen}
    assert {"ptrace", "wait4", "mmap", "execve"} <= seen  # it does see what user-mode Linux does
    allowed = {name for rule in uml.calls(kernel.release) for name in rule["names"]}
    if "memfd_create" in allowed:  # a later kernel has threads: a C library tries clone3, and does without
        seen.discard("clone3")
    assert seen <= allowed, "the filter lacks what user-mode Linux needs"
    # Of the workload's own calls none is seen: neither those the filter would refuse,
    assert not seen & (made - allowed)
    # nor, from the processes that run it, any but the ones by which user-mode Linux arranges their memory.
    by_stubs = {name for pid, name in tracer.seen if pid != main}
    assert by_stubs <= STUBS | later_calls(kernel), "a process of the guest made a call on the host"


STUBS = {
    *("mmap", "munmap", "mprotect", "rt_sigaction", "rt_sigprocmask", "sigaltstack", "modify_ldt", "ptrace", "kill"),
    *("getpid", "getppid", "clone", "set_robust_list", "setitimer", "timer_settime", "arch_prctl", "rt_sigreturn"),
    # threads of user-mode Linux's own, for block devices and signals
    *("poll", "ppoll", "read", "exit_group", "exit", "epoll_wait", "rseq"),
}


def test_the_tracer_sees_a_process_that_makes_them(
    kernel: uml.Kernel, exerciser: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The guard of the test above: the same program without a kernel of its own is seen, call by call.
    traced_by(str(work / "listener"), monkeypatch)
    tracer = Tracer(str(work / "listener"))
    tracer.start()
    text = break_out(kernel, exerciser, work)
    tracer.join(30)
    seen = {name for _, name in tracer.seen}
    assert set(answers(text, "call")) <= seen


def test_nothing_is_left_when_it_is_killed(boot: Starter) -> None:
    mounts = own_mounts()
    guest = boot("rdinit=/nothing", "root=/dev/nowhere", "rootwait")
    space = os.readlink(f"/proc/{guest.launched.pid}/ns/pid")
    deadline = time.monotonic() + 20
    while len(processes_in(space)) < 2:  # a stub
        assert time.monotonic() < deadline
    signal_pid(guest.launched.pidfd, signal.SIGKILL)
    assert guest.wait() == 128 + signal.SIGKILL
    assert not processes_in(space)
    assert own_mounts() <= mounts


def own_mounts() -> set[str]:
    """Mount points but those of the tests that run beside this one."""
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {
        point for point in points if not point.startswith(f"{tempfile.gettempdir()}/knarr-") and "/pytest-" not in point
    }


def processes_in(space: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") == space:
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_it_dies_with_whoever_started_it(boot: Starter) -> None:
    ready, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            guest = boot("rdinit=/nothing", "root=/dev/nowhere", "rootwait")
            os.write(tell, f"{guest.launched.pid} ".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    pid = int(os.read(ready, 20))
    os.close(ready)
    pidfd = os.pidfd_open(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([pidfd], [], [], 5)[0], "user-mode Linux outlived its monitor"
    os.close(pidfd)


def test_a_guest_that_panics_ends_with_its_last_words(boot: Starter) -> None:
    guest = boot("rdinit=/nothing", "root=/dev/nowhere")
    assert guest.wait() == 127
    if not later_calls(guest.kernel):  # from Linux 6.10 on it ends before it has said why
        assert "Kernel panic - not syncing" in guest.messages()


def test_a_failed_start_leaves_nothing(boot: Starter, work: Path) -> None:
    gc.collect()  # what earlier tests left to it would be closed at any moment in between
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KnarrError, match="no such file"):
        boot(shares=(Share(str(work / "gone")),))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_landlock_rules() -> None:
    views = [View("/a", "/x", program=True), View("/b", "/y", writable=True), View("/dev/null", "/n", device=True)]
    assert confine.landlock_rules(views, 7) == {
        "abi": 5,
        "paths": [
            {"path": "/tmp", "access": ["read", "write", "execute"]},
            {"path": "/x", "access": ["read", "execute"]},
            {"path": "/y", "access": ["read", "write"]},
            {"path": "/n", "access": ["read_file", "write_file", "ioctl_dev"]},
        ],
        "ports": [],
        "scopes": ["abstract-unix-socket", "signal"],
    }
    assert confine.landlock_rules(views[2:], 1) == {
        "abi": 1,
        "paths": [
            {"path": "/tmp", "access": ["read", "write", "execute"]},
            {"path": "/n", "access": ["read_file", "write_file"]},
        ],
    }

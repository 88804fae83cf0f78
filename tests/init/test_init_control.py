"""The conversation with the runtime: SYNC, GO and ABORT, waiting for start, signals meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from initlaunch import ABORT, ERROR, GO, NEWPID, SYNC, Launcher, Run, fenced, shell

from knarr.plan.ops import MAX_SENT, Op


def packet(kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if length is None else length) + data


def test_sync_carries_code_and_index(launcher: Launcher) -> None:
    run = launcher.start([Op("umask", [0]), Op("sync", [4]), Op("sync", [0xFFFFFFFF])])
    for index, value in ((1, 4), (2, -1)):
        got = run.receive()
        assert got is not None
        assert (got.type, got.index, got.value, got.detail) == (SYNC, index, value, b"")
        run.go()
    assert run.receive() is None
    run.wait().succeeded()


def test_abort_ends_quietly(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [1]), *shell("echo no")]).stop(1)
    run.control.send(packet(ABORT))
    assert run.receive() is None
    run.wait()
    assert (run.code, run.error) == (1, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"\1",
        packet(GO)[:7],
        packet(GO, b"x", 2),
        packet(GO, b"xy", 1),
        packet(3),
        packet(0),
        packet(GO, bytes(128 * 1024 + 1)),
        packet(GO, bytes(128 * 1024 + 1), 128 * 1024),  # what would fit is not taken for the whole
        packet(0xFFFFFFFF, b"abc"),
    ],
)
def test_malformed_answers(launcher: Launcher, answer: bytes) -> None:
    run = launcher.start([Op("sync", [1])]).stop(1)
    run.control.send(answer)
    got = run.receive()
    assert got is not None
    assert (got.type, got.index, got.value) == (ERROR, 0, errno.EPROTO)
    run.wait()
    assert run.code == 1


def test_the_longest_document(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [1])]).stop(1)
    run.go(b"d" * 128 * 1024)
    run.finish().succeeded()


def test_descriptors_in_an_answer_come_into_slots(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [1, 7, 3]), Op("close", [7]), Op("sync", [2])]).stop(1)
    files = [os.open(path, os.O_RDONLY) for path in ("/usr", "/etc")]
    socket.send_fds(run.control, [packet(GO)], files)
    for fd in files:
        os.close(fd)
    run.stop(2)
    links = {os.readlink(entry) for entry in Path(f"/proc/{run.pid}/fd").iterdir()}
    assert "/etc" in links
    assert "/usr" not in links
    (number,) = [entry.name for entry in Path(f"/proc/{run.pid}/fd").iterdir() if os.readlink(entry) == "/etc"]
    flags = Path(f"/proc/{run.pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
    assert int(flags, 8) & os.O_CLOEXEC
    run.go()
    run.finish().succeeded()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_descriptors_than_asked_for(launcher: Launcher, count: int) -> None:
    run = launcher.start([Op("sync", [1, 7, 3])]).stop(1)
    socket.send_fds(run.control, [packet(GO)], [0] * count)
    got = run.receive()
    assert got is not None
    assert (got.type, got.index, got.value) == (ERROR, 0, errno.EPROTO)
    run.wait()


def test_more_descriptors_than_an_answer_brings(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [1, *range(MAX_SENT + 1)])]).stop(1)
    got = run.receive()
    assert got is not None
    assert (got.type, got.value) == (ERROR, errno.EINVAL)
    run.wait()
    run = launcher.start([Op("sync", [1, *range(MAX_SENT)]), Op("sync", [2])]).stop(1)
    socket.send_fds(run.control, [packet(GO)], [0] * MAX_SENT)
    run.stop(2).go()
    run.finish().succeeded()


def test_descriptors_in_an_answer_are_not_kept(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [1]), Op("sync", [2])]).stop(1)
    fd = os.open("/", os.O_RDONLY)
    socket.send_fds(run.control, [packet(GO)], [fd])
    os.close(fd)
    run.stop(2)
    assert {entry.name for entry in Path(f"/proc/{run.pid}/fd").iterdir()} == {"0", "1", "2", "3"}
    run.go()
    run.finish().succeeded()


# -- waiting for start --------------------------------------------------------------------------------------------


class Created:
    """A process that waits for start."""

    def __init__(self, launcher: Launcher, path: Path, *then: Op, flags: int = 0) -> None:
        self.path = str(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        listener.bind(self.path)
        listener.listen(8)
        plan = [Op("wait_start", [0]), *then]
        if flags:
            plan = fenced(*plan, flags=flags)
        self.run: Run = launcher.start(plan, slots=[listener.fileno()])
        listener.close()
        while (got := self.run.receive()) is not None:  # until the init has let go of its creator
            assert got.type != ERROR
            if got.type == SYNC:
                self.run.answer(got)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(20)
        connection.connect(self.path)
        return connection


def test_start(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", *shell("exit 5"))
    fds = {os.readlink(entry) for entry in Path(f"/proc/{created.run.pid}/fd").iterdir()}
    assert len(fds) == 2  # /dev/null and the listening socket
    with created.connect() as connection:
        connection.send(packet(GO))
        assert connection.recv(100) == b""  # close-on-exec: the program runs
    created.run.wait()
    assert created.run.code == 5


def test_start_hears_of_errors(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", Op("sync", [9]), Op("find_program", [], ["none", "/bin"]))
    with created.connect() as connection:
        connection.send(packet(GO))
        assert struct.unpack_from("<IIi", connection.recv(100)) == (SYNC, 1, 9)
        connection.send(packet(GO))
        assert struct.unpack_from("<IIi", connection.recv(100)) == (ERROR, 2, errno.ENOENT)
        assert connection.recv(100) == b""
    created.run.wait()
    assert created.run.code == 1


def test_a_start_that_is_killed_leaves_the_container_created(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", *shell("exit 6"))
    created.connect().close()
    with created.connect() as connection:
        connection.send(b"nonsense that is no packet")
    with created.connect() as connection:
        connection.send(packet(7))
    assert os.waitpid(created.run.pid, os.WNOHANG) == (0, 0)
    with created.connect() as connection:
        connection.send(packet(GO))
        assert connection.recv(100) == b""
    created.run.wait()
    assert created.run.code == 6


def test_only_one_start_wins(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", Op("sync", [1]))
    with created.connect() as first, created.connect() as second:
        second.send(packet(GO))
        first.send(packet(GO))
        assert len(first.recv(100)) == 16
        with pytest.raises(ConnectionResetError):
            second.recv(100)
        first.send(packet(GO))
        assert first.recv(100) == b""
    created.run.wait().succeeded()


def test_abort_instead_of_start(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", *shell("exit 6"))
    with created.connect() as connection:
        connection.send(packet(ABORT))
    created.run.wait()
    assert created.run.code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("flags", [0, NEWPID])
@pytest.mark.usefixtures("namespaces")
def test_signals_while_waiting(launcher: Launcher, tmp_path: Path, number: signal.Signals, flags: int) -> None:
    created = Created(launcher, tmp_path / "s", *shell("exit 6"), flags=flags)
    wait_for_sleep(created.run.process)
    os.kill(created.run.process, number)
    created.run.wait()
    assert created.run.code == 128 + number


@pytest.mark.usefixtures("namespaces")
def test_other_signals_do_not_end_pid_1(launcher: Launcher, tmp_path: Path) -> None:
    created = Created(launcher, tmp_path / "s", *shell("exit 6"), flags=NEWPID)
    for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGCHLD, signal.SIGALRM, signal.SIGSTOP, signal.SIGCONT):
        os.kill(created.run.child, number)
    with created.connect() as connection:
        connection.send(packet(GO))
        assert connection.recv(100) == b""
    created.run.wait()
    assert created.run.code == 6


def test_handlers_do_not_reach_the_program(launcher: Launcher, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    run = launcher.start(
        [Op("wait_start", [0]), *shell("cat /proc/self/status")], slots=[listener.fileno()], stdio=(None, writer, None)
    )
    os.close(writer)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(tmp_path / "s"))
    connection.send(packet(GO))
    run.finish().succeeded()
    connection.close()
    listener.close()
    with os.fdopen(reader) as stream:
        text = stream.read()
    assert "SigCgt:\t0000000000000000" in text
    assert "SigIgn:\t0000000000000000" in text


def test_wait_start_on_what_does_not_listen(launcher: Launcher) -> None:
    launcher.run([Op("wait_start", [0])]).refused(0, errno.EBADF)
    fd = os.open("/dev/null", os.O_RDONLY)
    launcher.run([Op("wait_start", [0])], slots=[fd]).refused(0, errno.ENOTSOCK)
    os.close(fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as idle:
        launcher.run([Op("wait_start", [0])], slots=[idle.fileno()]).refused(0, errno.EINVAL)


def test_a_waiting_process_costs_little_and_does_nothing(launcher: Launcher, tmp_path: Path) -> None:
    filler = [Op("sync", [1]) for _ in range(3)] + [Op("hook", [0, 1], ["/x", "y" * 4000])]
    created = Created(launcher, tmp_path / "s", *filler)
    wait_for_sleep(created.run.pid)
    lines = Path(f"/proc/{created.run.pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    assert sizes["Private_Clean"] + sizes["Private_Dirty"] <= 100, sizes  # kB, its text included
    before = switches(created.run.pid)
    time.sleep(0.3)
    assert switches(created.run.pid) == before
    os.kill(created.run.pid, signal.SIGTERM)
    created.run.wait()


def switches(pid: int) -> str:
    """How often the process has gone to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("voluntary_ctxt_switches"))


def wait_for_sleep(pid: int) -> None:
    """Until the process waits in accept; its handlers are set before."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        caught = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
        if fields[0] == "S" and int(caught.split()[1], 16) != 0:
            return
        time.sleep(0.005)
    raise AssertionError("it does not wait")

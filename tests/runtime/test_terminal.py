"""Terminals: the master over a console socket, in the foreground through a pty of our own, sizes, owners."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import select
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING

import pytest
from blackbox import Bundle, Runtime, end, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]


class Console:
    """A listener as containerd's shim and conmon are one: takes the master's descriptor from one connection."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.server = socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_PATH)
        self.server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        self.server.listen()
        self.server.settimeout(10)
        self.fd = -1

    def receive(self) -> tuple[bytes, int]:
        connection, _ = self.server.accept()
        with connection:
            connection.settimeout(10)
            data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        fds = array.array("i")
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(content[: len(content) // 4 * 4])
        assert len(fds) == 1
        self.fd = fds[0]
        return data, self.fd

    def read_until(self, text: bytes, seconds: float = 10) -> bytes:
        return read_until(self.fd, text, seconds)

    def close(self) -> None:
        self.server.close()
        unread.pop(self.fd, None)
        if self.fd >= 0:
            os.close(self.fd)


unread: dict[int, bytes] = {}


def read_until(fd: int, text: bytes, seconds: float = 10) -> bytes:
    """Read until ``text`` came; what follows it is kept for the next call."""
    said, deadline = unread.pop(fd, b""), time.monotonic() + seconds
    while text not in said:
        left = deadline - time.monotonic()
        assert left > 0, said
        if select.select([fd], [], [], left)[0]:
            try:
                part = os.read(fd, 4096)
            except OSError:
                part = b""
            assert part, f"end of file after {said!r}"
            said += part
    before, found, unread[fd] = said.partition(text)
    return before + found


@pytest.mark.parametrize("depth", [0, 30], ids=["short", "longer than an address"])
def test_the_master_comes_over_the_console_socket(depth: int, runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    if depth and runtime.name != "knarr":
        pytest.skip("runc 1.1 and crun 1.8 take paths of at most 107 bytes")
    folder = tmp_path.joinpath(*["sub"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(folder / "console")
    try:
        id = runtime.new_id()
        script = (
            'tty; stat -c "%u %a" /dev/console; test -t 0 && test -t 1 && test -t 2 && echo all; read x; echo "got $x"'
        )
        path = bundle.write("sh", "-c", script, terminal=True)
        runtime.ok("create", "--bundle", path, "--console-socket", console.path, id)
        data, master = console.receive()
        assert data  # runc sends a name; conmon and containerd want at least one byte
        assert os.isatty(master)
        runtime.ok("start", id)
        said = console.read_until(b"all")
        assert b"/dev/pts/0" in said or b"/dev/console" in said
        os.write(master, b"hello\n")
        console.read_until(b"got hello")
        runtime.wait_for(id, "stopped")
    finally:
        console.close()


def test_a_terminal_belongs_to_its_user_and_has_its_size(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    console = Console(tmp_path / "c")
    try:
        id = runtime.new_id()
        path = bundle.write(
            "sh",
            "-c",
            "stty size; stat -c 'owner %u' /dev/pts/0; echo end",
            terminal=True,
            user={"uid": 1000, "gid": 1000},
            consoleSize={"height": 33, "width": 111},
        )
        runtime.ok("run", "--detach", "--bundle", path, "--console-socket", console.path, id)
        console.receive()
        said = console.read_until(b"end")
        assert b"33 111" in said
        assert b"owner 1000" in said
    finally:
        console.close()


@pytest.mark.parametrize(
    ("words", "terminal"),
    [
        (["create"], True),
        (["run", "--detach"], True),
        (["create", "--console-socket", "SOCKET"], False),
        (["create", "--console-socket", "/no/such/socket"], True),
        (["create", "--console-socket", "FILE"], True),
        (["create", "--console-socket", "DEAF"], True),
    ],
)
def test_terminal_and_socket_that_do_not_fit(
    words: list[str], terminal: bool, runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    if runtime.name == "crun" and not terminal:
        pytest.skip("crun 1.8 ignores a console socket without a terminal")
    console = Console(tmp_path / "c")
    (tmp_path / "file").write_text("")
    deaf = Console(tmp_path / "deaf")
    deaf.server.close()
    places = {"SOCKET": console.path, "FILE": str(tmp_path / "file"), "DEAF": deaf.path}
    try:
        id = runtime.new_id()
        path = bundle.write("true", terminal=terminal)
        done = runtime(*[places.get(word, word) for word in words], "--bundle", path, id)
        assert done.returncode == 1
        assert done.stderr.strip()
        assert left_behind(runtime, id) == []
    finally:
        console.close()


def spawn_in_terminal(command: list[str], rows: int, columns: int) -> tuple[int, int]:
    """Start a command with a terminal of its own; (pid, master)."""
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.execvp(command[0], command)
    return pid, master


def test_run_in_the_foreground_is_the_users_terminal(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("our wrapper for crun stands between")
    id = runtime.new_id()
    # runc gives the terminal its size a little after the start
    script = (
        'sleep 0.5; stty size; read x; echo "<$x>"; trap "stty size" WINCH; echo ready; while :; do sleep 0.1; done'
    )
    path = bundle.write("sh", "-c", script, terminal=True)
    pid, master = spawn_in_terminal([*runtime.command, "run", "--bundle", path, id], 44, 99)
    try:
        read_until(master, b"44 99")
        before = termios.tcgetattr(master)
        os.write(master, b"typed\r")
        read_until(master, b"<typed>")
        read_until(master, b"ready")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
        read_until(master, b"20 70")
        assert not before[3] & termios.ICANON  # raw: the container's terminal does the echo
        os.write(master, b"\x03")  # Ctrl-C goes to the program inside
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in {0, 130}
        assert termios.tcgetattr(master)[3] & termios.ICANON
    finally:
        unread.pop(master, None)
        os.close(master)
    assert left_behind(runtime, id) == []


def test_output_until_the_very_end_arrives(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    path = bundle.write("sh", "-c", "dd if=/dev/zero bs=1000 count=200 2>/dev/null; echo the end", terminal=True)
    with ours.popen("run", "--bundle", path, id, stdin=-3, stdout=-1) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.read()
            assert process.wait(timeout=10) == 0
        finally:
            end(process)
    assert said.count(b"\0") == 200_000
    assert said.endswith(b"the end\r\n")


def test_a_socket_that_is_connected_but_never_read(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """The listener accepts by its backlog and then never reads: the message lies in its buffer, we are done."""
    console = Console(tmp_path / "c")
    try:
        id = ours.new_id()
        ours.ok(
            "create", "--bundle", bundle.write("true", terminal=True), "--console-socket", console.path, id, timeout=20
        )
        ours.ok("delete", "--force", id)
    finally:
        console.close()
    assert left_behind(ours, id) == []

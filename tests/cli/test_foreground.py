"""``knarr run -it`` on a real terminal: raw mode, size, restored settings."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginekit import Person


class Terminal:
    """A program on a terminal of ours."""

    def __init__(self, person: Person, *words: str, rows: int = 33, columns: int = 77) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave

        self.process = subprocess.Popen(
            ["setsid", "--ctty", *person.command(*words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**person.environment, "TERM": "xterm"},
            cwd=person.folder,
        )
        self.seen = b""

    def expect(self, text: bytes, timeout: float = 20) -> None:
        """Read until ``text`` came."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break
        assert text in self.seen, self.seen

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def end(self) -> int:
        """The exit code, once it ended; what it still wrote is read."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        code = self.process.wait(5)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was not restored"
        os.close(self.slave)
        os.close(self.master)
        return code


def test_shell_on_a_terminal(person: Person, image: str) -> None:
    terminal = Terminal(person, "run", "--rm", "-it", image, "sh")
    terminal.type(b"tty; stty size; echo T=$TERM; echo done-$((40+2))\n")
    terminal.expect(b"done-42")
    assert b"/dev/pts/0" in terminal.seen
    assert b"33 77" in terminal.seen
    assert b"T=xterm" in terminal.seen
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
    os.kill(terminal.process.pid, signal.SIGWINCH)
    time.sleep(0.3)
    terminal.type(b"stty size; echo again-$((1+1))\n")
    terminal.expect(b"again-2")
    assert b"20 50" in terminal.seen
    terminal.type(b"sleep 50\n")
    time.sleep(0.5)
    terminal.type(b"\x03")  # the terminal inside makes a SIGINT of it: sleep ends, the shell stays
    terminal.type(b"echo still-$((2+2))\n")
    terminal.expect(b"still-4")
    terminal.type(b"exit 6\n")
    assert terminal.end() == 6


def test_exec_on_a_terminal(person: Person, image: str) -> None:
    run = person.start("run", "--rm", "--name", "box", image, "sleep", "1000")
    deadline = time.monotonic() + 20
    while b"box" not in person.knarr("ps", "--format", "{{.Name}}").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    terminal = Terminal(person, "exec", "-it", "box", "sh")
    terminal.type(b"tty; stty size; exit 3\n")
    terminal.expect(b"33 77")
    assert terminal.end() == 3
    assert person.knarr("rm", "-f", "box").returncode == 0
    run.communicate(timeout=20)


def test_without_t_the_program_gets_no_terminal(person: Person, image: str) -> None:
    terminal = Terminal(person, "run", "--rm", "-i", image, "sh", "-c", "test -t 1 || echo no-terminal; cat")
    terminal.expect(b"no-terminal")
    terminal.type(b"line\n")
    terminal.expect(b"line\r\nline\r\n")
    terminal.type(b"\x04")
    assert terminal.end() == 0


def test_ctrl_c_on_a_terminal_ends_a_container(person: Person, image: str) -> None:
    terminal = Terminal(person, "run", "--rm", image, "sh", "-c", "echo up; exec sleep 100")
    terminal.expect(b"up")
    time.sleep(0.5)  # until the shell has become sleep: a signal between its own handler and the exec is lost
    terminal.type(b"\x03")
    assert terminal.end() == 130


def test_t_needs_a_terminal(me: Person, image: str) -> None:
    done = me.knarr("run", "-it", image, "true", input=b"")
    assert done.returncode == 125
    assert b"wants a terminal" in done.stderr
    assert me.knarr("run", "--rm", "-t", image, "sh", "-c", "test -t 1 && echo yes").stdout == b"yes\r\n"


def test_progress_is_shown_on_a_terminal_only(me: Person, image: str) -> None:
    terminal = Terminal(me, "pull", image)
    terminal.expect(b"sha256:")
    assert terminal.end() == 0
    assert b"copy" in terminal.seen
    assert me.knarr("pull", image).stderr == b""

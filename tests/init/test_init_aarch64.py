"""knarr-init for aarch64: cross-compiled, and what qemu's user emulation can carry out of it.

The emulation knows neither clone3 nor openat2, open_tree, fsopen or mount_setattr, and of clone's flags only those of
fork and threads: namespaces, mounts, paths and hooks wait for a real machine.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from initlaunch import FORMAT, Launcher, compile_init
from test_init_plan import check_program

from knarr.plan.ops import Op

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPILER = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="aarch64-linux-gnu-gcc is not installed"),
    pytest.mark.skipif(os.uname().machine == "aarch64", reason="the other tests ran on aarch64"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    return compile_init(COMPILER, tmp_path_factory.mktemp("aarch64") / "knarr-init")


@pytest.fixture
def emulated(program: Path) -> Iterator[Launcher]:
    if QEMU is None:
        pytest.skip("qemu-aarch64-static is not installed")
    launcher = Launcher(program, [QEMU])
    yield launcher
    launcher.close()


def test_it_is_built(program: Path) -> None:
    check_program(program)
    assert program.read_bytes()[18:20] == b"\xb7\0"  # EM_AARCH64


def test_decoder_and_conversation(emulated: Launcher) -> None:
    emulated.run(b"KNARRPL1" + bytes(16)).refused(FORMAT, errno.EPROTO)
    run = emulated.start([Op("umask", [0o22]), Op("sync", [3])]).stop(3)
    run.go(b"state")
    run.finish().succeeded()
    emulated.run([Op("setns", [3, 0])]).refused(0, errno.EBADF)


def test_process_operations_and_exec(emulated: Launcher, tmp_path: Path) -> None:
    plan = [
        Op("setsid"),
        Op("umask", [0o27]),
        Op("no_new_privs"),
        Op("cwd", [0], [str(tmp_path)]),
        Op("find_program", [], ["sh", "/nowhere:/bin"]),
        Op("exec", [3], ["sh", "-c", "umask; pwd; echo $WORD", "WORD=said"]),
    ]
    assert emulated.output(plan) == f"0027\n{tmp_path}\nsaid\n"
    error = emulated.run([Op("find_program", [], ["/etc/passwd", ""])]).refused(0, errno.EACCES)
    assert b"/etc/passwd\0" in error.detail


def test_a_signal_handler_is_entered(emulated: Launcher, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        run = emulated.start([Op("wait_start", [0])], slots=[listener.fileno()])
        assert run.receive() is None
        os.kill(run.pid, signal.SIGTERM)
        run.wait()
    assert run.code == 128 + signal.SIGTERM

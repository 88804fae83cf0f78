"""The init's terminal and standard streams (I3)."""

from __future__ import annotations

import array
import errno
import os
import pty
import shutil
import socket
import stat
import struct
import termios
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest
from initlaunch import NEWPID, ROOT, ROOT_ONLY, SYNC, Launcher, Run, fenced, shell

from knarr.plan.ops import CONSOLE_BIND, CREATE_DIR, CREATE_FILE, NO_SLOT, Op

pytestmark = pytest.mark.usefixtures("namespaces")

OWN = 0 if os.geteuid() else 1000  # an ordinary user's namespace has one id


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    made = tmp_path / "rootfs"
    made.mkdir()
    return made


def receive_terminal(end: socket.socket) -> int:
    end.settimeout(20)
    data, control, _, _ = end.recvmsg(100, socket.CMSG_SPACE(4 * 4))
    assert data == b"/dev/ptmx"
    (_, _, payload) = control[0]
    fds = array.array("i", payload)
    assert len(fds) == 1
    return fds[0]


def devices() -> list[Op]:
    return [
        Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/dev", "mode=755"]),
        Op("mount", [ROOT, 0, 0, CREATE_DIR], ["devpts", "devpts", "/dev/pts", "newinstance", "ptmxmode=0666"]),
    ]


def console(flags: int = CONSOLE_BIND, rows: int = 0, columns: int = 0, uid: int = OWN, root: int = ROOT) -> Op:
    return Op("console", [root, 0, flags, rows, columns, uid], [])


def start(launcher: Launcher, rootfs: Path, *ops: Op) -> tuple[Run, socket.socket]:
    ours, theirs = socket.socketpair()
    plan = fenced(Op("setsid"), Op("bind_root", [ROOT], [str(rootfs)]), *ops, flags=NEWPID)
    run = launcher.start(plan, slots=[theirs.fileno()])
    theirs.close()
    return run, ours


def test_console(launcher: Launcher, rootfs: Path) -> None:
    script = (
        "tty; stty size; echo; read word; echo got $word; ls -ln /dev/console | tr -s ' ' | cut -d' ' -f1,3-6; exit 3"
    )
    run, ours = start(launcher, rootfs, *devices(), console(rows=33, columns=77), Op("sync", [7]), *shell(script))
    run.stop(7)
    master = receive_terminal(ours)
    inside = run.root / str(rootfs)[1:]
    assert stat.S_ISCHR((inside / "dev/console").stat().st_mode)
    assert os.major((inside / "dev/console").stat().st_rdev) == 136
    assert (inside / "dev/pts/0").stat().st_uid == (os.geteuid() or OWN)
    assert ours.recv(1) == b""  # the way to the host is closed in the child
    fds = {entry.name: os.readlink(entry) for entry in Path(f"/proc/{run.child}/fd").iterdir()}
    assert "/dev/ptmx" not in " ".join(fds.values())
    assert [fds[number].removeprefix(str(rootfs)) for number in "012"] == ["/dev/pts/0"] * 3
    run.go()
    os.write(master, b"word\n")
    output = b""
    with suppress(OSError):  # EIO: the terminal's last user ended
        while chunk := os.read(master, 4096):
            output += chunk
    run.finish()
    assert run.code == 3
    text = output.decode()
    assert "33 77" in text
    assert "got word" in text
    os.close(master)
    ours.close()


def test_console_is_the_controlling_terminal(launcher: Launcher, rootfs: Path) -> None:
    run, ours = start(launcher, rootfs, *devices(), console(0), *shell("sleep 50"))
    while (packet := run.receive()) is not None:
        if packet.type == SYNC:
            run.answer(packet)
    master = receive_terminal(ours)
    os.write(
        master, b"\x03"
    )  # Ctrl-C reaches the session in the foreground; pid 1 of a namespace has no default action
    assert struct.unpack("i", ioctl(master, termios.TIOCGPGRP, struct.pack("i", 0)))[0] >= 0
    fields = Path(f"/proc/{run.child}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[4]) != 0  # tty_nr
    assert not (run.root / str(rootfs)[1:] / "dev/console").exists()
    run.close()
    os.close(master)
    ours.close()


def test_console_without_a_session(launcher: Launcher, rootfs: Path) -> None:
    ours, theirs = socket.socketpair()
    plan = fenced(Op("bind_root", [ROOT], [str(rootfs)]), *devices(), console())
    launcher.start(plan, slots=[theirs.fileno()]).finish().refused(len(plan) - 1, errno.EPERM)
    theirs.close()
    ours.close()


def test_console_after_pivot(launcher: Launcher, rootfs: Path) -> None:
    run, ours = start(launcher, rootfs, *devices(), Op("pivot", [ROOT, 0]), console(0, root=NO_SLOT), Op("sync", [7]))
    run.stop(7)
    os.close(receive_terminal(ours))
    ours.close()


def refused(launcher: Launcher, rootfs: Path, *ops: Op, error: int) -> None:
    run, ours = start(launcher, rootfs, *ops)
    count = 3 + 1 + len(ops) + (2 if os.geteuid() else 0)
    run.finish().refused(count - 1, error)
    assert ours.recv(1) == b""  # no terminal was sent
    ours.close()


def test_fake_devpts(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    """R-9, CVE-2025-52565: dev/pts is the image's own, with links where terminals should be."""
    pts = rootfs / "dev/pts"
    pts.mkdir(parents=True)
    (pts / "0").symlink_to("/proc/version")
    refused(launcher, rootfs, console(), error=errno.ENODEV)
    (pts / "ptmx").symlink_to("/dev/ptmx")
    refused(launcher, rootfs, console(), error=errno.ENODEV)
    shutil.rmtree(pts)
    pts.symlink_to("/dev/pts")
    refused(launcher, rootfs, console(), error=errno.ELOOP)
    pts.unlink()
    refused(launcher, rootfs, console(), error=errno.ENOENT)
    # a real one with something over its ptmx
    ops = [*devices(), Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], ["/dev/null", "/dev/pts/ptmx"])]
    refused(launcher, rootfs, *ops, console(), error=errno.EXDEV)


def test_console_link_is_not_followed(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    """R-9, R-11, CVE-2026-88264: /dev/console is a link to a victim in the image, or outside."""
    (rootfs / "victim").write_text("intact")
    (rootfs / "dev").mkdir()
    devpts = [*devices()[1:], console()]
    for target in ("/victim", "../victim", str(tmp_path / "none"), "console"):
        (rootfs / "dev/console").unlink(missing_ok=True)
        (rootfs / "dev/console").symlink_to(target)
        refused(launcher, rootfs, *devpts, error=errno.ELOOP)
    assert (rootfs / "victim").read_text() == "intact"
    assert not (tmp_path / "none").exists()
    (rootfs / "dev/console").unlink()
    (rootfs / "dev/console").mkdir()
    refused(launcher, rootfs, *devpts, error=errno.ENOTDIR)


def test_console_with_an_image_file_in_place(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "dev").mkdir()
    (rootfs / "dev/console").write_text("of the image")
    run, ours = start(launcher, rootfs, *devices()[1:], console(), Op("sync", [7]))
    run.stop(7)
    assert os.major((run.root / str(rootfs)[1:] / "dev/console").stat().st_rdev) == 136
    assert (rootfs / "dev/console").read_text() == "of the image"
    os.close(receive_terminal(ours))
    ours.close()


def test_console_socket_that_is_none(launcher: Launcher, rootfs: Path) -> None:
    ops = [Op("setsid"), Op("bind_root", [ROOT], [str(rootfs)]), *devices(), console()]
    plan = fenced(*ops)
    launcher.run(plan).refused(len(plan) - 1, errno.EBADF)
    reader, writer = os.pipe()
    launcher.run(plan, slots=[writer]).refused(len(plan) - 1, errno.ENOTSOCK)
    os.close(reader)
    os.close(writer)


# -- /dev/null as stdio -------------------------------------------------------------------------------------------


def reopened(launcher: Launcher, rootfs: Path, *ops: Op, stdio: tuple[int | None, int | None, int | None]) -> Run:
    plan = fenced(
        Op("bind_root", [ROOT], [str(rootfs)]),
        Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/dev"]),
        *ops,
        Op("pivot", [ROOT, 0]),
        Op("reopen_null"),
        Op("sync", [7]),
    )
    return launcher.start(plan, stdio=stdio)


def test_reopen_null(launcher: Launcher, rootfs: Path) -> None:
    null = Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], ["/dev/null", "/dev/null"])
    other = os.open(rootfs / "file", os.O_CREAT | os.O_RDWR)

    def mount_of(run: Run, number: int) -> str:
        return Path(f"/proc/{run.process}/fdinfo/{number}").read_text().split("mnt_id:")[1].split()[0]

    run = reopened(launcher, rootfs, null, stdio=(None, other, None)).stop(7)
    inside = Path(f"/proc/{run.process}/mountinfo").read_text().splitlines()
    own = {line.split()[0] for line in inside if line.split()[4] == "/dev/null"}
    assert {mount_of(run, 0), mount_of(run, 2)} == own
    assert os.readlink(f"/proc/{run.process}/fd/1").endswith("/file")
    flags = int(Path(f"/proc/{run.process}/fdinfo/0").read_text().split("flags:")[1].split()[0], 8)
    assert flags & (os.O_NONBLOCK | os.O_CLOEXEC) == 0
    run.go()
    run.finish().succeeded()
    # a container without the device keeps what it has; without a null among stdio nothing is looked at
    reopened(launcher, rootfs, stdio=(None, None, None)).finish().succeeded()
    reopened(launcher, rootfs, fake_link("/proc/version"), stdio=(other, other, other)).finish().succeeded()
    os.close(other)


def fake_link(target: str) -> Op:
    return Op("symlink", [ROOT, 0], ["/dev/null", target])


@pytest.mark.parametrize("kind", ["link", "file", "zero"])
def test_reopen_of_a_fake_null(launcher: Launcher, rootfs: Path, tmp_path: Path, kind: str) -> None:
    """R-12, CVE-2026-88265: the image's /dev/null would become the program's stdio, and be given to its user."""
    victim = tmp_path / "victim"
    victim.write_text("keep")
    ops = [Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], [str(victim), "/hostfile"])]
    if kind == "link":
        ops.append(fake_link("/hostfile"))
    else:
        source = str(victim) if kind == "file" else "/dev/zero"
        ops.append(Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], [source, "/dev/null"]))
    run = reopened(launcher, rootfs, *ops, stdio=(None, None, None)).finish()
    assert run.error is not None
    assert run.error.value == errno.ENODEV
    assert victim.read_text() == "keep"
    assert victim.stat().st_uid == os.geteuid()


# -- owner of stdio -----------------------------------------------------------------------------------------------


@ROOT_ONLY
def test_own_stdio(launcher: Launcher, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    master, terminal = pty.openpty()
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    null = os.open("/dev/null", os.O_RDWR)
    one, other = socket.socketpair()
    try:
        for stdio in ((reader, writer, terminal), (file, null, other.fileno())):
            run = launcher.start([Op("own_stdio", [1234])], stdio=stdio)
            run.finish().succeeded()
        for fd, owner in ((writer, 1234), (terminal, 1234), (file, 0), (null, 0), (other.fileno(), 0)):
            assert os.fstat(fd).st_uid == owner
        launcher.start([Op("own_stdio", [1 << 32])], stdio=(file, file, file)).finish()
        assert os.fstat(file).st_uid == 0
    finally:
        for fd in (reader, writer, master, terminal, file, null):
            os.close(fd)
        one.close()
        other.close()


def test_own_stdio_where_it_is_not_allowed(launcher: Launcher) -> None:
    reader, writer = os.pipe()
    # an id that the namespace does not have, or that an ordinary user may not give to: not an error
    run = launcher.start([Op("capabilities", [0, 0, 0, 0]), Op("own_stdio", [4321])], stdio=(reader, writer, None))
    run.finish().succeeded()
    assert os.fstat(writer).st_uid == os.geteuid()
    os.close(reader)
    os.close(writer)

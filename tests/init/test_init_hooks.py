"""The init's hooks (I7): state on stdin, nothing else inherited, bounded output and time."""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from pathlib import Path

import pytest
from initlaunch import ROOT, Launcher, Packet, fenced, shell

from knarr.plan.ops import Op

EXITED, SIGNALLED, TIMED_OUT, NOT_STARTED, NO_DOCUMENT = 1, 2, 3, 4, 5
STATE = b'{"ociVersion":"1.2.0","id":"c"}'
FIRST = Op("sync", [3])  # its GO carries the state document


def hook(script: str, *environment: str, timeout: int = 0) -> Op:
    return Op("hook", [timeout, 3], ["/bin/sh", "sh", "-c", script, *environment])


def failure(error: Packet) -> tuple[int, int, bytes]:
    what, number = struct.unpack_from("<II", error.detail)
    return what, number, error.detail[8:]


def test_a_hook_gets_the_state(launcher: Launcher, tmp_path: Path) -> None:
    plan = [FIRST, hook(f"cat > {tmp_path}/out", "PATH=/bin:/usr/bin")]
    launcher.run(plan, document=STATE).succeeded()
    assert (tmp_path / "out").read_bytes() == STATE


def test_the_last_document_counts(launcher: Launcher, tmp_path: Path) -> None:
    run = launcher.start([FIRST, FIRST, FIRST, hook(f"cat > {tmp_path}/out", "PATH=/bin:/usr/bin")])
    for document in (b"first", b"second, longer", b""):
        run.receive()
        run.go(document)
    run.finish().succeeded()
    assert (tmp_path / "out").read_bytes() == b"second, longer"


def test_a_big_state_that_nobody_reads(launcher: Launcher, tmp_path: Path) -> None:
    big = b"s" * (128 * 1024)
    plan = [FIRST, hook("exit 0"), hook("exec <&-"), hook(f"wc -c > {tmp_path}/out", "PATH=/bin:/usr/bin")]
    launcher.run(plan, document=big).succeeded()
    assert (tmp_path / "out").read_text().strip() == str(len(big))


def test_without_a_state(launcher: Launcher) -> None:
    error = launcher.run([hook("true")]).refused(0, errno.ENODATA)
    assert failure(error) == (NO_DOCUMENT, 0, b"")


def test_what_a_hook_inherits(launcher: Launcher, tmp_path: Path) -> None:
    """R-23, CVE-2025-23266: an environment of its own, no descriptor, no directory of the container."""
    script = f"""exec > {tmp_path}/out 2>&1
        env; pwd; ls -l /proc/self/fd; cat /proc/self/status; ps -o sid= -o pgid= -p $$ || echo - -"""
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    plan = [
        Op("host_chdir", [], [str(tmp_path)]),
        Op("open_proc", [40]),
        Op("umask", [0o77]),
        FIRST,
        hook(script, "PATH=/bin:/usr/bin", "OWN=1"),
    ]
    launcher.start(plan, slots=[handle], environment={"SECRET": "x"}).finish(STATE).succeeded()
    os.close(handle)
    text = (tmp_path / "out").read_text()
    lines = text.splitlines()
    pwd = lines.index("/")
    assert (
        {"PATH=/bin:/usr/bin", "OWN=1"}
        <= set(lines[:pwd])
        <= {"PATH=/bin:/usr/bin", "OWN=1", "PWD=/", "SHLVL=0", "_=/usr/bin/env", "SHLVL=1", "_=/bin/env", "OLDPWD"}
    )
    fds = [line.split()[8] for line in lines[pwd:] if " -> " in line]
    assert sorted(fds) == ["0", "1", "2", "3"]  # 3 is what ls reads
    assert "SigIgn:\t0000000000000000" in text
    assert "SigBlk:\t0000000000000000" in text
    assert "Umask:\t0077" in text


def test_exit_status_signal_and_stderr(launcher: Launcher) -> None:
    error = launcher.run([FIRST, hook("echo not this; echo why >&2; exit 42")], document=STATE).refused(
        1, errno.ECANCELED
    )
    assert failure(error) == (EXITED, 42, b"why\n")
    error = launcher.run([FIRST, hook("kill -9 $$")], document=STATE).refused(1, errno.ECANCELED)
    assert failure(error) == (SIGNALLED, 9, b"")
    error = launcher.run([FIRST, hook("exit 0"), hook("exit 1"), hook("exit 2")], document=STATE).refused(
        2, errno.ECANCELED
    )
    assert failure(error) == (EXITED, 1, b"")


def test_the_end_of_much_output(launcher: Launcher) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; echo error $i >&2; i=$((i+1)); done; exit 1"
    error = launcher.run([FIRST, hook(script)], document=STATE).refused(1, errno.ECANCELED)
    what, number, said = failure(error)
    assert (what, number, len(said)) == (EXITED, 1, 1024)
    assert said.endswith(b"error 2998\nerror 2999\n")
    # a flood does not fill anything
    flood = "head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2"
    launcher.run([FIRST, hook(flood, "PATH=/bin:/usr/bin")], document=STATE).succeeded()


def test_hooks_that_cannot_start(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    for path, value in (
        (tmp_path / "none", errno.ENOENT),
        (tmp_path / "plain", errno.EACCES),
        (tmp_path, errno.EACCES),
    ):
        run = launcher.run([FIRST, Op("hook", [0, 1], [str(path), "x"])], document=STATE)
        assert failure(run.refused(1, value)) == (NOT_STARTED, value, b"")
    # nor through a descriptor that is the init's
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    run = launcher.run([FIRST, Op("hook", [0, 1], ["/proc/self/fd/5/bin/true", "x"])], document=STATE, slots=[handle])
    os.close(handle)
    assert failure(run.refused(1, errno.ENOENT)) == (NOT_STARTED, errno.ENOENT, b"")
    launcher.run([FIRST, Op("hook", [0, 2], ["/bin/true", "x"])], document=STATE).refused(1, errno.EINVAL)
    launcher.run([FIRST, Op("hook", [1 << 50, 1], ["/bin/true", "x"])], document=STATE).refused(1, errno.EINVAL)


def test_argv_may_be_empty(launcher: Launcher) -> None:
    # the kernel puts an empty argv[0] in its place
    launcher.run([FIRST, Op("hook", [0, 0], ["/bin/true"])], document=STATE)


def test_time_out_kills_the_whole_group(launcher: Launcher, tmp_path: Path) -> None:
    script = f"echo begin >&2; sleep 60 & echo $! > {tmp_path}/pid; sleep 60"
    begin = time.monotonic()
    run = launcher.run([FIRST, hook(script, "PATH=/bin:/usr/bin", timeout=400)], document=STATE)
    took = time.monotonic() - begin
    assert failure(run.refused(1, errno.ETIMEDOUT)) == (TIMED_OUT, 400, b"begin\n")
    assert 0.4 <= took < 1.5
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        except FileNotFoundError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a child of the hook lives on")


def test_time_out_of_a_hook_that_floods(launcher: Launcher) -> None:
    begin = time.monotonic()
    run = launcher.run([FIRST, hook("while :; do echo x >&2; done", timeout=300)], document=STATE)
    assert failure(run.refused(1, errno.ETIMEDOUT))[0] == TIMED_OUT
    assert time.monotonic() - begin < 2


def test_a_daemon_left_behind_does_not_hold_us_up(launcher: Launcher, tmp_path: Path) -> None:
    script = f"sleep 30 & echo $! > {tmp_path}/pid; exit 0"
    begin = time.monotonic()
    launcher.run([FIRST, hook(script, "PATH=/bin:/usr/bin", timeout=10000)], document=STATE).succeeded()
    assert time.monotonic() - begin < 1.5
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_closed_output_is_no_busy_loop(launcher: Launcher) -> None:
    def ticks(script: str) -> int:
        """Hundredths of a second that the init itself took, not its children."""
        plan = [FIRST, hook(script, "PATH=/bin:/usr/bin"), *shell("cat /proc/$$/stat; true")]
        fields = launcher.output(plan, document=STATE).rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    assert ticks("exec >&- 2>&-; sleep 0.8") < ticks("true") + 10


@pytest.mark.usefixtures("namespaces")
def test_a_hook_inside_the_container_sees_its_root(launcher: Launcher, tmp_path: Path) -> None:
    """startContainer: the path is the container's, and a program of the host is not found there."""
    (tmp_path / "rootfs").mkdir()
    plan = fenced(FIRST, Op("bind_root", [ROOT], [str(tmp_path / "rootfs")]), Op("pivot", [ROOT, 0]), hook("true"))
    run = launcher.run(plan, document=STATE)
    assert failure(run.refused(len(plan) - 1, errno.ENOENT))[0] == NOT_STARTED

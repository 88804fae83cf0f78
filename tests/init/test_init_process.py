"""The init's operations on the process: its attributes, namespaces, ids, capabilities, /proc writes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from initlaunch import (
    GO,
    NEWCGROUP,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWTIME,
    NEWUSER,
    NEWUTS,
    PROC,
    ROOT_ONLY,
    SYNC,
    Launcher,
    fenced,
    shell,
)

from knarr.plan.ops import KEEP_CAPS, NO_SETGROUPS, NO_SLOT, WRITE_OPTIONAL, Op
from knarr.plan.seccomp import compile_filter

ALL_CAPS = (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1


def status(launcher: Launcher, *plan: Op) -> dict[str, str]:
    text = launcher.output([*plan, *shell("cat /proc/self/status")])
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_signals_are_reset(launcher: Launcher) -> None:
    # Python ignores SIGPIPE and SIGXFSZ; a blocked or ignored signal would be inherited by the program
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        seen = status(launcher)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    for field in ("SigIgn", "SigBlk", "SigCgt", "SigPnd"):
        assert int(seen[field], 16) == 0


def test_environment_is_not_inherited(launcher: Launcher) -> None:
    plan = [Op("find_program", [], ["env", "/usr/bin:/bin"]), Op("exec", [1], ["env", "ONLY=this"])]
    assert launcher.output(plan) == "ONLY=this\n"


def test_umask(launcher: Launcher) -> None:
    assert status(launcher, Op("umask", [0o27]))["Umask"] == "0027"


def test_umask_of_the_caller_stays_when_none_is_asked(launcher: Launcher) -> None:
    old = os.umask(0o35)
    try:
        assert status(launcher)["Umask"] == "0035"
    finally:
        os.umask(old)


def test_dumpable(launcher: Launcher) -> None:
    run = launcher.start([Op("dumpable", [0]), Op("sync", [7])]).stop(7)
    owner = Path(f"/proc/{run.pid}/fd").stat().st_uid
    assert owner == 0  # a process that is not dumpable belongs to root, whoever runs it
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            os.listdir(f"/proc/{run.pid}/fd")
    run.go()
    run.finish().succeeded()


def test_setsid(launcher: Launcher) -> None:
    run = launcher.start([Op("setsid"), Op("setsid"), Op("sync", [7])]).stop(7)  # the second time it leads already
    assert os.getsid(run.pid) == run.pid
    run.go()
    run.finish().succeeded()


def test_rlimit(launcher: Launcher) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = min(200, hard)
    text = launcher.output([Op("rlimit", [resource.RLIMIT_NOFILE, 100, limit]), *shell("ulimit -Sn; ulimit -Hn")])
    assert text.split() == ["100", str(limit)]


def test_rlimit_above_the_hard_limit_is_refused(launcher: Launcher) -> None:
    plan = [
        Op("rlimit", [resource.RLIMIT_CORE, 0, 0]),
        Op("capabilities", [0, 0, 0, 0]),
        Op("rlimit", [resource.RLIMIT_CORE, 1, 1]),
    ]
    launcher.run(plan).refused(2, errno.EPERM)


def test_keyring(launcher: Launcher) -> None:
    name = f"_ses.knarr-test-{secrets.token_hex(4)}"
    first = launcher.start([Op("keyring", [], [name]), Op("sync", [7])]).stop(7)
    text = launcher.output([Op("keyring", [], [name]), *shell("cat /proc/keys")])
    lines = [line.split() for line in text.splitlines() if name in line]
    assert len(lines) == 1  # the second joined the first one's
    assert lines[0][4] == "3f1b0000"  # which takes that its owner may search it
    first.go()
    first.finish().succeeded()
    assert "_ses" in launcher.output([Op("keyring", [], [""]), *shell("cat /proc/keys")])  # without a name


def test_pdeathsig(launcher: Launcher) -> None:
    # The signal comes when the parent thread ends: the parent here is a helper process that ends at once.
    run = launcher.start([Op("pdeathsig", [signal.SIGKILL]), Op("pdeathsig", [0]), Op("sync", [7])]).stop(7)
    run.go()
    run.finish().succeeded()


def test_pdeathsig_notices_a_parent_that_is_gone(launcher: Launcher) -> None:
    """It may have died just before the call: then no signal ever comes."""
    reader, writer = os.pipe()
    plan = [Op("sync", [7]), Op("pdeathsig", [signal.SIGTERM]), *shell("echo lives")]
    run = launcher.start(plan, stdio=(None, writer, None)).stop(7)
    os.close(writer)
    os.kill(run.pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(run.pid, os.WUNTRACED)[1])
    run.go()
    run.control.close()
    os.kill(run.pid, signal.SIGCONT)
    run.wait()
    assert run.code == 1
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b""


def test_clone_reports_the_pid_and_the_first_stage_ends(launcher: Launcher) -> None:
    run = launcher.start(fenced(Op("sync", [7]), flags=NEWPID)).stop(7)
    assert os.waitpid(run.pid, 0)[1] == 0
    run.statuses[run.pid] = 0
    lines = Path(f"/proc/{run.child}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert fields["NSpid"].split()[-1] == "1"
    assert fields["PPid"] == str(os.getpid())
    run.go()
    run.finish().succeeded()


@pytest.mark.usefixtures("namespaces")
def test_clone_makes_each_namespace(launcher: Launcher) -> None:
    kinds = {"mnt": NEWNS, "uts": NEWUTS, "pid": NEWPID, "net": NEWNET, "cgroup": NEWCGROUP}
    if os.geteuid() == 0 and Path("/proc/self/ns/time").exists():
        kinds["time"] = NEWTIME
    flags = 0
    for flag in kinds.values():
        flags |= flag
    run = launcher.start(fenced(Op("sync", [7]), flags=flags)).stop(7)
    for kind in kinds:
        assert os.readlink(f"/proc/{run.child}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    run.go()
    run.finish().succeeded()


def test_clone_with_bad_flags(launcher: Launcher) -> None:
    launcher.run([Op("clone", [1 << 63, NO_SLOT])]).refused(0, errno.EINVAL)
    launcher.run([Op("clone", [0, 5])]).refused(0, errno.EBADF)


@ROOT_ONLY
def test_clone_into_a_cgroup(launcher: Launcher) -> None:
    base = next(
        (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line),
        None,
    )
    if base is None:
        pytest.skip("no cgroup v2 is mounted")
    group = Path(base, f"knarr-init-test-{secrets.token_hex(4)}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        run = launcher.start([Op("clone", [0, 0]), Op("sync", [7])], slots=[fd]).stop(7)
        assert f"{group.name}\n" in Path(f"/proc/{run.child}/cgroup").read_text()
        # its descriptor is closed in the child: others in its namespaces might look into the process
        links = [os.readlink(entry) for entry in Path(f"/proc/{run.child}/fd").iterdir()]
        assert str(group) not in links
        run.go()
        run.finish().succeeded()
    finally:
        os.close(fd)
        launcher.close()
        group.rmdir()


def v1_hierarchy() -> Path:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line.split()[4] for line in lines if " - cgroup " in line and line.split()[4].endswith("/pids")]
    if not found:
        pytest.skip("the controller pids is not in a hierarchy of cgroup v1")
    return Path(found[0])


@ROOT_ONLY
def test_join_a_cgroup_of_v1(launcher: Launcher) -> None:
    group = v1_hierarchy() / f"knarr-init-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    fd = os.open(group / "tasks", os.O_WRONLY)
    try:
        plan = [Op("clone", [NEWUSER, NO_SLOT]), Op("sync", [1, 9]), Op("join_cgroup", [9], ["pids"]), Op("sync", [7])]
        run = launcher.start(plan).stop(1)
        socket.send_fds(run.control, [struct.pack("<II", GO, 0)], [fd])
        run.stop(7)
        # by the rights of whoever opened the file: in its user namespace the process has none over it
        assert (group / "cgroup.procs").read_text() == f"{run.child}\n"
        assert all("cgroup" not in os.readlink(entry) for entry in Path(f"/proc/{run.child}/fd").iterdir())
        run.go()
        run.finish().succeeded()
        launcher.run([Op("join_cgroup", [9], ["pids"])]).refused(0, errno.EBADF)
    finally:
        os.close(fd)
        launcher.close()
        group.rmdir()


@ROOT_ONLY
def test_clone_into_a_cgroup_where_clone3_is_hidden(launcher: Launcher) -> None:
    """By a filter around us, as older engines have it: a file of a hierarchy stands for one of v2."""
    group = v1_hierarchy() / f"knarr-init-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    hidden = compile_filter(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}],
        },
        os.uname().machine,
    )
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        plan = [Op("no_new_privs"), Op("seccomp", [0], [hidden]), Op("clone", [0, 0]), Op("sync", [7])]
        run = launcher.start(plan, slots=[fd]).stop(7)
        assert str(run.child) in (group / "cgroup.procs").read_text().split()
        run.go()
        run.finish().succeeded()
    finally:
        os.close(fd)
        launcher.close()
        group.rmdir()


@ROOT_ONLY
def test_a_fenced_directory_leads_nowhere(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    fd = os.open(tmp_path / "inside", os.O_RDONLY | os.O_DIRECTORY)
    try:
        run = launcher.start([Op("sync", [1]), Op("fence", [0]), Op("sync", [7])], slots=[fd]).stop(1)
        (place,) = [one for one in Path(f"/proc/{run.pid}/fd").iterdir() if os.readlink(one) == f"{tmp_path}/inside"]
        assert os.listdir(place / "..") == ["inside"], "the way there is without it"
        run.go()
        run.stop(7)
        assert tmp_path.name not in {os.readlink(one) for one in Path(f"/proc/{run.pid}/fd").iterdir()}
        places = [one for one in Path(f"/proc/{run.pid}/fd").iterdir() if os.readlink(one) == "/"]
        assert len(places) == 1
        assert os.path.samestat(os.stat(places[0]), os.stat(tmp_path / "inside"))
        assert os.path.samestat(os.stat(places[0] / ".."), os.stat(places[0]))
        with pytest.raises(OSError, match="Read-only"):
            (places[0] / "made").mkdir()
        run.go()
        run.finish().succeeded()
    finally:
        os.close(fd)


@pytest.mark.usefixtures("namespaces")
def test_hostname_and_domainname(launcher: Launcher) -> None:
    plan = fenced(
        Op("hostname", [], ["boat"]),
        Op("domainname", [], ["sea"]),
        *shell("cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname"),
        flags=NEWUTS,
    )
    assert launcher.output(plan) == "boat\nsea\n"
    plan = fenced(Op("hostname", [], ["x" * 65]), flags=NEWUTS)
    launcher.run(plan).refused(len(plan) - 1, errno.EINVAL)


@pytest.mark.usefixtures("namespaces")
def test_loopback(launcher: Launcher) -> None:
    script = "ip -o addr show lo 2>/dev/null || ifconfig lo; cat /proc/net/if_inet6; cat /proc/net/fib_trie"
    text = launcher.output(fenced(Op("loopback"), *shell(script, "PATH=/bin:/sbin:/usr/sbin"), flags=NEWNET))
    assert "127.0.0.1" in text
    text = launcher.output(fenced(*shell(script, "PATH=/bin:/sbin:/usr/sbin"), flags=NEWNET))
    assert "127.0.0.1" not in text


@pytest.mark.usefixtures("namespaces")
def test_unshare(launcher: Launcher) -> None:
    run = launcher.start(fenced(Op("unshare", [NEWUTS]), Op("sync", [7]))).stop(7)
    assert os.readlink(f"/proc/{run.child}/ns/uts") != os.readlink("/proc/self/ns/uts")
    run.go()
    run.finish().succeeded()
    launcher.run([Op("unshare", [1])]).refused(0, errno.EINVAL)


def test_open_ns_and_setns(launcher: Launcher) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to enter a namespace")
    plan = [Op("open_ns", [8, NEWUTS], ["/proc/self/ns/uts"]), Op("setns", [8, NEWUTS])]
    launcher.run(plan).succeeded()
    launcher.run([plan[0], Op("setns", [8, NEWNET])]).refused(1, errno.EINVAL)


def test_open_ns_refuses_what_is_none(launcher: Launcher, tmp_path: Path) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.touch()
    for path in (fifo, file, tmp_path, Path("/dev/null"), Path("/proc/self/status")):
        launcher.run([Op("open_ns", [8, NEWUTS], [str(path)])]).refused(0, errno.EINVAL)  # and it must not block
    # and not be opened at all: whoever waits for a reader goes on waiting
    opened = threading.Event()

    def wait_for_a_reader() -> None:
        os.close(os.open(fifo, os.O_WRONLY))
        opened.set()

    waiting = threading.Thread(target=wait_for_a_reader)
    waiting.start()
    time.sleep(0.1)
    launcher.run([Op("open_ns", [8, NEWUTS], [str(fifo)])]).refused(0, errno.EINVAL)
    assert not opened.wait(0.1)
    os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    waiting.join()
    launcher.run([Op("open_ns", [8, NEWUTS], [str(tmp_path / "none")])]).refused(0, errno.ENOENT)
    launcher.run([Op("open_ns", [8, NEWUTS], ["/proc/self/ns/net"])]).refused(0, errno.EINVAL)
    launcher.run([Op("setns", [8, NEWUTS])]).refused(0, errno.EBADF)


@pytest.mark.usefixtures("namespaces")
def test_become_root_in_a_user_namespace(launcher: Launcher) -> None:
    plan = [Op("clone", [NEWUSER | NEWNS, NO_SLOT]), Op("sync", [1]), Op("become_root", [0])]
    text = launcher.output([*plan, *shell("cat /proc/self/status")])
    assert "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n" in text
    # without a map the id 0 does not exist
    launcher.run([plan[0], Op("become_root", [0])]).refused(1, errno.EINVAL)


# -- /proc ------------------------------------------------------------------------------------------------------


def test_proc_write(launcher: Launcher) -> None:
    plan = [Op("open_proc", [PROC]), Op("proc_write", [PROC, 0], ["self/oom_score_adj", "321"])]
    assert launcher.output([*plan, *shell("cat /proc/self/oom_score_adj")]) == "321\n"


@pytest.mark.usefixtures("namespaces")
def test_proc_write_sets_the_sysctl_of_the_own_namespace(launcher: Launcher) -> None:
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    plan = fenced(
        Op("proc_write", [PROC, 0], ["sys/net/ipv4/ip_unprivileged_port_start", "77"]),
        *shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        flags=NEWNET,
    )
    assert launcher.output([Op("open_proc", [PROC]), *plan]) == "77\n"
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before


def test_proc_write_reports_what_the_kernel_says(launcher: Launcher) -> None:
    opened = Op("open_proc", [PROC])
    launcher.run([opened, Op("proc_write", [PROC, 0], ["self/oom_score_adj", "5000"])]).refused(1, errno.EINVAL)
    launcher.run([opened, Op("proc_write", [PROC, 0], ["self/none", "1"])]).refused(1, errno.ENOENT)
    launcher.run([opened, Op("proc_write", [PROC, WRITE_OPTIONAL], ["self/none", "1"])]).succeeded()
    launcher.run([Op("proc_write", [PROC, 0], ["self/oom_score_adj", "1"])]).refused(0, errno.EBADF)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../etc/x", errno.EXDEV),
        ("/proc/self/oom_score_adj", errno.EXDEV),
        ("thread-self/oom_score_adj", errno.ELOOP),  # a link
        ("self/../self/oom_score_adj", errno.ELOOP),
        ("self/root/etc/x", errno.ELOOP),
        ("self/fd/0", errno.ELOOP),
        ("self/cwd", errno.ELOOP),
        ("self/" + "x" * 5000, errno.ENAMETOOLONG),
    ],
)
def test_proc_write_stays_below_its_handle(launcher: Launcher, path: str, error: int) -> None:
    launcher.run([Op("open_proc", [PROC]), Op("proc_write", [PROC, 0], [path, "1"])]).refused(1, error)


@pytest.mark.usefixtures("namespaces")
def test_proc_write_past_something_mounted_over_it(launcher: Launcher, tmp_path: Path) -> None:
    """CVE-2025-52881: the true file is written or the write refused, never what lies over it."""
    fake = tmp_path / "fake"
    fake.write_text("untouched")
    net = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    for target in (net, "/proc/self/oom_score_adj", "/proc/sys/net"):
        source = fake if target != "/proc/sys/net" else tmp_path
        write = ["sys/net/ipv4/ip_unprivileged_port_start", "78"] if "net" in target else ["self/oom_score_adj", "99"]
        plan = fenced(
            Op("host_mount", [4096], [str(source), target, "", ""]),  # MS_BIND
            Op("open_proc", [PROC]),
            Op("proc_write", [PROC, 0], write),
            Op("sync", [7]),
            flags=NEWNET,
        )
        run = launcher.start(plan).finish()
        if run.error is not None:
            run.refused(len(plan) - 2, errno.EXDEV)
        assert fake.read_text() == "untouched"
        assert list(tmp_path.iterdir()) == [fake]


@pytest.mark.usefixtures("namespaces")
def test_open_proc_demands_a_real_procfs(launcher: Launcher, tmp_path: Path) -> None:
    plan = fenced(Op("host_mount", [4096], [str(tmp_path), "/proc", "", ""]), Op("open_proc", [PROC]))
    launcher.run(plan).refused(len(plan) - 1, errno.EINVAL)
    plan = fenced(Op("host_mount", [4096], ["/proc/sys", "/proc", "", ""]), Op("open_proc", [PROC]))
    launcher.run(plan).refused(len(plan) - 1, errno.EINVAL)


# -- identity -----------------------------------------------------------------------------------------------------


@ROOT_ONLY
def test_user(launcher: Launcher) -> None:
    seen = status(launcher, Op("user", [1234, 2345, 0, 7, 8, 9]))
    assert seen["Uid"] == "1234\t1234\t1234\t1234"
    assert seen["Gid"] == "2345\t2345\t2345\t2345"
    assert seen["Groups"].split() == ["7", "8", "9"]
    assert int(seen["CapPrm"], 16) == 0
    assert status(launcher, Op("user", [0, 0, 0]))["Groups"].split() == []
    with_groups = status(launcher, Op("user", [1, 1, NO_SETGROUPS, 7]))["Groups"].split()
    assert with_groups == sorted(map(str, os.getgroups()), key=int)
    assert len(status(launcher, Op("user", [1, 1, 0, *range(10, 5010)]))["Groups"].split()) == 5000


@pytest.mark.parametrize("ids", [(0xFFFFFFFF, 0, 0), (0, 0xFFFFFFFF, 0), (1 << 32, 0, 0), (0, 0, 0, 1 << 32)])
def test_user_refuses_ids_that_mean_something_else(launcher: Launcher, ids: tuple[int, ...]) -> None:
    """CVE-2024-40635: setresuid(2^32-1) succeeds and leaves root as it is."""
    numbers = [ids[0], ids[1], 0, *ids[3:]]
    launcher.run([Op("user", numbers)]).refused(0, errno.EINVAL)


@ROOT_ONLY
def test_capabilities(launcher: Launcher) -> None:
    kill, bind = 1 << 5, 1 << 10
    held = int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in x).split()[1], 16)
    seen = status(
        launcher,
        Op("bounding", [kill | bind]),
        Op("user", [1000, 1000, KEEP_CAPS]),
        Op("capabilities", [kill, kill | bind, bind, bind]),
    )
    # after exec of an ordinary file as an ordinary user: only what is ambient
    assert int(seen["CapBnd"], 16) == kill | bind
    assert int(seen["CapInh"], 16) == bind
    assert [int(seen[field], 16) for field in ("CapPrm", "CapEff", "CapAmb")] == [bind] * 3
    # ambient sets do not add up
    seen = status(launcher, Op("capabilities", [held, held, bind, bind]), Op("capabilities", [held, held, bind, 0]))
    assert (int(seen["CapInh"], 16), int(seen["CapAmb"], 16)) == (bind, 0)
    seen = status(launcher, Op("capabilities", [held, held, 0, 0]))
    assert int(seen["CapEff"], 16) == held
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0


def test_capabilities_are_read_back(launcher: Launcher) -> None:
    beyond = 1 << 62  # the kernel drops silently what it does not know
    launcher.run([Op("capabilities", [0, beyond, 0, 0])]).refused(0, errno.EPERM)
    launcher.run([Op("capabilities", [0, 0, 0, 1])]).refused(0, errno.EPERM)  # ambient beyond permitted


@ROOT_ONLY
def test_bounding_all_and_nothing(launcher: Launcher) -> None:
    held = int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in x).split()[1], 16)
    assert int(status(launcher, Op("bounding", [ALL_CAPS]))["CapBnd"], 16) == held
    assert int(status(launcher, Op("bounding", [0]))["CapBnd"], 16) == 0


def test_bounding_without_the_right_to_drop(launcher: Launcher) -> None:
    plan = [Op("capabilities", [0, 0, 0, 0]), Op("bounding", [ALL_CAPS])]
    launcher.run(plan).succeeded()
    launcher.run([plan[0], Op("bounding", [0])]).refused(1, errno.EPERM)


def test_no_new_privs(launcher: Launcher) -> None:
    assert status(launcher, Op("no_new_privs"))["NoNewPrivs"] == "1"
    assert status(launcher)["NoNewPrivs"] == "0"


# -- slots --------------------------------------------------------------------------------------------------------


def test_descriptors_are_closed_or_close_on_exec(launcher: Launcher, tmp_path: Path) -> None:
    """CVE-2024-21626: nothing of the host is open in the program."""
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    reader, writer = os.pipe()
    plan = [Op("open_proc", [PROC]), Op("open_root", [30], ["/"]), Op("sync", [7])]
    plan += [Op("find_program", [], ["ls", "/bin:/usr/bin"]), Op("exec", [3], ["ls", "-l", "/proc/self/fd"])]
    extra = [(handle, number) for number in (7, 9, 33, 77)]
    run = launcher.start(plan, slots=[handle, handle], stdio=(None, writer, None), extra=extra).stop(7)
    os.close(writer)
    os.close(handle)
    open_now = {entry.name: os.readlink(entry) for entry in Path(f"/proc/{run.pid}/fd").iterdir()}
    for number in open_now:
        flags = int(Path(f"/proc/{run.pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0], 8)
        assert bool(flags & 0o2000000) == (int(number) > 2), (number, open_now)
    assert set(open_now) == {"0", "1", "2", "3", "4", "5", "6", "7"}  # 4 and 7: what open_proc and open_root opened
    run.go()
    run.finish().succeeded()
    with os.fdopen(reader) as stream:
        lines = [line.split()[8:] for line in stream.read().splitlines()[1:]]
    assert sorted(line[0] for line in lines) == ["0", "1", "2", "3"]  # 3 is the directory ls reads
    assert not any(str(tmp_path) in " ".join(line) for line in lines)


def test_close_and_empty_slots(launcher: Launcher) -> None:
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        plan = [Op("close", [0]), Op("close", [0]), Op("close", [5000]), Op("mkdir", [0, 0o755], ["/tmp"])]
        launcher.run(plan, slots=[handle]).refused(3, errno.EBADF)
        launcher.run([Op("open_root", [1024], ["/"])]).refused(0, errno.EINVAL)
    finally:
        os.close(handle)


def test_closed_stdio_is_held(launcher: Launcher) -> None:
    """Else the next file the init opens would become the program's stdin."""
    run = launcher.start([Op("open_proc", [PROC]), Op("sync", [7])]).stop(7)
    run.go()
    run.finish().succeeded()
    plan = [Op("open_proc", [PROC]), Op("sync", [7])]
    closed = Launcher(launcher.binary, ["/bin/sh", "-c", 'exec "$0" <&- >&- 2>&-'])
    run = closed.start(plan).stop(7)
    try:
        assert [os.readlink(f"/proc/{run.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    finally:
        run.go()
        run.finish().succeeded()
        closed.close()


def test_started_by_hand(init_binary: Path) -> None:
    done = subprocess.run([init_binary], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "knarr-init is started by knarr, which hands it a plan\n"
    # a socket that is no control socket will not do either
    one, other = socket.socketpair()
    high = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    pid = os.posix_spawn(init_binary, ["knarr-init"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, high, 3)])
    os.close(high)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    one.close()
    other.close()


def test_the_caller_gone_before_sync(launcher: Launcher) -> None:
    run = launcher.start([Op("sync", [7])])
    packet = run.receive()
    assert packet is not None
    assert (packet.type, packet.index, packet.value) == (SYNC, 0, 7)
    run.control.close()
    run.wait()
    assert run.code == 1

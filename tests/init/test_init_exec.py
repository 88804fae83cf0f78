"""The init's last steps: working directory, looking for the program, HOME, kept descriptors, seccomp, exec."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from initlaunch import NEWPID, NEWUSER, ROOT, ROOT_ONLY, Launcher, Run, fenced, sealed, shell

from knarr.plan.ops import CREATE_DIR, CREATE_LIKE_SOURCE, CWD_LATER, KEEP_CAPS, NO_SLOT, RECURSIVE, Op, encode

BUSYBOX = shutil.which("busybox")
NEEDS_BUSYBOX = pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")
PATH = "/usr/bin:/bin"

# seccomp and BPF
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBERS = {
    "x86_64": {"execve": 59, "sendmsg": 46, "exit_group": 231},
    "aarch64": {"execve": 221, "sendmsg": 211, "exit_group": 94},
}[os.uname().machine] | {"openat2": 437, "clone3": 435, "close_range": 436, "faccessat2": 439}


def bpf(default: int, actions: dict[str, int]) -> bytes:
    """A filter by system call number alone."""
    code = [struct.pack("<HBBI", 0x20, 0, 0, 0)]
    for name, action in actions.items():
        code.append(struct.pack("<HBBI", 0x15, 0, 1, NUMBERS[name]))
        code.append(struct.pack("<HBBI", 0x06, 0, 0, action))
    return b"".join([*code, struct.pack("<HBBI", 0x06, 0, 0, default)])


# -- cwd ----------------------------------------------------------------------------------------------------------


def test_cwd(launcher: Launcher, tmp_path: Path) -> None:
    assert launcher.output([Op("cwd", [0], [str(tmp_path)]), *shell("pwd")]) == f"{tmp_path}\n"
    # an earlier one that succeeded is not done again
    plan = [Op("cwd", [0], [str(tmp_path)]), Op("cwd", [0], ["/nowhere"]), *shell("pwd")]
    assert launcher.output(plan) == f"{tmp_path}\n"
    (tmp_path / "link").symlink_to("/usr")
    assert launcher.output([Op("cwd", [0], [f"{tmp_path}/link"]), *shell("pwd -P")]) == "/usr\n"
    launcher.run([Op("cwd", [0], [str(tmp_path / "none")])]).refused(0, errno.ENOENT)
    launcher.run([Op("cwd", [0], ["/etc/passwd"])]).refused(0, errno.ENOTDIR)


@ROOT_ONLY
def test_cwd_that_only_the_user_may_enter(launcher: Launcher, tmp_path: Path) -> None:
    """As root of a network file system that squashes root; here: root without its capabilities."""
    base = Path("/tmp", f"knarr-cwd-{secrets.token_hex(4)}")  # pytest's own directory is closed to others
    (base / "private").mkdir(parents=True)
    base.chmod(0o755)
    (base / "private").chmod(0o700)
    os.chown(base / "private", 1000, 1000)
    try:
        caps = [1 << 6 | 1 << 7] * 2  # SETGID, SETUID
        plan = [Op("capabilities", [*caps, 0, 0]), Op("cwd", [CWD_LATER], [str(base / "private")])]
        plan += [Op("user", [1000, 1000, 0]), Op("cwd", [0], [str(base / "private")]), *shell("pwd")]
        assert launcher.output(plan) == f"{base}/private\n"
        plan[1] = Op("cwd", [0], [str(base / "private")])
        launcher.run(plan).refused(1, errno.EACCES)
        plan = [Op("user", [1001, 1001, 0]), Op("cwd", [0], [str(base / "private")])]
        launcher.run(plan).refused(1, errno.EACCES)
    finally:
        shutil.rmtree(base)


@pytest.mark.usefixtures("namespaces")
def test_cwd_through_a_descriptor_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    """CVE-2024-21626: a working directory of /proc/self/fd/N, or behind a link to it."""
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "w").symlink_to("/proc/self/fd/5")
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    slots = [handle] * 8
    try:
        start = fenced(
            Op("open_proc", [40]),
            Op("bind_root", [ROOT], [str(rootfs)]),
            Op("mount", [ROOT, 0, 0, CREATE_DIR], ["proc", "proc", "/proc"]),
            Op("pivot", [ROOT, 0]),
            flags=NEWPID,
        )
        for path in (*(f"/proc/self/fd/{number}" for number in range(3, 65)), "/w", "/proc/1/cwd", "/proc/1/root"):
            run = launcher.start([*start, Op("cwd", [0], [path])], slots=slots).finish()
            assert run.error is not None
            assert run.error.value in {errno.ELOOP, errno.ENOENT}, path
    finally:
        os.close(handle)


@pytest.mark.usefixtures("namespaces")
def test_cwd_outside_the_root_is_noticed(launcher: Launcher, tmp_path: Path) -> None:
    """Whatever led there: a directory the kernel calls unreachable is refused."""
    (tmp_path / "sub").mkdir()
    plan = fenced(
        Op("open_source", [30, 0], [str(tmp_path)]),  # a mount that is attached nowhere, as descriptor 4
        Op("host_chdir", [], ["/proc/self/fd/4/sub"]),
        Op("cwd", [0], ["."]),
    )
    error = launcher.run(plan).refused(len(plan) - 1, errno.EXDEV)
    assert error.detail == b"(unreachable)/sub"


# -- find_program -------------------------------------------------------------------------------------------------


def find(name: str, path: str = PATH) -> Op:
    return Op("find_program", [], [name, path])


def parsed(detail: bytes) -> tuple[int, int, str, bytes]:
    mode, flags = struct.unpack_from("<II", detail)
    path, _, head = detail[8:].partition(b"\0")
    return mode, flags, path.decode(), head


def test_find_program_in_path(launcher: Launcher, tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a/prog").write_text("#!/bin/sh\necho a\n")  # not executable
    (tmp_path / "b/prog").mkdir()  # not a file
    (tmp_path / "c/prog").write_text("#!/bin/sh\necho c\n")
    (tmp_path / "c/prog").chmod(0o755)
    path = f"/nowhere:{tmp_path}/a:/etc/passwd:{tmp_path}/b::{tmp_path}/c:/bin"
    plan = [find("prog", path), Op("exec", [1], ["prog"])]
    assert launcher.output(plan) == "c\n"
    launcher.run([plan[0], find("prog", "/nowhere")]).refused(1, errno.ENOENT)  # what the first one saw is forgotten
    error = launcher.run([find("prog", f"/nowhere:{tmp_path}/a:{tmp_path}/b")]).refused(0, errno.EACCES)
    mode, _, found, head = parsed(error.detail)
    assert (mode, found) == (stat.S_IFREG | 0o644, f"{tmp_path}/a/prog")
    assert head == b"#!/bin/sh\necho a\n"
    for missing, where in (("prog", ""), ("prog", "/nowhere:/bin"), ("", "/bin"), ("x" * 5000, "/bin")):
        error = launcher.run([find(missing, where)]).refused(
            0, errno.ENAMETOOLONG if len(missing) > 99 else errno.ENOENT
        )
        assert error.detail == b""


def test_an_empty_entry_of_path_is_the_working_directory(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "prog").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "prog").chmod(0o755)
    for path in ("/nowhere::/bin", ":/bin"):
        plan = [Op("cwd", [0], [str(tmp_path)]), find("prog", path), Op("exec", [1], ["prog"])]
        assert launcher.output(plan) == "here\n"


def test_find_program_with_a_slash(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "prog").write_text("#!/bin/sh\necho run\n")
    (tmp_path / "link").symlink_to("prog")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo", 0o777)
    error = launcher.run([find(f"{tmp_path}/prog")]).refused(0, errno.EACCES)
    assert parsed(error.detail)[0] == stat.S_IFREG | 0o644
    error = launcher.run([find(f"{tmp_path}/dir")]).refused(0, errno.EACCES)
    assert parsed(error.detail)[0] == stat.S_IFDIR | 0o755
    assert parsed(error.detail)[3] == b""
    error = launcher.run([find(f"{tmp_path}/fifo")]).refused(0, errno.EACCES)  # and does not block
    assert stat.S_ISFIFO(parsed(error.detail)[0])
    for name in ("none", "prog/x"):
        assert launcher.run([find(f"{tmp_path}/{name}")]).refused(0, errno.ENOENT).detail == b""
    (tmp_path / "dangling").symlink_to("/no/such")
    for name, value, text in (("loop", errno.ELOOP, b"loop"), ("dangling", errno.ENOENT, b"/no/such")):
        error = launcher.run([find(f"{tmp_path}/{name}")]).refused(0, value)
        assert stat.S_ISLNK(parsed(error.detail)[0])
        assert parsed(error.detail)[2:] == (f"{tmp_path}/{name}", text)
    (tmp_path / "prog").chmod(0o755)
    for name in (f"{tmp_path}/link", "./prog", "dir/../link"):
        plan = [Op("cwd", [0], [str(tmp_path)]), find(name), Op("exec", [1], ["prog"])]
        assert launcher.output(plan) == "run\n"


@pytest.mark.usefixtures("namespaces")
def test_a_program_on_a_mount_without_exec(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "prog").write_text("#!/bin/sh\n")
    (tmp_path / "prog").chmod(0o755)
    target = tmp_path / "t"
    target.mkdir()
    plan = fenced(
        Op("open_root", [ROOT], ["/"]),
        Op("bind", [ROOT, NO_SLOT, 0, 8, 0, 0, 0, 0], [str(tmp_path), str(target)]),
        find(f"{target}/prog"),
    )
    error = launcher.run(plan).refused(len(plan) - 1, errno.EACCES)
    mode, flags, _, _ = parsed(error.detail)
    assert mode == stat.S_IFREG | 0o755
    assert flags & 8  # ST_NOEXEC


def test_programs_that_are_links_into_proc_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    """CVE-2019-5736, CVE-2024-21626: the init's own executable, or a path through one of its descriptors."""
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in ("/proc/self/exe", "/proc/self/fd/5/bin/sh", "/proc/self/fd/5/../bin/sh"):
            launcher.run([find(name)], slots=[handle]).refused(0, errno.ELOOP)
    finally:
        os.close(handle)


def test_host_program(launcher: Launcher, tmp_path: Path) -> None:
    """For hooks: the operator's path, whatever links lead there."""
    run = [Op("exec", [3], ["sh", "-c", "echo ran"])]
    shell_path = os.path.realpath(shutil.which("sh") or "/bin/sh")
    (tmp_path / "link").symlink_to(f"/proc/self/root{shell_path}")
    for path in (shell_path, str(tmp_path / "link")):
        assert launcher.output([Op("host_program", [], [path]), *run]) == "ran\n"
    launcher.run([Op("host_program", [], [""])]).refused(0, errno.ENOENT)
    launcher.run([Op("host_program", [], ["x" * 4096])]).refused(0, errno.ENAMETOOLONG)
    launcher.run([Op("host_program", [], [str(tmp_path / "none")]), *run]).refused(1, errno.ENOENT)


def test_descriptors_are_closed_while_the_program_is_looked_up(launcher: Launcher) -> None:
    """CVE-2024-21626: close-on-exec is too late for a path through /proc/self/fd."""
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        plan = [Op("host_program", [], ["/proc/self/fd/5/bin/sh"]), Op("exec", [1], ["sh"])]
        launcher.run(plan, slots=[handle]).refused(1, errno.ENOENT)
    finally:
        os.close(handle)


# -- exec ---------------------------------------------------------------------------------------------------------


def test_arguments_and_environment(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "show"
    script.write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\nenv | grep ^X | sort\n')
    script.chmod(0o755)
    arguments = ["name", "", "two words", "ümläut", "x" * 10000, "$(id)"]
    plan = [find(str(script)), Op("exec", [len(arguments)], [*arguments, "X1=", "X2=a=b", "PATH=/bin:/usr/bin"])]
    expected = "".join(f"[{word}]\n" for word in arguments[1:]) + "X1=\nX2=a=b\n"
    assert launcher.output(plan) == expected


def test_many_arguments(launcher: Launcher) -> None:
    words = [str(number) for number in range(20000)]
    plan = [
        find("sh"),
        Op("exec", [len(words) + 4], ["sh", "-c", "echo $#", "sh", *words, *(f"E{n}=" for n in range(999))]),
    ]
    assert launcher.output(plan) == "20000\n"
    launcher.run([find("true"), Op("exec", [1], ["x" * (1 << 20)])]).refused(1, errno.E2BIG)
    launcher.run([find("true"), Op("exec", [3], ["true"])]).refused(1, errno.EINVAL)
    launcher.run([Op("exec", [1], ["true"])]).refused(0, errno.EINVAL)  # nothing was looked for


def test_why_a_program_does_not_start(launcher: Launcher, tmp_path: Path) -> None:
    program = tmp_path / "prog"
    contents = {
        errno.ENOENT: b"#!/no/such/interpreter -x\n",
        errno.ENOEXEC: b"echo a script without its first line\n",
        errno.EACCES: b"#!/etc/passwd\n",
    }
    for error, content in contents.items():
        program.write_bytes(content)
        program.chmod(0o755)
        detail = launcher.run([find(str(program)), Op("exec", [1], ["prog"])]).refused(1, error).detail
        assert parsed(detail)[2:] == (str(program), content)
    program.write_bytes(b"\x7fELF" + bytes(4000))
    detail = launcher.run([find(str(program)), Op("exec", [1], ["prog"])]).refused(1, errno.ENOEXEC).detail
    assert parsed(detail)[3] == b"\x7fELF" + bytes(1020)


def test_kept_descriptors(launcher: Launcher, tmp_path: Path) -> None:
    files = []
    for number in range(4):
        (tmp_path / str(number)).write_text(f"file {number}\n")
        files.append(os.open(tmp_path / str(number), os.O_RDONLY))
    try:
        # the numbers cross each other, the control socket and free ones; slot 3 is not kept
        kept = [(0, 6), (1, 5), (2, 3)]
        plan = [
            *(Op("keep_fd", pair) for pair in kept),
            *shell("ls /proc/self/fd | tr '\\n' ' '; cat <&3 <&3; cat <&5; cat <&6"),
        ]
        text = launcher.output(plan, slots=files)
        listed, *lines = text.split("file ")
        assert set(listed.split()) - {"4"} == {"0", "1", "2", "3", "5", "6"}
        assert [line.strip() for line in lines] == ["2", "1", "0"]
        text = launcher.output(
            [Op("keep_fd", [3, 200]), *shell("cat /proc/self/fd/200; ls /proc/self/fd")], slots=files
        )
        assert text.split() == ["file", "3", "0", "1", "2", "200", "3"]
        for bad in ([9, 5], [1024, 5]):
            launcher.run([Op("keep_fd", bad)], slots=files).refused(0, errno.EBADF)
        for bad in ([0, 2], [0, 1 << 20], [0, 1 << 32]):
            launcher.run([Op("keep_fd", bad)], slots=files).refused(0, errno.EINVAL)
    finally:
        for fd in files:
            os.close(fd)


def test_an_error_after_keeping_number_3_is_still_heard(launcher: Launcher, tmp_path: Path) -> None:
    fd = os.open("/etc/passwd", os.O_RDONLY)
    program = tmp_path / "prog"
    program.write_text("#!/no/such\n")
    program.chmod(0o755)
    try:
        plan = [Op("keep_fd", [0, 3]), find(str(program)), Op("exec", [1], ["prog"])]
        launcher.run(plan, slots=[fd]).refused(2, errno.ENOENT)
    finally:
        os.close(fd)


# -- HOME ---------------------------------------------------------------------------------------------------------


def home(launcher: Launcher, rootfs: Path, uid: int, *environment: str) -> str:
    plan = fenced(
        Op("bind_root", [ROOT], [str(rootfs)]),
        Op("pivot", [ROOT, 0]),
        Op("home", [uid]),
        find("sh", "/bin"),
        Op("exec", [3], ["sh", "-c", 'echo "$HOME"', *environment]),
    )
    return launcher.output(plan).rstrip("\n")


@NEEDS_BUSYBOX
@pytest.mark.usefixtures("namespaces")
def test_home(launcher: Launcher, tmp_path: Path) -> None:
    assert BUSYBOX is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc").mkdir()
    shutil.copy(BUSYBOX, tmp_path / "bin/sh")
    passwd = tmp_path / "etc/passwd"
    assert home(launcher, tmp_path, 0) == "/"  # no such file
    lines = [
        "root:x:0:0:root:/root:/bin/sh",
        "odd:x:+7:7::/plus:",
        "wrap:x:4294967303:7::/wrapped:",
        "long:x:00000000007:7::/eleven:",
        "rel:x:7:7::relative:",
        "none:x:7:7:::",
        "7:x:8:7:g:/eight:/bin/sh",
        "seven:x:007:7:a comment:/home/seven:/bin/sh",
        "again:x:7:7::/later:",
        "far:x:4294967294:1::/" + "f" * 3000 + ":",
        "toolong:x:10:1::/" + "f" * 5000 + ":",
        "# 11:x:11:1::/comment",
        "",
        "last:x:9:9::/last",
    ]
    passwd.write_text("\n".join(lines))
    expected = {0: "/root", 7: "/home/seven", 8: "/eight", 9: "/last", 10: "/", 12: "/", 4294967294: "/" + "f" * 3000}
    for uid, where in expected.items():
        assert home(launcher, tmp_path, uid) == where
    assert home(launcher, tmp_path, 7, "HOMER=x", "HOME=/given") == "/given"
    assert home(launcher, tmp_path, 7, "H", "HOMER=x") == "/home/seven"
    passwd.write_text("x:x:1:1::/pad:\n" * 800_000 + "far:x:5:5::/beyond:\n")  # more than is read
    assert home(launcher, tmp_path, 5) == "/"
    assert home(launcher, tmp_path, 1) == "/pad"


@NEEDS_BUSYBOX
@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("kind", ["fifo", "directory", "link-out", "link-in", "loop", "zero"])
def test_home_from_a_passwd_that_is_none(launcher: Launcher, tmp_path: Path, kind: str) -> None:
    assert BUSYBOX is not None
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/etc").mkdir()
    shutil.copy(BUSYBOX, tmp_path / "root/bin/sh")
    passwd = tmp_path / "root/etc/passwd"
    (tmp_path / "outside").write_text("x:x:3:3::/outside:\n")
    (tmp_path / "root/inside").write_text("x:x:3:3::/inside:\n")
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "zero":
        if os.geteuid() != 0:
            pytest.skip("needs root to make a device")
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    else:
        targets = {"link-out": str(tmp_path / "outside"), "link-in": "/inside", "loop": "passwd"}
        passwd.symlink_to(targets[kind])
    assert home(launcher, tmp_path / "root", 3) == ("/inside" if kind == "link-in" else "/")


# -- seccomp ------------------------------------------------------------------------------------------------------


def seccomp(filter_bytes: bytes, flags: int = 0) -> Op:
    return Op("seccomp", [flags], [filter_bytes])


def test_seccomp(launcher: Launcher) -> None:
    deny = seccomp(bpf(ALLOW, {"openat2": ERRNO | errno.EXFULL}))
    plan = [Op("no_new_privs"), find("sh"), deny, Op("exec", [3], ["sh", "-c", "cat /proc/self/status"])]
    text = launcher.output(plan)
    assert "Seccomp:\t2\n" in text
    assert "NoNewPrivs:\t1\n" in text


def test_seccomp_filters_that_are_none(launcher: Launcher) -> None:
    first = Op("no_new_privs")
    for data in (b"", b"1234567", bpf(ALLOW, {}) + b"x", b"\xff" * 8, bpf(ALLOW, {})[:8], bytes(8 * 5000)):
        launcher.run([first, seccomp(data)]).refused(1, errno.EINVAL)
    launcher.run([first, seccomp(bpf(ALLOW, {}), 8)]).refused(1, errno.EINVAL)  # a listener nobody would get
    launcher.run([Op("capabilities", [0, 0, 0, 0]), seccomp(bpf(ALLOW, {}))]).refused(1, errno.EACCES)


def listening(program: str = "true") -> list[Op]:
    notify = {"sendmsg": 0x7FC00000, "exit_group": 0x7FC00000, "close_range": 0x7FC00000}
    return [Op("no_new_privs"), find(program), seccomp(bpf(ALLOW, notify), 8), Op("exec", [1], [program])]


def test_a_filter_with_a_listener_hands_it_over_before_the_program(launcher: Launcher) -> None:
    run = launcher.start(listening())
    data, rights, _, _ = run.control.recvmsg(1000, socket.CMSG_SPACE(4))
    assert struct.unpack("<IIiI", data) == (2, 2, 5, 0)  # SYNC, the operation, the code
    (fd,) = struct.unpack("i", rights[0][2])
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"
        assert len(os.listdir(f"/proc/{run.pid}/task")) == 2
        run.go()
        assert run.control.recv(1000) == b"", "the program runs, and nobody was asked before"
    finally:
        os.close(fd)  # its exit_group gets ENOSYS now, and the C library tries exit
    run.wait()
    assert run.statuses[run.pid] == 0


@pytest.mark.parametrize("end", ["abort", "close", "nonsense"])
def test_a_listener_nobody_takes_ends_the_process(end: str, launcher: Launcher) -> None:
    run = launcher.start(listening())
    assert struct.unpack("<IIiI", run.control.recv(1000))[2] == 5  # the descriptor is dropped
    if end == "close":
        run.control.close()
    else:
        run.control.send(struct.pack("<II", 2 if end == "abort" else 77, 0))
    run.wait()
    assert run.code == 1


def test_seccomp_before_exec_kills_for_nothing_but_exec(launcher: Launcher) -> None:
    """What the init has to do between filter and program is done before: a filter may kill for all else."""
    allowed = {"execve": ERRNO | errno.EPERM, "sendmsg": ALLOW, "exit_group": ALLOW}
    plan = [Op("no_new_privs"), find("true"), seccomp(bpf(KILL, allowed)), Op("exec", [1], ["true"])]
    detail = launcher.run(plan).refused(3, errno.EPERM).detail
    assert parsed(detail)[2].endswith("/true")  # the explanation was made before, too


def test_seccomp_that_allows_nothing(launcher: Launcher) -> None:
    """Nothing can be said, not even the end: it must still be one."""
    for action in (ERRNO | errno.EPERM, KILL):
        plan = [Op("no_new_privs"), find("true"), seccomp(bpf(action, {})), Op("exec", [1], ["true"])]
        run = launcher.run(plan)
        assert run.error is None
        assert run.code < 0  # by a signal, so that the parent can tell that the program never ran


def test_seccomp_that_knows_no_sendmsg(launcher: Launcher) -> None:
    plan = [Op("no_new_privs"), find("true")]
    plan += [seccomp(bpf(ALLOW, {"sendmsg": ERRNO | errno.EPERM, "execve": ERRNO | errno.ENOSYS}))]
    launcher.run([*plan, Op("exec", [1], ["true"])]).refused(3, errno.ENOSYS)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_a_profile_older_than_our_calls(launcher: Launcher, tmp_path: Path, error: int) -> None:
    """Loaded early, it may not know what the init would use after it; older runtimes run with it, so must we."""
    unknown: dict[str, int] = dict.fromkeys(("openat2", "clone3", "close_range", "faccessat2"), ERRNO | error)
    plan = [
        Op("no_new_privs"),
        seccomp(bpf(ALLOW, unknown)),
        Op("cwd", [0], [str(tmp_path)]),
        Op("home", [os.geteuid()]),
        *shell("pwd; ls /proc/self/fd"),
    ]
    assert launcher.output(plan).split() == [str(tmp_path), "0", "1", "2", "3"]


def test_without_clone3(launcher: Launcher, init_binary: Path, tmp_path: Path) -> None:
    """Docker's filter answers ENOSYS to clone3; the init inside still clones and runs hooks. Here one init, under
    such a filter, becomes another."""
    inner = [
        Op("clone", [0, NO_SLOT]),
        Op("sync", [3]),
        Op("hook", [20000, 3], ["/bin/sh", "sh", "-c", f"cat > {tmp_path}/out", "PATH=/bin:/usr/bin"]),
        *shell("exit 9"),
    ]
    memfd = sealed(encode(inner, 0))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outer = [
        Op("keep_fd", [0, 3]),
        Op("keep_fd", [1, 4]),
        Op("no_new_privs"),
        Op("find_program", [], [str(init_binary), ""]),
        seccomp(bpf(ALLOW, {"clone3": ERRNO | errno.ENOSYS})),
        Op("exec", [1], ["knarr-init"]),
    ]
    started = launcher.start(outer, slots=[theirs.fileno(), memfd])
    theirs.close()
    os.close(memfd)
    assert started.receive() is None
    ours.settimeout(20)
    run = Run(started.pid, ours, clones=True)
    run.finish(b"state")
    started.statuses = run.statuses
    assert run.error is None
    assert run.code == 9
    assert run.child not in {0, run.pid}
    assert (tmp_path / "out").read_bytes() == b"state"
    ours.close()


@ROOT_ONLY
def test_seccomp_without_no_new_privs_after_the_user(launcher: Launcher) -> None:
    """CAP_SYS_ADMIN, kept permitted over the change of user, loads the filter; the program does not get it."""
    plan = [
        Op("user", [1000, 1000, KEEP_CAPS]),
        find("sh"),
        seccomp(bpf(ALLOW, {})),
        Op("capabilities", [0, 0, 0, 0]),
        Op("exec", [3], ["sh", "-c", "cat /proc/self/status"]),
    ]
    text = launcher.output(plan)
    assert "Seccomp:\t2\n" in text
    assert "NoNewPrivs:\t0\n" in text
    for field in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{field}:\t0000000000000000\n" in text


# -- a whole container --------------------------------------------------------------------------------------------


@NEEDS_BUSYBOX
@pytest.mark.usefixtures("namespaces")
def test_nothing_of_the_host_inside(launcher: Launcher, tmp_path: Path) -> None:
    assert BUSYBOX is not None
    (tmp_path / "bin").mkdir()
    for name in ("sh", "ls", "cat"):
        shutil.copy(BUSYBOX, tmp_path / "bin" / name)
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    plan = fenced(
        Op("open_proc", [40]),
        Op("bind_root", [ROOT], [str(tmp_path)]),
        Op("mount", [ROOT, 0, 0, CREATE_DIR], ["proc", "proc", "/proc"]),
        Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/dev"]),
        Op("bind", [ROOT, NO_SLOT, CREATE_LIKE_SOURCE | RECURSIVE, 0, 0, 0, 0, 0], ["/dev/null", "/dev/null"]),
        Op("mask", [ROOT], ["/proc/version"]),
        Op("readonly", [ROOT], ["/proc/sys"]),
        Op("pivot", [ROOT, 0]),
        Op("reopen_null"),
        Op("cwd", [0], ["/"]),
        find("sh", "/bin"),
        Op("exec", [3], ["sh", "-c", "ls -l /proc/self/fd /proc/self/cwd /proc/self/root; cat /proc/self/mountinfo"]),
        flags=NEWPID,
    )
    try:
        text = launcher.output(plan, slots=[handle, handle])
    finally:
        os.close(handle)
    links = [line.split(" -> ")[-1] for line in text.splitlines() if " -> " in line]
    assert [link for link in links if not link.startswith("pipe:")] == ["/", "/", "/dev/null"]
    points = [line.split()[4] for line in text.splitlines() if " - " in line]
    assert set(points) == {"/", "/proc", "/dev", "/dev/null", "/proc/version", "/proc/sys"}


def test_the_end_without_exec(launcher: Launcher) -> None:
    launcher.run([]).succeeded()
    launcher.run([Op("umask", [0])]).succeeded()


def test_a_user_namespace_needs_no_root(launcher: Launcher, init_binary: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user")
    setpriv = shutil.which("setpriv")
    if (
        setpriv is None
        or subprocess.run(
            [setpriv, "--reuid=1234", "--regid=1234", "--clear-groups", "unshare", "-U", "true"], check=False
        ).returncode
    ):
        pytest.skip("ordinary users get no user namespace here")
    ordinary = Launcher(init_binary, [setpriv, "--reuid=1234", "--regid=1234", "--clear-groups"])
    plan = [
        Op("open_proc", [40]),
        Op("clone", [NEWUSER | 0x20000 | NEWPID, NO_SLOT]),
        Op("sync", [7]),
        Op("become_root", [0]),
        Op("propagation", [1 << 18 | 1 << 14], ["/"]),
        Op("open_root", [ROOT], ["/"]),
        Op("mount", [ROOT, 0, 0, 0], ["tmpfs", "tmpfs", "/mnt"]),
        find("sh"),
        Op("exec", [3], ["sh", "-c", "touch /mnt/x && id -u"]),
    ]
    reader, writer = os.pipe()
    try:
        run = ordinary.start(plan, stdio=(None, writer, writer)).stop(7)
        os.close(writer)
        Path(f"/proc/{run.child}/setgroups").write_text("deny")
        Path(f"/proc/{run.child}/uid_map").write_text("0 1234 1")
        Path(f"/proc/{run.child}/gid_map").write_text("0 1234 1")
        run.go()
        run.finish().succeeded()
        with os.fdopen(reader) as stream:
            assert stream.read() == "0\n"
    finally:
        ordinary.close()

"""User-mode Linux: the program found and checked, and how it boots in a few hundredths of a second (hot).

Linux built for ARCH=um is an ordinary program. Debian and Ubuntu package it as user-mode-linux.
Documentation/virt/uml/user_mode_linux_howto_v2.rst of Linux; docs/isolation-kernel.md has what each step costs.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socketpair
from select import POLLIN, poll

from knarr.base.errors import FileError, Unsupported
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.isolation.nic import pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from knarr.isolation.confine import Confinement
    from knarr.isolation.kinds import Share

PROGRAM = "linux.uml"
VARIABLE = "KNARR_UML"
_FOLDERS = ("/usr/local/bin", "/usr/bin")
_MODULES = "lib/uml/modules"
_OLDEST = (5, 12)  # knarr-init needs mount_setattr(2)
_PATIENCE = 10.0
_ADVICE = f"apt-get install user-mode-linux, or name the program in {VARIABLE}"


class Kernel(Record):
    """A user-mode Linux that can be started: its path, what ``uname -r`` says in it, the ELF files it is loaded with.

    ``libraries`` are (path inside, file) pairs, the ELF interpreter first; none for a static program.
    """

    path: str
    release: str
    libraries: tuple[tuple[str, str], ...] = ()


def find(environment: Mapping[str, str]) -> Kernel:
    """The user-mode Linux of this machine: KNARR_UML, ``linux.uml`` in PATH, or where distributions put it.

    Raises Unsupported with advice when there is none, or none that serves.
    """
    named = environment.get(VARIABLE)
    if named:
        return check(os.path.abspath(named))
    folders = [folder for folder in environment.get("PATH", "").split(":") if folder.startswith("/")]
    for folder in (*folders, *_FOLDERS):
        path = f"{folder}/{PROGRAM}"
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return check(path)
    raise Unsupported("isolation kernel", f"there is no user-mode Linux ({PROGRAM}) on this machine", hint=_ADVICE)


def check(path: str) -> Kernel:
    """The user-mode Linux at ``path``, asked for its version. Raises Unsupported when it is none or too old."""
    machine = os.uname().machine
    if machine != "x86_64":
        raise Unsupported("isolation kernel", f"user-mode Linux does not run on {machine}")
    release = _asked(path)
    numbers = _numbers(release)
    if len(numbers) != 2:
        raise Unsupported("isolation kernel", f"{path} --version does not answer as user-mode Linux does", hint=_ADVICE)
    if numbers < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise Unsupported("isolation kernel", f"{path} is Linux {release}, older than {oldest}", hint=_ADVICE)
    return Kernel(path, release, _libraries(path, numbers))


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.partition("-")[0].split(".")[:2] if part.isdigit())


def _asked(path: str) -> str:
    answer, end = os.pipe2(os.O_CLOEXEC)
    pid = 0
    try:
        try:
            pid = os.posix_spawn(path, [path, "--version"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, end, 1)])
        except OSError as error:
            raise FileError("start", path, error.errno or 0, hint=_ADVICE) from None
        finally:
            os.close(end)
        poller = poll()
        poller.register(answer, POLLIN)
        if not poller.poll(_PATIENCE * 1000):
            raise Unsupported("isolation kernel", f"{path} --version does not answer", hint=_ADVICE)
        return os.read(answer, 100).decode("ascii", "replace").strip()
    finally:
        os.close(answer)
        if pid:
            os.kill(pid, 9)  # it has said all; our child, not reaped yet
            os.waitpid(pid, 0)


def _libraries(path: str, numbers: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    from knarr.isolation.programs import libraries  # cold: a small reader of ELF headers, 0.4 ms

    found = libraries(path, *(_LATER_LIBRARIES if numbers >= _LATER else ()))
    if found is None:
        raise Unsupported("isolation kernel", f"a library of {path} is missing", hint=_ADVICE)
    return found


def module_folder(kernel: Kernel) -> str:
    """Where the modules of a kernel are: in the package it came in, which may be one only unpacked."""
    top = f"{os.path.dirname(os.path.dirname(kernel.path))}/{_MODULES}/{kernel.release}"
    return top if os.path.isdir(top) else f"/usr/{_MODULES}/{kernel.release}"


def modules(kernel: Kernel, names: Sequence[str]) -> list[str]:
    """The files of these kernel modules ("overlay"), those they need first, from the package the kernel came in.

    Raises Unsupported without one.
    """
    top = module_folder(kernel)
    try:
        lines = read_file(f"{top}/modules.dep", 16 << 20).decode("utf-8", "surrogateescape").splitlines()
    except FileError as error:
        why = f"the modules of {kernel.release} are not there: {error}"
        raise Unsupported("isolation kernel", why, hint=_ADVICE) from None
    found: list[str] = []
    for name in names:
        line = next((line for line in lines if line.partition(":")[0].endswith(f"/{name}.ko")), None)
        if line is None and _is_built_in(top, name):
            continue
        if line is None:
            raise Unsupported("isolation kernel", f"{top} has no module {name}", hint=_ADVICE)
        own, _, needed = line.partition(":")
        found += [each for each in (*reversed(needed.split()), own) if each not in found]
    return [f"{top}/{each}" for each in found]


def _is_built_in(top: str, name: str) -> bool:
    """Not by modules.builtin, which lacks what cannot be a module: IPv6 from Linux 7 on."""
    try:
        facts = read_file(f"{top}/modules.builtin.modinfo", 16 << 20)
    except FileError:
        return False
    return f"\0{name}.".encode() in b"\0" + facts


# Initcalls that a container does not need and that take time. The RAID one measures its own speed for 0.85 s.
# The one of the crypto layer asks for a module that would test each algorithm, by starting /sbin/modprobe, not there:
# 0.01 s. Without it an algorithm is tested when it is first used (crypto_larval_wait), and /proc/crypto is missing.
# Of devices, each that appears makes the kernel start /sbin/hotplug, not there either: 64 serial lines, 0.02 s.
_SKIPPED = (
    *("raid6_select_algo", "raid6_init", "strp_dev_init", "init_zswap", "init_jfs_fs", "init_btrfs_fs", "init_xfs_fs"),
    *("crypto_algapi_init", "ssl_init"),
)
CHANNEL = "tty1"
"""The name of the channel's device in the guest."""


def command_line(
    program: str,
    *,
    memory: int,
    initramfs: str,
    run: str,
    channel: int,
    shares: str = "",
    nics: Sequence[int] = (),
    ring: str = "",
    words: Sequence[str] = (),
) -> list[str]:
    """The arguments of user-mode Linux for a boot of what a container needs.

    ``memory`` in bytes. ``initramfs`` and the directory ``run`` (for its socket) are paths as it sees them, ``shares``
    the directory that hostfs may mount from. ``channel`` is the descriptor that becomes /dev/tty1 (CHANNEL), a terminal
    until it is made raw. Each of ``nics`` is a socket whose packets are the Ethernet frames of vec0, vec1, ….
    ``ring`` is a file that becomes the block device ubda, read-only.
    Its messages go to standard error.
    """
    return [
        program,
        f"mem={memory >> 10}k",
        f"initrd={initramfs}",
        f"uml_dir={run}",
        "umid=guest",
        # not 15 terminals besides
        "con=none",
        f"con1=fd:{channel}",
        "console=stderr0",
        "stderr=1",  # from Linux 6.8 on it has to be asked for that console
        "quiet",
        "noreboot",
        "panic=-1",
        "initcall_blacklist=" + ",".join(_SKIPPED),
        # 512 terminals of BSD's kind: 0.3 s
        "pty.legacy_count=0",
        # the loop that delays are counted in, instead of measuring it for 0.05 s
        "lpj=20000000",
        *([f"hostfs={shares}"] if shares else []),
        *(f"vec{number}:transport=fd,fd={fd}" for number, fd in enumerate(nics)),
        # r: read-only, c: not locked, d: never taken for one that lies over another
        *([f"ubd0rcd={ring}", "knarr.ring=ubda"] if ring else []),
        *words,
        f"knarr.channel={CHANNEL}",
    ]


# -- what it needs of the host -----------------------------------------------------------------------------------------

_CALLS = (
    # loading and starting
    *("access", "arch_prctl", "brk", "execve", "exit", "exit_group", "mmap", "mprotect", "munmap", "madvise", "mremap"),
    *("prlimit64", "getrlimit", "rseq", "set_robust_list", "set_tid_address", "uname", "getrandom", "futex"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "setsid", "getpgrp", "setpgid"),
    # its processes: what runs in the guest, under ptrace
    *("ptrace", "wait4", "waitid", "tgkill", "tkill", "modify_ldt", "set_thread_area", "sched_yield"),
    # signals and time
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait"),
    *(
        "sigaltstack",
        "pause",
        "timer_create",
        "timer_settime",
        "timer_gettime",
        "timer_delete",
        "setitimer",
        "getitimer",
    ),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    # waiting for descriptors
    *("epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "poll", "ppoll", "select", "pselect6"),
    # channels and its control socket
    *("socketpair", "bind", "connect", "getsockname", "sendto", "sendmsg", "recvfrom", "recvmsg", "shutdown"),
    *("sendmmsg", "recvmmsg"),  # frames of network devices
    # descriptors and files: memory, hostfs, block devices
    *("open", "openat", "close", "dup", "dup2", "fcntl", "pipe", "pipe2", "read", "write", "readv", "writev", "lseek"),
    *("pread64", "pwrite64", "preadv", "pwritev", "fsync", "fdatasync", "ftruncate", "truncate", "fallocate", "flock"),
    *("statfs", "fstatfs", "stat", "fstat", "lstat", "newfstatat", "statx", "getdents64", "getcwd", "chdir"),
    *("readlink", "readlinkat", "mkdir", "rmdir", "unlink", "unlinkat", "link", "symlink", "rename", "renameat2"),
    *("mknod", "mknodat", "chmod", "fchmod", "chown", "fchown", "lchown", "utimes", "utimensat", "futimesat"),
)
# Later kernels': each process begins as a small program in a memfd, the idle loop waits for signals.
_LATER_CALLS = ("memfd_create", "execveat", "close_range", "signalfd4")
_LATER = (6, 10)
_LATER_LIBRARIES = ("libgcc_s.so.1",)
"""Later kernels' threads end by pthread_exit(3), for which the C library loads it."""
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_SIGABRT = 6
_PRCTL = {"PR_SET_PDEATHSIG": 1, "PR_SET_NAME": 15}
_ADDR_NO_RANDOMIZE = 0x40000
_IOCTLS = {
    "TCGETS": 0x5401,
    "TCSETS": 0x5402,
    "TCSETSW": 0x5403,
    "TCSETSF": 0x5404,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIOASYNC": 0x5452,
}


def calls(release: str) -> tuple[dict[str, Any], ...]:
    """The system calls user-mode Linux makes, of this ``uname -r``, as rules of config.json's linux.seccomp.

    clone makes no namespace, a socket is a Unix one, ioctl asks about terminals. kill sends no SIGABRT: a kernel that
    panics sends itself one until it dies or is refused, and the first process of a pid namespace does not die of it.
    """
    allow = "SCMP_ACT_ALLOW"
    no_namespace = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    unix = {"index": 0, "value": _AF_UNIX, "op": "SCMP_CMP_EQ"}
    rules: list[dict[str, Any]] = [
        {"names": list(_CALLS), "action": allow},
        {"names": ["clone"], "action": allow, "args": [no_namespace]},
        {"names": ["socket"], "action": allow, "args": [unix]},
        {"names": ["kill"], "action": allow, "args": [{"index": 1, "value": _SIGABRT, "op": "SCMP_CMP_NE"}]},
        *_each("ioctl", 1, _IOCTLS.values()),
    ]
    if _numbers(release) >= _LATER:
        rules.append({"names": list(_LATER_CALLS), "action": allow})
        rules += _each("prctl", 0, _PRCTL.values())
        rules += _each("personality", 0, (_ADDR_NO_RANDOMIZE,))
    return tuple(rules)


def _each(name: str, index: int, values: Iterable[int]) -> list[dict[str, Any]]:
    """A rule for each value this argument of the call may have."""
    arguments = [[{"index": index, "value": value, "op": "SCMP_CMP_EQ"}] for value in values]
    return [{"names": [name], "action": "SCMP_ACT_ALLOW", "args": each} for each in arguments]


class Launched(Record):
    """A guest that boots, a child of this process.

    ``channel`` is our end of its channel, non-blocking; ``console`` the end of a pipe with what its kernel says;
    ``nics`` our ends of its network devices.
    """

    pid: int
    pidfd: int
    channel: int
    console: int
    nics: tuple[int, ...] = ()


_SHARES = "/shares"
_BESIDE = 16 << 20  # of the tmpfs: pid file, socket, and the memory's odd pages


def launch(
    kernel: Kernel,
    *,
    initramfs: str,
    memory: int,
    shares: Sequence[Share] | None = (),
    nics: int = 0,
    words: Sequence[str] = (),
    filters: str = "",
    ring: str = "",
    deadline: float | None = None,
) -> Launched:
    """Boot a guest behind its wall; on return its kernel runs. ``memory`` in bytes; ``words`` for its command line.

    It has ``nics`` network devices, and the file ``ring`` as its block device ubda.

    With None for ``shares`` they are given to it later, by ``show``. ``filters`` as in ``confine.start``, whose errors
    it raises; nothing is left then. It dies with the thread that called.
    """
    from knarr.isolation.confine import start
    from knarr.runtime.create import Stdio

    wall = confinement(kernel, initramfs=initramfs, memory=memory, shares=shares, nics=nics, ring=ring, words=words)
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM, 0)
    opened: list[int] = []
    try:
        devices = [pair() for _ in range(nics)]
        opened += [fd for each in devices for fd in each]
        # What is not read in time is lost: a guest cannot make the host keep more than a pipe holds, nor wait for us.
        console, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        opened += (console, said)
        opened.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        handed = (theirs.fileno(), *(theirs_too for _, theirs_too in devices))
        process = start(wall, Stdio(opened[-1], said, said, preserve=handed), deadline=deadline, filters=filters)
        kept = tuple(our_end for our_end, _ in devices)
        opened = [fd for fd in opened if fd != console and fd not in kept]
        ours.setblocking(False)
        stay_on_one_processor(process.pid)
        return Launched(process.pid, process.pidfd, ours.detach(), console, kept)
    finally:
        ours.close()
        theirs.close()
        for fd in opened:
            os.close(fd)


def stay_on_one_processor(pid: int) -> None:
    """Keep a guest that has begun to boot, and the processes it will make, on one processor of those allowed.

    It has one processor, so one of its processes runs at a time; at each of their calls and faults one wakes another.
    On the same processor that is a switch, on another one that sleeps an interrupt as well: compiling took 2.5 times
    as long. Which one follows from the pid, so that guests are spread.
    """
    try:
        allowed = sorted(os.sched_getaffinity(pid))
        os.sched_setaffinity(pid, allowed[pid % len(allowed) :][:1])
    except OSError:
        pass  # it has ended, which its reader hears; or a cpuset changed at this moment


def confinement(
    kernel: Kernel,
    *,
    initramfs: str,
    memory: int,
    shares: Sequence[Share] | None = (),
    nics: int = 0,
    ring: str = "",
    words: Sequence[str] = (),
) -> Confinement:
    """What a guest's user-mode Linux may have."""
    from knarr.isolation.confine import TEMPORARY, Confinement, View, descriptor_limit, shown

    arguments = command_line(
        "/linux",
        memory=memory,
        initramfs="/initramfs",
        run=TEMPORARY,
        channel=3,
        shares=_SHARES,
        nics=range(4, 4 + nics),
        ring="/ring" if ring else "",
        words=words,
    )
    views = [View(kernel.path, "/linux", program=True), View(initramfs, "/initramfs")]
    views += [View(source, inside, program=True) for inside, source in kernel.libraries]
    views += [View(ring, "/ring")] if ring else []
    views += [View("/proc/cpuinfo", "/proc/cpuinfo")]
    views += [View("/dev/null", "/dev/null", device=True), View("/dev/urandom", "/dev/random", device=True)]
    views += shown(shares or (), _SHARES, asked=True)
    return Confinement(
        id="guest",
        arguments=tuple(arguments),
        views=tuple(views),
        calls=calls(kernel.release),
        scratch=memory + _BESIDE,
        descriptors=descriptor_limit(),
        later=_SHARES if shares is None else "",
        # Its own text is at a fixed place anyway; a heap at a random one makes the guest manage up to 1 GiB of memory
        # more that it never uses, 16 MiB of tables.
        fixed=True,
    )


def show(pidfd: int, shares: Sequence[Share], of: int = -1) -> None:
    """Give shares to a guest that was launched without, as the process of pidfd ``of`` sees them (-1: this one).

    Takes root. Raises as ``confine.attach``.
    """
    from knarr.isolation.confine import attach, shown

    attach(pidfd, shown(shares, _SHARES, asked=True), of)

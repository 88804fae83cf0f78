"""A guest in a microVM: QEMU and the virtiofsd that shows it the shares, each behind a wall of its own (cold).

Either is a program that works on what the guest's kernel says, so each is confined as user-mode Linux is: a container
without anything (isolation/confine.py). docs/isolation-vm.md says what is left to each.
"""

from __future__ import annotations

import os
import socket
import subprocess

from knarr.base.errors import FileError, Unsupported
from knarr.base.record import Record
from knarr.isolation import qemu
from knarr.isolation.confine import Confinement, View, attach, descriptor_limit, shown, start
from knarr.isolation.nic import pair
from knarr.isolation.programs import libraries
from knarr.runtime.create import Stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.isolation.confine import Confined
    from knarr.isolation.diskimage import DiskImage
    from knarr.isolation.kinds import Share

_SHARES = "/shares"
_FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios")
_SCRATCH = 1 << 20
_NEW_NAMESPACES = 0x7E020000


class Settings(Record):
    """One guest: ``kernel`` and ``initramfs`` are files, ``memory`` in bytes, ``accelerator`` as QEMU has it.

    With None for ``shares`` they are given to it later, by ``show``. ``tsc`` as in qemu.Machine. It has ``nics``
    network devices. ``words`` go on the kernel's command line, ``parameters`` on QEMU's. ``image`` is its disk.
    """

    kernel: str
    initramfs: str
    memory: int
    cpus: int = 1
    shares: tuple[Share, ...] | None = ()
    accelerator: str = "tcg"
    tsc: int = 0
    device_tree: str = ""
    nics: int = 0
    words: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    image: DiskImage | None = None


class Launched(Record):
    """A guest that boots: QEMU, a child of this process, and the ``helper`` beside it (virtiofsd; None without shares).

    ``channel`` is our end of its channel, a socket; ``console`` is the end of a pipe with what QEMU and its kernel say,
    of which as much is kept as a pipe holds. ``nics`` are our ends of its network devices. None of them blocks.
    """

    pid: int
    pidfd: int
    channel: int
    console: int
    helper: Confined | None
    nics: tuple[int, ...] = ()


def launch(
    hypervisor: qemu.Hypervisor, settings: Settings, *, filters: str = "", deadline: float | None = None
) -> Launched:
    """Boot a guest behind its wall; on return QEMU runs.

    It dies with the thread that called, virtiofsd with it. ``filters`` as in ``confine.start``, whose errors it raises;
    nothing is left then.
    """
    channel, theirs = socket.socketpair(socket.AF_UNIX)
    console, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    closed = [null, said, console]
    helper, connection = None, None
    try:
        devices = [pair() for _ in range(settings.nics)]
        closed += [fd for each in devices for fd in each]
        handed = [theirs.fileno(), said, *(theirs_too for _, theirs_too in devices)]
        if settings.shares is None or settings.shares:
            helper, connection = _serve(settings, (null, said, said), filters, deadline)
            handed.append(connection.fileno())
        if settings.image is not None:
            closed.append(_opened(settings.image))
            handed.append(closed[-1])
        stdio = Stdio(null, said, said, preserve=tuple(handed))
        process = start(confinement(hypervisor, settings), stdio, filters=filters, deadline=deadline)
        channel.setblocking(False)
        kept = tuple(our_end for our_end, _ in devices)
        closed = [fd for fd in closed if fd != console and fd not in kept]
        return Launched(process.pid, process.pidfd, channel.detach(), console, helper, kept)
    except BaseException:
        if helper is not None:
            helper.kill()
            helper.close()
        raise
    finally:
        for fd in closed:
            os.close(fd)
        for each in (channel, theirs, connection):
            if each is not None:
                each.close()


def _opened(image: DiskImage) -> int:
    flags = os.O_RDWR if image.writable else os.O_RDONLY
    try:
        return os.open(image.path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("open", image.path, error.errno or 0) from None


def show(helper: int, shares: Sequence[Share], of: int = -1) -> None:
    """Give shares to a guest that was launched without; ``helper`` is a pidfd of its virtiofsd, ``of`` as in attach.

    Takes root. Raises as ``confine.attach``.
    """
    attach(helper, shown(shares, _SHARES), of)


def confinement(hypervisor: qemu.Hypervisor, settings: Settings) -> Confinement:
    """What QEMU may have: itself, its libraries and firmware, the kernel, what it inherits; KVM where that is used."""
    shared = settings.shares != ()
    image = settings.image
    machine = qemu.Machine(
        kernel="/kernel",
        initrd="/initramfs",
        memory=settings.memory,
        cpus=settings.cpus,
        accelerator=settings.accelerator,
        channel=3,
        console=4,
        nics=range(5, 5 + settings.nics),
        shares=5 + settings.nics if shared else -1,
        image=-1 if image is None else 5 + settings.nics + shared,
        image_format="" if image is None else image.format,
        image_writable=image is not None and image.writable,
        tsc=settings.tsc,
        device_tree="/devicetree" if settings.device_tree else "",
        words=settings.words,
        parameters=settings.parameters,
    )
    views = [View(hypervisor.path, hypervisor.path, program=True), *_program_views(hypervisor.path)]
    views += [View(folder, folder) for folder in _FIRMWARE if os.path.isdir(folder)]
    views += [View(settings.kernel, "/kernel"), View(settings.initramfs, "/initramfs")]
    views += [View(settings.device_tree, "/devicetree")] if settings.device_tree else []
    views += [View("/dev/null", "/dev/null", device=True)]
    views += [View("/dev/kvm", "/dev/kvm", device=True)] if settings.accelerator == "kvm" else []
    return Confinement(
        id="guest",
        arguments=tuple(qemu.command(hypervisor, machine)),
        views=tuple(views),
        calls=calls(_QEMU_CALLS),
        scratch=_SCRATCH,
        descriptors=1024,
        capabilities=("CAP_DAC_OVERRIDE",) if settings.accelerator == "kvm" else (),  # /dev/kvm is of a group's
    )


def _program_views(path: str) -> list[View]:
    """The directories of a program's libraries and the files its loader wants, each where the program looks for it."""
    files = libraries(path)
    if files is None:
        raise Unsupported("isolation vm", f"a library of {path} is missing")
    loader = [View(source, inside, program=True) for inside, source in files[:1]]
    folders = sorted({os.path.dirname(inside) for inside, _ in files[1:]})
    inner = [each for each in folders if not any(each.startswith(f"{other}/") for other in folders)]
    # QEMU has parts of itself in modules; it looks for them from where it lies, and /lib may be a link to /usr/lib.
    parts = [f"{top}{folder}/qemu" for folder in inner for top in ("", "/usr")]
    inner += [each for each in parts if os.path.isdir(each) and not any(each.startswith(f"{one}/") for one in inner)]
    return [*(View(folder, folder, program=True) for folder in inner), *loader]


# -- the shares --------------------------------------------------------------------------------------------------------


def _serve(
    settings: Settings, stdio: tuple[int, int, int], filters: str, deadline: float | None
) -> tuple[Confined, socket.socket]:
    """Start virtiofsd on the shares; returns it and the connection for QEMU."""
    wall = helper_confinement(qemu.find_helper(os.environ), settings.shares)
    folder = f"{os.environ.get('TMPDIR') or '/tmp'}/knarr-{os.urandom(8).hex()}"  # a directory of our own
    connection = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                os.mkdir(folder, 0o700)
            except OSError as error:
                raise FileError("make directory", folder, error.errno or 0) from None
            try:
                # It accepts one connection, and nobody else can reach it before us.
                listener.bind(f"{folder}/shares")
                listener.listen(1)
                connection.connect(f"{folder}/shares")
                os.unlink(f"{folder}/shares")
            finally:
                os.rmdir(folder)
            return start(
                wall, Stdio(*stdio, preserve=(listener.fileno(),)), filters=filters, deadline=deadline
            ), connection
    except BaseException:
        connection.close()
        raise


def helper_confinement(program: str, shares: Sequence[Share] | None) -> Confinement:
    """What virtiofsd may have: the shares, and power over whose their files are."""
    rust = qemu.is_rust(_version(program))
    views = [
        View(program, program, program=True),
        *_program_views(program),
        View("/dev/null", "/dev/null", device=True),
    ]
    return Confinement(
        id="guest-shares",
        arguments=tuple(qemu.helper_command(program, rust=rust, listener=3, directory=_SHARES)),
        views=(*views, *shown(shares or (), _SHARES)),
        calls=calls(_HELPER_CALLS),
        scratch=_SCRATCH,
        descriptors=descriptor_limit(),
        later=_SHARES if shares is None else "",
        capabilities=_HELPER_CAPABILITIES,
        proc=True,
    )


_HELPER_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP"),
    *("CAP_SETUID", "CAP_SETGID"),  # it makes files as who makes them in the guest
    *("CAP_SYS_CHROOT", "CAP_SETPCAP"),  # it gives up what it does not need
)


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, env={}, timeout=10, check=False
        )
    except OSError as error:
        raise FileError("start", program, error.errno or 0) from None
    except subprocess.TimeoutExpired:
        raise Unsupported("isolation vm", f"{program} --version does not end") from None
    return done.stdout[:100].decode("ascii", "replace").splitlines()[0] if done.stdout else ""


# -- system calls ------------------------------------------------------------------------------------------------------

_COMMON_CALLS = (
    # loading, memory, threads
    *("access", "arch_prctl", "brk", "execve", "exit", "exit_group", "mmap", "mprotect", "munmap", "madvise", "mremap"),
    *(
        "faccessat",
        "faccessat2",
        "prlimit64",
        "rseq",
        "set_robust_list",
        "set_tid_address",
        "uname",
        "getrandom",
        "futex",
    ),
    *(
        "getpid",
        "gettid",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "getppid",
        "sched_getaffinity",
        "sched_yield",
        "sysinfo",
    ),
    *("get_mempolicy", "set_mempolicy", "membarrier", "tgkill", "restart_syscall", "prctl", "seccomp"),
    # signals, time, waiting
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday"),
    *("poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait"),
    *("eventfd2", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime"),
    # descriptors and what comes through them
    *(
        "openat",
        "open",
        "close",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "pipe2",
        "read",
        "write",
        "readv",
        "writev",
    ),
    *("lseek", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "fsync", "fdatasync", "ftruncate"),
    *("fallocate", "statfs", "fstatfs", "stat", "fstat", "lstat", "newfstatat", "statx", "getdents64", "getcwd"),
    *("readlink", "readlinkat", "fchdir"),
    *("sendmsg", "recvmsg", "sendto", "recvfrom", "accept", "accept4", "getsockname", "getpeername", "getsockopt"),
    *("setsockopt", "shutdown", "socketpair"),
)
_QEMU_CALLS = ("memfd_create", "mlock", "munlock")
_HELPER_CALLS = (
    # becoming small
    *("chroot", "chdir", "capget", "capset", "unshare", "setresuid", "setresgid", "setgroups", "getgroups", "umask"),
    *("setrlimit", "getrlimit", "wait4"),
    # the guest's files
    *("openat2", "mkdir", "mkdirat", "mknodat", "unlink", "unlinkat", "rmdir", "link", "linkat", "symlinkat"),
    *("renameat", "renameat2", "fchmod", "fchmodat", "fchown", "fchownat", "utimensat", "flock", "syncfs"),
    *("copy_file_range", "name_to_handle_at", "open_by_handle_at", "getxattr", "fgetxattr", "setxattr", "fsetxattr"),
    *("listxattr", "flistxattr", "removexattr", "fremovexattr"),
)
_KVMIO = 0xAE00  # of every ioctl of KVM's
_TERMINAL_IOCTLS = (0x5401, 0x5402, 0x5421)  # TCGETS, TCSETS, FIONBIO: asked of any descriptor
_FS_IOCTLS = (0x80086601, 0x40086602, 0x801C581F, 0x401C5820)  # FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR


def calls(more: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The system calls of a program that works for a guest, as rules of config.json's linux.seccomp.

    clone makes no namespace, ioctl speaks to KVM, terminals and file systems.
    """
    allow = "SCMP_ACT_ALLOW"
    no_namespace = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    rules: list[dict[str, Any]] = [
        {"names": [*_COMMON_CALLS, *more], "action": allow},
        {"names": ["clone"], "action": allow, "args": [no_namespace]},
        {
            "names": ["ioctl"],
            "action": allow,
            "args": [{"index": 1, "value": 0xFF00, "valueTwo": _KVMIO, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ]
    asked = [{"index": 1, "value": number, "op": "SCMP_CMP_EQ"} for number in (*_TERMINAL_IOCTLS, *_FS_IOCTLS)]
    return (*rules, *({"names": ["ioctl"], "action": allow, "args": [each]} for each in asked))

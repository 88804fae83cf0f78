"""The seccomp profile of containers that ask for no other (hot, pure data).

Three answers, so that programs can tell "not there" from "not for you": what a container needs is allowed; what
exists but is for the machine's administrator gets EPERM; everything else, calls of future kernels included, gets
ENOSYS, on which programs fall back to an older call. docs/seccomp.md has the reasons.

Values that a filter compares are 32 bits wide in the kernel (a socket's family, an ioctl's number, clone's flags), so
every condition here masks the low half: a comparison of all 64 bits can be passed by setting a high bit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_EPERM = 1
_ENOSYS = 38
_LOW = 0xFFFFFFFF

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}

# What every container may call, by subject. One name covers all architectures that have it; the *32, *64 and
# *_time64 forms are those of 32-bit ABIs.
_ALLOWED = (
    # descriptors and data
    "close close_range dup dup2 dup3 fcntl fcntl64 flock pipe pipe2",
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek",
    "copy_file_range sendfile sendfile64 splice tee fallocate ftruncate ftruncate64 truncate truncate64",
    "fadvise64 fadvise64_64 readahead cachestat sync syncfs fsync fdatasync sync_file_range",
    # names and attributes of files
    "open openat openat2 creat name_to_handle_at access faccessat faccessat2 readlink readlinkat",
    "stat lstat fstat stat64 lstat64 fstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs fstatfs64",
    "statmount listmount getdents getdents64 getcwd chdir fchdir umask",
    "mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat unlink unlinkat rename renameat renameat2",
    "chmod fchmod fchmodat fchmodat2 chown lchown fchown chown32 lchown32 fchown32 fchownat",
    "utime utimes futimesat utimensat utimensat_time64",
    "getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat",
    "listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat",
    "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    # waiting for descriptors
    "poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64",
    "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2",
    "eventfd eventfd2 signalfd signalfd4",
    "timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    # memory
    "brk mmap mmap2 munmap mremap mprotect msync madvise mincore remap_file_pages mseal map_shadow_stack",
    "mlock mlock2 mlockall munlock munlockall memfd_create memfd_secret membarrier process_mrelease",
    "pkey_alloc pkey_free pkey_mprotect",
    # processes and threads
    "fork vfork execve execveat exit exit_group wait4 waitid waitpid",
    "getpid getppid gettid getpgid getpgrp setpgid getsid setsid pidfd_open",
    "set_tid_address set_robust_list get_robust_list rseq restart_syscall prctl",
    "futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue",
    "ptrace process_vm_readv process_vm_writev",
    "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    # identities and limits
    "getuid geteuid getgid getegid getuid32 geteuid32 getgid32 getegid32",
    "getresuid getresgid getresuid32 getresgid32 getgroups getgroups32",
    "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups",
    "setuid32 setgid32 setreuid32 setregid32 setresuid32 setresgid32 setfsuid32 setfsgid32 setgroups32",
    "capget capset getrlimit ugetrlimit setrlimit prlimit64 getrusage",
    "getpriority setpriority ioprio_get ioprio_set getcpu sched_yield sched_getaffinity sched_setaffinity",
    "sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr sched_setattr",
    "sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64",
    # signals and time
    "kill tkill tgkill pidfd_send_signal pause sigaltstack sigreturn sigprocmask",
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigqueueinfo rt_tgsigqueueinfo",
    "rt_sigtimedwait rt_sigtimedwait_time64",
    "time times gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64",
    "nanosleep clock_nanosleep clock_nanosleep_time64 adjtimex clock_adjtime clock_adjtime64",
    "alarm getitimer setitimer timer_create timer_delete timer_getoverrun",
    "timer_gettime timer_gettime64 timer_settime timer_settime64",
    # sockets (socket and socketpair: _families) and System V and POSIX IPC
    "accept accept4 bind connect listen shutdown getpeername getsockname getsockopt setsockopt",
    "send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64",
    "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    "mq_open mq_unlink mq_getsetattr mq_notify mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64",
    # the system
    "uname sysinfo getrandom",
)

_ALLOWED_ON = {
    # The kernel puts uretprobe and uprobe into programs that somebody traces: without them they would die.
    "x86_64": "arch_prctl modify_ldt set_thread_area get_thread_area uretprobe uprobe",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
}

# Allowed with a capability, EPERM without any that allows them.
_BY_CAPABILITY = {
    "CAP_SYS_ADMIN": (
        "bpf perf_event_open clone clone3 unshare setns mount umount umount2 pivot_root mount_setattr move_mount "
        "open_tree open_tree_attr fsopen fsconfig fsmount fspick fanotify_init fanotify_mark lookup_dcookie "
        "quotactl quotactl_fd sethostname setdomainname syslog lsm_get_self_attr lsm_set_self_attr lsm_list_modules"
    ),
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_NICE": "get_mempolicy set_mempolicy set_mempolicy_home_node mbind",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
# Of those, what gets ENOSYS: clone3's flags are behind a pointer, so its users must go back to clone; LSM attributes
# have /proc/self/attr.
_RATHER_ABSENT = ("clone3", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules")
# Of those, what is allowed in part.
_IN_PART = ("clone", "unshare")

# Exists, and is for nobody in a container.
_REFUSED = (
    "add_key keyctl request_key userfaultfd vmsplice move_pages migrate_pages "
    "swapon swapoff kexec_load kexec_file_load nfsservctl sysfs ustat uselib vm86 vm86old"
)

# linux/sched.h: CLONE_NEWTIME counts for unshare only, in clone these bits are the exit signal.
_NAMESPACES = {
    "clone": (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
    "unshare": (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
}
# Linux, a 32-bit view, "kernel 2.6" and both; asking.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# Families 0 to 47 without AF_ALG (38: CVE-2026-31431) and AF_VSOCK (40: reaches the hypervisor), as (mask, value).
# Those two get the default: libseccomp, which other runtimes would load this with, takes a second answer for a
# conflict with i386's socketcall.
_FAMILIES = (
    (0xFFFFFFE0, 0),
    (0xFFFFFFFC, 32),
    (0xFFFFFFFE, 36),
    (0xFFFFFFFF, 39),
    (0xFFFFFFFF, 41),
    (0xFFFFFFFE, 42),
    (0xFFFFFFFC, 44),
)
_TIOCSTI = 0x5412  # asm-generic/ioctls.h: types into another's terminal (CVE-2017-5226)


def default_profile(capabilities: Sequence[str], arch: str) -> dict[str, Any]:
    """Return linux.seccomp of config.json for a container with these bounding ``capabilities``.

    ``arch`` is uname's machine, x86_64 or aarch64. The result is new and may be changed.
    """
    allowed = " ".join((*_ALLOWED, _ALLOWED_ON[arch])).split()
    held = {name for capability in capabilities for name in _BY_CAPABILITY.get(capability, "").split()}
    gated = {name for names in _BY_CAPABILITY.values() for name in names.split()}
    refused = sorted({*_REFUSED.split(), *gated} - held - {*_RATHER_ABSENT, *_IN_PART})
    absent = sorted({"socketcall", *_RATHER_ABSENT} - held)
    rules = [
        _rule("SCMP_ACT_ALLOW", sorted({*allowed, *held})),
        _rule("SCMP_ACT_ERRNO", refused, errno=_EPERM),
        # Named although it is the default: socketcall hides the family behind a pointer.
        _rule("SCMP_ACT_ERRNO", absent, errno=_ENOSYS),
    ]
    for name in _IN_PART:
        if name not in held:
            bits = _NAMESPACES[name]
            rules.append(_rule("SCMP_ACT_ALLOW", [name], _masked(0, sum(bits), 0)))
            rules += [_rule("SCMP_ACT_ERRNO", [name], _masked(0, bit, bit), errno=_EPERM) for bit in bits]
    rules += [_rule("SCMP_ACT_ALLOW", ["personality"], _masked(0, _LOW, value)) for value in _PERSONALITIES]
    sockets = ["socket", "socketpair"]
    rules += [_rule("SCMP_ACT_ALLOW", sockets, _masked(0, mask, value)) for mask, value in _FAMILIES]
    # "Not TIOCSTI" has to be said bit by bit: there is no masked inequality.
    rules += [_rule("SCMP_ACT_ALLOW", ["ioctl"], _masked(1, 1 << n, ~_TIOCSTI & 1 << n)) for n in range(32)]
    rules.append(_rule("SCMP_ACT_ERRNO", ["ioctl"], _masked(1, _LOW, _TIOCSTI), errno=_EPERM))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": list(_ARCHITECTURES[arch]),
        "syscalls": rules,
    }


def _rule(action: str, names: list[str], args: dict[str, Any] | None = None, *, errno: int = 0) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": action}
    if errno:
        rule["errnoRet"] = errno
    if args:
        rule["args"] = [args]
    return rule


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}

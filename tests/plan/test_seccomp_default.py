"""spec/seccomp_default.py: what the default profile answers, asked of the kernel (SECURITY P-3, P-4)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from bpf_machines import M32, Classic

from knarr.plan import seccomp
from knarr.plan.seccomp import compile_filter
from knarr.plan.syscall_tables import NUMBERS
from knarr.plan.syscalls import ABIS, MACHINES, X32_BIT
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.seccomp_default import default_profile

if TYPE_CHECKING:
    import pathlib

EPERM, ENOSYS, ALLOWED = 1, 38, 4000

# Loads a filter of its own first that answers ALLOWED to every call, then the filter under test. Of two filters the
# stricter answer counts, of two error numbers that of the filter loaded last: so no call is ever made, and an error
# other than ALLOWED is the tested filter's.
PROBE = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct call { int64_t abi, number, args[6]; };

static struct sock_filter code[4096];
static struct call calls[16384];
static int64_t results[16384];

static int64_t native(int64_t nr, const int64_t *a) {
    register int64_t r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    int64_t result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static int64_t i386(int64_t nr, const int64_t *a) {
    int64_t result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "r8", "r9", "r10", "r11", "memory");
    return (int32_t)result;
}

int main(int argc, char **argv) {
    struct sock_filter base[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_prctl, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_seccomp, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 4000),
    };
    struct sock_fprog first = {sizeof base / sizeof *base, base}, second = {0, code};
    int fd = open(argv[1], O_RDONLY);
    second.len = read(fd, code, sizeof code) / sizeof *code;
    fd = open(argv[2], O_RDONLY);
    long count = read(fd, calls, sizeof calls) / sizeof *calls;
    if (argc != 3 || count <= 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 2;
    if (syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &first)) return 3;
    if (syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &second)) return 4;
    for (long i = 0; i < count; i++)
        results[i] = calls[i].abi ? i386(calls[i].number, calls[i].args) : native(calls[i].number, calls[i].args);
    return write(1, results, count * sizeof *results) != (ssize_t)(count * sizeof *results);
}
"""

Call = tuple[str, int, tuple[int, ...]]  # ABI, number, arguments


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if os.uname().machine != "x86_64":
        pytest.skip("the probe is for x86-64")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(PROBE)
    subprocess.run([compiler, "-O1", "-o", folder / "probe", folder / "probe.c"], check=True)
    return folder


def ask(probe: pathlib.Path, profile: dict[str, Any], calls: list[Call]) -> list[int]:
    """The error numbers the kernel answers with under ``profile``; 0 where the call went through."""
    (probe / "filter").write_bytes(compile_filter(profile, "x86_64"))
    (probe / "calls").write_bytes(
        b"".join(
            struct.pack("=qq6Q", abi == "SCMP_ARCH_X86", number, *args, *[0] * (6 - len(args)))
            for abi, number, args in calls
        )
    )
    done = subprocess.run(
        [probe / "probe", probe / "filter", probe / "calls"], stdout=subprocess.PIPE, check=False, timeout=60
    )
    assert done.returncode == 0, f"the probe ended with {done.returncode}"
    return [-value if -4096 < value < 0 else 0 for (value,) in struct.iter_unpack("=q", done.stdout)]


def call(name: str, *args: int, abi: str = "SCMP_ARCH_X86_64") -> Call:
    number = NUMBERS[name][ABIS[abi].column]
    assert number >= 0
    return abi, number, args


def allowed_always(profile: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_no_more_is_allowed_than_by_docker(machine: str) -> None:
    """361 names without conditions: the size of Docker's list for a container without extra capabilities."""
    profile = default_profile(["CAP_SYS_CHROOT"], machine)
    assert len(allowed_always(profile)) <= 361
    listed = [name for rule in profile["syscalls"][:3] for name in rule["names"]]
    assert len(listed) == len(set(listed)), "a call has two answers"
    assert set(listed) <= NUMBERS.keys(), "a name nobody knows"
    assert profile["architectures"] == list(MACHINES[machine])


def test_the_profile_is_new_each_time() -> None:
    default_profile([], "x86_64")["syscalls"].clear()
    assert default_profile([], "x86_64")["syscalls"]


# P-3: every call, by every entry, against the interpreter and against the list below.

REFUSED = """
acct add_key bpf chroot clock_settime clock_settime64 delete_module fanotify_init fanotify_mark finit_module fsconfig
fsmount fsopen fspick get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind
migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree open_tree_attr
perf_event_open pidfd_getfd pivot_root process_madvise quotactl quotactl_fd reboot request_key set_mempolicy
set_mempolicy_home_node setdomainname sethostname setns settimeofday stime swapoff swapon sysfs syslog umount umount2
uselib userfaultfd ustat vhangup vm86 vm86old vmsplice
"""
ABSENT = """
clone3 io_uring_setup io_uring_enter io_uring_register socketcall lsm_get_self_attr lsm_set_self_attr lsm_list_modules
listns file_getattr file_setattr create_module query_module get_kernel_syms _sysctl bdflush epoll_ctl_old afs_syscall
"""


def test_every_call_through_every_entry(probe: pathlib.Path) -> None:
    profile = default_profile([], "x86_64")
    machine = Classic(compile_filter(profile, "x86_64"))
    calls: list[Call] = []
    for abi in MACHINES["x86_64"]:
        base = X32_BIT if abi == "SCMP_ARCH_X32" else 0
        # write and exit_group are the probe's own; uretprobe and uprobe pass every filter since Linux 6.14.
        skip = {1, 231, 335, 336} if abi == "SCMP_ARCH_X86_64" else set()
        calls += [(abi, base | n, ()) for n in [*range(600), 5000] if n not in skip]
    real = {NUMBERS["prctl"][0], NUMBERS["seccomp"][0]}  # the probe's own filter lets these through
    for (abi, number, _), answer in zip(calls, ask(probe, profile, calls), strict=True):
        want = machine.run((number, ABIS[abi].audit, (0,) * 6))
        if want == seccomp.RET_ALLOW:
            assert answer == ALLOWED or number in real, (abi, number, answer)
        else:
            assert answer == want - seccomp.RET_ERRNO, (abi, number, answer)
            assert answer in (EPERM, ENOSYS)


def test_what_is_refused_and_what_is_absent(probe: pathlib.Path) -> None:
    """The two lists, through each ABI that has the call."""
    profile = default_profile([], "x86_64")
    for names, answer in ((REFUSED, EPERM), (ABSENT, ENOSYS)):
        calls: list[Call] = [
            (abi, NUMBERS[name][ABIS[abi].column], ())
            for name in names.split()
            for abi in MACHINES["x86_64"]
            if NUMBERS[name][ABIS[abi].column] >= 0
        ]
        got = ask(probe, profile, calls)
        assert [c[:2] for c, number in zip(calls, got, strict=True) if number != answer] == []
    said = {name for rule in profile["syscalls"] if rule.get("errnoRet") == EPERM for name in rule["names"]}
    assert said == {*REFUSED.split(), "clone", "unshare", "ioctl"}


# P-4

HIGH = 1 << 32
NEW = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


def test_named_attacks_are_refused(probe: pathlib.Path) -> None:
    thread = 0x003D0F00  # what pthread_create and fork pass
    both = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    refused: list[Call] = []
    for abi in both:
        for flag in NEW.values():
            refused += [call("clone", flag | 17, abi=abi), call("unshare", flag, abi=abi)]
        refused += [
            call("unshare", 0x80, abi=abi),  # NEWTIME
            call("clone3", 0, 88, abi=abi),
            call("socket", 38, 5, 0, abi=abi),  # AF_ALG
            call("socket", 40, 1, 0, abi=abi),  # AF_VSOCK
            call("socketpair", 38, 5, 0, abi=abi),
            call("socket", 48, 1, 0, abi=abi),  # a family of the future
            call("io_uring_setup", 8, 0, abi=abi),
            call("keyctl", 0, 0, abi=abi),
            call("add_key", abi=abi),
            call("bpf", abi=abi),
            call("userfaultfd", abi=abi),
            call("mount", abi=abi),
            call("setns", abi=abi),
            call("pivot_root", abi=abi),
            call("ioctl", 0, 0x5412, 0, abi=abi),  # TIOCSTI
            call("personality", 0x40000, abi=abi),  # ADDR_NO_RANDOMIZE
        ]
    # the kernel looks at 32 bits only
    refused += [
        call("socket", HIGH | 38, 5, 0),
        call("socket", HIGH | 40, 1, 0),
        call("ioctl", 0, HIGH | 0x5412, 0),
        call("clone", HIGH | NEW["NEWUSER"]),
        call("unshare", HIGH | NEW["NEWUSER"]),
        call("personality", HIGH | 0x40000),
        call("socketcall", 1, 0, abi="SCMP_ARCH_X86"),
        call("socketcall", 8, 0, abi="SCMP_ARCH_X86"),
    ]
    allowed = [
        call("clone", thread),
        call("clone", 17),
        call("clone", thread, abi="SCMP_ARCH_X86"),
        call("unshare", 0x600),  # CLONE_FS|CLONE_FILES
        *[call("socket", family, 1, 0) for family in range(48) if family not in (38, 40)],
        call("socketpair", 1, 1, 0),
        call("socket", 16, 3, 9),
        *[call("ioctl", 0, 0x5412 ^ 1 << bit, 0) for bit in range(32)],
        call("ioctl", 0, 0x5401, 0),
        call("ioctl", 0, 0xFFFFFFFF80045430, 0),  # sign-extended, as musl passes it
        call("ioctl", 0, 0x5413, 0, abi="SCMP_ARCH_X86"),
        *[call("personality", value) for value in (0, 8, 0x20000, 0x20008, M32)],
        call("ptrace", 0, 0, 0),
    ]
    answers = ask(probe, default_profile([], "x86_64"), refused + allowed)
    for asked, answer in zip(refused, answers, strict=False):
        assert answer in (EPERM, ENOSYS), asked
    for asked, answer in zip(allowed, answers[len(refused) :], strict=True):
        assert answer == ALLOWED, asked


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("CAP_SYS_ADMIN", "mount umount2 setns unshare clone3 pivot_root bpf perf_event_open fsopen open_tree_attr"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
        ("CAP_SYS_NICE", "mbind set_mempolicy get_mempolicy"),
        ("CAP_SYS_PACCT", "acct"),
        ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
        ("CAP_SYS_RAWIO", "iopl ioperm"),
        ("CAP_SYS_TIME", "settimeofday clock_settime"),
        ("CAP_SYS_TTY_CONFIG", "vhangup"),
        ("CAP_SYSLOG", "syslog"),
    ],
)
def test_a_capability_opens_its_calls_and_no_other(probe: pathlib.Path, capability: str, names: str) -> None:
    before = allowed_always(default_profile([], "x86_64"))
    calls = [call(name, NEW["NEWUSER"]) for name in names.split()]
    assert all(answer in (EPERM, ENOSYS) for answer in ask(probe, default_profile([], "x86_64"), calls))
    assert ask(probe, default_profile([capability], "x86_64"), calls) == [ALLOWED] * len(calls)
    opened = allowed_always(default_profile([capability], "x86_64")) - before
    assert set(names.split()) <= opened
    if capability != "CAP_SYS_ADMIN":
        assert opened - set(names.split()) <= {"stime", "clock_settime64", "set_mempolicy_home_node"}


def test_all_capabilities_still_refuse_what_is_for_nobody(probe: pathlib.Path) -> None:
    names = ["add_key", "keyctl", "request_key", "userfaultfd", "swapon", "kexec_load", "io_uring_setup"]
    answers = ask(probe, default_profile(list(CAPABILITIES), "x86_64"), [call(name) for name in names])
    assert answers == [EPERM] * 6 + [ENOSYS]

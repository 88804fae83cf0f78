"""System call ABIs as seccomp sees them, and call numbers by name (hot, pure).

seccomp(2): a filter tells ABIs apart by the AUDIT_ARCH word, x32 by bit 30 of the number. The numbers
themselves are in ``syscall_tables``, imported when the first one is asked for: a cached filter needs none.
"""

from __future__ import annotations

from knarr.base.record import Record
from knarr.spec.runtime import SECCOMP_ARCHES

X32_BIT = 0x40000000
ARM_PRIVATE = 0x0F0000
"""First of the calls that arm's architecture code adds (cacheflush, set_tls): far above the kernel's common ones."""


class Abi(Record):
    """One system call ABI: its column in the tables, its audit word, and whether arguments have 64 bits."""

    column: int
    audit: int
    wide: bool


ABIS = {
    "SCMP_ARCH_X86_64": Abi(0, 0xC000003E, True),
    "SCMP_ARCH_X86": Abi(1, 0x40000003, False),
    "SCMP_ARCH_X32": Abi(2, 0xC000003E, False),
    "SCMP_ARCH_AARCH64": Abi(3, 0xC00000B7, True),
    "SCMP_ARCH_ARM": Abi(4, 0x40000028, False),
}
"""The ABIs whose numbers are known, by their names in runtime-spec config-linux.md "Seccomp"."""

MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
"""uname's machine -> the ABIs its kernels run, the native one first."""

# Of other machines: a call of theirs can never happen on ours.
FOREIGN_ARCHES = tuple(name for name in SECCOMP_ARCHES if name not in ABIS)

# i386 reaches sockets and System V IPC also through one multiplexing call each, whose first argument is the number
# here (linux/net.h SYS_*, linux/ipc.h).
SOCKETCALL = {
    "socket": 1,
    "bind": 2,
    "connect": 3,
    "listen": 4,
    "accept": 5,
    "getsockname": 6,
    "getpeername": 7,
    "socketpair": 8,
    "send": 9,
    "recv": 10,
    "sendto": 11,
    "recvfrom": 12,
    "shutdown": 13,
    "setsockopt": 14,
    "getsockopt": 15,
    "sendmsg": 16,
    "recvmsg": 17,
    "accept4": 18,
    "recvmmsg": 19,
    "sendmmsg": 20,
}
IPC = {
    "semop": 1,
    "semget": 2,
    "semctl": 3,
    "semtimedop": 4,
    "msgsnd": 11,
    "msgrcv": 12,
    "msgget": 13,
    "msgctl": 14,
    "shmat": 21,
    "shmdt": 22,
    "shmget": 23,
    "shmctl": 24,
}


def numbers() -> dict[str, tuple[int, int, int, int, int]]:
    """Every known call: name -> its number for each column of an Abi, -1 where there is none."""
    from knarr.plan.syscall_tables import NUMBERS

    return NUMBERS


def known(name: str) -> bool:
    """Whether any supported architecture has a call of this name."""
    return name in numbers()

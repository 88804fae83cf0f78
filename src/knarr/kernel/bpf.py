"""bpf(2) for cgroup device programs: load, attach, list, replace (hot)."""

from __future__ import annotations

import os
import resource
from errno import EACCES, EPERM
from struct import pack, unpack_from

from knarr.base.errors import KernelError
from knarr.kernel.ffi import Buffer, syscall

# linux/bpf.h
_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_PROG_QUERY = 16
_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6
_ALLOW_MULTI = 2
_REPLACE = 4

_LICENSE = b"Apache-2.0\0"  # the program calls no helper, so any will do
_NAME = b"knarr_devices"  # shown by bpftool
_LOG = 64 * 1024
_MOST = 64  # programs on one cgroup (BPF_CGROUP_MAX_PROGS)
# Linux 6.17 and newer write to the end of the union they know, whatever size they are told; so give them room.
_ROOM = 256


def load_device_program(code: bytes) -> int:
    """Load an array of struct bpf_insn; return the program's close-on-exec descriptor.

    Raises KernelError; its hint is what the kernel's verifier said.
    """
    try:
        return _load(code, None)
    except KernelError as error:
        if error.errno == EPERM and _more_locked_memory():
            # Before Linux 5.11 programs count as locked memory of the user.
            return _load(code, None)
        if error.errno == EPERM:
            error.hint = "loading a device program needs CAP_BPF (or CAP_SYS_ADMIN) in the initial user namespace"
            raise
        log = Buffer(_LOG)
        try:
            return _load(code, log)
        except KernelError as again:
            again.hint = log.bytes().split(b"\0", 1)[0].decode("ascii", "replace").strip()[-500:]
            raise again from None


def _load(code: bytes, log: Buffer | None) -> int:
    program, licence = Buffer(code), Buffer(_LICENSE)
    attributes = pack(
        "=IIQQIIQII16sII",
        _TYPE_CGROUP_DEVICE,
        len(code) // 8,
        program.address,
        licence.address,
        1 if log else 0,
        log.size if log else 0,
        log.address if log else 0,
        0,
        0,
        _NAME,
        0,
        _CGROUP_DEVICE,
    )
    return syscall("bpf", _PROG_LOAD, attributes, len(attributes), operand="BPF_PROG_LOAD of the device rules")


def _more_locked_memory() -> bool:
    """Raise this process' soft limit of locked memory to the hard one; False if that changes nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return True


def attach_device_program(cgroup_fd: int, program_fd: int, *, replace_fd: int = -1) -> None:
    """Make a cgroup ask the program too, or instead of the program ``replace_fd`` (Linux 5.6). Raises KernelError."""
    flags = _ALLOW_MULTI | (_REPLACE if replace_fd >= 0 else 0)
    attributes = pack("=IIIII", cgroup_fd, program_fd, _CGROUP_DEVICE, flags, max(replace_fd, 0))
    syscall("bpf", _PROG_ATTACH, attributes, len(attributes), operand="BPF_PROG_ATTACH of the device rules")


def detach_device_program(cgroup_fd: int, program_fd: int) -> None:
    """Make a cgroup ask the program no longer. Raises KernelError."""
    attributes = pack("=III", cgroup_fd, program_fd, _CGROUP_DEVICE)
    syscall("bpf", _PROG_DETACH, attributes, len(attributes), operand="BPF_PROG_DETACH of device rules")


def device_programs(cgroup_fd: int) -> list[int]:
    """The ids of the device programs attached to this cgroup itself. Raises KernelError."""
    ids = Buffer(4 * _MOST)
    attributes = Buffer(pack("=IIIIQI", cgroup_fd, _CGROUP_DEVICE, 0, 0, ids.address, _MOST).ljust(_ROOM, b"\0"))
    syscall("bpf", _PROG_QUERY, attributes.address, _ROOM, operand="BPF_PROG_QUERY of device rules")
    (count,) = unpack_from("=I", attributes.bytes(), 24)
    return list(unpack_from(f"={count}I", ids.bytes()))


def program_fd(program_id: int) -> int:
    """A close-on-exec descriptor of the program with this id. Raises KernelError."""
    attributes = pack("=III", program_id, 0, 0)
    return syscall(
        "bpf", _PROG_GET_FD_BY_ID, attributes, len(attributes), operand=f"BPF_PROG_GET_FD_BY_ID {program_id}"
    )


def set_device_program(cgroup_fd: int, code: bytes) -> None:
    """Make ``code`` the only device program of a cgroup: there is no moment without a program. Raises KernelError."""
    opened: list[int] = []
    try:
        for program in device_programs(cgroup_fd):
            try:
                opened.append(program_fd(program))
            except KernelError as error:
                if error.errno not in (EPERM, EACCES):
                    raise
                # Put there by somebody we may not touch; programs only ever take more away.
        new = load_device_program(code)
        try:
            if len(opened) == 1:
                attach_device_program(cgroup_fd, new, replace_fd=opened[0])
                return
            attach_device_program(cgroup_fd, new)
            for old in opened:
                detach_device_program(cgroup_fd, old)
        finally:
            os.close(new)
    finally:
        for fd in opened:
            os.close(fd)

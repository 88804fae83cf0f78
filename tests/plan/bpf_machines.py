"""Interpreters for what the plan room compiles, and libseccomp's compiler, for the tests to compare with."""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import os
import struct
from typing import Any

from knarr.plan.syscalls import ABIS, X32_BIT

M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF

Data = tuple[int, int, tuple[int, ...]]  # number, audit word, six arguments


def seccomp_data(data: Data) -> bytes:
    number, audit, args = data
    return struct.pack("=IIQ6Q", number & M32, audit, 0, *args)


class Classic:
    """Classic BPF as seccomp(2) runs it; only what a seccomp filter may contain."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0
        self.code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
        for position, (code, jt, jf, k) in enumerate(self.code):  # the kernel's own check
            if code & 7 == 5:
                reach = k if code == 5 else max(jt, jf)
                assert position + 1 + reach < len(self.code), "a jump leaves the program"
        assert self.code[-1][0] == 0x06
        self.steps = 0

    def run(self, data: Data) -> int:
        memory = seccomp_data(data)
        accumulator = 0
        position = 0
        self.steps = 0
        while True:
            code, jt, jf, k = self.code[position]
            self.steps += 1
            position += 1
            if code == 0x20:
                assert k % 4 == 0
                accumulator = int(struct.unpack_from("=I", memory, k)[0])
            elif code == 0x06:
                value: int = k
                return value
            elif code == 0x05:
                position += k
            elif code == 0x15:
                position += jt if accumulator == k else jf
            elif code == 0x25:
                position += jt if accumulator > k else jf
            elif code == 0x35:
                position += jt if accumulator >= k else jf
            elif code == 0x45:
                position += jt if accumulator & k else jf
            elif code == 0x54:
                accumulator &= k
            else:
                raise AssertionError(f"instruction {code:#x} is not allowed in a seccomp filter")


class Extended:
    """The part of eBPF that a cgroup device program uses, checked as the kernel's verifier would."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0
        self.code = [struct.unpack_from("=BBhi", program, at) for at in range(0, len(program), 8)]

    def run(self, context: bytes) -> int:
        registers: list[int | None] = [None] * 11
        registers[1] = 0  # the context; only loads through it are allowed
        pointer = {1}
        position = 0
        for _ in range(1_000_000):
            code, both, offset, k = self.code[position]
            position += 1
            destination, source = both & 15, both >> 4

            def value(number: int) -> int:
                assert number not in pointer, "arithmetic on the context pointer"
                got = registers[number]
                assert got is not None, f"r{number} is read before it is written"
                return got

            if code == 0x61:  # r = *(u32 *)(r1 + offset)
                assert source in pointer
                assert 0 <= offset <= len(context) - 4
                registers[destination] = struct.unpack_from("=I", context, offset)[0]
                pointer.discard(destination)
            elif code in (0xB7, 0xB4):
                registers[destination] = k & (M64 if code == 0xB7 else M32)
                pointer.discard(destination)
            elif code in (0xBF, 0xBC):
                registers[destination] = value(source) & (M64 if code == 0xBF else M32)
                pointer.discard(destination)
            elif code in (0x57, 0x54):
                registers[destination] = value(destination) & k & (M64 if code == 0x57 else M32)
            elif code == 0x77:
                registers[destination] = value(destination) >> k
            elif code == 0x05:
                position += offset
            elif code in (0x15, 0x16):
                position += offset if _same(value(destination), k, code) else 0
            elif code in (0x55, 0x56):
                position += 0 if _same(value(destination), k, code) else offset
            elif code == 0x95:
                return value(0)
            else:
                raise AssertionError(f"instruction {code:#x}")
        raise AssertionError("the program does not end")


def _same(value: int, k: int, code: int) -> bool:
    return value & M32 == k & M32 if code & 7 == 6 else value == k & M64


# libseccomp

_TOKENS = {name: abi.audit for name, abi in ABIS.items()} | {"SCMP_ARCH_X32": 0x4000003E}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}


class _Compare(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def _load() -> Any:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    library = ctypes.CDLL(name, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    for call in ("seccomp_arch_add", "seccomp_arch_remove"):
        getattr(library, call).argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_api_set(6)
    return library


libseccomp = _load()


def libseccomp_number(name: str, abi: str) -> int:
    """libseccomp's number of a call; negative for none. x32 numbers carry bit 30."""
    return int(libseccomp.seccomp_syscall_resolve_name_arch(_TOKENS[abi], name.encode()))


def libseccomp_filter(
    default: int, abis: list[str], rules: list[tuple[str, int, list[tuple[int, str, int, int]]]]
) -> bytes:
    """Build a filter as runc builds one: ``rules`` are (name, action, conditions), already split and filtered."""
    context = libseccomp.seccomp_init(default)
    assert context
    try:
        if "SCMP_ARCH_X86_64" not in abis:
            assert libseccomp.seccomp_arch_add(context, _TOKENS[abis[0]]) == 0
            assert libseccomp.seccomp_arch_remove(context, _TOKENS["SCMP_ARCH_X86_64"]) == 0
        for abi in abis:
            assert libseccomp.seccomp_arch_add(context, _TOKENS[abi]) in (0, -17)
        for name, action, conditions in rules:
            number = libseccomp.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                continue
            array = (_Compare * max(len(conditions), 1))(
                *[_Compare(index, _OPERATORS[op], a, b) for index, op, a, b in conditions]
            )
            result = libseccomp.seccomp_rule_add_array(context, action, number, len(conditions), array)
            assert result == 0, f"{name} {conditions}: {os.strerror(-result)}"
        read, write = os.pipe()
        try:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
            assert libseccomp.seccomp_export_bpf(context, write) == 0
            os.close(write)
            write = -1
            parts = []
            while part := os.read(read, 1 << 20):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)
    finally:
        libseccomp.seccomp_release(context)


def bit30(abi: str) -> int:
    return X32_BIT if abi == "SCMP_ARCH_X32" else 0

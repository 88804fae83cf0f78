"""Why a program cannot be executed: the sentence, and whether it is 126 or 127."""

from __future__ import annotations

import errno
import stat
import struct

import pytest

from knarr.base.errors import CommandNotExecutable, CommandNotFound, HookError, InitError, SafetyViolation
from knarr.runtime.explain import doing, init_error, interpreter, later_error, program

REGULAR = stat.S_IFREG | 0o755


def detail(path: str, head: bytes = b"", mode: int = REGULAR, flags: int = 0) -> bytes:
    return struct.pack("<II", mode, flags) + path.encode() + b"\0" + head


def elf(machine: int, loader: bytes = b"/lib/ld.so", *, wide: bool = True, big: bool = False) -> bytes:
    order = ">" if big else "<"
    ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if big else 1, 1]) + bytes(9)
    if wide:
        head = ident + struct.pack(order + "HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        other = struct.pack(order + "IIQQQQQQ", 6, 4, 64, 0, 0, 112, 112, 8)
        interp = struct.pack(order + "IIQQQQQQ", 3, 4, 176, 0, 0, len(loader) + 1, len(loader) + 1, 1)
    else:
        head = ident + struct.pack(order + "HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
        other = struct.pack(order + "IIIIIIII", 6, 52, 0, 0, 64, 64, 4, 4)
        interp = struct.pack(order + "IIIIIIII", 3, 116, 0, 0, len(loader) + 1, len(loader) + 1, 4, 1)
    return head + other + interp + loader + b"\0"


@pytest.mark.parametrize(
    ("number", "detail_bytes", "words", "found"),
    [
        (errno.ENOENT, b"", "executable file not found in $PATH (/bin:/usr/bin)", False),
        (errno.ENOENT, detail("/s", b"#!/no/such\nx"), "needs the interpreter /no/such, which does not exist", True),
        (errno.ENOENT, detail("/s", b"#!/bin/sh\r\nx"), "the first line of /s ends with a carriage return", True),
        (errno.ENOENT, detail("/s", b"#! /usr/bin/env\tpython\n"), "needs the interpreter /usr/bin/env,", True),
        (
            errno.ENOENT,
            detail("/p", elf(62, b"/lib64/ld-linux-x86-64.so.2")),
            "loader /lib64/ld-linux-x86-64.so.2",
            True,
        ),
        (
            errno.ENOENT,
            detail("/p", elf(40, b"/lib/ld-musl-armhf.so.1", wide=False)),
            "loader /lib/ld-musl-armhf",
            True,
        ),
        (errno.ENOENT, detail("/p", elf(22, b"/lib/ld64.so.1", big=True)), "loader /lib/ld64.so.1", True),
        (errno.ENOENT, detail("/p", b"?"), "the interpreter it needs is not", True),
        (
            errno.ENOENT,
            detail("/l", b"/nowhere", stat.S_IFLNK | 0o777),
            "symbolic link to /nowhere, which does not",
            False,
        ),
        (errno.ENOEXEC, detail("/p", elf(183)), "/p is made for aarch64, this machine is x86_64", True),
        (errno.ENOEXEC, detail("/p", elf(62)), "damaged program", True),
        (errno.ENOEXEC, detail("/p", elf(9999)), "made for machine 9999", True),
        (errno.ENOEXEC, detail("/p", b""), "/p is empty", True),
        (errno.ENOEXEC, detail("/p", b"MZ\x90"), "Windows program", True),
        (errno.ENOEXEC, detail("/p", b"\xcf\xfa\xed\xfe"), "macOS program", True),
        (errno.ENOEXEC, detail("/p", b"\xef\xbb\xbf#!/bin/sh"), "byte order mark", True),
        (errno.ENOEXEC, detail("/p", b"echo hi\n"), "neither a program for this kernel nor a script", True),
        (errno.ENOEXEC, detail("/p", b"#!\n"), "no usable interpreter", True),
        (errno.EACCES, detail("/d", mode=stat.S_IFDIR | 0o755), "permission denied: /d is a directory", True),
        (errno.EACCES, detail("/f", mode=stat.S_IFREG | 0o644), "no execute permission (mode 0644)", True),
        (errno.EACCES, detail("/f", flags=8), "a mount with noexec", True),
        (errno.EACCES, detail("/f", b"#!/x\n", mode=stat.S_IFREG | 0o700), "/f or its interpreter /x", True),
        (errno.EACCES, detail("/f", mode=stat.S_IFIFO | 0o755), "not a regular file", True),
        (errno.EACCES, b"", "a directory on the way", True),
        (errno.ETXTBSY, detail("/f"), "open for writing", True),
        (errno.ELOOP, b"", "too many levels", False),
    ],
)
def test_reasons(number: int, detail_bytes: bytes, words: str, found: bool) -> None:
    why, is_there = program("tool", number, detail_bytes, "x86_64", search="/bin:/usr/bin")
    assert words in why
    assert is_there is found


def test_a_path_that_is_not_there_keeps_the_kernels_words() -> None:
    # moby and podman look for them to give 127
    why, found = program("/no/tool", errno.ENOENT, b"", "x86_64")
    assert (why, found) == ("no such file or directory", False)


@pytest.mark.parametrize("cut", [0, 7, 8, 9, 20, 40, 60, 64, 100, 175, 180])
def test_cut_off_files_are_no_trouble(cut: int) -> None:
    assert isinstance(interpreter(elf(62)[:cut]), str)
    assert program("x", errno.ENOENT, detail("/x", elf(62))[:cut], "x86_64")[0]
    assert program("x", errno.ENOEXEC, detail("/x", elf(62))[:cut], "x86_64")[0]


def test_classes_follow_the_exit_codes() -> None:
    arguments: dict[str, object] = {"name": "tool", "path": "/bin"}
    missing = init_error("find_program", arguments, "/process/args/0", errno.ENOENT, b"", machine="x86_64")
    assert type(missing) is CommandNotFound
    assert str(missing) == ('config.json /process/args/0: exec "tool": executable file not found in $PATH (/bin)')
    script = detail("/s", b"#!/nope\n")
    broken = init_error("exec", {"argc": 1, "argv_env": ["/s", "A=b"]}, "/process/args", errno.ENOENT, script)
    assert type(broken) is CommandNotExecutable
    assert 'exec "/s": no such file or directory: /s needs' in str(broken)
    flagless = init_error("find_program", arguments, "/process/args/0", errno.EACCES, detail("/t", mode=0o100644))
    assert type(flagless) is CommandNotExecutable
    assert str(flagless).endswith("(chmod +x it in the image)")


def test_other_operations_name_what_they_did() -> None:
    error = init_error("mount", {"fstype": "tmpfs", "target": "/dev"}, "/mounts/3", errno.EPERM, b"")
    assert type(error) is InitError
    assert str(error) == "config.json /mounts/3: mount tmpfs on /dev: operation not permitted"
    assert doing("mount", {}) == "mount"
    assert doing("some_new_thing", {}) == "some new thing"


def test_a_directory_outside_of_the_root_is_a_safety_violation() -> None:
    error = init_error("cwd", {"path": "/w"}, "/process/cwd", errno.EXDEV, b"(unreachable)/x")
    assert type(error) is SafetyViolation
    assert "outside of the root" in str(error)


@pytest.mark.parametrize(
    ("what", "number", "words"),
    [
        (1, 3, "ended with exit status 3: sad tale"),
        (2, 9, "was killed by signal 9: sad tale"),
        (3, 1000, "did not end within its timeout: sad tale"),
        (4, 2, "cannot be started: no such file or directory"),
        (5, 0, "got no state document"),
    ],
)
def test_hooks_of_the_init(what: int, number: int, words: str) -> None:
    said = b"sad\n  tale\n" if what < 4 else b""
    error = init_error("hook", {"path": "/h"}, "/hooks/createContainer/1", 125, struct.pack("<II", what, number) + said)
    assert type(error) is HookError
    assert str(error) == f"config.json /hooks/createContainer/1: hook /h {words}"


def test_errors_after_the_start_are_told_from_what_was_recorded() -> None:
    error = later_error("exec", "/process/args", "/app", errno.ENOEXEC, detail("/app", elf(183)))
    assert type(error) is CommandNotExecutable
    assert 'exec "/app": exec format error: /app is made for aarch64' in str(error)
    assert "start the container" in str(later_error("", "", "", errno.EIO, b""))

"""kernel/bpf.py and the programs of plan/device_bpf.py in the kernel: loaded, attached, asked."""

from __future__ import annotations

import os
import pathlib
import secrets
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import KernelError
from knarr.kernel import bpf
from knarr.plan.device_bpf import MAX_RULES, device_program
from knarr.plan.devices import ALL, MKNOD, READ, WRITE, Rule, device_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading a device program needs root")


def unified() -> pathlib.Path | None:
    for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{place}/cgroup.controllers"):
            return pathlib.Path(place)
    return None


@pytest.fixture
def group() -> Iterator[pathlib.Path]:
    """A cgroup v2 of our own."""
    root = unified()
    if root is None:
        pytest.skip("no cgroup v2 is mounted")
    path = root / f"knarr-test-bpf-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    yield path
    path.rmdir()


@pytest.fixture
def group_fd(group: pathlib.Path) -> Iterator[int]:
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def program(*rules: Rule) -> bytes:
    code = device_program((Rule(False, "a", -1, -1, ALL), *rules))
    assert code is not None
    return code


# Run inside the group: which of (device, open mode) work.
ASK = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
for question in sys.argv[2:]:
    path, how = question.split("=")
    try:
        if how == "m":
            kind, major, minor = path.split(":")
            node = f"/tmp/knarr-test-node-{os.getpid()}"
            os.mknod(node, {"c": 0o020600, "b": 0o060600}[kind], os.makedev(int(major), int(minor)))
            os.unlink(node)
        else:
            os.close(os.open(path, {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[how]))
        print("yes")
    except PermissionError:
        print("no")
"""


def ask(group: pathlib.Path, *questions: str) -> list[str]:
    done = subprocess.run([sys.executable, "-I", "-c", ASK, group, *questions], check=True, capture_output=True)
    return done.stdout.decode().split()


def test_the_kernel_asks_the_program(group: pathlib.Path, group_fd: int) -> None:
    bpf.set_device_program(
        group_fd,
        program(
            Rule(True, "c", 1, -1, ALL),
            Rule(False, "c", 1, 5, WRITE),
            Rule(False, "c", 1, 7, ALL),
            Rule(True, "c", 1, 7, READ),
            Rule(True, "c", 1, 7, WRITE),
            Rule(True, "b", 7, 0xFFFFF, MKNOD),
        ),
    )
    questions = {
        "/dev/null=rw": "yes",
        "/dev/zero=r": "yes",
        "/dev/zero=w": "no",
        "/dev/zero=rw": "no",
        "/dev/full=rw": "yes",
        "/dev/ptmx=rw": "no",
        "c:1:3=m": "yes",
        "c:1:7=m": "no",
        "c:0:0=m": "yes",  # a whiteout, which the kernel lets everybody make
        "c:5:2=m": "no",
        "b:1:3=m": "no",
        "b:7:1048575=m": "yes",
    }
    assert dict(zip(questions, ask(group, *questions), strict=True)) == questions


def test_the_default_rules(group: pathlib.Path, group_fd: int) -> None:
    code = device_program(device_rules({}))
    assert code is not None
    bpf.set_device_program(group_fd, code)
    paths = ["null", "zero", "full", "random", "urandom", "ptmx"]
    assert ask(group, *[f"/dev/{name}=rw" for name in paths]) == ["yes"] * 6
    more = [path for path in ("/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/vda") if os.path.exists(path)]
    assert ask(group, *[f"{path}=r" for path in more]) == ["no"] * len(more)


def test_replacing_leaves_one_program(group: pathlib.Path, group_fd: int) -> None:
    bpf.set_device_program(group_fd, program())
    assert ask(group, "/dev/null=r") == ["no"]
    (first,) = bpf.device_programs(group_fd)
    bpf.set_device_program(group_fd, program(Rule(True, "c", 1, 3, READ)))
    (second,) = bpf.device_programs(group_fd)
    assert first != second
    assert ask(group, "/dev/null=r", "/dev/null=w") == ["yes", "no"]


def test_several_programs_become_one(group: pathlib.Path, group_fd: int) -> None:
    for _ in range(3):
        fd = bpf.load_device_program(program())
        bpf.attach_device_program(group_fd, fd)
        os.close(fd)
    assert len(bpf.device_programs(group_fd)) == 3
    bpf.set_device_program(group_fd, program(Rule(True, "c", 1, 3, ALL)))
    assert len(bpf.device_programs(group_fd)) == 1
    assert ask(group, "/dev/null=rw") == ["yes"]


def test_detaching(group: pathlib.Path, group_fd: int) -> None:
    fd = bpf.load_device_program(program())
    bpf.attach_device_program(group_fd, fd)
    bpf.detach_device_program(group_fd, fd)
    os.close(fd)
    assert bpf.device_programs(group_fd) == []
    assert ask(group, "/dev/null=rw") == ["yes"]


def test_descriptors_are_close_on_exec(group: pathlib.Path, group_fd: int) -> None:
    bpf.set_device_program(group_fd, program())
    (identity,) = bpf.device_programs(group_fd)
    for fd in (bpf.load_device_program(program()), bpf.program_fd(identity)):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_the_verifiers_words_reach_the_reader() -> None:
    with pytest.raises(KernelError) as caught:
        bpf.load_device_program(struct.pack("=BBhi", 0x95, 0, 0, 0))  # returns an unset register
    assert "R0" in caught.value.hint
    assert "BPF_PROG_LOAD" in str(caught.value)


def test_a_long_program_is_accepted() -> None:
    rules = [Rule(bool(n % 3), "c", n, n % 7 - 1, n % 7 + 1) for n in range(1, MAX_RULES + 1)]
    os.close(bpf.load_device_program(program(*rules)))


def test_a_bad_target_is_an_error() -> None:
    fd = bpf.load_device_program(program())
    try:
        with pytest.raises(KernelError):
            bpf.attach_device_program(fd, fd)
    finally:
        os.close(fd)

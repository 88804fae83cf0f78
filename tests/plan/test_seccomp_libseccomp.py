"""plan/seccomp.py against the reference: libseccomp's filters, and the filter a real runc loads."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any

import pytest
from bpf_machines import M32, M64, Classic, libseccomp, libseccomp_filter, libseccomp_number
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.plan import seccomp
from knarr.plan.seccomp import ACTIONS, compile_filter
from knarr.plan.syscall_tables import NUMBERS
from knarr.plan.syscalls import ABIS, IPC, MACHINES, SOCKETCALL, X32_BIT
from knarr.spec.seccomp_default import default_profile

pytestmark = [
    pytest.mark.skipif(libseccomp is None, reason="libseccomp.so.2 is not installed"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="libseccomp resolves names by its own machine's table"),
]

PODMAN = pathlib.Path("/usr/share/containers/seccomp.json")
ENOSYS = seccomp.RET_ERRNO | 38


def known_to_both(name: str, abi: str) -> bool:
    """Whether libseccomp's table, older or younger than ours, agrees on a call's number."""
    theirs, ours = libseccomp_number(name, abi), NUMBERS.get(name, (-1,) * 5)[ABIS[abi].column]
    if abi == "SCMP_ARCH_X86" and (name in SOCKETCALL or name in IPC):
        return True  # libseccomp answers with a number of its own making
    return theirs == ours or (theirs < 0 and ours < 0)


@pytest.mark.parametrize("abi", list(ABIS))
def test_numbers_agree_with_libseccomp(abi: str) -> None:
    """What libseccomp knows, we know by the same number."""
    for name in NUMBERS:
        theirs = libseccomp_number(name, abi)
        if theirs >= 0:
            assert NUMBERS[name][ABIS[abi].column] == theirs, name


def value_of(action: str, errno: int | None) -> int:
    value = ACTIONS[action]
    return value | (1 if errno is None else errno) if value in (seccomp.RET_ERRNO, seccomp.RET_TRACE) else value


def reference(profile: dict[str, Any], machine: str) -> Classic:
    """The filter libseccomp makes when it is fed as runc feeds it."""
    default = value_of(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = []
    for rule in profile["syscalls"]:
        action = value_of(rule["action"], rule.get("errnoRet"))
        conditions = [(a["index"], a["op"], a["value"], a.get("valueTwo", 0)) for a in rule.get("args") or ()]
        alone = len({condition[0] for condition in conditions}) < len(conditions)
        for name in rule["names"]:
            if action != default:
                rules += [(name, action, [c]) for c in conditions] if alone else [(name, action, conditions)]
    abis = [MACHINES[machine][0], *[abi for abi in MACHINES[machine][1:] if abi in profile["architectures"]]]
    return Classic(libseccomp_filter(default, abis, rules))


def largest(profile: dict[str, Any], abi: str) -> int:
    """The last call that runc's ENOSYS stub lets through to the filter."""
    if profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        return M32
    numbers = [
        NUMBERS[name][ABIS[abi].column] for rule in profile["syscalls"] for name in rule["names"] if name in NUMBERS
    ]
    # (runc takes a profile that names x86-64's call 0 and no other for one that names none; we do not.)
    return max((number for number in numbers if 0 <= number < 0xF0000 or number >= X32_BIT), default=M32)


def interesting(profile: dict[str, Any]) -> list[tuple[int, ...]]:
    """Argument lists around every value the profile compares with."""
    result: set[tuple[int, ...]] = {(0,) * 6, (M64,) * 6, (M32,) * 6, (1,) * 6}
    for rule in profile["syscalls"]:
        for arg in rule.get("args") or ():
            for value in (arg["value"], arg.get("valueTwo", 0), arg["value"] | arg.get("valueTwo", 0)):
                for near in (value - 1, value, value + 1, value ^ 1 << 32, value ^ 1 << 31):
                    result.add(tuple(near & M64 if i == arg["index"] else 0 for i in range(6)))
                    result.add((near & M64,) * 6)
    return sorted(result)


def compare(profile: dict[str, Any], machine: str) -> None:
    ours, theirs = Classic(compile_filter(profile, machine)), reference(profile, machine)
    conditional = {name for rule in profile["syscalls"] if rule.get("args") for name in rule["names"]}
    lists = interesting(profile)
    for abi in MACHINES[machine]:
        if abi not in profile["architectures"] and abi != MACHINES[machine][0]:
            continue
        base = X32_BIT if abi == "SCMP_ARCH_X32" else 0
        unsure = {NUMBERS[name][ABIS[abi].column] for name in NUMBERS if not known_to_both(name, abi)}
        some = {NUMBERS[name][ABIS[abi].column] for name in conditional if name in NUMBERS}
        last = largest(profile, abi)
        for number in [*range(560), 0xF0000, 0xF0001, 0xF0002, 0xF0005, 0xF0007, 0x3FFFFFFF]:
            number |= base
            if number in unsure or (abi == "SCMP_ARCH_X86" and number in (102, 117)):
                continue  # multiplexers: test_multiplexed_calls
            for args in lists if number in some else lists[:2]:
                data = (number, ABIS[abi].audit, args)
                young = number > last and not (abi == "SCMP_ARCH_ARM" and 0xF0000 < number < 0xF0007)
                assert ours.run(data) == (ENOSYS if young else theirs.run(data)), (abi, number, args)


def podman_profile(capabilities: set[str], machine: str) -> dict[str, Any]:
    """linux.seccomp as podman would write it, from the file it reads."""
    if not PODMAN.exists():
        pytest.skip(f"{PODMAN} is not installed (golang-github-containers-common)")
    source = json.loads(PODMAN.read_text())
    go = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    rules = []
    for rule in source["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(includes.get("caps") or ()) <= capabilities or set(excludes.get("caps") or ()) & capabilities:
            continue
        if go not in (includes.get("arches") or [go]) or go in (excludes.get("arches") or []):
            continue
        rules.append({key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key) is not None})
    return {
        "defaultAction": source["defaultAction"],
        "defaultErrnoRet": source["defaultErrnoRet"],
        "architectures": list(MACHINES[machine]),
        "syscalls": rules,
    }


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("capabilities", [set(), {"CAP_SYS_ADMIN", "CAP_AUDIT_WRITE", "CAP_SYS_PTRACE"}])
def test_podmans_profile(machine: str, capabilities: set[str]) -> None:
    compare(podman_profile(capabilities, machine), machine)


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("capabilities", [[], ["CAP_SYS_ADMIN"]])
def test_our_profile_and_one_in_dockers_style(machine: str, capabilities: list[str]) -> None:
    ours = default_profile(capabilities, machine)
    compare(ours, machine)
    # Docker's: everything not allowed is EPERM, nothing else is said.
    allows = [rule for rule in ours["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    compare({**ours, "defaultErrnoRet": 1, "syscalls": allows}, machine)


NAMES = ["read", "openat", "clone", "personality", "ioctl", "mmap", "mremap", "prctl", "futex", "statx"]
VALUES = [0, 1, 5, 0x5412, 0x7E020000, M32, 1 << 32, (1 << 32) + 5, M64 - 99, M64]
conditions = st.builds(
    lambda index, op, value, second: {"index": index, "op": op, "value": value, "valueTwo": second},
    st.integers(0, 5),
    st.sampled_from(seccomp.OPERATORS),
    st.sampled_from(VALUES),
    st.sampled_from(VALUES),
)


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    """Profiles whose meaning libseccomp keeps.

    Its decision trees do not come back: two alternatives for one call that begin alike, or compare 64-bit values by
    order, can hide each other (arg < 0 or arg < 2**32 lets 1 through in ours, and not in libseccomp 2.5). So a call
    here has one rule with conditions, or several with one equality each on the same argument.
    """
    plain = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_TRAP", "SCMP_ACT_KILL", "SCMP_ACT_LOG"])
    rules = []
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=8, unique=True)):
        action = draw(plain)
        if draw(st.booleans()):
            args = draw(st.lists(conditions, max_size=3, unique_by=lambda arg: arg["index"]))
            rules.append({"names": [name], "action": action, "args": args})
        else:
            index = draw(st.integers(0, 5))
            values = draw(st.lists(st.sampled_from(VALUES), max_size=4, unique=True))
            arguments = [{"index": index, "op": "SCMP_CMP_EQ", "value": value} for value in values]
            rules += [{"names": [name], "action": action, "args": [argument]} for argument in arguments]
            if draw(st.booleans()):
                rules.append({"names": [name], "action": action, "args": arguments})
    return {
        "defaultAction": draw(plain),
        "architectures": draw(st.lists(st.sampled_from(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]), unique=True)),
        "syscalls": rules,
    }


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_made_up_profiles(profile: dict[str, Any]) -> None:
    compare(profile, "x86_64")


def test_multiplexed_calls() -> None:
    """i386's socketcall and ipc, where the profile does not name them."""
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["socket", "bind", "recvmmsg", "shmat", "semop"], "action": "SCMP_ACT_ALLOW"}],
    }
    ours, theirs = Classic(compile_filter(profile, "x86_64")), reference(profile, "x86_64")
    for number in (102, 117):
        for call in range(40):
            data = (number, ABIS["SCMP_ARCH_X86"].audit, (call, 0, 0, 0, 0, 0))
            assert ours.run(data) == theirs.run(data), (number, call)


# The filter that runc really loads


class _Insn(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


def loaded_filter(pid: int) -> bytes:
    """PTRACE_SECCOMP_GET_FILTER of a process: the newest filter it runs under."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt, get_filter, detach = 0x4206, 0x4207, 0x420C, 17
    if libc.ptrace(seize, pid, None, None):
        pytest.skip(f"ptrace: {os.strerror(ctypes.get_errno())}")
    try:
        libc.ptrace(interrupt, pid, None, None)
        os.waitpid(pid, 0x40000000)  # __WALL
        count = libc.ptrace(get_filter, pid, None, None)
        if count < 0:
            pytest.skip(f"PTRACE_SECCOMP_GET_FILTER: {os.strerror(ctypes.get_errno())}")
        buffer = (_Insn * count)()
        assert libc.ptrace(get_filter, pid, None, ctypes.addressof(buffer)) == count
        return bytes(buffer)
    finally:
        libc.ptrace(detach, pid, None, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="runc's filter can be read by root only")
@pytest.mark.skipif(not shutil.which("runc"), reason="runc is not installed")
@pytest.mark.skipif(not shutil.which("busybox"), reason="busybox is not installed")
@pytest.mark.parametrize("whose", ["podman", "ours"])
def test_the_filter_runc_loads(whose: str) -> None:
    """runc's own program, ENOSYS stub included, gives the verdicts ours gives."""
    profile = podman_profile(set(), "x86_64") if whose == "podman" else default_profile([], "x86_64")
    profile["defaultErrnoRet"] = 1  # so that the stub is seen
    both = [
        {"index": 1, "op": "SCMP_CMP_GE", "value": 1 << 33},
        {"index": 3, "op": "SCMP_CMP_LE", "value": 24},
    ]
    profile["syscalls"].append({"names": ["process_madvise"], "action": "SCMP_ACT_TRAP", "args": both})
    profile["syscalls"] = [
        {**rule, "names": [n for n in rule["names"] if all(known_to_both(n, abi) for abi in MACHINES["x86_64"])]}
        for rule in profile["syscalls"]
    ]
    with tempfile.TemporaryDirectory(prefix="knarr-seccomp-") as bundle:
        program = _run_runc(pathlib.Path(bundle), profile)
    ours, theirs = Classic(compile_filter(profile, "x86_64")), Classic(program)
    lists = interesting(profile)
    conditional = {name for rule in profile["syscalls"] if rule.get("args") for name in rule["names"]}
    for abi in MACHINES["x86_64"]:
        base = X32_BIT if abi == "SCMP_ARCH_X32" else 0
        some = {NUMBERS[name][ABIS[abi].column] for name in conditional if name in NUMBERS}
        for number in [*range(600), 4000]:
            if whose == "ours" and abi == "SCMP_ARCH_X86" and number == 102:
                continue  # where a rule for socket has conditions, ours is the stricter
            for args in lists if number | base in some else lists[:2]:
                data = (number | base, ABIS[abi].audit, args)
                assert ours.run(data) == theirs.run(data), (abi, number, args)
    assert ours.run((4000, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6)) == ENOSYS


def _run_runc(bundle: pathlib.Path, profile: dict[str, Any]) -> bytes:
    """Start a container that sleeps under ``profile`` and read its filter."""
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), bundle / "rootfs/bin/busybox")
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/busybox", "sleep", "60"]
    config["process"]["terminal"] = False
    config["process"]["noNewPrivileges"] = True
    config["process"].pop("rlimits", None)
    config["linux"]["seccomp"] = profile
    (bundle / "config.json").write_text(json.dumps(config))
    name = f"knarr-test-{secrets.token_hex(4)}"
    state = ["runc", "--root", str(bundle / "state")]
    pid_file = bundle / "pid"
    process = subprocess.Popen(
        [*state, "run", "--pid-file", str(pid_file), name],
        cwd=bundle,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if process.poll() is not None:
                assert process.stdout is not None
                pytest.skip(f"runc cannot run here: {process.stdout.read().decode(errors='replace')[-300:]}")
            if pid_file.exists() and pid_file.read_text():
                pid = int(pid_file.read_text())
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                if words.startswith(b"/bin/busybox\0sleep"):
                    return loaded_filter(pid)
            time.sleep(0.02)
        raise AssertionError("the container did not start")
    finally:
        subprocess.run([*state, "delete", "--force", name], cwd=bundle, check=False, capture_output=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()

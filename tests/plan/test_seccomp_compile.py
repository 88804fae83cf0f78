"""plan/seccomp.py: the compiled filter against a naive reading of the profile, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from bpf_machines import M32, M64, Classic
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.base.errors import SpecError, Unsupported
from knarr.plan import seccomp
from knarr.plan.seccomp import ACTIONS, compile_filter
from knarr.plan.seccomp_filter import filter_flags
from knarr.plan.syscall_tables import ARCHES, NUMBERS
from knarr.plan.syscalls import ABIS, IPC, MACHINES, SOCKETCALL, X32_BIT

EPERM = seccomp.RET_ERRNO | 1
ENOSYS = seccomp.RET_ERRNO | 38
ALLOW = seccomp.RET_ALLOW
KILL = seccomp.RET_KILL_THREAD
ALL_X86 = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "architectures": ALL_X86, "syscalls": list(rules), **more}


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", args: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    return {"names": list(names), "action": action, **({"args": args} if args is not None else {}), **more}


def arg(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


def verdict(given: dict[str, Any], name: str, *args: int, abi: str = "SCMP_ARCH_X86_64", arch: str = "x86_64") -> int:
    number = NUMBERS[name][ABIS[abi].column]
    assert number >= 0
    return Classic(compile_filter(given, arch)).run((number, ABIS[abi].audit, (*args, *[0] * (6 - len(args)))))


# A second, slow reading of the specification: no tables, no ranges, one call at a time.


BY_NUMBER: list[dict[int, set[str]]] = [{}, {}, {}, {}, {}]
for _name, _row in NUMBERS.items():
    for _column, _number in enumerate(_row):
        BY_NUMBER[_column].setdefault(_number, set()).add(_name)


def naive(given: dict[str, Any], machine: str, abi: str, number: int, args: tuple[int, ...]) -> int:
    default = _value(given["defaultAction"], given.get("defaultErrnoRet"))
    rules = [(r["names"], _value(r["action"], r.get("errnoRet")), r.get("args") or []) for r in given["syscalls"]]
    column, wide = ABIS[abi].column, ABIS[abi].wide
    if abi != MACHINES[machine][0] and abi not in given["architectures"]:
        return default if abi == "SCMP_ARCH_X32" and number == M32 else KILL
    names = BY_NUMBER[column].get(number, set())
    mine = [(value, args_) for listed, value, args_ in rules for name in listed if name in names if value != default]
    for value, conditions in mine:
        if not conditions:
            return value
    for value, conditions in mine:
        indices = [c["index"] for c in conditions]
        results = [_holds(c, args, wide) for c in conditions]
        if (any if len(set(indices)) < len(indices) else all)(results):
            return value
    if abi == "SCMP_ARCH_X86" and names & {"socketcall", "ipc"}:
        result = _multiplexed(rules, default, "socketcall" in names, args[0])
        if result is not None:
            return result
    if mine:
        return default
    private = 0xF0000 if abi == "SCMP_ARCH_ARM" else 1 << 31
    listed_names = {name for listed, _, _ in rules for name in listed if name in NUMBERS}
    named = [NUMBERS[name][column] for name in listed_names]
    if abi == "SCMP_ARCH_X86":
        named += [102] * bool(listed_names & SOCKETCALL.keys()) + [117] * bool(listed_names & IPC.keys())
    largest = max((n for n in named if n < private), default=-1)
    permissive = given["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
    return ENOSYS if number > largest >= 0 and not permissive else default


def _value(action: str, number: int | None) -> int:
    value = ACTIONS[action]
    return value | (1 if number is None else number) if value in (seccomp.RET_ERRNO, seccomp.RET_TRACE) else value


def _holds(condition: dict[str, Any], args: tuple[int, ...], wide: bool) -> bool:
    mask = M64 if wide else M32
    got, want = args[condition["index"]] & mask, condition["value"] & mask
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(got & want == condition.get("valueTwo", 0) & want)
    outcome: bool = {
        "SCMP_CMP_NE": got != want,
        "SCMP_CMP_LT": got < want,
        "SCMP_CMP_LE": got <= want,
        "SCMP_CMP_EQ": got == want,
        "SCMP_CMP_GE": got >= want,
        "SCMP_CMP_GT": got > want,
    }[condition["op"]]
    return outcome


def _multiplexed(rules: list[Any], default: int, socket: bool, call: int) -> int | None:
    table, name = (SOCKETCALL, "socketcall") if socket else (IPC, "ipc")
    call &= M32 if socket else 0xFFFF
    if any(name in listed for listed, _, _ in rules):
        return None
    mine = [(v, a) for listed, v, a in rules for n in listed if table.get(n) == call and v != default]
    for value, conditions in mine:
        if not conditions:
            return int(value)
    strictest = [KILL, seccomp.RET_TRAP, seccomp.RET_ERRNO, seccomp.RET_NOTIFY, seccomp.RET_TRACE, seccomp.RET_LOG]
    order = [seccomp.RET_KILL_PROCESS, *strictest, ALLOW]
    values = [default, *[value for value, _ in mine]]
    result: int = min(values, key=lambda value: order.index(value & 0xFFFF0000))
    return result if result != default else None


NAMES = [
    "read",
    "write",
    "open",
    "openat",
    "clone",
    "personality",
    "ioctl",
    "mmap",
    "mseal",
    "cacheflush",
    "set_tls",
    "nosuchcall",
    "rt_sigaction",
    "socket",
    "accept",
    "semop",
    "recv",
    "socketcall",
    "ipc",
    "arch_prctl",
    "file_setattr",
    "uretprobe",
]
VALUES = [0, 1, 5, 0x5412, 0x7E020000, M32, 1 << 32, (1 << 32) + 5, 0xFFFFFFFFFFFFFF9C, M64]
conditions = st.builds(
    arg,
    st.integers(0, 5),
    st.sampled_from(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]),
    st.sampled_from(VALUES),
    st.sampled_from(VALUES),
)
actions = st.sampled_from([name for name in ACTIONS if name != "SCMP_ACT_NOTIFY"])
rules = st.builds(
    lambda names, action, args: rule(*names, action=action, args=args),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    actions,
    st.lists(conditions, max_size=3),
)
profiles = st.builds(
    lambda default, abis, rules_: {"defaultAction": default, "architectures": abis, "syscalls": rules_},
    actions,
    st.lists(st.sampled_from(list(ABIS)), unique=True),
    st.lists(rules, max_size=12),
)
numbers = st.one_of(
    st.integers(0, 700),
    st.sampled_from([102, 117, 0xF0001, 0xF0002, 0xF0005, 0xEFFFF, X32_BIT - 1, 0x7FFFFFFF, 0x80000000, M32 - 1, M32]),
)
arguments = st.tuples(*[st.sampled_from([*VALUES, 2, 4, 8, 0x5413, 0x100005412])] * 6)


@settings(max_examples=200, deadline=None)
@given(profiles, st.sampled_from(sorted(MACHINES)), st.lists(st.tuples(numbers, arguments), min_size=10, max_size=20))
def test_filter_equals_naive_reading(given_profile: dict[str, Any], machine: str, calls: list[Any]) -> None:
    filter_ = Classic(compile_filter(given_profile, machine))
    for abi in MACHINES[machine]:
        for number, args in calls:
            kind = abi
            if abi == "SCMP_ARCH_X32":
                number |= X32_BIT
            elif abi == "SCMP_ARCH_X86_64" and number >= X32_BIT:
                kind = "SCMP_ARCH_X32"
            expected = naive(given_profile, machine, kind, number, args)
            assert filter_.run((number, ABIS[kind].audit, args)) == expected, (kind, number, args)


def test_unlisted_and_foreign_architectures_are_killed() -> None:
    native_only = Classic(compile_filter(profile(rule("read"), architectures=[]), "x86_64"))
    read = (0, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6)
    assert native_only.run(read) == ALLOW
    assert native_only.run((3, ABIS["SCMP_ARCH_X86"].audit, (0,) * 6)) == KILL
    assert native_only.run((X32_BIT, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6)) == KILL
    assert native_only.run((0, ABIS["SCMP_ARCH_AARCH64"].audit, (0,) * 6)) == KILL
    # -1 is how a tracer skips a call
    assert native_only.run((M32, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6)) == EPERM
    # known names of other machines change nothing
    mixed = profile(rule("read"), architectures=["SCMP_ARCH_S390X", "SCMP_ARCH_RISCV64", "SCMP_ARCH_ARM"])
    assert compile_filter(mixed, "x86_64") == compile_filter(profile(rule("read"), architectures=[]), "x86_64")


@pytest.mark.parametrize(
    ("action", "value"),
    [
        ("SCMP_ACT_ALLOW", 0x7FFF0000),
        ("SCMP_ACT_LOG", 0x7FFC0000),
        ("SCMP_ACT_TRACE", 0x7FF00001),
        ("SCMP_ACT_TRAP", 0x00030000),
        ("SCMP_ACT_KILL", 0),
        ("SCMP_ACT_KILL_THREAD", 0),
        ("SCMP_ACT_KILL_PROCESS", 0x80000000),
        ("SCMP_ACT_NOTIFY", 0x7FC00000),
        ("SCMP_ACT_ERRNO", 0x00050001),
    ],
)
def test_actions_have_the_kernels_numbers(action: str, value: int) -> None:
    given_profile = profile(rule("open", action=action), default="SCMP_ACT_ERRNO", defaultErrnoRet=5)
    given_profile["listenerPath"] = "/run/agent.sock"
    filter_ = Classic(compile_filter(given_profile, "x86_64"))
    assert filter_.run((2, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6)) == value


def test_errno_numbers() -> None:
    given_profile = profile(rule("open", action="SCMP_ACT_ERRNO", errnoRet=0), default="SCMP_ACT_KILL_PROCESS")
    assert verdict(given_profile, "open") == seccomp.RET_ERRNO
    given_profile = profile(rule("open", action="SCMP_ACT_TRACE", errnoRet=65535), default="SCMP_ACT_ALLOW")
    assert verdict(given_profile, "open") == seccomp.RET_TRACE | 65535
    assert verdict(profile(rule("write"), defaultErrnoRet=22), "read") == seccomp.RET_ERRNO | 22


def test_rules_of_one_call_are_or_ed_and_conditions_and_ed() -> None:
    given_profile = profile(
        rule("openat", args=[arg(0, "EQ", 3), arg(2, "EQ", 0)]), rule("openat", args=[arg(1, "EQ", 9)])
    )
    assert verdict(given_profile, "openat", 3, 0, 0) == ALLOW
    assert verdict(given_profile, "openat", 3, 0, 1) == EPERM
    assert verdict(given_profile, "openat", 4, 9, 1) == ALLOW


def test_two_conditions_on_one_argument_stand_alone() -> None:
    given_profile = profile(rule("personality", args=[arg(0, "EQ", 0), arg(0, "EQ", 8)]), rule("uname"))
    assert [verdict(given_profile, "personality", n) for n in (0, 8, 7)] == [ALLOW, ALLOW, EPERM]


def test_a_rule_without_conditions_beats_those_with() -> None:
    refuse = rule("openat", action="SCMP_ACT_KILL")
    allow = rule("openat", args=[arg(0, "EQ", 3)])
    assert verdict(profile(refuse, allow), "openat", 3) == KILL
    assert verdict(profile(allow, refuse), "openat", 3) == KILL
    # unless it says the same as the default: then it is no rule
    assert verdict(profile(rule("openat", action="SCMP_ACT_ERRNO"), allow), "openat", 3) == ALLOW


def test_calls_younger_than_the_profile_do_not_exist() -> None:
    given_profile = profile(rule("read", "openat2"))
    assert verdict(given_profile, "pidfd_open") == EPERM  # 434 < openat2's 437
    assert verdict(given_profile, "epoll_pwait2") == ENOSYS
    assert verdict(given_profile, "epoll_pwait2", abi="SCMP_ARCH_X86") == ENOSYS
    assert verdict(given_profile, "epoll_pwait2", abi="SCMP_ARCH_X32") == ENOSYS
    assert verdict({**given_profile, "defaultAction": "SCMP_ACT_KILL"}, "epoll_pwait2") == ENOSYS
    assert verdict({**given_profile, "defaultAction": "SCMP_ACT_LOG"}, "epoll_pwait2") == seccomp.RET_LOG
    # a rule that says what the default says still names its call
    assert verdict(profile(rule("read"), rule("mseal", action="SCMP_ACT_ERRNO")), "epoll_pwait2") == EPERM
    # arm's own calls have numbers far above: they do not make every common call old
    arm = profile(rule("read", "openat2", "set_tls"), architectures=["SCMP_ARCH_ARM"])
    assert verdict(arm, "epoll_pwait2", abi="SCMP_ARCH_ARM", arch="aarch64") == ENOSYS
    assert verdict(arm, "set_tls", abi="SCMP_ARCH_ARM", arch="aarch64") == ALLOW


def test_a_32_bit_socketcall_cannot_get_around_a_condition() -> None:
    allow = rule("socket", args=[arg(0, "NE", 40)])
    assert verdict(profile(allow, rule("bind")), "socketcall", 1, abi="SCMP_ARCH_X86") == EPERM
    assert verdict(profile(allow, rule("bind")), "socketcall", 2, abi="SCMP_ARCH_X86") == ALLOW
    deny = profile(rule("socket", action="SCMP_ACT_ERRNO", args=[arg(0, "EQ", 40)]), default="SCMP_ACT_ALLOW")
    assert verdict(deny, "socketcall", 1, abi="SCMP_ARCH_X86") == EPERM
    assert verdict(deny, "socketcall", 2, abi="SCMP_ARCH_X86") == ALLOW
    named = profile(rule("socket", "bind"), rule("socketcall", action="SCMP_ACT_ERRNO"))
    assert verdict(named, "socketcall", 2, abi="SCMP_ARCH_X86") == EPERM
    assert verdict(profile(rule("shmat")), "ipc", (1 << 16) | 21, abi="SCMP_ARCH_X86") == ALLOW


def test_what_the_accumulator_holds_is_not_assumed() -> None:
    """A first load that can be left out, followed by a second one, followed by a third alternative."""
    given_profile = profile(
        rule("ioctl", args=[arg(1, "MASKED_EQ", 3 << 32, 1 << 32)]),
        rule("ioctl", args=[arg(1, "MASKED_EQ", 1 << 32, 0)]),
        rule("ioctl", args=[arg(1, "EQ", (9 << 32) + 9)]),
        rule("ioctl", args=[arg(1, "MASKED_EQ", 15 << 32, 11 << 32)]),
        rule("ioctl", args=[arg(1, "MASKED_EQ", 15 << 32, 7 << 32)]),
    )
    for high in range(32):
        for low in (0, 7, 9, 11):
            value = (high << 32) + low
            wanted = high & 3 == 1 or not high & 1 or value == (9 << 32) + 9 or high & 15 in (11, 7)
            assert verdict(given_profile, "ioctl", 0, value) == (ALLOW if wanted else EPERM)


def test_64_bit_values_are_compared_whole() -> None:
    above = profile(rule("ioctl", args=[arg(1, "GT", 40)]))
    assert verdict(above, "ioctl", 0, (1 << 32) + 1) == ALLOW
    low = profile(rule("ioctl", args=[arg(1, "MASKED_EQ", M32, 0x5412)]))
    assert verdict(low, "ioctl", 0, (7 << 32) + 0x5412) == ALLOW
    assert verdict(profile(rule("ioctl", args=[arg(1, "EQ", 0x5412)])), "ioctl", 0, (7 << 32) + 0x5412) == EPERM


def test_common_calls_are_found_quickly() -> None:
    every_other = [name for name, row in sorted(NUMBERS.items(), key=lambda item: item[1][0]) if row[0] % 2]
    filter_ = Classic(compile_filter(profile(rule(*every_other)), "x86_64"))
    for number in range(470):
        filter_.run((number, ABIS["SCMP_ARCH_X86_64"].audit, (0,) * 6))
        assert filter_.steps <= 16


def test_too_large_profiles_are_refused_with_their_size() -> None:
    many = profile(*[rule("ioctl", args=[arg(i, "EQ", n) for i in range(6)]) for n in range(100)])
    with pytest.raises(Unsupported, match=r"/linux/seccomp/syscalls: .* compiles to \d{4,} instructions.* 4096"):
        compile_filter(many, "x86_64")
    assert len(compile_filter({**many, "architectures": []}, "x86_64")) // 8 > 255 * 8


def test_other_machines_are_refused() -> None:
    with pytest.raises(Unsupported, match="riscv64"):
        compile_filter(profile(), "riscv64")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"defaultAction": "SCMP_ACT_MAYBE"}, "/linux/seccomp/defaultAction"),
        ({"defaultAction": None}, "/linux/seccomp/defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "/linux/seccomp/defaultAction"),
        ({"defaultErrnoRet": 70000}, "/linux/seccomp/defaultErrnoRet"),
        ({"defaultErrnoRet": -1}, "/linux/seccomp/defaultErrnoRet"),
        ({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}, "/linux/seccomp/defaultErrnoRet"),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_VAX"]}, "/linux/seccomp/architectures/1"),
        ({"architectures": [["x"]]}, "/linux/seccomp/architectures/0"),
        ({"syscalls": ["read"]}, "/linux/seccomp/syscalls/0"),
        ({"syscalls": [rule()]}, "/linux/seccomp/syscalls/0/names"),
        ({"syscalls": [rule("read", "")]}, "/linux/seccomp/syscalls/0/names/1"),
        ({"syscalls": [rule("read", action="allow")]}, "/linux/seccomp/syscalls/0/action"),
        ({"syscalls": [rule("read", errnoRet=1)]}, "/linux/seccomp/syscalls/0/errnoRet"),
        ({"syscalls": [rule("read", action="SCMP_ACT_TRAP", errnoRet=1)]}, "/linux/seccomp/syscalls/0/errnoRet"),
        ({"syscalls": [rule("read", args=[arg(9, "EQ", 1)])]}, "/linux/seccomp/syscalls/0/args/0/index"),
        ({"syscalls": [rule("read", args=[arg(0, "IS", 1)])]}, "/linux/seccomp/syscalls/0/args/0/op"),
        ({"syscalls": [rule("read", args=[arg(0, "EQ", 1 << 64)])]}, "/linux/seccomp/syscalls/0/args/0/value"),
        ({"syscalls": [rule("read", args=[arg(0, "EQ", 1, -1)])]}, "/linux/seccomp/syscalls/0/args/0/valueTwo"),
        ({"syscalls": [rule("read", action="SCMP_ACT_NOTIFY")]}, "/linux/seccomp/listenerPath"),
        (
            {"syscalls": [rule("write", action="SCMP_ACT_NOTIFY")], "listenerPath": "/x"},
            "/linux/seccomp/syscalls/0/names",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_filter({**profile(rule("read")), **change}, "x86_64")
    assert [finding.pointer for finding in caught.value.findings] == [where]


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        compile_filter(profile(rule("read", action="x"), rule("", args=[arg(7, "EQ", 0)])), "x86_64", pointer="/p")
    assert [finding.pointer for finding in caught.value.findings] == [
        "/p/syscalls/0/action",
        "/p/syscalls/1/names/0",
        "/p/syscalls/1/args/0/index",
    ]


def test_a_listener_comes_with_the_action_not_with_the_path() -> None:
    notify = profile(rule("mknod", action="SCMP_ACT_NOTIFY"), listenerPath="/run/agent.sock")
    assert filter_flags(notify) == 8 | 4
    assert filter_flags(profile(rule("mknod"), listenerPath="/run/agent.sock")) == 4


def test_unknown_calls_are_ignored_and_the_profile_is_left_alone() -> None:
    given_profile = profile(rule("read", "no_such_call", args=[arg(0, "EQ", 1)]))
    before = copy.deepcopy(given_profile)
    assert compile_filter(given_profile, "x86_64") == compile_filter(
        profile(rule("read", args=[arg(0, "EQ", 1)])), "x86_64"
    )
    assert given_profile == before


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        (None, 4),
        ([], 0),
        (["SECCOMP_FILTER_FLAG_TSYNC"], 0),
        (["SECCOMP_FILTER_FLAG_LOG"], 2),
        (["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], 6),
    ],
)
def test_flags(flags: list[str] | None, number: int) -> None:
    assert filter_flags({"defaultAction": "SCMP_ACT_ALLOW", **({} if flags is None else {"flags": flags})}) == number


def test_bad_flags_are_named() -> None:
    for flags in (
        ["SECCOMP_FILTER_FLAG_LOG", "X"],
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
    ):
        with pytest.raises(SpecError) as caught:
            filter_flags({"flags": flags})
        assert caught.value.findings[0].pointer == "/linux/seccomp/flags/1"
    notify = profile(rule("mknod", action="SCMP_ACT_NOTIFY"), flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
    assert filter_flags(notify) == 8 | 32


def test_tables_have_a_column_for_each_abi() -> None:
    assert [abi.column for abi in ABIS.values()] == list(range(len(ARCHES)))
    assert all(len(row) == len(ARCHES) for row in NUMBERS.values())
    # common to all since Linux 5.1
    assert {row for row in NUMBERS["openat2"] if row < X32_BIT} == {437}
    assert NUMBERS["listns"] == (470, 470, 470 | X32_BIT, 470, 470)

"""linux.seccomp of config.json -> classic BPF for seccomp(2) (hot, pure).

runtime-spec config-linux.md "Seccomp". Verdicts are those of runc with libseccomp; docs/seccomp.md lists the few
cases where we choose the stricter reading. The shape: one section per audit architecture, in it a binary search
over ranges of call numbers with the same verdict, so that a common call costs about ten instructions (and nothing
at all since Linux 5.11, which remembers the calls that a filter always allows).
"""

from __future__ import annotations

from struct import pack

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.plan.seccomp_filter import MAX_INSTRUCTIONS
from knarr.plan.syscalls import ABIS, ARM_PRIVATE, FOREIGN_ARCHES, IPC, MACHINES, SOCKETCALL, X32_BIT, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from knarr.plan.syscalls import Abi

    Condition = tuple[int, str, int, int]  # argument index, operator, value, valueTwo
    Alternative = tuple[tuple[Condition, ...], int]  # all must hold; what the filter then returns
    Verdict = int | list[Alternative]
    Rows = dict[str, tuple[int, int, int, int, int]]  # of syscall_tables
    Instruction = tuple[int, int, int, int]  # code, jt, jf, k

_X86 = ABIS["SCMP_ARCH_X86"]

# linux/seccomp.h
RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_NOTIFY = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000

ACTIONS = {
    "SCMP_ACT_KILL": RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": RET_TRAP,
    "SCMP_ACT_ERRNO": RET_ERRNO,
    "SCMP_ACT_TRACE": RET_TRACE,
    "SCMP_ACT_LOG": RET_LOG,
    "SCMP_ACT_NOTIFY": RET_NOTIFY,
    "SCMP_ACT_ALLOW": RET_ALLOW,
}
OPERATORS = (
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
)
_EPERM = 1
_ENOSYS = 38
_ACTION_FULL = 0xFFFF0000
_LARGEST_ERRNO = 4095  # the kernel's MAX_ERRNO: it would clamp a larger one silently
# Under these defaults a call younger than the profile is let through, so it needs no ENOSYS.
_PERMISSIVE = (RET_ALLOW, RET_LOG, RET_TRACE)

# linux/bpf_common.h
_LD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JA = 0x05
_JEQ = 0x15
_JGT = 0x25
_JGE = 0x35
_JSET = 0x45
_AND = 0x54
_RET = 0x06
# struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NR = 0
_ARCH = 4
_ARGS = 16


class _Profile:
    """A profile that was checked: what the code generator needs of it."""

    __slots__ = ("arches", "default", "notify", "rules")

    def __init__(self) -> None:
        self.default = 0
        self.arches: list[str] = []
        # (names, what the filter returns, alternatives of conditions; none: always)
        self.rules: list[tuple[list[str], int, list[tuple[Condition, ...]]]] = []
        self.notify = False


def compile_filter(profile: dict[str, Any], arch: str, *, pointer: str = "/linux/seccomp") -> bytes:
    """Compile ``profile`` for machine ``arch`` (uname's name) into an array of struct sock_filter.

    Raises SpecError with every finding, each at its JSON pointer below ``pointer``, or Unsupported for another machine
    or a filter of more than 4,096 instructions.
    """
    if arch not in MACHINES:
        raise Unsupported("a seccomp filter", f"system call numbers of {arch} are not known", pointer=pointer)
    checked = _check(profile, pointer)
    native, *others = MACHINES[arch]
    chosen = [native] + [name for name in others if name in checked.arches]
    sections: dict[int, list[tuple[int, Verdict]]] = {}
    for name in chosen:
        abi = ABIS[name]
        # x32 comes last and continues x86-64's numbers, of which it has bit 30.
        sections.setdefault(abi.audit, []).extend(_ranges(checked, abi))
    if "SCMP_ARCH_X32" not in chosen and native == "SCMP_ARCH_X86_64":
        # An ABI that is not listed; but -1 is how a tracer skips a call, and must not kill.
        sections[ABIS[native].audit] += [(X32_BIT, RET_KILL_THREAD), (0xFFFFFFFF, checked.default)]
    wide = {ABIS[name].audit: ABIS[name].wide for name in reversed(chosen)}
    code: list[Instruction] = [(_LD, 0, 0, _ARCH)]
    for audit, ranges in sections.items():
        body: list[Instruction] = [(_LD, 0, 0, _NR), *_search(ranges, checked.default, wide=wide[audit])]
        code += _unless(_JEQ, audit, len(body)) + body
    code.append((_RET, 0, 0, RET_KILL_THREAD))
    if len(code) > MAX_INSTRUCTIONS:
        raise Unsupported(
            "this seccomp profile",
            f"it compiles to {len(code)} instructions, the kernel takes {MAX_INSTRUCTIONS}",
            pointer=f"{pointer}/syscalls",
        )
    return pack("=" + "HBBI" * len(code), *[field for instruction in code for field in instruction])


def refuse_unknown_calls(profile: dict[str, Any], *, pointer: str = "/linux/seccomp") -> None:
    """Raise SpecError for each system call that no supported architecture has, or that is younger than our tables."""
    findings = [
        SpecFinding(f"{pointer}/syscalls/{position}/names/{index}", f"no system call {name!r} is known")
        for position, rule in enumerate(profile.get("syscalls") or ())
        for index, name in enumerate(rule.get("names") or ())
        if name not in numbers()
    ]
    if findings:
        raise SpecError("config.json", findings)


# Reading the profile


def _check(profile: dict[str, Any], pointer: str) -> _Profile:
    """Everything the profile says, checked. Raises SpecError with all findings."""
    findings: list[SpecFinding] = []
    result = _Profile()
    result.default = _action(
        profile.get("defaultAction"),
        profile.get("defaultErrnoRet"),
        (f"{pointer}/defaultAction", f"{pointer}/defaultErrnoRet"),
        findings,
    )
    for position, name in enumerate(profile.get("architectures") or ()):
        if isinstance(name, str) and name in ABIS:
            result.arches.append(name)
        elif name not in FOREIGN_ARCHES:
            findings.append(SpecFinding(f"{pointer}/architectures/{position}", f"{name!r} is not an architecture"))
    for position, rule in enumerate(profile.get("syscalls") or ()):
        where = f"{pointer}/syscalls/{position}"
        if not isinstance(rule, dict):
            findings.append(SpecFinding(where, "must be an object"))
            continue
        value = _action(rule.get("action"), rule.get("errnoRet"), (f"{where}/action", f"{where}/errnoRet"), findings)
        names = rule.get("names")
        if not isinstance(names, list) or not names:
            findings.append(SpecFinding(f"{where}/names", "must name at least one system call"))
            continue
        for index, name in enumerate(names):
            if not isinstance(name, str) or not name:
                findings.append(SpecFinding(f"{where}/names/{index}", "must be the name of a system call"))
        if value == RET_NOTIFY:
            result.notify = True
            if "write" in names:
                # Other runtimes' own write to the control socket would wait for a listener that is not there yet.
                findings.append(SpecFinding(f"{where}/names", "SCMP_ACT_NOTIFY cannot be used for write"))
        result.rules.append((names, value, _conditions(rule.get("args") or (), where, findings)))
    if result.default == RET_NOTIFY:
        findings.append(SpecFinding(f"{pointer}/defaultAction", "SCMP_ACT_NOTIFY cannot be the default"))
    if result.notify and not profile.get("listenerPath"):
        findings.append(SpecFinding(f"{pointer}/listenerPath", "is missing, and a rule has SCMP_ACT_NOTIFY"))
    if findings:
        raise SpecError("config.json", findings)
    return result


def _action(name: Any, number: Any, where: tuple[str, str], findings: list[SpecFinding]) -> int:
    """What the filter returns for an action."""
    value = ACTIONS.get(name) if isinstance(name, str) else None
    if value is None:
        findings.append(SpecFinding(where[0], "is missing" if name is None else f"{name!r} is not an action"))
        return 0
    if value not in (RET_ERRNO, RET_TRACE):
        if number is not None:
            findings.append(SpecFinding(where[1], f"{name} returns no error number"))
        return value
    if number is None:
        return value | _EPERM
    largest = _LARGEST_ERRNO if value == RET_ERRNO else 0xFFFF
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= largest:
        findings.append(SpecFinding(where[1], f"{number!r} is not a number from 0 to {largest}"))
        return value
    return value | number


def _conditions(args: Iterable[Any], where: str, findings: list[SpecFinding]) -> list[tuple[Condition, ...]]:
    """The alternatives of a rule, each a set of conditions that must all hold.

    Conditions on different arguments belong together. If two of them look at the same argument, each condition
    stands alone, as runc does it for profiles written before libseccomp 2.0 could combine them.
    """
    conditions: list[Condition] = []
    for position, arg in enumerate(args):
        at = f"{where}/args/{position}"
        if not isinstance(arg, dict):
            findings.append(SpecFinding(at, "must be an object"))
            continue
        index: Any = arg.get("index")
        operator: Any = arg.get("op")
        value, second = arg.get("value", 0), arg.get("valueTwo", 0)
        before = len(findings)
        if not _whole(index, 5):
            findings.append(SpecFinding(f"{at}/index", f"{index!r} is not an argument: there are 0 to 5"))
        if operator not in OPERATORS:
            findings.append(SpecFinding(f"{at}/op", f"{operator!r} is not an operator"))
        for key, number in (("value", value), ("valueTwo", second)):
            if not _whole(number, 0xFFFFFFFFFFFFFFFF):
                findings.append(SpecFinding(f"{at}/{key}", f"{number!r} is not a 64-bit number"))
        if len(findings) == before:
            conditions.append((index, operator, value, second))
    if len({condition[0] for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)] if conditions else []


def _whole(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


# From rules to ranges of numbers


def _ranges(profile: _Profile, abi: Abi) -> list[tuple[int, Verdict]]:
    """(first number, verdict) of each range of one ABI, ascending, without gaps."""
    table, last = _table(profile, abi)
    default = profile.default
    young = _young(default) if last >= 0 else default
    first = X32_BIT if abi is ABIS["SCMP_ARCH_X32"] else 0
    ranges: list[tuple[int, Verdict]] = []
    for number in sorted(table):
        if number > first:
            _extend(ranges, first, default if first <= last else young)
            if first <= last < number - 1:  # arm's private calls, far above the common ones
                _extend(ranges, last + 1, young)
        _extend(ranges, number, table[number])
        first = number + 1
    if first <= last:
        _extend(ranges, first, default)
        first = last + 1
    _extend(ranges, first, young)
    return ranges


def _young(default: int) -> int:
    """The verdict on calls younger than every call the profile names.

    A program that meets ENOSYS falls back to an older call; with EPERM it would give up (runc since 1.0-rc93).
    """
    return default if default & _ACTION_FULL in _PERMISSIVE else RET_ERRNO | _ENOSYS


def _extend(ranges: list[tuple[int, Verdict]], first: int, verdict: Verdict) -> None:
    if not ranges or ranges[-1][1] != verdict:
        ranges.append((first, verdict))


def _table(profile: _Profile, abi: Abi) -> tuple[dict[int, Verdict], int]:
    """Number -> verdict where it is not the default, and the highest number the profile names (-1: none).

    A rule without conditions beats those with; the first of several without wins; of those with conditions the
    first that matches. A rule that says what the default says does not count. So libseccomp and runc.
    """
    rows = numbers()
    column = abi.column
    default = profile.default
    fixed: dict[int, Verdict] = {}
    open_: dict[int, list[Alternative]] = {}
    last = -1
    common = ARM_PRIVATE if abi is ABIS["SCMP_ARCH_ARM"] else 0x80000000
    mux = _Multiplexed(profile) if abi is _X86 else None
    for names, value, alternatives in profile.rules:
        for name in names:
            row = rows.get(name)
            if row is None:
                continue  # of another architecture, or younger than we are: runc ignores it too
            number = row[column]
            if mux is not None:
                last = max(last, mux.add(name, value, rows, conditional=bool(alternatives)))
            if number < 0:
                continue
            if last < number < common:
                last = number
            if value == default or number in fixed:
                continue
            if not alternatives:
                fixed[number] = value
                open_.pop(number, None)
            else:
                open_.setdefault(number, []).extend((conditions, value) for conditions in alternatives)
    fixed.update(open_)
    if mux is not None:
        mux.finish(fixed, rows)
    return fixed, last


class _Multiplexed:
    """What a profile's socket and IPC rules mean for i386's socketcall and ipc, which it does not name.

    Their other arguments are pointers a filter cannot follow, so a rule with conditions takes effect only where that
    makes the filter stricter.
    """

    __slots__ = ("default", "fixed", "open", "skip")

    def __init__(self, profile: _Profile) -> None:
        self.default = profile.default
        named = {name for names, _, _ in profile.rules for name in names if name in ("socketcall", "ipc")}
        self.skip = named
        self.fixed: dict[tuple[str, int], int] = {}
        self.open: dict[tuple[str, int], list[int]] = {}

    def add(self, name: str, value: int, rows: Rows, *, conditional: bool) -> int:
        """Take note of a rule; return the number of the call it is multiplexed by, -1 for none."""
        call = "socketcall" if name in SOCKETCALL else "ipc" if name in IPC else ""
        if not call:
            return -1
        if call not in self.skip and value != self.default:
            key = call, (SOCKETCALL if name in SOCKETCALL else IPC)[name]
            if conditional:
                self.open.setdefault(key, []).append(value)
            else:
                self.fixed.setdefault(key, value)
        return rows[call][_X86.column]

    def finish(self, table: dict[int, Verdict], rows: Rows) -> None:
        strict = {
            key: min([self.default, *values], key=_leniency)
            for key, values in self.open.items()
            if key not in self.fixed
        }
        for (call, number), value in sorted({**strict, **self.fixed}.items()):
            if value != self.default:
                # ipc keeps a version above the low 16 bits.
                mask = 0xFFFF if call == "ipc" else 0xFFFFFFFF
                alternative = (((0, "SCMP_CMP_MASKED_EQ", mask, number),), value)
                entry = table.setdefault(rows[call][_X86.column], [])
                if isinstance(entry, list):
                    entry.append(alternative)


def _leniency(value: int) -> int:
    """Order of filter results as the kernel has it: the strictest first (kill process is negative there)."""
    action = value & _ACTION_FULL
    return action - 0x100000000 if action & 0x80000000 else action


# From ranges to instructions


def _unless(test: int, k: int, body: int) -> list[Instruction]:
    """Go past the next ``body`` instructions unless ``test`` holds; jump offsets of a test have 8 bits."""
    return [(test, 0, body, k)] if body <= 255 else [(test, 1, 0, k), (_JA, 0, 0, body)]


def _search(ranges: list[tuple[int, Verdict]], default: int, *, wide: bool) -> list[Instruction]:
    """Binary search for the range that holds the number in the accumulator, and its verdict."""
    if len(ranges) == 1:
        first, verdict = ranges[0]
        if isinstance(verdict, int):
            return [(_RET, 0, 0, verdict)]
        return _alternatives(verdict, default, wide=wide and first < X32_BIT)
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle], default, wide=wide), _search(ranges[middle:], default, wide=wide)
    k = ranges[middle][0]
    jump = [(_JGE, len(below), 0, k)] if len(below) <= 255 else [(_JGE, 0, 1, k), (_JA, 0, 0, len(below))]
    return jump + below + above


def _alternatives(alternatives: list[Alternative], default: int, *, wide: bool) -> list[Instruction]:
    """One alternative after the other; the default if none matches."""
    code: list[Instruction] = []
    held = (0, 0, 0, 0)  # the load whose value is in the accumulator wherever the next alternative is reached from
    for conditions, value in alternatives:
        tail: list[Instruction] = [(_RET, 0, 0, value)]
        for condition in reversed(conditions):
            tail = _condition(condition, len(tail), wide=wide) + tail
        changes = [instruction for instruction in tail if instruction[0] in (_LD, _AND)]
        code += tail[1:] if tail[0] == held else tail
        held = changes[0] if len(changes) == 1 else (0, 0, 0, 0)
    code.append((_RET, 0, 0, default))
    return code


def _condition(condition: Condition, behind: int, *, wide: bool) -> list[Instruction]:
    """Fall through if the condition holds; else go past the ``behind`` instructions that follow.

    A 64-bit argument is compared in halves. On 32-bit ABIs only the low half counts, of the value too, so that a
    negative number may be written with 64 bits.
    """
    index, operator, value, second = condition
    low = _ARGS + 8 * index
    halves = ((low + 4, 32), (low, 0)) if wide else ((low, 0),)
    if operator == "SCMP_CMP_MASKED_EQ":
        return _masked(halves, value, second, behind)
    k = value & 0xFFFFFFFF
    negated = operator in ("SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE")
    equal = operator in ("SCMP_CMP_EQ", "SCMP_CMP_NE")
    test = _JEQ if equal else _JGT if operator in ("SCMP_CMP_GT", "SCMP_CMP_LE") else _JGE
    # Where to go from the end of the condition: on if the test's outcome is the wanted one, past the rest if not.
    true, false = (behind, 0) if negated else (0, behind)
    code = [(_LD, 0, 0, low), (test, true, false, k)]
    if not wide:
        return code
    high = value >> 32
    if equal:
        return [(_LD, 0, 0, low + 4), (_JEQ, 0, false + 2, high), *code]
    return [(_LD, 0, 0, low + 4), (_JGT, true + 3, 0, high), (_JEQ, 0, false + 2, high), *code]


def _masked(halves: tuple[tuple[int, int], ...], mask: int, wanted: int, behind: int) -> list[Instruction]:
    code: list[Instruction] = []
    for offset, shift in reversed(halves):
        bits = mask >> shift & 0xFFFFFFFF
        if not bits:
            continue  # any value does
        want = wanted >> shift & bits
        false = behind + len(code)
        test: list[Instruction] = [(_LD, 0, 0, offset)]
        if bits == 0xFFFFFFFF:
            test.append((_JEQ, 0, false, want))
        elif not want:
            test.append((_JSET, false, 0, bits))
        elif not bits & (bits - 1):  # one bit
            test.append((_JSET, 0, false, bits))
        else:
            test += [(_AND, 0, 0, bits), (_JEQ, 0, false, want)]
        code = test + code
    return code

"""Device rules -> an eBPF program for a cgroup v2 (hot, pure).

bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE (Linux 4.15; 32-bit jumps need 5.1). The kernel asks the program at each open and
mknod of a device; it must answer 1 to allow. Rules are tried from the last to the first; each settles the kinds of
access it speaks of, and what is left undecided at the end gets the answer for all devices.
"""

from __future__ import annotations

from struct import pack

from knarr.base.errors import Unsupported
from knarr.plan.devices import ALL, since_reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.plan.devices import Rule

    Instruction = tuple[int, int, int, int]  # code, registers, jump offset, number

_KINDS = {"b": 1, "c": 2}  # linux/bpf.h BPF_DEVCG_DEV_*
# linux/bpf.h instruction codes
_LOAD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOVE = 0xBF  # BPF_ALU64 | BPF_MOV | BPF_X
_SET = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_AND = 0x57
_SHIFT_RIGHT = 0x77
_JUMP_EQUAL = 0x16  # BPF_JMP32 | BPF_JEQ | BPF_K: numbers may have bit 31
_JUMP_UNEQUAL = 0x56
_EXIT = 0x95
# Registers: r1 comes as the context, struct bpf_cgroup_dev_ctx {u32 access_type, major, minor}.
_KIND, _LEFT, _MAJOR, _MINOR, _SCRATCH = 2, 3, 4, 5, 6

MAX_RULES = 500
"""Far above any real list; the kernel's verifier gives up at about a thousand of them."""


def device_program(rules: tuple[Rule, ...]) -> bytes | None:
    """The program for ``rules`` as an array of struct bpf_insn; None when they allow everything.

    Raises Unsupported for more than MAX_RULES of them.
    """
    allowed, later = since_reset(rules)
    if allowed and all(rule.allow for rule in later):
        return None
    if len(later) > MAX_RULES:
        why = f"it has {len(later)} rules, at most {MAX_RULES} are taken"
        raise Unsupported("this list of devices", why, pointer="/linux/resources/devices")
    code: list[Instruction] = [
        (_LOAD, 0x10 | _LEFT, 0, 0),
        (_MOVE, _LEFT << 4 | _KIND, 0, 0),
        (_AND, _KIND, 0, 0xFFFF),
        (_SHIFT_RIGHT, _LEFT, 0, 16),
        (_LOAD, 0x10 | _MAJOR, 4, 0),
        (_LOAD, 0x10 | _MINOR, 8, 0),
    ]
    for rule in reversed(later):
        code += _block(rule)
    code += _answer(int(allowed))
    return pack("=" + "BBhI" * len(code), *[field for instruction in code for field in instruction])


def _block(rule: Rule) -> list[Instruction]:
    """One rule: go on behind the block unless the device is one of the rule's."""
    if rule.access == ALL:
        verdict = _answer(int(rule.allow))
    elif rule.allow:
        verdict = [(_AND, _LEFT, 0, ALL & ~rule.access), (_JUMP_UNEQUAL, _LEFT, 2, 0), *_answer(1)]
    else:
        verdict = [
            (_MOVE, _LEFT << 4 | _SCRATCH, 0, 0),
            (_AND, _SCRATCH, 0, rule.access),
            (_JUMP_EQUAL, _SCRATCH, 2, 0),
            *_answer(0),
        ]
    code: list[Instruction] = verdict
    for register, number in ((_MINOR, rule.minor), (_MAJOR, rule.major), (_KIND, _KINDS[rule.kind])):
        if number >= 0:
            code = [(_JUMP_UNEQUAL, register, len(code), number), *code]
    return code


def _answer(value: int) -> list[Instruction]:
    return [(_SET, 0, 0, value), (_EXIT, 0, 0, 0)]

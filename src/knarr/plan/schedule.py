"""Scheduling, CPUs, memory nodes and personality of config.json -> operations (hot, pure).

runtime-spec config.md "Linux Process" (scheduler, ioPriority, execCPUAffinity), config-linux.md "Personality", "Memory
Policy"; sched_setattr(2), ioprio_set(2), sched_setaffinity(2), personality(2), set_mempolicy(2).
"""

from __future__ import annotations

from knarr.plan.ops import Op
from knarr.spec.grammar import cpu_list
from knarr.spec.runtime import IO_CLASSES, MEMORY_FLAGS, MEMORY_MODES, SCHEDULER_FLAGS, SCHEDULER_POLICIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OF_EXEC = ("scheduler", "ioPriority", "execCPUAffinity")
"""Fields that a process document may leave to the container's own process section, as in runc."""
BY_PARENT = ("scheduler", "io_priority")
"""Operations that ask for a capability in the initial user namespace."""
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


def schedule_ops(process: dict[str, Any], linux: dict[str, Any]) -> list[Op]:
    """What a process of the container is given before its program is looked for."""
    result = []
    asked = process.get("scheduler")
    if asked:
        flags = sum(1 << SCHEDULER_FLAGS.index(name) for name in set(asked.get("flags") or ()))
        numbers = [asked.get(name) or 0 for name in ("nice", "priority", "runtime", "deadline", "period")]
        policy = SCHEDULER_POLICIES.index(asked["policy"])
        result.append(Op("scheduler", (policy, flags, *numbers), (), "/process/scheduler"))
    asked = process.get("ioPriority")
    if asked:
        value = (IO_CLASSES.index(asked["class"]) + 1) << 13 | (asked.get("priority") or 0)
        result.append(Op("io_priority", (value,), (), "/process/ioPriority"))
    asked = linux.get("personality")
    if asked:
        result.append(Op("personality", (_PERSONALITIES[asked["domain"]],), (), "/linux/personality"))
    asked = linux.get("memoryPolicy")
    if asked:
        mode = MEMORY_MODES.index(asked["mode"])
        mode |= sum(1 << 13 + MEMORY_FLAGS.index(name) for name in set(asked.get("flags") or ()))
        result.append(Op("memory_policy", (mode, *bit_words(asked.get("nodes") or "")), (), "/linux/memoryPolicy"))
    return result


def affinity_op(process: dict[str, Any], moment: str) -> list[Op]:
    """``execCPUAffinity.initial`` or ``.final``; nothing when it is not given."""
    asked = (process.get("execCPUAffinity") or {}).get(moment)
    return [Op("cpu_affinity", bit_words(asked), (), f"/process/execCPUAffinity/{moment}")] if asked else []


def bit_words(text: str) -> tuple[int, ...]:
    """A list such as ``0-3,7`` as a bit mask in 64-bit words, the lowest first; none for an empty list."""
    mask = 0
    for low, high in cpu_list(text):
        mask |= ((1 << high - low + 1) - 1) << low
    return tuple(mask >> shift & 0xFFFFFFFFFFFFFFFF for shift in range(0, mask.bit_length(), 64))

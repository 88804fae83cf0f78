"""What loading a seccomp filter takes, whoever compiled it (hot, pure): all that is needed when the filter is kept.

The compiler, ``seccomp.py``, is loaded for a profile that nobody has used yet.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMPILER_VERSION = 1
"""Part of the cache key: raise it whenever the same profile would compile to something else."""

MAX_INSTRUCTIONS = 4096  # linux/bpf_common.h BPF_MAXINSNS

# linux/seccomp.h
FLAG_LOG = 2
FLAG_SPEC_ALLOW = 4
FLAG_NEW_LISTENER = 8
FLAG_WAIT_KILLABLE_RECV = 32

FLAGS = {
    # The filter is loaded while the process has one thread: there is nothing to synchronise.
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": FLAG_WAIT_KILLABLE_RECV,
}


def filter_flags(profile: dict[str, Any], *, pointer: str = "/linux/seccomp") -> int:
    """The flags to load the filter with, for seccomp(2).

    Without ``flags`` in the profile SPEC_ALLOW is chosen, as runc does since 1.2: before Linux 5.16 a filter
    otherwise turns a costly mitigation on. Raises SpecError.
    """
    notify = any(rule.get("action") == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls") or ())
    result = FLAG_NEW_LISTENER if notify else 0
    names = profile.get("flags")
    if names is None:
        return result | FLAG_SPEC_ALLOW
    for position, name in enumerate(names):
        where = f"{pointer}/flags/{position}"
        if not isinstance(name, str) or name not in FLAGS:
            raise SpecError("config.json", [SpecFinding(where, f"{name!r} is not a seccomp filter flag")])
        if FLAGS[name] == FLAG_WAIT_KILLABLE_RECV and not notify:
            raise SpecError("config.json", [SpecFinding(where, f"{name} needs a rule with SCMP_ACT_NOTIFY")])
        result |= FLAGS[name]
    return result


def raw_filter(text: str) -> bytes:
    """A filter that somebody else compiled, from base64: an array of struct sock_filter. Raises SpecError."""
    from binascii import Error, a2b_base64  # cold: only with the annotation

    pointer = "/annotations/run.oci.seccomp_bpf_data"
    try:
        program = a2b_base64(text.encode("ascii", "replace"))
    except Error as error:
        raise SpecError("config.json", [SpecFinding(pointer, f"is not base64: {error}")]) from None
    if len(program) % 8 or not 0 < len(program) // 8 <= MAX_INSTRUCTIONS:
        why = f"must hold 1 to {MAX_INSTRUCTIONS} instructions of 8 bytes, not {len(program)} bytes"
        raise SpecError("config.json", [SpecFinding(pointer, why)])
    return program

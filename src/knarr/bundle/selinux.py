"""The SELinux labels of ``knarr run``'s containers: which, from the machine's policy and what a person says. Pure.

A container's processes run in the policy's type for containers, and its files have the type that those may use, with
two categories that no other container has: a process reaches a file only if it has all its categories (MCS). The types
are those of lxc_contexts(5), where container-selinux puts them for engines. docs/security.md "AppArmor and SELinux".
"""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROCESS = "system_u:system_r:container_t:s0"
FILE = "system_u:object_r:container_file_t:s0"
CATEGORIES = 1024
"""How many there are in every policy with MCS: c0 to c1023."""
UNUSABLE = "c1022,c1023"
"""The categories of the files of containers without a label: no container with one has both."""
SHARED = "s0"
"""The level of what several containers share: without categories, so that all reach it."""

_PARTS = ("user", "role", "type", "level")
_WORDS = (*_PARTS, "filetype")


class Labels(Record):
    """A container's: ``process`` ("": that of whoever starts it) and ``mount``, its files' ("": their own)."""

    process: str = ""
    mount: str = ""


def parse_words(value: str) -> str:
    """Check the value of one ``--security-opt label=``. Raises UsageError."""
    key, colon, rest = value.partition(":")
    plain = rest.isprintable() and not any(char in rest for char in " \"'")
    if value == "disable" or (key in _WORDS and rest and plain):
        return value
    if value == "nested":
        why = "the root is labelled as a whole, so nothing in it could get another label"
        raise UsageError(f"security option 'label=nested' is not offered: {why}")
    if value.count(":") >= 3 and all(value.split(":", 3)) and colon and plain:
        return value
    hint = "there is label=disable, label=CONTEXT, and label=user:U, role:R, type:T, level:L, filetype:T"
    raise UsageError(f"security option 'label={value}' is not known", hint=hint)


def needs_categories(words: Sequence[str]) -> bool:
    """Whether a container with these words gets categories of its own: unless a level is given, or no label."""
    return not any(word == "disable" or word.startswith("level:") or _is_context(word) for word in words)


def labels(words: Sequence[str], *, categories: str = "", process: str = PROCESS, file: str = FILE) -> Labels:
    """The labels for the ``label=`` words of one container.

    ``process`` and ``file`` are the policy's contexts for containers, ``categories`` the container's own.
    """
    if "disable" in words:
        return Labels("", _with(file, level=f"{SHARED}:{UNUSABLE}"))
    if categories:
        process, file = (_with(context, level=f"{SHARED}:{categories}") for context in (process, file))
    for word in words:
        if _is_context(word):
            process = word
            file = _with(file, level=word.split(":", 3)[3])
            continue
        key, _, value = word.partition(":")
        if key == "filetype":
            file = _with(file, type=value)
            continue
        process = _with(process, **{key: value})
        if key in ("user", "level"):
            file = _with(file, **{key: value})
    return Labels(process, file)


def shared(mount: str) -> str:
    """The label for what all containers may use, from that of one's files."""
    return _with(mount, level=SHARED)


def label_of_bundle(words: Sequence[str]) -> str:
    """The process label of a bundle: none, unless a whole context is given. Raises UsageError for parts of one."""
    for word in words:
        if word != "disable" and not _is_context(word):
            hint = "knarr run gives labels; for a bundle say label=USER:ROLE:TYPE:LEVEL"
            raise UsageError(f"label={word} is a part of a label, and a bundle has none of its own", hint=hint)
    return next((word for word in reversed(words) if _is_context(word)), "") if "disable" not in words else ""


def read_contexts(text: str) -> dict[str, str]:
    """The entries of lxc_contexts(5): ``process = "system_u:system_r:container_t:s0"``; other lines are left out."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        value = value.strip().strip('"')
        if equals and not key.startswith("#") and value.count(":") >= 2:
            found[key.strip()] = value
    return found


def policy_name(text: str) -> str:
    """SELINUXTYPE of selinux_config(5); "" if it names none, or what is no plain name."""
    name = ""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key.strip().upper() == "SELINUXTYPE":
            name = value.strip()
    return "" if "/" in name or name in (".", "..") else name


def pair(number: int) -> str:
    """Two different categories from a random number, the smaller one first; never UNUSABLE."""
    choices = CATEGORIES * (CATEGORIES - 1) // 2 - 1  # the last one in this order is UNUSABLE
    low, left = 0, number % choices
    while left >= CATEGORIES - 1 - low:
        left -= CATEGORIES - 1 - low
        low += 1
    return f"c{low},c{low + 1 + left}"


def _is_context(word: str) -> bool:
    return word.count(":") >= 3 and word.partition(":")[0] not in _WORDS


def _with(context: str, **changes: str) -> str:
    """A context with some parts replaced."""
    parts = dict(zip(_PARTS, context.split(":", 3), strict=False))
    return ":".join({**parts, **changes}.values())

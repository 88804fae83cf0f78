"""Small grammars that documents use inside their strings (hot): versions, CPU lists, sysctl names, paths."""

from __future__ import annotations

_DIGITS = frozenset("0123456789")
_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
_SYSCTL = _WORD | frozenset("_")

MOST_CPUS = 8192
"""CPUs or memory nodes a kernel can know (CONFIG_NR_CPUS of the largest builds); a list may name 0 to 8191."""


def semver(version: str) -> tuple[int, int, int, str] | None:
    """Split a SemVer 2.0.0 version into major, minor, patch and pre-release; None when it is none."""
    core, plus, build = version.partition("+")
    core, minus, pre = core.partition("-")
    numbers = core.split(".")
    if len(numbers) != 3:
        return None
    for number in numbers:
        if not number or not _DIGITS.issuperset(number) or len(number) > 9 or (number[0] == "0" and number != "0"):
            return None
    for given, parts, strict in ((minus, pre, True), (plus, build, False)):
        if given:
            for part in parts.split("."):
                if not part or not _WORD.issuperset(part):
                    return None
                if strict and _DIGITS.issuperset(part) and part[0] == "0" and part != "0":
                    return None
    major, minor, patch = numbers
    return int(major), int(minor), int(patch), pre


def cpu_list(text: str) -> list[tuple[int, int]]:
    """Read a list such as ``0-3,7`` as ranges, first and last inclusive; spaces around items do not count.

    Never expands a range (CVE-2018-20699). Raises ValueError with the reason; an empty text is an empty list.
    """
    ranges: list[tuple[int, int]] = []
    if not text.strip(" "):
        return ranges
    for item in text.split(","):
        first, dash, last = item.strip(" ").partition("-")
        first, last = first.strip(" "), last.strip(" ")
        if not dash:
            last = first
        for number in (first, last):
            if not number or not _DIGITS.issuperset(number):
                raise ValueError(f"{item.strip(' ')[:40]!r} is neither a number nor a range")
            if len(number) > 9 or int(number) >= MOST_CPUS:
                raise ValueError(f"{number[:40]} is more than {MOST_CPUS - 1}")
        low, high = int(first), int(last)
        if low > high:
            raise ValueError(f"{low}-{high} runs backwards")
        ranges.append((low, high))
    return ranges


def sysctl_path(name: str) -> str | None:
    """Return the path below /proc/sys of a sysctl ``name``, or None when it is none.

    The first separator decides (sysctl(8)): in ``net.ipv4.conf.eth0/100.forwarding`` a slash stands for a dot, in
    ``net/ipv4/conf/eth0.100/forwarding`` nothing needs to. No part is empty or starts or ends with a dot, so no
    name leaves /proc/sys.
    """
    slash, dot = name.find("/"), name.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        parts = name.split("/")
    else:
        parts = [part.replace("/", ".") for part in name.split(".")]
    for part in parts:
        if not part or part[0] == "." or part[-1] == "." or not _SYSCTL.issuperset(part.replace(".", "")):
            return None
    return "/".join(parts) if len(parts) > 1 else None


def clean_path(path: str) -> str:
    """Return ``path`` read from the root, without empty, ``.`` and ``..`` parts; by its letters only, no link is seen.

    For comparing what documents say. To open something, ``kernel.path`` resolves it inside its root.
    """
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def interface_name(name: str) -> bool:
    """Whether the kernel takes ``name`` for a network interface (dev_valid_name in net/core/dev.c)."""
    if not 0 < len(name.encode("utf-8", "surrogateescape")) < 16 or name in (".", ".."):
        return False
    return not any(char in "/:" or char.isspace() for char in name)

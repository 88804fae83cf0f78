"""Seccomp profile files as people have them -> linux.seccomp of config.json (pure).

Docker's and Podman's profiles say for which capabilities, architectures and kernels a rule holds (``includes``,
``excludes``, ``archMap``); runtimes do not know these, so the engine decides them here. A file that already is a
linux.seccomp object passes as it is.
"""

from __future__ import annotations

import errno

from knarr.base.errors import SpecError, SpecFinding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# Names that Go uses in profiles for uname's.
_ARCHES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}
_PASSED = ("defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")


def convert_profile(
    profile: Any, document: str, *, capabilities: Sequence[str], arch: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """Return linux.seccomp for ``profile`` (a parsed JSON value; ``document`` names the file in errors).

    ``capabilities`` is the container's bounding set, ``kernel`` the running kernel's (major, minor). Raises SpecError
    for what is not such a profile; details of the rules are the config validator's to judge.
    """
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise SpecError(document, [SpecFinding("/defaultAction", "is missing, so this is not a seccomp profile")])
    go_arch, own = _ARCHES[arch]
    result: dict[str, Any] = {key: profile[key] for key in _PASSED if key in profile}
    if "defaultErrnoRet" not in result and isinstance(profile.get("defaultErrno"), str):
        result["defaultErrnoRet"] = _errno(profile["defaultErrno"], document, "/defaultErrno")
    result["architectures"] = _architectures(profile, document, own)
    rules = [] if profile.get("syscalls") is None else profile["syscalls"]
    if not isinstance(rules, list):
        raise SpecError(document, [SpecFinding("/syscalls", "should be a list")])
    result["syscalls"] = []
    for position, rule in enumerate(rules):
        pointer = f"/syscalls/{position}"
        if not isinstance(rule, dict):
            raise SpecError(document, [SpecFinding(pointer, "should be an object")])
        if not _holds(rule, document, pointer, capabilities, go_arch, kernel):
            continue
        entry = {key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key) is not None}
        if "errnoRet" not in entry and isinstance(rule.get("errno"), str) and rule["errno"]:
            entry["errnoRet"] = _errno(rule["errno"], document, f"{pointer}/errno")
        entry["names"] = rule.get("names") or ([rule["name"]] if rule.get("name") else [])
        result["syscalls"].append(entry)
    return result


def _architectures(profile: Mapping[str, Any], document: str, own: str) -> list[str]:
    given: Any = profile.get("architectures")
    if given is not None:
        if not isinstance(given, list):
            raise SpecError(document, [SpecFinding("/architectures", "should be a list")])
        return list(given)
    maps: list[Any] = profile.get("archMap") or []
    for position, entry in enumerate(maps):
        if not isinstance(entry, dict):
            raise SpecError(document, [SpecFinding(f"/archMap/{position}", "should be an object")])
        if entry.get("architecture") == own:
            return [own, *(entry.get("subArchitectures") or ())]
    return [own]


def _holds(
    rule: Mapping[str, Any],
    document: str,
    pointer: str,
    capabilities: Sequence[str],
    arch: str,
    kernel: tuple[int, int],
) -> bool:
    """Whether a rule applies here: every kind of condition in includes, none in excludes."""
    for side, wanted in (("includes", True), ("excludes", False)):
        conditions = rule.get(side) or {}
        if not isinstance(conditions, dict):
            raise SpecError(document, [SpecFinding(f"{pointer}/{side}", "should be an object")])
        if conditions.get("arches") and (arch in conditions["arches"]) is not wanted:
            return False
        if conditions.get("caps"):
            # includes: all of them are there; excludes: none of them is.
            have = [name in capabilities for name in conditions["caps"]]
            if not all(have) if wanted else any(have):
                return False
        if conditions.get("minKernel"):
            least = _version(conditions["minKernel"], document, f"{pointer}/{side}/minKernel")
            if (kernel >= least) is not wanted:
                return False
    return True


def _version(text: Any, document: str, pointer: str) -> tuple[int, int]:
    parts = text.split(".") if isinstance(text, str) else []
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts[:2]):
        raise SpecError(document, [SpecFinding(pointer, f"{text!r} should be a kernel version such as 4.8")])
    return int(parts[0]), int(parts[1])


def _errno(name: str, document: str, pointer: str) -> int:
    number = getattr(errno, name, None)
    if not name.startswith("E") or not isinstance(number, int):
        raise SpecError(document, [SpecFinding(pointer, f"{name!r} is not the name of an error number")])
    return number

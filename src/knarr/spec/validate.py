"""Validation of runtime-spec documents (hot): config.json, state, features, resources for ``update``.

Everything wrong is reported at once, each finding with its JSON pointer. First the shape (``config_shape``), then the
rules about meaning, each only when what it reads is well shaped. Documents are not changed, and members nobody
knows are left alone.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import SpecError, SpecFinding
from knarr.spec import config_rules, linux_rules
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.config_shape import CONFIG, PROCESS, RESOURCES
from knarr.spec.grammar import semver
from knarr.spec.runtime import CAPABILITY_SETS, OCI_VERSION
from knarr.spec.shape import findings, integer, mapping, members, one_of, shown, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Found = list[SpecFinding]

_RULES = (*config_rules.RULES, *linux_rules.RULES)


def _touches(pointers: str, bad: Found) -> bool:
    """Whether a badly shaped part is, holds or lies in one of ``pointers``."""
    for pointer in pointers.split():
        for finding in bad:
            where = finding.pointer
            if where == pointer or where.startswith(pointer + "/") or pointer.startswith(where + "/"):
                return True
    return False


def shape_findings(config: Any) -> Found:
    """Return what is wrong with the shape of a config.json, for any platform: what its JSON schema decides."""
    return findings(CONFIG, config)


def config_findings(config: Any, *, need_process: bool = True) -> Found:
    """Return everything that keeps a parsed config.json from being run as a Linux container; empty when nothing does.

    ``need_process`` False lets the process be absent: runtime-spec allows that for create, not for start.
    """
    bad = findings(CONFIG, config)
    if type(config) is not dict:
        return bad
    found = list(bad)

    def add(pointer: str, why: str) -> None:
        found.append(SpecFinding(pointer, why))

    if need_process and "process" not in config:
        add("/process", "is missing")
    for pointers, rule in _RULES:
        if not bad or not _touches(pointers, bad):
            rule(config, add)
    return found


def config_warnings(config: dict[str, Any]) -> Found:
    """Return what a runtime must or should mention about a valid config.json, and then go on.

    Capabilities nobody knows (config.md: MUST be logged, SHOULD NOT fail) or that cannot become ambient, relative
    mount destinations (deprecated), a user name on Linux, no mount namespace, a version newer than ours.
    """
    found: Found = []

    def add(pointer: str, why: str) -> None:
        found.append(SpecFinding(pointer, why))

    version, newest = semver(config["ociVersion"]), semver(OCI_VERSION)
    if version is not None and newest is not None and version[:2] > newest[:2]:
        add("/ociVersion", f"{config['ociVersion']} is newer than {OCI_VERSION}, what it adds is ignored")
    for index, mount in enumerate(config.get("mounts", ())):
        if not mount["destination"].startswith("/"):
            add(f"/mounts/{index}/destination", f"{shown(mount['destination'])} is relative, taken from the root")
        options = mount.get("options", ())
        if "bind" in options or "rbind" in options:  # which has no file system of its own; the official suite has some
            for option in options:
                if "=" in option and not option.startswith(("idmap=", "ridmap=")):
                    add(f"/mounts/{index}/options", f"{shown(option)} is for a file system, a bind mount ignores it")
    if not any(entry["type"] == "mount" for entry in config.get("linux", {}).get("namespaces", ())):
        add("/linux/namespaces", "has no mount namespace: the root is a chroot, which root inside can leave")
    for platform in ("solaris", "windows", "vm", "zos", "freebsd"):
        if platform in config:
            add(f"/{platform}", "is for another kind of container, ignored")
    process = config.get("process", {})
    if process.get("user", {}).get("username"):
        add("/process/user/username", "has no meaning on Linux")
    found += [SpecFinding("/process" + each.pointer, each.why) for each in capability_warnings(process)]
    return found


def capability_warnings(process: dict[str, Any]) -> Found:
    """Return what to mention about the capabilities of a valid process object; pointers start there."""
    found: Found = []
    sets = process.get("capabilities", {})
    for name in CAPABILITY_SETS:
        for index, capability in enumerate(sets.get(name, ())):
            where = f"/capabilities/{name}/{index}"
            if capability not in CAPABILITIES:
                found.append(SpecFinding(where, f"{shown(capability)} is not a known capability, ignored"))
            elif name == "ambient" and not (
                capability in sets.get("permitted", ()) and capability in sets.get("inheritable", ())
            ):
                found.append(SpecFinding(where, f"{capability} is not both permitted and inheritable, so not ambient"))
    return found


def parse_config(data: bytes, document: str = "config.json", *, need_process: bool = True) -> dict[str, Any]:
    """Read and validate a config.json of at most 16 MiB; ``document`` names it in errors.

    Raises SpecError with all findings. Unknown members are kept.
    """
    config = fastjson.loads(data, document)
    bad = config_findings(config, need_process=need_process)
    if bad:
        raise SpecError(document, bad)
    checked: dict[str, Any] = config
    return checked


def process_findings(process: Any) -> Found:
    """Return what is wrong with a process object of its own, as ``exec --process`` brings one; pointers start there."""
    bad = findings(PROCESS, process)
    if type(process) is not dict:
        return bad
    found = list(bad)
    below = [SpecFinding("/process" + finding.pointer, finding.why) for finding in bad]

    def add(pointer: str, why: str) -> None:
        found.append(SpecFinding(pointer.removeprefix("/process"), why))

    for pointers, rule in config_rules.RULES:
        if pointers.startswith("/process/") and "/linux" not in pointers and not _touches(pointers, below):
            rule({"process": process}, add)
    return found


def resource_findings(resources: Any, *, partial: bool = False) -> Found:
    """Return what is wrong with resources of their own, as ``update`` brings them; pointers start there.

    ``partial``: look at the shape only, since what they mean depends on others that hold already.
    """
    found = findings(RESOURCES, resources)
    if not found and not partial:
        linux_rules.resource_faults(resources, "", lambda pointer, why: found.append(SpecFinding(pointer, why)))
    return found


_STATE = members(
    {
        "ociVersion": text,
        "id": text,
        # Milder than the schema: runtime.md lets a runtime add statuses, and all add this one.
        "status": one_of(("creating", "created", "running", "stopped", "paused")),
        "pid": integer(0, (1 << 63) - 1),
        "bundle": text,
        "annotations": mapping(text),
    },
    "ociVersion id status bundle",
)


def _version_faults(document: dict[str, Any], name: str, add: Callable[[str, str], None]) -> None:
    version = document.get(name)
    if type(version) is str and semver(version) is None:
        add(f"/{name}", f"{shown(version)} is not a version such as {OCI_VERSION}")


def state_findings(state: Any) -> Found:
    """Return what is wrong with a parsed state document (runtime.md, State)."""
    found = findings(_STATE, state)
    if type(state) is dict:

        def add(pointer: str, why: str) -> None:
            found.append(SpecFinding(pointer, why))

        _version_faults(state, "ociVersion", add)
        status = state.get("status")
        if status in ("created", "running", "paused") and state.get("pid", 0) in (0, None):
            add("/pid", f"is {'0' if 'pid' in state else 'missing'}, but the container is {status}")
        if state.get("id") == "":
            add("/id", "must not be empty")
        bundle = state.get("bundle")
        if type(bundle) is str and not bundle.startswith("/"):
            add("/bundle", f"must be an absolute path, not {shown(bundle)}")
    return found


def features_findings(features: Any) -> Found:
    """Return what is wrong with a parsed features document (features.md)."""
    from knarr.spec import platforms  # cold: no verb of a container reads features

    found = findings(platforms.FEATURES, features)
    if type(features) is dict:

        def add(pointer: str, why: str) -> None:
            found.append(SpecFinding(pointer, why))

        for name in ("ociVersionMin", "ociVersionMax"):
            _version_faults(features, name, add)
        if not found:
            low, high = semver(features["ociVersionMin"]), semver(features["ociVersionMax"])
            if low is not None and high is not None and low[:3] > high[:3]:
                add("/ociVersionMin", f"is {features['ociVersionMin']}, later than ociVersionMax")
    return found

"""Image configuration + options -> config.json, by image-spec conversion.md: a pure function.

It reads nothing and knows no host but the ``Facts`` it is given. What an image says is data, never control
(docs/security.md I16): annotations that runtimes act on are left out, and the notes say so.
"""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.base.record import Record
from knarr.bundle import posture
from knarr.bundle.mounts import check_target, place_mounts, tmpfs_volume
from knarr.bundle.options import USER_NETWORKS
from knarr.spec import mediatypes
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.seccomp_default import default_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from knarr.bundle.options import Facts, RunOptions
    from knarr.bundle.users import ContainerUser

# Annotations that a runtime, an engine or an orchestrator acts on. From an image they would be remote control:
# CVE-2024-3154 went label -> annotation -> property of a host unit.
RESERVED_PREFIXES = (
    "org.systemd.property.",
    "run.oci.",
    "org.criu.",
    "org.opencontainers.runc.",
    "io.kubernetes.cri-o.",
    "io.kubernetes.cri.",
    "io.container.",
    "io.containerd.",
    "io.podman.",
    "io.katacontainers.",
    "dev.gvisor.",
    "cdi.k8s.io/",
    "com.nvidia.",
    "module.wasm.image/",
    "org.knarr.",
)


class Conversion(Record):
    """A config.json document, and what of the image was left out, one sentence each."""

    config: dict[str, Any]
    notes: tuple[str, ...]


def to_runtime_spec(
    image: Mapping[str, Any],
    options: RunOptions,
    user: ContainerUser,
    facts: Facts,
    *,
    volumes: Mapping[str, dict[str, Any] | None] | None = None,
    files: Sequence[tuple[str, str]] = (),
    below: Sequence[dict[str, Any]] = (),
) -> Conversion:
    """Return the config.json for running ``image`` (an image configuration document) with ``options``.

    ``user`` is what ``users.resolve_user`` made of the user in force. ``volumes`` maps a path of Config.Volumes to the
    mount for it, None for none (the writable layer keeps it apart from the image); the others become tmpfs. ``files``
    are (target, host file) pairs that the engine provides, such as /etc/hosts; a mount of the user's at the same place
    wins. ``below`` are mounts that make up the root itself, before all others. Raises UsageError for options that do
    not fit. linux.seccomp is shared between configurations: it is not to be changed, the rest may be.
    """
    notes: list[str] = []
    wishes = image.get("config") or {}
    config = posture.base_config(facts)
    process = config["process"]
    process["args"] = list(arguments(image, options))
    process["env"] = _environment(wishes.get("Env") or (), options, user, notes)
    process["cwd"] = _cwd(options.workdir or wishes.get("WorkingDir") or "/")
    process["terminal"] = options.terminal
    # The primary group is listed too: without it a "group may not" mode bit could be walked around (CVE-2022-36109).
    process["user"].update(uid=user.uid, gid=user.gid, additionalGids=list(user.groups or (user.gid,)))
    if options.hostname:
        config["hostname"] = _hostname(options.hostname)
    config["root"]["readonly"] = options.readonly
    config["annotations"] = _annotations(image, options, notes)
    _limit(config, options, facts)
    _share_network(config, options, facts)
    placed = []
    for path in volume_paths(image):
        entry = volumes[path] if volumes is not None and path in volumes else tmpfs_volume(path)
        if entry is not None:
            placed.append(entry)
    config["mounts"] = [*below, *place_mounts(config["mounts"], placed, files, options)]
    _secure(config, options, user, facts)
    return Conversion(config, tuple(notes))


def volume_paths(image: Mapping[str, Any]) -> list[str]:
    """The places of Config.Volumes, cleaned and sorted. Raises UsageError for one that covers what it must not."""
    wishes = image.get("config") or {}
    return sorted({check_target(path, "the image's volume") for path in wishes.get("Volumes") or ()})


def arguments(image: Mapping[str, Any], options: RunOptions) -> tuple[str, ...]:
    """Entrypoint and Cmd joined (conversion.md, note 2); an entrypoint of the user's makes the image's Cmd void.

    Raises UsageError when that gives no command.
    """
    wishes = image.get("config") or {}
    if options.entrypoint is None:
        entrypoint, command = wishes.get("Entrypoint") or (), options.command or wishes.get("Cmd") or ()
    else:
        entrypoint, command = options.entrypoint, options.command
    words = (*entrypoint, *command)
    if not words:
        raise UsageError("the image names no command to run", hint="give one after the image's name")
    for word in words:
        if "\0" in word:
            raise UsageError(f"the argument {word!r} has a NUL byte")
    return words


def _environment(image: Iterable[str], options: RunOptions, user: ContainerUser, notes: list[str]) -> list[str]:
    """The image's variables, the user's over them, and what programs expect if neither says so.

    An entry without "=" is left out: other engines filled it from the host's own environment (CVE-2026-57231).
    """
    variables: dict[str, str] = {}
    for entry in image:
        name, equals, value = entry.partition("=")
        if equals and name:
            variables[name] = value
        else:
            notes.append(f"the image's environment entry {entry[:80]!r} has no name and value and is left out")
    for entry in options.env:
        name, equals, value = entry.partition("=")
        if not equals or not name or "\0" in entry:
            raise UsageError(f"environment entry {entry!r} should be NAME=VALUE")
        variables[name] = value
    expected = {"PATH": posture.DEFAULT_PATH, "HOME": user.home, "HOSTNAME": options.hostname, "container": "knarr"}
    if options.terminal:
        expected["TERM"] = "xterm"
    for name, value in expected.items():
        if value:
            variables.setdefault(name, value)
    return [f"{name}={value}" for name, value in variables.items()]


def _cwd(path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(f"working directory {path!r} is not an absolute path")
    if "\0" in path:
        raise UsageError(f"working directory {path!r} has a NUL byte")
    return path


_HOST_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def _hostname(text: str) -> str:
    """A host name that may stand in /etc/hosts: one word, no line of its own making (docs/security.md I20)."""
    if len(text) > 64 or not _HOST_NAME.issuperset(text) or text[0] in ".-":
        raise UsageError(f"host name {text[:80]!r} is not letters, digits, dots and dashes, 64 at most")
    return text


def _annotations(image: Mapping[str, Any], options: RunOptions, notes: list[str]) -> dict[str, str]:
    """Implicit annotations, over them the labels, over them what the user gives by hand (conversion.md)."""
    wishes = image.get("config") or {}
    implicit = {
        mediatypes.OS: image.get("os"),
        mediatypes.ARCHITECTURE: image.get("architecture"),
        mediatypes.VARIANT: image.get("variant"),
        mediatypes.OS_VERSION: image.get("os.version"),
        mediatypes.OS_FEATURES: ",".join(image.get("os.features") or ()),
        mediatypes.AUTHOR: image.get("author"),
        mediatypes.CREATED: image.get("created"),
        mediatypes.STOP_SIGNAL: wishes.get("StopSignal"),
        mediatypes.EXPOSED_PORTS: ",".join(sorted(wishes.get("ExposedPorts") or ())),
    }
    result = {key: value for key, value in implicit.items() if value}
    for key, value in (*options.labels, *options.annotations):
        if "\0" in key + value:
            raise UsageError(f"label or annotation {key!r} has a NUL byte")
    labels = {**(wishes.get("Labels") or {}), **dict(options.labels)}
    for key, value in labels.items():
        if not key or key.startswith(RESERVED_PREFIXES):
            notes.append(f"the label {key[:80]!r} is kept from the runtime, which might act on it")
        else:
            result[key] = value
    for key, value in options.annotations:
        if not key:
            raise UsageError("an annotation needs a name before its =")
        result[key] = value
    return result


def _limit(config: dict[str, Any], options: RunOptions, facts: Facts) -> None:
    """Resources and rlimits. A limit that cannot be kept is an error, never silently none."""
    if options.pids_limit == 0 or options.pids_limit < -1:
        raise UsageError(f"pids limit {options.pids_limit} should be a number above 0, or -1 for none")
    resources = config["linux"]["resources"]
    asked = [name for name, value in (("--memory", options.memory), ("--cpus", options.cpus)) if value]
    if options.pids_limit not in (2048, -1):
        asked.append("--pids-limit")
    if asked and not facts.cgroup_limits:
        raise UsageError(
            f"{' and '.join(asked)} cannot be kept: this user may not write to the host's cgroups",
            hint="run as root, or in a cgroup that is delegated to this user (cgroup v2)",
        )
    if options.pids_limit == -1:
        resources.pop("pids", None)
    elif facts.cgroup_limits:
        resources["pids"] = {"limit": options.pids_limit}
    if options.memory:
        if options.memory < 1 << 20:
            raise UsageError(f"memory limit {options.memory} is below 1 MiB, too little to start a program")
        resources["memory"] = {"limit": options.memory}
        if facts.swap_limit:
            # As much swap as memory, as Docker and Podman do; without it the container could fill all swap.
            resources["memory"]["swap"] = 2 * options.memory
    if options.cpus:
        if not 0.01 <= options.cpus <= 100_000:
            raise UsageError(f"cpus {options.cpus} should be a number of processors from 0.01 on")
        resources["cpu"] = {"period": 100_000, "quota": round(options.cpus * 100_000)}
    limits = {entry["type"]: entry for entry in config["process"]["rlimits"]}
    for ulimit in options.ulimits:
        kind = f"RLIMIT_{ulimit.name.upper()}"
        limits[kind] = {"type": kind, "soft": ulimit.soft & _UNLIMITED, "hard": ulimit.hard & _UNLIMITED}
    config["process"]["rlimits"] = list(limits.values())


_UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY; -1 becomes it


def _share_network(config: dict[str, Any], options: RunOptions, facts: Facts) -> None:
    linux = config["linux"]
    if options.network == "host":
        linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "network"]
        linux["sysctl"] = {key: value for key, value in linux["sysctl"].items() if not key.startswith("net.")}
        if facts.uid_map:
            # A new sysfs shows the network, so the kernel wants a network namespace owned by this user namespace.
            kept = [mount for mount in config["mounts"] if not mount["destination"].startswith("/sys")]
            config["mounts"] = [*kept, posture.host_sys()]
    elif options.network not in ("none", *USER_NETWORKS):
        raise UsageError(f"network {options.network!r} is not known", hint="there are none and host")
    for key, value in options.sysctls:
        if not key or "\0" in key + value or "\n" in value:
            raise UsageError(f"sysctl {key!r} should be NAME=VALUE on one line")
        if options.network == "host" and key.startswith(("net.", "net/")):
            raise UsageError(f"sysctl {key} would change the host's network", hint="leave out --network host")
        linux["sysctl"][key] = value
    if not linux["sysctl"]:
        del linux["sysctl"]


def capability_sets(options: RunOptions, user: ContainerUser, facts: Facts) -> dict[str, list[str]]:
    """The five sets: inheritable and ambient stay empty unless an ordinary user is given one by ``--cap-add``.

    Raises UsageError for an unknown name.
    """
    added, dropped = _names(options.cap_add), _names(options.cap_drop)
    everything = posture.all_capabilities(facts)
    unavailable = [name for name in added if name not in everything and name != "ALL"]
    if unavailable:
        raise UsageError(f"capability {unavailable[0]} is not this process' own to give")
    if options.privileged or "ALL" in added:
        granted = set(everything)
    else:
        granted = set() if "ALL" in dropped else set(posture.default_capabilities(facts))
    granted -= set(dropped)
    explicit = {name for name in added if name != "ALL"}
    granted |= explicit
    bounding = [name for name in CAPABILITIES if name in granted]
    if user.uid == 0:
        return {
            "bounding": bounding,
            "effective": [*bounding],
            "permitted": [*bounding],
            "inheritable": [],
            "ambient": [],
        }
    # Without ambient ones exec leaves an ordinary user none; a capability asked for by name was meant to be had.
    own = [name for name in CAPABILITIES if name in explicit]
    return {"bounding": bounding, "effective": own, "permitted": [*own], "inheritable": [*own], "ambient": [*own]}


def _names(given: Iterable[str]) -> list[str]:
    names = []
    for text in given:
        name = text.upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != "ALL" and name not in CAPABILITIES:
            raise UsageError(f"capability {text!r} is not known", hint="see capabilities(7)")
        names.append(name)
    return names


_profiles: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}


def _default_seccomp(capabilities: tuple[str, ...], arch: str) -> dict[str, Any]:
    """The default profile, made once for each set of capabilities: 360 names take half a millisecond."""
    key = (capabilities, arch)
    if key not in _profiles:
        if len(_profiles) > 64:
            _profiles.clear()
        _profiles[key] = default_profile(capabilities, arch)
    return _profiles[key]


def _secure(config: dict[str, Any], options: RunOptions, user: ContainerUser, facts: Facts) -> None:
    """Capabilities, no_new_privs, seccomp, labels; and what ``--privileged`` lifts (docs/bundle.md lists it)."""
    process, linux = config["process"], config["linux"]
    process["capabilities"] = capability_sets(options, user, facts)
    process["noNewPrivileges"] = not (options.allow_new_privs or options.privileged)
    profile = options.apparmor or ("" if options.privileged else facts.apparmor)
    if profile and profile != "unconfined":
        process["apparmorProfile"] = profile
    if facts.selinux.process:
        process["selinuxLabel"] = facts.selinux.process
    if facts.selinux.mount:
        linux["mountLabel"] = facts.selinux.mount
    seccomp: Any = options.seccomp
    if seccomp == "default":
        if not options.privileged:
            linux["seccomp"] = _default_seccomp(tuple(process["capabilities"]["bounding"]), facts.arch)
    elif seccomp != "unconfined":
        if not isinstance(seccomp, dict):
            raise UsageError(f"seccomp {seccomp!r} should be default, unconfined or a profile")
        linux["seccomp"] = seccomp
    if not options.privileged:
        return
    linux["maskedPaths"], linux["readonlyPaths"] = [], []
    linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    linux["devices"] = [dict(device) for device in facts.devices]
    for mount in config["mounts"]:
        if mount["destination"] in ("/sys", "/sys/fs/cgroup"):
            mount["options"] = [option for option in mount["options"] if option not in ("ro", "rro")]

"""The process section of config.json -> operations: limits, capabilities, user, program (hot, pure).

The same tail serves the container's first process and every exec. runtime-spec config.md "Process".
"""

from __future__ import annotations

from knarr.base.errors import SpecFinding, Unsupported
from knarr.plan import ops
from knarr.plan.ops import Op
from knarr.spec.capabilities import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.host import Host

# setrlimit(2), asm-generic/resource.h: the position is the number
_RLIMIT_ORDER = (
    *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE"),
    *("MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
)
RLIMITS = {name: number for number, name in enumerate(_RLIMIT_ORDER)}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITY_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def capability_mask(names: list[str] | None) -> int:
    """Names ("CAP_CHOWN") to a bit mask. Of unknown ones validation has warned (config.md: they SHOULD NOT fail)."""
    mask = 0
    for name in names or ():
        if name in CAPABILITIES:
            mask |= 1 << CAPABILITIES[name]
    return mask


def granted_capabilities(
    process: dict[str, Any], *, permitted: int = -1, bounding: int = -1
) -> tuple[dict[str, int], tuple[SpecFinding, ...]]:
    """Return the mask of each set that can be had, and a warning for each capability that cannot.

    ``permitted`` and ``bounding`` are the masks of whoever grants: nobody can give what he has not. What cannot be
    granted MUST be warned of and SHOULD NOT fail (config.md, ``process.capabilities``). capset(2) would refuse it, and
    only after the engine was told that the container is created.
    """
    caps = process.get("capabilities") or {}
    asked = {kind: capability_mask(caps.get(kind)) for kind in _CAPABILITY_SETS}
    masks = {kind: mask & permitted for kind, mask in asked.items()}
    masks["bounding"] = asked["bounding"] & bounding
    # cap_capset(): nothing becomes inheritable that is not in the bounding set.
    masks["inheritable"] &= masks["bounding"]
    missing = 0
    for kind, mask in masks.items():
        missing |= asked[kind] & ~mask
    warnings = _withheld(caps, asked, masks, permitted) if missing else ()
    # The kernel has no ambient capability that is not permitted and inheritable; older `runc spec` writes such lists.
    masks["ambient"] &= masks["permitted"] & masks["inheritable"]
    return masks, warnings


def _withheld(
    caps: dict[str, Any], asked: dict[str, int], masks: dict[str, int], permitted: int
) -> tuple[SpecFinding, ...]:
    """One warning for each capability, at the first place that asks for it in vain."""
    places: dict[str, list[str]] = {}
    for kind, mask in masks.items():
        for position, name in enumerate(caps.get(kind) or ()):
            if capability_mask([name]) & asked[kind] & ~mask:
                places.setdefault(name, []).append(f"{kind}/{position}")
    result = []
    for name, where in places.items():
        sets = ", ".join(dict.fromkeys(place.partition("/")[0] for place in where))
        lacking = where[0].startswith("bounding/") or capability_mask([name]) & ~permitted
        why = "this process does not have it itself" if lacking else "it is not in the bounding set"
        found = f"{name} cannot be granted, {why}: left out of {sets}"
        result.append(SpecFinding(f"/process/capabilities/{where[0]}", found))
    return tuple(result)


def rlimit_ops(process: dict[str, Any]) -> list[Op]:
    """The resource limits of process.rlimits."""
    return [
        Op(
            "rlimit",
            (RLIMITS[entry["type"].removeprefix("RLIMIT_")], entry["soft"], entry["hard"]),
            (),
            f"/process/rlimits/{position}",
        )
        for position, entry in enumerate(process.get("rlimits") or ())
    ]


def search_path(process: dict[str, Any]) -> str:
    """PATH as the process will have it."""
    for entry in process.get("env") or ():
        if entry.startswith("PATH="):
            return str(entry[5:])
    return DEFAULT_PATH


KEEP_GROUPS = "run.oci.keep_original_groups"


def keeps_groups(config: dict[str, Any]) -> bool:
    """Whether the caller's groups stay instead of the configured ones (crun's annotation, podman's keep-groups)."""
    return KEEP_GROUPS in (config.get("annotations") or {})


def label_ops(process: dict[str, Any], host: Host, proc: int) -> list[Op]:
    """AppArmor and SELinux labels, taken on at exec; written through the private procfs handle (CVE-2019-16884)."""
    result = []
    profile, label = process.get("apparmorProfile"), process.get("selinuxLabel")
    if profile:
        if not host.apparmor:
            raise Unsupported(
                f"AppArmor profile {profile}",
                "AppArmor is not enabled in this kernel",
                pointer="/process/apparmorProfile",
            )
        # Its own file exists since Linux 5.8; attr/exec belongs to whichever module came first.
        where = "self/attr/apparmor/exec" if host.kernel >= (5, 8) else "self/attr/exec"
        result.append(Op("proc_write", (proc, 0), (where, f"exec {profile}"), "/process/apparmorProfile"))
    if label:
        if not host.selinux:
            raise Unsupported(
                f"SELinux label {label}", "SELinux is not enabled in this kernel", pointer="/process/selinuxLabel"
            )
        # Both are in force until exec: for the program, and for keyrings made until then.
        result += [
            Op("proc_write", (proc, 0), (f"self/attr/{file}", label), "/process/selinuxLabel")
            for file in ("exec", "keycreate")
        ]
    return result


def process_tail(
    process: dict[str, Any],
    *,
    capabilities: dict[str, int],
    hooks: list[Op],
    seccomp: list[Op],
    set_rlimits: bool,
    setgroups_denied: bool,
    keep: list[tuple[int, int]],
    landlock: list[Op],
) -> list[Op]:
    """Everything from "all mounts are made" to exec, in the order that keeps each step possible.

    ``capabilities`` are masks of the five sets; ``hooks`` are the startContainer hooks; ``keep`` are (slot, descriptor
    number) to survive the exec; ``landlock`` and ``seccomp`` are the operations of its rules and filter.
    """
    user = process.get("user") or {}
    uid, gid, groups = user.get("uid", 0), user.get("gid", 0), dict.fromkeys(user.get("additionalGids") or ())
    no_new_privs = bool(process.get("noNewPrivileges"))
    tail: list[Op] = []
    tail.append(Op("umask", (user.get("umask", 0o022),), (), "/process/user/umask"))
    tail.append(Op("own_stdio", (uid,), (), "/process/user/uid"))
    # As root first, for a directory only root may enter; again below as the user, whom alone it may be open to.
    tail.append(Op("cwd", (ops.CWD_LATER,), (process.get("cwd", "/"),), "/process/cwd"))
    if set_rlimits:
        tail += rlimit_ops(process)
    # The bounding set needs CAP_SETPCAP, which goes with the user; what a hook runs as root gets no more than it.
    tail.append(Op("bounding", (capabilities["bounding"],), (), "/process/capabilities/bounding"))
    flags = ops.KEEP_CAPS | (ops.NO_SETGROUPS if setgroups_denied else 0)
    tail.append(Op("user", (uid, gid, flags, *groups), (), "/process/user"))
    tail.append(Op("cwd", (0,), (process.get("cwd", "/"),), "/process/cwd"))
    tail += hooks
    if not any(entry.startswith("HOME=") for entry in process.get("env") or ()):
        tail.append(Op("home", (uid,), (), "/process/env"))
    arguments = process["args"]
    tail.append(Op("find_program", (), (arguments[0], search_path(process)), "/process/args/0"))
    tail += [Op("keep_fd", pair, (), "") for pair in keep]
    # CVE-2022-29162 and its kin: what is inheritable and ambient is what was asked for, normally nothing.
    sets = tuple(capabilities[kind] for kind in ("effective", "permitted", "inheritable", "ambient"))
    capset = Op("capabilities", sets, (), "/process/capabilities")
    # Landlock before the filter, which may not know its calls; like that it takes no_new_privs or CAP_SYS_ADMIN.
    # The filter as late as can be: all that follows it must pass it. Without no_new_privs loading it takes
    # CAP_SYS_ADMIN, which is still permitted after `user` with KEEP_CAPS, but not after `capabilities`.
    if no_new_privs:
        tail += [capset, Op("no_new_privs", (), (), "/process/noNewPrivileges"), *landlock, *seccomp]
    else:
        tail += [*landlock, *seccomp, capset]
    tail.append(Op("exec", (len(arguments),), (*arguments, *(process.get("env") or ())), "/process/args"))
    return tail

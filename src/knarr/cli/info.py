"""``knarr info`` and ``knarr version``: what this knarr and this machine can do, and what it warns of."""

from __future__ import annotations

import os

import knarr
from knarr.base.errors import KnarrError
from knarr.cli.command import Parser
from knarr.cli.output import clean, colour, put, put_value, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.paths import Places


def parse_info() -> Parser:
    """The parser of ``knarr info``."""
    parser = Parser(
        "info",
        "Show what knarr and this machine can do.",
        "[--format FORMAT]",
        "  knarr info\n  knarr info --format '{{.Host.Rootless}}'",
    )
    parser.add_argument("-f", "--format", default="", metavar="FORMAT", help="json or a template")
    return parser


def do_info(arguments: list[str]) -> int:
    """Show the facts."""
    given = parse_info().parse_args(arguments)
    facts = gather()
    if given.format:
        put_value(facts, given.format)
        return 0
    import sys

    bold = colour(sys.stdout)
    for section, values in facts.items():
        if section == "Warnings":
            continue
        put(f"\033[1m{section}\033[0m" if bold else section)
        width = max(map(len, values))
        for name, value in values.items():
            put(f"  {name:<{width}}  {_shown(value)}")
    for warning in facts["Warnings"]:
        put(f"warning: {warning}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return clean(", ".join(map(str, value))) or "none"
    return clean(str(value))


def gather() -> dict[str, Any]:
    """Everything ``info`` tells, as JSON-ready values."""
    from knarr.engine import containers, driver, host, networks, selinux
    from knarr.engine.images import listing
    from knarr.engine.paths import places
    from knarr.isolation.kinds import KERNEL, VM, described
    from knarr.runtime.launch import init_path

    where = places()
    facts, machine = host.facts(), host.host()
    images: list[dict[str, Any]] = []
    if os.path.isdir(where.store):
        images = listing(where)[0]
    seen = containers.listing(where, everything=True)
    ids = host.id_map()
    cgroup = machine.cgroup
    return {
        "Knarr": {
            "Version": knarr.__version__,
            "Store": where.store,
            "StateDir": where.state,
            "Init": init_path(),
            "Images": len({row["Digest"] for row in images}),
            "Containers": len(seen),
            "Running": sum(one.status == "running" for one in seen),
            "Free": size(_free(where.store)),
        },
        "Host": {
            "Kernel": os.uname().release,
            "Architecture": machine.arch,
            "Cpus": os.cpu_count() or 0,
            "Rootless": facts.rootless,
            "UserNamespace": _own_ids(where) if ids is None else _ids(ids.uids),
            "Driver": driver.driver(where),
            "Overlayfs": host.overlay(),
            "Cgroups": _cgroup(cgroup),
            "CgroupLimits": facts.cgroup_limits,
            "SwapLimit": facts.swap_limit,
            "AppArmor": machine.apparmor,
            "SELinux": machine.selinux,
            "TimeNamespace": facts.time_namespace,
            "Networks": ["none", "host", *(kind for kind in networks.PROGRAMS if networks.find(kind))],
        },
        "Defaults": {
            "Network": "none",
            "Capabilities": [name.removeprefix("CAP_").lower() for name in _capabilities()],
            "NewPrivileges": "no",
            "Seccomp": "default profile",
            "SELinuxLabel": selinux.summary(),
            "PidsLimit": 2048 if facts.cgroup_limits else "none",
            "OpenFiles": f"{min(1024, facts.nofile_hard)}:{facts.nofile_hard}",
        },
        "Isolation": {"Namespace": "the host's kernel", "Kernel": described(KERNEL), "Vm": described(VM)},
        "Warnings": _warnings(),
    }


def _capabilities() -> tuple[str, ...]:
    from knarr.bundle.posture import default_capabilities
    from knarr.engine import host

    return default_capabilities(host.facts())


def _own_ids(where: Places) -> str:
    from knarr.engine import ids

    why = ids.why_not(where, host_root=False)
    return f"the host's ids: {why}" if why else f"{ids.SIZE} ids for each container"


def _ids(lines: tuple[tuple[int, int, int], ...]) -> str:
    count = sum(line[2] for line in lines)
    return f"{count} ids" if count > 1 else "only this user's id (see /etc/subuid)"


def _cgroup(found: Any) -> str:
    if found is None:
        return "none"
    names = [str(name) for name in getattr(found, "controllers", ())]
    version = getattr(found, "mode", "") or getattr(found, "version", "")
    return f"{version} {', '.join(sorted(names))}".strip()


def _free(path: str) -> int:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def _warnings() -> list[str]:
    from knarr.engine import driver, host
    from knarr.engine.paths import places
    from knarr.runtime.launch import init_memfd

    facts = host.facts()
    found = []
    try:
        init_memfd()
    except KnarrError as error:
        found.append(str(error))
    if facts.cgroup_limits and not facts.swap_limit:
        found.append("swap is not limited by --memory: this kernel does not count it (swapaccount=1)")
    if not facts.cgroup_limits:
        found.append("--memory, --cpus and --pids-limit need root, or a delegated cgroup (v2)")
    if len(facts.uid_map) == 1 and facts.uid_map[0][2] == 1:
        found.append("files of images all get this user's id: no range in /etc/subuid, or newuidmap is missing")
    if driver.driver(places()) == "copy":
        found.append("each container gets a copy of its image: overlayfs cannot be used here")
    return found


def parse_version() -> Parser:
    """The parser of ``knarr version``."""
    parser = Parser("version", "Show the version.", "[--format FORMAT]", "  knarr version --format '{{.Version}}'")
    parser.add_argument("-f", "--format", default="", metavar="FORMAT", help="json or a template")
    return parser


def do_version(arguments: list[str]) -> int:
    """Show the version."""
    given = parse_version().parse_args(arguments)
    import platform

    from knarr.spec.runtime import OCI_VERSION

    facts = {"Version": knarr.__version__, "RuntimeSpec": OCI_VERSION, "Python": platform.python_version()}
    if given.format:
        put_value(facts, given.format)
    else:
        put(f"knarr {facts['Version']} (runtime-spec {facts['RuntimeSpec']}, Python {facts['Python']})")
    return 0

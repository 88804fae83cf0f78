"""config.json for a container in a guest: what the guest's plan is made from, and what cannot be had there (pure).

The guest is a machine of its own with one container: its kernel makes the namespaces, mounts, limits and filters, so
most of config.json stays as it is. What names things of the host (bind mounts, the root, namespaces by path) is put in
terms of the guest, or refused.
"""

from __future__ import annotations

from knarr.base.errors import SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.isolation import vmconfig
from knarr.isolation.kinds import VM, Share
from knarr.plan.mounts import is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROOT = "/run/root"
"""Where the guest puts the container's root together."""
_FIELDS = (
    ("/linux/intelRdt", "the caches are shared with the host's other programs"),
    ("/linux/netDevices", "a device of the host's cannot be moved into the guest"),
    ("/linux/resources/blockIO", "the guest's root is no block device that could be limited"),
    ("/linux/resources/hugepageLimits", "the guest has no huge pages"),
    ("/linux/resources/rdma", "the guest has no RDMA devices"),
    ("/linux/resources/network", "the guest has no network devices to classify traffic of"),
    ("/linux/timeOffsets", "the guest's kernel has no time namespaces"),
    ("/linux/personality", "the guest's processes are of one architecture"),
    ("/hooks/createContainer", "it runs in the container's namespaces, with programs of the host"),
)
_KNOWN_DEVICES = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}


class Guestly(Record):
    """What the guest needs: ``config`` for its plan, the ``shares`` (the root is not among them)."""

    config: dict[str, Any]
    shares: tuple[Share, ...]


def guestly(config: dict[str, Any], bundle: str, files: dict[str, bool], *, mapped: bool) -> Guestly:
    """config.json in terms of a guest.

    ``files``: for each source of a bind mount, whether it is a directory. ``mapped``: the host shows files with the
    ids of the container's user namespace, so the guest needs none.
    """
    linux = dict(config.get("linux") or {})
    linux.pop("cgroupsPath", None)
    spaces = []
    for entry in linux.get("namespaces") or ():
        # Without offsets a time namespace changes nothing, and user-mode Linux has none.
        if (entry["type"] == "user" and mapped) or entry["type"] == "time":
            continue
        spaces.append({"type": entry["type"]})
    linux["namespaces"] = spaces
    if mapped:
        linux.pop("uidMappings", None)
        linux.pop("gidMappings", None)
    shares: list[Share] = []
    mounts = []
    for entry in config.get("mounts") or ():
        if is_bind(entry) and "remount" not in (entry.get("options") or ()):
            source = host_path(entry["source"], bundle)
            number = len(shares) + 1
            # A file is shown in a directory of its own, since the guest mounts directories.
            name = "" if files[source] else f"/{source.rpartition('/')[2]}"
            shares.append(Share(source, not read_only(entry)))
            entry = {**entry, "source": share_place(number) + name}
        mounts.append(entry)
    made = {**config, "linux": linux, "mounts": mounts, "root": {**(config.get("root") or {}), "path": ROOT}}
    return Guestly(made, tuple(shares))


def share_place(number: int) -> str:
    """Where the guest mounts a share; number 0 is the container's root."""
    return f"/run/share{number}"


def host_path(source: str, bundle: str) -> str:
    """A source of a bind mount as an absolute path."""
    return source if source.startswith("/") else f"{bundle}/{source}"


def sources(config: dict[str, Any], bundle: str) -> list[str]:
    """The host's paths that config.json binds."""
    return [host_path(entry["source"], bundle) for entry in config.get("mounts") or () if is_bind(entry)]


def read_only(entry: dict[str, Any]) -> bool:
    """Whether a bind mount is read-only: the last of its options about it counts."""
    last = [option for option in entry.get("options") or () if option in ("ro", "rw", "rro", "rrw")]
    return bool(last) and last[-1] in ("ro", "rro")


def cannot_honour(config: dict[str, Any], kind: str, *, preserved: int = 0, arch: str = "x86_64") -> list[SpecFinding]:
    """What of a valid config.json this kind of isolation cannot do on a machine of ``arch``, each with its pointer."""
    found = [SpecFinding(pointer, why) for pointer, why in _FIELDS if _at(config, pointer)]
    found += _of_namespaces(config)
    found += _of_mounts(config)
    found += _of_process(config)
    linux = config.get("linux") or {}
    for number, device in enumerate(linux.get("devices") or ()):
        if device["type"] in "bcu" and (device.get("major"), device.get("minor")) not in _KNOWN_DEVICES:
            why = f"{device['path']} is a device of the host's, which the guest does not have"
            found.append(SpecFinding(f"/linux/devices/{number}", why))
    if (linux.get("seccomp") or {}).get("listenerPath"):
        found.append(SpecFinding("/linux/seccomp/listenerPath", "a listener of the host's cannot look into the guest"))
    if linux.get("rootfsPropagation") in ("shared", "rshared"):
        found.append(SpecFinding("/linux/rootfsPropagation", "mounts made in the guest are not seen on the host"))
    if kind == VM:
        found += vmconfig.cannot_honour(config.get("vm"), arch)
    elif config.get("vm"):
        found.append(SpecFinding("/vm", "this isolation boots no virtual machine"))
    if preserved:
        found.append(SpecFinding("", f"{preserved} descriptors to hand down cannot go into the guest"))
    return found


# What the kernel puts into each new network namespace by itself, once their modules are loaded; all of them are down.
_FALLBACK = frozenset(
    ("lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0", "teql0")
)


def devices_that_count(names: list[str]) -> list[str]:
    """Those network devices of a namespace that somebody put into it."""
    return [name for name in names if name not in _FALLBACK]


def demand(config: dict[str, Any], kind: str, *, preserved: int = 0, arch: str = "x86_64") -> None:
    """Raise Unsupported for the first thing that cannot be honoured; the others are in its hint."""
    found = cannot_honour(config, kind, preserved=preserved, arch=arch)
    if found:
        others = "; ".join(str(each) for each in found[1:])
        first = found[0]
        raise Unsupported(
            f"isolation {kind} with this setting",
            first.why,
            pointer=first.pointer,
            hint=f"and {others}" if others else "",
        )


def _at(config: dict[str, Any], pointer: str) -> bool:
    value: Any = config
    for part in pointer.split("/")[1:]:
        value = value.get(part) if isinstance(value, dict) else None
    return _anything(value)


def _anything(value: Any) -> bool:
    """Whether something is asked for: engines write empty objects and zeros for "nothing"."""
    if isinstance(value, dict):
        return any(_anything(each) for each in value.values())
    return bool(value)


def _of_namespaces(config: dict[str, Any]) -> Iterator[SpecFinding]:
    spaces = {
        entry["type"]: (number, entry)
        for number, entry in enumerate((config.get("linux") or {}).get("namespaces") or ())
    }
    for kind, (number, entry) in spaces.items():
        if entry.get("path") and kind not in ("network", "cgroup"):
            yield SpecFinding(
                f"/linux/namespaces/{number}/path", f"the guest cannot join a {kind} namespace of the host's"
            )
    if "network" not in spaces:
        yield SpecFinding("/linux/namespaces", "the guest cannot use the host's network: it takes a network namespace")
    if "mount" not in spaces:
        yield SpecFinding("/linux/namespaces", "a root in a guest takes a mount namespace")
    if "pid" not in spaces:
        yield SpecFinding("/linux/namespaces", "the guest cannot show the host's processes: it takes a pid namespace")


def _of_mounts(config: dict[str, Any]) -> Iterator[SpecFinding]:
    for number, entry in enumerate(config.get("mounts") or ()):
        options = set(entry.get("options") or ())
        at = f"/mounts/{number}"
        if options & {"shared", "rshared"} and is_bind(entry):
            yield SpecFinding(f"{at}/options", "mounts made in the guest are not seen on the host")
        if entry.get("uidMappings") or options & {"idmap", "ridmap"}:
            yield SpecFinding(at, "files of the host cannot be shown to the guest with other ids")
        if entry.get("type") == "overlay":
            yield SpecFinding(at, "an overlay of the host's directories cannot be mounted in the guest")


def _of_process(config: dict[str, Any]) -> Iterator[SpecFinding]:
    process = config["process"]
    for field in ("apparmorProfile", "selinuxLabel"):
        if process.get(field) not in (None, "", "unconfined"):
            yield SpecFinding(f"/process/{field}", "the guest's kernel does not know the host's profiles")

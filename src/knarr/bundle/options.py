"""What a person asks for when running an image, and what must be known of the host to say yes.

Two records, no behaviour: ``RunOptions`` is filled by the command line and the library, ``Facts`` by the engine.
"""

from __future__ import annotations

from knarr.base.record import Record
from knarr.bundle.selinux import Labels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal


class VolumeMount(Record):
    """One ``-v``, ``--mount`` or ``--tmpfs``: ``kind`` bind (source is an absolute path of the host) or tmpfs.

    ``options`` are mount options of runtime-spec's config.md to add to the safe defaults; ``dev``, ``suid`` and
    ``exec`` take the matching default away. ``relabel``: the source gets the SELinux label of what this container
    alone may use, or all may. ``idmap`` is the engine's: with it, or with ``ridmap`` all that is mounted below too, the
    source's owners are shown with the container's ids.
    """

    kind: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    readonly: bool = False
    options: tuple[str, ...] = ()
    idmap: Literal["", "idmap", "ridmap"] = ""
    relabel: Literal["", "private", "shared"] = ""


class Ulimit(Record):
    """One ``--ulimit``: the name without RLIMIT_, lower case; limits in the resource's own unit, -1 for none."""

    name: str
    soft: int
    hard: int


USER_NETWORKS = ("slirp4netns", "pasta")
"""Networks of a container's own that a program of that name is: the engine's to start."""


class Port(Record):
    """One published port: ``ip`` and ``host`` (0: any that is free) on this machine, ``inside`` the container."""

    ip: str
    host: int
    inside: int
    protocol: Literal["tcp", "udp"] = "tcp"


class RunOptions(Record):
    """Everything that changes a container away from the image's own wishes and knarr's default posture.

    Sizes are bytes, ``cpus`` is a number of processors (0: no limit), ``pids_limit`` -1 means unlimited. ``command``
    replaces the image's Cmd, ``entrypoint`` its Entrypoint (an empty tuple takes it away; None leaves it).
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    terminal: bool = False
    network: str = "none"  # none, host, or one of USER_NETWORKS
    network_options: tuple[str, ...] = ()
    publish: tuple[Port, ...] = ()
    dns: tuple[str, ...] = ()  # addresses of resolvers
    dns_search: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()  # (name, address) lines for /etc/hosts
    userns: str = ""  # what was said of the user namespace: host, auto, auto:size=N; "" leaves it to the engine
    memory: int = 0
    cpus: float = 0.0
    pids_limit: int = 2048
    readonly: bool = False
    shm_size: int = 64 << 20
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    allow_new_privs: bool = False
    privileged: bool = False
    seccomp: str | Mapping[str, Any] = "default"  # "default", "unconfined" or linux.seccomp of config.json
    apparmor: str = ""  # a profile's name, "unconfined", or "": knarr's own where the machine has AppArmor
    selinux: tuple[
        str, ...
    ] = ()  # "disable", a context, or parts as "type:T"; (): labels where the machine has SELinux
    mounts: tuple[VolumeMount, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


class Facts(Record):
    """What conversion must know of the host; ``engine.host`` gathers it, tests make it up.

    ``uid_map`` and ``gid_map`` are (inside, outside, count) lines for a new user namespace; empty for none.
    ``nofile_hard`` caps RLIMIT_NOFILE where this process may not raise limits. ``devices`` are the host's device
    nodes as linux.devices entries, asked for only with ``privileged``.
    """

    arch: str = "x86_64"
    rootless: bool = False
    time_namespace: bool = True
    cgroup_namespace: bool = True
    swap_limit: bool = True
    cgroup_limits: bool = True
    nofile_hard: int = 524288
    uid_map: tuple[tuple[int, int, int], ...] = ()
    gid_map: tuple[tuple[int, int, int], ...] = ()
    capabilities: tuple[str, ...] = ()  # what this process may hand out; empty: all that there are
    devices: tuple[Mapping[str, Any], ...] = ()
    apparmor: str = ""  # the profile of a container that names none
    selinux: Labels = Labels()  # the container's labels: bundle/selinux.py
    thermal_paths: tuple[str, ...] = ()  # /sys/devices/system/cpu/cpu*/thermal_throttle: they tell of other loads

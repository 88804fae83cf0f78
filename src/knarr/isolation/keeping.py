"""The keeper of templates is started: root's as it is, an ordinary user's in a user namespace of its own (cold).

There it may do to its guests what root may: show them files. Who makes a container for one of them enters the same
namespace (create.py), so that both see the same ids; each guest's program has one of its own below.
"""

from __future__ import annotations

import os
from stat import S_ISVTX

from knarr.base.errors import KnarrError, UsageError
from knarr.isolation.confine import Confined
from knarr.isolation.python import python_command
from knarr.kernel.userns import default_map
from knarr.plan import ops
from knarr.plan.container import ContainerPlan, own_id_alone
from knarr.plan.namespaces import CLONE_FLAG
from knarr.plan.ops import NO_SLOT, Op
from knarr.runtime.create import Stdio
from knarr.runtime.probe import probe_for

LISTENING = "listening"
_ENVIRONMENT = (
    *("KNARR_UML", "KNARR_QEMU", "KNARR_VIRTIOFSD", "KNARR_KERNELS", "KNARR_CACHE", "XDG_CACHE_HOME"),
    *("XDG_RUNTIME_DIR", "HOME", "LC_ALL", "TMPDIR"),
)


def begin(place: str, idle: float) -> None:
    """Start a keeper as a process of its own and wait until it listens.

    Raises FileError, KnarrError when it fails, UsageError for a place that others could exchange.
    """
    demand_own(place)
    said, saying = os.pipe2(os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with os.fdopen(said, "rb") as hearing:
        try:
            _start(plan_of(place, idle, user=os.geteuid() != 0), Stdio(null, null, saying))
        finally:
            os.close(saying)
            os.close(null)
        line = hearing.readline(4096).decode("utf-8", "replace").strip()
    if line != LISTENING:
        raise KnarrError(f"the keeper of templates does not start: {line or 'it ended without a word'}")


def demand_own(place: str) -> None:
    """Raise UsageError if another user could put something else at a place, which need not be there yet."""
    above = os.path.realpath(place)
    while above != "/":
        above = os.path.dirname(above)
        if os.path.lexists(above):
            facts = os.lstat(above)
            others = facts.st_mode & 0o022 and not facts.st_mode & S_ISVTX
            if facts.st_uid not in (0, os.geteuid()) or others:
                raise UsageError(f"{above}, above the templates, is another user's to change", hint="KNARR_TEMPLATES")


def plan_of(place: str, idle: float, *, user: bool) -> ContainerPlan:
    """How it starts; ``user``: an ordinary user's."""
    words = python_command("keeper", repr(place), repr(idle))
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    environment |= {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    ids = default_map(os.geteuid(), os.getegid()) if user else None
    flags = CLONE_FLAG["user"] | CLONE_FLAG["mount"] if user else 0
    plan = [Op("clone", (flags, NO_SLOT)), Op("pdeathsig", (9,))]
    if user:
        plan += [Op("sync", (ops.SYNC_IDMAP,)), Op("become_root", (0,)), Op("pdeathsig", (9,))]
    plan += [Op("setsid"), Op("host_chdir", (), ("/",)), Op("sync", (ops.SYNC_READY,)), Op("pdeathsig", (0,))]
    plan.append(Op("host_program", (), (words[0],)))
    plan.append(Op("exec", (len(words),), (*words, *(f"{name}={value}" for name, value in environment.items()))))
    uids, gids = (ids.uids, ids.gids) if ids is not None else ((), ())
    alone = user and own_id_alone(gids, os.getegid())
    return ContainerPlan(tuple(plan), (), uids, gids, alone, (), None, ())


def _start(plan: ContainerPlan, stdio: Stdio) -> None:
    process = Confined("keeper", plan, probe_for({}, None), {"ociVersion": "1.2.0"})
    try:
        process.spawn(stdio, {})
        if process.launch is not None:
            process.launch.run()
    except BaseException:
        process.undo()
        raise
    process.close()  # it is not waited for: init is its parent once we have ended

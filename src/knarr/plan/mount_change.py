"""One mount more, or one less, in a container that runs -> operations (hot, pure).

The sources are opened in the caller's mount namespace, the targets resolved below the container's root after its mount
namespace was entered.
"""

from __future__ import annotations

from knarr.base.errors import Unsupported
from knarr.plan import ops
from knarr.plan.mountopts import parse_options
from knarr.plan.mounts import MountContext, is_bind, mount_ops, source_op
from knarr.plan.namespaces import CLONE_FLAG
from knarr.plan.ops import NO_SLOT, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.host import Host

PIDFD, ROOT, SOURCE = 0, 1, 2
INHERITED = 2
"""Slots the parent hands over: a pidfd of the container's first process, its root."""


def plan_add(entry: dict[str, Any], pointer: str, config: dict[str, Any], host: Host, bundle: str) -> list[Op]:
    """Mount one entry of ``mounts[]``, a bind mount or a tmpfs. Raises Unsupported, SpecError with the pointer."""
    spaces = (config.get("linux") or {}).get("namespaces") or ()
    user = any(space["type"] == "user" for space in spaces)
    if not is_bind(entry) and (entry.get("type") != "tmpfs" or user):
        what = f"mounting a {entry.get('type') or 'file system'} in a container that runs"
        raise Unsupported(what, "bind mounts and, without a user namespace, tmpfs only", pointer=pointer)
    mapped = entry.get("uidMappings") or entry.get("gidMappings")
    if mapped or parse_options(list(entry.get("options") or ()), pointer).idmap:
        raise Unsupported("an id-mapped mount in a container that runs", "this version does not do it", pointer=pointer)
    context = MountContext(
        host, bundle=bundle, root=ROOT, cgroup=None, cgroup_namespace=False, network_namespace=False, new_user=user
    )
    opening = [source_op(entry, pointer, bundle, SOURCE)] if is_bind(entry) else []
    return [*opening, *_enter(), *mount_ops(entry, pointer, context, SOURCE if opening else NO_SLOT)]


def plan_remove(destination: str, pointer: str) -> list[Op]:
    """Take the uppermost mount off ``destination``."""
    return [*_enter(), Op("unmount", (ROOT,), (destination,), f"{pointer}/destination")]


def encode(plan: list[Op]) -> bytes:
    """The bytes knarr-init reads."""
    return ops.encode([Op("dumpable", (0,), (), ""), *plan], INHERITED)


def _enter() -> list[Op]:
    return [Op("setns", (PIDFD, CLONE_FLAG["mount"]), (), "/linux/namespaces")]

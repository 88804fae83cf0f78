"""Bind mounts shown with other ids: which, and by what map (hot where used, pure).

runtime-spec config.md "Mounts" (uidMappings) and "Linux mount options" (idmap, ridmap); crun(1) "idmap mount options".
In a mapping of a mount ``containerID`` is an id on the file system, ``hostID`` the one it is shown as outside.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding, Unsupported
from knarr.base.record import Record
from knarr.plan import ops
from knarr.plan.mountopts import parse_options
from knarr.plan.namespaces import CLONE_FLAG, id_map
from knarr.plan.ops import NO_SLOT, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.plan.host import Host

    IdMap = tuple[tuple[int, int, int], ...]


class Shift(Record):
    """How a mount's ids are shown: by these maps, or (both empty) as the container's user namespace has them."""

    uids: IdMap
    gids: IdMap
    recursive: bool


def shift_of(entry: dict[str, Any], pointer: str, linux: dict[str, Any]) -> Shift | None:
    """What an entry of ``mounts[]`` asks for; None for nothing. Raises SpecError."""
    options = parse_options(list(entry.get("options") or ()), pointer)
    uids, gids = (id_map(entry.get(side) or []) for side in ("uidMappings", "gidMappings"))
    if not options.idmap and not uids and not gids:
        return None
    if options.idmap.startswith("idmap="):
        uids, gids = _written(options.idmap[6:], f"{pointer}/options", linux)
    if options.remount:
        raise _wrong(f"{pointer}/options", "the ids of a mount cannot be changed once it is there")
    return Shift(uids, gids, options.idmap == "ridmap")


def shift_ops(
    config: dict[str, Any], host: Host, *, proc: int, user_slot: int, new_slot: Callable[[], int]
) -> tuple[list[Op], dict[int, tuple[int, int]]]:
    """Operations that make or open the user namespaces whose ids mounts are shown with; position -> (slot, flags).

    Raises Unsupported for a caller without power over the file systems (mount_setattr(2)).
    """
    linux = config.get("linux") or {}
    plan: list[Op] = []
    found: dict[int, tuple[int, int]] = {}
    made: dict[tuple[IdMap, IdMap], int] = {}
    for position, entry in enumerate(config.get("mounts") or ()):
        pointer = f"/mounts/{position}"
        shift = shift_of(entry, pointer, linux)
        if shift is None:
            continue
        if not host.privileged:
            raise Unsupported("an id-mapped mount", "it takes root", pointer=pointer)
        key = (shift.uids, shift.gids)
        if key == ((), ()):
            slot = made.setdefault(key, user_slot)
            if slot == NO_SLOT:
                slot = made[key] = new_slot()
                plan.append(_joined(slot, linux, pointer))
        elif key in made:
            slot = made[key]
        else:
            slot = made[key] = new_slot()
            plan.append(user_ns_op(slot, proc, *key, pointer))
        found[position] = (slot, ops.RECURSIVE if shift.recursive else 0)
    return plan, found


def user_ns_op(slot: int, proc: int, uids: IdMap, gids: IdMap, pointer: str) -> Op:
    """A user namespace with these maps, into a slot."""
    return Op("user_ns", (slot, proc, len(uids), *(number for row in (*uids, *gids) for number in row)), (), pointer)


def _joined(slot: int, linux: dict[str, Any], pointer: str) -> Op:
    """The user namespace that the container joins, opened for its map."""
    for position, entry in enumerate(linux.get("namespaces") or ()):
        if entry.get("type") == "user" and entry.get("path"):
            return Op("open_ns", (slot, CLONE_FLAG["user"]), (entry["path"],), f"/linux/namespaces/{position}")
    raise _wrong(pointer, "idmap needs uidMappings and gidMappings, or a user namespace to take them from")


def _written(text: str, pointer: str, linux: dict[str, Any]) -> tuple[IdMap, IdMap]:
    """Read ``uids=0-1-10#10-11-10;gids=0-100-10``; after ``@`` the second id of a triple is one of the container's."""
    maps: dict[str, IdMap] = {}
    for part in text.split(";"):
        side, equals, rows = part.partition("=")
        if side not in ("uids", "gids") or not equals or side in maps:
            raise _wrong(pointer, f"idmap={text!r} should be idmap=uids=ID-ID-COUNT#…;gids=…")
        own = id_map(linux.get("uidMappings" if side == "uids" else "gidMappings") or [])
        maps[side] = tuple(_row(row, pointer, own) for row in rows.split("#"))
    if len(maps) != 2:
        raise _wrong(pointer, f"idmap={text!r} should name uids and gids")
    return maps["uids"], maps["gids"]


def _row(text: str, pointer: str, own: IdMap) -> tuple[int, int, int]:
    words = text.removeprefix("@").split("-")
    if len(words) != 3 or not all(word.isascii() and word.isdigit() and len(word) <= 10 for word in words):
        raise _wrong(pointer, f"{text!r} should be three numbers with dashes between them: ID-ID-COUNT")
    first, shown, count = (int(word) for word in words)
    if text.startswith("@"):
        for inside, outside, size in own:
            if inside <= shown and shown + count <= inside + size:
                return first, outside + shown - inside, count
        raise _wrong(pointer, f"{text!r}: the container's user namespace does not have these ids")
    return first, shown, count


def _wrong(pointer: str, why: str) -> SpecError:
    return SpecError("config.json", [SpecFinding(pointer, why)])

"""The root of a container as operations: a directory or an overlay, made by the child or before it (hot, pure)."""

from __future__ import annotations

from knarr.base.errors import Unsupported
from knarr.base.record import Record
from knarr.plan.mountopts import MS_PRIVATE, MS_REC, MS_SLAVE, RDONLY, parse_options
from knarr.plan.namespaces import CLONE_FLAG, outside_id
from knarr.plan.ops import NO_SLOT, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Root(Record):
    """Where the container's root comes from.

    ``bind``: the directory ``path``. ``overlay``: an overlayfs over ``lowers`` (top first; relative ones start at
    ``lower_dir``), mounted by the init on the empty host directory ``path``, so that no mount is left on the host.
    With ``scratch``, upper and work are made in a fresh tmpfs over that empty directory and vanish with the container.

    ``apart``, for a privileged caller and a new user namespace: its root may not reach ``path``, so the first stage
    makes the root, in a mount namespace of its own. ``shifted`` are (directory, place) pairs: trees of the host's to
    be shown at a place, or where they are, with the container's ids, before the overlay is mounted over them.

    ``image`` are a directory, the path of an EROFS index and those of the tars it is about, bottom first: mounted there
    before the overlay, whose lower layer it is (layer/erofs.py). With ``loops`` by loop devices, not from the files.
    """

    kind: str
    path: str
    lowers: tuple[str, ...] = ()
    lower_dir: str = ""
    upper: str = ""
    work: str = ""
    scratch: str = ""
    userxattr: bool = False
    apart: bool = False
    shifted: tuple[tuple[str, str], ...] = ()
    image: tuple[str, ...] = ()
    loops: bool = False


def image_ops(root: Root, slot: int, label: tuple[str, str] | None = None) -> list[Op]:
    """The image's index as a tree that is mounted nowhere yet, made by the first stage.

    Before the container's cgroup is entered, whose devices need not include loop devices. It is labelled, although the
    overlay over it is: a program's memory is that of the file below (fs/overlayfs/file.c, ovl_mmap).
    """
    if not root.image:
        return []
    _, index, *tars = root.image
    if root.loops:
        return [Op("loop_tree", (slot, RDONLY), ("erofs", "=".join(label or ()), index, *tars), "/root")]
    options = [f"device={tar}" for tar in tars] + (["=".join(label)] if label else [])
    return [Op("new_tree", (slot, RDONLY), ("erofs", index, *options), "/root")]


def root_ops(
    root: Root, slot: int, linux: dict[str, Any], *, image_slot: int, own_mounts: bool, label: tuple[str, str] | None
) -> list[Op]:
    """The root as a descriptor. ``label``: see mount_label; the files of a ``bind`` have labels of their own."""
    if not own_mounts:
        if root.kind != "bind":
            raise Unsupported("a root made by the init", "it needs a mount namespace", pointer="/linux/namespaces")
        return [Op("shared_root", (slot,), (root.path,), "/root/path")]
    if root.kind == "bind" and not root.apart:
        return [_propagation(linux), Op("bind_root", (slot,), (root.path,), "/root/path")]
    if not root.apart:
        opening = Op("open_root", (slot,), (root.path,), "/root")
        return [_propagation(linux), *_image(root, image_slot), *_overlay(root, label), opening]
    return [Op("root_tree", (slot,), (), "/root")]


def _propagation(linux: dict[str, Any]) -> Op:
    """Mounts of the host keep coming in unless asked otherwise, none goes out."""
    asked = linux.get("rootfsPropagation")
    # Even for a shared root our copy of "/" is a slave: what is mounted below it must not reach the host.
    flags = MS_SLAVE | MS_REC if asked in ("slave", "rslave", "shared", "rshared") else MS_PRIVATE | MS_REC
    return Op("propagation", (flags,), ("/",), "/linux/rootfsPropagation" if asked else "")


def _image(root: Root, slot: int, user_slot: int = NO_SLOT) -> list[Op]:
    """Attach the tree of the image's index, with the ids of a user namespace if there is one."""
    if not root.image:
        return []
    plan = []
    if user_slot != NO_SLOT:
        plan.append(Op("idmap", (slot, user_slot, 0), (), "/root"))
    return [*plan, Op("cover", (slot,), (root.image[0],), "/root")]


def _labelled(data: str, label: tuple[str, str] | None) -> str:
    """Options for mount(2) with a security context, in quotes: its categories have commas between them."""
    return f'{data},{label[0]}="{label[1]}"' if label else data


def _overlay(root: Root, label: tuple[str, str] | None, owner: tuple[int, int] = (0, 0)) -> list[Op]:
    """Mount the overlay at the root's path; ``owner`` is whose the root directory of a scratch layer is.

    All its files show the label, whatever those of its layers are: these are reached with the init's own rights.
    """
    plan = []
    upper, work = root.upper, root.work
    if root.scratch:
        nosuid_nodev = 0x2 | 0x4
        options = _labelled("mode=700", label)
        plan.append(Op("host_mount", (nosuid_nodev,), ("tmpfs", root.scratch, "tmpfs", options), "/root"))
        upper, work = f"{root.scratch}/upper", f"{root.scratch}/work"
        plan += [
            Op("host_mkdir", (0o755, *owner), (upper,), "/root"),
            Op("host_mkdir", (0o700, 0, 0), (work,), "/root"),
        ]
    if root.lower_dir:
        plan.append(Op("host_chdir", (), (root.lower_dir,), "/root"))
    data = "lowerdir=" + ":".join(lower.replace("\\", "\\\\").replace(":", "\\:") for lower in root.lowers)
    if upper:
        data += f",upperdir={_escape(upper)},workdir={_escape(work)}"
    if root.userxattr:
        data += ",userxattr"
    plan.append(Op("host_mount", (0,), ("overlay", root.path, "overlay", _labelled(data, label)), "/root"))
    return plan


def root_apart(
    config: dict[str, Any],
    root: Root,
    slot: int,
    new_slot: Callable[[], int],
    *,
    image_slot: int,
    user_slot: int,
    opened: dict[int, int],
    label: tuple[str, str] | None,
) -> list[Op]:
    """Make the root, and further overlays of config.json, before the user namespace is entered.

    In a mount namespace of the first stage's own, so that the host sees nothing of it. The layers are covered by
    copies of themselves with shifted ids; whoever looks one up from then on, as the overlays do, finds the copy. What
    is left over of that namespace vanishes with the old root.
    """
    linux = config.get("linux") or {}
    plan = [Op("unshare", (CLONE_FLAG["mount"],), (), "/linux/namespaces"), _propagation(linux)]
    if root.kind == "bind":
        # Here, where nothing is shared: a copy of a shared mount is too, what is mounted in it would be seen outside.
        return [*plan, Op("open_source", (slot, 0), (root.path,), "/root/path")]
    for tree, place in root.shifted:
        copy = new_slot()
        plan.append(Op("open_source", (copy, 0), (tree,), "/root"))
        plan.append(Op("idmap", (copy, user_slot, 0), (), "/root"))
        plan.append(Op("cover", (copy,), (place,), "/root"))
    plan += _image(root, image_slot, user_slot)
    for position, entry in enumerate(config.get("mounts") or ()):
        if entry.get("type") == "overlay":
            pointer = f"/mounts/{position}"
            data = ",".join(option.replace(",", "\\,") for option in parse_options(entry["options"], pointer).data)
            opened[position] = new_slot()
            plan.append(Op("host_mount", (0,), ("overlay", root.path, "overlay", _labelled(data, label)), pointer))
            plan.append(Op("open_source", (opened[position], 0), (root.path,), pointer))
    owner = (outside_id(linux.get("uidMappings"), 0), outside_id(linux.get("gidMappings"), 0))
    return [*plan, *_overlay(root, label, owner), Op("open_source", (slot, 0), (root.path,), "/root")]


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")

"""The root of a container: an overlay over unpacked layers, a plain copy where that cannot be, or the host's own root.

Nothing is mounted on the host: the overlay is described here and mounted by the init in the container's own mount
namespace. Directories for it lie in the container's own directory.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL

from knarr.base.errors import FileError, NotFound, Unsupported
from knarr.base.record import Record
from knarr.engine import host, hostroot, images
from knarr.engine.driver import driver
from knarr.layer.view import Found
from knarr.plan.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.engine.images import Ready
    from knarr.engine.paths import Places
    from knarr.kernel.userns import IdMap
    from knarr.layer.erofsview import ErofsView
    from knarr.layer.view import MergedView

_DATA_LIMIT = 3800  # of the page that mount(2) has for options


class Rootfs(Record):
    """What the plan needs of a root: ``root`` for plan_container, ``path`` for config.json, mounts of its own."""

    root: Root
    path: str
    below: tuple[dict[str, Any], ...] = ()


def of_image(where: Places, folder: str, ready: Ready, ids: IdMap | None) -> Rootfs:
    """Prepare the root of a container of an image in its directory ``folder``; ``ids`` if root's container has its own.

    Raises FileError, Unsupported.
    """
    if driver(where) == "copy":
        return _copied(where, folder, ready, ids)
    if ready.mounted:
        return _mounted(where, folder, ready, ids)
    snapshots = images.snapshots(where)
    lower_dir, lowers = snapshots.lower_names(ready.chain)
    _make(folder, "upper", "work", "root")
    # The merged root takes its mode and owner from the writable layer.
    _like(f"{folder}/upper", _looks(f"{lower_dir}/{lowers[0]}"), ids)
    root = Root(
        "overlay",
        f"{folder}/root",
        lowers=tuple(lowers),
        lower_dir=lower_dir,
        upper=f"{folder}/upper",
        work=f"{folder}/work",
        userxattr=snapshots.userxattr,
        apart=ids is not None,
        shifted=((where.snapshots, where.snapshots),) if ids else (),
    )
    return Rootfs(root, f"{folder}/root")


def _mounted(where: Places, folder: str, ready: Ready, ids: IdMap | None) -> Rootfs:
    """An overlay over the image's index, which is mounted on a directory of the container's own."""
    tars = images.tars(where)
    image = tars.get(ready.chain)
    _make(folder, "upper", "work", "root", "image")
    with tars.view(ready.chain) as view:
        top = view.resolve("")[1]
    _like(f"{folder}/upper", (top.mode, top.uid, top.gid), ids)
    root = Root(
        "overlay",
        f"{folder}/root",
        lowers=(f"{folder}/image",),
        upper=f"{folder}/upper",
        work=f"{folder}/work",
        apart=ids is not None,
        image=(f"{folder}/image", image.index, *image.tars),
        loops=driver(where) == "erofs-loop",
    )
    return Rootfs(root, f"{folder}/root")


def _copied(where: Places, folder: str, ready: Ready, ids: IdMap | None) -> Rootfs:
    from knarr.engine.paths import open_store
    from knarr.layer.source import layers_of
    from knarr.layer.unpack import materialise

    image = ready.image
    layers = layers_of(open_store(where), image.manifest, image.image_config())
    materialise(layers, f"{folder}/rootfs", ids=ids or host.id_map())
    return Rootfs(Root("bind", f"{folder}/rootfs", apart=ids is not None), f"{folder}/rootfs")


def of_host(where: Places, folder: str, shown: tuple[str, ...], ids: IdMap | None) -> Rootfs:
    """Prepare this machine's own root below a throw-away layer; ``ids`` if root's container has its own.

    Raises FileError, UsageError, Unsupported.
    """
    if not host.overlay():
        raise Unsupported("host:", "this kernel has no overlayfs", hint="load it with: modprobe overlay")
    hiding = hostroot.hiding_layers(where, shown, rootless=host.rootless())
    if host.rootless():
        return _host_in_pieces(where, folder, hiding, shown)
    root, scratch, shifted = hostroot.mount_points(where)
    if ids is None:
        return Rootfs(Root("overlay", root, lowers=(*hiding, "/"), scratch=scratch), root, _system_mounts([]))
    layers = os.path.dirname(hiding[0])
    made = Root(
        "overlay",
        root,
        lowers=(*hiding, shifted),
        scratch=scratch,
        apart=True,
        shifted=((layers, layers), ("/", shifted)),
    )
    return Rootfs(made, root, _system_mounts(["idmap"]))


def _system_mounts(more: list[str]) -> tuple[dict[str, Any], ...]:
    """Parts of the system that lie on file systems of their own, read-only: an overlay does not see through mounts."""
    below = hostroot.mounted_below()
    options = ["bind", "rprivate", "nosuid", "nodev", "ro", *more]
    return tuple(
        {"destination": path, "type": "bind", "source": path, "options": options}
        for path in hostroot.SYSTEM_MOUNTS
        if path in below
    )


def _host_in_pieces(where: Places, folder: str, hiding: tuple[str, str], shown: tuple[str, ...]) -> Rootfs:
    """The host's root for an ordinary user: one overlay for each piece that has no mounts below it."""
    if host.kernel() < (5, 11):
        raise Unsupported("host: without root", "overlayfs in a user namespace needs Linux 5.11")
    rootfs, mounts = f"{folder}/rootfs", []
    hide = hostroot.hidden(shown, walk=False)
    try:
        os.mkdir(rootfs, 0o755)
        for name in ("proc", "sys", "dev"):
            os.mkdir(f"{rootfs}/{name}", 0o755)
        for place in ("upper", "work"):
            os.mkdir(f"{folder}/{place}", 0o700)
        for number, part in enumerate(hostroot.parts(where, hide)):
            target = rootfs + part.path
            if part.kind == "link":
                os.symlink(part.target, target)
            elif part.kind == "file":
                os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
                options = ["bind", "rprivate", "nosuid", "nodev", "ro"]
                mounts.append({"destination": part.path, "type": "bind", "source": part.path, "options": options})
            else:
                os.mkdir(target, 0o755)
                os.chmod(target, hide.empty.get(part.path, 0o755))
                if part.kind == "overlay" and os.path.isdir(part.path):  # some come and go, as those of /tmp
                    over = [layer + part.path for layer in hiding if os.path.isdir(layer + part.path)]
                    lowers = [*over, part.path]
                    looks = _looks(lowers[0])
                    mounts.append(_overlay(folder, str(number), part.path, lowers, looks, None, userxattr=True))
    except OSError as error:
        raise FileError("prepare", f"{rootfs}", error.errno or EINVAL) from None
    return Rootfs(Root("bind", rootfs), rootfs, tuple(mounts))


def _overlay(
    folder: str,
    name: str,
    target: str,
    lowers: list[str],
    looks: tuple[int, int, int],
    ids: IdMap | None,
    *,
    userxattr: bool,
) -> dict[str, Any]:
    """An overlay as an entry of config.json, with a writable layer of its own that ``looks`` so; raises OSError."""
    upper, work = f"{folder}/upper/{name}", f"{folder}/work/{name}"
    os.mkdir(upper, 0o755)
    os.mkdir(work, 0o700)
    _like(upper, looks, ids)
    options = [f"lowerdir={':'.join(map(escaped, lowers))}", f"upperdir={upper}", f"workdir={work}", "nodev"]
    if userxattr:
        options.append("userxattr")
    return {"destination": target, "type": "overlay", "source": "overlay", "options": options}


def escaped(path: str) -> str:
    """``path`` as overlayfs wants it in lowerdir."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _make(folder: str, *names: str) -> None:
    for name in names:
        try:
            os.mkdir(f"{folder}/{name}", 0o700)
        except OSError as error:
            raise FileError("make", f"{folder}/{name}", error.errno or EINVAL) from None


def _looks(model: str) -> tuple[int, int, int]:
    """Mode and owner of a directory; raises FileError."""
    try:
        facts = os.stat(model)
    except OSError as error:
        raise FileError("read", model, error.errno or EINVAL) from None
    return facts.st_mode, facts.st_uid, facts.st_gid


def _like(path: str, looks: tuple[int, int, int], ids: IdMap | None) -> None:
    """Give a directory of ours a mode and, where that is possible, an owner; raises FileError."""
    try:
        mode, *owner = looks
        if ids is not None:
            owner = [max(ids.uid(owner[0]), ids.uid(0)), max(ids.gid(owner[1]), ids.gid(0))]
        if owner != [os.geteuid(), os.getegid()] and os.geteuid() == 0:
            os.chown(path, *owner)
        os.chmod(path, stat.S_IMODE(mode))
    except OSError as error:
        raise FileError("prepare", path, error.errno or EINVAL) from None


def image_volumes(
    where: Places, folder: str, ready: Ready, paths: list[str], notes: list[str], ids: IdMap | None
) -> dict[str, dict[str, Any] | None]:
    """A mount for each volume the image names: its own writable layer over what the image has there.

    Where the image has nothing, an empty directory of the container's own. The layers' directories are found by
    descriptor inside the image (a volume's path through symbolic links stays in it, CVE-2022-23648).
    """
    if driver(where) == "copy" or not paths:
        return dict.fromkeys(paths)  # the copy is the container's own already
    result: dict[str, dict[str, Any] | None] = {}
    base = f"{folder}/volumes"
    _make(folder, "volumes")
    _make(base, "upper", "work")
    with images.layers(where, mounted=ready.mounted).view(ready.chain) as view:
        for number, path in enumerate(paths):
            try:
                lowers, looks = _shown(view, path, f"{folder}/image")
            except NotFound:
                _make(base, str(number))
                os.chmod(f"{base}/{number}", 0o755)
                if ids is not None:
                    os.chown(f"{base}/{number}", ids.uid(0), ids.gid(0))
                options = ["rbind", "rprivate", "rnosuid", "rnodev"]
                source = f"{base}/{number}"
                result[path] = {"destination": path, "type": "bind", "source": source, "options": options}
                continue
            if not lowers or sum(map(len, lowers)) > _DATA_LIMIT - 2 * len(base):
                notes.append(f"the image's volume {path} is kept in the container's own layer")
                result[path] = None
                continue
            userxattr = not ready.mounted and images.snapshots(where).userxattr
            result[path] = _overlay(base, str(number), path, lowers, looks, ids, userxattr=userxattr)
            result[path]["options"].append("nosuid")  # type: ignore[index]  # it was just set
    return result


def _shown(view: ErofsView | MergedView, path: str, mounted: str) -> tuple[list[str], tuple[int, int, int]]:
    """The directories that show a path of an image, top first, none if it is no directory; mode and owner.

    ``mounted``: where an image that is not unpacked will be mounted. Raises NotFound.
    """
    canonical, found = view.resolve(path)
    if isinstance(found, Found):
        facts = found.facts
        lowers = [os.readlink(f"/proc/self/fd/{fd}") for fd in found.stack]
        return lowers, (facts.st_mode, facts.st_uid, facts.st_gid)
    lowers = [f"{mounted}/{os.fsdecode(canonical)}"] if stat.S_ISDIR(found.mode) else []
    return lowers, (found.mode, found.uid, found.gid)

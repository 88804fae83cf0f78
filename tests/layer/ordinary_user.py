"""Run by root's tests: becomes an ordinary user with (or without) subordinate ids and unpacks as that user.

Not a test itself. Arguments: source tree, work directory, first subordinate id (0 for none), a tar per layer. The
id tables are bind-mounted in a mount namespace of its own, so the machine's are never touched. Prints JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

USER = 65534


def main() -> None:
    source, work, first, *tars = sys.argv[1:]
    sys.path.insert(0, source)
    from knarr.base import fastjson
    from knarr.base.errors import KnarrError
    from knarr.kernel.mount import MS_BIND, MS_PRIVATE, MS_REC, mount
    from knarr.kernel.userns import CLONE_NEWNS, unshare
    from knarr.layer.snapshot import Snapshots
    from knarr.layer.source import Layer
    from knarr.layer.unpack import materialise

    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    for table in ("subuid", "subgid"):
        path = f"{work}/{table}"
        with open(path, "w", encoding="ascii") as stream:
            stream.write(f"{USER}:{first}:65536\n" if int(first) else "")
        os.chmod(path, 0o644)
        mount(path, f"/etc/{table}", None, MS_BIND)
    home = f"{work}/home"
    os.mkdir(home)
    os.chown(home, USER, USER)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: a change of user hides /proc from oneself, which a login does not

    def opener(data: bytes) -> Callable[[], io.BytesIO]:
        return lambda: io.BytesIO(data)

    layers = []
    for path in tars:
        with open(path, "rb") as archive:
            data = archive.read()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        layers.append(Layer(digest, "application/vnd.oci.image.layer.v1.tar", len(data), opener(data), path))
    out: dict[str, object] = {}
    snapshots = Snapshots(f"{home}/store/snapshots")
    try:
        chain = snapshots.ensure(layers)
        out["lowers"] = lowers = snapshots.lowers(chain)
        out["warnings"] = [list(one.warnings) for one in snapshots.list()]
        out["owners"] = owners(lowers[0])
        with snapshots.view(chain) as view:
            out["passwd"] = view.read_file("etc/passwd", 1000).decode()
        out["mounted"] = mounted(lowers, home)
        materialise(layers, f"{home}/plain")
        if os.path.exists(f"{home}/plain/cap"):
            out["capability"] = os.getxattr(f"{home}/plain/cap", "security.capability").hex()
        out["plain"] = owners(f"{home}/plain")
        snapshots.gc(keep=[])
        out["left"] = sorted(os.listdir(snapshots.path)) + os.listdir(f"{snapshots.path}/l")
    except KnarrError as error:
        out["error"] = [type(error).__name__, str(error)]
        out["left"] = os.listdir(f"{snapshots.path}/tmp")
    sys.stdout.buffer.write(fastjson.dumps(out))


def mounted(lowers: list[str], home: str) -> dict[str, list[int]]:
    """What the root of a user namespace sees when it mounts the layers."""
    from knarr.base import fastjson
    from knarr.kernel.mount import mount
    from knarr.kernel.userns import CLONE_NEWNS, CLONE_NEWUSER, default_map, unshare, write_maps

    os.mkdir(f"{home}/mnt")
    os.mkdir(f"{home}/empty")
    ready, done, answer = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()  # this program has one thread
    if not child:
        unshare(CLONE_NEWUSER | CLONE_NEWNS)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        directories = ":".join([*lowers, f"{home}/empty"])
        mount("overlay", f"{home}/mnt", "overlay", 1, f"userxattr,lowerdir={directories}")
        os.write(answer[1], fastjson.dumps(owners(f"{home}/mnt")))
        os._exit(0)
    try:
        os.read(ready[0], 1)
        write_maps(child, default_map(USER, USER))
        os.write(done[1], b"x")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    os.close(answer[1])
    with open(answer[0], "rb") as stream:
        found: dict[str, list[int]] = fastjson.loads(stream.read() or b"{}", "the child's answer")
    return found


def owners(root: str) -> dict[str, list[int]]:
    """Mode, owner and link count of each entry that can be seen."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            facts = os.lstat(f"{folder}/{name}")
            found[os.path.relpath(f"{folder}/{name}", root)] = [
                facts.st_mode,
                facts.st_uid,
                facts.st_gid,
                facts.st_nlink,
            ]
    return found


main()

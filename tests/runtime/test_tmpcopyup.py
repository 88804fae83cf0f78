"""tmpcopyup: a tmpfs that begins with a copy of what the image has there; and the mode a tmpfs gets by itself."""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]

# A capability on a file, as setcap cap_net_raw+ep writes it (capabilities(7), version 2).
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def tmpfs(bundle: Bundle, *options: str, destination: str = "/data") -> None:
    bundle.config["mounts"].append(
        {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": [*options]}
    )


def fill(folder: Path) -> None:
    """One of each kind of file, with owners, modes and times of their own."""
    inner = folder / "a/inner"
    inner.mkdir(parents=True)
    (folder / "a/text").write_text("some words\n")
    (folder / "a/text").chmod(0o4750)
    os.chown(folder / "a/text", 11, 12)
    (folder / "a/text").chmod(0o4750)
    with (inner / "holes").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"x")
    (folder / "a/link").symlink_to("/nowhere/at/all")
    os.mkfifo(folder / "a/fifo", 0o620)
    os.mknod(folder / "a/null", 0o666 | 0o020000, os.makedev(1, 3))
    os.chown(folder, 21, 22)
    folder.chmod(0o750)
    inner.chmod(0o1777)
    for path in (inner / "holes", inner, folder / "a/text", folder / "a/fifo", folder / "a/null", folder / "a"):
        os.utime(path, (1_000_000_000, 1_100_000_000))


def seen(runtime: Runtime, bundle: Bundle, script: str, **more: Any) -> str:
    return runtime.ok("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id(), **more)


def facts(top: str) -> dict[str, Any]:
    """All there is to know of a tree, by path."""
    found: dict[str, Any] = {}
    for folder, names, files in os.walk(top):
        for path in (f"{folder}/{name}" for name in (*names, *files, ".")):
            seen = os.lstat(path)
            kind = seen.st_mode & 0o170000
            size = 0 if kind == 0o040000 else seen.st_size
            mode = 0 if kind == 0o120000 else seen.st_mode
            found[path.removeprefix(top)] = [kind, mode, seen.st_uid, seen.st_gid, size, seen.st_rdev]
            if path != f"{top}/.":
                found[path.removeprefix(top)].append(seen.st_mtime_ns)
            if kind == 0o120000:
                found[path.removeprefix(top)].append(os.readlink(path))
    return found


def test_the_copy_equals_the_original(ours: Runtime, bundle: Bundle) -> None:
    fill(bundle.rootfs / "data")
    tmpfs(bundle, "tmpcopyup", "size=8m", "nosuid", "nodev")  # the hole alone would not fit
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    copy = f"/proc/{ours.state(id)['pid']}/root/data"
    assert facts(copy) == facts(str(bundle.rootfs / "data"))
    with open(f"{copy}/a/text", encoding="utf-8") as text, open(f"{copy}/a/inner/holes", "rb") as holes:
        assert text.read() == "some words\n"
        holes.seek((1 << 29) - 1)
        assert holes.read(3) == b"\0x\0"
    assert os.statvfs(copy).f_bfree * os.statvfs(copy).f_frsize > 7 << 20


def test_content_and_modes_on_every_runtime(runtime: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "data/deep/er").mkdir(parents=True)
    (bundle.rootfs / "data/deep/er/file").write_text("words\n")
    (bundle.rootfs / "data/deep/er/file").chmod(0o640)
    (bundle.rootfs / "data/link").symlink_to("deep/er/file")
    tmpfs(bundle, "tmpcopyup", "rprivate", "nosuid", "nodev")
    script = (
        "cat /data/link; stat -c %a /data/deep/er/file; grep ' /data ' /proc/mounts | cut -d' ' -f3; echo new >/data/x"
    )
    (bundle.rootfs / "bin/cut").symlink_to("busybox")
    assert seen(runtime, bundle, script).split() == ["words", "640", "tmpfs"]
    assert not (bundle.rootfs / "data/x").exists(), "the image was written to"


def test_capabilities_of_files_come_along(ours: Runtime, bundle: Bundle) -> None:
    place = bundle.rootfs / "data/program"
    place.parent.mkdir()
    shutil.copy(bundle.rootfs / "bin/busybox", place)
    os.setxattr(place, "security.capability", CAPABILITY)
    os.chown(place, 5, 5)
    os.setxattr(place, "security.capability", CAPABILITY)
    tmpfs(bundle, "tmpcopyup")
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    copy = f"/proc/{ours.state(id)['pid']}/root/data/program"
    assert os.getxattr(copy, "security.capability") == CAPABILITY
    assert os.stat(copy).st_uid == 5


def test_read_only_after_the_copy(ours: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "data").mkdir()
    (bundle.rootfs / "data/file").write_text("words\n")
    tmpfs(bundle, "tmpcopyup", "ro")
    assert seen(ours, bundle, "cat /data/file; touch /data/x 2>&1 || true").splitlines() == [
        "words",
        "touch: /data/x: Read-only file system",
    ]


def test_a_socket_and_odd_names(ours: Runtime, bundle: Bundle) -> None:
    place = bundle.rootfs / "data"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{os.open(place, os.O_PATH)}/sock")
    for name in ("a b", "new\nline", "-n", "\\", "…", "x" * 255):
        (place / name).write_text("")
    tmpfs(bundle, "tmpcopyup")
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    copy = f"/proc/{ours.state(id)['pid']}/root/data"
    assert sorted(os.listdir(copy)) == sorted(os.listdir(place))


def test_what_does_not_fit_is_an_error_that_names_the_file(ours: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "data/sub").mkdir(parents=True)
    (bundle.rootfs / "data/sub/large").write_bytes(b"x" * 300_000)
    tmpfs(bundle, "tmpcopyup", "size=64k")
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    said = (
        "config.json /mounts/5: mount tmpfs on /data: no space left on device: while /data/sub/large was copied into it"
    )
    assert said in done.stderr


def test_a_tree_without_end_is_an_error(ours: Runtime, bundle: Bundle) -> None:
    deep = bundle.rootfs / "data" / "/".join(["d"] * 250)
    deep.mkdir(parents=True)
    tmpfs(bundle, "tmpcopyup")
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert (
        "config.json /mounts/5: mount tmpfs on /data: too many levels of symbolic links: while /data/d/d" in done.stderr
    )


def test_the_copy_counts_as_the_containers_memory(ours: Runtime, bundle: Bundle) -> None:
    # 40 MB of the image are to become memory of a container that may have 20: the copy must not be charged to us.
    place = bundle.rootfs / "data"
    place.mkdir()
    (place / "large").write_bytes(b"x" * (40 << 20))
    tmpfs(bundle, "tmpcopyup")
    bundle.config["linux"]["resources"]["memory"] = {"limit": 20 << 20, "swap": 20 << 20}
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1, done
    assert "killed by signal 9" in done.stderr
    assert "memory limit" in done.stderr


@pytest.mark.parametrize("kind", ["bind", "proc"])
def test_only_for_a_tmpfs(kind: str, ours: Runtime, bundle: Bundle) -> None:
    options = ["tmpcopyup", "bind"] if kind == "bind" else ["nosuid", "tmpcopyup"]
    bundle.config["mounts"].append({"destination": "/x", "type": kind, "source": "/", "options": options})
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert f"/mounts/5/options/{options.index('tmpcopyup')}: tmpcopyup is for a tmpfs only" in done.stderr


def test_the_mode_of_a_tmpfs(runtime: Runtime, bundle: Bundle) -> None:
    """What is mounted over decides, unless the options do; without either it is the kernel's 1777."""
    for name in ("data", "given"):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name).chmod(0o2751)
        tmpfs(bundle, *(["mode=700"] if name == "given" else ["nosuid"]), destination=f"/{name}")
    tmpfs(bundle, destination="/fresh")
    modes = seen(runtime, bundle, "stat -c %a /data /given /fresh").split()
    # runc 1.1 lets the directory win even over mode=, crun 1.8 knows mode= alone; later ones do as we do.
    wanted = {"runc": ["2751", "2751", "1777"], "crun": ["1777", "700", "1777"]}
    if runtime.name != "knarr" and modes == wanted[runtime.name]:
        pytest.skip(f"this {runtime.name} has {modes}")
    assert modes == ["2751", "700", "1777"]

"""Applying layers: metadata, what is left out, other threads left alone, races, storms, and failures of the disk."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tarbuilder import c, d, f, h, header, s, tar, x
from trees import ROOT, differences, directory, needs_root, overlay, scratch, tree

from knarr.base.errors import FileError, FormatError, Interrupted, KernelError
from knarr.kernel.ffi import syscall
from knarr.kernel.mount import MNT_DETACH, mount, umount2
from knarr.kernel.userns import IdMap
from knarr.layer import apply as apply_module
from knarr.layer import tree as tree_module
from knarr.layer.apply import Applied, apply_layer
from knarr.layer.view import MergedView

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = None if ROOT else IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), squash=True)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def put(root: str, *parts: bytes, fresh: bool = False) -> Applied:
    with directory(root) as fd:
        return apply_layer(io.BytesIO(tar(*parts)), fd, ids=OWN, fresh=fresh)


@pytest.fixture
def root() -> Iterator[str]:
    with scratch() as top:
        os.mkdir(f"{top}/root")
        yield f"{top}/root"


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_modes_are_exact_and_no_thread_loses_its_umask(root: str) -> None:
    before = os.umask(0o077)
    try:
        put(
            root,
            f("a", mode=0o666),
            d("d", 0o777),
            f("s", b"x", mode=0o6755),
            header(b"p", b"6", mode=0o606),
            fresh=True,
        )
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert [mode_of(f"{root}/{name}") for name in "adsp"] == [0o666, 0o777, 0o6755, 0o606]


def test_modes_without_a_umask_of_our_own(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a filter forbids unshare(2) every mode is set explicitly."""

    def refused(_flags: int) -> None:
        raise KernelError("unshare", "CLONE_FS", errno.EPERM)

    monkeypatch.setattr(apply_module, "unshare", refused)
    before = os.umask(0o077)
    try:
        put(
            root,
            f("a", mode=0o666),
            d("d", 0o777),
            f("s", b"x", mode=0o6755),
            header(b"p", b"6", mode=0o606),
            fresh=True,
        )
    finally:
        os.umask(before)
    assert [mode_of(f"{root}/{name}") for name in "adsp"] == [0o666, 0o777, 0o6755, 0o606]


@needs_root
def test_a_directory_gives_nothing_to_what_is_in_it(root: str) -> None:
    """A setgid directory gives its group, a default access list its rights; an archive says otherwise."""
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits + b"\0" + b"\xff\xff\xff\xff"
        for tag, bits in ((1, b"\x07"), (4, b"\x05"), (32, b"\x00"))
    )
    put(root, d("set", 0o2775, gid=50), x(("SCHILY.xattr.system.posix_acl_default", acl)), d("acl"), fresh=True)
    assert os.getxattr(f"{root}/acl", "system.posix_acl_default") == acl
    put(
        root,
        f("set/file", gid=0),
        d("set/dir", 0o755),
        s("set/link", "x"),
        f("acl/file", mode=0o666),
        d("acl/dir", 0o777),
        header(b"acl/fifo", b"6", mode=0o666),
    )
    assert os.stat(f"{root}/set/file").st_gid == 0
    assert os.lstat(f"{root}/set/link").st_gid == 0
    assert (os.stat(f"{root}/set/dir").st_gid, mode_of(f"{root}/set/dir")) == (0, 0o755)
    assert [mode_of(f"{root}/acl/{name}") for name in ("file", "dir", "fifo")] == [0o666, 0o777, 0o666]
    for name in ("file", "dir", "fifo"):
        assert not any("acl" in attribute for attribute in os.listxattr(f"{root}/acl/{name}"))


def test_times_of_directories_come_last(root: str) -> None:
    put(root, d("./", mtime=10), d("a", mtime=20), f("a/b"), d("a/c", mtime=30), f("a/c/d"), fresh=True)
    put(root, f("a/e"), f("a/c/.wh.d"), f("a/c/new", mtime=40))
    assert [os.stat(f"{root}/{name}").st_mtime for name in (".", "a", "a/c", "a/c/new")] == [10, 20, 30, 40]


def test_what_is_left_out_is_said_once(root: str) -> None:
    left_out = ("security.selinux", "trusted.overlay.opaque", "user.overlay.opaque", "trusted.x", "security.ima")
    parts = [x(*((f"SCHILY.xattr.{name}", "y") for name in left_out)) + f(f"f{number}") for number in range(3)]
    done = put(root, *parts, x(("SCHILY.xattr.user.kept", "v")), f("g"), f("g"), fresh=True)
    assert sorted(done.warnings) == sorted(
        [f"extended attribute {name} in layer is left out" for name in left_out]
        + ["g is in layer more than once: the last one counts"]
    )
    assert os.listxattr(f"{root}/f0") == []
    assert done.entries == 5


@needs_root
def test_capabilities_come_after_the_owner(root: str) -> None:
    put(root, x(("SCHILY.xattr.security.capability", CAPABILITY)), f("n", b"x", mode=0o4755, uid=1, gid=2), fresh=True)
    assert os.getxattr(f"{root}/n", "security.capability") == CAPABILITY
    assert mode_of(f"{root}/n") == 0o4755
    put(root, f("n", b"y", uid=1))
    assert os.listxattr(f"{root}/n") == []


def test_a_replaced_file_is_a_new_one(root: str) -> None:
    """A hard link to the old content keeps it: nothing is ever written through an existing name."""
    put(root, f("a", b"old"), h("b", "a"), fresh=True)
    with open(f"{root}/a", "rb") as held:
        put(root, f("a", b"new"))
        assert held.read() == b"old"
    assert Path(root, "b").read_bytes() == b"old"
    assert Path(root, "a").read_bytes() == b"new"


def test_a_directory_loses_attributes_it_has_no_more(root: str) -> None:
    put(root, x(("SCHILY.xattr.user.a", "1")), d("d"), fresh=True)
    assert os.listxattr(f"{root}/d") == ["user.a"]
    put(root, d("d", 0o700))
    assert os.listxattr(f"{root}/d") == []
    assert mode_of(f"{root}/d") == 0o700


@needs_root
def test_devices(root: str) -> None:
    put(root, c("null", 1, 3, mode=0o666), c("disk", 8, 1, b"4", uid=3), fresh=True)
    assert os.stat(f"{root}/null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat(f"{root}/disk").st_mode)
    assert os.stat(f"{root}/disk").st_uid == 3
    ids = IdMap(((0, 1000, 10),), ((0, 1000, 10),))
    with directory(root) as fd:
        done = apply_layer(io.BytesIO(tar(c("null", 1, 5), c("other", 1, 5))), fd, ids=ids)
    assert len(done.warnings) == 1
    assert os.listdir(root) == ["disk"]  # what the device would have replaced is gone too


@pytest.mark.parametrize("rounds", [20])
def test_a_directory_swapped_for_a_link_under_our_hands(root: str, rounds: int) -> None:
    """CVE-2025-47290's kin: another process exchanges a directory and a link that leads outside."""
    outside = tempfile.mkdtemp(prefix="knarr-test-")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                syscall("renameat2", -100, f"{root}/d".encode(), -100, f"{root}/l".encode(), 2)
            except KernelError:
                pass

    thread = threading.Thread(target=swap)
    try:
        layer = tar(d("d"), *(f(f"d/{number % 50}/{number}", b"x") for number in range(500)))
        outcomes = []
        thread.start()
        for _ in range(rounds):
            for name in ("d", "l"):
                try:
                    os.unlink(f"{root}/{name}")
                except (FileNotFoundError, IsADirectoryError):
                    pass
            try:
                os.symlink(outside, f"{root}/l")
            except FileExistsError:
                pass
            with directory(root) as fd:
                try:
                    apply_layer(io.BytesIO(layer), fd, ids=OWN)
                    outcomes.append("done")
                except (FormatError, FileError) as error:
                    outcomes.append(type(error).__name__)
        assert os.listdir(outside) == []
        assert len(outcomes) == rounds
    finally:
        stop.set()
        thread.join()
        os.rmdir(outside)


def test_a_storm_of_whiteouts_is_linear(root: str) -> None:
    """Both modes; ten times as many take about ten times as long."""

    def seconds(count: int, mode: str) -> float:
        with scratch() as top:
            for name in ("base", "layer"):
                os.mkdir(f"{top}/{name}")
            put(f"{top}/base", *(f(f"d/{number}") for number in range(count)), fresh=True)
            storm = tar(*(f(f"d/.wh.{number}") for number in range(count)))
            target = f"{top}/base" if mode == "merge" else f"{top}/layer"
            start = time.process_time()
            with directory(target) as fd, MergedView.of_paths([f"{top}/base"]) as view:
                if mode == "merge":
                    apply_layer(io.BytesIO(storm), fd, ids=OWN)
                    assert os.listdir(f"{top}/base/d") == []
                else:
                    apply_layer(
                        io.BytesIO(storm),
                        fd,
                        ids=OWN,
                        mode="overlay",
                        userxattr=not ROOT,
                        below=lambda: view,
                        fresh=True,
                    )
                    assert len(os.listdir(f"{top}/layer/d")) == count
            return time.process_time() - start

    for mode in ("merge", "overlay"):
        few, many = seconds(2000, mode), seconds(20_000, mode)
        assert many < 25 * few + 0.5, (mode, few, many)


def test_deep_and_repeated_is_bounded(root: str) -> None:
    """A small archive must not make us work for minutes: directories replaced again and again, deep links."""
    flips = [part for number in range(300) for part in (d("n"), f(f"n/{number}"), s("n", "x"))]
    start = time.process_time()
    put(root, *flips, fresh=True)
    links = [s(f"l{number}", "/".join(["."] * 40 + [f"l{number + 1}"])) for number in range(30)] + [d("l30")]
    put(root, *links, *(f(f"l0/{number}/x") for number in range(100)))
    deep = "d/" * 800
    put(root, *(x(("path", f"{deep}{number}/f")) + f("x") for number in range(1000)))
    assert time.process_time() - start < 10


def test_steps_along_links_are_counted(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty links of long texts make one entry cost hundreds of look-ups; the limit is for a whole layer."""
    monkeypatch.setattr(tree_module, "_STEPS", 20_000)
    links = [s(f"l{number}", "a/../" * 18 + f"l{number + 1}") for number in range(30)]
    layer = [d("a"), d("l30"), *links]
    put(root, *layer, f("l0/once"), fresh=True)
    with pytest.raises(FormatError, match="more than 20000 steps"):
        put(root, *layer, *(f(f"l0/{number}/x") for number in range(100)))


def test_descriptors_stay_few(root: str) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(400, hard), hard))
    try:
        put(root, *(f(f"a/{number}/b/c/x") for number in range(600)), x(("path", "d/" * 900 + "f")), f("x"), fresh=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    before = len(os.listdir("/proc/self/fd"))
    put(root, *(f(f"a/{number}/b/c/y") for number in range(300)))
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_a_full_disk_is_one_sentence(root: str) -> None:
    os.mkdir(f"{root}/small")
    mount("tmpfs", f"{root}/small", "tmpfs", 0, "size=64k")
    try:
        with pytest.raises(FileError) as caught:
            put(f"{root}/small", f("a/b", random.randbytes(1 << 20)), fresh=True)
        assert str(caught.value) == "cannot unpack a/b of layer: no space left on device"
        mount("tmpfs", f"{root}/small", "tmpfs", 32 | 1)  # MS_REMOUNT | MS_RDONLY
        with pytest.raises(FileError, match="read-only"):
            put(f"{root}/small", f("x"))
    finally:
        umount2(f"{root}/small", MNT_DETACH)


def test_an_error_of_the_stream_comes_through(root: str) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise FileError("read", "/some/blob", errno.EIO)

    with directory(root) as fd, pytest.raises(FileError, match="/some/blob"):
        apply_layer(Broken(), fd, ids=OWN)


def test_control_c_stops_the_thread(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread waits; when it is interrupted, the work stops at the next chunk, and no thread is left."""
    started = threading.Event()
    real_join = threading.Thread.join
    hit: list[threading.Thread] = []

    class Endless:
        def read(self, size: int, /) -> bytes:
            started.set()
            return bytes(size)

        def close(self) -> None:
            pass

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "knarr-apply" and not hit:
            hit.append(thread)
            started.wait(10)
            raise KeyboardInterrupt
        real_join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with directory(root) as fd, pytest.raises(KeyboardInterrupt):
        apply_layer(Endless(), fd, ids=OWN)
    assert not [thread for thread in threading.enumerate() if thread.name == "knarr-apply"]
    assert issubclass(Interrupted, Exception)


@needs_root
def test_a_layer_that_omits_parents_keeps_them_as_they_are() -> None:
    """A directory that a layer only mentions has, under overlayfs, what it has below: mode, owner, attributes, time."""
    base = tar(
        x(("SCHILY.xattr.user.a", "1")), d("a", 0o700, uid=5, mtime=7), d("a/b", 0o1777, gid=6, mtime=8), f("a/b/c")
    )
    with scratch() as top:
        for name in ("base", "layer", "merged"):
            os.mkdir(f"{top}/{name}")
        with directory(f"{top}/base") as fd:
            apply_layer(io.BytesIO(base), fd, mode="overlay", fresh=True)
        layer = tar(f("a/b/new"), h("a/link", "a/b/c"))
        with directory(f"{top}/layer") as fd, MergedView.of_paths([f"{top}/base"]) as view:
            apply_layer(io.BytesIO(layer), fd, mode="overlay", below=lambda: view, fresh=True)
        put(f"{top}/merged", base[:-1024], fresh=True)
        put(f"{top}/merged", layer[:-1024])
        with overlay([f"{top}/layer", f"{top}/base"], top) as mounted:
            assert differences(tree(mounted), tree(f"{top}/merged")) == []
            assert os.stat(f"{mounted}/a/link").st_ino == os.stat(f"{mounted}/a/b/c").st_ino


def test_a_copied_up_target_keeps_everything() -> None:
    base = tar(
        x(("SCHILY.xattr.user.a", "1"), ("mtime", "5.25")), f("t", b"data" * 9, mode=0o4711), s("l", "x", mtime=9)
    )
    with scratch() as top:
        for name in ("base", "layer"):
            os.mkdir(f"{top}/{name}")
        put(f"{top}/base", base[:-1024], fresh=True)
        with directory(f"{top}/layer") as fd, MergedView.of_paths([f"{top}/base"]) as view:
            layer = tar(h("t2", "t"), h("l2", "l"))
            apply_layer(
                io.BytesIO(layer), fd, ids=OWN, mode="overlay", userxattr=not ROOT, below=lambda: view, fresh=True
            )
        below, above = tree(f"{top}/base"), tree(f"{top}/layer")
        for name in ("t", "l"):
            assert above[name] == below[name]._replace(links=2)
            assert above[f"{name}2"] == above[name]

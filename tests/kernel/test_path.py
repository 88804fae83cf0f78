"""Paths below a directory: resolved inside it, made inside it, removed without leaving it. Real system calls."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

import knarr
from knarr.base.errors import KernelError, SafetyViolation
from knarr.kernel import path as path_module
from knarr.kernel.ffi import syscall
from knarr.kernel.mount import MNT_DETACH, MS_BIND, mount, umount2
from knarr.kernel.path import (
    BENEATH,
    IN_ROOT,
    empty_directory,
    mkdir_all,
    open_in_root,
    openat2,
    printable,
    remove_tree,
    resolve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Stage:
    """A root with an open descriptor, and a directory outside it that must not change."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.root = f"{top}/root"
        self.outside = f"{top}/outside"
        for name in (self.root, f"{self.root}/dir", self.outside):
            os.mkdir(name)
        for name in ("root/file", "root/dir/inner", "outside/secret"):
            with open(f"{top}/{name}", "w", encoding="utf-8") as stream:
                stream.write(name)
        os.symlink(self.outside, f"{self.root}/absolute")
        os.symlink("../outside", f"{self.root}/relative")
        os.symlink("/dir/inner", f"{self.root}/to-inner")
        os.symlink("loop", f"{self.root}/loop")
        self.fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@pytest.fixture
def stage() -> Iterator[Stage]:
    top = tempfile.mkdtemp(prefix="knarr-test-")
    made = Stage(top)
    yield made
    assert sorted(os.listdir(made.outside)) == ["secret"]
    os.close(made.fd)
    parent = os.open(os.path.dirname(top), os.O_PATH | os.O_DIRECTORY)
    remove_tree(parent, os.path.basename(top))
    os.close(parent)
    assert not os.path.lexists(top)


def content(fd: int) -> str:
    with open(fd, encoding="utf-8") as stream:
        return stream.read()


def test_links_resolve_inside_the_root(stage: Stage) -> None:
    assert content(open_in_root(stage.fd, "to-inner", os.O_RDONLY)) == "root/dir/inner"
    assert content(open_in_root(stage.fd, "/dir/../../../file", os.O_RDONLY)) == "root/file"
    for name in ("absolute/secret", "relative/secret", "../outside/secret"):
        with pytest.raises(KernelError) as caught:
            open_in_root(stage.fd, name, os.O_RDONLY)
        assert caught.value.errno == 2
        assert str(caught.value) == f"openat2 {name}: no such file or directory"


def test_the_plain_way_out_is_there(stage: Stage) -> None:
    """What the test above prevents does happen without the guard."""
    assert content(os.open("absolute/secret", os.O_RDONLY, dir_fd=stage.fd)) == "outside/secret"


def test_beneath_follows_nothing(stage: Stage) -> None:
    for name in ("to-inner", "/dir", "dir/../..", "absolute/secret"):
        with pytest.raises(KernelError):
            openat2(stage.fd, name, os.O_RDONLY, BENEATH)
    os.close(openat2(stage.fd, "dir/inner", os.O_RDONLY, BENEATH))


def test_magic_links_lead_nowhere() -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(KernelError) as caught:
        open_in_root(root, "proc/self/root/etc/passwd", os.O_RDONLY)
    os.close(root)
    assert caught.value.errno == 40


def test_descriptors_are_close_on_exec(stage: Stage) -> None:
    fd = openat2(stage.fd, "file", os.O_RDONLY, IN_ROOT)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_resolve_opens_nothing(stage: Stage) -> None:
    os.mkfifo(f"{stage.root}/fifo")
    fd = resolve(stage.fd, "fifo")
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    os.close(fd)
    fd = resolve(stage.fd, "to-inner", follow=False)
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)


def test_names_are_shown_safely(stage: Stage) -> None:
    with pytest.raises(KernelError, match=r"no-such\\x1b\\nfile"):
        open_in_root(stage.fd, "no-such\x1b\nfile", os.O_RDONLY)
    assert printable(b"a\xff\n\xe2\x80\xae") == "a\\udcff\\n\\u202e"
    with pytest.raises(KernelError, match="NUL"):
        open_in_root(stage.fd, "a\0b", os.O_RDONLY)


def test_again_is_tried_again(stage: Stage) -> None:
    """Renames on the machine make openat2 answer EAGAIN; the caller never sees it."""
    os.mkdir(f"{stage.root}/x")
    os.mkdir(f"{stage.root}/x/y")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(f"{stage.root}/dir", f"{stage.root}/dir2")
            os.rename(f"{stage.root}/dir2", f"{stage.root}/dir")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(3000):
            os.close(open_in_root(stage.fd, "x/y/../../x/y/../../x", os.O_PATH))
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_again_for_every_second_call(stage: Stage) -> None:
    """The same without luck: strace makes them fail."""
    script = "import os; from knarr.kernel.path import open_in_root as go; [go(3, 'dir', os.O_PATH) for _ in range(9)]"
    words = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "inject=openat2:error=EAGAIN:when=1+2"]
    place = knarr.__file__.removesuffix("/knarr/__init__.py")
    command = ["sh", "-c", 'exec "$@" 3<"$0"', stage.root, *words, sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": place}, capture_output=True, check=False, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr


def test_mkdir_all_stays_inside(stage: Stage) -> None:
    fd = mkdir_all(stage.fd, "/new/deep/er", 0o700)
    assert os.path.samestat(os.fstat(fd), os.stat(f"{stage.root}/new/deep/er"))
    os.close(fd)
    os.close(mkdir_all(stage.fd, "dir"))
    os.symlink("/dir", f"{stage.root}/link")
    os.close(mkdir_all(stage.fd, "link/below"))
    assert os.path.isdir(f"{stage.root}/dir/below")
    for name in ("absolute/x", "relative/x"):
        with pytest.raises(KernelError):
            mkdir_all(stage.fd, name)
    with pytest.raises(KernelError) as caught:
        mkdir_all(stage.fd, "file/x")
    assert caught.value.errno == 20
    with pytest.raises(KernelError):
        mkdir_all(stage.fd, "loop/x")
    with pytest.raises(SafetyViolation, match="goes up"):
        mkdir_all(stage.fd, "missing/../../x")


def test_mkdir_all_while_somebody_swaps(stage: Stage) -> None:
    """CVE-2024-45310: a directory on the way is exchanged with a link that leads outside."""
    os.mkdir(f"{stage.root}/v")
    os.mkdir(f"{stage.root}/v/d")
    os.symlink(stage.outside, f"{stage.root}/v/l")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            # AT_FDCWD, RENAME_EXCHANGE
            syscall("renameat2", -100, f"{stage.root}/v/d".encode(), -100, f"{stage.root}/v/l".encode(), 2)

    thread = threading.Thread(target=swap)
    thread.start()
    made = refused = 0
    try:
        for number in range(1500):
            try:
                os.close(mkdir_all(stage.fd, f"v/d/n{number}/m"))
                made += 1
            except KernelError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert made
    assert refused


def test_remove_tree_removes_everything(stage: Stage) -> None:
    for number in range(300):
        os.mkdir(f"{stage.root}/dir/{number}")
        os.symlink(stage.outside, f"{stage.root}/dir/{number}/link")
    os.mkdir(f"{stage.root}/dir/closed")
    os.mkdir(f"{stage.root}/dir/closed/inner")
    os.chmod(f"{stage.root}/dir/closed/inner", 0)
    os.chmod(f"{stage.root}/dir/closed", 0)
    for name in ("dir", "absolute", "file", "never-there"):
        remove_tree(stage.fd, name)
        assert not os.path.lexists(f"{stage.root}/{name}")


def test_remove_tree_of_any_depth(stage: Stage) -> None:
    fd = os.dup(stage.fd)
    for _ in range(3000):  # no path could name the end
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(stage.fd, "d")
    assert not os.path.lexists(f"{stage.root}/d")
    assert len(os.listdir("/proc/self/fd")) == before


def test_empty_directory_keeps_it(stage: Stage) -> None:
    empty_directory(stage.fd, "dir")
    assert os.listdir(f"{stage.root}/dir") == []


def test_only_plain_names_are_removed(stage: Stage) -> None:
    for name in ("", ".", "..", "a/b"):
        with pytest.raises(SafetyViolation):
            remove_tree(stage.fd, name)


@needs_root
@pytest.mark.parametrize("kind", ["bind", "tmpfs", "file"])
def test_remove_tree_crosses_no_mount(stage: Stage, kind: str) -> None:
    target = f"{stage.root}/dir/sub"
    if kind == "file":
        target = f"{stage.root}/dir/inner"
        mount(f"{stage.outside}/secret", target, None, MS_BIND)
    else:
        os.mkdir(target)
        if kind == "bind":
            mount(stage.outside, target, None, MS_BIND)
        else:
            mount("tmpfs", target, "tmpfs", 0)
    try:
        with pytest.raises(SafetyViolation, match="mounted"):
            remove_tree(stage.fd, "dir")
    finally:
        umount2(target, MNT_DETACH)
    assert os.listdir(stage.outside) == ["secret"]


@needs_root
def test_without_the_rule_the_mount_is_emptied(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is what protects: with RESOLVE_NO_XDEV off, a bind mount's content goes."""
    os.mkdir(f"{stage.root}/precious")
    with open(f"{stage.root}/precious/file", "w", encoding="utf-8"):
        pass
    os.mkdir(f"{stage.root}/dir/sub")
    mount(f"{stage.root}/precious", f"{stage.root}/dir/sub", None, MS_BIND)
    monkeypatch.setattr(path_module, "RESOLVE_NO_XDEV", 0)
    try:
        with pytest.raises(SafetyViolation):
            remove_tree(stage.fd, "dir")  # the mount point itself is busy
    finally:
        umount2(f"{stage.root}/dir/sub", MNT_DETACH)
    assert os.listdir(f"{stage.root}/precious") == []

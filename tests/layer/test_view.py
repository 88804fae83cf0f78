"""Looking into stacked layers without mounting them: links, whiteouts, opaque directories, and what is never opened."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest
from trees import ROOT, needs_root, scratch

from knarr.base.errors import FileError, NotFound
from knarr.layer.view import MergedView

if TYPE_CHECKING:
    from collections.abc import Iterator

OPAQUE = "trusted.overlay.opaque" if ROOT else "user.overlay.opaque"


class Stack:
    """Three layers, bottom first: ``a``, ``b``, ``c``."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.outside = f"{top}/outside"
        for name in ("outside", "a", "b", "c"):
            os.mkdir(f"{top}/{name}")
        self.put("outside/secret", b"secret")

    def put(self, path: str, data: bytes = b"") -> None:
        os.makedirs(os.path.dirname(f"{self.top}/{path}"), exist_ok=True)
        with open(f"{self.top}/{path}", "wb") as stream:
            stream.write(data)

    def link(self, path: str, target: str) -> None:
        os.symlink(target, f"{self.top}/{path}")

    def white(self, path: str) -> None:
        os.mknod(f"{self.top}/{path}", stat.S_IFCHR, 0)

    def opaque(self, path: str) -> None:
        os.makedirs(f"{self.top}/{path}", exist_ok=True)
        os.setxattr(f"{self.top}/{path}", OPAQUE, b"y")

    def view(self) -> MergedView:
        return MergedView.of_paths([f"{self.top}/{name}" for name in "cba"])


@pytest.fixture
def stack() -> Iterator[Stack]:
    with scratch() as top:
        yield Stack(top)


def test_the_top_layer_wins(stack: Stack) -> None:
    stack.put("a/etc/passwd", b"a")
    stack.put("b/etc/passwd", b"b")
    stack.put("a/etc/only", b"a")
    with stack.view() as view:
        assert view.read_file("/etc/passwd", 10) == b"b"
        assert view.read_file("etc//./only", 10) == b"a"
        with pytest.raises(NotFound, match="etc/none in the image"):
            view.read_file("etc/none", 10)


def test_links_resolve_across_layers_and_inside(stack: Stack) -> None:
    stack.put("a/usr/etc/passwd", b"real")
    stack.link("b/etc", "usr/etc")
    os.mkdir(f"{stack.top}/c/x")
    stack.link("c/x/abs", "/etc/passwd")
    stack.link("c/x/rel", "../../../../etc/passwd")
    stack.link("c/x/out", f"{stack.outside}/secret")
    stack.link("c/loop", "loop")
    stack.link("c/up", "..")
    stack.put("c/file", b"")
    stack.link("c/x/through", "../file/../etc/passwd")
    with stack.view() as view:
        for name in ("etc/passwd", "x/abs", "x/rel", "x/../etc/passwd", "../../etc/passwd", "up/up/etc/passwd"):
            assert view.read_file(name, 10) == b"real"
        with pytest.raises(NotFound):
            view.read_file("x/out", 10)
        with pytest.raises(FileError, match="symbolic links"):
            view.read_file("loop", 10)
        for name in ("file/x", "x/through", "x/abs/y"):
            with pytest.raises(FileError, match="not a directory"):
                view.read_file(name, 10)


def test_whiteouts_and_opaque_directories(stack: Stack) -> None:
    for name in ("a/d/hidden", "a/d/kept", "a/o/hidden", "a/gone/x", "a/was/dir"):
        stack.put(name, b"a")
    os.mkdir(f"{stack.top}/b/d")
    stack.white("b/d/hidden")
    stack.white("b/gone")
    stack.opaque("b/o")
    stack.put("b/o/new", b"b")
    stack.put("b/was", b"a file now")
    stack.put("c/gone/y", b"c")
    stack.put("c/was/dir2", b"c")
    with stack.view() as view:
        for name in ("d/hidden", "o/hidden", "gone/x", "was/dir"):
            with pytest.raises(NotFound):
                view.read_file(name, 10)
        for name in ("d/kept", "o/new", "gone/y", "was/dir2"):
            assert view.read_file(name, 10)


def test_only_regular_files_are_opened(stack: Stack) -> None:
    os.mkfifo(f"{stack.top}/c/fifo")
    os.mkdir(f"{stack.top}/c/dir")
    stack.put("c/big")
    os.truncate(f"{stack.top}/c/big", 64 << 20)
    start = time.monotonic()
    with stack.view() as view:
        for name in ("fifo", "dir", ""):
            with pytest.raises(FileError, match="not a regular file"):
                view.read_file(name, 10)
        with pytest.raises(FileError, match="67108864 bytes, at most 1048576"):
            view.read_file("big", 1 << 20)
    assert time.monotonic() - start < 1


@needs_root
def test_devices_are_not_opened(stack: Stack) -> None:
    os.mknod(f"{stack.top}/c/zero", 0o20666, os.makedev(1, 5))
    stack.link("c/passwd", "zero")
    with stack.view() as view, pytest.raises(FileError, match="not a regular file"):
        view.read_file("passwd", 10)


def test_what_is_swapped_after_the_look_is_noticed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.put("c/file", b"one")
    stack.put("c/other", b"two")
    real = MergedView.resolve

    def swapped(view: MergedView, path: str) -> object:
        found = real(view, path)
        os.rename(f"{stack.top}/c/other", f"{stack.top}/c/file")
        return found

    monkeypatch.setattr(MergedView, "resolve", swapped)
    with stack.view() as view, pytest.raises(FileError, match="changed while"):
        view.read_file("file", 10)


def test_many_layers_and_depth_need_few_descriptors() -> None:
    with scratch() as top:
        paths = []
        for number in range(100):
            paths.append(f"{top}/{number}")
            os.makedirs(f"{top}/{number}/{'d/' * 60}")
        with open(f"{top}/0/{'d/' * 60}f", "wb") as stream:
            stream.write(b"x")
        before = len(os.listdir("/proc/self/fd"))
        with MergedView.of_paths(paths) as view:
            for _ in range(3):
                assert view.read_file("d/" * 60 + "f", 10) == b"x"
                for depth in range(60):
                    assert view.lookup(("d/" * depth + "d").encode()) is not None
                assert len(os.listdir("/proc/self/fd")) - before < 550
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_layer_is_an_error(stack: Stack) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match="cannot read"):
        MergedView.of_paths([f"{stack.top}/a", f"{stack.top}/none"])
    assert len(os.listdir("/proc/self/fd")) == before

"""An image mounted from an index of its tars is the tree that unpacking gives, entry by entry."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import tempfile
from contextlib import contextmanager
from errno import ENOTBLK
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from tarbuilder import base256, c, d, f, gnu, h, header, s, tar, x
from test_modes_agree import STACKS, merge
from trees import differences, needs_root, tree

from knarr.base.errors import FormatError, KernelError, Unsupported
from knarr.kernel import mount as m
from knarr.layer.erofs import write
from knarr.layer.erofsview import ErofsView
from knarr.layer.model import Model
from knarr.layer.unpack import remove_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
from_files = pytest.mark.skipif(
    KERNEL < (6, 12) or "erofs" not in Path("/proc/filesystems").read_text(),
    reason="this kernel does not mount EROFS from files (Linux 6.12)",
)


@contextmanager
def scratch() -> Iterator[str]:
    """A fresh directory on a disk: EROFS is not mounted from files in memory."""
    path = tempfile.mkdtemp(prefix="knarr-test-", dir="/var/tmp")
    try:
        yield path
    finally:
        remove_path(path)


def index(layers: Sequence[bytes]) -> bytes:
    """The index of layers given as tars."""
    model = Model()
    for layer in layers:
        model.apply(io.BytesIO(layer))
    out = io.BytesIO()
    write(model, [len(layer) for layer in layers], out)
    return out.getvalue()


@contextmanager
def mounted(layers: Sequence[bytes], top: str) -> Iterator[str]:
    """The index of these layers, mounted."""
    fd = m.fsopen("erofs")
    try:
        Path(f"{top}/index").write_bytes(index(layers))
        m.fsconfig(fd, m.FSCONFIG_SET_STRING, "source", f"{top}/index")
        for number, layer in enumerate(layers):
            Path(f"{top}/{number}.tar").write_bytes(layer)
            m.fsconfig(fd, m.FSCONFIG_SET_STRING, "device", f"{top}/{number}.tar")
        try:
            m.fsconfig(fd, m.FSCONFIG_CMD_CREATE)
        except KernelError as error:
            if error.errno == ENOTBLK:
                pytest.skip("EROFS is not mounted from files in the file system of /var/tmp")
            raise
        tree_fd = m.fsmount(fd)
    finally:
        os.close(fd)
    place = f"{top}/mounted"
    os.mkdir(place)
    try:
        m.move_mount(tree_fd, "", -100, place, m.MOVE_MOUNT_F_EMPTY_PATH)
        yield place
    finally:
        os.close(tree_fd)
        try:
            m.umount2(place, m.MNT_DETACH)
        except KernelError:
            pass  # it was not mounted


@needs_root
@from_files
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS)
@example([[]])
@example([[d("a"), f("a/b", b"1")], [f(".wh.a"), f("a/c", b"2")]])
@example([[f("a", b"1" * 600), h("b", "a")], [f("a", b"2")], [h("c", "b")]])
@example([[s("a", "t" * 600), s("b", "t" * 4000)], [s("c", "t" * n) for n in range(1, 300)]])
@example([[f(f"a/{n}" + "n" * (n % 240), b"%d" % n) for n in range(1000)]])
def test_mounted_is_merged(stack: list[list[bytes]]) -> None:
    with scratch() as top:
        root = f"{top}/merged"
        os.mkdir(root)
        layers = [tar(*layer) for layer in stack]
        if merge(stack, root):
            with pytest.raises(FormatError):
                index(layers)
            return
        with mounted(layers, top) as place:
            expected = tree(root)
            assert differences(tree(place), expected) == []
            with ErofsView(f"{top}/index", [f"{top}/{number}.tar" for number in range(len(layers))]) as view:
                for path, item in expected.items():
                    if item.kind == "link":
                        continue
                    canonical, found = view.resolve(path)
                    assert (found.mode & 0o7777, found.uid, found.gid) == (item.mode, *item.owner)
                    assert canonical == os.fsencode("" if path == "." else path)
                    if item.kind == "file":
                        with open(f"{root}/{path}", "rb") as stream:
                            assert view.read_file(path, 1000) == stream.read()


@needs_root
@from_files
def test_every_kind_and_attribute() -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    acl = bytes.fromhex("02000000 01000600ffffffff 0200040001000000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
    layer = [
        d("./", 0o1751, mtime=base256(-5, 12), uid=3, gid=70000),
        x(("SCHILY.xattr.user.a", "1"), ("SCHILY.xattr.user.empty", ""), ("mtime", "1234567890.987654321"))
        + f("few", b"x"),
        x(*((f"SCHILY.xattr.user.{n}", "v" * n) for n in range(60))) + f("many", b"y" * 100_000, mode=0o4711),
        x(("SCHILY.xattr.security.capability", capability)) + f("capable", b"z", uid=65_534, gid=base256(1 << 30, 8)),
        x(("SCHILY.xattr.system.posix_acl_access", acl)) + f("shared", b"z", mode=0o644),
        x(("SCHILY.xattr.trusted.overlay.opaque", "y"), ("SCHILY.xattr.user.k", "v")) + d("marked"),
        x(("SCHILY.xattr.user.k", "v")) + d("dir", 0o2775),
        c("null", 1, 3, mode=0o666),
        c("disk", 259, 70_000, b"4"),
        header(b"pipe", b"6", mode=0o600),
        f("empty"),
        f("exact", bytes(range(256)) * 2),
        f("large", os.urandom(5_000_001)),
        s("link", "few"),
        h("same", "few"),
        f("ünï/\udcff".encode("utf-8", "surrogateescape"), b"1"),
        gnu(b"L", b"n" * 255) + f("n", b"2"),
    ]
    with scratch() as top:
        root = f"{top}/merged"
        os.mkdir(root)
        assert not merge([layer], root)
        with mounted([tar(*layer)], top) as place:
            expected = tree(root)
            assert differences(tree(place), expected) == []
            assert len(expected) == len(layer) + 1
            assert dict(expected["few"].xattrs) == {"user.a": b"1", "user.empty": b""}


@needs_root
@from_files
def test_sparse_files_have_their_holes(tmp_path: Path) -> None:
    """GNU tar's three sparse formats, with holes at the start, in the middle and at the end."""
    files = tmp_path / "files"
    files.mkdir()
    for name, parts, size in (
        ("middle", [(0, b"a" * 4096), (1 << 20, b"b" * 8192)], (1 << 20) + 8192),
        ("start", [(3 << 20, b"c" * 5000)], (3 << 20) + 5000),
        ("end", [(4096, b"d" * 4096)], 5 << 20),
        ("nothing", [], 1 << 24),
    ):
        with (files / name).open("wb") as out:
            for offset, data in parts:
                out.seek(offset)
                out.write(data)
            out.truncate(size)
    for sparse in ("--format=gnu", "--format=pax --sparse-version=0.1", "--format=pax --sparse-version=1.0"):
        packed = subprocess.run(
            ["tar", "-C", str(files), "-cS", *sparse.split(), "."], capture_output=True, check=True
        ).stdout
        with scratch() as top, mounted([packed], top) as place:
            for file in files.iterdir():
                assert (Path(place) / file.name).read_bytes() == file.read_bytes(), (sparse, file.name)


def test_holes_that_are_no_blocks_are_refused() -> None:
    sparse = (
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "1"),
        ("GNU.sparse.name", "odd"),
        ("GNU.sparse.size", "2000"),
        ("GNU.sparse.map", "100,50,700,20"),
    )
    with pytest.raises(Unsupported, match="holes are not made of whole blocks"):
        index([tar(x(*sparse) + f("odd", b"1" * 70))])


def test_the_same_layers_give_the_same_bytes() -> None:
    layers = [tar(d("b"), f("b/x", b"1"), f("a", b"2")), tar(f("b/.wh.x"), f("c", b"3"))]
    assert index(layers) == index(layers)

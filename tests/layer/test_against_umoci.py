"""Images that other tools wrote, unpacked by knarr and by umoci: the trees are equal, entry by entry.

Written by umoci and buildah, stored as gzip, zstd and plain; busybox and a Debian from mmdebstrap; with whiteouts,
opaque directories, hard links, capabilities, setuid, FIFOs, odd names and owners. The same layers mounted by
overlayfs give the same tree once more. Then any stack of layers that hypothesis thinks of, unpacked by both.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from tarbuilder import d, f, h, members, s, tar
from test_erofs import from_files, mounted
from test_erofs import scratch as on_disk
from test_modes_agree import STACKS, merge
from trees import differences, needs_root, overlay, scratch, tree

from knarr.content.compress import decompressor
from knarr.content.store import Store
from knarr.layer.snapshot import Snapshots
from knarr.layer.source import Layer, layers_of
from knarr.layer.unpack import materialise
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = needs_root

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
IMAGES = ("umoci-gzip", "umoci-zstd", "umoci-plain", "buildah-gzip", "buildah-plain", "debian-gzip", "debian-zstd")


def call(*command: str | Path) -> str:
    """Run a program of somebody else's; skips the test when it is missing or does not work here."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    words = [str(word) for word in command[1:]]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"{command[0]} {' '.join(words)[:100]} fails here: {done.stderr.strip()[-300:]}")
    return done.stdout


def furnish(root: Path) -> None:
    """A first layer that uses what tar can hold."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        pytest.skip("busybox-static is not installed")
    for name in ("bin", "etc", "tmp", "data/deep/er", "gone/dir", "opaque/sub", "usr/lib", "set"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "lib").symlink_to("usr/lib")
    (root / "bin/sh").symlink_to("busybox")
    (root / "bin/abs").symlink_to("/bin/busybox")
    (root / "usr/lib/libx").write_text("x\n")
    for name in ("data/file", "data/removed", "gone/dir/file", "opaque/a", "opaque/sub/b", "set/user"):
        (root / name).write_text(f"first {name}\n")
    os.link(root / "data/file", root / "data/hardlink")
    os.mkfifo(root / "data/fifo", 0o620)
    os.mknod(root / "data/null", 0o20666, os.makedev(1, 3))
    (root / os.fsdecode(b"data/odd\xff\n name")).write_text("odd\n")
    (root / ("data/" + "long" * 40)).write_text("long\n")
    (root / "tmp").chmod(0o1777)
    os.chown(root / "set", 7, 8)
    (root / "set").chmod(0o2775)
    os.chown(root / "set/user", 1000, 1001)
    (root / "set/user").chmod(0o4755)
    os.setxattr(root / "set/user", "security.capability", CAPABILITY)
    os.setxattr(root / "data/file", "user.colour", b"blue\0\xff")
    os.setxattr(root / "data", "user.kind", b"directory")
    with (root / "data/sparse").open("wb") as stream:
        stream.truncate(1 << 20)
        stream.seek(1 << 19)
        stream.write(b"middle")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(1_600_000_000_123456789, 1_600_000_000_123456789), follow_symlinks=False)


def change(root: Path) -> None:
    """What a second layer does to it."""
    (root / "data/removed").unlink()
    shutil.rmtree(root / "gone/dir")
    (root / "gone/dir").write_text("a file now\n")
    shutil.rmtree(root / "opaque")
    (root / "opaque").mkdir()
    (root / "opaque/new").write_text("second\n")
    os.link(root / "data/file", root / "data/deep/second-link")
    (root / "lib/liby").write_text("through the link\n")
    (root / "bin/abs").unlink()
    (root / "bin/abs").mkdir()
    (root / "bin/abs/inside").write_text("a directory where a link was\n")
    (root / "set/user").chmod(0o711)
    os.removexattr(root / "data", "user.kind")


def with_umoci(folder: Path) -> Path:
    layout, bundle = folder / "umoci", folder / "bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:t")
    for step in (furnish, change, lambda root: (root / "third").write_text("3\n")):
        call("umoci", "unpack", "--image", f"{layout}:t", bundle)
        step(bundle / "rootfs")
        call("umoci", "repack", "--image", f"{layout}:t", bundle)
        shutil.rmtree(bundle)
    return layout


def with_buildah(folder: Path) -> Path:
    options = ["--root", f"{folder}/buildah", "--runroot", f"{folder}/buildah-run", "--storage-driver", "vfs"]
    root, layout = folder / "tree", folder / "buildah-layout"
    root.mkdir()
    furnish(root)
    (root / "data/fifo").unlink()  # buildah's copier refuses FIFOs
    (root / "data/null").unlink()  # and changes devices
    name = call("buildah", *options, "from", "scratch").strip()
    call("buildah", *options, "add", "--quiet", name, root, "/")
    call("buildah", *options, "commit", "--quiet", name, "one")
    call("buildah", *options, "rm", name)
    name = call("buildah", *options, "from", "--pull=never", "localhost/one").strip()
    change(Path(call("buildah", *options, "mount", name).strip()))
    call("buildah", *options, "umount", name)
    call("buildah", *options, "commit", "--format", "oci", "--quiet", name, f"oci:{layout}:t")
    call("buildah", *options, "rm", name)
    return layout


def with_debian(folder: Path) -> Path:
    """A real Debian, and a layer upon it. The tree is made once for all runs on this machine."""
    cache = Path(tempfile.gettempdir(), f"knarr-test-debian-{os.geteuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    facts = cache.lstat()
    assert (facts.st_uid, facts.st_mode & 0o777) == (os.geteuid(), 0o700), "somebody else's directory"
    archive = cache / "minbase.tar"
    if not archive.exists():
        fresh = cache / f"fresh-{secrets.token_hex(4)}.tar"
        try:
            call("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", fresh)
            fresh.rename(archive)
        finally:
            fresh.unlink(missing_ok=True)
    layout, bundle = folder / "debian", folder / "debian-bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:t")
    call("umoci", "raw", "add-layer", "--image", f"{layout}:t", archive)
    call("umoci", "unpack", "--image", f"{layout}:t", bundle)
    root = bundle / "rootfs"
    shutil.rmtree(root / "usr/share/doc")
    shutil.rmtree(root / "var/lib/apt")
    (root / "usr/share/doc").mkdir()
    (root / "usr/share/doc/README").write_text("gone\n")
    (root / "bin/extra").write_text("#!/bin/sh\n")
    os.link(root / "usr/bin/perl", root / "usr/local/bin/perl")
    os.setxattr(root / "usr/bin/env", "security.capability", CAPABILITY)
    call("umoci", "repack", "--image", f"{layout}:t", bundle)
    shutil.rmtree(bundle)
    return layout


def recompressed(folder: Path, layout: Path, kind: str) -> Path:
    """The same image with other layers' bytes, by skopeo."""
    target, between = folder / f"{layout.name}-{kind}", folder / f"{layout.name}-dir"
    copy = ("skopeo", "--insecure-policy", "copy")
    if not between.exists():
        call(*copy, "--dest-decompress", f"oci:{layout}:t", f"dir:{between}")
    options = ("--dest-compress", "--dest-compress-format", "zstd") if kind == "zstd" else ()
    call(*copy, *options, f"dir:{between}", f"oci:{target}:t")
    return target


@pytest.fixture(scope="module")
def image() -> Iterator[Callable[[str], Path]]:
    """name -> layout with the image tagged ``t``, made once."""
    makers = {"umoci": with_umoci, "buildah": with_buildah, "debian": with_debian}
    made: dict[str, Path] = {}
    with scratch() as top:

        def image(name: str) -> Path:
            if name not in made:
                who, kind = name.split("-")
                gzip = f"{who}-gzip"
                if name == gzip:
                    made[name] = makers[who](Path(top))
                else:
                    made[name] = recompressed(Path(top), image(gzip), kind)
            return made[name]

        yield image


def layers(layout: Path) -> list[Layer]:
    store = Store.open(str(layout), create=False)
    manifest = json.loads(store.read_blob(store.resolve("t")))
    return layers_of(store, manifest, json.loads(store.read_blob(manifest["config"])))


@pytest.mark.parametrize("name", IMAGES)
def test_the_tree_is_umocis(name: str, image: Callable[[str], Path]) -> None:
    layout = image(name)
    with scratch() as top:
        assert materialise(layers(layout), f"{top}/ours") == ()
        # This umoci reads no zstd; the image is the same one.
        readable = image(name.replace("zstd", "gzip"))
        call("umoci", "unpack", "--image", f"{readable}:t", f"{top}/theirs")
        theirs = tree(f"{top}/theirs/rootfs")
        assert len(theirs) > 20
        assert differences(tree(f"{top}/ours"), theirs) == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_mounted_layers_are_the_merged_tree(name: str, image: Callable[[str], Path]) -> None:
    stack = layers(image(name))
    with scratch() as top:
        materialise(stack, f"{top}/merged")
        snapshots = Snapshots(f"{top}/store/snapshots")
        chain = snapshots.ensure(stack)
        lowers = snapshots.lowers(chain)
        assert len(lowers) == len(stack)
        with overlay(lowers, top) as mounted:
            # Overlayfs copies a file up when a later layer links to it; the other names keep the old inode.
            assert differences(tree(mounted), tree(f"{top}/merged"), ignore=["links"]) == []


@from_files
@pytest.mark.parametrize("name", IMAGES)
def test_the_index_mounted_is_the_merged_tree(name: str, image: Callable[[str], Path]) -> None:
    plain = [decompressor(layer.open(), layer.media_type).readall() for layer in layers(image(name))]
    with scratch() as top, on_disk() as place, mounted(plain, place) as root:
        materialise(layers(image(name)), f"{top}/merged")
        assert differences(tree(root), tree(f"{top}/merged")) == []


def write_layout(stack: Sequence[list[bytes]], layout: Path) -> None:
    """An image of these layers, uncompressed, tagged ``t``."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [put(tar(*layer), mediatypes.LAYER) for layer in stack]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    made = put(json.dumps(config).encode(), mediatypes.CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": made, "layers": layers}
    entry = put(json.dumps(manifest).encode(), mediatypes.MANIFEST)
    entry["annotations"] = {mediatypes.REF_NAME: "t"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def is_told_apart(stack: Sequence[list[bytes]], *, refused: bool) -> bool:
    """What one of us takes and the other does not, and why; everything else is taken or refused by both.

    Umoci takes a hard link's old name away before it links: with one name for both, nothing is left to link to. (The
    name may be spelled through a link, so the last parts are compared.) And it follows ``/b/../a`` by its text, where
    we, as the kernel, ask that there be a directory ``/b``.
    """
    entries = [entry for layer in stack for member in layer for entry in members(member)]
    if refused:
        return any(entry.issym() and "/../" in entry.linkname for entry in entries)
    return any(entry.islnk() and Path(entry.name).name == Path(entry.linkname).name for entry in entries)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS)
@example([[d("a"), f("a/b", b"1")], [f("a/c", b"2"), f(".wh.a")]])
@example([[f("a/b", b"1"), s("c", "a")], [f("c/d", b"2")], [f("c/.wh.b")]])
@example([[f("a/b/c", b"1")], [f("a/b/.wh.c"), f("a/.wh..wh..opq"), f("a/x")]])
@example([[f("a", b"1")], [h("b", "a"), f(".wh.a")]])
@example([[h("a", "b")]])
@example([[f("a"), h("a", "a")]])
@example([[s("a", "/b/../c"), f("a/c")]])
def test_any_stack_of_layers_is_umocis(stack: list[list[bytes]]) -> None:
    begun = time.time_ns() - 1_000_000_000  # the kernel's clock for files lags by a tick
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    with scratch() as top:
        ours, theirs, layout = Path(top, "ours"), Path(top, "theirs"), Path(top, "layout")
        ours.mkdir()
        refused = merge(stack, str(ours))
        write_layout(stack, layout)
        command = ["umoci", "raw", "unpack", "--image", f"{layout}:t", str(theirs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if bool(done.returncode) != bool(refused):
            assert is_told_apart(stack, refused=bool(refused)), (refused, done.stderr)
            return
        if refused:
            return
        expected = tree(str(theirs))
        found = tree(str(ours))
        for path, item in expected.items():
            # A directory that no layer has an entry for: umoci leaves it the time of unpacking.
            if item.kind == "directory" and item.mtime >= begun and path in found:
                found[path] = found[path]._replace(mtime=item.mtime)
        assert differences(found, expected) == []

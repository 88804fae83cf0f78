"""Unpacked, changed, packed again: the new image is the changed directory, and nothing that did not change is in its layer."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import flat, layout, opened, paths, sha256
from tarbuilder import c, d, f, h, s, x
from trees import differences, needs_root, scratch, tree

from knarr.base.errors import FileError, FormatError, NotFound
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.pack import RECORD, repack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.engine.imaging.pack import Repacked

    Cli = Callable[..., tuple[int, str, str]]

LAYER = [
    d("./", 0o755, mtime=5), d("a", mtime=7), d("a/b", 0o711), f("a/x", b"xx"), f("a/b/y", b"y" * 3000, mode=0o4755),
    f("h1", b"hard"), h("h2", "h1"), s("l", "a/x"), s("dir", "a"), d("empty"), f(b"odd\xff\n", b"o"),
]  # fmt: skip
ROOTLY = [
    *LAYER, f("theirs", b"t", uid=1000, gid=100), c("null", 1, 3),
    x(("SCHILY.xattr.user.k", "v")) + f("attr", b"1"),
]  # fmt: skip


def ready(path: Path, *layers: list[bytes]) -> tuple[str, Path]:
    """A reference, and the directory it was unpacked to."""
    ref = layout(path / "layout", *layers or ((ROOTLY if os.geteuid() == 0 else LAYER),))
    unpack(Image.open(ref), str(path / "out"))
    return ref, path / "out"


def names(done: Repacked) -> list[str]:
    return [os.fsdecode(entry.name) for entry in done.image.layers[-1].entries()]


def unpacked(image: Image, path: Path) -> dict[str, Any]:
    unpack(image, str(path))
    found = tree(str(path))
    shutil.rmtree(path)
    return found


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_changed_is_no_layer(strict: bool, tmp_path: Path) -> None:
    ref, out = ready(tmp_path)
    done = repack(str(out), strict=strict)
    assert (done.made, done.hidden, done.warnings) == (0, 0, ())
    assert done.image.digest == Image.open(ref).digest


def change(out: Path) -> None:
    (out / "a" / "x").write_bytes(b"new")
    (out / "a" / "b" / "y").unlink()
    (out / "added").mkdir()
    (out / "added" / "deep").write_bytes(b"d" * 70_000)
    (out / "l").unlink()
    (out / "l").symlink_to("nowhere")
    shutil.rmtree(out / "empty")
    (out / "empty").write_bytes(b"a file now")
    os.link(out / "added" / "deep", out / "again")
    (out / "h1").unlink()
    os.mkfifo(out / "pipe")
    os.setxattr(out / "added", "user.d", b"1")


@pytest.mark.parametrize("strict", [False, True])
def test_what_changed_is_the_layer(strict: bool, tmp_path: Path) -> None:
    _ref, out = ready(tmp_path)
    change(out)
    done = repack(str(out), strict=strict)
    assert differences(unpacked(done.image, tmp_path / "again"), tree(str(out))) == []
    expected = ["./", "a/b", "a/b/.wh.y", "added", ".wh.h1", "pipe", "l", "a/x", "added/deep", "empty", "again"]
    if not strict:
        expected.append("h2")  # the kernel gave it a new change time when its other name went
    assert sorted(name.rstrip("/") for name in names(done)) == sorted(name.rstrip("/") for name in expected)
    assert done.hidden == 2


def test_same_content_with_another_inode(tmp_path: Path) -> None:
    ref, out = ready(tmp_path)
    facts = os.stat(out / "a" / "x")
    folder = os.stat(out / "a")
    shutil.copy2(out / "a" / "x", out / "a" / "copy")
    os.chown(out / "a" / "copy", facts.st_uid, facts.st_gid)
    os.rename(out / "a" / "copy", out / "a" / "x")
    os.utime(out / "a", ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert names(repack(str(out))) == ["a/x"]
    assert repack(str(out), strict=True).image.digest == Image.open(ref).digest


def test_content_changed_behind_the_clock(tmp_path: Path) -> None:
    """Size and modification time as before: the change time still tells."""
    _ref, out = ready(tmp_path)
    facts = os.stat(out / "a" / "x")
    (out / "a" / "x").write_bytes(b"zz")
    os.utime(out / "a" / "x", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    for strict in (False, True):
        done = repack(str(out), strict=strict)
        assert names(done) == ["a/x"]
        assert flat(done.image)["a/x"].digest == sha256(b"zz")


def test_the_record_must_be_there_or_a_base_named(tmp_path: Path) -> None:
    ref, out = ready(tmp_path)
    (tmp_path / f"out.{RECORD}").unlink()
    with pytest.raises(NotFound, match="--base"):
        repack(str(out))
    assert repack(str(out), base=ref).made == 0
    (out / "new").write_bytes(b"1")
    assert names(repack(str(out), base=ref)) == ["./", "new"]
    (tmp_path / f"out.{RECORD}").write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="no record"):
        repack(str(out))


def test_the_image_is_found_after_its_name_moved(tmp_path: Path) -> None:
    ref, out = ready(tmp_path)
    old = Image.open(ref)
    old.with_config(user="9").save(ref)
    with pytest.raises(NotFound, match="--base"):  # no entry of index.json has it any more
        repack(str(out))
    old.save(f"oci:{tmp_path}/layout:kept")
    assert repack(str(out)).image.digest == old.digest


def test_masks_and_volumes(tmp_path: Path) -> None:
    ref = layout(tmp_path / "layout", [d("a"), d("data"), f("data/x")], config={"config": {"Volumes": {"/data": {}}}})
    unpack(Image.open(ref), str(tmp_path / "out"))
    for name in ("a/one", "data/two", "three"):
        (tmp_path / "out" / name).write_bytes(b"1")
    (tmp_path / "out/data/x").unlink()
    for strict in (False, True):
        found = names(repack(str(tmp_path / "out"), strict=strict, masks=["/three"]))
        assert sorted(name.rstrip("/") for name in found) == [".", "a", "a/one"]
        found = names(repack(str(tmp_path / "out"), strict=strict, mask_volumes=False))
        assert "data/.wh.x" in found


def test_refresh(tmp_path: Path) -> None:
    _ref, out = ready(tmp_path)
    (out / "one").write_bytes(b"1")
    repack(str(out), refresh=True).image.save("new:1")
    (out / "two").write_bytes(b"2")
    image = Image.open("new:1")
    record = tmp_path / f"out.{RECORD}"
    head = json.loads(record.read_bytes().partition(b"\n")[0])
    assert head["digest"] == image.digest


def test_what_no_layer_holds(tmp_path: Path) -> None:
    _ref, out = ready(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(out / "sock"))
    done = repack(str(out))
    assert done.warnings == ("sock is a socket and left out",)
    (out / ".wh.x").write_bytes(b"")
    with pytest.raises(FormatError, match="would hide"):
        repack(str(out))


@needs_root
def test_what_is_mounted_there_is_not_packed(tmp_path: Path) -> None:
    from knarr.kernel.mount import MNT_DETACH, mount, umount2

    _ref, out = ready(tmp_path)
    mount("tmpfs", str(out / "empty"), "tmpfs", 0, "")
    try:
        with pytest.raises(FileError, match="unmount it first"):
            repack(str(out))
    finally:
        umount2(str(out / "empty"), MNT_DETACH)


def test_unpack_leaves_no_half(tmp_path: Path) -> None:
    ref = layout(tmp_path / "layout", [f("a", b"1")], kind="")
    blob = tmp_path / "layout/blobs/sha256" / Image.open(ref).layers[0].digest.partition(":")[2]
    blob.write_bytes(blob.read_bytes().replace(b"1", b"2"))
    with pytest.raises(Exception, match="digest"):
        unpack(Image.open(ref), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout"]


def test_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for name in ("one", "two"):
        ref = layout(tmp_path / "layout", LAYER)
        unpack(Image.open(ref), str(tmp_path / name))
        for new in ("z", "y") if name == "one" else ("y", "z"):
            (tmp_path / name / new).write_bytes(new.encode())
            os.utime(tmp_path / name / new, (1, 1))
        os.utime(tmp_path / name, (9, 9))
        digests.append(repack(str(tmp_path / name)).image.digest)
    assert digests[0] == digests[1]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    made = repack(str(tmp_path / "one")).image
    assert {entry.mtime for entry in made.layers[-1].entries()} == {0}


# -- any changes -------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["file", "dir", "link", "symlink", "remove", "chmod", "touch", "move", "attr"]), PATHS, PATHS
    ),
    max_size=8,
)


def act(root: str, step: tuple[str, str, str]) -> None:
    """One change on disk; nothing when it cannot be done."""
    what, one, two = step
    left, right = f"{root}/{one}", f"{root}/{two}"
    try:
        if what == "file":
            Path(left).write_bytes(two.encode())
        elif what == "dir":
            os.mkdir(left)
        elif what == "link":
            os.link(left, right, follow_symlinks=False)
        elif what == "symlink":
            os.symlink(two, left)
        elif what == "remove":
            if os.path.isdir(left) and not os.path.islink(left):
                shutil.rmtree(left)
            else:
                os.unlink(left)
        elif what == "chmod":
            os.chmod(left, 0o700 + len(two), follow_symlinks=os.chmod not in os.supports_follow_symlinks)
        elif what == "touch":
            os.utime(left, ns=(5, len(two)), follow_symlinks=False)
        elif what == "move":
            os.rename(left, right)
        elif what == "attr":
            os.setxattr(left, "user.k", two.encode(), follow_symlinks=False)
    except OSError:
        pass


@needs_root
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, STEPS)
def test_any_change(before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]) -> None:
    with scratch() as top:
        os.mkdir(f"{top}/first")
        for step in before:
            act(f"{top}/first", step)
        base = Image.empty().add(f"{top}/first", "/")
        unpack(base, f"{top}/out")
        for step in after:
            act(f"{top}/out", step)
        wanted = tree(f"{top}/out")
        base.save(f"oci:{top}/layout:v1")
        for number, options in enumerate(({"base": f"oci:{top}/layout:v1"}, {})):
            record = Path(f"{top}/out.{RECORD}")
            record.write_bytes(
                record.read_bytes().replace(b'"reference":""', f'"reference":"oci:{top}/layout:v1"'.encode())
            )
            done = repack(f"{top}/out", **options)  # type: ignore[arg-type]
            unpack(done.image, f"{top}/again{number}")
            assert differences(tree(f"{top}/again{number}"), wanted) == []


# -- as commands -------------------------------------------------------------------------------------------


def test_commands(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "layout", LAYER)
    code, out, _err = cli("image", "unpack", ref, f"{tmp_path}/bundle")
    assert (code, out) == (0, f"{tmp_path}/bundle\n")
    assert sorted(os.listdir(tmp_path / "bundle")) == ["config.json", RECORD, "rootfs"]
    assert json.loads((tmp_path / "bundle/config.json").read_bytes())["root"]["path"] == "rootfs"
    (tmp_path / "bundle/rootfs/new").write_bytes(b"1")
    code, out, err = cli("image", "repack", f"{tmp_path}/bundle", "out:1")
    assert code == 0, err
    assert err == "2 added or changed, 0 removed\n"
    made = Image.open("out:1")
    assert out.strip() == made.digest
    assert "new" in paths(made)
    assert made.layers[-1].history["created_by"] == "knarr image repack"
    assert "does not exist" in cli("image", "repack", f"{tmp_path}/nowhere", "out:1")[2]
    assert cli("image", "unpack", "--bare", ref, f"{tmp_path}/bare")[0] == 0
    assert cli("image", "repack", f"{tmp_path}/bare")[0] == 0
    assert Image.open(ref).digest == opened(tmp_path / "same", LAYER).digest

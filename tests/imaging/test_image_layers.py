"""Layers put on top, taken apart, made one: the trees are what they should be, and the same input gives the same digest."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from imagekit import flat, layout, opened, paths, sha256
from tarbuilder import d, f, h, s, tar
from test_model import items
from test_modes_agree import STACKS
from trees import differences

from knarr.base.errors import FormatError, NotFound, UsageError
from knarr.engine.imaging import layers as layers_room
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.layers import model_of
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

# -- append ------------------------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "xz, two streams and padding": lambda data: lzma.compress(data[:100]) + lzma.compress(data[100:]) + bytes(8),
}


@pytest.mark.parametrize("how", PACKERS)
def test_append_reads_any_compression(how: str, tmp_path: Path) -> None:
    data = tar(f("new", b"x" * 5000), f(".wh.a"))
    (tmp_path / "x").write_bytes(PACKERS[how](data))
    image = opened(tmp_path / "l", [f("a"), f("b")])
    made = image.append(str(tmp_path / "x"))
    assert paths(made) == ["b", "new"]
    assert made.layers[1].diff_id == "sha256:" + sha256(data), "the tar was changed"
    assert made.layers[1].media_type == mediatypes.LAYER_GZIP
    assert made.append(io.BytesIO(data), compression="zstd").layers[2].media_type == mediatypes.LAYER_ZSTD


@pytest.mark.parametrize("how", ["gzip", "zstd", "xz", "bzip2"])
def test_append_refuses_what_is_damaged(how: str, tmp_path: Path) -> None:
    data = PACKERS[how](tar(f("new", os.urandom(9000))))
    image = opened(tmp_path / "l", [f("a")])
    with pytest.raises(FormatError):
        image.append(io.BytesIO(data[:-400]))
    broken = bytearray(data)
    broken[len(data) // 2] ^= 0x55
    with pytest.raises(FormatError):
        image.append(io.BytesIO(bytes(broken)))


@pytest.mark.parametrize("entry", [f("../x"), f("a/../../x"), f(".wh..."), f("a/.wh."), h("x", "../y"), f("x/.wh.y/z")])
def test_append_refuses_what_no_layer_may_hold(entry: bytes, tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")])
    with pytest.raises(FormatError):
        image.append(io.BytesIO(tar(entry)))


def test_append_command(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "x.tar").write_bytes(tar(f("x")))
    code, out, err = cli("image", "append", "--tar", f"{tmp_path}/x.tar", "--created-by", "me", "scratch", "new:1")
    assert (code, err) == (0, "")
    image = Image.open("new:1")
    assert image.digest == out.strip()
    assert paths(image) == ["x"]
    assert image.layers[0].history == {"created_by": "me"}
    assert "name the new image" in cli("image", "append", "--tar", f"{tmp_path}/x.tar", "scratch")[2]
    assert "does not exist" in cli("image", "append", "--tar", f"{tmp_path}/none", "new:1")[2]


# -- add ---------------------------------------------------------------------------------------------------


def tree_on_disk(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "one").write_bytes(b"1")
    (root / "d" / "e" / "two").write_bytes(b"2" * 3000)
    os.link(root / "d" / "one", root / "d" / "same")
    (root / "d" / "link").symlink_to("one")
    (root / "d" / "e" / "two").chmod(0o4711)
    os.mkfifo(root / "d" / "pipe", 0o622)
    os.chmod(root / "d" / "pipe", 0o622)
    for folder, directories, names in os.walk(root, topdown=False):
        for name in (*names, *directories):
            os.utime(f"{folder}/{name}", ns=(10**18 + 7, 10**18 + 7), follow_symlinks=False)


def test_add_a_tree(tmp_path: Path) -> None:
    tree_on_disk(tmp_path / "src")
    image = opened(tmp_path / "l", [d("srv", uid=7)])
    made = image.add(str(tmp_path / "src" / "d"), "/srv/x")
    found = flat(made)
    assert sorted(found) == [
        "",
        "srv",
        *(f"srv/x{end}" for end in ("", "/e", "/e/two", "/link", "/one", "/pipe", "/same")),
    ]
    assert found["srv"].entry.uid == 7
    assert found["srv/x/one"] is found["srv/x/same"]
    two = found["srv/x/e/two"].entry
    assert (two.mode, two.uid, two.mtime, two.size) == (0o4711, 0, 10**18 + 7, 3000)
    assert found["srv/x/link"].entry.link == b"one"
    assert paths(image.add(str(tmp_path / "src" / "d"), "srv/"))[1] == "srv/d"


def test_add_follows_the_images_links(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    image = opened(tmp_path / "l", [d("usr"), d("usr/bin"), s("bin", "usr/bin")])
    assert paths(image.add(str(tmp_path / "x"), "/bin/x")) == ["bin", "usr", "usr/bin", "usr/bin/x"]


def test_add_owner_and_mode(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    image = opened(tmp_path / "l", [f("a")])
    entry = flat(image.add(str(tmp_path / "x"), "/x", owner=(5, 6), mode=0o640))["x"].entry
    assert (entry.uid, entry.gid, entry.mode) == (5, 6, 0o640)
    assert flat(image.add(str(tmp_path / "x"), "/x", owner=None))["x"].entry.uid == os.geteuid()


def test_add_refuses(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")])
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / ".wh.x").write_bytes(b"")
    with pytest.raises(FormatError, match="would hide"):
        image.add(str(tmp_path / "src"), "/d")
    with pytest.raises(NotFound):
        image.add(str(tmp_path / "nothing"), "/d")
    for target in ("../x", "a/../b", "x\0y", "a" * 256):
        with pytest.raises(UsageError):
            image.add(str(tmp_path / "src"), target)


def test_add_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        tree_on_disk(tmp_path / name)
    os.rename(tmp_path / "two" / "d" / "one", tmp_path / "two" / "d" / "zzz")  # another order in the directory
    os.rename(tmp_path / "two" / "d" / "zzz", tmp_path / "two" / "d" / "one")
    os.utime(tmp_path / "two" / "d", ns=(10**18 + 7, 10**18 + 7))
    image = opened(tmp_path / "l", [f("a")])
    made = [image.add(str(tmp_path / name / "d"), "/d") for name in ("one", "two")]
    assert made[0].digest == made[1].digest
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    fixed = image.add(str(tmp_path / "one" / "d"), "/d")
    assert {node.entry.mtime for path, node in flat(fixed).items() if path.startswith("d")} == {1000 * 10**9}
    assert fixed.layers[1].history["created"] == "1970-01-01T00:16:40Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        image.add(str(tmp_path / "one" / "d"), "/d")


def test_add_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")])
    (tmp_path / "x").write_bytes(b"x")
    assert cli("image", "add", "--owner", "3", "--chmod", "0600", ref, f"{tmp_path}/x", "/etc/")[0] == 0
    entry = flat(Image.open(ref))["etc/x"].entry
    assert (entry.uid, entry.gid, entry.mode) == (3, 3, 0o600)
    for words, said in ((["--owner", "x"], "UID:GID"), (["--chmod", "9"], "octal")):
        assert said in cli("image", "add", *words, ref, f"{tmp_path}/x", "/y")[2]


# -- remove ------------------------------------------------------------------------------------------------


def test_remove(tmp_path: Path) -> None:
    stack = [[d("usr"), d("usr/lib"), f("usr/lib/x"), f("usr/lib/y"), s("lib", "usr/lib"), d("e"), f("e/f")]]
    image = opened(tmp_path / "l", *stack)
    assert paths(image.remove(["/lib/x"])) == ["e", "e/f", "lib", "usr", "usr/lib", "usr/lib/y"]
    assert "lib" not in paths(image.remove(["/lib"]))
    assert "usr/lib/x" in paths(image.remove(["/lib"])), "what the link leads to went along"
    both = image.remove(["e/f", "/e"])
    assert [entry.name for entry in both.layers[1].entries()] == [b".wh.e"]
    with pytest.raises(NotFound, match="/nope"):
        image.remove(["/e", "nope"])
    assert image.remove(["nope"], missing=True) is image
    for path in ("/", ".", ""):
        with pytest.raises(UsageError):
            image.remove([path])


def test_remove_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a"), f("b")])
    assert cli("image", "remove", "--to", "out:1", ref, "/a")[0] == 0
    assert paths(Image.open("out:1")) == ["b"]
    assert paths(Image.open(ref)) == ["a", "b"]
    code, out, err = cli("image", "remove", ref, "/zzz")
    assert (code, out) == (125, "")
    assert "/zzz" in err


# -- squash ------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(stack=STACKS, start=st.integers(0, 3))
def test_squash_keeps_the_tree(stack: list[list[bytes]], start: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = opened(tmp_path_factory.mktemp("s"), *stack, kind="")
    start = min(start, len(stack) - 1)
    try:
        before = items(model_of(image, hashed=True))
    except FormatError:
        assume(False)
    made = image.squash(start)
    assert differences(items(model_of(made, hashed=True)), before) == []
    assert len(made.layers) == start + 1
    assert made.layers[:start] == image.layers[:start]
    assert image.squash(start) == made


def test_squash_takes_the_bytes_out(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("secret", b"s" * 9999), f("a")], [f("b")])
    made = image.remove(["/secret"]).squash()
    assert [entry.name for entry in made.layers[0].entries()] == [b"a", b"b"]
    assert len((made.config or {})["history"]) == 1
    with pytest.raises(UsageError, match="no layer 9"):
        image.squash(9)


def test_squash_needs_no_room_for_what_is_gone(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")])
    assert image.squash() is image


def test_squash_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", [f("a")], [f("b")], [f("c")])
    assert cli("image", "squash", "--from", "1", "--compress", "zstd", ref, "out:1")[0] == 0
    made = Image.open("out:1")
    assert [layer.media_type for layer in made.layers] == [mediatypes.LAYER_GZIP, mediatypes.LAYER_ZSTD]
    assert "no layer 7" in cli("image", "squash", "--from", "7", ref)[2]


def test_history_that_does_not_account_for_layers_is_left_alone(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [f("a")], [f("b")], config={"history": [{"created_by": "all of it"}]})
    made = image.squash()
    assert (made.config or {})["history"] == [{"created_by": "all of it"}]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Squashing a layer of 150 MB takes no 150 MB."""
    script = (
        "import sys; from knarr.engine.imaging.image import Image\n"
        "image = Image.open(sys.argv[1]).squash(); assert len(image.layers) == 1\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    ref = layout(tmp_path / "l", [f("big", bytes(150 << 20))], [f("b")], kind="zstd")
    import subprocess

    done = subprocess.run([sys.executable, "-c", script, ref], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 10


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    image = opened(tmp_path / "l", [f("a")], [f("b")]).squash()
    assert list(folder.iterdir()) == []
    assert paths(image) == ["a", "b"]
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(Exception, match="temporary file"):
        opened(tmp_path / "l2", [f("a")], [f("b")]).squash()
    assert layers_room.epoch() is None

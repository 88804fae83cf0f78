"""Each guard of the room, once with the guard off: what it prevents does happen then, so its tests can fail."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tarbuilder import d, f, h, s, tar, x
from trees import ROOT, directory, needs_root, scratch

from knarr.base.errors import DigestMismatch, FileError, FormatError
from knarr.kernel.userns import IdMap
from knarr.layer import snapshot as snapshot_module
from knarr.layer import tree as tree_module
from knarr.layer import whiteout
from knarr.layer.apply import apply_layer
from knarr.layer.snapshot import Snapshots
from knarr.layer.source import Layer
from knarr.layer.tarball import Limits, entries
from knarr.layer.view import MergedView
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = None if ROOT else IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), squash=True)


@pytest.fixture
def place() -> Iterator[str]:
    """A directory with a root to unpack in, and one outside it that only an unguarded unpacking reaches."""
    with scratch() as top:
        os.mkdir(f"{top}/root")
        os.mkdir(f"{top}/outside")
        with open(f"{top}/outside/f", "wb") as stream:
            stream.write(b"keep")
        yield top


def put(place: str, layer: bytes) -> None:
    with directory(f"{place}/root") as fd:
        apply_layer(io.BytesIO(layer), fd, ids=OWN)


def test_parents_are_resolved_beneath_the_root(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(s("l", f"{place}/outside"), f("l/pwn", b"x"))
    put(place, layer)
    assert os.listdir(f"{place}/outside") == ["f"]
    monkeypatch.setattr(tree_module, "BENEATH", 0)
    monkeypatch.setattr(tree_module, "_OPEN", os.O_RDONLY | os.O_DIRECTORY)
    put(place, layer)
    assert sorted(os.listdir(f"{place}/outside")) == ["f", "pwn"]


def test_names_do_not_go_up(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(f("../outside/pwn", b"x"))
    with pytest.raises(FormatError):
        put(place, layer)
    monkeypatch.setattr(tree_module, "components", lambda path: path.split(b"/"))
    monkeypatch.setattr(tree_module, "BENEATH", 0)
    with pytest.raises(FileError):  # the last step, with a guard of its own, notices; too late
        put(place, layer)
    assert sorted(os.listdir(f"{place}/outside")) == ["f", "pwn"]


def test_a_whiteout_hides_a_name_in_its_directory(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(d("a"), f("b"), f("a/.wh..."))
    with pytest.raises(FormatError, match="whiteout"):
        put(place, layer)
    from knarr.kernel import path as path_module
    from knarr.layer import apply as apply_module

    monkeypatch.setattr(apply_module, "hidden_name", lambda base: base[len(whiteout.PREFIX) :])
    hit: list[bytes] = []
    monkeypatch.setattr(tree_module, "remove_tree", lambda _fd, name: hit.append(name))
    put(place, layer)
    assert hit == [b".."]
    # Even then the remover itself refuses.
    with directory(f"{place}/root") as fd, pytest.raises(Exception, match="plain name"):
        path_module.remove_tree(fd, b"..")


def test_hard_links_do_not_follow(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(s("l", f"{place}/outside/f"), h("h", "l"))
    put(place, layer)
    assert os.stat(f"{place}/outside/f").st_nlink == 1
    real = os.link

    def following(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=True)

    monkeypatch.setattr(os, "link", following)
    put(place, layer)
    assert os.stat(f"{place}/outside/f").st_nlink == 2


def test_extension_headers_are_bounded() -> None:
    layer = tar(x(("comment", "c" * (3 << 20))), f("n"))
    with pytest.raises(FormatError, match="at most"):
        list(entries(io.BytesIO(layer)))
    assert len(list(entries(io.BytesIO(layer), limits=Limits(header=4 << 20)))) == 1


@needs_root
def test_the_store_is_closed_to_others() -> None:
    """With the mode off an ordinary user runs an image's setuid program and becomes root."""
    program = next((path for path in ("/usr/bin/id", "/bin/id") if os.path.exists(path)), "")
    if not program:
        pytest.skip("no id program to make setuid")
    import tempfile

    place = tempfile.mkdtemp(prefix="knarr-test-")  # not in memory: that may be mounted without setuid
    try:
        snapshots = Snapshots(f"{place}/s")
        with open(program, "rb") as stream:
            data = tar(f("id", stream.read(), mode=0o4755))
        chain = snapshots.ensure([layer_of(data)])
        os.chmod(place, 0o755)
        command = [f"{snapshots.lowers(chain)[0]}/id", "-u"]

        def as_user() -> str:
            probe = ["/bin/sh", "-c", " ".join(command)]
            done = subprocess.run(
                probe, capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[]
            )
            return done.stdout.strip() or done.stderr.strip()

        assert "permission denied" in as_user().lower()
        for path in (snapshots.path, f"{snapshots.path}/l", os.path.dirname(os.path.realpath(command[0]))):
            os.chmod(path, 0o755)
        os.chmod(os.path.dirname(os.path.dirname(os.path.realpath(command[0]))), 0o755)
        assert as_user() == "0"
    finally:
        from knarr.layer.unpack import remove_path

        remove_path(place)


def layer_of(data: bytes, *, diff: str = "") -> Layer:
    import hashlib

    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Layer(diff or digest, mediatypes.LAYER, len(data), lambda: io.BytesIO(data), "layer")


def test_the_diff_id_is_what_keeps_a_wrong_layer_out(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = Snapshots(f"{place}/s")
    wrong = layer_of(tar(f("n")), diff="sha256:" + "0" * 64)
    with pytest.raises(DigestMismatch):
        snapshots.ensure([wrong])
    assert snapshots.list() == []
    from knarr.layer import source

    class Blind:
        def update(self, _data: bytes) -> None:
            pass

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr(source, "hasher", lambda _algorithm: Blind())
    assert snapshots.has(snapshots.ensure([wrong]))


def test_only_regular_files_are_read(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(f"{place}/root/passwd")
    with MergedView.of_paths([f"{place}/root"]) as view:
        with pytest.raises(Exception, match="not a regular file"):
            view.read_file("passwd", 10)
        monkeypatch.setattr(stat, "S_ISREG", lambda _mode: True)
        assert view.read_file("passwd", 10) == b""  # it was opened


SLOW = """
import io, os, sys
sys.path[:0] = sys.argv[1:3]
from test_guards import layer_of, tar, f
from knarr.layer.snapshot import Snapshots
from knarr.layer.unpack import materialise

class Slow(io.BytesIO):
    def read(self, size=-1):
        import time
        time.sleep(0.02)
        return super().read(4096)

data = tar(*(f(f"f{i}", bytes(3000)) for i in range(2000)))
layers = [layer_of(data).replace(open=lambda: Slow(data)), layer_of(tar(f("x"))), layer_of(data + b"x").replace(open=lambda: Slow(data + b"x"))]
print("go", flush=True)
try:
    if sys.argv[3] == "ensure":
        Snapshots(sys.argv[4] + "/s").ensure(layers)
    else:
        materialise(layers, sys.argv[4] + "/t")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("what", ["ensure", "materialise"])
def test_control_c_leaves_nothing(place: str, what: str) -> None:
    sources = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(snapshot_module.__file__)))]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *sources, what, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out == "interrupted\n"
    assert process.returncode == 0
    left = sorted(name for name in os.listdir(place) if name not in {"root", "outside"})
    if what == "ensure":
        assert left == ["s"]
        assert os.listdir(f"{place}/s/tmp") == os.listdir(f"{place}/s/l") == []
        assert not [name for name in os.listdir(f"{place}/s") if len(name) == 64]
    else:
        assert left == []
    assert stat.S_ISDIR(os.stat(place).st_mode)

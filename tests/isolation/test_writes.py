"""What a container writes to its root is there afterwards, behind each wall, and a hostile guest can do no more."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from behind import ISOLATION, need
from blackbox import left_behind, needs_busybox, needs_root

from knarr.base.errors import KnarrError, SafetyViolation
from knarr.isolation import changes, frames
from knarr.isolation.choose import WRITES
from knarr.isolation.guest import Guest
from knarr.isolation.taking import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blackbox import Bundle, Runtime

    Answer = Callable[[int, int, bytes], tuple[int, bytes]]

WRITING = """
echo new >> /d/a; rm -r /gone /opaque; mkdir /opaque; echo z > /opaque/z; mkdir -p /n/m; echo f > /n/m/f
chown 1000:1001 /n/m/f; chmod 4755 /n/m/f; ln /n/m/f /n/hard; ln -s ../x /n/link; mkfifo /n/fifo; mv /d/e /d/f
dd if=/dev/zero of=/n/sparse bs=1 count=1 seek=300000 2>/dev/null; seq 100000 > /n/big; : > /n/empty
i=0; while [ $i -lt 300 ]; do echo $i > /n/file-with-a-name-that-is-longer-$i; i=$((i+1)); done; exit 5
"""


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """All below a directory: what it is, whose, and what is in it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        facts = path.lstat()
        content: object = None
        if stat.S_ISREG(facts.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path)
        links = 1 if stat.S_ISDIR(facts.st_mode) else facts.st_nlink
        found[str(path.relative_to(top))] = (facts.st_mode, facts.st_uid, facts.st_gid, links, content)
    return found


@needs_busybox
@needs_root
def test_writes_stay(runtime: Runtime, isolated: Bundle) -> None:
    root = isolated.rootfs
    for name in ("seq", "mv", "chmod", "chown", "mkfifo"):
        if not (root / "bin" / name).is_symlink():
            (root / "bin" / name).symlink_to("busybox")
    for name in ("d/e", "gone", "opaque/x"):
        (root / name).mkdir(parents=True)
        (root / name / "there").write_text(name)
    (root / "d/a").write_text("old\n")
    for sort in ("bounding", "effective", "permitted"):
        isolated.config["process"]["capabilities"][sort] += ["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"]
    before = tree(root)
    id = runtime.new_id()
    done = runtime("run", "-b", isolated.write("sh", "-c", WRITING), id)
    assert (done.returncode, done.stderr) == (5, "")
    assert left_behind(runtime, id) == []
    after = tree(root)
    gone = {"gone", "gone/there", "opaque/x", "opaque/x/there", "d/e", "d/e/there"}
    assert before.keys() - after.keys() == gone
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"d/a"}
    assert after["d/a"][4] == b"old\nnew\n"
    assert after["opaque/z"][4] == b"z\n"
    assert after["n/m/f"] == after["n/hard"] == (stat.S_IFREG | 0o4755, 1000, 1001, 2, b"f\n")
    assert after["n/link"][4] == "../x"
    assert stat.S_ISFIFO((root / "n/fifo").lstat().st_mode)
    assert after["n/sparse"][4] == bytes(300001)
    assert after["n/big"][4] == b"".join(b"%d\n" % number for number in range(1, 100001))
    assert {after[f"n/file-with-a-name-that-is-longer-{n}"][4] for n in range(300)} == {b"%d\n" % n for n in range(300)}
    assert after["d/f/there"][4] == b"d/e"


@needs_busybox
def test_they_stay_when_it_is_killed(runtime: Runtime, isolated: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", isolated.write("sh", "-c", "echo one > /tmp/one; sleep 100"), id)
    while runtime("exec", id, "cat", "/tmp/one").stdout != "one\n":
        time.sleep(0.1)
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped", 10)
    assert (isolated.rootfs / "tmp/one").read_text() == "one\n"
    runtime.ok("delete", id)


@pytest.fixture
def fast(bundle: Bundle) -> Bundle:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    return bundle


@needs_busybox
def test_they_are_not_kept_where_nobody_wants_them(runtime: Runtime, fast: Bundle) -> None:
    fast.config["annotations"][WRITES] = "discard"
    assert runtime("run", "-b", fast.write("touch", "/made"), runtime.new_id()).returncode == 0
    assert not (fast.rootfs / "made").exists()
    fast.config["annotations"][WRITES] = "perhaps"
    done = runtime("run", "-b", fast.write("true"), runtime.new_id())
    assert done.returncode != 0
    assert "'perhaps' is not keep or discard" in done.stderr


@needs_busybox
@needs_root
def test_devices_are_left_out_and_that_is_told(runtime: Runtime, fast: Bundle) -> None:
    fast.config["process"]["capabilities"]["effective"].append("CAP_MKNOD")
    fast.config["process"]["capabilities"]["permitted"].append("CAP_MKNOD")
    fast.config["process"]["capabilities"]["bounding"].append("CAP_MKNOD")
    fast.config["linux"]["resources"]["devices"].append({"allow": True, "type": "c", "access": "m"})
    id = runtime.new_id()
    script = "mknod /node c 1 3 && touch /.wh.bin /beside"
    done = runtime("run", "--keep", "-b", fast.write("sh", "-c", script), id)
    assert done.returncode == 0, done.stderr
    reason = runtime.state(id)["reason"]
    assert ".wh.bin is left out" in reason
    assert "device nodes in the container's root are left out" in reason
    assert sorted({path.name for path in fast.rootfs.iterdir()} & {"node", "beside", "bin"}) == ["beside", "bin"]


@needs_busybox
@needs_root
def test_the_roots_disk_is_full(runtime: Runtime, fast: Bundle) -> None:
    """It ends as it would have; that its files are not all there is told."""
    fast.rootfs.rename(fast.path / "small")
    fast.rootfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(fast.rootfs)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{fast.path}/small/.", str(fast.rootfs)], check=True)
        id = runtime.new_id()
        script = "dd if=/dev/zero of=/big bs=1M count=20; exit 3"
        done = runtime("run", "--keep", "-b", fast.write("sh", "-c", script), id)
        assert done.returncode == 3, done.stderr
        assert "could not be kept whole: " in (reason := runtime.state(id)["reason"])
        assert "no space left on device" in reason.lower()
        runtime.ok("delete", id)
    finally:
        subprocess.run(["umount", "-l", str(fast.rootfs)], check=True)


# -- a hostile guest ---------------------------------------------------------------------------------------------------


def row(name: bytes, mode: int, size: int = 0, *, target: bytes = b"", inode: int = 1, links: int = 1) -> bytes:
    facts = (inode, size, 1, 0, mode, 0, 0, links, 0, 0, 0, len(name), len(target))
    return struct.pack("<QQqIIIIIIIIII", *facts) + name + target


class Hostile:
    """The guest's end of a channel, which answers as a test says."""

    def __init__(self, answer: Answer) -> None:
        ours, self._theirs = socket.socketpair()
        ours.setblocking(False)
        self._ours = ours
        self.guest = Guest(ours.fileno())
        hello = b"6.1\0x86_64\0memory\0"
        self._theirs.sendall(struct.pack("<IIII", len(hello), frames.HELLO, 0, frames.PROTOCOL) + hello)
        self.guest.receive()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._theirs.makefile("rb") as file:
            while head := file.read(16):
                length, kind, id, value = struct.unpack("<IIII", head)
                error, data = self._answer(kind, value, file.read(length))
                try:
                    self._theirs.sendall(struct.pack("<IIII", len(data), frames.REPLY, id, error) + data)
                except OSError:
                    return

    def close(self) -> None:
        self._theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[[Answer], tuple[str, ...]]]:
    """Keep what a guest with those answers shows, in ``tmp_path/root``; not more than 1 MiB."""
    (tmp_path / "root").mkdir()
    begun: list[Hostile] = []

    def run(answer: Answer) -> tuple[str, ...]:
        begun.append(Hostile(answer))
        root = opened(str(tmp_path / "root"))
        try:
            return changes.keep(begun[-1].guest, "/upper", root, 1 << 20)
        finally:
            os.close(root)

    yield run
    for each in begun:
        each.close()


FILE, FOLDER, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    "data",
    [
        row(b"..", FOLDER),
        row(b".", FOLDER),
        row(b"", FILE),
        row(b"a/b", FILE),
        row(b"a\0b", FILE),
        row(b"n" * 256, FILE),
        row(b"link", LINK, target=b"a\0b"),
        row(b"cut", FILE)[:-1],
        row(b"cut", FILE)[:20],
        struct.pack("<QQqIIIIIIIIII", 1, 0, 0, 0, FILE, 0, 0, 1, 0, 0, 0, 0xFFFFFFFF, 0) + b"x",
        struct.pack("<QQqIIIIIIIIII", 1, 0, 0, 0xFFFFFFFF, FILE, 0, 0, 1, 0, 0, 0, 1, 0) + b"x",
    ],
)
def test_entries_that_no_directory_has(data: bytes) -> None:
    with pytest.raises(SafetyViolation):
        changes.looked(data, b"folder")


def test_directories_without_an_end(kept: Callable[[Answer], tuple[str, ...]]) -> None:
    with pytest.raises(SafetyViolation, match="its path is too long"):
        kept(lambda *_: (0, row(b"d" * 200, FOLDER)))


def test_a_directory_without_an_end(kept: Callable[[Answer], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_ENTRIES", 5000)
    many = b"".join(row(b"%0200d" % number, FILE) for number in range(240))
    with pytest.raises(KnarrError, match="more than 5000 files"):
        kept(lambda *_: (0, many))


def test_more_than_may_be_kept(kept: Callable[[Answer], tuple[str, ...]]) -> None:
    with pytest.raises(KnarrError, match="larger than 1048576 bytes"):
        kept(
            lambda kind, *_: (
                (0, row(b"a", FILE, 600_000) + row(b"b", FILE, 600_000)) if kind == frames.LOOK else (0, b"")
            )
        )


@pytest.mark.parametrize("place", [10, 1 << 63])
def test_a_piece_that_lies_outside(kept: Callable[[Answer], tuple[str, ...]], place: int) -> None:
    piece = place.to_bytes(8, "little") + b"x"
    with pytest.raises(SafetyViolation, match="a piece of it"):
        kept(lambda kind, *_: (0, row(b"a", FILE, 5) if kind == frames.LOOK else piece))


def test_pieces_that_go_backwards(kept: Callable[[Answer], tuple[str, ...]]) -> None:
    piece = bytes(8) + b"x"
    with pytest.raises(SafetyViolation, match="a piece of it"):
        kept(lambda kind, *_: (0, row(b"a", FILE, 5) if kind == frames.LOOK else piece))


def test_nothing_leads_out_of_the_root(kept: Callable[[Answer], tuple[str, ...]], tmp_path: Path) -> None:
    """A link that is a directory as well, and a file of several names whose first one was replaced by a link."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    up = str(tmp_path / "outside").encode()
    rows = {
        b"/upper": row(b"a", LINK, target=up) + row(b"a", FOLDER) + row(b"l", LINK, target=up),
        b"/upper/a": row(b"file", FILE, 4),
    }

    def answer(kind: int, _: int, payload: bytes) -> tuple[int, bytes]:
        place = payload.split(b"\0")[0]
        return (0, rows.get(place, b"")) if kind == frames.LOOK else (0, bytes(8) + b"evil")

    kept(answer)
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]
    assert (tmp_path / "root/a/file").read_text() == "evil"


def test_a_guest_that_is_silent(kept: Callable[[Answer], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_PATIENCE", 0.2)
    block = threading.Event()

    def answer(*_: object) -> tuple[int, bytes]:
        block.wait(5)
        return 0, b""

    with pytest.raises(KnarrError, match="does not answer"):
        kept(answer)
    block.set()

"""base.files: bounded reads, atomic writes, locks."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from knarr.base import files
from knarr.base.errors import FileError, InUse
from knarr.base.files import Lock, read_file, write_atomic

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for size in (0, 1, 4095, 4096, 100_000):
        data = os.urandom(size)
        path.write_bytes(data)
        assert read_file(str(path), size) == data
        fd = os.open(tmp_path, os.O_PATH)
        try:
            assert read_file("f", size, fd) == data
        finally:
            os.close(fd)


def test_limit_of_a_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    with pytest.raises(FileError, match="it has 5 bytes, at most 4 are read") as caught:
        read_file(str(path), 4)
    assert caught.value.number == errno.EFBIG


def test_limit_holds_where_the_size_is_not_known() -> None:
    whole = read_file("/proc/self/status", 1 << 20)  # st_size is 0
    assert b"Name:" in whole
    with pytest.raises(FileError, match="it has more than the 10 bytes"):
        read_file("/proc/self/status", 10)


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.close()
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, part in (
        ("fifo", "it is a FIFO, not a regular file"),
        ("link", "it is a FIFO"),
        (".", "is a directory"),
        ("missing", "no such file or directory"),
        ("socket", "cannot read"),
        ("loop", "too many levels"),
        ("x\0y", "the path holds a NUL"),
    ):
        with pytest.raises(FileError) as caught:
            read_file(f"{tmp_path}/{name}", 10)
        assert part in str(caught.value)
    with pytest.raises(FileError, match="cannot read /proc/self/mem: input/output error"):
        read_file("/proc/self/mem", 10)
    with pytest.raises(FileError, match="it is a character device"):
        read_file("/dev/zero", 10)


def test_reading_leaks_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    before = os.listdir("/proc/self/fd")
    for limit in (4, 5):
        try:
            read_file(str(tmp_path / "f"), limit)
        except FileError:
            assert limit == 4
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("sync", [False, True])
def test_writes_with_exactly_the_mode(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "f"
    old = os.umask(0o077)
    try:
        write_atomic(str(path), b"one", mode=0o644, sync=sync)
        assert path.read_bytes() == b"one"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        write_atomic(str(path), b"", sync=sync)
        assert path.read_bytes() == b""
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("sync", [False, True])
def test_writes_below_a_descriptor(tmp_path: Path, sync: bool) -> None:
    (tmp_path / "d").mkdir()
    fd = os.open(tmp_path, os.O_PATH)
    try:
        write_atomic("d/f", b"x", dir_fd=fd, sync=sync)
        write_atomic("g", b"y", dir_fd=fd, sync=sync)
    finally:
        os.close(fd)
    assert (tmp_path / "d/f").read_bytes() == b"x"
    assert (tmp_path / "g").read_bytes() == b"y"
    assert sorted(os.listdir(tmp_path)) == ["d", "g"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "keep").write_bytes(b"keep")
    (tmp_path / "f").symlink_to("keep")
    write_atomic(str(tmp_path / "f"), b"new")
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "keep").read_bytes() == b"keep"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileError, match=r"cannot write .*/d: is a directory"):
        write_atomic(str(tmp_path / "d"), b"x")
    with pytest.raises(FileError, match="no such file"):
        write_atomic(str(tmp_path / "no/f"), b"x")
    with pytest.raises(FileError, match="holds a NUL"):
        write_atomic(f"{tmp_path}/a\0b", b"x")
    if os.path.exists("/dev/full"):
        # A full disk, seen through the one call that meets it.
        real = os.open
        monkeypatch.setattr(files, "write_all", lambda _fd, data: os.write(real("/dev/full", os.O_WRONLY), data))
        with pytest.raises(FileError, match="no space left on device"):
            write_atomic(str(tmp_path / "f"), b"x")
        monkeypatch.undo()
    assert os.listdir(tmp_path) == ["d"]
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the one /dev/full was opened on


def test_long_names_fit(tmp_path: Path) -> None:
    name = "n" * 255
    write_atomic(str(tmp_path / name), b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_reader_sees_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    versions = [bytes([65 + index]) * 50_000 for index in range(8)]
    write_atomic(path, versions[0])
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for version in versions:
                write_atomic(path, version)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            assert read_file(path, 100_000) in versions
    finally:
        writer.join()


def test_an_exclusive_lock_excludes(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Lock(path):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
        for shared in (False, True):
            with pytest.raises(InUse, match="in use by another process"), Lock(path, shared=shared, wait=False):
                pass
    with Lock(path, wait=False):
        pass


def test_shared_locks_share(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    both = Lock(path, shared=True), Lock(path, shared=True, wait=False)
    with both[0], both[1], pytest.raises(InUse), Lock(path, wait=False):
        pass


def test_a_directory_can_be_locked(tmp_path: Path) -> None:
    fd = os.open(tmp_path.parent, os.O_PATH)
    try:
        with Lock(str(tmp_path)), pytest.raises(InUse), Lock(tmp_path.name, dir_fd=fd, wait=False):
            pass
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_waiting_for_a_lock_whose_file_goes_away(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = Lock(path)
    first.acquire()
    got: list[tuple[int, int]] = []

    def wait() -> None:
        with Lock(path) as lock:
            got.append((os.fstat(lock.fd).st_ino, os.stat(path).st_ino))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    assert not got
    os.unlink(path)  # as the delete of a container does
    first.release()
    waiter.join(5)
    assert len(got) == 1
    assert got[0][0] == got[0][1]  # not the lock on the removed file


def test_lock_errors(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot lock .*no such file"), Lock(str(tmp_path / "no/lock")):
        pass
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(FileError, match="too many levels"), Lock(str(tmp_path / "link")):
        pass
    with pytest.raises(FileError, match="holds a NUL"), Lock("a\0b"):
        pass
    lock = Lock(str(tmp_path / "lock"))
    with lock, pytest.raises(InUse, match="this process already"):
        lock.acquire()
    lock.release()
    assert lock.fd == -1
    assert sorted(os.listdir(tmp_path)) == ["link", "lock"]


def test_a_lock_where_we_may_only_read() -> None:
    folder = tempfile.mkdtemp(prefix="knarr-test-")  # not tmp_path, whose parents are closed to other users
    path = f"{folder}/lock"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setresuid(65534, 65534, 65534)
                with Lock(path, shared=True):
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)

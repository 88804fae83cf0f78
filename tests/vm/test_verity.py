"""fs-verity: a layer that the disk changes under a running container is an error for it, never wrong bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import enginekit
import pytest

from knarr import Image
from knarr.kernel.verity import sealed

if TYPE_CHECKING:
    from collections.abc import Iterator

# A disk made with mke2fs and changed beneath its file system, all page caches dropped: the whole machine's.
pytestmark = pytest.mark.skipif(
    "KNARR_VM" not in os.environ or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 12),
    reason="in the guest of make test-vm that has Linux 6.12",
)

PROGRAM = [sys.executable, "-c", "import sys; from knarr.cli.main import main; sys.exit(main())"]
MARK = b"what the image holds"
BLOCK = 4096
DRIVERS = ("erofs", "erofs-loop")


class Disk:
    """An ext4 of its own in a file, mounted; a store lies on it."""

    def __init__(self, folder: Path, *, verity: bool) -> None:
        self.file = folder / "disk"
        self.place = folder / "mounted"
        self.place.mkdir()
        with self.file.open("wb") as file:
            file.truncate(256 << 20)
        run("mkfs.ext4", "-q", "-b", str(BLOCK), *(["-O", "verity"] if verity else []), str(self.file))
        run("mount", "-o", "loop", str(self.file), str(self.place))
        self.running: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "KNARR_STORE": f"{self.place}/store", "KNARR_RUN": str(folder / "state")}

    def knarr(self, *words: str, driver: str = "erofs") -> subprocess.CompletedProcess[bytes]:
        """Run knarr on the store."""
        environment = {**self.environment, "KNARR_DRIVER": driver}
        return subprocess.run(
            [*PROGRAM, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300
        )

    def files(self, kind: str) -> list[Path]:
        """The tars, or the indexes, of the store."""
        return sorted((self.place / "store").rglob({"tar": "tar/*", "index": "index/*/index"}[kind]))

    def change(self, path: Path, start: int, size: int) -> None:
        """Write ones over a part of a file on the disk, beneath the file system; nothing of it stays in memory."""
        os.sync()
        blocks = self._blocks(path)
        with self.file.open("r+b") as disk:
            for number in range(start // BLOCK, (start + size - 1) // BLOCK + 1):
                at, end = max(start, number * BLOCK), min(start + size, (number + 1) * BLOCK)
                disk.seek(blocks[number] * BLOCK + at % BLOCK)
                disk.write(b"1" * (end - at))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def _blocks(self, path: Path) -> dict[int, int]:
        """Where on the disk each block of a file is, by filefrag: `0:  0..  5:  100..  105:  6: …`."""
        found = {}
        for line in run("filefrag", "-e", "-v", str(path)).splitlines():
            match = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
            if match:
                first, last, place = map(int, match.groups())
                found.update({first + number: place + number for number in range(last - first + 1)})
        return found

    def close(self) -> None:
        run("umount", "--lazy", str(self.place))


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=240).stdout


def measured(path: Path) -> str:
    with path.open("rb") as file:
        return sealed(file.fileno())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Busybox, and a file large enough to be read in many pieces."""
    folder = tmp_path_factory.mktemp("image")
    root = enginekit.tree(folder / "tree")
    (root / "big").write_bytes(MARK.ljust(64) * 32768)
    for number in range(600):
        (root / f"many/{number % 30}").mkdir(parents=True, exist_ok=True)
        (root / f"many/{number % 30}/{number}").write_text(str(number))
    with tarfile.open(folder / "tar", "w") as tar:
        tar.add(root, ".")
    shutil.rmtree(root)
    made = Image.empty().append(str(folder / "tar"), compression="none").with_config(env={"PATH": "/bin"})
    made.save(f"oci:{folder}/layout:one")
    return f"oci:{folder}/layout:one"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    yield from a_disk(tmp_path, verity=True)


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[Disk]:
    yield from a_disk(tmp_path, verity=False)


def a_disk(folder: Path, *, verity: bool) -> Iterator[Disk]:
    made = Disk(folder, verity=verity)
    try:
        yield made
    finally:
        stop(made)
        made.close()


def start(disk: Disk, image: str, driver: str) -> None:
    environment = {**disk.environment, "KNARR_DRIVER": driver}
    words = [*PROGRAM, "run", "--rm", "--name", "under-test", image, "sleep", "600"]
    log = disk.file.with_name("log")
    with log.open("wb") as out:
        disk.running = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    for _ in range(300):
        if disk.knarr("exec", "under-test", "true", driver=driver).returncode == 0:
            return
        assert disk.running.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError("it does not start")


def stop(disk: Disk) -> None:
    disk.knarr("rm", "--force", "under-test")
    if disk.running is not None:
        disk.running.wait(60)
        disk.running = None


def cat(disk: Disk, path: str, driver: str) -> subprocess.CompletedProcess[bytes]:
    return disk.knarr("exec", "under-test", "cat", path, driver=driver)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_changed_block_is_an_error(disk: Disk, image: str, driver: str) -> None:
    start(disk, image, driver)
    (tar,), (index,) = disk.files("tar"), disk.files("index")
    assert measured(tar).startswith("sha256:")
    assert measured(index).startswith("sha256:")
    whole = cat(disk, "/big", driver)
    assert whole.stdout == MARK.ljust(64) * 32768, whole.stderr
    middle = tar.read_bytes().index(MARK) + (1 << 20)
    disk.change(tar, middle, 3)
    changed = cat(disk, "/big", driver)
    assert changed.returncode != 0
    assert b"nput/output error" in changed.stderr
    assert b"111" not in changed.stdout
    assert cat(disk, "/many/7/7", driver).stdout == b"7"  # the rest is what it was
    # It is found, and made anew.
    told = disk.knarr("image", "fsck")
    assert told.returncode != 0
    assert f"tar {tar}" in told.stdout.decode() + told.stderr.decode()
    assert b"cannot be read: input/output error" in told.stdout + told.stderr
    stop(disk)
    disk.knarr("image", "fsck", "--repair")
    assert disk.files("tar") == disk.files("index") == []
    start(disk, image, driver)
    assert cat(disk, "/big", driver).stdout == whole.stdout


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_changed_index_is_an_error(disk: Disk, image: str, driver: str) -> None:
    start(disk, image, driver)
    (index,) = disk.files("index")
    size = index.stat().st_size
    disk.change(index, BLOCK, size - BLOCK)  # all but the first block: inodes and directories
    listed = disk.knarr("exec", "under-test", "find", "/many", driver=driver)
    assert listed.returncode != 0
    assert b"111" not in listed.stdout + listed.stderr.replace(str(index).encode(), b"")


def test_nobody_writes_what_is_sealed(disk: Disk, image: str) -> None:
    start(disk, image, "erofs")
    for path in (*disk.files("tar"), *disk.files("index")):
        path.chmod(0o600)
        with pytest.raises(PermissionError):
            path.open("ab")
    stop(disk)
    assert disk.knarr("image", "prune", "--all").returncode == 0
    assert disk.files("tar") == disk.files("index") == []


def test_an_ordinary_file_system_gives_wrong_bytes(ordinary: Disk, image: str) -> None:
    """What the guard is good for; nothing else is different there."""
    start(ordinary, image, "erofs")
    (tar,) = ordinary.files("tar")
    assert measured(tar) == ""
    ordinary.change(tar, tar.read_bytes().index(MARK) + (1 << 20), 3)
    changed = cat(ordinary, "/big", "erofs")
    assert changed.returncode == 0
    assert b"111" in changed.stdout
    told = ordinary.knarr("image", "fsck")
    assert b"it has the digest" in told.stdout + told.stderr

"""Roots mounted from tars, overlaid and copied: what is seen inside is the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import enginekit
import pytest

from knarr.engine import driver, host, hostroot
from knarr.engine.paths import Places, places

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an image"),
    pytest.mark.skipif(KERNEL < (6, 12), reason="this kernel does not mount EROFS from files (Linux 6.12)"),
]
LOOK = (
    "id; cd /; find . -path ./dev -prune -o -path ./proc -prune -o -path ./sys -prune -o -path ./run -prune -o"
    " -path ./etc/hosts -prune -o -path ./etc/hostname -prune -o -path ./etc/resolv.conf -prune -o"
    " -exec stat -c '%n %F %a %u %g %s %h' {} \\; | grep -v directory | sort; cat /data/file; readlink /bin/ls;"
    " echo more >> /data/file; cat /data/file; rm /data/file; ls /data; mkdir /data/new; ls -d /data/new"
)


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    if hostroot.file_system(str(folder)) not in driver._FILES_MOUNTABLE:
        pytest.skip("EROFS is not mounted from files in the file system of /var/tmp")
    yield folder
    enginekit.remove_folder(folder)


@pytest.fixture(scope="module")
def image(where: Path) -> str:
    enginekit.need_busybox()
    return enginekit.layout(where / "image", {"data/link": "file"}, Volumes={"/data": {}, "/none": {}}, User="app")


def person(where: Path, name: str) -> enginekit.Person:
    (where / name).mkdir(exist_ok=True)
    return enginekit.Person("root", where / name)


def said(who: enginekit.Person, *words: str, **environment: str) -> str:
    done = who.knarr("run", "--rm", *words, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize(
    "options", [[], ["--userns", "host"], ["-u", "0"], ["--read-only"], ["-u", "0", "--userns", "host"]]
)
def test_the_same_is_seen(where: Path, image: str, options: list[str]) -> None:
    look = LOOK if "0" in options else LOOK.partition("; echo more")[0]  # the image's own user may not write
    seen = {
        name: said(person(where, name), *options, image, "sh", "-c", look, KNARR_DRIVER=name) for name in driver.DRIVERS
    }
    assert seen["erofs"] == seen["erofs-loop"] == seen["overlay"] == seen["copy"]
    assert "busybox" in seen["erofs"]
    for name in driver.MOUNTED:
        assert enginekit.leftovers(where / name) == []
    assert attached(where) == []


@pytest.mark.parametrize("name", driver.DRIVERS)
def test_no_mount_is_seen_outside_where_mounts_are_shared(where: Path, image: str, name: str) -> None:
    """As they are below systemd: here in a mount namespace of this test's own."""
    who = person(where, name)
    script = f'mount --make-rshared / && "$@" && ! grep "{who.folder}" /proc/self/mountinfo'
    who.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    assert said(who, image, "echo", "1", KNARR_DRIVER=name) == "1\n"


def attached(where: Path, wanted: int = 0) -> list[str]:
    """Files of this test that are loop devices; they cease to be a moment after the last mount has gone."""
    until = time.monotonic() + 10
    while len(found := _attached(where)) > wanted and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _attached(where: Path) -> list[str]:
    found = []
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(place.read_text().strip())
        except OSError:
            pass  # it has just gone
    return [path for path in found if path.startswith(f"{where}/")]


def begin(who: enginekit.Person, *words: str) -> subprocess.Popen[bytes]:
    environment = {**who.environment, "KNARR_DRIVER": "erofs-loop"}
    command = who.command("run", "--rm", *words)
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


@pytest.mark.parametrize("options", [[], ["--userns", "host"]])
def test_loop_devices_are_there_as_long_as_the_container(where: Path, image: str, options: list[str]) -> None:
    who = person(where, "loops")
    wait = ["-u", "0", *options, image, "sh", "-c", "echo up; sleep 1000"]
    running = [begin(who, "--name", name, *wait) for name in ("one", "two")]
    try:
        for process in running:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
        assert len(_attached(where)) == 4, "an index and a tar for each"
        assert who.knarr("rm", "-f", "one").returncode == 0
        running[0].wait(10)
        said = who.knarr("exec", "two", "cat", "/data/file")
        assert said.stdout == b"of the image\n", said.stderr
        assert len(attached(where, 2)) == 2
    finally:
        for name in ("one", "two"):
            who.knarr("rm", "-f", name)
        for process in running:
            process.communicate(timeout=10)
    assert attached(where) == []


@pytest.mark.parametrize("after", [0.05, 0.15, 0.25, 0.35, 0.45, 0.6])
def test_no_loop_device_is_left_by_a_run_that_is_killed(where: Path, image: str, after: float) -> None:
    who = person(where, "killed")
    name = f"k{int(after * 100)}"
    process = begin(who, "--name", name, image, "sh", "-c", "sleep 1000")
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        pass
    process.kill()
    process.wait()
    who.knarr("rm", "-f", name)
    process.communicate(timeout=10)
    assert attached(where) == []


def test_nothing_is_extracted_and_all_of_it_is_removed_with_the_image(where: Path, image: str) -> None:
    who = person(where, "chosen")
    assert said(who, image, "cat", "/data/file") == "of the image\n"
    store = where / "chosen/store"
    assert json.loads(who.knarr("info", "--format", "json").stdout)["Host"]["Driver"] == "erofs"
    assert [name for name in os.listdir(store / "snapshots") if len(name) == 64] == []
    assert len(os.listdir(store / "tars/tar")) == len(os.listdir(store / "tars/index")) == 1
    assert who.knarr("rmi", json.loads(who.knarr("images", "--format", "json").stdout)[0]["FullID"]).returncode == 0
    assert os.listdir(store / "tars/tar") == os.listdir(store / "tars/index") == []


def test_an_image_that_is_unpacked_stays_so(where: Path, image: str) -> None:
    who = person(where, "earlier")
    assert said(who, image, "echo", "1", KNARR_DRIVER="overlay") == "1\n"
    assert said(who, image, "echo", "2") == "2\n"
    assert not (where / "earlier/store/tars").exists()


def test_where_files_cannot_be_mounted_images_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = [False]

    def chosen(kind: str, kernel: tuple[int, int], path: str = "/var/lib/knarr") -> str:
        driver._kept.clear()
        monkeypatch.setattr(hostroot, "file_system", lambda _: kind)
        monkeypatch.setattr(host, "kernel", lambda: kernel)
        monkeypatch.setattr(driver, "_loops", lambda: loops[-1])
        return driver.driver(Places(path, places().state))

    monkeypatch.delenv("KNARR_DRIVER", raising=False)
    try:
        assert chosen("ext4", (6, 12)) == "erofs"
        loops.append(False)
        assert chosen("ext4", (6, 11)) == "overlay"
        assert chosen("tmpfs", (6, 12)) == "overlay"
        assert chosen("ext4", (6, 12), "/" + "p" * 109) == "overlay", "no path of a tar may have over 255 bytes"
        loops.append(True)
        assert chosen("ext4", (6, 12)) == "erofs"
        assert chosen("ext4", (6, 12), "/" + "p" * 109) == "erofs-loop"
        assert chosen("tmpfs", (6, 12)) == chosen("ext4", (6, 11)) == chosen("ext4", (6, 4)) == "erofs-loop"
        assert chosen("ext4", (6, 3)) == "overlay"
        assert chosen("ext4", (6, 12), "/" + "p" * 108) == "erofs"
        assert chosen("overlay", (6, 12)) == "copy"
    finally:
        driver._kept.clear()

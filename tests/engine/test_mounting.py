"""``knarr image mount``: the image's files at a directory, from its tars."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import enginekit
import pytest

from knarr.engine.driver import driver
from knarr.engine.paths import places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = (sys.executable, "-c", "import sys; from knarr.cli.main import main; sys.exit(main())")


@pytest.fixture
def top() -> Iterator[Path]:
    folder = enginekit.new_folder()
    try:
        yield folder
    finally:
        enginekit.remove_folder(folder)


def knarr(top: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "--store", f"{top}/store", "--run-dir", f"{top}/run", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=60
    )


def test_mounted_read_and_removed_meanwhile(top: Path, image: str) -> None:
    if os.geteuid() != 0 or driver(places(f"{top}/store", f"{top}/run")) != "erofs":
        pytest.skip("images are not mounted from files here")
    place = top / "mounted"
    place.mkdir()
    # In a mount namespace of its own, which takes the mount along when it ends.
    script = (
        '"$@" image mount -q "$IMAGE" "$PLACE" && cat "$PLACE/data/file" && "$PLACE/bin/busybox" echo runs'
        ' && findmnt -no FSTYPE,OPTIONS "$PLACE" && ! touch "$PLACE/x" 2>/dev/null'
        ' && "$@" image prune --all >&2 && stat -c %a "$PLACE/tmp" && "$PLACE/bin/busybox" cat "$PLACE/data/file"'
        ' && umount "$PLACE" && ls -A "$PLACE"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *PROGRAM,
         "--store", f"{top}/store", "--run-dir", f"{top}/run"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "IMAGE": image, "PLACE": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest, first, runs, options, mode, again = done.stdout.splitlines()
    assert digest.startswith("sha256:")
    assert (first, runs, mode, again) == ("of the image", "runs", "1777", "of the image")
    assert options.split()[0] == "erofs"
    assert {"ro", "nosuid", "nodev"} <= set(options.split()[1].split(","))
    assert "deleted:" in done.stderr


def test_where_it_cannot_be(top: Path, image: str) -> None:
    done = knarr(top, "image", "mount", image, str(top), KNARR_DRIVER="copy")
    assert (done.returncode, done.stdout) == (125, "")
    assert "mounting an image here is not supported" in done.stderr
    assert "knarr image unpack --bare" in done.stderr
    if os.geteuid() == 0:
        done = knarr(top, "image", "mount", image, str(top / "none"), KNARR_DRIVER="erofs")
        assert done.returncode == 125
        assert f"cannot mount at {top}/none: no such file" in done.stderr

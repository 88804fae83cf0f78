"""L-10: pulls, runs, removals and collections of one image in one store, all at once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from test_bad_input import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 60 if os.environ.get("KNARR_TEST_FULL") else 5


@pytest.mark.parametrize("driver", ["", "overlay"])
def test_l10_everybody_at_once(driver: str, knarr: str, tmp_path: Path) -> None:
    if driver and os.geteuid() != 0:
        pytest.skip("an ordinary user's images are unpacked in any case")
    image = f"oci:{build(tmp_path / 'image')}:good"
    places = ["--store", f"{tmp_path}/store", "--run-dir", f"{tmp_path}/run"]
    until = time.monotonic() + SECONDS
    done: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [knarr, *places, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, **({"KNARR_DRIVER": driver} if driver else {})},
        )

    def work(words: list[str], fine: Callable[[subprocess.CompletedProcess[str]], bool]) -> None:
        while time.monotonic() < until:
            one = call(*words)
            done[words[0], one.returncode] += 1
            if not fine(one):
                wrong.append(f"{words}: {one.returncode} {one.stdout} {one.stderr}")

    def succeeded(one: subprocess.CompletedProcess[str]) -> bool:
        return one.returncode == 0

    def ran(one: subprocess.CompletedProcess[str]) -> bool:
        return (one.returncode, one.stdout) == (0, "fine\n")

    def removed(one: subprocess.CompletedProcess[str]) -> bool:
        return one.returncode == 0 or "does not exist" in one.stderr or "is in use by" in one.stderr

    jobs = [
        (["run", "--rm", image], ran),
        (["run", "--rm", image], ran),
        (["pull", "-q", image], succeeded),
        (["pull", "-q", image], succeeded),
        (["image", "prune", "--all"], succeeded),
        (["rmi", "localhost/image:good"], removed),
    ]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(done["run", 0], done["pull", 0], done["image", 0]) >= 1
    assert "everything is as its digest says" in call("image", "fsck").stdout
    assert ran(call("run", "--rm", image))
    assert call("ps", "-aq").stdout == ""
    assert succeeded(call("image", "prune", "--all"))
    assert os.listdir(tmp_path / "store/blobs/sha256") == []
    for kind in ("tars/tar", "tars/index", "snapshots/l"):
        if (tmp_path / "store" / kind).exists():
            assert os.listdir(tmp_path / "store" / kind) == []
    assert os.listdir(tmp_path / "store/.tmp") == []

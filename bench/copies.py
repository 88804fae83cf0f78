"""Copies of an image beside skopeo: layout to layout, registry to layout, layout to an empty registry.

``python bench/copies.py [--rounds N] [--image oci:DIR:TAG] [--folder DIR]``; prints Markdown: wall, CPU seconds and
peak memory, each the least of the rounds, which alternate. Without ``--image`` one of four layers is made, 270 MB as
gzip. Name a folder on the file system to measure, best a fresh ext4; both programs fsync. The registry is
docker-registry on loopback, its data in the same folder; its own work counts for neither.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

KNARR = str(Path(sys.executable).with_name("knarr"))
SKOPEO = ("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false")


class Cost(NamedTuple):
    """What one run took: seconds, CPU seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def measured(command: list[str], folder: Path) -> Cost:
    """Run a program and return what it took."""
    began = time.monotonic()
    pid = os.posix_spawnp(command[0], command, {**os.environ, "KNARR_STORE": str(folder / "knarr-store")})
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - began
    if status:
        raise RuntimeError(f"{command} failed")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def made_image(folder: Path) -> str:
    """Make a layout with an image of four layers: half noise, half text, as programs are."""
    layout = folder / "image"
    subprocess.run(["umoci", "init", "--layout", str(layout)], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:v1"], check=True)
    for number, size in enumerate((120, 200, 60, 40)):
        tree = folder / "tree"
        tree.mkdir()
        noise = random.Random(number)  # noqa: S311  # the same image every time
        for part in range(size):
            half = noise.randbytes(1 << 19)
            (tree / f"{part}").write_bytes(half + b"".join(b"line %d of text\n" % line for line in range(1 << 15)))
        subprocess.run(["umoci", "insert", "--image", f"{layout}:v1", str(tree), f"/layer{number}"], check=True)
        shutil.rmtree(tree)
    return f"oci:{layout}:v1"


class Registry:
    """A docker-registry on loopback, ended with the block."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "registry"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self._data}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        self._process = subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(self.host.rpartition(":")[2])), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    def empty(self) -> None:
        """Forget everything; the registry has no cache of its own."""
        shutil.rmtree(self._data, ignore_errors=True)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def compare(
    name: str, rounds: int, before: Callable[[], None], ours: list[str], theirs: list[str], folder: Path
) -> str:
    """Alternate both programs and return a row of the table."""
    costs: dict[str, list[Cost]] = {"knarr": [], "skopeo": []}
    for _ in range(rounds):
        for who, command in (("skopeo", theirs), ("knarr", ours)):
            before()
            os.sync()
            costs[who].append(measured(command, folder))
    least = {who: Cost(*(min(values) for values in zip(*found, strict=True))) for who, found in costs.items()}
    peer, mine = least["skopeo"], least["knarr"]
    cells = (
        name,
        f"{peer.wall:.2f} s ({peer.cpu:.2f} CPU, {peer.memory:.0f} MiB)",
        f"{mine.wall:.2f} s ({mine.cpu:.2f} CPU, {mine.memory:.0f} MiB)",
        f"{mine.wall / peer.wall:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", default="", help="oci:DIR:TAG")
    parser.add_argument("--folder", default="", help="where to work")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="knarr-bench-", dir=given.folder or None) as name:
        folder = Path(name)
        image = given.image or made_image(folder)
        registry = Registry(folder)
        try:
            target = f"docker://{registry.host}/bench/image:1"
            out = folder / "out"

            def fresh() -> None:
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(folder / "knarr-store", ignore_errors=True)

            def both() -> None:
                fresh()
                registry.empty()

            print("| job | skopeo | knarr | ratio |\n| --- | --- | --- | --- |")
            jobs = (
                ("layout → layout", fresh, image, f"oci:{out}:1"),
                ("layout → empty registry", both, image, target),
                ("registry → layout", fresh, target, f"oci:{out}:1"),
            )
            for job, before, source, to in jobs:
                ours = [KNARR, "image", "copy", "-q", source, to]
                print(compare(job, given.rounds, before, ours, [*SKOPEO, source, to], folder), flush=True)
        finally:
            registry.close()
    print(f"\nload {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs, page size {resource.getpagesize()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of image jobs, on images of 10 MB, 200 MB and 2 GB: what should not grow with the image.

    .venv/bin/python3 bench/memory.py [--sizes MB…] [--folder DIR] [--only WORD…]

makes the images below DIR (a new folder in $TMPDIR or /var/tmp, which needs six times the largest one's size), runs
every job (or those with one of the words in their names) on each, once, and prints Markdown: MiB resident at most.
Entries are another matter: an image's tree is kept in memory, half a kilobyte a file, so all of them have 4,000 files.
Needs root for ``run``, and busybox-static.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knarr import Image

if TYPE_CHECKING:
    from collections.abc import Callable

KNARR = Path(sys.executable).parent / "knarr"
MIB = 1 << 20
_LAYERS = 4
_FILES = 4000
_NOISE = random.Random(1).randbytes(MIB // 2)  # noqa: S311  # the same images every time
_TEMPLATE = _NOISE + b"the quick brown fox " * (MIB // 40)


class _Pattern(io.RawIOBase):
    """So many bytes, half of them random, none like those of another seed."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self._left = size
        self._shift = seed * 7919 % len(_TEMPLATE)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        wanted = self._left if size is None or size < 0 else min(size, self._left, MIB)
        data = (_TEMPLATE[self._shift :] + _TEMPLATE[: self._shift])[:wanted]
        self._shift = (self._shift + 4099) % len(_TEMPLATE)
        self._left -= len(data)
        return data


def build(folder: Path, size: int, files: int) -> str:
    """A layout with an image of ``size`` bytes in ``files`` files and four layers; its reference."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1750000000")
    image = Image.empty()
    for layer in range(_LAYERS):
        path = folder / "layer.tar"
        with tarfile.open(path, "w") as tar:
            if layer == 0:
                _add(tar, "bin/busybox", Path("/bin/busybox").read_bytes())
            share = size // _LAYERS
            _add(tar, f"data/{layer}/large", share // 2)  # half of it is one file
            for number in range(files // _LAYERS):
                _add(tar, f"data/{layer}/{number % 50}/{number}", share // 2 // (files // _LAYERS))
        image = image.append(str(path))
        path.unlink()
    image.with_config(cmd=["/bin/busybox", "true"]).save(f"oci:{folder}/image:v1")
    return f"oci:{folder}/image:v1"


def _add(tar: tarfile.TarFile, name: str, content: bytes | int) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755
    entry.size = content if isinstance(content, int) else len(content)
    tar.addfile(entry, _Pattern(content, sum(name.encode())) if isinstance(content, int) else io.BytesIO(content))


def peak(*words: str, environment: dict[str, str] | None = None, fine: tuple[int, ...] = (0,)) -> float:
    """Run knarr; the MiB it and its children had resident at most."""
    with tempfile.NamedTemporaryFile("r") as told:
        settings = {**os.environ, **(environment or {})}
        argv = [*_timed(told.name), *words]
        code = subprocess.run(argv, env=settings, stdout=subprocess.DEVNULL, check=False).returncode
        if code not in fine:
            raise SystemExit(f"knarr {' '.join(words)} ended with {code}")
        return _told(told.read())


def _timed(path: str) -> list[str]:
    """Knarr below busybox's time, which is small: the kernel counts a child's memory before exec, its parent's, too."""
    return ["busybox", "time", "-v", "-o", path, str(KNARR)]


def _told(text: str) -> float:
    pages = int(text.partition("Maximum resident set size (kbytes): ")[2].split()[0])  # it takes KiB for pages
    return pages / os.sysconf("SC_PAGESIZE")


class Serving:
    """``knarr registry serve`` on a free port, and what it had resident at most."""

    def __init__(self, folder: Path) -> None:
        self._told = folder.with_suffix(".time")
        argv = [*_timed(str(self._told)), "registry", "serve", "--addr", "127.0.0.1:0", str(folder)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        self.host = line.split()[-1].partition("//")[2]

    def stop(self) -> float:
        """End it; MiB."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGTERM)
        self._process.wait()
        return _told(self._told.read_text())


def jobs(folder: Path, ref: str, serving: list[Serving]) -> dict[str, Callable[[], float]]:
    """What is measured, in this order: later ones use what earlier ones made. ``serving``: to be ended."""
    store = {"KNARR_STORE": str(folder / "store"), "KNARR_RUN": str(folder / "state")}
    bundle = folder / "bundle"

    def push() -> float:
        serving.append(Serving(folder / "served"))
        return peak("image", "copy", "-q", ref, f"docker://{serving[0].host}/x:v1", environment=store)

    def stop() -> float:
        return serving.pop().stop()

    def copy(target: str, *options: str) -> float:
        return peak("image", "copy", "-q", *options, ref, target.format(folder))

    def there() -> str:
        return f"docker://{serving[0].host}/x:v1"

    def changed() -> str:
        if not bundle.exists():
            peak("image", "unpack", ref, str(bundle), environment=store)
        with (bundle / "rootfs/data/0/large").open("ab") as file:
            file.write(b"more")
        return str(bundle)

    return {
        "push": push,
        "pull": lambda: peak("image", "pull", there(), environment=store),
        "copy, a registry to a layout": lambda: peak("image", "copy", "-q", there(), f"oci:{folder}/a:v1"),
        "registry serve, meanwhile": stop,
        "copy, a layout to another": lambda: copy("oci:{}/b:v1"),
        "copy to docker-archive": lambda: copy("docker-archive:{}/d.tar:x:v1"),
        "copy --compress zstd": lambda: copy("oci:{}/c:v1", "--compress", "zstd"),
        "copy --compress zstd:chunked": lambda: copy("oci:{}/e:v1", "--compress", "zstd:chunked"),
        "copy --compress estargz": lambda: copy("oci:{}/f:v1", "--compress", "estargz"),
        "ls": lambda: peak("image", "ls", "-R", ref),
        "cat, a small file": lambda: peak("image", "cat", ref, "/data/0/0/0"),
        "validate": lambda: peak("image", "validate", ref),
        "squash": lambda: peak("image", "squash", ref, f"oci:{folder}/g:v1"),
        "diff": lambda: peak("image", "diff", ref, f"oci:{folder}/g:v1", fine=(0, 1)),
        "unpack": lambda: peak("image", "unpack", "--bare", ref, str(folder / "bare")),
        "unpack, a bundle": lambda: peak("image", "unpack", ref, str(bundle)),
        "repack, a large file changed": lambda: peak("image", "repack", changed(), f"oci:{folder}/h:v1"),
        "repack --strict": lambda: peak("image", "repack", "--strict", changed(), f"oci:{folder}/i:v1"),
        "run, mounted (erofs)": lambda: peak("run", "--rm", ref, environment={**store, "KNARR_DRIVER": "erofs"}),
        "run, unpacked (overlay)": lambda: peak("run", "--rm", ref, environment={**store, "KNARR_DRIVER": "overlay"}),
        "fsck": lambda: peak("image", "fsck", environment=store),
    }  # fmt: skip


def measure(folder: Path, size: int, words: list[str]) -> dict[str, tuple[float, float]]:
    """Every job on an image of that size: (MiB, seconds)."""
    ref = build(folder, size, _FILES)
    serving: list[Serving] = []
    try:
        return _measured(folder, size, words, jobs(folder, ref, serving))
    finally:
        for one in serving:  # a job failed, or the one that ends it was not asked for
            one.stop()


def _measured(
    folder: Path, size: int, words: list[str], there: dict[str, Callable[[], float]]
) -> dict[str, tuple[float, float]]:
    found = {}
    for name, job in there.items():
        if words and not any(word in name for word in words):
            continue
        begun = time.monotonic()
        found[name] = job(), time.monotonic() - begun
        told = f"{size // MIB} MB: {name}: {found[name][0]:.0f} MiB, {found[name][1]:.1f} s"
        print(told, file=sys.stderr, flush=True)
        for made in ("a", "c", "d.tar", "e", "f", "h", "i", "bare"):  # the disk is not endless
            path = folder / made
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 200, 2048], metavar="MB", help="bytes of files")
    parser.add_argument("--folder", type=Path, help="where everything is made")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="jobs with one of these in their names")
    given = parser.parse_args()
    place = given.folder or os.environ.get("TMPDIR") or "/var/tmp"
    found: list[dict[str, tuple[float, float]]] = []
    with tempfile.TemporaryDirectory(dir=place, prefix="knarr-memory-") as name:
        for size in given.sizes:
            folder = Path(name) / str(size)
            folder.mkdir()
            found.append(measure(folder, size * MIB, given.only))
            shutil.rmtree(folder)
    print(f"| job | {' | '.join(f'{size} MB' for size in given.sizes)} | seconds |")
    print(f"| --- |{' --- |' * (len(given.sizes) + 1)}")
    for job in found[0]:
        peaks = " | ".join(f"{one[job][0]:.0f}" for one in found)
        print(f"| {job} | {peaks} | {found[-1][job][1]:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The image that image jobs are measured on: a Debian with Python, numpy and scipy in five layers, made once and kept.

``.cache/bench/image`` below the checkout is an OCI layout with the tags ``gzip`` and ``zstd``. Needs root, mmdebstrap,
pip and the network, the first time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from knarr import Image

CACHE = Path(__file__).parents[1] / ".cache" / "bench"
PACKAGES = ("numpy", "scipy")
DEBIAN = "python3,perl,git,gcc,libstdc++-12-dev"


def layout() -> Path:
    """The layout, made if it is not there."""
    path = CACHE / "image"
    if path.is_dir():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = _make(Path(folder))
        made.save(f"oci:{folder}/image:gzip")
        zstd = Image.empty()
        for layer in made.layers:
            zstd = zstd.append(layer.stream(), compression="zstd")
        zstd.save(f"oci:{folder}/image:zstd")
        os.rename(f"{folder}/image", path)
    return path


def minbase() -> Path:
    """A layout with a small Debian, one layer, tag ``gzip``."""
    path = CACHE / "minbase"
    if not path.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            os.environ.setdefault("SOURCE_DATE_EPOCH", "1750000000")
            call("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", f"{folder}/debian.tar")
            Image.empty().append(f"{folder}/debian.tar").with_config(cmd=["/bin/sh"]).save(f"oci:{folder}/image:gzip")
            os.rename(f"{folder}/image", path)
    return path


def plain() -> Path:
    """The lowest layer of ``layout``'s image as a plain tar."""
    path = CACHE / "debian.tar"
    if not path.is_file():
        stream = Image.open(f"oci:{layout()}:gzip").layers[0].stream()
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as file:
            while data := stream.read(1 << 20):
                file.write(data)
        os.rename(file.name, path)
    return path


def _make(folder: Path) -> Image:
    """A Debian, numpy, scipy, and a small layer that changes things below it."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1750000000")
    tar = folder / "debian.tar"
    call("mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN}", "bookworm", str(tar))
    image = Image.empty().append(str(tar))
    tar.unlink()
    for name in PACKAGES:
        target = folder / name
        call(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), name)
        image = image.add(str(target), "/usr/lib/python3/dist-packages")
        shutil.rmtree(target)
    site = folder / "site"
    site.mkdir()
    for number in range(200):
        (site / f"page{number}.html").write_text("hello\n" * 100)
    image = image.add(str(site), "/srv/site").with_config(cmd=["/usr/bin/python3"], env={"PATH": "/usr/bin:/bin"})
    return image.remove(["/usr/share/doc"])


def call(*command: str) -> None:
    """Run a program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    print(layout())

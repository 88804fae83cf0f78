"""Measure images beside other tools, and print tables. Needs root; the image is made once (benchimage.py).

    bench/images.py [--rounds N] [SECTION…]

Each section is one function of ``SECTIONS``; its contenders are run in turn, in one scratch directory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import benchimage
from timing import command, interleave, table

if TYPE_CHECKING:
    from collections.abc import Callable

KNARR = shutil.which("knarr", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "knarr"


def need(name: str) -> str:
    """Path of somebody else's program."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not installed")
    return found


def run(*argv: str) -> None:
    """Run once, uncounted."""
    command(*argv)()


def unpack(scratch: Path, rounds: int) -> str:
    """Whole image to files: umoci's bundle, knarr's bundle with its record."""
    image = benchimage.layout()
    umoci = need("umoci")

    def contender(*argv: str) -> Callable[[], int]:
        def once() -> int:
            target = tempfile.mkdtemp(dir=scratch)
            os.rmdir(target)
            peak = command(*argv, target)()
            shutil.rmtree(target)
            return peak

        return once

    figures = interleave(
        {
            "umoci unpack": contender(umoci, "unpack", "--image", f"{image}:gzip"),
            "knarr image unpack": contender(KNARR, "image", "unpack", f"oci:{image}:gzip"),
        },
        rounds=rounds,
        warmup=1,
    )
    return table("unpack, as a bundle that can be packed again (times include removing it)", figures, ["umoci unpack"])


def repack(scratch: Path, rounds: int) -> str:
    """Back to an image: nothing changed, a few files touched, 2,000 files more."""
    image = scratch / "layout"
    shutil.copytree(benchimage.layout(), image)
    umoci = need("umoci")
    run(umoci, "unpack", "--image", f"{image}:gzip", str(scratch / "theirs"))
    run(KNARR, "image", "unpack", f"oci:{image}:gzip", str(scratch / "ours"))
    said = []
    for title, change in (
        ("repack, nothing changed", lambda _root: None),
        ("repack after touching a few files", _touch),
        ("repack after adding 2,000 files", _add),
    ):
        for folder in ("theirs", "ours"):
            change(scratch / folder / "rootfs")
        contenders = {
            "umoci repack": command(umoci, "repack", "--image", f"{image}:theirs", str(scratch / "theirs")),
            "knarr image repack": command(KNARR, "image", "repack", str(scratch / "ours"), f"oci:{image}:ours"),
            "knarr image repack --strict": command(
                KNARR, "image", "repack", "--strict", str(scratch / "ours"), f"oci:{image}:strict"
            ),
        }
        said.append(table(title, interleave(contenders, rounds=rounds, warmup=1), ["umoci repack"]))
    return "\n".join(said)


def _touch(root: Path) -> None:
    for name in ("etc/passwd", "etc/hostname", "usr/bin/perl", "srv/site/page1.html"):
        with (root / name).open("ab") as file:
            file.write(b"\n")


def _add(root: Path) -> None:
    for number in range(2000):
        path = root / f"opt/new/{number // 100}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(200) + b"text " * 800)


def look(scratch: Path, rounds: int) -> str:
    """Questions about an image that need no unpacking; other tools must unpack first, or have none."""
    image = f"oci:{benchimage.layout()}:gzip"
    shutil.copytree(benchimage.layout(), scratch / "copy")
    other = f"oci:{scratch}/copy:gzip"
    contenders = {
        "ls -R": command(KNARR, "image", "ls", "-R", image),
        "cat /etc/os-release": command(KNARR, "image", "cat", image, "/etc/os-release"),
        "cat of the top layer": command(KNARR, "image", "cat", image, "/srv/site/page1.html"),
        "du": command(KNARR, "image", "du", image),
        "diff with a squashed one": command(KNARR, "image", "diff", image, f"oci:{scratch}/flat:v1", check=False),
        "validate": command(KNARR, "image", "validate", image),
        "squash": command(KNARR, "image", "squash", other, f"oci:{scratch}/flat:v1"),
    }
    run(KNARR, "image", "squash", other, f"oci:{scratch}/flat:v1")
    return table("looking into the image", interleave(contenders, rounds=rounds, warmup=0), [])


SECTIONS = {"unpack": unpack, "repack": repack, "look": look}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", default="/var/tmp", help="where to work; a fresh ext4 with a journal is best")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if not given")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench/images.py needs root: images hold files of many owners", file=sys.stderr)
        return 2
    for name in options.sections or SECTIONS:
        scratch = Path(tempfile.mkdtemp(prefix="knarr-bench-", dir=options.scratch))
        try:
            print(SECTIONS[name](scratch, options.rounds), flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

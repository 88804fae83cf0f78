"""The library in a warm program: knarr.run beside the whole `crun run` and `runc run`, and `host:` beside bubblewrap.

``python bench/library.py [--rounds N]``; prints Markdown. What is installed is measured. As root crun runs in a
mount namespace without the unified half of a hybrid (bench/runtime.py says why).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import docker_like_profile, hide_unified, make_bundle, runtimes
from timing import interleave, table

import knarr

if TYPE_CHECKING:
    from collections.abc import Callable

BWRAP = "bwrap --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp --unshare-all /bin/true"


def library(image: str, argv: list[str]) -> Callable[[], None]:
    """A contender that is a call of the library, output captured."""

    def once() -> None:
        result = knarr.run(image, argv)
        if result.exit_code:
            raise RuntimeError(f"{image}: {result}")

    return once


def program(*argv: str) -> Callable[[], None]:
    """A contender that is a program started from this one with subprocess, output captured."""

    def once() -> None:
        subprocess.run(argv, capture_output=True, check=True)

    return once


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--burden", action="store_true", help="with a 200 MB heap and 20 idle threads")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() == 0 and not options.inside:
        words = ["unshare", "-m", sys.executable, __file__, *sys.argv[1:], "--inside"]
        return subprocess.run(words, check=False).returncode
    if options.inside:
        hide_unified()
    burden = [bytearray(1 << 20) for _ in range(200)] if options.burden else []
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(20 if options.burden else 0)]
    for thread in threads:
        thread.start()
    scratch = Path(tempfile.mkdtemp(prefix="knarr-bench-"))
    os.environ["KNARR_STORE"], os.environ["KNARR_RUN"] = str(scratch / "store"), str(scratch / "run")
    try:
        bundle = make_bundle(scratch / "bundle", docker_like_profile())
        contenders: dict[str, Callable[[], None]] = {
            "knarr.run(bundle:)": library(f"bundle:{bundle}", ["/bin/true"]),
            "knarr.run(host:)": library("host:", ["/bin/true"]),
        }
        peers = {name: path for name, path in runtimes("").items() if name != "knarr-runtime"}
        for name, path in peers.items():

            def once(path: str = path, name: str = name) -> None:
                words = ["--root", f"{scratch}/{name}", "run", "--bundle", str(bundle), f"bench-{uuid.uuid4().hex[:8]}"]
                program(path, *words)()

            contenders[f"{name} run"] = once
        if shutil.which("bwrap"):
            contenders["bwrap"] = program(*BWRAP.split())
        title = "in process, with Docker's kind of seccomp profile and cgroups"
        title += " (200 MB heap, 20 threads)" if burden else ""
        names = [name for name in contenders if not name.startswith("knarr")]
        print(table(title, interleave(contenders, rounds=options.rounds), names))
    finally:
        stop.set()
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

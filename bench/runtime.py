"""knarr-runtime beside runc and crun: `run`, with and without Docker's kind of seccomp profile, and the single verbs.

``python bench/runtime.py [--rounds N]`` as root; prints Markdown and writes a plot. What is installed is measured,
not the source tree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import plot
from timing import Figures, command, interleave, peak_of, table

if TYPE_CHECKING:
    from collections.abc import Callable

CGROUP_UNIFIED = "/sys/fs/cgroup/unified"


def make_bundle(folder: Path, seccomp: dict | None) -> Path:
    """Runc's default config, terminal off, busybox `true`."""
    busybox = next(path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path))
    (folder / "rootfs/bin").mkdir(parents=True)
    for name in ("proc", "sys", "dev"):
        (folder / "rootfs" / name).mkdir()
    shutil.copy(busybox, folder / "rootfs/bin/busybox")
    for applet in ("true", "sleep", "sh"):
        (folder / "rootfs/bin" / applet).symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/bin/true"]
    # crun 1.8 refuses versions above 1.0, and what it makes of newer ones is not our question here.
    config["ociVersion"] = "1.0.2"
    if seccomp is not None:
        config["linux"]["seccomp"] = seccomp
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def docker_like_profile() -> dict:
    """The engine's default profile of knarr: as long as Docker's, and the same kind."""
    from knarr.spec.seccomp_default import default_profile

    capabilities = json.loads((Path(__file__).parent / "capabilities.json").read_text())
    return default_profile(capabilities, os.uname().machine)


def runtimes(knarr: str) -> dict[str, str]:
    """Name -> path of ours and of those peers that are installed."""
    found = {"knarr-runtime": knarr}
    for name in ("runc", "crun"):
        for place in (shutil.which(name), f"/usr/sbin/{name}"):
            if place and os.access(place, os.X_OK):
                found[name] = place
                break
    return found


def hide_unified() -> None:
    """Crun 1.8 refuses a hybrid: enter a private mount namespace and unmount its unified half there."""
    if os.path.ismount(CGROUP_UNIFIED):
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["umount", "-l", CGROUP_UNIFIED], check=True)


VERBS = ("create", "start", "state", "kill", "delete")


def verbs(found: dict[str, str], scratch: Path, bundle: Path, rounds: int) -> dict[str, dict[str, Figures]]:
    """The life of one container, each verb timed, the runtimes in turn; verb -> runtime -> figures."""
    figures = {verb: {name: Figures() for name in found} for verb in (*VERBS, "sum")}
    for number in range(rounds + 2):
        for name, binary in found.items():
            id = f"bench-{uuid.uuid4().hex[:10]}"
            call = [binary, "--root", str(scratch / f"root-{name}")]
            operands = {"create": ["--bundle", str(bundle), id], "kill": [id, "KILL"]}
            total = 0.0
            for verb in VERBS:
                if verb == "delete":
                    _wait_stopped(call, id)
                start = time.perf_counter()
                command(*call, verb, *operands.get(verb, [id]))()
                wall = (time.perf_counter() - start) * 1000
                total += wall
                if number >= 2:
                    figures[verb][name].wall.append(wall)
            if number >= 2:
                figures["sum"][name].wall.append(total)
    return figures


def _wait_stopped(call: list[str], id: str) -> None:
    for _ in range(500):
        said = subprocess.run([*call, "state", id], capture_output=True, text=True, check=True).stdout
        if json.loads(said)["status"] == "stopped":
            return
        time.sleep(0.002)
    raise RuntimeError(f"{id} does not stop")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--knarr", default=shutil.which("knarr-runtime", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    )
    parser.add_argument("--svg", default="build/bench-runtime.svg", help="where the plot goes")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench/runtime.py needs root: runc and crun make cgroups here", file=sys.stderr)
        return 2
    if not options.inside:
        return subprocess.run(
            ["unshare", "-m", sys.executable, __file__, *sys.argv[1:], "--inside"], check=False
        ).returncode
    hide_unified()
    found = runtimes(options.knarr)
    peers = [name for name in found if name != "knarr-runtime"]
    scratch = Path(tempfile.mkdtemp(prefix="knarr-bench-"))
    jobs: dict[str, dict[str, Figures]] = {}
    try:
        for title, profile in (
            ("run, no seccomp profile", None),
            ("run, Docker's kind of seccomp profile", docker_like_profile()),
        ):
            bundle = make_bundle(scratch / uuid.uuid4().hex, profile)
            contenders = {}
            for name, binary in found.items():
                root = str(scratch / f"root-{name}")
                contenders[name] = _run(binary, root, bundle)
            figures = interleave(contenders, rounds=options.rounds)
            for name, binary in found.items():
                figures[name].peak = peak_of(*_words(binary, str(scratch / f"root-{name}"), bundle))
            print(table(title, figures, peers))
            jobs[title.partition(",")[0] + (", seccomp" if profile else "")] = figures
            if profile is not None:
                for verb, rows in verbs(found, scratch, _sleeping(bundle), options.rounds).items():
                    print(table(f"{verb}, with seccomp", rows, peers))
                    jobs["the five verbs" if verb == "sum" else verb] = rows
        plot.write(Path(options.svg), "knarr-runtime beside runc and crun", jobs)
        print(f"plot: {options.svg}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _words(binary: str, root: str, bundle: Path) -> list[str]:
    return [binary, "--root", root, "run", "--bundle", str(bundle), f"bench-{uuid.uuid4().hex[:10]}"]


def _run(binary: str, root: str, bundle: Path) -> Callable[[], None]:
    def once() -> None:
        command(*_words(binary, root, bundle))()  # each time another id

    return once


def _sleeping(bundle: Path) -> Path:
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/sleep", "1000"]
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


if __name__ == "__main__":
    sys.exit(main())

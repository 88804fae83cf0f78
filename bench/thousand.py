"""A thousand containers at a time: created, started, listed, killed, deleted; is the cost flat, and what is left?

``python bench/thousand.py [--count N] [--runtime NAME[=PATH]…]`` as root; prints Markdown. A figure is the median of
the calls it names, in milliseconds of CPU time (user and system) and of the clock; "at 1" are the first fifty, "at N"
the last fifty, with N containers there. CPU time is what a loaded machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from runtime import make_bundle, runtimes

EDGE = 50


class Taken(NamedTuple):
    """Milliseconds of one call."""

    cpu: float
    wall: float


class Callee:
    """One runtime with a state root of its own."""

    def __init__(self, path: str, root: Path) -> None:
        self.command = [path, "--root", str(root)]

    def __call__(self, *words: str) -> Taken:
        """Call it, demand success."""
        begun = time.perf_counter()
        null = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
        argv = [*self.command, *words]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=null)
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")
        return Taken((usage.ru_utime + usage.ru_stime) * 1000, (time.perf_counter() - begun) * 1000)


def there(mark: str) -> dict[str, int]:
    """What the machine holds of containers whose ids begin with ``mark``."""
    groups = sum(name.startswith(mark) for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    mounts = sum(mark in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    keys = len(re.findall(rf"_ses\.{mark}", Path("/proc/keys").read_text()))
    processes = 0
    for place in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            processes += mark in place.read_text()
        except OSError:
            continue
    return {"processes": processes, "cgroups": groups, "mounts": mounts, "keyrings": keys}


def life(callee: Callee, bundle: Path, count: int, mark: str) -> dict[str, list[Taken]]:
    """All of it; verb -> milliseconds of each call, in order."""
    ids = [f"{mark}{number:05}" for number in range(count)]
    taken: dict[str, list[Taken]] = {"create": []}
    taken["list, empty"] = [callee("list") for _ in range(10)]
    for number, container in enumerate(ids):
        taken["create"].append(callee("create", "--bundle", str(bundle), container))
        if number == 0:
            taken["state at 1"] = [callee("state", container) for _ in range(EDGE)]
    taken["state at N"] = [callee("state", container) for container in ids[-EDGE:]]
    taken["list, N"] = [callee("list") for _ in range(10)]
    for verb, more in {"start": [], "kill": ["KILL"], "delete": []}.items():
        taken[verb] = [callee(verb, container, *more) for container in ids]
    return taken


def report(name: str, taken: dict[str, list[Taken]], count: int, left: dict[str, int]) -> list[str]:
    """Lines of the table."""

    def row(verb: str, first: list[Taken], last: list[Taken]) -> str:
        cpu, wall = ([statistics.median(each[n] for each in calls) for calls in (first, last)] for n in (0, 1))
        ratio = f"{(cpu[1] - cpu[0]) / count * 1000:.0f} µs each" if verb == "list" else f"{cpu[1] / cpu[0]:.2f}"
        return f"| {name} | {verb} | {cpu[0]:.1f} | {cpu[1]:.1f} | {ratio} | {wall[0]:.1f} | {wall[1]:.1f} |"

    lines = [row(verb, taken[verb][:EDGE], taken[verb][-EDGE:]) for verb in ("create", "start", "kill", "delete")]
    lines.append(row("state", taken["state at 1"], taken["state at N"]))
    lines.append(row("list", taken["list, empty"], taken["list, N"]))
    lines.append(f"| {name} | left behind | {', '.join(f'{n} {what}' for what, n in left.items())} | | | | |")
    return lines


def settled(mark: str) -> dict[str, int]:
    """What is there in the end: dead processes wait for the pid 1 of the machine, keys for the kernel."""
    deadline = time.monotonic() + 30
    while any((found := there(mark)).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="a thousand containers at a time")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--runtime", action="append", metavar="NAME[=PATH]", help="default: knarr")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("this needs root")
    scratch = Path(tempfile.mkdtemp(prefix="knarr-thousand-"))
    mark = f"k{uuid.uuid4().hex[:8]}-"
    try:
        bundle = make_bundle(scratch / "bundle", None)
        config = json.loads((bundle / "config.json").read_text())
        config["process"]["args"] = ["/bin/sleep", "100000"]
        (bundle / "config.json").write_text(json.dumps(config))
        known = runtimes(shutil.which("knarr-runtime") or str(Path(sys.prefix, "bin/knarr-runtime")))
        known["knarr"] = known.pop("knarr-runtime")
        print(f"| runtime | verb | CPU at 1 | CPU at {options.count} | ratio | clock at 1 | clock at {options.count} |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for word in options.runtime or ["knarr"]:
            name, _, path = word.partition("=")
            root = scratch / f"state-{name}"
            taken = life(Callee(path or known[name], root), bundle, options.count, mark)
            left = settled(mark)
            left["state directories"] = sum(entry.startswith(mark) for entry in os.listdir(root))
            print("\n".join(report(name, taken, options.count, left)), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()

"""``knarr-runtime-kernel`` beside Debian's runsc, runc and knarr-runtime: starting, computing, compiling, unpacking.

``python bench/isolation.py [--rounds N] [--jobs true,compile]`` as root; prints Markdown and writes a plot. What is
installed is measured, not the source tree. The programs are the host's own: its /usr is bound read-only into an
otherwise empty root. ``vm`` are the starts of a microVM, ``memory`` is what a container takes; neither is drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import footprint
import plot
from timing import Figures, command, interleave, table

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
INIT = HERE.parent / "src/knarr/init"
MEMORY = 512 << 20
JOBS = {
    "true": ("start to exit of `true`", ["true"], 25),
    "compute": ("computing: a loop in Python", ["python3", "-I", "-S", "/job/compute"], 5),
    "pipe": ("system calls: 16 MiB through a pipe in 4 KiB", ["sh", "/job/pipe"], 5),
    "compile": ("compiling: four of knarr-init's C files", ["sh", "/job/compile"], 5),
    "unpack": ("files: unpacking a tar of 2,000 files", ["sh", "/job/unpack"], 5),
    "python": (
        "a Python test suite: 500 tests of strings and JSON",
        ["python3", "/job/tests.py"],
        5,
    ),
    "vm": ("start to exit of `true` in a microVM", ["true"], 5),
}
MEASURED = (*JOBS, "memory")
SCRIPTS = {
    "compute": "sum(n * n % 7 for n in range(20_000_000))\n",
    "pipe": "dd if=/dev/zero bs=4096 count=4096 2>/dev/null | dd of=/dev/null bs=4096 2>/dev/null\n",
    "compile": "cd /job/init && for n in paths exec control plan; do gcc -O2 -w -c -o /tmp/$n.o $n.c || exit 1; done\n",
    "unpack": "cd /tmp && tar xf /job/files.tar && test $(find many -type f | wc -l) = 2000\n",
}
TESTS = """
import json, re, unittest

class Each(unittest.TestCase):
    pass

def case(n):
    def test(self):
        text = json.dumps({str(k): [k] * 20 for k in range(n)})
        self.assertEqual(len(json.loads(text)), n)
        self.assertEqual(len(re.findall(r"[0-9]+(?=:)", re.sub('"', "", text))), n)
    return test

for n in range(500):
    setattr(Each, f"test_{n}", case(n % 100))

unittest.main(testRunner=unittest.TextTestRunner(stream=open("/dev/null", "w")))
"""


def make_bundle(folder: Path, job: str) -> Path:
    """Runc's default config without a cgroup mount, the host's /usr and a folder with the job's files."""
    root = folder / "rootfs"
    for name in ("proc", "sys", "dev", "tmp", "usr", "job", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text())
    config["ociVersion"] = "1.0.2"
    config["process"]["terminal"] = False
    config["process"]["args"] = JOBS[job][1] if job in JOBS else ["true"]
    config["process"]["env"] = ["PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=/tmp"]
    config["mounts"] = [entry for entry in config["mounts"] if entry["type"] != "cgroup"]
    config["mounts"] += [
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        {"destination": "/job", "type": "bind", "source": str(folder.parent / "job"), "options": ["rbind", "ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
    ]
    config["linux"]["resources"] = {"memory": {"limit": MEMORY}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_work(folder: Path) -> None:
    """What the jobs read."""
    folder.mkdir()
    shutil.copytree(INIT, folder / "init", ignore=shutil.ignore_patterns("knarr-init"))
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    (folder / "tests.py").write_text(TESTS)
    with tarfile.open(folder / "files.tar", "w") as archive:
        for number in range(2000):
            entry = tarfile.TarInfo(f"many/{number // 50}/{number}")
            entry.size = 1000 + number * 7 % 9000
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))


def contenders(scratch: Path) -> dict[str, list[str]]:
    """Name -> command line up to the verb, of those that are installed."""
    ours = Path(sys.prefix, "bin")
    found = {"knarr kernel": [str(ours / "knarr-runtime-kernel")], "knarr namespace": [str(ours / "knarr-runtime")]}
    for name in ("runsc", "runc"):
        path = shutil.which(name) or f"/usr/sbin/{name}"
        if os.access(path, os.X_OK):
            found[name] = [path]
    if "runsc" in found:
        # It does not know a hybrid of cgroup v1 and v2, and its other platforms take KVM.
        found["runsc"] += ["--platform=ptrace", "--network=none", "--ignore-cgroups"]
    return {name: [*line, "--root", str(scratch / f"root-{name.replace(' ', '-')}")] for name, line in found.items()}


def once(line: list[str], bundle: Path) -> Callable[[], None]:
    """A contender: a container run to its end."""

    def run() -> None:
        command(*line, "run", "--bundle", str(bundle), f"bench-{uuid.uuid4().hex[:10]}")()

    return run


class Templates:
    """A keeper with guests of a kind ready, and the wait for the next to be."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._knarr = str(Path(sys.prefix, "bin", "knarr"))

    def __enter__(self) -> Self:
        self._call("start", "--isolation", self._kind, "--count", "2", "--memory", str(MEMORY))
        return self

    def __exit__(self, *_: object) -> None:
        self._call("stop")

    def _call(self, *words: str) -> str:
        done = subprocess.run([self._knarr, "template", *words], check=True, capture_output=True, text=True)
        return done.stdout

    def wait(self) -> None:
        """Until one is ready."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if any(guest["State"] == "ready" for guest in json.loads(self._call("list", "--format", "json"))):
                return
            time.sleep(0.02)
        raise RuntimeError("no template becomes ready")


def measure(job: str, lines: dict[str, list[str]], scratch: Path, rounds: int) -> dict[str, Figures]:
    """One job by all contenders in turn; with templates in rounds of their own, after waiting for one to be ready."""
    bundle = make_bundle(scratch / f"bundle-{job}", job)
    kind = "vm" if job == "vm" else "kernel"
    if job == "vm":
        lines = {"knarr vm": guest_line("vm", scratch)}
    figures = interleave({name: once(line, bundle) for name, line in lines.items()}, rounds=rounds, warmup=1)
    if job in ("true", "vm"):
        name = f"knarr {kind}"
        with Templates(kind) as templates:
            warm, run = Figures(), once(lines[name], bundle)
            for number in range(rounds + 2):
                templates.wait()
                start = time.perf_counter()
                run()
                if number >= 2:
                    warm.wall.append((time.perf_counter() - start) * 1000)
        figures = {name: figures.pop(name), f"{name}, template": warm, **figures}
    return figures


def guest_line(kind: str, scratch: Path) -> list[str]:
    """The command line of a kind up to the verb."""
    name = "knarr-runtime" if kind == "namespace" else f"knarr-runtime-{kind}"
    return [str(Path(sys.prefix, "bin", name)), "--root", str(scratch / f"root-{kind}")]


def memory(scratch: Path) -> str:
    """What a container of each kind takes, and one of a template."""
    bundle = make_bundle(scratch / "bundle-memory", "memory")
    lines = {kind: guest_line(kind, scratch) for kind in ("namespace", "kernel", "vm")}
    found = {kind: footprint.footprint(line, bundle, 2 if kind == "vm" else 4) for kind, line in lines.items()}
    with Templates("kernel") as templates:
        found["kernel, template"] = footprint.footprint(lines["kernel"], bundle, 4, templates.wait)
    return footprint.table(found)


def relative(jobs: dict[str, dict[str, Figures]]) -> dict[str, dict[str, Figures]]:
    """Each job in per cent of runsc's median: they take from a tenth of a second to a minute."""
    found: dict[str, dict[str, Figures]] = {}
    for title, figures in jobs.items():
        base = figures["runsc" if "runsc" in figures else "runc"].median / 100
        found[title] = {}
        for name, figure in figures.items():
            found[title][name] = Figures()
            found[title][name].wall = [wall / base for wall in figure.wall]
    return found


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="of each job; 0: as many as it takes")
    parser.add_argument("--jobs", default=",".join(MEASURED))
    parser.add_argument("--plot", type=Path, default=Path("build/bench-isolation.svg"))
    asked = parser.parse_args()
    if os.geteuid():
        raise SystemExit("run it as root: runsc and runc are measured with what root can do")
    scratch = Path(tempfile.mkdtemp(prefix="knarr-bench-"))
    os.environ["KNARR_TEMPLATES"] = str(scratch / "templates")
    try:
        make_work(scratch / "job")
        lines = contenders(scratch)
        jobs = {}
        for job in asked.jobs.split(","):
            if job == "memory":
                print(memory(scratch))
                continue
            title, _, rounds = JOBS[job]
            figures = measure(job, lines, scratch, asked.rounds or rounds)
            print(table(title, figures, [name for name in ("runsc", "runc") if name in figures]))
            print()
            if job != "vm":
                jobs[title] = figures
        if not jobs:
            return
        plot.write(asked.plot, "knarr kernel beside runsc and runc", relative(jobs), "% of runsc's median")
        print(f"plot: {asked.plot}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()

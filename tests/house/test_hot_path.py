"""What knarr-runtime loads, verb by verb: nothing but the listed modules (docs/decisions.md, "What an import costs").

Each verb is run as the launcher runs it, with ``-X importtime``, and the modules it names are compared with the list.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from house import HOT_IMPORTS, modules

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCH = "import sys; sys.path.append(sys.argv.pop(1)); from knarr.cli.runtime_launch import launch; launch()"
INTERPRETER = [sys.executable, "-I", "-S", "-X", "utf8", "-X", "importtime", "-c"]
COLD_OURS = {module.name for module in modules() if not module.is_hot and module.text}


class Outcome(NamedTuple):
    """How it ended, what it printed, and the modules it loaded."""

    returncode: int
    stdout: str
    stderr: str
    modules: set[str]


def loaded_by(arguments: list[str]) -> Outcome:
    """Run the interpreter to its end; its output goes to files, since a created container keeps pipes open."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        command = [*INTERPRETER, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, check=False, timeout=60)
        stdout.seek(0)
        stderr.seek(0)
        printed, said = stdout.read().decode(), stderr.read().decode()
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \| +([\w.]+)$", said, re.MULTILINE)
    return Outcome(done.returncode, printed, re.sub(r"^import time:.*\n", "", said, flags=re.MULTILINE), set(names))


@cache
def allowed() -> frozenset[str]:
    """Every module that is loaded when the whole list is imported, and the interpreter's own."""
    there = sorted(name for name in HOT_IMPORTS if importlib.util.find_spec(name))
    return frozenset(loaded_by([f"import {', '.join(there)}"]).modules)


def run(*arguments: str) -> Outcome:
    """Run knarr-runtime and check what it loaded."""
    packages = str(Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages"))
    done = loaded_by([LAUNCH, packages, *arguments])
    names = done.modules
    assert "knarr.cli.runtime_launch" in names, done.stderr
    foreign = {name for name in names - allowed() if name.partition(".")[0] != "knarr"}
    assert not foreign, f"knarr-runtime {' '.join(arguments)} loads {sorted(foreign)}"
    cold = names & COLD_OURS
    assert not cold, f"knarr-runtime {' '.join(arguments)} loads cold modules {sorted(cold)}"
    return done


pytestmark = pytest.mark.usefixtures("knarr_runtime")


def test_the_list_itself_is_cheap() -> None:
    dear = {"re", "json", "enum", "typing", "functools", "collections", "contextlib", "subprocess", "dataclasses"}
    assert not allowed() & dear


def test_the_test_sees_a_dear_import() -> None:
    assert {"json", "re", "enum"} <= loaded_by(["import json"]).modules - allowed()


@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["list", "-q"], ["features"]], ids=" ".join)
def test_verbs_that_need_no_container(arguments: list[str], tmp_path: Path) -> None:
    done = run("--root", str(tmp_path), *arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete"])
def test_a_refusal_is_hot_too(verb: str, tmp_path: Path) -> None:
    done = run("--root", str(tmp_path), verb, "nobody")
    assert done.returncode != 0
    assert "nobody" in done.stderr


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """Root directory, bundle (busybox and the default config.json) and an id; deleted afterwards."""
    busybox = shutil.which("busybox")
    if os.geteuid() != 0:
        pytest.skip("needs root: starts a container with the default config.json")
    if busybox is None:
        pytest.skip("busybox-static is not installed: it is the program in the container")
    bundle = tmp_path / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    for folder in ("proc", "dev", "sys", "tmp"):
        (bundle / "rootfs" / folder).mkdir()
    shutil.copy(busybox, bundle / "rootfs/bin/busybox")
    for name in ("true", "sleep", "sh"):
        (bundle / "rootfs/bin" / name).symlink_to("busybox")
    root = str(tmp_path / "state")
    made = subprocess.run(
        [str(Path(sys.prefix, "bin", "knarr-runtime")), "spec", "--bundle", str(bundle)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    config = bundle / "config.json"
    text = config.read_text().replace('"terminal": true', '"terminal": false')
    config.write_text(re.sub(r'"args": \[\s*"sh"\s*\]', '"args": ["sleep", "60"]', text))
    name = f"hot-{secrets.token_hex(4)}"
    yield root, str(bundle), name
    run("--root", root, "delete", "--force", name)


def test_a_container_s_life(container: tuple[str, str, str]) -> None:
    root, bundle, name = container
    Path(root).mkdir(0o700)  # that is done once in a boot
    for verb, *rest in (
        ("create", "--bundle", bundle, name),
        ("state", name),
        ("start", name),
        ("exec", name, "true"),
        ("list",),
        ("ps", "--format", "json", name),
        ("events", "--stats", name),
        ("pause", name),
        ("update", "--pids-limit", "90", name),
        ("resume", name),
        ("kill", name, "KILL"),
    ):
        done = run("--root", root, verb, *rest)
        assert done.returncode == 0, (verb, done.stderr)
        # What engines wait for has no use for os, which is dear, nor for struct (docs/decisions.md, "What an import costs").
        if verb not in ("ps", "events"):
            assert not {"os", "struct"} & done.modules, verb

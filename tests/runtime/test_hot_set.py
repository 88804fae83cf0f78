"""The hot path is a rule: what each verb loads is a known, cheap set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blackbox import ROOT, Bundle, Runtime, needs_busybox, needs_root, run_to_files

pytestmark = [needs_busybox, needs_root]

# Cost of each in docs/decisions.md; what an interpreter without site has loaded anyway is not listed.
CHEAP = {
    *("os", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "os.path", "__future__"),
    *("errno", "fcntl", "select", "time", "gc", "struct", "_struct", "resource"),
    *("_socket", "_json", "_ctypes", "_signal"),
}
PROGRAM = """
import sys
sys.path.append(sys.argv.pop(1))
out = sys.argv.pop(1)
bare = set(sys.modules)
from knarr.cli.runtime_main import main
code = main()
with open(out, "w") as file:
    file.write(" ".join(sorted(set(sys.modules) - bare)))
sys.exit(code)
"""


@pytest.fixture
def loaded(ours: Runtime, tmp_path: Path) -> object:
    """Run a verb and return what it loaded."""
    if len(ours.command) < 5:
        source = subprocess.run(
            [sys.executable, "-c", "import knarr; print(knarr.__file__)"], capture_output=True, text=True, check=True
        ).stdout.strip()
        place = str(Path(source).parents[1])
    else:
        place = str(ROOT / "src")

    def run(*words: str) -> set[str]:
        out = tmp_path / "modules"
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, place, str(out), "--root", str(ours.root), *words]
        done = run_to_files(command, stdin=-3, timeout=60)
        assert done.returncode == 0, done.stderr
        return set(out.read_text().split())

    return run


def is_cold(name: str) -> bool:
    path = ROOT / "src" / Path(*name.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return "(cold" in file.read_text(encoding="utf-8").split('"""')[1] if file.stat().st_size else False


VERBS = ("create", "state", "list", "start", "exec", "kill", "delete", "run", "spec", "features", "plan")


def test_every_verb_stays_in_the_hot_set(loaded: object, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.write("sleep", "1000")
    id = ours.new_id()
    lines = {
        "create": ("create", "--bundle", path, id),
        "state": ("state", id),
        "list": ("list",),
        "start": ("start", id),
        "exec": ("exec", id, "true"),
        "kill": ("kill", id, "KILL"),
        "delete": ("delete", "--force", id),
        "features": ("features",),
        "plan": ("plan", path),
    }
    seen: dict[str, set[str]] = {}
    for verb, words in lines.items():
        seen[verb] = loaded(*words)  # type: ignore[operator]
    bundle.write("true")
    seen["run"] = loaded("run", "--bundle", path, ours.new_id())  # type: ignore[operator]
    seen["spec"] = loaded("spec", "--bundle", str(tmp_path))  # type: ignore[operator]
    assert set(seen) == set(VERBS)
    for verb, names in seen.items():
        foreign = {name for name in names if not name.startswith("knarr")}
        assert foreign <= CHEAP, (verb, foreign - CHEAP)
        cold = {name for name in names if name.startswith("knarr.") and is_cold(name)}
        assert cold == set(), (verb, cold)
    for verb in ("state", "list", "kill", "delete", "start"):
        heavy = {"knarr.plan.container", "knarr.spec.validate", "knarr.kernel.ffi", "knarr.runtime.create"}
        assert not seen[verb] & heavy if verb in {"state", "list", "kill"} else True, (verb, seen[verb] & heavy)
    if os.environ.get("KNARR_SHOW"):
        print(json.dumps({verb: sorted(names) for verb, names in seen.items()}, indent=1))

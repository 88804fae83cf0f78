"""What was tested on this machine's cgroups once more on cgroup v2, under user-mode Linux: groups, and the verbs that
have to do with them, on all runtimes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "uml"))
import uml

from knarr.runtime import cgroup_probe

HOST = cgroup_probe.probe()
HERE = Path(__file__)
KEPT = ("KNARR_TEST_INSTALLED", "KNARR_TEST_RUNTIME")


# The other runtimes were run there by hand: in the guest a test takes seconds.
@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (("test_cgroup_groups.py",), ""),
        (("test_options.py",), "admits and not crun or knarr and (cgroup or sigkill)"),
        (("test_conformance.py",), "not runc and not crun"),
        (("test_error_pointers.py",), "refused_with_its_field and cgroup"),
        (
            ("test_pause.py", "test_update.py", "test_events.py", "test_resources.py"),
            "not runc and not crun and not size and not sense",
        ),
    ],
    ids=["groups", "options", "conformance", "errors", "verbs"],
)
@pytest.mark.skipif(HOST is not None and HOST.mode == "v2", reason="the same tests have run on this v2 host")
def test_on_cgroup_v2(files: tuple[str, ...], wanted: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted]
    command += [str(HERE.parent / name) for name in files]
    paths = [path for path in sys.path if path.startswith("/")]
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        done = uml.run(
            command, cwd=str(HERE.parents[2]), timeout=280, env={**environment, "PYTHONPATH": ":".join(paths)}
        )
    except uml.NoUml as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert "passed" in summary
    skipped = [line for line in done.stdout.splitlines() if "only v2 has types" in line or "unified needs" in line]
    assert skipped == []

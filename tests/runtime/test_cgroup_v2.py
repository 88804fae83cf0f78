"""runtime/cgroup.py on cgroup v2: test_cgroup_groups.py once more, under user-mode Linux."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "uml"))
import uml

from knarr.runtime import cgroup

HOST = cgroup.probe()


@pytest.mark.skipif(HOST is not None and HOST.mode == "v2", reason="test_cgroup_groups.py has run on this v2 host")
def test_groups_on_cgroup_v2() -> None:
    here = Path(__file__)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(here.parent / "test_cgroup_groups.py"),
    ]
    paths = [path for path in sys.path if path.startswith("/")]
    try:
        done = uml.run(command, cwd=str(here.parents[2]), timeout=280, env={"PYTHONPATH": ":".join(paths)})
    except uml.NoUml as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert "passed" in summary
    skipped = [line for line in done.stdout.splitlines() if "only v2 has types" in line or "unified needs" in line]
    assert skipped == []

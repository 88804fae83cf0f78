"""``make demo`` does what it says, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DEMO = Path(__file__).parents[2] / "scripts" / "demo"


def test_demo(knarr: str, knarr_runtime: str) -> None:
    assert Path(knarr).parent == Path(knarr_runtime).parent
    before = set(os.listdir("/tmp"))
    done = subprocess.run(
        [str(DEMO)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PATH": f"{Path(knarr).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("manifest  sha256:", "diffID  sha256:", '"status": "created"', "exit code 7", "pid 1", "Alpine"):
        assert words in done.stdout
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("knarr-demo-")}
    assert not left

"""What tests/vm asks of the machine. Such a machine is what ``make test-vm`` boots; elsewhere the tests skip, saying what lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_HINT = "(make test-vm has it)"
SYSTEMD = Path("/run/systemd/system").is_dir() and Path("/proc/1/comm").read_text().strip() == "systemd"
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()

needs_systemd = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD or not UNIFIED, reason=f"needs root, systemd as PID 1 and cgroup v2 {_HINT}"
)


@cache
def criu_says() -> str:
    """Why CRIU cannot work here; empty where it can."""
    criu = shutil.which("criu", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if criu is None:
        return "criu is not installed"
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run([criu, "check"], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    return "" if done.returncode == 0 else f"criu check: {lines[-1]}"


needs_criu = pytest.mark.skipif(bool(criu_says()), reason=f"CRIU: {criu_says()} {_HINT}")

"""The guest of ``make test-vm`` is what its tests count on: run there, nothing in this folder may skip for its sake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guest import SYSTEMD, UNIFIED, criu_says

pytestmark = pytest.mark.skipif("KNARR_VM" not in os.environ, reason="about the guest of make test-vm")


def test_systemd_runs_and_owns_cgroup_v2() -> None:
    assert SYSTEMD
    assert UNIFIED
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(
        Path("/sys/fs/cgroup/cgroup.controllers").read_text(encoding="ascii").split()
    )


def test_an_ordinary_user_has_a_manager() -> None:
    assert Path("/run/user/1000/bus").is_socket()


def test_criu_works() -> None:
    assert criu_says() == ""


def test_apparmor_is_on() -> None:
    assert Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii").startswith("Y")

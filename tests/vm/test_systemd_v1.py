"""The systemd cgroup driver on cgroup v1: make test-vm boots a second time for it, with the legacy hierarchies."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blackbox import Bundle, Runtime, left_behind
from guest import SYSTEMD, UNIFIED

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD or UNIFIED,
    reason="needs root, systemd as PID 1 and cgroup v1 (make test-vm has it)",
)
V1 = Path("/sys/fs/cgroup")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime("knarr", tmp_path)
    made.command.append("--systemd-cgroup")
    yield made
    made.clean()


def shown(unit: str, *names: str) -> dict[str, str]:
    command = ["systemctl", "show", unit, *(f"-p{name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_a_scope_in_every_hierarchy(runtime: Runtime, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "bundle")
    bundle.config["linux"]["resources"].update(memory={"limit": 64 << 20}, cpu={"shares": 512}, pids={"limit": 50})
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    unit = f"knarr-{id}.scope"
    path = f"/system.slice/{unit}"
    lines = Path(f"/proc/{runtime.state(id)['pid']}/cgroup").read_text(encoding="ascii").splitlines()
    mounted = [line for line in lines if not line.startswith("0::")]
    assert {line.split(":", 2)[2] for line in mounted} == {path}
    assert len(mounted) > 5
    assert shown(unit, "MemoryLimit", "CPUShares", "TasksMax", "DevicePolicy", "Delegate") == {
        "MemoryLimit": str(64 << 20), "CPUShares": "512", "TasksMax": "50", "DevicePolicy": "strict", "Delegate": "yes",
    }  # fmt: skip
    assert (V1 / "memory" / path[1:] / "memory.limit_in_bytes").read_text(encoding="ascii").strip() == str(64 << 20)

    def devices_hold() -> None:
        assert runtime("exec", id, "sh", "-c", "echo > /dev/null && head -c 1 /dev/zero > /dev/null").returncode == 0
        assert runtime("exec", id, "mknod", "/tmp/disk", "b", "8", "0").returncode != 0

    devices_hold()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    devices_hold()
    runtime.ok("update", "--pids-limit", "33", id)
    assert shown(unit, "TasksMax") == {"TasksMax": "33"}
    assert (V1 / "pids" / path[1:] / "pids.max").read_text(encoding="ascii").strip() == "33"
    devices_hold()
    runtime.ok("pause", id)
    assert runtime.state(id)["status"] == "paused"
    runtime.ok("resume", id)
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []
    assert shown(unit, "ActiveState") == {"ActiveState": "inactive"}

"""Podman with knarr-runtime on a machine with systemd: scopes, rootless, checkpoint and restore."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, knarr_command
from guest import needs_criu, needs_systemd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    needs_systemd,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (make test-vm has it)"),
]
IMAGE = "localhost/knarr-vm-test:1"
USER = 1000


class Podman:
    """Podman with knarr-runtime, root's or a user's."""

    def __init__(self, folder: Path, *, user: bool) -> None:
        self.user = user
        runtime = folder / "knarr-runtime"
        runtime.write_text(f'#!/bin/sh\nexec {" ".join(knarr_command())} "$@"\n')
        runtime.chmod(0o755)
        self.command = ["podman", "--runtime", str(runtime), "--cgroup-manager", "systemd", "--events-backend", "file"]
        self.options: dict[str, Any] = {"cwd": "/"}
        if user:
            env = {**os.environ, "HOME": "/home/tester", "XDG_RUNTIME_DIR": f"/run/user/{USER}", "USER": "tester"}
            env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path=/run/user/{USER}/bus"
            self.options |= {"user": USER, "group": USER, "extra_groups": [], "env": env}

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self.command, *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240, **self.options,
        )  # fmt: skip
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.returncode} {done.stderr}"
        return str(done.stdout).strip()


@pytest.fixture(scope="module", params=[False, True], ids=["root", "user"])
def podman(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    folder = tmp_path_factory.mktemp("podman")
    for above in (folder, *folder.parents):
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    made = Podman(folder, user=request.param)
    bundle = Bundle(folder / "bundle")
    with tarfile.open(folder / "root.tar", "w") as tar:
        tar.add(bundle.rootfs, arcname=".")
    made("import", str(folder / "root.tar"), IMAGE)
    yield made
    made("rm", "--force", "--all", "--time", "0")
    made("rmi", IMAGE)


def group_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").removeprefix("0::").strip()


def test_a_container_in_a_scope(podman: Podman) -> None:
    words = ["run", "--detach", "--network", "none", "--memory", "64m", "--pids-limit", "99", IMAGE, "sleep", "1000"]
    id = podman(*words)
    pid = podman("inspect", "--format", "{{.State.Pid}}", id)
    above = f"/user.slice/user-{USER}.slice/user@{USER}.service/user.slice" if podman.user else "/machine.slice"
    assert group_of(pid) == f"{above}/libpod-{id}.scope"
    files = Path("/sys/fs/cgroup" + group_of(pid))
    assert (files / "memory.max").read_text(encoding="ascii").strip() == str(64 << 20)
    assert (files / "pids.max").read_text(encoding="ascii").strip() == "99"
    assert podman("exec", id, "echo", "hello") == "hello"
    podman("pause", id)
    podman("unpause", id)
    if not podman.user:
        podman("update", "--memory", "96m", id)
        assert (files / "memory.max").read_text(encoding="ascii").strip() == str(96 << 20)
    podman("stop", "--time", "1", id)
    podman("rm", id)
    assert not files.exists()


@needs_criu
def test_checkpoint_and_restore(podman: Podman, tmp_path: Path) -> None:
    if podman.user:
        pytest.skip("podman checkpoints as root only")
    loop = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done"
    id = podman("run", "--detach", "--network", "none", IMAGE, "sh", "-c", loop)
    time.sleep(3)
    podman("container", "checkpoint", id)
    assert podman("inspect", "--format", "{{.State.Status}} {{.State.Checkpointed}}", id) == "exited true"
    podman("container", "restore", id)
    first = int(podman("exec", id, "cat", "/tmp/count") or 0)
    time.sleep(1)
    assert int(podman("exec", id, "cat", "/tmp/count") or 0) > first > 0
    # As a file, and back under another name, as when it moves to another machine.
    podman("container", "checkpoint", "--export", str(tmp_path / "moved.tar.gz"), id)
    podman("rm", id)
    podman("container", "restore", "--import", str(tmp_path / "moved.tar.gz"), "--name", "moved")
    assert int(podman("exec", "moved", "cat", "/tmp/count") or 0) > first
    podman("rm", "--force", "--time", "0", "moved")

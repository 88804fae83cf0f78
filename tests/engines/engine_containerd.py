"""containerd in a box; ``ctr`` names the runtime for each container, the shim is containerd's own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from engine import Engine
from enginebox import Box, need
from transcript import Recorder

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "/run/containerd-test"
IMAGE = "docker.io/library/small:latest"


class Containerd(Engine):
    """The daemon, started, with the image ``small``."""

    daemons = ("containerd --config",)
    places = (f"{FOLDER}/",)
    states = (f"{FOLDER}/io.containerd.runtime.v2.task/default/*", "/run/containerd/runc/default/*")

    def __init__(self, box: Box, runtime: str, archive: Path) -> None:
        super().__init__(box, runtime)
        need("containerd", "ctr", "containerd-shim-runc-v2")
        self.log = box.folder / "containerd.log"
        (box.folder / "config.toml").write_text(
            f'version = 2\nroot = "{box.folder}/root"\nstate = "{FOLDER}"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{FOLDER}.sock"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{box.folder}/opt"\n'
        )
        self.start()
        self.recorder()("image", "import", str(archive))

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.daemon = self.box.spawn("containerd", "--config", f"{self.box.folder}/config.toml", log=self.log)
        end = time.monotonic() + 60
        while self.daemon.poll() is None and time.monotonic() < end:
            if not self.recorder().quiet("version").returncode:
                return
            time.sleep(0.1)
        last = self.log.read_text(errors="replace").splitlines()[-1:]
        pytest.fail(f"containerd does not start: {' '.join(last)[:400]}")

    def stop(self, signal: str) -> None:
        (pid,) = [pid for pid, args in self.box.processes().items() if args.startswith(self.daemons)]
        self.box.run("kill", f"-{signal}", str(pid))
        self.daemon.wait(60)

    def recorder(self) -> Recorder:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.box.folder)}
        return Recorder(self, self.box.command("ctr", "-a", f"{FOLDER}.sock"), environment)

    def containers(self) -> list[str]:
        return self.recorder().quiet("container", "ls", "-q").stdout.split()

    def clear(self) -> None:
        client = self.recorder()
        for name in self.containers():
            client.quiet("task", "rm", "-f", name)
            client.quiet("container", "rm", name)

    def is_containers(self, group: str) -> bool:
        return bool(group)

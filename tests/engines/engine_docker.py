"""dockerd in a box, with one runtime for everything it runs."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
from engine import Engine
from enginebox import Box, need
from transcript import Recorder

if TYPE_CHECKING:
    from pathlib import Path

# Where Debian's client is not the first one in PATH, it is still the one that belongs to the daemon.
CLIENT = "/usr/bin/docker"
FOLDER = "/run/docker-test"


class Docker(Engine):
    """The daemon, started, with the image ``small``."""

    daemons = ("dockerd", "containerd --config", "/usr/bin/docker-proxy")
    places = ("/overlay2/", "/vfs/", f"{FOLDER}/netns/", "/rootfs", "/mounts/")
    states = (f"{FOLDER}/runtime-*/moby/*", f"{FOLDER}/containerd/daemon/io.containerd.runtime.v2.task/moby/*")

    def __init__(self, box: Box, runtime: str, archive: Path) -> None:
        super().__init__(box, runtime)
        need("dockerd", "docker", "containerd", "containerd-shim-runc-v2", "iptables")
        self.socket = f"{FOLDER}.sock"
        self.log = box.folder / "dockerd.log"
        (box.folder / "daemon.json").write_text("{}")
        self.start()
        self.box.run("docker", "-H", f"unix://{self.socket}", "load", "-q", "-i", str(archive))

    def start(self, *options: str) -> None:
        """Start the daemon and wait until it answers."""
        folder = self.box.folder
        words = ["dockerd", "--config-file", f"{folder}/daemon.json", "--data-root", f"{folder}/data"]
        words += ["--exec-root", FOLDER, "--pidfile", f"{FOLDER}.pid", "-H", f"unix://{self.socket}"]
        words += ["--cgroup-parent", self.box.cgroup]
        words += ["--add-runtime", f"tested={self.runtime}", "--default-runtime", "tested", *options]
        self.daemon = self.box.spawn(*words, log=self.log)
        end = time.monotonic() + 60
        while self.daemon.poll() is None and time.monotonic() < end:
            if not self.recorder().quiet("version").returncode:
                return
            time.sleep(0.1)
        last = self.log.read_text(errors="replace").splitlines()[-1:]
        pytest.fail(f"dockerd does not start: {' '.join(last)[:400]}")

    def stop(self, signal: str = "TERM") -> None:
        """Stop the daemon as systemd would, or kill it."""
        pid = self.box.run("cat", f"{FOLDER}.pid").strip()
        self.box.run("kill", f"-{signal}", pid)
        self.daemon.wait(60)

    def recorder(self) -> Recorder:
        client = CLIENT if shutil.which(CLIENT) else "docker"
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.box.folder), "DOCKER_BUILDKIT": "0"}
        command = self.box.command(client, "-H", f"unix://{self.socket}")
        return Recorder(self, command, environment)

    def containers(self) -> list[str]:
        return self.recorder().quiet("ps", "-aq").stdout.split()

    def clear(self) -> None:
        if left := self.containers():
            self.recorder().quiet("rm", "-f", "-v", *left)

    def leftovers(self) -> list[str]:
        return [left for left in super().leftovers() if left != f"mount {FOLDER}/netns/default"]

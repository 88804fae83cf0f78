"""dockerd in a box, with one runtime for everything it runs."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from enginebox import Box, need
from transcript import Broken, Recorder

if TYPE_CHECKING:
    from pathlib import Path

# Where Debian's client is not the first one in PATH, it is still the one that belongs to the daemon.
CLIENT = "/usr/bin/docker"


class Docker:
    """The daemon, started; ``recorder`` makes a client that records."""

    def __init__(self, box: Box, runtime: str, archive: Path) -> None:
        need("dockerd", "docker", "containerd", "containerd-shim-runc-v2", "iptables")
        self.box = box
        self.runtime = runtime
        self.socket = "/run/docker-test.sock"
        self.log = box.folder / "dockerd.log"
        (box.folder / "daemon.json").write_text("{}")
        self.start()
        self.box.run("docker", "-H", f"unix://{self.socket}", "load", "-q", "-i", str(archive))

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        folder = self.box.folder
        words = ["dockerd", "--config-file", f"{folder}/daemon.json", "--data-root", f"{folder}/data"]
        words += ["--exec-root", "/run/docker-test", "--pidfile", "/run/docker-test.pid", "-H", f"unix://{self.socket}"]
        words += [
            "--cgroup-parent",
            self.box.cgroup,
            "--add-runtime",
            f"tested={self.runtime}",
            "--default-runtime",
            "tested",
        ]
        self.daemon = self.box.spawn(*words, log=self.log)
        end = time.monotonic() + 60
        while self.daemon.poll() is None and time.monotonic() < end:
            if not self.recorder().quiet("version").returncode:
                return
            time.sleep(0.1)
        last = self.log.read_text(errors="replace").splitlines()[-1:]
        pytest.fail(f"dockerd does not start: {' '.join(last)[:400]}")

    def stop(self) -> None:
        """Stop the daemon as systemd would."""
        pid = self.box.run("cat", "/run/docker-test.pid").strip()
        self.box.run("kill", "-TERM", pid)
        self.daemon.wait(60)

    def recorder(self) -> Recorder:
        client = CLIENT if shutil.which(CLIENT) else "docker"
        folder = str(self.box.folder)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": folder, "DOCKER_BUILDKIT": "0", "TERM": "xterm"}
        command = self.box.command(client, "-H", f"unix://{self.socket}")
        return Recorder(self.box, command, environment, runc=os.path.basename(self.runtime) == "runc")

    def check_nothing_left(self) -> None:
        """After a script: no container, no process of one, no mount, no cgroup, no state of the runtime. Raises Broken."""
        left = [f"container {row}" for row in self.recorder().quiet("ps", "-aq").stdout.split()]
        end = time.monotonic() + 10
        while True:
            found = self._leftovers()
            if not found or time.monotonic() > end:
                break
            time.sleep(0.1)
        if left or found:
            raise Broken(f"left behind by {self.runtime}: " + "; ".join((*left, *found)))

    def _leftovers(self) -> list[str]:
        daemons = ("dockerd", "containerd --config", "/usr/bin/docker-proxy")
        left = [f"process {pid} {args}" for pid, args in self.box.processes().items() if not args.startswith(daemons)]
        parts = ("/overlay2/", "/netns/", "/rootfs", "/mounts/")
        left += [
            f"mount {place}"
            for place in set(self.box.mounts()) - {"/run/docker-test/netns/default"}
            if any(part in place for part in parts)
        ]
        # A parent that --cgroup-parent named is left by runc, removed by ours.
        left += [f"cgroup {group}" for group in self.box.cgroups() if len(os.path.basename(group)) == 64]
        state = self.box.run(
            "sh",
            "-c",
            "ls -d /run/docker-test/runtime-*/moby/* /run/docker-test/containerd/daemon/io.containerd.runtime.v2.task/moby/* 2>/dev/null || true",
        )
        left += [f"state {path}" for path in state.split()]
        return left

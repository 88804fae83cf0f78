"""A box for a real engine: network, mount and process namespaces of its own, so that whatever it leaves goes with it.

The engine runs unmodified, as root, on this kernel and in this machine's cgroups; but its bridges, firewall rules,
mounts, sockets below /run and processes are seen by nobody else, and end when the box's first process is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
# Somebody must reap what daemons leave behind: process 1 does, and says when it is there.
FIRST = """
import os, time
os.write(1, b".")
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.05)
"""
# What engines keep in one place for the whole machine: empty in the box.
OWN_FOLDERS = ("/run", "/dev/shm", "/etc/cni/net.d", "/etc/containers/networks", "/var/lib/containers", "/var/lib/cni")


def need(*programs: str) -> None:
    """Skip unless root is here and every program is."""
    if os.geteuid() != 0:
        pytest.skip("an engine of its own needs root")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (scripts/prepare system test)")


class Box:
    """The namespaces; ``command`` says how to start a program in them."""

    def __init__(self, folder: Path) -> None:
        need("unshare", "nsenter", "setpriv", "setsid", "ip")
        self.folder = folder
        self.cgroup = f"/knarr-engines-{uuid.uuid4().hex[:8]}"
        """Parent of all cgroups the engine makes; removed with the box."""
        self._daemons: list[subprocess.Popen[bytes]] = []
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        words += ["--mount-proc", "--propagation", "private", "--", sys.executable, "-I", "-S", "-c", FIRST]
        self._outer = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._outer.stdout is not None
        if self._outer.stdout.read(1) != b".":
            pytest.skip(f"unshare cannot make namespaces here (exit code {self._outer.wait()})")
        task = f"/proc/{self._outer.pid}/task/{self._outer.pid}/children"
        self.first = int(Path(task).read_text().split()[0])
        self.run("ip", "link", "set", "lo", "up")
        self.run("mount", "--make-rshared", "/")  # as systemd leaves it
        for place in OWN_FOLDERS:
            if os.path.isdir(place):
                mode = "mode=1777" if place == "/dev/shm" else "mode=755"
                self.run("mount", "-t", "tmpfs", "-o", mode, "tmpfs", place)
        rows = Path(f"/proc/{self.first}/mountinfo").read_text().splitlines()
        self._known_mounts = {row.split()[0] for row in rows}

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.first), "-m", "-n", "-p", "--", *words]

    def run(self, *words: str) -> str:
        """Run a program that must succeed; its output."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def spawn(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a daemon that ends with the box, if not before; what it says is added to ``log``."""
        with log.open("ab") as out:
            daemon = subprocess.Popen(self.command(*words), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self._daemons.append(daemon)
        return daemon

    def put(self, path: str, text: str) -> None:
        """Show a file of our own at ``path``, in the box only."""
        own = self.folder / f"file-{uuid.uuid4().hex[:8]}"
        own.write_text(text)
        self.run("mount", "--bind", str(own), path)

    def processes(self) -> dict[int, str]:
        """The processes of the box by their pids there: command lines, those of zombies too."""
        rows = self.run("ps", "-eo", "pid=,args=").splitlines()
        found = {int(row.split()[0]): row.split(maxsplit=1)[1] for row in rows}
        return {pid: args for pid, args in found.items() if pid != 1 and not args.startswith("ps -eo pid=,args=")}

    def mounts(self) -> list[str]:
        """Mount points in the box that came after it was made."""
        rows = [row.split() for row in Path(f"/proc/{self.first}/mountinfo").read_text().splitlines()]
        return [row[4] for row in rows if row[0] not in self._known_mounts]

    def cgroups(self) -> list[str]:
        """Groups below ``cgroup``, of every hierarchy."""
        return sorted(
            str(place)
            for top in hierarchies()
            for place in (top / self.cgroup[1:]).rglob("*")
            if place.is_dir() and not place.is_symlink()
        )

    def close(self) -> None:
        """Kill all, then remove the cgroups; the rest went with the namespaces."""
        with contextlib.suppress(ProcessLookupError):
            self._outer.kill()
        self._outer.wait()
        assert self._outer.stdout is not None
        self._outer.stdout.close()
        for daemon in self._daemons:
            daemon.wait()
        for top in hierarchies():
            remove_group(top / self.cgroup[1:])


def hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [place for place in CGROUPS.iterdir() if place.is_dir() and not place.is_symlink()]


def remove_group(top: Path) -> None:
    """Remove a cgroup and those below it, waiting for their last processes."""
    if not top.exists():
        return
    until = time.monotonic() + 10
    groups = [top, *(place for place in top.rglob("*") if place.is_dir())]
    for group in sorted(groups, key=lambda place: -len(place.parts)):
        while True:
            try:
                group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                thaw(group)
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)


def thaw(group: Path) -> None:
    """A frozen process does not die."""
    for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (group / name).exists():
                (group / name).write_text(value)


@contextlib.contextmanager
def box(folder: Path) -> Iterator[Box]:
    """A box that is gone afterwards, come what may."""
    made = Box(folder)
    try:
        yield made
    finally:
        made.close()

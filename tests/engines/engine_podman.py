"""Podman with conmon in a box: no daemon, but the same isolation; as root or as an ordinary user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine import Engine
from enginebox import Box, need
from transcript import Recorder

import knarr

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = "/run/podman-test"
USER = 1777
PYTHON = "/usr/bin/python3"
# Limits of our own: Podman asks for more open files than this process may have where CAP_SYS_RESOURCE is missing.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
{containers}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
runtime_supports_json = ["runc", "knarr-runtime"]
conmon_path = ["/usr/bin/conmon"]
{engine}
"""
STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{folder}/root"
runroot = "{run}/run"
[storage.options.vfs]
ignore_chown_errors = "{ignore}"
"""


class Podman(Engine):
    """Podman for root, with the image ``small``."""

    daemons: tuple[str, ...] = ("catatonit -P", "/usr/bin/slirp4netns", "/usr/lib/podman/aardvark-dns", "podman pause")
    places = ("/overlay-containers/", "/overlay/", "/vfs-containers/", "/vfs/dir/", "/netns/")
    driver = "overlay"
    ignore = "false"
    """Whether files may have another owner than the image says: who has one id has no choice."""

    def __init__(self, box: Box, runtime: str, archive: Path, *, containers: Sequence[str] = ()) -> None:
        super().__init__(box, runtime)
        need("podman", "conmon", "/usr/lib/podman/netavark", "catatonit", "iptables")
        self.where = FOLDER
        self.home = f"{FOLDER}/home"
        self.prepare()
        self.states = (f"{self.run}/runtime/*",)
        (box.folder / "containers.conf").write_text(
            CONFIG.format(runtime=self.runtime, containers="\n".join(containers), engine=f'tmp_dir = "{self.run}/tmp"')
        )
        (box.folder / "storage.conf").write_text(
            STORAGE.format(driver=self.driver, folder=self.data, run=self.run, ignore=self.ignore)
        )
        self.box.run("cp", f"{box.folder}/containers.conf", f"{box.folder}/storage.conf", str(archive), FOLDER)
        self.recorder()("load", "-q", "-i", f"{FOLDER}/{archive.name}")

    def prepare(self) -> None:
        self.run, self.data = f"{FOLDER}/run", str(self.box.folder)
        for name in ("/etc/subuid", "/etc/subgid"):  # for --userns=auto
            self.box.put(name, "containers:2147483647:2147483648\n")
        self.box.run("mkdir", "-p", self.run, self.home)

    def as_user(self) -> list[str]:
        return []

    def recorder(self) -> Recorder:
        environment = {
            "PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.home,
            "CONTAINERS_CONF": f"{FOLDER}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{FOLDER}/storage.conf",
            "XDG_RUNTIME_DIR": f"{self.run}",
            "TMPDIR": f"{self.run}",
        }
        return Recorder(self, self.box.command(*self.as_user(), "podman"), environment)

    def containers(self) -> list[str]:
        return self.recorder().quiet("ps", "-aq").stdout.split()

    def clear(self) -> None:
        client = self.recorder()
        client.quiet("pod", "rm", "-f", "-t", "0", "-a")
        client.quiet("rm", "-f", "-t", "0", "-v", "-a")

    def is_containers(self, group: str) -> bool:
        return group.removeprefix("libpod-") != group


class RootlessPodman(Podman):
    """Podman for an ordinary user whom only the box knows, with ``subids`` in /etc/subuid or none."""

    driver = "vfs"

    def __init__(self, box: Box, runtime: str, archive: Path, *, subids: bool) -> None:
        self.subids = subids
        self.ignore = "false" if subids else "true"
        super().__init__(box, runtime, archive)

    def prepare(self) -> None:
        passwd = Path("/etc/passwd").read_text() + f"tester:x:{USER}:{USER}::{self.home}:/bin/sh\n"
        self.box.put("/etc/passwd", passwd)
        self.box.put("/etc/group", Path("/etc/group").read_text() + f"tester:x:{USER}:\n")
        for name in ("/etc/subuid", "/etc/subgid"):
            self.box.put(name, "tester:300000:65536\n" if self.subids else "")
        self.run, self.data = f"{FOLDER}/run", f"{FOLDER}/data"
        # The test's folder is root's alone.
        store = self.box.folder / "data"
        store.mkdir()
        self.box.run("mkdir", "-p", self.run, self.data, self.home)
        self.box.run("mount", "--bind", str(store), self.data)
        self.box.run("chown", f"{USER}:{USER}", self.run, self.data, self.home)
        self.box.run("chmod", "700", self.run)
        # Where no udev sets its mode, /dev/net/tun is root's alone; slirp4netns wants it.
        self.box.run("mknod", "-m", "666", f"{FOLDER}/tun", "c", "10", "200")
        self.box.run("mount", "--bind", f"{FOLDER}/tun", "/dev/net/tun")
        if not self.is_runc:
            self.runtime = self.installed_for_all()

    def installed_for_all(self) -> str:
        """The installation, copied to where an ordinary user can read it: the Python of the tests may be root's alone."""
        top = f"{FOLDER}/knarr"
        site = f"{top}/lib/python3/dist-packages"
        self.box.run("mkdir", "-p", f"{top}/bin", site)
        self.box.run("cp", "-r", os.path.dirname(knarr.__file__), f"{site}/knarr")
        name = os.path.basename(self.runtime)
        self.box.run("cp", self.runtime, f"{top}/bin/{name}")
        self.box.run("sh", "-c", f"echo '#!{PYTHON}' > {top}/bin/knarr; chmod -R a+rX {top}")
        return f"{top}/bin/{name}"

    def as_user(self) -> list[str]:
        return ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--"]

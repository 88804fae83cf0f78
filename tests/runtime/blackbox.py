"""A runtime as its callers see it: a program with a command line. knarr-runtime, runc and crun take the same tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import knarr

ROOT = Path(__file__).parents[2]
BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "")
APPLETS = (
    *("sh", "ls", "cat", "id", "env", "echo", "sleep", "true", "false", "kill", "grep", "readlink", "stat", "head"),
    *("pwd", "mkdir", "rm", "touch", "tty", "wc", "test", "stty", "ln", "mknod", "ps", "umount", "mount", "dd", "trap"),
)
CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
UNIFIED = "/sys/fs/cgroup/unified"
NAMES = ("knarr", "runc", "crun")
SOMEBODY = 54321
"""An ordinary user."""


def is_static(path: str) -> bool:
    """Whether an ELF file needs no loader."""
    data = Path(path).read_bytes()
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return all(struct.unpack_from("<I", data, start + size * n)[0] != 3 for n in range(count))


def knarr_command() -> list[str]:
    """KNARR_TEST_RUNTIME, the installed knarr-runtime where tests run against the installation, else the source tree's."""
    if os.environ.get("KNARR_TEST_RUNTIME"):
        return [os.environ["KNARR_TEST_RUNTIME"]]
    installed = Path(sys.prefix, "bin", "knarr-runtime")
    if os.environ.get("KNARR_TEST_INSTALLED"):
        return [str(installed)]
    if not (ROOT / "src/knarr/init/knarr-init").exists():
        if installed.exists():
            return [str(installed)]
        pytest.skip("knarr-init is not built (make build)")
    return [sys.executable, "-I", "-S", str(ROOT / "src/knarr/cli/runtime_launch.py")]


def command_for_others(folder: Path) -> list[str]:
    """knarr-runtime for an ordinary user, who may not reach the Python of the tests: it may lie in root's home.

    Then the package is copied into ``folder`` and run by the system's Python.
    """
    command = knarr_command()
    try:
        nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
        if (
            os.geteuid()
            or not subprocess.run([*command, "--version"], capture_output=True, check=False, **nobody).returncode
        ):
            return command
    except PermissionError:
        pass
    python = "/usr/bin/python3"
    old = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not os.access(python, os.X_OK) or subprocess.run(old, check=False).returncode:
        pytest.skip(f"no Python of 3.11 or later that an ordinary user can reach (not {sys.executable})")
    shutil.copytree(Path(knarr.__file__).parent, folder / "site/knarr")
    return [python, "-I", "-S", str(folder / "site/knarr/cli/runtime_launch.py")]


def command_of(name: str, scratch: Path) -> list[str]:
    """How to call a runtime; skips when it is not there."""
    if name == "knarr":
        return knarr_command()
    found = next(
        (p for p in (shutil.which(name), f"/usr/sbin/{name}", f"/usr/bin/{name}") if p and os.path.exists(p)), None
    )
    if found is None:
        pytest.skip(f"{name} is not installed")
    if name == "crun" and os.path.ismount(UNIFIED):
        # crun refuses hybrid cgroups: hide the unified half in a mount namespace of its own
        script = scratch / "crun"
        inner = f'mount --make-rprivate / && umount -l {UNIFIED} && exec {found} "$@"'
        script.write_text(f"#!/bin/sh\nexec unshare -m sh -c '{inner}' crun \"$@\"\n")
        script.chmod(0o755)
        return [str(script)]
    return [found]


class Runtime:
    """One runtime with a state root of its own; every container it made is removed by ``clean``."""

    patience = 30.0
    """Seconds a call may take."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.root = scratch / "state"
        self.command = [*command_of(name, scratch), "--root", str(self.root)]
        self.ids: list[str] = []
        # crun 1.8 gives its stdin to the container's user, and so the machine's /dev/null: it gets one of its own.
        self.null = Path(os.devnull)
        if name == "crun" and os.geteuid() == 0:
            self.null = scratch / "null"
            os.mknod(self.null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    def new_id(self) -> str:
        """An id nobody else uses, also as name of a cgroup."""
        self.ids.append(f"t{uuid.uuid4().hex[:12]}")
        return self.ids[-1]

    def __call__(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        with self.null.open("rb") as null:
            options: dict[str, Any] = {"stdin": null, "timeout": self.patience, **more}
            if "stdout" not in options:
                # Files, not pipes: a container that inherits them must not keep us waiting for their end.
                return run_to_files([*self.command, *words], **options)
            return subprocess.run([*self.command, *words], text=True, check=False, **options)

    def ok(self, *words: str, **more: Any) -> str:
        """Run it, demand success, return its standard output."""
        done = self(*words, **more)
        assert done.returncode == 0, f"{words}: {done.returncode} {done.stderr}{done.stdout}"
        return done.stdout

    def state(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("state", id))
        return found

    def wait_for(self, id: str, status: str, seconds: float = 10) -> dict[str, Any]:
        """Wait until the container has this status."""
        deadline = time.monotonic() + seconds
        while (found := self.state(id))["status"] != status:
            assert time.monotonic() < deadline, f"still {found}"
            time.sleep(0.02)
        return found

    def popen(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen[bytes]([*self.command, *words], **more)

    def clean(self) -> None:
        for id in self.ids:
            if (self.root / id).exists():
                self("delete", "--force", id)


def run_to_files(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    with (
        open(os.memfd_create("out"), "w+", encoding="utf-8", errors="replace") as out,
        open(os.memfd_create("err"), "w+", encoding="utf-8", errors="replace") as err,
    ):
        done = subprocess.run(command, stdout=out, stderr=err, check=False, **options)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())


class Bundle:
    """A bundle of busybox; ``config`` is written by ``write``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        for applet in APPLETS:
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        self.config = default_config()

    def write(self, *args: str, **process: Any) -> str:
        """Write config.json with these arguments; returns the bundle's path."""
        if args:
            self.config["process"]["args"] = [*args]
        self.config["process"].update(process)
        (self.path / "config.json").write_text(json.dumps(self.config))
        return str(self.path)


class Rootless:
    """A folder of an ordinary user's, and knarr-runtime run by that user."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.command = command_for_others(folder)
        self.bundle = Bundle(folder / "bundle")
        self.bundle.config = config
        (folder / "run").mkdir(mode=0o700)
        for top, names, files in os.walk(folder):
            for name in (*names, *files, "."):
                os.chown(f"{top}/{name}", SOMEBODY, SOMEBODY, follow_symlinks=False)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(self.folder / "run")}
        return run_to_files(
            [*self.command, *words],
            user=SOMEBODY,
            group=SOMEBODY,
            extra_groups=[],
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )


def with_user_namespace(config: dict[str, Any], maps: list[dict[str, int]]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = maps


def default_config() -> dict[str, Any]:
    """What ``runc spec`` writes, terminal off, root writable, in a version all three runtimes take."""
    quiet = ["nosuid", "noexec", "nodev"]
    spaces = ["pid", "network", "ipc", "uts", "mount"]
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {name: [*CAPABILITIES] for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*quiet, "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": name} for name in spaces],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    if os.geteuid() != 0:
        config["linux"]["namespaces"] = [{"type": name} for name in (*spaces, "user") if name != "network"]
        config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        del config["linux"]["resources"]
        config["mounts"][2]["options"].remove("gid=5")
        config["mounts"][4] = {
            "destination": "/sys",
            "type": "none",
            "source": "/sys",
            "options": ["rbind", *quiet, "ro"],
        }
    return config


def processes_with(*marks: str) -> list[str]:
    """Live processes whose command line or cgroup names one of ``marks``."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
            words = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            groups = (proc / "cgroup").read_text()
        except (OSError, IndexError):
            continue
        if (
            state not in "ZX"
            and proc.name != str(os.getpid())
            and any(mark in words or mark in groups for mark in marks)
        ):
            found.append(f"{proc.name} {words}")
    return found


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat: S sleeping, D not to be disturbed, Z dead, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


PURE_V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def cgroup_of(pid: int, controller: str) -> Path:
    """The group of a process in the v1 hierarchy with that controller, or the v2 group."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if PURE_V2 and not names:
            return Path(f"/sys/fs/cgroup{path}")
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{names}{path}")
    pytest.skip(f"this machine has no cgroup controller {controller}")


def limit_of(pid: int, v1: str, v2: str) -> str:
    """What a file of the process's cgroup says: ``v1`` or ``v2``, whichever this machine has."""
    controller = v1.partition(".")[0]
    return (cgroup_of(pid, controller) / (v2 if PURE_V2 else v1)).read_text().strip()


def cgroups_named(*marks: str) -> list[str]:
    """Cgroup directories whose name holds one of ``marks``."""
    found = []
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{top}/{name}" for name in names if any(mark in name for mark in marks)]
    return found


def mounts_at(path: Path) -> list[str]:
    """The host's mounts at or below a path, or of something there: other tests mount elsewhere meanwhile."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]


def left_behind(runtime: Runtime, id: str, seconds: float = 3) -> list[str]:
    """What there still is of a container: state, cgroups, processes. Waits a little for the kernel to finish."""
    deadline = time.monotonic() + seconds
    while True:
        found = cgroups_named(id) + processes_with(id)
        if (runtime.root / id).exists():
            found.append(f"state {id}")
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()


needs_busybox = pytest.mark.skipif(not BUSYBOX or not is_static(BUSYBOX), reason="busybox-static is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

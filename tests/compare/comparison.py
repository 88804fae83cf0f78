"""Default configs of runc, podman, docker and ctr, run by two runtimes; what the process inside sees, field by field.

``python tests/compare/comparison.py`` prints the table that stands in docs/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = ("runc", "ctr", "podman", "docker")
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")
APPLETS = (
    *("sh", "grep", "sed", "cut", "sort", "stat", "find", "cat", "readlink"),
    *("env", "pwd", "ls", "wc", "true", "sleep", "echo", "id"),
)


class CannotCompare(Exception):
    """A program that writes the config is missing or does not work here; the text says which and why."""


def busybox() -> str:
    for path in BUSYBOX:
        if os.path.exists(path) and is_static(path):
            return path
    raise CannotCompare("busybox-static is not installed")


def is_static(path: str) -> bool:
    """Whether an ELF file has no PT_INTERP."""
    data = Path(path).read_bytes()
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return all(struct.unpack_from("<I", data, start + n * size)[0] != 3 for n in range(count))


def make_rootfs(where: Path) -> None:
    """A root file system of busybox with the probe in it."""
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "run"):
        (where / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox(), where / "bin/busybox")
    for applet in APPLETS:
        (where / "bin" / applet).symlink_to("busybox")
    (where / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (where / "etc/group").write_text("root:x:0:\n")
    for name in ("resolv.conf", "hosts", "hostname"):
        (where / "etc" / name).write_text("")
    shutil.copy(HERE / "probe.sh", where / "probe.sh")


def need(program: str) -> str:
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"):
        if folder and os.access(f"{folder}/{program}", os.X_OK):
            return f"{folder}/{program}"
    raise CannotCompare(f"{program} is not installed")


def run(*command: str, timeout: float = 120, **extra: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **extra)  # type: ignore[call-overload, no-any-return]


def config_of(source: str, scratch: Path, *, rootless: bool = False) -> dict[str, Any]:
    """The config.json that this tool makes for a container with no options."""
    if source == "runc":
        bundle = Path(tempfile.mkdtemp(dir=scratch))
        done = run(need("runc"), "spec", *(["--rootless"] if rootless else []), cwd=bundle)
        if done.returncode:
            raise CannotCompare(f"runc spec: {done.stderr.strip()}")
        return _document((bundle / "config.json").read_text())
    if source == "ctr":
        return _document(run(need("ctr"), "oci", "spec").stdout)
    if os.geteuid() != 0:
        raise CannotCompare(f"{source} is asked as root only")
    copied = scratch / f"{source}.json"
    wrapper = scratch / f"copy-{source}"
    wrapper.write_text(
        '#!/bin/sh\nbefore=\nfor word in "$@"; do\n'
        f'  case $before in --bundle|-b) cp "$word/config.json" {copied};; esac\n  before=$word\ndone\n'
        f'exec {need("runc")} "$@"\n'
    )
    wrapper.chmod(0o755)
    tarball = scratch / "rootfs.tar"
    if not tarball.exists():
        root = scratch / "rootfs-for-import"
        make_rootfs(root)
        run("tar", "-C", str(root), "-cf", str(tarball), ".")
    before = set(Path("/sys/fs/cgroup").glob("*/*"))
    (_docker if source == "docker" else _podman)(scratch, wrapper, tarball)
    for group in set(Path("/sys/fs/cgroup").glob("*/*")) - before:
        if group.name in {"docker", "libpod_parent"}:  # left by those two, empty
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)
    if not copied.exists():
        raise CannotCompare(f"{source} did not reach its runtime here")
    return _document(copied.read_text())


def _document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _podman(scratch: Path, wrapper: Path, tarball: Path) -> None:
    podman = [
        need("podman"),
        "--root",
        f"{scratch}/podman",
        "--runroot",
        f"{scratch}/podman-run",
        "--storage-driver",
        "vfs",
    ]
    podman += ["--cgroup-manager", "cgroupfs", "--runtime", str(wrapper)]
    run(*podman, "import", str(tarball), "compare:1")
    # --ulimit host: podman's own default cannot be set without CAP_SYS_RESOURCE
    made = run(*podman, "create", "--ulimit", "host", "--network", "none", "compare:1", "/bin/true")
    name = made.stdout.strip()
    try:
        run(*podman, "init", name)
    finally:
        run(*podman, "rm", "-f", name)
        run(*podman, "rmi", "-f", "compare:1")


def _docker(scratch: Path, wrapper: Path, tarball: Path) -> None:
    socket = f"unix://{scratch}/docker.sock"
    log = (scratch / "dockerd.log").open("w")
    daemon = subprocess.Popen(
        [
            *(
                need("dockerd"),
                "--data-root",
                f"{scratch}/docker",
                "--exec-root",
                f"{scratch}/docker-run",
                "-H",
                socket,
            ),
            *("--pidfile", f"{scratch}/docker.pid", "--add-runtime", f"copying={wrapper}"),
            *("--iptables=false", "--bridge=none", "--storage-driver", "vfs"),
        ],
        stdout=log,
        stderr=log,
    )
    try:
        docker = [need("docker"), "-H", socket]
        for _ in range(200):
            if run(*docker, "info").returncode == 0 or daemon.poll() is not None:
                break
            time.sleep(0.1)
        run(*docker, "import", str(tarball), "compare:1")
        run(*docker, "run", "--rm", "--network", "none", "--runtime", "copying", "compare:1", "/bin/true")
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        log.close()


def prepare(config: dict[str, Any], bundle: Path, *, cgroups_path: str | None) -> None:
    """Point a captured config at our root and our probe; everything a runtime decides from it stays."""
    config["process"]["args"] = ["/bin/sh", "/probe.sh"]
    config["process"]["terminal"] = False
    config["root"] = {**config["root"], "path": "rootfs"}
    config.pop("hooks", None)
    linux = config["linux"]
    if cgroups_path is None:
        linux.pop("cgroupsPath", None)
        linux.pop("resources", None)
    else:
        linux["cgroupsPath"] = cgroups_path
    for entry in linux.get("namespaces", []):
        entry.pop("path", None)
    # Nobody can raise a hard limit without CAP_SYS_RESOURCE, which some machines keep back even from root.
    for limit in config["process"].get("rlimits") or []:
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        if hard != resource.RLIM_INFINITY:
            limit["hard"], limit["soft"] = min(limit["hard"], hard), min(limit["soft"], hard)
    (bundle / "files").mkdir(exist_ok=True)
    for entry in config.get("mounts", []):
        if entry.get("type") == "bind" and entry["source"] != "/sys":
            stand_in = bundle / "files" / entry["destination"].replace("/", "_")
            if entry["destination"] == "/dev/shm":
                stand_in.mkdir(exist_ok=True)
            else:
                stand_in.write_text("")
            entry["source"] = str(stand_in)
    (bundle / "config.json").write_text(json.dumps(config))


def look(runtime: list[str], bundle: Path, *, timeout: float = 60) -> dict[str, list[str]]:
    """Run the bundle and return the probe's sections."""
    id = f"compare-{uuid.uuid4().hex[:12]}"
    # runc's Go raises its own soft limit of open files and hands it on where config.json sets none: nothing left to raise.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    done = run(*runtime, "run", "--bundle", str(bundle), id, timeout=timeout, stdin=subprocess.DEVNULL)
    if done.returncode:
        run(*runtime, "delete", "--force", id)
        raise AssertionError(f"{runtime[0]} exits with {done.returncode}: {done.stderr.strip() or done.stdout[-500:]}")
    sections: dict[str, list[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith("## "):
            name = line[3:]
            sections[name] = []
        else:
            sections[name].append(re.sub(rf"\S*/{bundle.name}\b", "BUNDLE", line.replace(id, "ID")))
    return sections


def normalise(sections: dict[str, list[str]]) -> dict[str, list[str]]:
    """Take out what differs between two runs of one runtime: namespace numbers, peer groups, device numbers."""
    result = {}
    for name, lines in sections.items():
        if name == "namespaces":
            host = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")}
            lines = [
                f"{kind} {'host' if host.get(kind) == link else 'own'}"
                for kind, _, link in (line.partition(" ") for line in lines)
            ]
        elif name == "mounts":
            lines = [_mount_line(line) for line in lines]
        result[name] = lines
    return result


def _mount_line(line: str) -> str:
    """ "root point options [tags] - type source superoptions" -> what a process can tell from it."""
    before, _, after = line.partition(" - ")
    root, point, options, *tags = before.split(" ")
    fstype, source, superoptions = after.split(" ", 2)
    tags = [re.sub(r":\d+", "", tag) for tag in tags]
    if point == "/" or fstype in ("ext4", "xfs", "btrfs", "overlay", "hostfs"):
        root, source = "(backing)", "(backing)"
    if point.startswith(("/proc/", "/sys/")) and (root == "/null" or (fstype == "tmpfs" and "cgroup" not in point)):
        # runc binds the container's /dev/null, knarr the host's, whose identity it has checked (CVE-2025-31133).
        return f"{point} masked by {'a null device' if root == '/null' else 'an empty tmpfs'}"
    if "ro" in superoptions.split(","):
        options = ",".join({*options.split(","), "ro"} - {"rw"})  # read-only is read-only, whichever layer says so
    superoptions = ",".join(sorted(set(superoptions.split(",")) - {"rw", "ro", "inode64", "seclabel"}))
    return " ".join([point, fstype, root, ",".join(sorted(options.split(","))), *sorted(tags), source, superoptions])


def compare(
    config: dict[str, Any], scratch: Path, runtimes: dict[str, list[str]], *, cgroups: bool = True
) -> dict[str, dict[str, list[str]]]:
    """What each runtime shows for the same bundle."""
    seen = {}
    for name, command in runtimes.items():
        bundle = Path(tempfile.mkdtemp(prefix="bundle-", dir=scratch))
        bundle.chmod(0o755)
        make_rootfs(bundle / "rootfs")
        path = f"/knarr-compare-{uuid.uuid4().hex[:8]}/c" if cgroups else None
        prepare(json.loads(json.dumps(config)), bundle, cgroups_path=path)
        try:
            sections = look(command, bundle)
        finally:
            # runc leaves the parents it made.
            for parent in Path("/sys/fs/cgroup").glob(f"*{path.rpartition('/')[0]}" if path else "nothing"):
                parent.rmdir()
        if path:
            above = path.rpartition("/")[0]
            for part, lines in sections.items():
                sections[part] = [line.replace(path, "CGROUP").replace(above, "PARENT") for line in lines]
        seen[name] = normalise(sections)
        shutil.rmtree(bundle)
    return seen


# What knarr does otherwise on purpose, and why. A line of `differences` that matches one is expected.
ON_PURPOSE = {
    r"cgroup-files: only theirs: \S+/devices.list [bc] \*:\* m": "runc lets a container make any device node",
    r"cgroup-files: only theirs: \S+/devices.list c 10:200 rwm": "old runc lets every container open /dev/net/tun",
    r"cgroup-files: only ours: \S+/devices.list c 5:1 rwm": "/dev/console may be opened, as config-linux.md lists it",
    # v1: the same mount but for ro, which runc does not apply although it is asked for
    r"mounts: only ours: /sys/fs/cgroup tmpfs / nodev,noexec,nosuid,relatime,ro tmpfs \S*mode=755\S*": "ro is ro",
    r"mounts: only theirs: /sys/fs/cgroup tmpfs / nodev,noexec,nosuid,relatime,rw tmpfs \S*mode=755\S*": "ro is ro",
    # v2, ordinary user: runc 1.1.5 hides the group behind an empty tmpfs, here it is there and read-only
    r"mounts: only ours: /sys/fs/cgroup cgroup2 / nodev,noexec,nosuid,relatime,ro cgroup ": "shown read-only",
    r"mounts: only theirs: /sys/fs/cgroup tmpfs / relatime,ro tmpfs gid=65534,uid=65534": "shown read-only",
    r"writable: only (ours: /sys/fs/cgroup/x no|theirs: /sys/fs/cgroup/x yes)": "the same: ro is ro",
}


def unexpected(found: list[str]) -> list[str]:
    """The differences that have no reason."""
    return [line for line in found if not any(re.fullmatch(pattern, line) for pattern in ON_PURPOSE)]


def differences(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> list[str]:
    """One line for each value that only one of the two shows."""
    found = []
    for name in sorted(set(ours) | set(theirs)):
        mine, other = set(ours.get(name, [])), set(theirs.get(name, []))
        found += [f"{name}: only ours: {line}" for line in sorted(mine - other)]
        found += [f"{name}: only theirs: {line}" for line in sorted(other - mine)]
    return found


def as_nobody(words: list[str], knarr_runtime: str, package: Path) -> int:
    """Run this program again as uid 65534, on a copy of the package if that user cannot reach the installed one."""
    home = Path(tempfile.mkdtemp(prefix="knarr-nobody-", dir="/tmp"))
    try:
        (home / "run").mkdir(mode=0o700)
        for path in (home, home / "run"):
            os.chown(path, 65534, 65534)
        shutil.copytree(HERE, home / "compare")
        demoted = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
        python = sys.executable
        if run(*demoted, knarr_runtime, "--version", env=environment).returncode:
            # Their Python lies in root's home: the same package under the system's Python.
            python = "/usr/bin/python3"
            shutil.copytree(package, home / "site/knarr")
            launcher = home / "knarr-runtime"
            launcher.write_text(f'#!/bin/sh\nexec {python} -I -S {home}/site/knarr/cli/runtime_launch.py "$@"\n')
            launcher.chmod(0o755)
            knarr_runtime = str(launcher)
            if run(*demoted, knarr_runtime, "--version", env=environment).returncode:
                print("skipped: no Python of 3.11 or later that an ordinary user can reach")
                return 0
        again = [python, str(home / "compare/comparison.py"), "--knarr", knarr_runtime, *words]
        return subprocess.run([*demoted, *again], env=environment, cwd=home, check=False).returncode
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knarr", default=shutil.which("knarr-runtime") or "knarr-runtime")
    parser.add_argument("--peer", default="runc")
    parser.add_argument("--source", action="append", choices=SOURCES)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="a config.json to compare, too")
    parser.add_argument("--rootless", action="store_true")
    parser.add_argument(
        "--as-nobody", metavar="PACKAGE", help="as root: do it as uid 65534; PACKAGE: knarr's directory"
    )
    options = parser.parse_args()
    if options.as_nobody:
        words = ["--rootless", *(f"--source={source}" for source in options.source or ())]
        return as_nobody(words, options.knarr, Path(options.as_nobody))
    scratch = Path(tempfile.mkdtemp(prefix="knarr-compare-"))
    scratch.chmod(0o755)
    bad = 0
    wanted: list[tuple[str, Path | None]] = [(Path(file).stem, Path(file)) for file in options.config]
    wanted = [(source, None) for source in options.source or (() if wanted else SOURCES)] + wanted
    try:
        for source, file in wanted:
            try:
                if file is not None:
                    config = _document(file.read_text())
                else:
                    config = config_of(source, scratch, rootless=options.rootless)
            except CannotCompare as error:
                print(f"| {source} | skipped: {error} |")
                continue
            roots = {
                "knarr": [options.knarr, "--root", f"{scratch}/k"],
                "peer": [need(options.peer), "--root", f"{scratch}/r"],
            }
            seen = compare(config, scratch, roots, cgroups=not options.rootless)
            found = differences(seen["knarr"], seen["peer"])
            total = sum(len(lines) for lines in seen["knarr"].values())
            without_reason = unexpected(found)
            print(f"| {source} | {total} values | {len(found)} differ | {len(without_reason)} without a reason |")
            for line in found:
                print(f"    {'  ' if line not in without_reason else '! '}{line}")
            bad += bool(without_reason)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

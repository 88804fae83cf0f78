"""CRI-O, unmodified, with knarr-runtime as docs/engines.md has it configured: what kubelet asks for, with runc first.

Debian has no CRI-O, so this skips where nobody has put ``crio`` and ``pinns`` into PATH. It was run with CRI-O 1.27.8, built
from its sources.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from cri import Refused, call, decode, text
from enginebox import Box, box, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = "localhost/small:latest"
SOCKET = "/run/crio-test.sock"
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.85.0.0/16"}]]},
        }
    ],
}
CREATED, RUNNING, EXITED = 0, 1, 2


class Crio:
    """The daemon in a box, with one runtime."""

    def __init__(self, inside: Box, runtime: str, archive: Path) -> None:
        self.box = inside
        folder = inside.folder
        storage = f"[vfs@{folder}/root+/run/storage]"
        where = f"containers-storage:{storage}{IMAGE}"
        inside.run("skopeo", "--insecure-policy", "copy", "-q", f"docker-archive:{archive}:small:latest", where)
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (folder / "net.d").mkdir()
        (folder / "net.d/10-pods.conflist").write_text(json.dumps(NETWORK))
        (folder / "crio.conf").write_text(f"""
[crio]
root = "{folder}/root"
runroot = "/run/storage"
storage_driver = "vfs"
log_dir = "{folder}/logs"
version_file = "/run/crio-version"
clean_shutdown_file = "{folder}/clean"
[crio.api]
listen = "{SOCKET}"
[crio.runtime]
default_runtime = "tested"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = "{shutil.which("pinns")}"
namespaces_dir = "/run/crio-ns"
container_exits_dir = "/run/crio-exits"
container_attach_socket_dir = "/run/crio-attach"
apparmor_profile = "unconfined"
[crio.runtime.runtimes.tested]
runtime_path = "{runtime}"
runtime_type = "oci"
runtime_root = "/run/tested"
monitor_path = "{shutil.which("conmon")}"
[crio.image]
pause_image = "{IMAGE}"
pause_command = "/bin/sleep 1000"
signature_policy = "{folder}/policy.json"
[crio.network]
network_dir = "{folder}/net.d"
plugin_dirs = ["/usr/lib/cni"]
""")
        self.log = folder / "crio.log"
        words = ["crio", "--config", str(folder / "crio.conf"), "--config-dir", ""]
        self.daemon = inside.spawn("env", f"HOME={folder}", *words, log=self.log)
        end = time.monotonic() + 60
        while True:
            try:
                self("Version", {1: "v1"})
                return
            except (subprocess.CalledProcessError, Refused):
                if self.daemon.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"CRI-O does not start: {self.log.read_text(errors='replace')[-1500:]}")
                time.sleep(0.2)

    def __call__(self, method: str, message: dict[int, Any]) -> dict[int, list[Any]]:
        return call(self.box.command(), SOCKET, method, message)


@pytest.fixture(scope="module")
def daemons(
    tmp_path_factory: pytest.TempPathFactory, runtimes: dict[str, str], docker_archive: Path
) -> Iterator[dict[str, Crio]]:
    if not (shutil.which("crio") and shutil.which("pinns")):
        pytest.skip("CRI-O is not installed, and Debian has none (crio and pinns in PATH)")
    need("conmon", "curl", "skopeo")
    if not os.path.isdir("/usr/lib/cni"):
        pytest.skip("not installed: containernetworking-plugins")
    made: dict[str, Crio] = {}
    boxes = []
    try:
        for name, path in runtimes.items():
            boxes.append(box(tmp_path_factory.mktemp(f"crio-{name}")))
            made[name] = Crio(boxes[-1].__enter__(), path, docker_archive)
        yield made
    finally:
        for each in boxes:
            each.__exit__(None, None, None)


OWN_PIDS = {2: 1}
"""NamespaceOption: a pid namespace for each container."""


def pod(name: str, crio: Crio) -> dict[int, Any]:
    """A PodSandboxConfig."""
    identity = {1: name, 2: f"uid-{name}", 3: "default"}
    linux = {1: crio.box.cgroup, 2: {1: OWN_PIDS}}
    return {1: identity, 2: name, 3: str(crio.box.folder / "pod"), 6: {1: "app", 2: "test"}, 8: linux}


def container(name: str, *command: str, **more: Any) -> dict[int, Any]:
    """A ContainerConfig."""
    config: dict[int, Any] = {
        1: {1: name},
        2: {1: IMAGE},
        3: list(command),
        6: [{1: "COLOUR", 2: "red"}],
        11: f"{name}.log",
    }
    config[15] = {1: more.get("limits", {}), 2: {3: OWN_PIDS, **more.get("security", {})}}
    return config


def status(crio: Crio, id: str) -> tuple[int, int, str]:
    """(state, exit code, reason) of a container."""
    found = decode(crio("ContainerStatus", {1: id})[1][0])
    return found.get(3, [0])[0], found.get(7, [0])[0], text(found, 10)


def wait_for(crio: Crio, id: str, state: int) -> tuple[int, int, str]:
    end = time.monotonic() + 30
    while (found := status(crio, id))[0] != state:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def life(crio: Crio) -> list[Any]:
    """A pod with two containers, all that a kubelet does with it; what was seen, without ids."""
    seen: list[Any] = []
    config = pod("web", crio)
    sandbox = text(crio("RunPodSandbox", {1: config}), 1)

    def make(*words: str, **more: Any) -> str:
        return text(crio("CreateContainer", {1: sandbox, 2: container(*words, **more), 3: config}), 1)

    def execute(id: str, *words: str) -> tuple[int, str, str]:
        answer = crio("ExecSync", {1: id, 2: list(words), 3: 10})
        return answer.get(3, [0])[0], text(answer, 1), text(answer, 2)

    limits = {2: 50000, 1: 100000, 3: 512, 4: 64 << 20, 5: 100}
    first = make("first", "sleep", "1000", limits=limits, security={1: {1: ["NET_ADMIN"]}})
    seen.append(status(crio, first))
    crio("StartContainer", {1: first})
    seen.append(wait_for(crio, first, RUNNING))
    seen += [
        execute(
            first, "sh", "-c", "echo $COLOUR; hostname; id -u; cat /proc/self/oom_score_adj; echo oops >&2; exit 3"
        ),
        execute(first, "sh", "-c", "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"),
        execute(first, "sh", "-c", "ip -o -4 addr show eth0 | grep -c 10.85"),
        execute(first, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    ]
    with pytest.raises(Refused):
        execute(first, "nosuchprogram")
    crio("UpdateContainerResources", {1: first, 2: {2: 30000, 1: 100000, 4: 96 << 20}})
    seen.append(
        execute(first, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    )
    stats = decode(crio("ContainerStats", {1: first})[1][0])
    seen.append(sorted(stats))
    second = make(
        "second",
        "sh",
        "-c",
        "id -u; grep NoNewPrivs /proc/self/status; touch /x; exit 7",
        security={5: {1: 1000}, 7: 1, 11: 1},
    )
    crio("StartContainer", {1: second})
    seen.append(wait_for(crio, second, EXITED))
    lines = (crio.box.folder / "pod/second.log").read_text().splitlines()
    seen.append([line.split(" ", 1)[1] for line in lines])
    with pytest.raises(Refused, match="executable file not found"):
        make("broken", "nosuchprogram")
    seen.append(len(crio("ListContainers", {}).get(1, [])))
    crio("StopContainer", {1: first, 2: 1})
    seen.append(wait_for(crio, first, EXITED))
    for id in (first, second):
        crio("RemoveContainer", {1: id})
    crio("StopPodSandbox", {1: sandbox})
    crio("RemovePodSandbox", {1: sandbox})
    seen.append((crio("ListContainers", {}), crio("ListPodSandbox", {})))
    return seen


def test_a_pod_lives_as_with_runc(daemons: dict[str, Crio]) -> None:
    seen = {name: life(crio) for name, crio in daemons.items()}
    for name, crio in daemons.items():
        assert not [args for args in crio.box.processes().values() if "conmon" in args or "sleep 1000" in args], name
        assert crio.box.run("ls", "/run/tested").split() == [], name
        assert [group for group in crio.box.cgroups() if "conmon" not in group] == [], name
    created, running, answered, *_ = reference = seen["runc"]
    assert (created[0], running[0], answered) == (CREATED, RUNNING, (3, "red\nweb\n0\n100\n", "oops\n"))
    assert reference[9][:2] == ["stdout F 1000", "stdout F NoNewPrivs:\t1"]
    assert seen["knarr"] == reference

"""The systemd cgroup driver against systemd: what ``systemctl show`` and the group's files say, for root and a user."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from guest import needs_systemd

pytestmark = needs_systemd

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup")
USER = 1000


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Any]:
    from blackbox import Runtime

    made = Runtime("knarr", tmp_path)
    made.command.append("--systemd-cgroup")
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Any:
    from blackbox import Bundle

    made = Bundle(tmp_path / "bundle")
    made.config["process"]["args"] = ["sleep", "1000"]
    made.config["linux"]["namespaces"].append({"type": "cgroup"})
    return made


def shown(unit: str, *properties: str, user: bool = False) -> dict[str, str]:
    """What systemctl says of a unit."""
    command = ["systemctl", *(["--user"] if user else []), "show", unit, *(f"-p{name}" for name in properties)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, **(as_user() if user else {}))
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def as_user() -> dict[str, Any]:
    env = {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{USER}", "HOME": "/home/tester"}
    env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path=/run/user/{USER}/bus"
    return {"user": USER, "group": USER, "extra_groups": [], "env": env}


def group_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").removeprefix("0::").strip()


def gone(unit: str, *, user: bool = False) -> bool:
    """Whether systemd has forgotten the unit; it notices an empty group a little later."""
    for _ in range(100):
        if shown(unit, "LoadState", "ActiveState", user=user)["ActiveState"] == "inactive":
            return True
        time.sleep(0.05)
    return False


def test_a_scope_with_limits_comes_and_goes(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["linux"]["cgroupsPath"] = f"knarrtest-a.slice:box:{id}"
    bundle.config["linux"]["resources"].update(
        memory={"limit": 64 << 20, "reservation": 32 << 20},
        cpu={"shares": 512, "quota": 33333, "period": 100000, "cpus": "0"},
        pids={"limit": 50},
    )
    bundle.config["annotations"] = {
        "org.systemd.property.TimeoutStopSec": "uint64 7",
        "org.systemd.property.MemoryHigh": "uint64 60000000",
    }
    runtime.ok("create", "--bundle", bundle.write(), id)
    unit, pid = f"box-{id}.scope", runtime.state(id)["pid"]
    path = f"/knarrtest.slice/knarrtest-a.slice/{unit}"
    assert group_of(pid) == path
    said = shown(unit, "ControlGroup", "Delegate", "MemoryMax", "MemoryLow", "MemoryHigh", "CPUWeight", "TasksMax", "Slice",
                 "CPUQuotaPerSecUSec", "AllowedCPUs", "TimeoutStopUSec", "ActiveState", "Description")  # fmt: skip
    assert said == {
        "ControlGroup": path, "Delegate": "yes", "MemoryMax": str(64 << 20), "MemoryLow": str(32 << 20),
        "MemoryHigh": "60000000", "CPUWeight": "59", "TasksMax": "50", "Slice": "knarrtest-a.slice",
        "CPUQuotaPerSecUSec": "340ms", "AllowedCPUs": "0", "TimeoutStopUSec": "7s", "ActiveState": "active",
        "Description": f"container {id}",
    }  # fmt: skip
    files = {
        name: (GROUPS / path[1:] / name).read_text(encoding="ascii").strip()
        for name in ("cpu.max", "memory.max", "pids.max")
    }
    assert files == {
        "cpu.max": "33333 100000",
        "memory.max": str(64 << 20),
        "pids.max": "50",
    }  # exact, unlike the property
    runtime.ok("start", id)
    assert runtime.ok("exec", id, "cat", "/proc/self/cgroup").strip() == "0::/"
    runtime.ok("delete", "--force", id)
    assert gone(unit)
    assert not (GROUPS / path[1:]).exists()


def test_the_default_name_and_a_reload(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["linux"]["resources"]["pids"] = {"limit": 50}
    bundle.config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
    runtime.ok("run", "--detach", "--bundle", bundle.write(), id)
    path = f"/system.slice/knarr-{id}.scope"
    assert group_of(runtime.state(id)["pid"]) == path
    before = (
        runtime("exec", id, "mknod", "/tmp/disk", "b", "8", "0"),
        runtime("exec", id, "cat", "/dev/zero", timeout=5),
    )
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    (GROUPS / "system.slice/pids.max").read_text(encoding="ascii")
    assert (GROUPS / path[1:] / "memory.max").read_text(encoding="ascii").strip() == str(64 << 20)
    assert runtime("exec", id, "sh", "-c", "head -c 1 /dev/zero >/dev/null").returncode == 0
    assert runtime("exec", id, "mknod", "/tmp/disk", "b", "8", "0").returncode == before[0].returncode != 0


def test_update_and_pause(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["linux"]["resources"]["pids"] = {"limit": 50}
    runtime.ok("run", "--detach", "--bundle", bundle.write(), id)
    unit = f"knarr-{id}.scope"
    runtime.ok("update", "--pids-limit", "33", "--memory", str(48 << 20), "--memory-swap", str(48 << 20), id)
    assert shown(unit, "TasksMax", "MemoryMax") == {"TasksMax": "33", "MemoryMax": str(48 << 20)}
    assert (GROUPS / f"system.slice/{unit}/pids.max").read_text(encoding="ascii").strip() == "33"
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert (GROUPS / f"system.slice/{unit}/pids.max").read_text(encoding="ascii").strip() == "33"
    refused = runtime("update", "--cpuset-cpus", "4000", id)
    assert refused.returncode == 1
    assert shown(unit, "TasksMax") == {"TasksMax": "33"}
    runtime.ok("pause", id)
    assert runtime.state(id)["status"] == "paused"
    runtime.ok("resume", id)
    assert runtime.state(id)["status"] == "running"


def test_a_subgroup(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["annotations"] = {"run.oci.systemd.subgroup": "container"}
    bundle.config["linux"]["resources"]["pids"] = {"limit": 50}
    runtime.ok("run", "--detach", "--bundle", bundle.write(), id)
    path = f"/system.slice/knarr-{id}.scope/container"
    assert group_of(runtime.state(id)["pid"]) == path
    assert (GROUPS / path[1:] / "pids.max").read_text(encoding="ascii").strip() == "50"
    runtime.ok("exec", id, "true")
    runtime.ok("delete", "--force", id)
    assert gone(f"knarr-{id}.scope")


def test_a_stopped_container_leaves_no_unit(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    assert runtime("run", "--bundle", bundle.write("sh", "-c", "exit 7"), id).returncode == 7
    assert gone(f"knarr-{id}.scope")


def test_out_of_memory_leaves_no_failed_unit(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["linux"]["resources"]["memory"] = {"limit": 8 << 20, "swap": 8 << 20}
    done = runtime("run", "--bundle", bundle.write("sh", "-c", "x=x; while :; do x=$x$x; done"), id, timeout=90)
    assert done.returncode == 137, done.stderr
    assert gone(f"knarr-{id}.scope")


def test_somebody_elses_unit_is_left_alone(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    unit = f"other-{id}.scope"
    other = subprocess.Popen(["systemd-run", "--scope", f"--unit={unit}", "--slice=system.slice", "sleep", "1000"])
    try:
        while shown(unit, "ActiveState")["ActiveState"] != "active":
            time.sleep(0.05)
        bundle.config["linux"]["cgroupsPath"] = f"system.slice:other:{id}"
        done = runtime("create", "--bundle", bundle.write(), id)
        assert done.returncode == 1
        assert unit in done.stderr
        runtime("delete", "--force", id)
        assert other.poll() is None
        assert shown(unit, "ActiveState")["ActiveState"] == "active"
    finally:
        subprocess.run(["systemctl", "stop", unit], check=False)
        other.wait()


def test_what_systemd_refuses_is_told(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.config["annotations"] = {"org.systemd.property.NoSuchThing": "true"}
    done = runtime("create", "--bundle", bundle.write(), id)
    assert done.returncode == 1
    assert "NoSuchThing" in done.stderr
    assert not (runtime.root / id).exists()


def test_a_killed_create_is_finished_by_delete(runtime: Any, bundle: Any) -> None:
    id = runtime.new_id()
    bundle.write()
    for delay in (0.6, 0.8, 1.0, 1.2):
        with subprocess.Popen([*runtime.command, "create", "--bundle", str(bundle.path), id]) as process:
            time.sleep(delay)
            process.kill()
        runtime.ok("delete", "--force", id)
        assert gone(f"knarr-{id}.scope")
        assert not (runtime.root / id).exists()


def test_a_user(bundle: Any, tmp_path: Path) -> None:
    """An ordinary user's scope belongs to the user's manager; exec from elsewhere gets there, too."""
    id = f"u{secrets.token_hex(4)}"
    shutil.chown(tmp_path, USER, USER)
    for path in bundle.path.rglob("*"):
        os.chown(path, USER, USER, follow_symlinks=False)
    for above in tmp_path.parents:
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "network"]
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": USER, "size": 1}]
    linux["resources"] = {"pids": {"limit": 40}, "memory": {"limit": 64 << 20}}
    bundle.config["mounts"][2]["options"].remove("gid=5")
    bundle.config["mounts"][4] = {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]}
    bundle.write()
    from blackbox import knarr_command

    command = [*knarr_command(), "--root", str(tmp_path / "state"), "--systemd-cgroup"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        with (tmp_path / "out").open("w+") as out:
            done = subprocess.run(
                [*command, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, **as_user()
            )
            out.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, out.read())

    try:
        done = run("run", "--detach", "--bundle", str(bundle.path), id)
        assert done.returncode == 0, done.stdout
        state = json.loads(run("state", id).stdout)
        unit = f"knarr-{id}.scope"
        path = f"/user.slice/user-{USER}.slice/user@{USER}.service/user.slice/{unit}"
        assert group_of(state["pid"]) == path
        assert shown(unit, "TasksMax", "MemoryMax", user=True) == {"TasksMax": "40", "MemoryMax": str(64 << 20)}
        done = run("exec", id, "cat", "/proc/self/cgroup")
        assert (done.returncode, done.stdout.strip()) == (0, "0::/")
    finally:
        done = run("delete", "--force", id)
    assert done.returncode == 0, done.stdout
    assert gone(unit, user=True)


def test_without_a_bus_it_is_told(bundle: Any, tmp_path: Path) -> None:
    from blackbox import knarr_command

    command = [
        *knarr_command(),
        "--root",
        str(tmp_path / "state"),
        "--systemd-cgroup",
        "create",
        "-b",
        bundle.write(),
        "x",
    ]
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert f"D-Bus at '{tmp_path}/none': no such file or directory" in done.stderr

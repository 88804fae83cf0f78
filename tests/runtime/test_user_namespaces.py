"""User namespaces: maps written by root, by an ordinary user for itself alone, and through newuidmap."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from blackbox import (
    SOMEBODY,
    Bundle,
    Rootless,
    Runtime,
    left_behind,
    needs_busybox,
    needs_root,
    with_user_namespace,
)

pytestmark = [needs_busybox, needs_root]
SHOW = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; grep Groups /proc/self/status; ulimit -n"


def test_root_maps_a_range(runtime: Runtime, bundle: Bundle) -> None:
    with_user_namespace(bundle.config, [{"containerID": 0, "hostID": 100000, "size": 65536}])
    bundle.config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    for top, _, files in os.walk(bundle.rootfs):
        for path in (top, *(f"{top}/{name}" for name in files)):
            os.chown(path, 100000, 100000, follow_symlinks=False)
    for folder in (bundle.path, *bundle.path.parents):
        if (
            not folder.stat().st_mode & 1
            and folder.stat().st_uid == 0
            and str(folder).startswith(tempfile.gettempdir())
        ):
            folder.chmod(folder.stat().st_mode | 0o711)
    id = runtime.new_id()
    done = runtime("run", "--bundle", bundle.write("sh", "-c", SHOW), id)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:6] == ["0", "100000", "65536"] * 2
    assert words[6:8] == ["5", "6"]
    assert words[words.index("Groups:") + 1 : -1] == ["7", "8"]
    assert words[-1] == "1024"
    assert left_behind(runtime, id) == []


def test_the_map_of_a_created_container_is_the_kernels(ours: Runtime, bundle: Bundle) -> None:
    with_user_namespace(
        bundle.config,
        [{"containerID": 0, "hostID": 100000, "size": 10}, {"containerID": 10, "hostID": 200000, "size": 5}],
    )
    for folder in (bundle.path, *bundle.path.parents):
        if str(folder).startswith(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o711)
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    pid = ours.state(id)["pid"]
    for name in ("uid_map", "gid_map"):
        assert Path(f"/proc/{pid}/{name}").read_text().split() == ["0", "100000", "10", "10", "200000", "5"]
    assert os.stat(f"/proc/{pid}/root").st_ino == os.stat(bundle.rootfs).st_ino


def test_an_ordinary_user(rootless: Rootless) -> None:
    path = rootless.bundle.write("sh", "-c", SHOW)
    done = rootless("run", "--bundle", path, "mine")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:6] == ["0", str(SOMEBODY), "1"] * 2
    assert words[6:8] == ["0", "0"]
    assert os.listdir(rootless.folder / "run/knarr/.locks") == []


def test_an_ordinary_users_container_lives_and_ends(rootless: Rootless) -> None:
    path = rootless.bundle.write("sleep", "1000")
    done = rootless("run", "--detach", "--bundle", path, "mine")
    assert done.returncode == 0, done.stderr
    try:
        assert '"status": "running"' in rootless("state", "mine").stdout
        assert rootless("exec", "mine", "id", "-u").stdout == "0\n"
        assert rootless("exec", "mine", "sh", "-c", "exit 3").returncode == 3
        assert rootless("kill", "mine", "0").returncode == 0
        assert rootless("exec", "--user", "7", "mine", "true").returncode == 255  # not mapped
    finally:
        assert rootless("delete", "--force", "mine").returncode == 0
    assert rootless("list", "-q").stdout == ""


def test_an_ordinary_users_time(rootless: Rootless) -> None:
    """The offsets are written before the program enters the namespace, which it does at exec since Linux 6.3."""
    rootless.bundle.config["linux"]["namespaces"].append({"type": "time"})
    rootless.bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 2_000_000}}
    done = rootless("run", "--bundle", rootless.bundle.write("cat", "/proc/uptime"), "mine")
    if tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) < (6, 3):
        assert "it takes root, or Linux 6.3" in done.stderr
    else:
        assert float(done.stdout.split()[0]) > 2_000_000, done.stderr


def test_an_ordinary_user_cannot_shift_the_ids_of_the_hosts_file_systems(rootless: Rootless) -> None:
    options = ["bind", "idmap"]
    entry = {"destination": "/tmp", "type": "bind", "source": "/tmp", "options": options}
    rootless.bundle.config["mounts"].append(entry)
    done = rootless("run", "--bundle", rootless.bundle.write("true"), "mine")
    assert done.returncode == 1
    assert "/mounts/5" in done.stderr
    assert "an id-mapped mount is not supported: it takes root" in done.stderr


def test_without_a_user_namespace_the_hint_says_what_to_do(rootless: Rootless) -> None:
    linux = rootless.bundle.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "user"]
    del linux["uidMappings"], linux["gidMappings"]
    done = rootless("run", "--bundle", rootless.bundle.write("true"), "mine")
    assert done.returncode == 1
    assert "an ordinary user needs a user namespace" in done.stderr


def test_a_limit_that_cannot_be_set_is_not_passed_over(rootless: Rootless) -> None:
    rootless.bundle.config["linux"]["resources"] = {"memory": {"limit": 1 << 26}}
    done = rootless("run", "--bundle", rootless.bundle.write("true"), "mine")
    if done.returncode == 0:
        pytest.skip("a cgroup was delegated to this user")
    assert "/linux/resources/memory" in done.stderr


def subordinate_ids() -> bool:
    try:
        return any(line.startswith(f"{SOMEBODY}:") for line in Path("/etc/subuid").read_text().splitlines())
    except OSError:
        return False


@pytest.mark.skipif(not shutil.which("newuidmap"), reason="newuidmap (package uidmap) is not installed")
def test_a_range_that_is_not_ours_is_refused_by_the_helper(rootless: Rootless) -> None:
    if subordinate_ids():
        pytest.skip("the test's user owns subordinate ids")
    maps = [{"containerID": 0, "hostID": SOMEBODY, "size": 1}, {"containerID": 1, "hostID": 700000, "size": 10}]
    rootless.bundle.config["linux"]["uidMappings"] = rootless.bundle.config["linux"]["gidMappings"] = maps
    done = rootless("run", "--bundle", rootless.bundle.write("true"), "mine")
    assert done.returncode == 1
    assert "/linux/uidMappings" in done.stderr
    assert "see /etc/subuid and /etc/subgid" in done.stderr
    assert os.listdir(rootless.folder / "run/knarr/.locks") == []


@pytest.mark.skipif(not shutil.which("newuidmap"), reason="newuidmap (package uidmap) is not installed")
def test_a_range_through_the_helper(rootless: Rootless) -> None:
    """With /etc/subuid and /etc/subgid of our own making, in a mount namespace of our own."""
    with open("/etc/passwd", encoding="utf-8") as users:
        known = users.read()
    if f":{SOMEBODY}:" in known:
        pytest.skip("the test's user id is somebody's")
    (rootless.folder / "sub").write_text("somebody:700000:10\n")
    (rootless.folder / "passwd").write_text(f"{known}somebody:x:{SOMEBODY}:{SOMEBODY}::/:/bin/sh\n")
    maps = [{"containerID": 0, "hostID": SOMEBODY, "size": 1}, {"containerID": 1, "hostID": 700000, "size": 10}]
    rootless.bundle.config["linux"]["uidMappings"] = rootless.bundle.config["linux"]["gidMappings"] = maps
    rootless.bundle.config["process"]["user"] = {"uid": 3, "gid": 4}
    path = rootless.bundle.write("sh", "-c", SHOW)
    script = (
        f"mount --make-rprivate / && mount --bind {rootless.folder}/sub /etc/subuid && "
        f"mount --bind {rootless.folder}/sub /etc/subgid && mount --bind {rootless.folder}/passwd /etc/passwd && "
        f"exec setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups {' '.join(rootless.command)} run --bundle {path} mine"
    )
    for name in ("subuid", "subgid"):
        if not Path("/etc", name).exists():
            pytest.skip(f"there is no /etc/{name} to put ours over")
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(rootless.folder / "run")}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:6] == ["0", str(SOMEBODY), "1", "1", "700000", "10"]
    assert words[words.index("Groups:") - 2 : words.index("Groups:")] == ["3", "4"]

"""Guests that wait for an ordinary user's containers: taken, shown his files, his alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from behind import ISOLATION, need
from blackbox import left_behind, needs_busybox
from kept import Templates

from knarr.isolation import keeping
from knarr.kernel.userns import default_map
from knarr.plan.namespaces import CLONE_FLAG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blackbox import Bundle, Runtime

ordinary = pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user")


def test_an_ordinary_users_keeper_has_a_user_namespace_and_roots_has_none() -> None:
    for user in (False, True):
        plan = keeping.plan_of("/place", 60.0, user=user)
        (clone,) = (op for op in plan.ops if op.kind == "clone")
        assert clone.ints[0] == (CLONE_FLAG["user"] | CLONE_FLAG["mount"] if user else 0)
        assert bool(plan.uid_map) == bool(plan.gid_map) == user
        assert [op.kind for op in plan.ops][-2:] == ["host_program", "exec"]


@pytest.fixture
def templates(tmp_path: Path, knarr: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Templates]:
    need("kernel")
    place = tmp_path / "templates"
    monkeypatch.setenv("KNARR_TEMPLATES", str(place))
    made = Templates("kernel", place, knarr)
    made("start")
    yield made
    made("stop")
    deadline = time.monotonic() + 10
    while (place / "keeper").exists():
        assert time.monotonic() < deadline, "the keeper stays"
        time.sleep(0.05)


@pytest.fixture
def usual(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A container with the usual ids of an ordinary user's, and a volume."""
    ids = default_map(os.geteuid(), os.getegid())
    for field, ranges in (("uidMappings", ids.uids), ("gidMappings", ids.gids)):
        bundle.config["linux"][field] = [
            {"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges
        ]
    (tmp_path / "volume").mkdir()
    volume = {"destination": "/volume", "type": "bind", "source": str(tmp_path / "volume"), "options": ["rbind", "rw"]}
    bundle.config["mounts"].append(volume)
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    return bundle


@ordinary
@needs_busybox
def test_a_container_takes_one(templates: Templates, runtime: Runtime, usual: Bundle, tmp_path: Path) -> None:
    (waiting,) = templates.expect("ready")
    id = runtime.new_id()
    done = runtime("run", "-b", usual.write("sh", "-c", "id -u; echo it >/volume/it; echo k >/kept; exit 5"), id)
    assert (done.returncode, done.stdout) == (5, "0\n"), done.stderr
    written = tmp_path / "volume" / "it"
    assert (written.read_text(), written.stat().st_uid) == ("it\n", os.geteuid())
    kept = usual.rootfs / "kept"
    assert (kept.read_text(), kept.stat().st_uid) == ("k\n", os.geteuid())
    assert left_behind(runtime, id) == []
    (other,) = templates.expect("ready")
    assert other["Pid"] != waiting["Pid"]  # that one was used


@ordinary
@needs_busybox
def test_it_is_the_containers_while_it_runs(templates: Templates, runtime: Runtime, usual: Bundle) -> None:
    (waiting,) = templates.expect("ready")
    id = runtime.new_id()
    runtime.ok("create", "-b", usual.write("sleep", "600"), id)
    runtime.ok("start", id)
    _, taken = templates.expect("ready", "taken")
    assert taken["Pid"] == waiting["Pid"]
    stands = runtime.state(id)["pid"]
    for kind in ("user", "net"):
        assert os.readlink(f"/proc/{taken['Pid']}/ns/{kind}") == os.readlink(f"/proc/{stands}/ns/{kind}")
    assert os.readlink(f"/proc/{stands}/ns/user") != os.readlink("/proc/self/ns/user")
    assert runtime("exec", id, "sh", "-c", "exit 7").returncode == 7
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped", 5)
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []
    templates.expect("ready")


@ordinary
@needs_busybox
def test_other_ids_are_not_its_own(templates: Templates, runtime: Runtime, usual: Bundle) -> None:
    """Its guest would see files as another's."""
    (waiting,) = templates.expect("ready")
    usual.config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    usual.config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    ids = default_map(os.geteuid(), os.getegid())
    if len(ids.uids) == 1:  # without subordinate ids these are the usual ones
        usual.config["linux"]["uidMappings"][0]["containerID"] = 5
        usual.config["process"]["user"] = {"uid": 5, "gid": 0}
    runtime("run", "-b", usual.write("true"), runtime.new_id())
    assert [guest["Pid"] for guest in templates.expect("ready")] == [waiting["Pid"]]


@ordinary
def test_those_of_microvms_are_roots(knarr: str, tmp_path: Path) -> None:
    environment = {**os.environ, "KNARR_TEMPLATES": str(tmp_path / "templates")}
    command = [knarr, "template", "start", "--isolation", "vm"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 125
    assert "an ordinary user are for --isolation kernel" in done.stderr
    assert not (tmp_path / "templates").exists()


@ordinary
def test_a_place_that_others_may_enter_is_refused(knarr: str, tmp_path: Path) -> None:
    if shutil.which("linux.uml") is None:
        pytest.skip("user-mode-linux is not installed")
    place = tmp_path / "templates"
    place.mkdir(mode=0o755)
    environment = {**os.environ, "KNARR_TEMPLATES": str(place)}
    done = subprocess.run([knarr, "template", "start"], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "is not a directory of one's own" in done.stderr

"""Capabilities that cannot be granted: a warning with the place, and the container runs without them (config.md)."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import CAPABILITIES, Bundle, Runtime, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    needs_busybox,
    needs_root,
    pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is not installed"),
]
SHOW = ("grep", "^Cap", "/proc/self/status")
KILL, BIND, AUDIT = 1 << 5, 1 << 10, 1 << 29


@pytest.fixture
def poor(ours: Runtime) -> Runtime:
    """knarr-runtime called by a root that has no CAP_AUDIT_WRITE."""
    ours.command = ["setpriv", "--bounding-set", "-audit_write", *ours.command]
    return ours


def masks(text: str) -> dict[str, int]:
    return {name[3:]: int(value, 16) for name, value in (line.split(":\t") for line in text.splitlines())}


def messages(text: str) -> list[str]:
    return [json.loads(line)["msg"] for line in text.splitlines()]


@pytest.mark.parametrize("verb", ["run", "create"])
def test_one_the_caller_lacks_is_left_out(poor: Runtime, bundle: Bundle, verb: str) -> None:
    for kind in ("inheritable", "ambient"):
        bundle.config["process"]["capabilities"][kind] = [*CAPABILITIES]
    path, id = bundle.write("sh", "-c", "grep ^Cap /proc/self/status >/seen"), poor.new_id()
    done = poor("--log-format", "json", verb, "--bundle", path, id)
    assert done.returncode == 0, done.stderr
    (said,) = messages(done.stderr)
    assert said.startswith("config.json /process/capabilities/bounding/0: CAP_AUDIT_WRITE cannot be granted, ")
    assert said.endswith(
        "this process does not have it itself: left out of bounding, effective, permitted, inheritable, ambient"
    )
    if verb == "create":
        poor.ok("start", id)
        poor.wait_for(id, "stopped")
    seen = masks((bundle.rootfs / "seen").read_text())
    assert seen == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), KILL | BIND)


def test_a_user_namespace_has_them_all(poor: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        bundle.config["linux"][kind] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    done = poor("run", "--bundle", bundle.write(*SHOW), poor.new_id())
    assert (done.returncode, done.stderr) == (0, "")
    assert masks(done.stdout)["Prm"] == KILL | BIND | AUDIT


def test_exec_says_and_does_the_same(poor: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    for sets in bundle.config["process"]["capabilities"].values():
        sets.remove("CAP_AUDIT_WRITE")
    id = poor.new_id()
    poor.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    assert poor("exec", id, *SHOW).stderr == ""
    done = poor("--log-format", "json", "exec", "--cap", "CAP_AUDIT_WRITE", "--cap", "CAP_FROB", id, *SHOW)
    assert done.returncode == 0, done.stderr
    assert set(masks(done.stdout).values()) == {0, KILL | BIND}
    *unknown, lacking = messages(done.stderr)
    assert unknown == [
        f"process /capabilities/{kind}/3: 'CAP_FROB' is not a known capability, ignored"
        for kind in ("bounding", "effective", "permitted")
    ]
    assert lacking.startswith("process /capabilities/bounding/2: CAP_AUDIT_WRITE cannot be granted, this process")
    document: dict[str, Any] = bundle.config["process"]
    document["args"] = [*SHOW]
    asked = ["CAP_AUDIT_WRITE", "CAP_KILL"]
    document["capabilities"] = {"bounding": ["CAP_KILL"], "permitted": asked, "effective": asked}
    (tmp_path / "p.json").write_text(json.dumps(document))
    done = poor("exec", "--process", str(tmp_path / "p.json"), id)
    assert masks(done.stdout)["Prm"] == KILL
    assert f"{tmp_path}/p.json /capabilities/effective/0: CAP_AUDIT_WRITE cannot be granted" in done.stderr

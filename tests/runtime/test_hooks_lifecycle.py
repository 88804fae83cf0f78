"""The six kinds of hooks: when they run, in which namespaces, with what, and what a failure of each undoes."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, left_behind, mounts_at, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]
BEFORE = ("prestart", "createRuntime", "createContainer")
ALL = (*BEFORE, "startContainer", "poststart", "poststop")


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def write_hooks(bundle: Bundle, hooks: dict[str, list[dict[str, Any]]], *args: str) -> str:
    bundle.config["hooks"] = hooks
    return bundle.write(*(args or ("sh", "-c", "echo program >>/log/order")))


@pytest.fixture
def log(bundle: Bundle, tmp_path: Path) -> Path:
    """A directory at the same path outside and inside the container, for hooks that run inside."""
    folder = tmp_path / "log"
    folder.mkdir()
    for place in ("/log", str(folder)):
        bundle.config["mounts"].append(
            {"destination": place, "type": "bind", "source": str(folder), "options": ["rbind", "rw"]}
        )
    return folder


def test_order_state_and_namespaces(runtime: Runtime, bundle: Bundle, log: Path) -> None:
    def record(kind: str) -> dict[str, Any]:
        script = f"cat >{log}/{kind}.json; echo {kind} >>{log}/order; readlink /proc/self/ns/mnt >{log}/{kind}.ns"
        return hook(script, env=["PATH=/bin:/usr/bin"])

    bundle.config["annotations"] = {"key": "value"}
    path = write_hooks(bundle, {kind: [record(kind)] for kind in ALL})
    id = runtime.new_id()
    runtime.ok("create", "--bundle", path, id)
    # runc 1.1 runs poststart at the end of create, crun 1.8 before startContainer: runtime.md, lifecycle 7 to 9, says
    # after the program was started.
    strict = runtime.name == "knarr"
    assert (log / "order").read_text().split()[: None if strict else 3] == [*BEFORE]
    pid = runtime.state(id)["pid"]
    runtime.ok("start", id)
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    order = (log / "order").read_text().split()
    assert sorted(order) == sorted([*ALL, "program"])
    assert order[-1] == "poststop"
    assert order.index("startContainer") < order.index("program")
    if strict:
        assert order[:4] == [*BEFORE, "startContainer"]
    host = os.readlink("/proc/self/ns/mnt") if runtime.name != "crun" else None
    for kind in ALL:
        state = json.loads((log / f"{kind}.json").read_text())
        assert state["id"] == id
        assert state["bundle"] == path or runtime.name == "crun"  # crun says "/"
        assert state["annotations"] == {"key": "value"}
        assert state["ociVersion"].startswith("1.")
        inside = kind in {"createContainer", "startContainer"}
        if host is not None:
            assert ((log / f"{kind}.ns").read_text().strip() == host) is not inside, kind
        if runtime.name == "knarr":
            # prestart belonged to `start` once, and crun and the official suite keep its status
            after = {"startContainer": "created", "poststart": "running", "poststop": "stopped", "prestart": "created"}
            assert state["status"] == after.get(kind, "creating"), kind
            assert state.get("pid") == (None if kind == "poststop" else pid), kind


def test_hooks_see_nothing_of_caller_or_container(ours: Runtime, bundle: Bundle, log: Path) -> None:
    """R-23, CVE-2025-23266: a hook with LD_PRELOAD of the image would run the image's code as root of the host."""
    show = (
        f'echo KIND >>{log}/env; /usr/bin/env >>{log}/env 2>/dev/null || env >>{log}/env; echo "cwd $(pwd)" >>{log}/env'
    )
    hooks = {
        kind: [hook(show.replace("KIND", kind))]
        for kind in ("createRuntime", "createContainer", "poststart", "poststop")
    }
    path = write_hooks(bundle, hooks, "sh", "-c", "exit 0")
    bundle.config["process"]["env"] += ["LD_PRELOAD=/evil.so", "FROM_IMAGE=1"]
    bundle.write()
    done = ours("run", "--bundle", path, ours.new_id(), env={**os.environ, "FROM_CALLER": "1"})
    assert done.returncode == 0, done.stderr
    text = (log / "env").read_text()
    assert text.split().count("createContainer") == 1
    assert "LD_PRELOAD" not in text
    assert "FROM_" not in text
    names = {line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("cwd")}
    assert names <= {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {line[4:] for line in text.splitlines() if line.startswith("cwd ")} <= {path, "/"}


@pytest.mark.parametrize("name", ["runc", "crun"])
def test_the_references_do_leak_their_environment(name: str, tmp_path: Path, bundle: Bundle, log: Path) -> None:
    """The guard above, off: what runc 1.1 and crun 1.8 do shows that the test can fail."""
    runtime = Runtime(name, tmp_path)
    show = f"/usr/bin/env >{log}/env"
    path = write_hooks(bundle, {"createRuntime": [hook(show)]}, "true")
    runtime("run", "--bundle", path, runtime.new_id(), env={**os.environ, "FROM_CALLER": "1"})
    runtime.clean()
    if "FROM_CALLER" not in (log / "env").read_text():
        pytest.skip(f"this {name} no longer hands its environment to hooks")


@pytest.mark.parametrize("kind", BEFORE)
def test_a_failing_hook_undoes_the_creation(kind: str, runtime: Runtime, bundle: Bundle, log: Path) -> None:
    hooks = {kind: [hook("echo a sad tale >&2; exit 3")], "poststop": [hook(f"echo poststop >>{log}/order")]}
    path = write_hooks(bundle, hooks)
    id = runtime.new_id()
    done = runtime("create", "--bundle", path, id)
    assert done.returncode not in {0, None}
    if runtime.name == "knarr":
        assert done.returncode == 1
        assert f"config.json /hooks/{kind}/0: hook /bin/sh ended with exit status 3: a sad tale" in done.stderr
        assert (log / "order").read_text() == "poststop\n"  # lifecycle, step 13
    assert left_behind(runtime, id) == []
    assert mounts_at(bundle.path) == []


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
def test_a_hook_that_fails_at_the_start_stops_and_removes(kind: str, ours: Runtime, bundle: Bundle, log: Path) -> None:
    hooks = {kind: [hook("exit 4")], "poststop": [hook(f"echo poststop >>{log}/order")]}
    path = write_hooks(bundle, hooks, "sleep", "60")
    id = ours.new_id()
    ours.ok("create", "--bundle", path, id)
    done = ours("start", id)
    assert done.returncode == 1
    assert f"config.json /hooks/{kind}/0: hook /bin/sh ended with exit status 4" in done.stderr
    assert left_behind(ours, id) == []
    assert (log / "order").read_text() == "poststop\n"
    done = ours("run", "--bundle", path, ours.new_id())
    assert done.returncode == 1
    assert f"/hooks/{kind}/0" in done.stderr
    assert left_behind(ours, ours.ids[-1]) == []


def test_a_failing_poststop_hook_is_a_warning_and_the_next_runs(ours: Runtime, bundle: Bundle, log: Path) -> None:
    hooks = {"poststop": [hook("exit 5"), hook(f"echo second >>{log}/order")]}
    id = ours.new_id()
    ours.ok("create", "--bundle", write_hooks(bundle, hooks, "true"), id)
    done = ours("delete", id)
    assert done.returncode == 0
    assert "level=warning" in done.stderr
    assert "/hooks/poststop/0" in done.stderr
    assert (log / "order").read_text() == "second\n"
    assert left_behind(ours, id) == []


@pytest.mark.parametrize("kind", [*BEFORE, "startContainer", "poststart"])
@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & sleep 60"])
def test_a_hook_past_its_timeout(kind: str, script: str, ours: Runtime, bundle: Bundle) -> None:
    path = write_hooks(bundle, {kind: [hook(script, timeout=1)]}, "sleep", "60")
    id = ours.new_id()
    begun = time.monotonic()
    done = ours("run", "--detach", "--bundle", path, id)
    assert done.returncode == 1
    assert f"/hooks/{kind}/0" in done.stderr
    assert "timeout" in done.stderr
    assert time.monotonic() - begun < 2.5
    assert left_behind(ours, id) == []


@pytest.mark.parametrize("kind", BEFORE)
def test_a_hook_that_cannot_be_started(kind: str, runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    done = runtime("create", "--bundle", write_hooks(bundle, {kind: [{"path": "/no/such/hook"}]}, "true"), id)
    assert done.returncode != 0  # crun says 255
    assert left_behind(runtime, id) == []
    if runtime.name == "knarr":
        assert "hook /no/such/hook cannot be started: no such file or directory" in done.stderr


def test_a_hook_can_enter_the_container_by_the_pid_it_is_told(ours: Runtime, bundle: Bundle, log: Path) -> None:
    script = (
        "pid=$(sed -n 's/.*\"pid\":\\([0-9]*\\).*/\\1/p'); "
        f"readlink /proc/$pid/ns/net >{log}/seen; ls /proc/$pid/root >/dev/null && echo root >>{log}/seen"
    )
    path = write_hooks(bundle, {"createRuntime": [hook(script, env=["PATH=/bin:/usr/bin"])]}, "sleep", "60")
    id = ours.new_id()
    ours.ok("create", "--bundle", path, id)
    pid = ours.state(id)["pid"]
    assert (log / "seen").read_text().split() == [os.readlink(f"/proc/{pid}/ns/net"), "root"]


def test_a_container_killed_while_a_hook_runs(ours: Runtime, bundle: Bundle, log: Path) -> None:
    """delete --force of a container whose creation hangs in a hook: hook and creation end, nothing is left."""
    path = write_hooks(bundle, {"createRuntime": [hook(f"echo on >{log}/on; sleep 600")]}, "true")
    id = ours.new_id()
    process = ours.popen("create", "--bundle", path, id, stderr=-1)
    deadline = time.monotonic() + 10
    while not (log / "on").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ours.state(id)["status"] == "creating"
    assert ours("delete", id).returncode == 1
    assert ours("start", id).returncode == 1
    assert ours("kill", id).returncode == 1
    ours.ok("delete", "--force", id)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    assert b"the container ended" in said
    assert left_behind(ours, id) == []

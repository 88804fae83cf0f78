"""The annotations run.oci.hooks.stdout and run.oci.hooks.stderr: where hooks of every kind write to (crun has them)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_busybox, needs_root]
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
STDOUT, STDERR = "run.oci.hooks.stdout", "run.oci.hooks.stderr"


def hook(script: str) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}


@pytest.mark.parametrize("outputs", [(STDOUT,), (STDERR,), (STDOUT, STDERR)], ids=["stdout", "stderr", "both"])
def test_every_kind_writes_there(outputs: tuple[str, ...], runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    if runtime.name == "runc":
        pytest.skip("runc has no such annotations")
    bundle.config["annotations"] = {name: str(tmp_path / name) for name in outputs}
    (tmp_path / outputs[0]).write_text("before\n")
    bundle.config["hooks"] = {kind: [hook(f"cat >/dev/null; echo {kind} out; echo {kind} err >&2")] for kind in KINDS}
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("true"), id)
    runtime.ok("start", id)
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    for name in outputs:
        lines = (tmp_path / name).read_text().splitlines()
        if name == outputs[0]:
            assert lines.pop(0) == "before", "it is appended to"
        assert sorted(lines) == sorted(f"{kind} {'out' if name == STDOUT else 'err'}" for kind in KINDS)
    assert not set(os.listdir(tmp_path)) & ({STDOUT, STDERR} - set(outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_still_told(kind: str, ours: Runtime, bundle: Bundle) -> None:
    """What went into the file is not in the message, what did not is."""
    bundle.config["annotations"] = {STDOUT: "said"}
    bundle.config["hooks"] = {kind: [hook("echo aside; echo the reason >&2; exit 3")]}
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("true"), id)
    assert f"/hooks/{kind}/0" in done.stderr
    assert "the reason" in done.stderr
    assert "aside" not in done.stderr
    assert (bundle.path / "said").read_text() == "aside\n", "relative to the bundle"
    assert left_behind(ours, id) == []


@pytest.mark.parametrize("name", [STDOUT, STDERR])
@pytest.mark.parametrize("kind", ["createRuntime", "createContainer", "poststart"])
@pytest.mark.parametrize("place", ["/no/such/directory/file", "fifo", "."])
def test_a_file_that_cannot_be_opened(name: str, kind: str, place: str, ours: Runtime, bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "fifo")
    bundle.config["annotations"] = {name: place}
    bundle.config["hooks"] = {kind: [hook("true")]}
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("true"), id, timeout=20)
    assert done.returncode == 1
    assert f"config.json /annotations/{name}: open {place} for the hooks' output: " in done.stderr
    assert left_behind(ours, id) == []


def test_nothing_of_it_reaches_the_program(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["annotations"] = {STDOUT: str(tmp_path / "out"), STDERR: str(tmp_path / "err")}
    bundle.config["hooks"] = {kind: [hook("ls /proc/self/fd >&2")] for kind in ("createContainer", "startContainer")}
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("ls", "/proc/self/fd"), id)
    assert done.stdout.split() == ["0", "1", "2", "3"], "3 is ls's own"
    assert (tmp_path / "err").read_text().split() == ["0", "1", "2", "3"] * 2

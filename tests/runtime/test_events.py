"""events: statistics in runc's shape, and who is told that memory ran out. Runs on v1 and, in user-mode Linux, on v2."""

from __future__ import annotations

import json
import select
import subprocess
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest
from blackbox import PURE_V2, Bundle, Runtime, end, limit_of, needs_busybox, needs_root

from knarr.base.errors import UsageError
from knarr.cli.runtime.events import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_busybox, needs_root]

M = 1 << 20
LIMITS: dict[str, Any] = {"memory": {"limit": 64 * M}, "pids": {"limit": 50}, "cpu": {"quota": 50000, "period": 100000}}
BURN = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; exec sleep 1000"


def started(runtime: Runtime, bundle: Bundle, script: str = BURN, **resources: Any) -> str:
    if runtime.name == "crun":
        pytest.skip("crun has no events")
    id = runtime.new_id()
    bundle.config["linux"]["resources"].update(LIMITS)
    bundle.config["linux"]["resources"].update(resources)
    runtime.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", script), id)
    return id


def keys(value: Any) -> Any:
    """The shape of a document: names all the way down, without what depends on the kernel's counters."""
    if isinstance(value, dict):
        return {name: keys(below) for name, below in value.items() if name not in ("raw", "psi")}
    return type(value).__name__


def test_statistics_once(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle)
    pid = runtime.state(id)["pid"]
    deadline = time.monotonic() + 20
    while True:
        text = runtime.ok("events", "--stats", id)
        event = json.loads(text)
        if event["data"]["cpu"]["usage"].get("total", 0) > 1_000_000 and event["data"]["pids"]["current"] == 1:
            break
        assert time.monotonic() < deadline, event
        time.sleep(0.05)
    assert text.count("\n") == 1
    assert (event["type"], event["id"]) == ("stats", id)
    data = event["data"]
    assert data["pids"] == {"current": 1, "limit": 50}
    assert data["memory"]["usage"]["limit"] == 64 * M
    assert 0 < data["memory"]["usage"]["usage"] < 64 * M
    assert data["memory"]["swap"]["usage"] >= data["memory"]["usage"]["usage"] // 2
    raw = data["memory"]["raw"]
    assert raw["anon" if PURE_V2 else "rss"] > 0
    assert limit_of(pid, "memory.stat", "memory.stat").startswith(tuple(raw))
    usage = data["cpu"]["usage"]
    assert usage["total"] < 60_000_000_000
    assert usage["user"] + usage["kernel"] <= 1.2 * usage["total"] + 40_000_000
    if not PURE_V2:
        assert sum(usage["percpu"]) == pytest.approx(usage["total"], rel=0.5)
        assert data["cpuset"]["cpus"]


def test_the_same_shape_as_runc(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a reader of runc's events looks for is there under the same name, as the same type."""
    shapes = {}
    for name in ("runc", "knarr"):
        runtime = Runtime(name, tmp_path_factory.mktemp(name))
        try:
            id = started(runtime, bundle)
            time.sleep(0.3)
            shapes[name] = keys(json.loads(runtime.ok("events", "--stats", id)))
        finally:
            runtime.clean()
    for entry in ("usage", "swap", "kernel", "kernelTCP"):  # their zeros are left out
        for shape in shapes.values():
            assert shape["data"]["memory"][entry]["limit"] == "int"
            shape["data"]["memory"][entry] = {}
    for shape in shapes.values():
        shape["data"]["cpu"]["throttling"] = shape["data"]["blkio"] = {}
        shape["data"]["memory"].pop("cache", None)
    assert shapes["knarr"] == shapes["runc"]


@contextmanager
def watching(runtime: Runtime, id: str, interval: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """``events`` in the background, and its output."""
    events = runtime.popen("events", "--interval", interval, id, stdout=subprocess.PIPE, bufsize=0)
    assert events.stdout
    with events.stdout:
        try:
            yield events, events.stdout
        finally:
            end(events)


def test_a_stream_of_statistics_ends_with_the_container(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle, "exec sleep 1000")
    with watching(runtime, id, "150ms") as (events, output):
        lines = [json.loads(output.readline()) for _ in range(3)]
        assert [(line["type"], line["id"]) for line in lines] == [("stats", id)] * 3
        assert lines[0]["data"]["pids"]["current"] == 1
        assert events.poll() is None
        runtime.ok("delete", "--force", id)
        assert events.wait(timeout=20) == 0


def _types(output: IO[bytes], seconds: float) -> list[str]:
    """The types of the events that come within some time, and until the first ``oom``."""
    found: list[str] = []
    deadline = time.monotonic() + seconds
    while "oom" not in found and select.select([output], [], [], max(0, deadline - time.monotonic()))[0]:
        line = output.readline()
        if not line:
            break
        found.append(json.loads(line)["type"])
    return found


def test_memory_that_runs_out_is_told(runtime: Runtime, bundle: Bundle) -> None:
    # a shell that stays, and children that take more than there is
    greed = "(head -c 60000000 /dev/zero | tail -c 60000000 >/dev/null)"
    (bundle.rootfs / "bin/tail").symlink_to("busybox")
    script = f"while [ ! -e /tmp/go ]; do sleep 0.05; done; {greed}; exec sleep 1000"
    id = started(runtime, bundle, script, memory={"limit": 16 * M, "swap": 16 * M})
    with watching(runtime, id, "1h") as (_, output):
        time.sleep(1.0)
        assert _types(output, 0.1) == []
        (bundle.rootfs / "tmp/go").touch()
        assert _types(output, 20) == ["oom"]
        assert runtime.state(id)["status"] == "running"
    # Who begins to watch later is not told of what is over; v1's kernel tells what it sees still going on.
    if runtime.name == "knarr" and PURE_V2:
        with watching(runtime, id, "200ms") as (_, output):
            found = _types(output, 1.0)
            deadline = time.monotonic() + 20
            while not found and time.monotonic() < deadline:  # a busy machine
                found = _types(output, 1.0)
            assert set(found) == {"stats"}


def test_refusals(runtime: Runtime, bundle: Bundle) -> None:
    id = started(runtime, bundle, "exit 0")
    runtime.wait_for(id, "stopped")
    for words in (("events", id), ("events", "--stats", id)):
        done = runtime(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"container with id {id} is not running" in done.stderr
    assert runtime("events", "--stats", "nobody").returncode == 1
    for interval in ("0", "0s", "-1s", "soon", "5"):
        assert runtime("events", "--interval", interval, id).returncode == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("2us", 2e-6), ("1h2m3s", 3723)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1..5s", ".s", "5 s", "-5s", "0s", "1d", "1m-5s", "1" * 20 + "s", "٣s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        duration(text)

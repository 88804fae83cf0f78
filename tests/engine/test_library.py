"""``import knarr``: run, Container, threads, time limits, bounded output; as root and as ordinary users."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import enginekit
import pytest

from knarr.base.errors import (
    CommandNotExecutable,
    CommandNotFound,
    NotFound,
    SpecError,
    TimedOut,
    UsageError,
    WrongStatus,
)
from knarr.engine.api import Container, run

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[dict[str, Any]]:
    """Keyword arguments for a store and state of one's own."""
    folder = enginekit.new_folder()
    try:
        yield {"store": str(folder / "store"), "state_dir": str(folder / "run")}
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)


def test_run_returns_what_was_written(image: str, place: dict[str, Any]) -> None:
    result = run(image, ["sh", "-c", "echo out; echo err >&2; exit 7"], **place)
    assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert result.timings.total > 0
    assert result.timings.start > 0
    assert not result.truncated


def test_input_and_environment(image: str, place: dict[str, Any]) -> None:
    data = os.urandom(300_000)  # more than a pipe holds, both ways
    result = run(image, ["cat"], input=data, **place)
    assert result.stdout == data
    result = run(image, ["env"], env={"ADDED": "a=b"}, hostname="box", **place)
    assert {b"FROM=image", b"ADDED=a=b", b"HOSTNAME=box", b"HOME=/root"} <= set(result.stdout.splitlines())
    assert run(image, ["cat"], **place).stdout == b""


def test_options_reach_the_container(image: str, place: dict[str, Any]) -> None:
    # An ordinary user without subordinate ids has one id to give.
    who: dict[str, Any] = {"user": "app"} if os.geteuid() == 0 else {}
    result = run(image, ["sh", "-c", "id -u; id -g; pwd"], workdir="/data", **who, **place)
    assert result.stdout == (b"1000\n1000\n/data\n" if who else b"0\n0\n/data\n")
    shown = run(image, ["cat", "/mine/passwd"], volumes=["/etc:/mine:ro"], **place).stdout
    assert b"root:" in shown
    denied = run(image, ["touch", "/mine/x"], volumes=["/etc:/mine:ro"], **place)
    assert b"Read-only" in denied.stderr
    assert run(image, ["touch", "/x"], read_only=True, **place).exit_code == 1
    assert run(image, ["touch", "/t/x"], read_only=True, tmpfs=["/t"], **place).exit_code == 0
    status = run(image, ["cat", "/proc/self/status"], cap_drop=["ALL"], **place).stdout
    assert b"CapEff:\t0000000000000000" in status
    with pytest.raises(UsageError, match="'colour'"):
        run(image, ["true"], colour="red", **place)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="list of words"):
        run(image, "true", **place)


def test_errors_are_ours_and_nothing_is_left(image: str, place: dict[str, Any]) -> None:
    with pytest.raises(CommandNotFound, match="nosuch"):
        run(image, ["nosuch"], **place)
    with pytest.raises(CommandNotExecutable):
        run(image, ["/etc/passwd"], **place)
    with pytest.raises(NotFound):
        run("oci:/nonexistent:x", **place)
    with pytest.raises(NotFound, match="user nobody does not exist"):
        run(image, ["true"], user="nobody", **place)


def test_signals_become_exit_codes(image: str, place: dict[str, Any]) -> None:
    assert run(image, ["sh", "-c", "kill -9 $$; sleep 5"], **place).exit_code in (0, 137)
    with Container(image, ["sleep", "100"], **place) as box:
        box.kill(signal.SIGKILL)
        assert box.wait(10).exit_code == 137


def test_time_limit(image: str, place: dict[str, Any]) -> None:
    begun = time.monotonic()
    with pytest.raises(TimedOut, match="within 0") as caught:
        run(image, ["sh", "-c", "echo first; exec sleep 100"], timeout=0.5, **place)
    assert caught.value.stdout == b"first\n"
    assert time.monotonic() - begun < 20


def test_output_is_bounded(image: str, place: dict[str, Any]) -> None:
    result = run(image, ["sh", "-c", "yes | head -c 2000000"], output_limit=1000, **place)
    assert len(result.stdout) == 1000
    assert result.truncated
    assert result.exit_code == 0


def test_many_threads_at_once(image: str, place: dict[str, Any]) -> None:
    run(image, ["true"], **place)
    outputs: dict[int, bytes] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                outputs[number * 10 + turn] = run(image, ["echo", str(number * 10 + turn)], **place).stdout
        except BaseException as error:  # noqa: BLE001  # seen by the test below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert outputs == {n * 10 + t: f"{n * 10 + t}\n".encode() for n in range(8) for t in range(3)}


def test_no_descriptor_is_lost(image: str, place: dict[str, Any]) -> None:
    run(image, ["true"], **place)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run(image, ["echo", "x"], input=b"y", **place)
        with pytest.raises(CommandNotFound):
            run(image, ["nosuch"], **place)
        with Container(image, ["sleep", "9"], **place) as box:
            box.exec(["true"])
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_container(image: str, place: dict[str, Any]) -> None:
    box = Container(image, ["sh", "-c", "echo begun; exec sleep 100"], name="box", **place)
    assert box.state == "new"
    with pytest.raises(UsageError, match="not started"):
        box.wait()
    with box:
        assert box.state == "running"
        assert box.pid > 0
        assert len(box.id) == 64
        first = box.exec(["sh", "-c", "cat; echo $A; exit 3"], input=b"given\n", env={"A": "1"})
        assert (first.exit_code, first.stdout) == (3, b"given\n1\n")
        assert box.exec(["pwd"], workdir="/data").stdout == b"/data\n"
        box.exec(["touch", "/made"])
        assert box.exec(["ls", "/made"]).stdout == b"/made\n"
        with pytest.raises(CommandNotFound):
            box.exec(["nosuch"])
        with pytest.raises(TimedOut):
            box.exec(["sleep", "50"], timeout=0.3)
        with pytest.raises(TimedOut, match="it goes on"):
            box.wait(0.2)
        assert box.state == "running"
        deadline = time.monotonic() + 10
        while box.stdout() != b"begun\n" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert box.stdout() == b"begun\n"
        assert box.kill("KILL")
        result = box.wait(10)
        assert (result.exit_code, result.stdout) == (137, b"begun\n")
        assert box.wait() is result
        assert box.state == "exited"
        assert not box.kill()
        with pytest.raises((WrongStatus, NotFound)):
            box.exec(["true"])


def test_names_are_taken_once(image: str, place: dict[str, Any]) -> None:
    from knarr.base.errors import Exists, InvalidId

    with Container(image, ["sleep", "100"], name="one", **place):
        with pytest.raises(Exists, match="one"):
            run(image, ["true"], name="one", **place)
        with pytest.raises(InvalidId):
            run(image, ["true"], name="../x", **place)
    assert run(image, ["true"], name="one", **place).exit_code == 0


def test_bundle(image: str, place: dict[str, Any]) -> None:
    from knarr.bundle.options import RunOptions
    from knarr.engine.bundles import write_bundle
    from knarr.engine.images import find
    from knarr.engine.paths import places

    where = places(place["store"], place["state_dir"])
    folder = enginekit.new_folder()
    try:
        bundle = str(folder / "bundle")
        write_bundle(where, find(where, image), bundle, RunOptions(command=("cat", "/data/file")))
        assert run(f"bundle:{bundle}", **place).stdout == b"of the image\n"
        assert run(f"bundle:{bundle}", ["echo", "other"], **place).stdout == b"other\n"
        assert run(f"bundle:{bundle}", ["env"], env={"A": "1"}, **place).stdout.count(b"A=1\n") == 1
        assert run(f"bundle:{bundle}", **place).stdout == b"of the image\n", "what one call asked for stays its own"
        config = json.loads((folder / "bundle/config.json").read_text())
        config["process"]["args"] = ["echo", "changed"]
        (folder / "bundle/config.json").write_text(json.dumps(config))
        assert run(f"bundle:{bundle}", **place).stdout == b"changed\n"
        with pytest.raises(UsageError, match="bundle's config"):
            run(f"bundle:{bundle}", memory="1g", **place)
        config["process"]["args"] = []
        (folder / "bundle/config.json").write_text(json.dumps(config))
        with pytest.raises(SpecError, match="/process/args"):
            run(f"bundle:{bundle}", **place)
        with pytest.raises(NotFound):
            run(f"bundle:{bundle}x", **place)
    finally:
        enginekit.remove_folder(folder)


SCRIPT = """
import sys
from knarr.engine.api import Container, run
image = {image!r}
def check(what, got, want):
    if got != want:
        sys.exit(f"{{what}}: {{got!r}}, not {{want!r}}")
result = run(image, ["sh", "-c", "id -u; cat /data/file; touch /new && echo made"])
check("run", (result.exit_code, result.stdout), (0, b"0\\nof the image\\nmade\\n"))
check("network", b"lo" in run(image, ["cat", "/proc/net/dev"]).stdout, True)
check("host network", run(image, ["true"], network="host").exit_code, 0)
with Container(image, ["sleep", "100"]) as box:
    check("exec", box.exec(["id", "-u"]).stdout, b"0\\n")
    check("state", box.state, "running")
check("host", run("host:", ["/bin/sh", "-c", "echo hi; touch /etc/x /usr/y && echo wrote"]).stdout, b"hi\\nwrote\\n")
"""


def test_as_root_and_as_ordinary_users(person: enginekit.Person, image: str) -> None:
    done = person.python_script(SCRIPT.format(image=image))
    assert (done.returncode, done.stderr) == (0, b"")


def test_owners_of_files_in_a_user_namespace(person: enginekit.Person, image: str) -> None:
    if person.kind in {"nobody", "self"}:
        pytest.skip("needs root or subordinate ids: one id alone owns everything")
    code = f"""
from knarr.engine.api import run
r = run({image!r}, ["sh", "-c", "stat -c %u:%g /home/app; touch /home/app/x; id"], user="app")
print(r.stdout.decode(), r.stderr.decode())
"""
    done = person.python_script(code)
    assert b"1000:1000\nuid=1000(app) gid=1000(app) groups=1000(app),1001(extra)" in done.stdout, done.stderr

"""start, state, kill, delete without Python: done where all is plain, left alone where it is not.

A launcher without a Python beside it shows which: what is not done by it ends in "cannot start the Python". An option
that it does not know (``--log-level``) makes the real one use Python, to compare with.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest
from blackbox import Bundle, Runtime, cgroups_named, needs_busybox, needs_root

from knarr.runtime.brief import LIMIT, brief, verbs
from knarr.runtime.record import State

if TYPE_CHECKING:
    from pathlib import Path

NOT_DONE = "cannot start the Python it was installed for"
STATE = State(
    id="c1", bundle="/b", rootfs="/b/rootfs", version="1.0.2", created="2026-01-01T00:00:00Z", boot="boot",
    annotations={}, pid=7, starttime=8, complete=True,
    cgroup={"v2": False, "groups": [["/sys/fs/cgroup/pids", "/a/c1", 1], ["/sys/fs/cgroup/freezer", "/c1", 0]]},
)  # fmt: skip


# -- what is decided -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({}, set()),
        ({"hooks": ("prestart", "createRuntime", "createContainer")}, set()),
        ({"hooks": ("startContainer",)}, {"start"}),
        ({"hooks": ("poststart",)}, {"start"}),
        ({"hooks": ("poststop",)}, {"delete"}),
        ({"shared_pids": True}, {"kill"}),
        ({"rdt": {"top": "/"}}, {"delete"}),
        ({"mounts": ["/b"]}, {"delete"}),
        ({"cgroup": {**STATE.cgroup, "unit": "x.scope"}}, {"delete"}),
    ],
)
def test_verbs_that_need_more_are_not_in_it(change: dict[str, object], lacking: set[str]) -> None:
    assert {"start", "state", "kill", "delete"} - set(verbs(STATE.replace(**change))) == lacking


def test_its_text() -> None:
    text = brief(STATE)
    assert text is not None
    fields = text.decode().split("\0")
    assert fields[:6] == [
        "knarr 1",
        "boot",
        "7",
        "8",
        "state start kill delete",
        "/sys/fs/cgroup/freezer/c1/freezer.state",
    ]
    assert json.loads(f'{fields[6]}"pid":7,"status":"running"{fields[7]}')["rootfs"] == "/b/rootfs"
    assert fields[8:] == ["/sys/fs/cgroup/pids", "/a/c1", "1", "/sys/fs/cgroup/freezer", "/c1", "0", ""]


def test_none_where_it_would_not_be_enough() -> None:
    assert brief(STATE.replace(annotations={"a": "x" * LIMIT})) is None
    assert brief(STATE.replace(cgroup={"v2": False, "groups": STATE.cgroup["groups"][:1]})) is None, "no freezer"
    assert b"/sys/fs/cgroup/freezer" not in (brief(STATE.replace(cgroup=None)) or b"")


# -- what is done ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(ours: Runtime, tmp_path: Path, knarr_runtime: str) -> Runtime:
    """The same state root, by a launcher that has no Python."""
    (tmp_path / "alone").mkdir()
    shutil.copy(knarr_runtime, tmp_path / "alone")
    made = Runtime.__new__(Runtime)
    made.name, made.root, made.ids, made.null = "knarr", ours.root, [], ours.null
    made.command = [str(tmp_path / "alone/knarr-runtime"), "--root", str(ours.root)]
    return made


@pytest.fixture
def container(ours: Runtime, bundle: Bundle) -> str:
    """A created container that sleeps when it is started."""
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "999"), id)
    return id


pytestmark = [needs_busybox, needs_root]


def refuses(alone: Runtime, *words: str, **more: object) -> bool:
    """Whether it leaves the verb to Python."""
    done = alone(*words, **more)
    assert done.returncode in {0, 1}, done
    assert (done.returncode == 1) is (NOT_DONE in done.stderr), done
    return done.returncode == 1


def same_state(ours: Runtime, alone: Runtime, id: str) -> str:
    """The status, when both ways print the same, byte by byte."""
    quick = alone.ok("state", id)
    assert quick == ours.ok("--log-level", "info", "state", id)
    status: str = json.loads(quick)["status"]
    return status


def test_a_life_without_python(ours: Runtime, alone: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["annotations"] = {"a": 'quote " and \n ü'}
    bundle.config["linux"]["cgroupsPath"] = f"/knarr-test-{ours.new_id()}/below/inside"
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "999"), id)
    assert same_state(ours, alone, id) == "created"
    alone.ok("start", id)
    assert same_state(ours, alone, id) == "running"
    alone.ok("--log", str(tmp_path / "log"), "--log-format=json", "kill", id, "SIGKILL")
    assert (tmp_path / "log").read_bytes() == b""
    ours.wait_for(id, "stopped")
    assert same_state(ours, alone, id) == "stopped"
    top = bundle.config["linux"]["cgroupsPath"].split("/")[1]
    assert cgroups_named(top)
    alone.ok("delete", "--force", id)
    assert not (ours.root / id).exists()
    assert list((ours.root / ".locks").iterdir()) == []
    assert cgroups_named(top) == [], "its parents were made for it"
    assert ours("state", id).returncode == 1


def test_parents_that_others_use_stay(ours: Runtime, alone: Runtime, bundle: Bundle) -> None:
    top = f"knarr-test-{ours.new_id()}"
    ids = [ours.new_id(), ours.new_id()]
    for id in ids:
        bundle.config["linux"]["cgroupsPath"] = f"/{top}/{id}"
        ours.ok("create", "--bundle", bundle.write("true"), id)
    for left, id in ((True, ids[0]), (False, ids[1])):
        alone.ok("start", id)
        ours.wait_for(id, "stopped")
        alone.ok("delete", id)
        assert bool(cgroups_named(top)) is left, "the second finds the parent that was made for the first"


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "state", "ID"], ["--log-format", "xml", "state", "ID"], ["--log", "syslog:x", "state", "ID"],
        ["--log", "/no/such/directory/log", "state", "ID"], ["-root", "/x", "state", "ID"], ["state"], ["state", "ID", "ID"],
        ["state", "nobody"], ["state", "../ID"], ["state", ".locks"], ["state", "--help"], ["kill", "ID", "NOSUCH"],
        ["kill", "ID", "99"], ["kill", "--all", "ID", "TERM"], ["delete", "ID"], ["delete", "--force", "ID"], ["list"], [],
        ["--root", "", "state", "ID"], ["--rootless", "true", "state", "ID"], ["states", "ID"], ["start", "ID", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_not_plain_is_python_s(words: list[str], alone: Runtime, ours: Runtime, container: str) -> None:
    assert refuses(alone, *[word.replace("ID", container) for word in words])
    assert same_state(ours, alone, container) == "created"


def test_start_as_a_service_is_python_s(alone: Runtime, container: str) -> None:
    assert refuses(alone, "start", container, env={"NOTIFY_SOCKET": "/run/x"})
    assert not refuses(alone, "start", container, env={"NOTIFY_SOCKET": ""})
    assert refuses(alone, "start", container), "it runs already"


def test_a_paused_container_is_python_s(ours: Runtime, alone: Runtime, container: str) -> None:
    alone.ok("start", container)
    ours.ok("pause", container)
    for words in (["state"], ["kill"], ["delete"], ["start"]):
        assert refuses(alone, *words, container)
    ours.ok("resume", container)
    assert same_state(ours, alone, container) == "running"


def test_a_hook_keeps_a_verb_from_it(ours: Runtime, alone: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo x >> {tmp_path}/ran"]}
    bundle.config["hooks"] = {"poststart": [hook], "poststop": [hook]}
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    assert refuses(alone, "start", id)
    ours.ok("start", id)
    ours.wait_for(id, "stopped")
    assert refuses(alone, "delete", id)
    ours.ok("delete", id)
    assert (tmp_path / "ran").read_text() == "x\nx\n"


def changed(ours: Runtime, id: str, field: int, to: str) -> None:
    """Put another value into a field of the brief."""
    file = ours.root / id / "brief"
    fields = file.read_bytes().split(b"\0")
    fields[field] = to.encode()
    file.write_bytes(b"\0".join(fields))


@pytest.mark.parametrize(("field", "to"), [(1, "another boot"), (3, "1"), (2, "1")], ids=["boot", "start time", "pid"])
def test_a_process_that_is_another_is_left_alone(
    field: int, to: str, ours: Runtime, alone: Runtime, container: str
) -> None:
    alone.ok("start", container)
    changed(ours, container, field, to)
    assert json.loads(alone.ok("state", container))["status"] == "stopped"
    assert refuses(alone, "kill", container, "KILL")
    assert refuses(alone, "delete", container), "a process is in the groups"
    assert ours.state(container)["status"] == "stopped"
    assert json.loads(ours.ok("--log-level", "info", "state", container))["status"] == "running"


def test_a_group_with_a_process_is_not_removed(ours: Runtime, alone: Runtime, bundle: Bundle) -> None:
    """The first process has ended, another one is in the groups."""
    bundle.config["linux"]["namespaces"] = [
        each for each in bundle.config["linux"]["namespaces"] if each["type"] != "pid"
    ]
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["type"] != "proc"]
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sh", "-c", "sleep 999 & exit"), id)
    alone.ok("start", id)
    ours.wait_for(id, "stopped")
    assert refuses(alone, "delete", id)
    assert refuses(alone, "kill", id, "KILL")
    assert (ours.root / id / "brief").exists()
    ours.ok("delete", id)
    assert cgroups_named(id) == []


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_root_that_others_can_write_is_python_s(mode: int, ours: Runtime, alone: Runtime, container: str) -> None:
    ours.root.chmod(mode)
    assert refuses(alone, "state", container)
    ours.root.chmod(0o700)
    os.chown(ours.root, 12345, 12345)
    assert refuses(alone, "kill", container)
    os.chown(ours.root, 0, 0)
    assert same_state(ours, alone, container) == "created"


def test_a_container_that_somebody_holds_is_python_s(ours: Runtime, alone: Runtime, bundle: Bundle) -> None:
    import fcntl

    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    alone.ok("start", id)
    ours.wait_for(id, "stopped")
    with (ours.root / ".locks" / id).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refuses(alone, "delete", id)
        assert (ours.root / id / "brief").exists()
    alone.ok("delete", id)


def test_links_are_not_followed(ours: Runtime, alone: Runtime, container: str) -> None:
    (ours.root / "link").symlink_to(container)
    assert refuses(alone, "state", "link")
    (ours.root / container / "brief").rename(ours.root / container / "other")
    (ours.root / container / "brief").symlink_to("other")
    assert refuses(alone, "state", container)
    (ours.root / container / "brief").unlink()


def test_a_broken_brief_is_no_trouble(ours: Runtime, alone: Runtime, container: str) -> None:
    """Cut off and bent at random: it says something or leaves it to Python, and never falls."""
    file = ours.root / container / "brief"
    whole = file.read_bytes()
    dice = random.Random(5)
    for number in range(150):
        data = bytearray(whole)
        if number % 2:
            del data[dice.randrange(len(data)) :]
        else:
            data[dice.randrange(len(data))] = dice.randrange(256)
        file.write_bytes(data)
        assert alone("state", container).returncode in {0, 1}, bytes(data)
    for text in (
        b"",
        b"\0",
        b"knarr 1\0",
        b"knarr 1" + b"\0" * 7,
        whole + b"x\0",
        b"knarr 2" + whole[7:],
        b"x" * 70000,
    ):
        file.write_bytes(text)
        assert alone("state", container).returncode in {0, 1}, text[:40]
    file.write_bytes(whole)
    assert same_state(ours, alone, container) == "created"


@pytest.mark.parametrize(
    ("text", "why"), [("#!/no/such/shell\n", "/no/such/shell"), ("#!/bin/sh\r\n", "carriage return"), ("nonsense", "")]
)
def test_a_program_that_cannot_run_is_explained(text: str, why: str, ours: Runtime, bundle: Bundle) -> None:
    """The launcher has said go; Python takes the socket over and says the same as when it does all."""
    program = bundle.rootfs / "bin/program"
    program.write_text(text)
    program.chmod(0o755)
    said = []
    for extra in ([], ["--log-level", "info"]):
        id = ours.new_id()
        ours.ok("create", "--bundle", bundle.write("/bin/program"), id)
        done = ours(*extra, "start", id)
        assert done.returncode == 1
        said.append(done.stderr.partition(" level=")[2])
        ours.ok("delete", "--force", id)
    assert said[0] == said[1]
    assert "config.json /process/args" in said[0]
    assert why in said[0]


@pytest.mark.parametrize("quick", [True, False])
def test_a_start_that_nobody_hears_is_no_start(quick: bool, ours: Runtime, container: str) -> None:
    """The process is killed after it was told to go on, and before it has read that."""
    pid = json.loads(ours.ok("state", container))["pid"]
    os.kill(pid, signal.SIGSTOP)
    more = [] if quick else ["--log-level", "info"]  # the latter is Python's
    starting = ours.popen(*more, "start", container, stderr=-1)
    deadline = time.monotonic() + 10
    while not _waits_for_an_answer(starting.pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    _, said = starting.communicate(timeout=10)
    assert starting.returncode == 1, said
    assert b"stopped" in said or b"not running" in said, said


def _waits_for_an_answer(pid: int) -> bool:
    """Whether it is in recvfrom, recvmsg or poll: it has connected and said GO."""
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            number = file.read().split()[0]
    except OSError:
        return False
    return number in {"x86_64": {"45", "47", "7", "271"}, "aarch64": {"207", "212", "73"}}[os.uname().machine]


def test_signals_by_name_and_number(ours: Runtime, alone: Runtime, bundle: Bundle) -> None:
    script = "trap 'echo int >> /tmp/got' INT; trap 'echo hup >> /tmp/got' HUP; while :; do sleep 0.02; done"
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sh", "-c", script), id)
    alone.ok("start", id)
    got = bundle.rootfs / "tmp/got"
    time.sleep(0.2)  # until the traps are set
    for number, signal_ in enumerate(("INT", str(signal.SIGHUP.value), "SIGHUP", "0")):
        alone.ok("kill", id, signal_)
        deadline = time.monotonic() + 10
        while signal_ != "0" and (not got.exists() or len(got.read_text().split()) < number + 1):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert got.read_text().split() == ["int", "hup", "hup"]
    alone.ok("kill", id)  # TERM, which a shell that is pid 1 does not heed
    alone.ok("kill", id, "9")
    ours.wait_for(id, "stopped")

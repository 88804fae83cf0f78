"""Who enters a container, and what is loaded or shown then: docs/security.md, I4 and I6."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

from knarr.kernel.process import ended
from knarr.runtime.create import Stdio
from knarr.runtime.exec import begin_exec
from knarr.runtime.launch import init_path

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_busybox, needs_root]

ENTERING = ("pivot_root", "setns", "chroot")
CALLS = (*ENTERING, "execve", "execveat", "open", "openat", "openat2", "clone", "clone3", "fork", "vfork")
DECOYS = ("json.py", "os.py", "struct.py", "lib/libc.so.6", "etc/nsswitch.conf", "etc/ld.so.preload", "etc/localtime")
"""What a host program that runs on the container's files would load."""


class Event(NamedTuple):
    """A system call that succeeded or was begun: who, which, the first path in it, all of it."""

    pid: str
    call: str
    path: str
    text: str


def traced(runtime: Runtime, trace: Path, *words: str) -> list[Event]:
    """What strace saw of one command and everything it started."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    options = ["-f", "-q", "-s", "4096", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"]
    plain, runtime.command = runtime.command, [strace, *options, *runtime.command]
    try:
        done = runtime(*words, timeout=60)
    finally:
        runtime.command = plain
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)", line)
        if match and " = -1 E" not in line:
            pid, call, rest = match.groups()
            path = re.search(r'"([^"]*)"', rest)
            found.append(Event(pid, call, path[1] if path else "", rest))
    return found


def split(events: list[Event]) -> Iterator[tuple[str, bool, Event]]:
    """(the program its process runs, whether that process has entered the container, event), in order."""
    parents = {
        match[1]: event.pid
        for event in events
        if event.call in {"clone", "clone3", "fork", "vfork"} and (match := re.search(r"= (\d+)$", event.text))
    }
    programs: dict[str, str] = {}
    entered: dict[str, bool] = {}
    for event in events:
        if event.pid not in programs:
            parent = parents.get(event.pid, "")
            programs[event.pid] = programs.get(parent, "")
            entered[event.pid] = entered.get(parent, False)
        yield programs[event.pid], entered[event.pid], event
        if event.call in ENTERING:
            entered[event.pid] = True
        if event.call.startswith("execve") and event.path:
            name = re.search(r'\["([^"]*)"', event.text)
            from_memory = re.fullmatch(r"/proc/self/fd/\d+", event.path) and name and name[1] == "knarr-init"
            programs[event.pid] = "knarr-init" if from_memory else event.path


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_only_the_init_enters_and_it_loads_nothing(verb: str, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """I6: Python is never in a container's root or namespaces, and the init reads no file there but these."""
    for name in DECOYS:
        path = bundle.rootfs / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('loaded out of a container')\n")
    id = ours.new_id()
    if verb == "exec":
        ours.ok("run", "--detach", "--bundle", bundle.write("/bin/sleep", "60"), id)
        words = ["exec", id, "/bin/true"]
    else:
        words = ["run", "--bundle", bundle.write("/bin/true"), id]
    seen = list(split(traced(ours, tmp_path / "trace", *words)))
    entrances = [(program, event.call) for program, _, event in seen if event.call in ENTERING]
    assert entrances == [("knarr-init", "setns" if verb == "exec" else "pivot_root")]
    before = [(program, event) for program, inside, event in seen if not inside]
    assert not [event for _, event in before if str(bundle.rootfs) in event.path and Path(event.path).is_file()]
    inside = [event for program, entered, event in seen if entered and program == "knarr-init"]
    executed = {event.path for event in inside if event.call.startswith("execve") and event.path}
    assert executed == {"/bin/true"}
    opened = {event.path for event in inside if event.call.startswith("open") and event.path}
    assert "/dev/null" in opened
    # once it is in a container: standard streams, working directory, program, and HOME out of passwd
    assert opened <= {"/dev/null", "/", "/bin/true", "/etc/passwd"}


def test_what_runs_in_a_container_cannot_be_rewritten(ours: Runtime, bundle: Bundle) -> None:
    """I5, CVE-2019-5736, with the rights of the host's root: kept open while it runs, reopened to write when idle."""
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("true"), id)
    pid = ours.state(id)["pid"]
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:knarr-init")
    kept = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    try:
        ours.ok("start", id)
        ours.wait_for(id, "stopped")
        with pytest.raises(PermissionError), open(f"/proc/self/fd/{kept}", "r+b", buffering=0) as program:
            program.write(b"#!/bin/sh")
    finally:
        os.close(kept)


def reachable(bundle: Bundle) -> None:
    """Let another user's processes reach a rootfs in pytest's private directory, and own what is in it."""
    for top, _, files in os.walk(bundle.rootfs):
        for path in (top, *(f"{top}/{name}" for name in files)):
            os.chown(path, 100000, 100000, follow_symlinks=False)
    for folder in (bundle.path, *bundle.path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o711)


@pytest.fixture
def userns(bundle: Bundle) -> Bundle:
    """A bundle whose root has every capability, in a user namespace of its own."""
    config = bundle.config
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 10}]
    for names in config["process"]["capabilities"].values():
        names += ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]
    reachable(bundle)
    return bundle


def test_a_created_init_is_closed_to_the_containers_root(ours: Runtime, userns: Bundle) -> None:
    """I4: not dumpable, so what /proc tells of it belongs to the host's root."""
    id = ours.new_id()
    ours.ok("create", "--bundle", userns.write("sleep", "60"), id)
    pid = ours.state(id)["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0


@pytest.mark.skipif(not os.path.exists(init_path()), reason="knarr-init is not built (make build)")
def test_an_exec_is_closed_to_the_containers_root(ours: Runtime, userns: Bundle) -> None:
    """I4, CVE-2016-9962: an exec that has entered and not yet dropped anything, seen from inside."""
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", userns.write("sleep", "60"), id)
    process = {**userns.config["process"], "args": ["true"]}
    null = os.open("/dev/null", os.O_RDWR)
    made = begin_exec(str(ours.root), id, process, io=Stdio(null, null, null))
    try:
        assert made.launch is not None
        # It has entered and waits for our answer, which ``step`` would give.
        assert ended(made.launch.sock.fileno(), 10)
        script = "for p in /proc/[0-9]*; do read name <$p/comm; echo $name; ls -l $p/fd/; done"
        done = ours("exec", id, "sh", "-c", script)
        before, init, after = done.stdout.partition("knarr-init\n")
        assert init, done.stdout
        assert "->" in before, "the other processes' descriptors can be seen"
        assert "->" not in after.split("\nsh\n")[0], after
        assert "can't open '/proc/" in done.stderr or "denied" in done.stderr
    finally:
        made.undo()
        os.close(null)

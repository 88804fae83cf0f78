"""Who enters a container, and what is loaded or shown then: docs/security.md, I4 and I6."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

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


@pytest.mark.parametrize("how", ["exec", "a shared pid namespace"])
def test_an_init_is_closed_to_the_containers_root(how: str, ours: Runtime, bundle: Bundle) -> None:
    """I4, CVE-2016-9962: seen by root inside after it has dropped its capabilities, for as long as strace holds it."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    look = "read name <$p/comm && test $name = knarr-init && ls -l $p/fd/"
    watch = f"while :; do for p in /proc/[0-9]*; do {look}; done; done >>/tmp/seen 2>>/tmp/denied"
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", watch), id)
    words = ["exec", id, "true"]
    if how != "exec":
        spaces = bundle.config["linux"]["namespaces"]
        next(entry for entry in spaces if entry["type"] == "pid")["path"] = f"/proc/{ours.state(id)['pid']}/ns/pid"
        words = ["run", "--bundle", bundle.write("true"), ours.new_id()]
    delay = ["-f", "-q", "-o", os.devnull, "-e", "trace=execve", "-e", "inject=execve:delay_enter=500000"]
    plain, ours.command = ours.command, [strace, *delay, *ours.command]
    done = ours(*words, timeout=60)
    ours.command = plain
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert "fd/0" in (bundle.rootfs / "tmp/denied").read_text()
    # 0 to 2 are the program's own as soon as it runs; the init's socket to the runtime is never seen
    seen = re.findall(r"(\d+) -> ", (bundle.rootfs / "tmp/seen").read_text())
    assert set(seen) <= {"0", "1", "2"}

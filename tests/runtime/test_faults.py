"""Faults: the runtime, the init or the machine gives out at any moment. The numbers are those of docs/security.md.

Quick here; ``KNARR_TEST_FULL=1`` makes as many rounds as the figures in docs/security.md come from, and prints them
(``-s``). ``KNARR_TEST_FULL_RUNTIME=runc`` asks another runtime, to see that the tests can fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import (
    Bundle,
    Runtime,
    cgroups_named,
    end,
    left_behind,
    mounts_at,
    needs_busybox,
    needs_root,
    processes_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [needs_busybox, needs_root]
FULL = bool(os.environ.get("KNARR_TEST_FULL"))
NAME = os.environ.get("KNARR_TEST_FULL_RUNTIME", "knarr")
V1_PIDS = Path("/sys/fs/cgroup/pids")


def rounds(quick: int, full: int) -> int:
    return full if FULL else quick


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Runtime]:
    """knarr-runtime, or the runtime that was asked for."""
    made = Runtime(NAME, tmp_path)
    yield made
    made.clean()


def leaks(runtime: Runtime, bundle: Bundle, id: str) -> list[str]:
    """All that there still is of a deleted container."""
    locks = runtime.root / ".locks"
    return left_behind(runtime, id, 2) + mounts_at(bundle.path) + (os.listdir(locks) if locks.exists() else [])


def keyrings() -> set[str]:
    return set(re.findall(r"keyring +(_ses\.\S+):", Path("/proc/keys").read_text()))


# -- L-1: a SIGKILL of the runtime at any moment -------------------------------------------------------------------------

# verb: (what brings the container there, the call that is killed)
KILLED: dict[str, tuple[list[list[str]], list[str]]] = {
    "create": ([], ["create", "--bundle", "BUNDLE", "ID"]),
    "start": ([["create", "--bundle", "BUNDLE", "ID"]], ["start", "ID"]),
    "exec": ([["run", "--detach", "--bundle", "BUNDLE", "ID"]], ["exec", "ID", "sleep", "998"]),
    "kill": ([["run", "--detach", "--bundle", "BUNDLE", "ID"]], ["kill", "ID", "KILL"]),
    "pause": ([["run", "--detach", "--bundle", "BUNDLE", "ID"]], ["pause", "ID"]),
    "update": ([["run", "--detach", "--bundle", "BUNDLE", "ID"]], ["update", "--pids-limit", "77", "ID"]),
    "delete": ([["run", "--detach", "--bundle", "BUNDLE", "ID"]], ["delete", "--force", "ID"]),
}


def filled(words: list[str], path: str, id: str) -> list[str]:
    return [{"BUNDLE": path, "ID": id}.get(word, word) for word in words]


@pytest.mark.parametrize("verb", KILLED)
def test_l1_killed_at_a_random_moment(verb: str, asked: Runtime, bundle: Bundle) -> None:
    """runc 1.1.5 leaves its cgroups in half of the creations, crun 1.8.1 a process in some."""
    path = bundle.write("sleep", "999")
    before, call = KILLED[verb]
    chance = random.Random(f"{verb}{NAME}")

    def prepared() -> str:
        id = asked.new_id()
        for words in before:
            asked.ok(*filled(words, path, id), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return id

    def one(pause: float | None) -> float:
        """Call, kill after ``pause`` seconds, delete; how long the call took."""
        id = prepared()
        begun = time.monotonic()
        process = asked.popen(*filled(call, path, id), stdin=-3, stdout=-3, stderr=-3)
        if pause is None and verb != "exec":
            process.wait(timeout=20)
        else:
            time.sleep(0.3 if pause is None else pause)
            process.send_signal(signal.SIGKILL)
            process.wait()
        taken = 0.1 if verb == "exec" else time.monotonic() - begun
        begun = time.monotonic()
        done = asked("delete", "--force", id)
        slow.append(time.monotonic() - begun)
        found = left_behind(asked, id, 2)
        if done.returncode or found:
            wrong.append((done.returncode, done.stderr.strip(), found))
            for group in sorted(cgroups_named(id), reverse=True):
                os.rmdir(group)
            asked("delete", "--force", id)
        return taken

    slow: list[float] = []
    wrong: list[Any] = []
    whole = statistics.median(one(None) for _ in range(3))
    number = rounds(6, 200)
    for _ in range(number):
        one(chance.uniform(0, 1.3 * whole))
    print(
        f"L-1 {NAME} {verb}: {len(wrong)} of {number} left something or failed; delete took {max(slow):.2f} s at most"
    )
    assert wrong == []
    # A process that was executed in the container is reaped by the machine's pid 1, which may take its time.
    assert NAME != "knarr" or max(slow) < (10 if verb == "exec" else 2)
    assert mounts_at(bundle.path) == []
    assert NAME != "knarr" or os.listdir(asked.root / ".locks") == []


# -- L-2: the same at every step -----------------------------------------------------------------------------------------

STEPS = (
    "mkdir,mkdirat,rmdir,rename,renameat,renameat2,unlink,unlinkat,bind,listen,sendto,sendmsg,clone,clone3,vfork,fork,"
    "ftruncate,write,memfd_create,mount,umount2,pidfd_open,pidfd_send_signal,kill,flock"
)


def steps_of(runtime: Runtime, words: list[str], log: Path) -> list[tuple[str, int]]:
    """The system calls that change something, each with its number among those of its name."""
    command = ["strace", "-o", str(log), "-e", f"trace={STEPS}", *runtime.command, *words]
    subprocess.run(command, stdin=-3, stdout=-3, stderr=-3, check=False, timeout=60)
    found: list[tuple[str, int]] = []
    for name in re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE):
        found.append((name, 1 + sum(other == name for other, _ in found)))  # looks at what it made
    return found


@pytest.mark.parametrize("fault", ["kill", "error"])
@pytest.mark.parametrize("verb", ["create", "start", "delete", "pause"])
def test_l2_a_fault_at_every_step(fault: str, verb: str, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """Killed before each system call that changes something, or that call fails: nothing is left, no traceback."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    path = bundle.write("sleep", "999")
    before, call = KILLED[verb]

    def prepared() -> str:
        id = ours.new_id()
        for words in before:
            ours.ok(*filled(words, path, id), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return id

    id = prepared()
    steps = steps_of(ours, filled(call, path, id), tmp_path / "log")
    ours.ok("delete", "--force", id)
    stride = 1 if FULL else max(1, len(steps) // 8)
    offset = random.Random(verb + fault).randrange(stride)
    inject = "signal=KILL" if fault == "kill" else "error=EIO"
    tried = 0
    for step in steps[offset::stride]:
        id = prepared()
        name, number = step
        command = ["strace", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:{inject}:when={number}"]
        with (tmp_path / "said").open("w+") as said:
            done = subprocess.run(
                [*command, *ours.command, *filled(call, path, id)],
                stdin=-3,
                stdout=said,
                stderr=said,
                check=False,
                timeout=60,
            )
            said.seek(0)
            words = said.read()
        assert "Traceback" not in words, (step, words)
        assert "a mistake in knarr" not in words, (step, words)
        if fault == "kill":
            assert done.returncode in {-signal.SIGKILL, 0}, (step, words)
        elif verb == "create" and done.returncode:
            assert left_behind(ours, id, 2) == [], (step, words)  # undone by itself
        ours.ok("delete", "--force", id)
        assert leaks(ours, bundle, id) == [], (step, words)
        tried += 1
    print(f"L-2 {verb} {fault}: {tried} of {len(steps)} steps")
    assert tried
    assert mounts_at(bundle.path) == []


# -- L-3: the container's init is killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["created", "running", "exec", "paused", "stopping"])
def test_l3_the_init_is_killed(state: str, ours: Runtime, bundle: Bundle) -> None:
    path = bundle.write("sleep", "999")
    for _ in range(rounds(1, 25)):
        id = ours.new_id()
        ours.ok("create", "--bundle", path, id)
        others: list[subprocess.Popen[bytes]] = []
        if state != "created":
            ours.ok("start", id)
        if state == "exec":
            others.append(ours.popen("exec", id, "sleep", "998", stdin=-3, stdout=-3, stderr=-3))
            deadline = time.monotonic() + 10
            while len(processes_with(id)) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
        if state == "paused":
            ours.ok("pause", id)
        if state == "stopping":
            others.append(ours.popen("delete", "--force", id, stdin=-3, stdout=-3, stderr=-3))
        answer = ours("state", id)
        pid = json.loads(answer.stdout).get("pid", 0) if answer.returncode == 0 else 0
        assert pid or state == "stopping"
        if pid:  # 0 for a stopped container: to kill(2) that is the whole group of whoever runs the tests
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if state != "stopping" and not (state == "paused" and V1_PIDS.exists()):  # frozen on v1, it ends when thawed
            ours.wait_for(id, "stopped", 5)
        for each in others:
            each.wait(timeout=10)
        ours.ok("delete", "--force", id)
        assert leaks(ours, bundle, id) == []


# -- L-5: many, one after another -----------------------------------------------------------------------------------------


def test_l5_one_after_another(asked: Runtime, bundle: Bundle) -> None:
    """Nothing grows: processes, cgroups, mounts, descriptors of ours, keyrings, state; the time is printed."""
    path = bundle.write("true")
    number = rounds(20, 1000)
    keys, fds, mounts = keyrings(), len(os.listdir("/proc/self/fd")), len(Path("/proc/self/mountinfo").read_text())
    taken = []
    ids = []
    for _ in range(number):
        id = asked.new_id()
        begun = time.monotonic()
        asked.ok("create", "--bundle", path, id)
        asked.ok("start", id)
        asked.wait_for(id, "stopped")
        asked.ok("delete", id)
        taken.append(time.monotonic() - begun)
        ids.append(id)
    assert cgroups_named(*ids) == []
    assert processes_with(*ids) == []
    assert mounts_at(bundle.path) == []
    deadline = time.monotonic() + 20  # the kernel's collector of keys comes by now and then
    while keyrings() - keys & {f"_ses.{id}" for id in ids} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (keyrings() - keys) & {f"_ses.{id}" for id in ids} == set()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert len(Path("/proc/self/mountinfo").read_text()) <= mounts or not FULL
    assert set(os.listdir(asked.root)) <= {".locks", ".seccomp"}
    part = max(number // 10, 1)
    first, last = (sorted(each)[-1 - len(each) // 100] * 1000 for each in (taken[:part], taken[-part:]))
    print(
        f"L-5 {NAME}: {number} containers, median {statistics.median(taken) * 1000:.0f} ms; p99 of the first {part} {first:.0f} ms, of the last {last:.0f} ms"
    )


# -- L-8: many creators, one id -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "quick", "full"), [(4, 8, 60), (8, 2, 100)])
def test_l8_one_winner_for_an_id(at_once: int, quick: int, full: int, asked: Runtime, bundle: Bundle) -> None:
    """runc 1.1.5 has two winners now and then, and one of the two containers is nobody's."""
    path = bundle.write("sleep", "999")
    number = rounds(quick, full)
    wrong = []
    for _ in range(number):
        id = asked.new_id()
        processes = [
            asked.popen("create", "--bundle", path, id, stdin=-3, stdout=-3, stderr=-3) for _ in range(at_once)
        ]
        winners = [process.wait(timeout=30) for process in processes].count(0)
        there = [line for line in processes_with(id) if "unshare" not in line]
        if winners != 1 or len(there) != 1:
            wrong.append((winners, there))
        asked("delete", "--force", id)
        if left_behind(asked, id, 2):
            wrong.append((0, left_behind(asked, id, 0)))
            for line in processes_with(id):
                os.kill(int(line.split()[0]), signal.SIGKILL)
    print(f"L-8 {NAME}: {at_once} at once, {len(wrong)} of {number} rounds wrong: {wrong[:3]}")
    assert wrong == []


# -- L-9: all verbs at once -----------------------------------------------------------------------------------------------


def test_l9_all_verbs_at_once(ours: Runtime, bundle: Bundle) -> None:
    """Eight callers with any verb; each answer is one that the lifecycle allows, and nothing is left."""
    path = bundle.write("sleep", "60")
    id = ours.new_id()
    wrong: list[str] = []
    fine = re.compile(
        r"does not exist|already exists|is (creating|created|running|paused|stopped)|container not running"
        r"|another command|being created or removed|killed by signal 9|cannot (start|kill|exec in|pause|resume|delete|update)|frozen|in use"
    )
    verbs: list[tuple[str, ...]] = [
        ("create", "--bundle", path, id),
        ("start", id),
        ("state", id),
        ("kill", id, "KILL"),
        ("exec", id, "true"),
        ("delete", "--force", id),
        ("pause", id),
        ("resume", id),
    ]

    def hammer(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(rounds(6, 200)):
            words = chance.choice(verbs)
            done = ours(*words)
            code, said = done.returncode, done.stderr
            refused = code in {1, 255} and said.count("\n") == 1 and fine.search(said)
            if not (code == 0 or refused or (words[0] == "exec" and code == 137)):
                wrong.append(f"{words} {code} {said}")

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours("resume", id)
    ours.ok("delete", "--force", id)
    assert wrong == []
    assert leaks(ours, bundle, id) == []


# -- L-15: out of processes, of memory --------------------------------------------------------------------------------------


def limited_memory(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))


def test_l15_out_of_memory(ours: Runtime, bundle: Bundle) -> None:
    """With too little address space it does not start, or says so; nothing is left of what it began."""
    path = bundle.write("true")
    codes = set()
    for size in range(8, 72, 4 if FULL else 12):
        id = ours.new_id()
        done = ours("run", "--bundle", path, id, preexec_fn=limited_memory(size << 20))
        codes.add(done.returncode == 0)
        assert left_behind(ours, id) == [], size
        assert "a mistake in knarr" not in done.stderr, (size, done.stderr)
    assert True in codes


@pytest.mark.skipif(not (V1_PIDS / "cgroup.procs").exists(), reason="needs the v1 pids controller")
def test_l15_out_of_processes(ours: Runtime, bundle: Bundle) -> None:
    """fork refuses: one sentence, nothing left."""
    path = bundle.write("true")
    group = V1_PIDS / f"knarr-test-{secrets.token_hex(4)}"
    group.mkdir()
    codes = set()
    try:
        for limit in range(1, 7):
            (group / "pids.max").write_text(str(limit))
            id = ours.new_id()
            done = ours("run", "--bundle", path, id, preexec_fn=lambda: (group / "cgroup.procs").write_text("0"))
            codes.add(done.returncode == 0)
            assert "Traceback" not in done.stderr, (limit, done.stderr)
            assert left_behind(ours, id) == [], limit
    finally:
        deadline = time.monotonic() + 5
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()
    assert codes == {True, False}, "the limits tried must reach from too few to enough"


# -- L-18: the pid is somebody else's -----------------------------------------------------------------------------------------

REUSE = """
import json, os, signal, subprocess, sys, time
command, path, id, verb, rest = sys.argv[1].split(";"), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
def call(*words):
    return subprocess.run([*command, *words], stdin=-3, capture_output=True, text=True, check=False, timeout=30)
made = subprocess.run([*command, "create", "--bundle", path, id], stdin=-3, stdout=-3, stderr=-3, check=True)
pid = json.loads(call("state", id).stdout)["pid"]
os.kill(pid, signal.SIGKILL)
while True:                      # pid 1 of this namespace reaps what it inherits
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid: break
    except ChildProcessError:
        break
    time.sleep(0.01)
time.sleep(0.02)                 # start times are counted in hundredths of a second
for _ in range(200):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    other = subprocess.Popen(["/bin/sleep", "60"])
    if other.pid == pid: break
    other.kill(); other.wait()
else:
    print("the number did not come back"); sys.exit(77)
status = json.loads(call("state", id).stdout)["status"]
done = call(verb, *[id if word == "ID" else word for word in rest])
print(status, done.returncode, done.stderr.strip(), "alive" if other.poll() is None else "dead")
stopped = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] if other.poll() is None else "X"
other.kill(); other.wait()
call("delete", "--force", id)
sys.exit(0 if status == "stopped" and stopped in "SR" else 1)
"""


@pytest.mark.parametrize(
    "words", [["kill", "ID", "KILL"], ["delete", "--force", "ID"], ["exec", "ID", "true"], ["pause", "ID"]]
)
def test_l18_a_pid_that_came_back(words: list[str], ours: Runtime, bundle: Bundle) -> None:
    """In a pid namespace of our own, whose next number can be set: the process that has it now lives on."""
    path = bundle.write("sleep", "999")
    for _ in range(rounds(1, 25)):
        id = ours.new_id()
        script = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSE]
        done = subprocess.run(
            [*script, ";".join(ours.command), path, id, *words], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode == 77:
            pytest.skip("the number did not come back in 200 tries")
        assert done.returncode == 0, done
        assert left_behind(ours, id) == []


# -- L-21: others that never answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--log", "--pid-file", "config.json"])
def test_l21_a_fifo_that_nobody_reads(option: str, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """What is to be a file is a FIFO: refused, or done without it, but not waited for."""
    path = bundle.write("true")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    id = ours.new_id()
    words = ["create", "--bundle", path, id]
    if option == "config.json":
        (bundle.path / "config.json").unlink()
        os.mkfifo(bundle.path / "config.json")
    elif option == "--log":
        words = ["--log", str(fifo), *words]
    else:
        words = ["create", "--pid-file", str(fifo), "--bundle", path, id]
    begun = time.monotonic()
    done = ours(*words, timeout=20)
    assert time.monotonic() - begun < 10, done
    ours.ok("delete", "--force", id)
    assert leaks(ours, bundle, id) == []


@pytest.mark.parametrize(
    "kind", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
)
def test_l21_a_hook_that_never_ends(kind: str, ours: Runtime, bundle: Bundle) -> None:
    """Each ends by its own time-out, with all that it started, and what it inherited keeps nobody waiting."""
    mark = f"99{os.getpid()}"
    bundle.config["mounts"].append({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "ro"]})
    hook = {
        "path": "/bin/sh",
        "args": ["sh", "-c", f"sleep {mark} & sleep {mark}"],
        "timeout": 1,
        "env": ["PATH=/bin:/usr/bin"],
    }
    bundle.config["hooks"] = {kind: [hook]}
    path = bundle.write("true")
    id = ours.new_id()
    begun = time.monotonic()
    done = ours("run", "--bundle", path, id)
    assert 0.9 < time.monotonic() - begun < 8, done
    assert (done.returncode == 0) is (kind == "poststop"), done
    assert f"/hooks/{kind}/0" in done.stderr
    assert [line for line in processes_with(mark) if "sleep" in line] == []
    ours.ok("delete", "--force", id)
    assert left_behind(ours, id) == []


def test_l21_an_uninterruptible_caller_of_state(ours: Runtime, bundle: Bundle) -> None:
    """Somebody who holds the id's lock for ever (stopped in the middle of a creation) keeps nobody waiting for ever."""
    hook = {"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 60}
    bundle.config["hooks"] = {"createRuntime": [hook]}
    id = ours.new_id()
    creator = ours.popen("create", "--bundle", bundle.write("true"), id, stdin=-3, stdout=-3, stderr=-3)
    try:
        deadline = time.monotonic() + 10
        while ours("state", id).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        creator.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        assert ours.state(id)["status"] == "creating"
        assert ours("start", id).returncode == 1
        assert time.monotonic() - begun < 5
        done = ours("delete", "--force", id, timeout=40)
        assert done.returncode == 1
        assert "another command" in done.stderr
    finally:
        end(creator)
    ours.ok("delete", "--force", id)
    assert leaks(ours, bundle, id) == []

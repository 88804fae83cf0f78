"""create, start, state, kill, delete, run, list: the same answers from knarr-runtime, runc and crun."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

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

pytestmark = [needs_busybox, needs_root]


def test_the_life_of_a_container(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"org.example": "yes"}
    path = bundle.write("sh", "-c", "echo ran >/tmp/mark; sleep 60")
    id = runtime.new_id()
    runtime.ok("create", "--bundle", path, id)
    state = runtime.state(id)
    assert state["status"] == "created"
    assert state["id"] == id
    assert state["bundle"] == path
    assert state["annotations"] == {"org.example": "yes"}
    assert state["ociVersion"].startswith("1.")
    assert Path(f"/proc/{state['pid']}").exists()
    assert not (bundle.rootfs / "tmp/mark").exists()
    runtime.ok("start", id)
    assert runtime.state(id)["status"] == "running"
    assert runtime.state(id)["pid"] == state["pid"]
    assert runtime("start", id).returncode == 1
    refused = runtime("delete", id)
    assert refused.returncode == 1
    assert refused.stderr
    runtime.ok("kill", id, "KILL")
    stopped = runtime.wait_for(id, "stopped")
    if runtime.name != "crun":  # crun keeps the pid of the dead
        assert stopped["pid"] == 0
    assert (bundle.rootfs / "tmp/mark").read_text() == "ran\n"
    runtime.ok("delete", id)
    assert runtime("state", id).returncode == 1
    assert left_behind(runtime, id) == []
    assert mounts_at(bundle.path) == []


def test_a_created_container_can_be_deleted(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    pid = runtime.state(id)["pid"]
    runtime.ok("delete", id)
    assert left_behind(runtime, id) == []
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$; sleep 1", 137), ("kill -15 $$; sleep 1", 143)],
)
def test_run_gives_the_programs_exit_code(script: str, code: int, runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    if "kill" in script:  # pid 1 of a namespace is not killed from inside: run without one of its own
        bundle.config["linux"]["namespaces"] = [
            entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] != "pid"
        ]
        if runtime.name == "runc":
            pytest.skip("runc 1.1 cannot do without /proc, and none can be mounted here")
        for name in ("maskedPaths", "readonlyPaths"):
            del bundle.config["linux"][name]
        del bundle.config["mounts"][0]
    done = runtime("run", "--bundle", bundle.write("sh", "-c", script), id)
    assert done.returncode == code, done.stderr
    assert left_behind(runtime, id) == []


def test_run_passes_stdio_through(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    path = bundle.write("sh", "-c", "cat; echo err >&2")
    with runtime.popen("run", "--bundle", path, id, stdin=-1, stdout=-1, stderr=-1) as process:
        out, err = process.communicate(b"typed\n", timeout=20)
    assert (out, err) == (b"typed\n", b"err\n")


def test_run_in_the_current_directory(runtime: Runtime, bundle: Bundle) -> None:
    done = runtime("run", runtime.new_id(), cwd=bundle.write("echo", "here"))
    assert (done.returncode, done.stdout) == (0, "here\n")


def test_run_detached(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    id = runtime.new_id()
    pid_file = tmp_path / "pid"
    runtime.ok("run", "--detach", "--pid-file", str(pid_file), "--bundle", bundle.write("sleep", "60"), id)
    state = runtime.wait_for(id, "running")
    assert int(pid_file.read_text()) == state["pid"]
    runtime.ok("delete", "--force", id)
    assert left_behind(runtime, id) == []


@pytest.mark.parametrize("word", ["TERM", "SIGTERM", "15"])
def test_kill_by_name_and_number(word: str, runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    # The trap needs to be set before the signal comes: the program says so.
    path = bundle.write(
        "sh", "-c", "trap 'echo got >>/tmp/log; exit 3' TERM; echo set >/tmp/log; while :; do sleep 0.05; done"
    )
    runtime.ok("run", "--detach", "--bundle", path, id)
    log = bundle.rootfs / "tmp/log"
    wait_until(lambda: log.exists() and log.read_text() == "set\n")
    runtime.ok("kill", id, word)
    runtime.wait_for(id, "stopped")
    assert log.read_text() == "set\ngot\n"


def wait_until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_errors(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "60"), id)
    for word in ("65", "-9") if runtime.name == "crun" else ("FOO", "65", "-9"):
        assert runtime("kill", id, word).returncode != 0
    assert runtime.state(id)["status"] == "running"
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    late = runtime("kill", id, "TERM")
    if runtime.name == "crun":
        pytest.skip("crun's word for an ended container differs")
    assert late.returncode == 1
    assert "container not running" in late.stderr  # containerd looks for these words


def test_kill_all_reaches_every_process(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    path = bundle.write("sh", "-c", "sleep 1000 & sleep 1000 & echo up >/tmp/log; wait; sleep 1000")
    runtime.ok("run", "--detach", "--bundle", path, id)
    wait_until((bundle.rootfs / "tmp/log").exists)
    runtime.ok("kill", "--all", id, "KILL")
    runtime.wait_for(id, "stopped")
    assert processes_with(id) == []


def test_signals_are_passed_on_by_run(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    path = bundle.write("sh", "-c", "trap 'exit 11' USR1; echo set >/tmp/log; while :; do sleep 0.05; done")
    process = runtime.popen("run", "--bundle", path, id)
    try:
        wait_until((bundle.rootfs / "tmp/log").exists)
        if runtime.name == "crun":
            pytest.skip("our wrapper for crun would take the signal")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=10) == 11
    finally:
        end(process)


def test_a_signal_at_any_moment_of_run(ours: Runtime, bundle: Bundle) -> None:
    """SIGUSR1 is the program's: it never ends us, not even before we attend to it."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "kill -USR1 $PPID"]}
    bundle.config["hooks"] = {"createRuntime": [{**hook, "env": ["PATH=/bin:/usr/bin"]}]}
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("sh", "-c", "trap 'echo got' USR1; sleep 0.3; echo end"), id)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "end"), done


def test_an_existing_id_is_refused_and_left_alone(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    path = bundle.write("sleep", "60")
    runtime.ok("create", "--bundle", path, id)
    pid = runtime.state(id)["pid"]
    for verb in ("create", "run"):
        done = runtime(verb, "--bundle", path, id)
        assert done.returncode == 1
        assert "exists" in done.stderr
    assert runtime.state(id)["pid"] == pid
    assert alive(pid)


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete"])
def test_unknown_ids(verb: str, runtime: Runtime) -> None:
    done = runtime(verb, "nobody")
    assert done.returncode == 1
    assert "does not exist" in done.stderr or "not find" in done.stderr or "No such" in done.stderr


def test_delete_force_of_an_unknown_id_is_fine(runtime: Runtime) -> None:
    assert runtime("delete", "--force", "nobody").returncode == 0


def test_list(runtime: Runtime, bundle: Bundle) -> None:
    path = bundle.write("sleep", "60")
    ids = [runtime.new_id() for _ in range(3)]
    for id in ids:
        runtime.ok("create", "--bundle", path, id)
    runtime.ok("start", ids[0])
    assert sorted(runtime.ok("list", "-q").split()) == sorted(ids)
    found = json.loads(runtime.ok("list", "--format", "json"))
    assert {entry["id"]: entry["status"] for entry in found} == {
        ids[0]: "running",
        ids[1]: "created",
        ids[2]: "created",
    }
    table = runtime.ok("list").splitlines()
    assert {line.split()[0] for line in table[1:]} == set(ids)


def test_list_prints_runcs_table(tmp_path: Path, bundle: Bundle) -> None:
    path = bundle.write("sleep", "60")
    headers = []
    for name in ("runc", "knarr"):
        runtime = Runtime(name, tmp_path)
        runtime.root = tmp_path / name
        runtime.command[-1] = str(runtime.root)
        empty = runtime.ok("list")
        id = runtime.new_id()
        runtime.ok("create", "--bundle", path, id)
        headers.append((empty, runtime.ok("list").splitlines()[0].split()))
        line = runtime.ok("list").splitlines()[1].split()
        assert (line[0], line[2], line[3], line[5]) == (id, "created", path, "root")
        runtime.clean()
    assert headers[0] == headers[1]


def test_eight_at_once_for_one_id(runtime: Runtime, bundle: Bundle) -> None:
    """I29: exactly one creation wins, the others say so and leave nothing; runc 1.1 sometimes has two winners."""
    if runtime.name == "runc":
        pytest.skip("runc 1.1.5 looks before it makes: two winners in 2 of 60 rounds")
    path = bundle.write("sleep", "60")
    rounds = 30 if runtime.name == "knarr" else 3
    for _ in range(rounds):
        id = runtime.new_id()
        processes = [runtime.popen("create", "--bundle", path, id, stdin=-3, stdout=-3, stderr=-3) for _ in range(4)]
        codes = sorted(process.wait(timeout=30) for process in processes)
        assert codes == [0, 1, 1, 1]
        assert runtime.state(id)["status"] == "created"
        waiting = list(processes_with(id))
        assert len(waiting) == 1, waiting
        runtime.ok("delete", "--force", id)
        assert left_behind(runtime, id) == []


def test_only_one_start_wins(ours: Runtime, bundle: Bundle) -> None:
    path = bundle.write("sh", "-c", "echo started >>/tmp/log; sleep 60")
    for _ in range(5):
        (bundle.rootfs / "tmp/log").unlink(missing_ok=True)
        id = ours.new_id()
        ours.ok("create", "--bundle", path, id)
        processes = [ours.popen("start", id, stderr=-3) for _ in range(4)]
        assert sorted(process.wait(timeout=30) for process in processes) == [0, 1, 1, 1]
        wait_until((bundle.rootfs / "tmp/log").exists)
        assert (bundle.rootfs / "tmp/log").read_text() == "started\n"
        ours.ok("delete", "--force", id)


def test_the_state_directory_is_private(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    for path in (ours.root, ours.root / id, ours.root / ".locks"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o77 == 0 for path in (ours.root / id).glob("*.json"))


def test_a_pid_file_is_written_in_one_step_and_follows_no_link(
    runtime: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    planted = tmp_path / "pid"
    planted.symlink_to(victim)
    id = runtime.new_id()
    path = bundle.write("sleep", "60")
    done = runtime("create", "--bundle", path, "--pid-file", str(planted), id)
    if runtime.name == "crun":
        pytest.skip("crun follows the link")
    assert done.returncode == 0
    assert victim.read_text() == "keep"
    assert int(planted.read_text()) == runtime.state(id)["pid"]
    other = runtime.new_id()
    done = runtime("create", "--bundle", path, "--pid-file", str(tmp_path / "none/pid"), other)
    assert done.returncode == 1
    assert left_behind(runtime, other) == []


def test_descriptors_of_the_caller_do_not_cross(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        done = runtime("run", "--bundle", bundle.write("sh", "-c", "ls /proc/self/fd"), id, close_fds=False)
    finally:
        os.close(secret)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {"0", "1", "2", "3"}  # 3 is ls reading the directory


def test_descriptors_handed_down_on_purpose(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("handed down\n")
    id = runtime.new_id()
    path = bundle.write("sh", "-c", "cat <&3; echo back >&4")
    words = [*runtime.command, "run", "--preserve-fds", "2", "--bundle", path, id]
    script = f"exec {' '.join(words)} 3<{given} 4>{tmp_path}/back"
    done = Runtime.__call__.__globals__["run_to_files"](["sh", "-c", script], timeout=30)
    assert (done.returncode, done.stdout) == (0, "handed down\n"), done.stderr
    assert (tmp_path / "back").read_text() == "back\n"


def test_more_descriptors_than_there_are(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    done = ours("create", "--preserve-fds", "1000", "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert "cannot preserve descriptor" in done.stderr
    assert left_behind(ours, id) == []


def test_sockets_of_the_service_manager(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    path = bundle.write("sh", "-c", 'echo "$LISTEN_FDS $LISTEN_PID"; readlink /proc/self/fd/3')
    words = " ".join([*ours.command, "run", "--bundle", path, id])
    done = Runtime.__call__.__globals__["run_to_files"](
        ["sh", "-c", f"exec {words} 3</etc/hostname"], env={**os.environ, "LISTEN_FDS": "1"}, timeout=30
    )
    assert done.stdout == "1 1\n/etc/hostname\n" or done.stdout.startswith("1 1\n/"), done.stderr


def test_a_created_container_holds_no_descriptor_of_the_host(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    pid = ours.state(id)["pid"]
    root = os.stat(f"/proc/{pid}/root")
    open_files = {
        os.readlink(link)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if (link.stat().st_dev, link.stat().st_ino) != (root.st_dev, root.st_ino)  # its own root is no secret
    }
    allowed = ("/dev/null", "socket:", "pipe:", "/memfd:", "anon_inode:")  # memfd: where our test keeps its output
    assert all(name.startswith(allowed) for name in open_files), open_files


def test_nothing_is_inheritable_and_nothing_ambient(runtime: Runtime, bundle: Bundle) -> None:
    """I14, CVE-2022-29162."""
    id = runtime.new_id()
    done = runtime("run", "--bundle", bundle.write("grep", "^Cap", "/proc/self/status"), id)
    found = dict(line.split(":\t") for line in done.stdout.splitlines())
    wanted = sum(1 << number for number in (5, 10, 29))
    assert {name: int(value, 16) for name, value in found.items()} == {
        "CapInh": 0,
        "CapAmb": 0,
        "CapPrm": wanted,
        "CapEff": wanted,
        "CapBnd": wanted,
    }


def test_all_verbs_at_once(ours: Runtime, bundle: Bundle) -> None:
    """No traceback, and each answer is one the lifecycle allows, whatever others do meanwhile."""
    path = bundle.write("sleep", "60")
    id = ours.new_id()
    wrong: list[str] = []

    def hammer(*words: str) -> None:
        for _ in range(8):
            done = ours(*words)
            # 137: an exec that was killed with its container
            if done.returncode not in {0, 1, 137, 255} or "Traceback" in done.stderr:
                wrong.append(f"{words} {done.returncode} {done.stderr}")

    verbs = [
        ("create", "--bundle", path, id),
        ("start", id),
        ("state", id),
        ("kill", id, "KILL"),
        ("exec", id, "true"),
        ("delete", "--force", id),
        ("list",),
    ]
    threads = [threading.Thread(target=hammer, args=words) for words in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    ours.ok("delete", "--force", id)
    assert left_behind(ours, id) == []
    assert cgroups_named(id) == []

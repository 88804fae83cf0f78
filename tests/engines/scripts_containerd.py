"""What the tests have containerd do, through ``ctr``."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine_containerd import FOLDER, IMAGE
from scripts_docker import POSTURE, SHELL
from transcript import Broken

if TYPE_CHECKING:
    from transcript import Recorder


def run_words(d: Recorder, name: str, *options: str) -> tuple[str, ...]:
    return ("run", "--runc-binary", d.runtime, "--cgroup", f"{d.cgroup}/{name}", *options, IMAGE, name)


def running(d: Recorder, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000")) -> None:
    d(*run_words(d, name, "-d", *options), *command)


def no_pids(out: str) -> str:
    return re.sub(r" {2,}", " ", re.sub(r"\s+\d+\b", " <pid>", out))


def told(out: str) -> str:
    """Events without their times, pids and the numbers in paths."""
    rows = [
        line.partition(" default ")[2]
        for line in out.splitlines()
        if " default " in line and "/namespaces/" not in line
    ]
    return "\n".join(
        re.sub(r'"value":"[^"]*"', '"value":"<options>"', re.sub(r'(?<="pid":)\d+|(?<=/)\d+(?=/)', "<n>", row))
        for row in rows
    )


def gone(d: Recorder, name: str, how: str = "SIGKILL") -> None:
    d("task", "kill", "-s", how, name)
    d.wait_for("its end", "task", "ls", until=lambda out: bool(re.search(rf"{name} .*STOPPED", out)))
    d("task", "ls", view=no_pids)


def script_run(d: Recorder) -> None:
    d(*run_words(d, "one", "--rm"), "echo", "hello", out="hello\n")
    d(*run_words(d, "one", "--rm"), "sh", "-c", "echo out; echo err >&2; exit 7", code=7, out="out\n")
    d(*run_words(d, "one", "--rm"), "head", "-n1", stdin="through\n", out="through\n")
    d(*run_words(d, "one", "--rm"), "no-such-program", code=1, own=("executable file not found",))
    d(*run_words(d, "one", "--rm"), "/etc/not-a-program", code=1, own=("permission denied",))
    d(*run_words(d, "one", "--rm", "--env", "A=b", "--cwd", "/data"), "sh", "-c", "env | sort; pwd")


def script_posture(d: Recorder) -> None:
    def look(*options: str, command: str = POSTURE) -> None:
        d(*run_words(d, "look", "--rm", *options), "sh", "-c", command)

    look()
    look("--read-only")
    look("--allow-new-privs")
    look("--seccomp")
    look("--cap-add", "CAP_NET_ADMIN", "--cap-drop", "CAP_CHOWN")
    look(
        "--mount",
        "type=bind,src=/etc,dst=/host-etc,options=rbind:ro",
        command="grep host-etc /proc/self/mountinfo | cut -d' ' -f6; ls /host-etc/passwd",
    )
    look("--net-host", command="ip -o link | wc -l")
    look("--device", "/dev/fuse", command="ls -l /dev/fuse | cut -c1-10")
    look(
        "--memory-limit",
        "33554432",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "99",
        command="cut -d: -f2,3 /proc/self/cgroup | sort",
    )
    look(
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
        command="id; cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/mine; stat -c %u /tmp/mine",
    )
    words = (
        *run_words(d, "look", "--rm", "--rootfs-propagation", "rshared"),
        "grep",
        "shared:",
        "/proc/self/mountinfo",
    )
    why = "linux.rootfsPropagation shared is to make the root shared (config-linux.md); runc 1.1.5 leaves it private"
    d.apart(why, *words, runc=(1, ""), ours=(0, "shared:"))


def script_exec(d: Recorder) -> None:
    running(d, "ex")
    d("task", "exec", "--exec-id", "e1", "ex", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    d("task", "exec", "--exec-id", "e2", "ex", "head", "-n1", stdin="through\n", out="through\n")
    d("task", "exec", "--exec-id", "e3", "--cwd", "/data", "--user", "app", "ex", "sh", "-c", "pwd; id")
    d("task", "exec", "--exec-id", "e4", "ex", "no-such-program", code=1, own=("executable file not found",))
    d("task", "exec", "--exec-id", "e5", "-d", "ex", "sleep", "1000")
    d("task", "ps", "ex", view=lambda out: str(len(out.splitlines())))
    talk = d.terminal("task", "exec", "--exec-id", "e6", "-t", "ex", *SHELL, size=(20, 77))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("20 77\r\r\n/dev/pts/")
    talk.ask("> ", "exit 9")
    talk.end(9)
    gone(d, "ex")
    d("task", "rm", "ex")
    d("container", "rm", "ex")


def script_terminal(d: Recorder) -> None:
    talk = d.terminal(*run_words(d, "term", "--rm", "-t"), *SHELL, size=(33, 101))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("33 101\r\r\n/dev/pts/0\r\r\n")
    talk.ask("> ", "exit 5")
    talk.end(5)


def script_pause_resume_metrics(d: Recorder) -> None:
    running(d, "pa")
    d("task", "pause", "pa")
    d("task", "ls", view=no_pids)
    d("task", "exec", "--exec-id", "e1", "pa", "true", code=1, own=("pa",))
    d("task", "resume", "pa")
    d("task", "ls", view=no_pids)
    d("task", "exec", "--exec-id", "e2", "pa", "echo", "alive", out="alive\n")
    d("task", "metrics", "pa", view=lambda out: "\n".join(line.split()[0] for line in out.splitlines() if line.strip()))
    d("task", "resume", "pa", code=1)
    d("task", "pause", "pa")
    gone(d, "pa")
    d("task", "rm", "pa")
    d("container", "rm", "pa")
    d("task", "pause", "pa", code=1)


def script_signals(d: Recorder) -> None:
    running(d, "si", command=("sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.05; done"))
    d("task", "kill", "si")
    d.wait_for("its end", "task", "ls", until=lambda out: "STOPPED" in out)
    d("task", "kill", "si", code=1, own=("not found",))
    d("task", "rm", "si")
    d("task", "start", "-d", "si")
    d("task", "exec", "--exec-id", "e1", "-d", "si", "sleep", "1000")
    d("task", "kill", "-a", "-s", "SIGKILL", "si")
    d.wait_for("its end", "task", "ls", until=lambda out: "STOPPED" in out)
    d("task", "rm", "si")
    d("container", "rm", "si")


def script_delete_by_force(d: Recorder) -> None:
    running(d, "fo")
    d("task", "rm", "fo", code=1)
    d("task", "rm", "-f", "fo")
    d("container", "rm", "fo")


def script_joined_namespaces(d: Recorder) -> None:
    running(d, "first")
    pid = re.search(r"first\s+(\d+)", d.quiet("task", "ls").stdout)
    assert pid is not None
    spaces = [
        word for kind in ("network", "ipc", "uts") for word in ("--with-ns", f"{kind}:/proc/{pid[1]}/ns/{kind[:3]}")
    ]
    d.hide(pid[1], "<pid>")
    d(
        *run_words(d, "second", "--rm", "--with-ns", f"pid:/proc/{pid[1]}/ns/pid", *spaces),
        "sh",
        "-c",
        "ps -o args | grep -c '^sleep'; hostname",
    )
    d("task", "rm", "-f", "first")
    d("container", "rm", "first")


class Events:
    """``ctr events``, which does not say when it listens: the first events are our own, until one has come."""

    def __init__(self, d: Recorder) -> None:
        self.d = d
        self.log = Path(d.folder, f"events-{len(list(Path(d.folder).iterdir()))}")
        self.process = d.box.spawn("ctr", "-a", f"{FOLDER}.sock", "events", log=self.log)
        for number in range(1000):
            d.quiet("namespace", "create", f"n{number}")
            d.quiet("namespace", "rm", f"n{number}")
            if "/namespaces/delete" in self.log.read_text():
                break

    def end(self, last: str) -> str:
        """Wait until ``last`` was told; record all."""
        end = time.monotonic() + 30
        while last not in (said := self.log.read_text()):
            if time.monotonic() > end:
                raise Broken(f"ctr events: waited for {last!r}: {said}")
            time.sleep(0.05)
        for pid, args in self.d.box.processes().items():
            if args.endswith(" events"):
                self.d.box.run("kill", str(pid))
        self.process.wait(30)
        self.d.record(("events",), None, told(said))
        return said


def script_out_of_memory(d: Recorder) -> None:
    events = Events(d)
    d(*run_words(d, "oom", "--memory-limit", "16777216"), "sh", "-c", "tail /dev/zero; exit 3", code=3)
    d("task", "ls", view=no_pids)
    d("container", "rm", "oom")
    said = events.end("/containers/delete")
    assert "/tasks/oom" in said


def script_events(d: Recorder) -> None:
    events = Events(d)
    running(d, "ev")
    d("task", "exec", "--exec-id", "e1", "ev", "true")
    d("task", "pause", "ev")
    d("task", "resume", "ev")
    gone(d, "ev")
    d("task", "rm", "ev")
    d("container", "rm", "ev")
    said = events.end("/containers/delete")
    assert "/tasks/paused" in said

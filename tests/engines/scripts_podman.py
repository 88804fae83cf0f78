"""What the tests have Podman do as root; ``scripts_rootless.py`` has what an ordinary user does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scripts_docker import POSTURE, SHELL, every_capability, no_numbers

if TYPE_CHECKING:
    from transcript import Recorder


def run_words(d: Recorder, *options: str) -> tuple[str, ...]:
    return ("run", "--cgroup-parent", d.cgroup, *options)


def running(d: Recorder, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000")) -> None:
    d(*run_words(d, "-d", "--name", name, *options), "small", *command)


def state(d: Recorder, name: str) -> None:
    d("inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.RestartCount}}")


def script_run(d: Recorder) -> None:
    d(*run_words(d, "--rm"), "small", "echo", "hello", out="hello\n")
    d(*run_words(d, "--rm"), "small", "sh", "-c", "echo out; echo err >&2; exit 7", code=7, out="out\n")
    d(*run_words(d, "--rm", "-i"), "small", "cat", stdin="through\n", out="through\n")
    d(*run_words(d, "--rm"), "small", "no-such-program", code=127, own=("executable file not found",))
    d(*run_words(d, "--rm"), "small", "/etc/not-a-program", code=126, own=("permission denied",))
    options = ("--name", "one", "-e", "A=b", "--hostname", "host1", "--label", "k=v", "-w", "/data")
    d(*run_words(d, *options), "small", "sh", "-c", "pwd; env | sort; hostname")
    d.document("inspect", "one", leave=PODMAN_OWN)
    d("start", "-a", "one")
    d("logs", "one")
    d("rm", "one")


# Paths with the container's id or a random part in them, and what inspect takes from config.json of the engine's own.
PODMAN_OWN = (
    "Id",
    "Env",
    "OCIConfigPath",
    "StaticDir",
    "ConmonPidFile",
    "SandboxKey",
    "LogConfig",
    "MergedDir",
    "UpperDir",
    "WorkDir",
    "Dir",
    "MacAddress",
    "IPAddress",
    "CheckpointedAt",
    "RestoredAt",
    "CreateCommand",
    "OCIRuntime",
    "Path",
)


def script_exec_and_terminals(d: Recorder) -> None:
    running(d, "ex", "-e", "A=container")
    d("exec", "ex", "sh", "-c", "echo out; echo err >&2; exit 3", code=3, out="out\n")
    d("exec", "-i", "ex", "cat", stdin="through\n", out="through\n")
    d("exec", "-u", "app", "-w", "/data", "-e", "A=exec", "ex", "sh", "-c", "id; pwd; echo $A")
    d("exec", "ex", "no-such-program", code=127, own=("executable file not found",))
    d("exec", "ex", "/etc/not-a-program", code=126, own=("permission denied",))
    d("exec", "ex", "sh", "-c", POSTURE)
    d("exec", "-d", "ex", "sh", "-c", "echo done > /tmp/done; sleep 1000")
    d.wait_for("the detached one", "exec", "ex", "cat", "/tmp/done", until=lambda out: out == "done\n")
    d("top", "ex", "user", "args")
    talk = d.terminal("exec", "-it", "ex", *SHELL, size=(20, 77))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("20 77\r\n/dev/pts/")
    talk.ask("> ", "exit 9")
    talk.end(9)
    d("kill", "ex")
    d("wait", "ex", out="137\n")
    d("exec", "ex", "true", code=255)
    d("rm", "ex")
    talk = d.terminal(*run_words(d, "-it", "--name", "term"), "small", *SHELL, size=(33, 101))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("33 101\r\n/dev/pts/0\r\n")
    talk.ask("> ", "exit 5")
    talk.end(5)
    d("rm", "term")


def script_stop_kill_wait(d: Recorder) -> None:
    trap = "trap 'echo got TERM; exit 4' TERM; trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done"
    running(d, "st", command=("sh", "-c", trap))
    d.wait_for("the traps", "logs", "st", until=lambda out: out == "ready\n")
    d("kill", "-s", "USR1", "st")
    d.wait_for("USR1", "logs", "st", until=lambda out: "USR1" in out)
    d("stop", "st")
    state(d, "st")
    d("restart", "st")
    d.wait_for("the traps again", "logs", "st", until=lambda out: out.count("ready") == 2)
    d("rm", "st", code=2)
    d("rm", "-f", "-t", "0", "st")
    running(d, "ig", command=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    d.wait_for("the trap", "logs", "ig", until=lambda out: out == "ready\n")
    d("stop", "-t", "1", "ig", view=lambda out: out)
    state(d, "ig")
    d("rm", "ig")
    d(*run_words(d, "-d", "--restart", "on-failure:2", "--name", "ag"), "small", "sh", "-c", "echo try; exit 3")
    d.wait_for("three attempts", "logs", "ag", until=lambda out: out == "try\ntry\ntry\n")
    d("wait", "ag")
    d("rm", "-f", "ag")


def script_pause_stats_update(d: Recorder) -> None:
    running(d, "pa", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")
    d("pause", "pa")
    state(d, "pa")
    d("exec", "pa", "true", code=255)
    d("unpause", "pa")
    d("exec", "pa", "echo", "alive", out="alive\n")
    d("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemLimit}}", "pa")
    for file in ("memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_quota_us"):
        d("exec", "pa", "cat", f"/sys/fs/cgroup/{file}")
    d("update", "--memory", "80m", "--memory-swap", "160m", "--cpus", "1.5", "pa")
    for file in ("memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "cpu/cpu.cfs_quota_us"):
        d("exec", "pa", "cat", f"/sys/fs/cgroup/{file}")
    d("pause", "pa")
    d("rm", "-f", "-t", "0", "pa")
    d(*run_words(d, "--name", "oom", "--memory", "16m", "--memory-swap", "16m"), "small", "tail", "/dev/zero", code=137)
    state(d, "oom")
    d("rm", "oom")


def script_posture(d: Recorder) -> None:
    def look(*options: str, command: str = POSTURE) -> None:
        d(*run_words(d, "--rm", "--network", "none", *options), "small", "sh", "-c", command)

    look()
    look("--read-only")
    look("--read-only", "--read-only-tmpfs=false")
    look("--user", "app")
    look("--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN")
    look("--cap-drop", "ALL")
    if every_capability():
        look("--privileged")
    look("--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined")
    look("--security-opt", "mask=/proc/uptime", "--security-opt", "unmask=/proc/acpi")
    look("--init", command="ps -o args; cat /proc/1/comm")
    look("--tmpfs", "/t:size=64k,mode=1700", command="stat -c %a /t; grep ' /t ' /proc/self/mountinfo | cut -d' ' -f5-")
    look("--tmpfs", "/data", command="cat /data/seed; stat -c %a /data")
    words = (*run_words(d, "--rm", "--tmpfs", "/data"), "small", "stat", "-c", "owner %u", "/data")
    why = "a tmpfs with tmpcopyup belongs to whom the directory it hides did; runc copies its mode only"
    d.apart(why, *words, runc=(0, "owner 0"), ours=(0, "owner 1000"))
    look("--device", "/dev/fuse", command="ls -l /dev/fuse | cut -c1-10")
    look("--sysctl", "kernel.msgmax=4096", command="cat /proc/sys/kernel/msgmax")
    look("--ulimit", "nofile=64:128", "--ulimit", "nproc=100:100", command="ulimit -n; ulimit -Hn")
    look("--userns", "auto", command="cat /proc/self/uid_map | tr -s ' '; id; touch /tmp/mine; stat -c %u /tmp/mine")
    look("--uidmap", "0:400000:1000", "--gidmap", "0:400000:1000", command="cat /proc/self/uid_map | tr -s ' '; id -u")
    look("--pid", "host", command="[ $$ -gt 1 ] && echo not the first")
    look("--ipc", "none", command="[ -e /dev/shm ] || echo there is none")
    look("--umask", "077", command="umask")
    look("-v", "/etc:/in:ro,rslave", command="ls /in/passwd; touch /in/x; true")


def script_health(d: Recorder) -> None:
    running(d, "he", "--health-cmd", "cat /tmp/healthy", "--health-interval", "disable", "--health-retries", "1")
    d("healthcheck", "run", "he", code=1)
    d("exec", "he", "sh", "-c", "echo fine > /tmp/healthy")
    d("healthcheck", "run", "he")
    d("inspect", "he", "--format", "{{.State.Health.Status}}")
    d("rm", "-f", "-t", "0", "he")


def script_pods(d: Recorder) -> None:
    d("pod", "create", "--cgroup-parent", d.cgroup, "--name", "po", "-p", "127.0.0.1:18081:80", "--hostname", "podhost")
    web = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"
    d("run", "-d", "--pod", "po", "--name", "web", "small", "sh", "-c", web)
    d("run", "--rm", "--pod", "po", "small", "sh", "-c", "hostname; wget -qO- http://127.0.0.1/")
    d.note("through the published port", d.box.run("busybox", "wget", "-qO-", "http://127.0.0.1:18081/"))
    d("pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}")
    d("ps", "-a", "--pod", "--format", "{{.Names}} {{.PodName}}", view=lambda out: "\n".join(sorted(out.splitlines())))
    d("pod", "pause", "po")
    d("pod", "ps", "--format", "{{.Name}} {{.Status}}")
    d("pod", "unpause", "po")
    d(
        "pod",
        "stats",
        "--no-stream",
        "--format",
        "{{.PIDS}}",
        "po",
        view=lambda out: "\n".join(sorted(out.splitlines())),
    )
    d("pod", "top", "po", "user", "args", view=lambda out: "\n".join(sorted(no_numbers(out).splitlines())))
    d("pod", "stop", "-t", "0", "po")
    d("pod", "start", "po")
    d("pod", "rm", "-f", "-t", "0", "po")


def script_kube(d: Recorder) -> None:
    d("pod", "create", "--cgroup-parent", d.cgroup, "--name", "ku")
    d("create", "--pod", "ku", "--name", "worker", "-e", "A=b", "small", "sh", "-c", "echo $A; sleep 1000")
    text = d("generate", "kube", "ku")
    d("pod", "rm", "-f", "-t", "0", "ku")
    path = Path(d.folder, "pod.yaml")
    path.write_text(text)
    d("play", "kube", str(path))
    d.wait_for("its output", "logs", "ku-worker", until=lambda out: out == "b\n")
    d("pod", "ps", "--format", "{{.Name}} {{.Status}}")
    d("play", "kube", "--down", str(path))


def script_networks(d: Recorder) -> None:
    running(d, "web", command=("sh", "-c", "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"))
    address = d.quiet("inspect", "web", "--format", "{{.NetworkSettings.IPAddress}}").stdout.strip()
    d.hide(address, "<address>")
    d(*run_words(d, "--rm"), "small", "wget", "-qO-", f"http://{address}/", out="page\n")
    d(*run_words(d, "--rm", "--network", "container:web"), "small", "wget", "-qO-", "http://127.0.0.1/", out="page\n")
    d("rm", "-f", "-t", "0", "web")
    d(*run_words(d, "--rm", "--network", "host"), "small", "sh", "-c", "ip -o link | grep -c lo:")


def script_files_and_build(d: Recorder) -> None:
    folder = Path(d.folder, "build")
    folder.mkdir(exist_ok=True)
    (folder / "added").write_text("added\n")
    (folder / "Dockerfile").write_text(
        "FROM docker.io/library/small\nCOPY added /\nRUN cat /added && id -u > /who\nUSER app\nRUN id\nCMD cat /who\n"
    )
    words = (
        "build",
        "-q",
        "--cgroup-parent",
        f"{d.cgroup}/build",
        "--network",
        "none",
        "--ulimit",
        "nofile=1024:1024",
        "-t",
        "built",
        str(folder),
    )
    d(*words)
    d(*run_words(d, "--rm"), "built", out="0\n")
    running(d, "fi", command=("sh", "-c", "echo out > /tmp/out; exec sleep 1000"))
    d("cp", str(folder / "added"), "fi:/tmp/in")
    d("exec", "fi", "cat", "/tmp/in", out="added\n")
    d("diff", "fi", view=lambda out: "\n".join(sorted(out.splitlines())))
    d("commit", "-q", "fi", "committed")
    d(*run_words(d, "--rm"), "committed", "cat", "/tmp/out", out="out\n")
    d("rm", "-f", "-t", "0", "fi")


def certain(out: str) -> str:
    """Events, but for those that come only when conmon's clean-up, or the end, wins the race against the next command."""
    return "\n".join(line for line in dict.fromkeys(out.splitlines()) if not {"cleanup", "stop"} & set(line.split()))


def script_events(d: Recorder) -> None:
    running(d, "ev")
    d("exec", "ev", "true")
    d("pause", "ev")
    d("unpause", "ev")
    d("rm", "-f", "-t", "0", "ev")
    said = d(
        "events",
        "--stream=false",
        "--filter",
        "container=ev",
        "--format",
        "{{.Type}} {{.Status}} {{.Name}}",
        view=certain,
    )
    assert "container pause ev" in said

"""What an ordinary user does with Podman."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts_docker import POSTURE, SHELL

if TYPE_CHECKING:
    from transcript import Recorder


def script_run(d: Recorder) -> None:
    d("run", "--rm", "small", "sh", "-c", "id; cat /proc/self/uid_map | tr -s ' '")
    d("run", "--rm", "small", "sh", "-c", POSTURE)
    d("run", "--rm", "--read-only", "small", "sh", "-c", POSTURE)
    d("run", "--rm", "--init", "small", "ps", "-o", "args")
    d("run", "--rm", "small", "sh", "-c", "exit 7", code=7)
    d("run", "--rm", "-i", "small", "cat", stdin="through\n", out="through\n")
    d("run", "--rm", "small", "no-such-program", code=127, own=("executable file not found",))
    d("run", "--rm", "--memory", "64m", "small", "true")
    d("run", "--rm", "--network", "host", "small", "sh", "-c", "ip -o link | grep -c lo:")
    d("run", "--rm", "--pid", "host", "small", "sh", "-c", "[ $$ -gt 1 ] && echo not the first")
    d("run", "--rm", "--privileged", "small", "sh", "-c", "grep Cap /proc/self/status; ls /dev | wc -l")


def script_exec(d: Recorder) -> None:
    d("run", "-d", "--name", "ex", "small", "sleep", "1000")
    d("exec", "ex", "sh", "-c", "id; exit 3", code=3)
    d("exec", "-e", "A=b", "-w", "/data", "ex", "sh", "-c", "echo $A; pwd")
    d("exec", "ex", "no-such-program", code=127, own=("executable file not found",))
    talk = d.terminal("exec", "-it", "ex", *SHELL, size=(20, 77))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("20 77\r\n/dev/pts/")
    talk.ask("> ", "exit 9")
    talk.end(9)
    d("top", "ex", "user", "args")
    d("stats", "--no-stream", "ex", code=125)
    d("pause", "ex", code=125)
    d("kill", "-s", "TERM", "ex")
    d("stop", "-t", "0", "ex")
    d("rm", "ex")


def script_pods(d: Recorder) -> None:
    d("pod", "create", "--name", "po", "--hostname", "podhost")
    d("run", "-d", "--pod", "po", "--name", "web", "small", "httpd", "-f", "-h", "/data")
    d("run", "--rm", "--pod", "po", "small", "sh", "-c", "hostname; wget -qO- http://127.0.0.1/seed")
    d("pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}")
    d("pod", "rm", "-f", "-t", "0", "po")


def script_users_of_ones_own(d: Recorder) -> None:
    """More than one id: only with /etc/subuid."""
    d(
        "run",
        "--rm",
        "--userns",
        "keep-id",
        "small",
        "sh",
        "-c",
        "id; cat /proc/self/uid_map | tr -s ' '; touch /tmp/x; stat -c %u /tmp/x",
    )
    d("run", "--rm", "--userns", "auto", "small", "sh", "-c", "id; cat /proc/self/uid_map | tr -s ' '")
    d("run", "--rm", "--user", "app", "small", "sh", "-c", "id; touch /tmp/x; stat -c %u /tmp/x")
    d("run", "--rm", "--userns", "nomap", "small", "sh", "-c", "cat /proc/self/uid_map | tr -s ' '")
    d("run", "-d", "--name", "ki", "--userns", "keep-id", "small", "sleep", "1000")
    d("exec", "ki", "id")
    d("exec", "-u", "root", "ki", "id")
    d("rm", "-f", "-t", "0", "ki")


ONE_ID = (script_run, script_exec, script_pods)
"""What works with a single id."""
